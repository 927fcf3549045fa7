"""What InferSim measured: H20's linear layers, and DeepGEMM's contiguous grouped GEMM on H800."""

import csv
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from frontier_mock.cost.contiguous import ROWS, gemm_us
from frontier_mock.cost.gemm import equation_us
from frontier_mock.cost.specs import HardwareSpec
from frontier_mock.cost.tables import ContiguousFit, GemmFit

START = (6.0, 0.9, 0.85, 60.0, 4.0)
LOW, HIGH = (1.0, 0.3, 0.5, 1.0, 1.5), (20.0, 1.0, 1.0, 800.0, 8.0)


def linear_rows(path: Path) -> np.ndarray:
    """Columns m, n, k and microseconds of block-fp8 layers."""
    with path.open(encoding="utf-8") as file:
        names = ("m", "n", "k", "latency_us")
        return np.array([[float(row[name]) for name in names] for row in csv.DictReader(file)])


def predicted_us(fit: GemmFit, hw: HardwareSpec, rows: np.ndarray) -> np.ndarray:
    """The equation on each row."""
    made = [equation_us(fit, hw, "fp8_block", row[:1], int(row[1]), int(row[2]))[0] for row in rows]
    return np.array(made)


def fit_linear(hw: HardwareSpec, rows: np.ndarray) -> GemmFit:
    """Constants of the equation."""
    target = np.log(rows[:, 3])

    def error(x: np.ndarray) -> np.ndarray:
        return np.log(predicted_us(GemmFit(*np.exp(x)), hw, rows)) - target

    bounds = (np.log(LOW), np.log(HIGH))
    solved = least_squares(error, np.log(START), bounds=bounds, loss="soft_l1", f_scale=0.1)
    return GemmFit(*(float(f"{v:.4g}") for v in np.exp(solved.x)))


def linear_holdout(hw: HardwareSpec, rows: np.ndarray) -> np.ndarray:
    """Relative errors on each fifth of the (N, K) shapes, fitted without them."""
    shapes = np.unique(rows[:, 1:3], axis=0)
    group = np.array([int(np.flatnonzero((shapes == row[1:3]).all(axis=1))[0]) for row in rows])
    errors = []
    for fold in range(5):
        out = group % 5 == fold
        fit = fit_linear(hw, rows[~out])
        errors.append(np.abs(predicted_us(fit, hw, rows[out]) / rows[out, 3] - 1.0))
    return np.concatenate(errors)


def grouped_rows(path: Path) -> np.ndarray:
    """Columns experts, rows of each, n, k and microseconds of contiguous grouped GEMMs."""
    made = []
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            experts, rows = float(row["num_local_experts"]), float(row["tokens_per_expert"])
            hidden, inner = float(row["hidden_size"]), float(row["intermediate_size"])
            made.append((experts, rows, 2 * inner, hidden, float(row["up_proj_us"])))
            made.append((experts, rows, hidden, inner, float(row["down_proj_us"])))
    return np.array(made)


def grouped_us(fit: ContiguousFit, hw: HardwareSpec, rows: np.ndarray) -> np.ndarray:
    """The equation on each row."""
    experts, each, n, k = rows[:, :4].T
    allocated = experts * np.ceil(each / ROWS) * ROWS
    moved = experts * n * k + experts * each * (k + 2.0 * n)
    return gemm_us(fit, hw, "fp8_block", allocated * n * k, moved)


def fit_grouped(hw: HardwareSpec, rows: np.ndarray) -> ContiguousFit:
    """Constants of the equation."""

    def error(x: np.ndarray) -> np.ndarray:
        return np.log(grouped_us(ContiguousFit(*np.exp(x)), hw, rows) / rows[:, 4])

    bounds = np.log((0.3, 0.4, 1.5)), np.log((1.0, 1.0, 8.0))
    solved = least_squares(
        error, np.log((0.65, 0.8, 2.5)), bounds=bounds, loss="soft_l1", f_scale=0.1
    )
    return ContiguousFit(*(float(f"{v:.4g}") for v in np.exp(solved.x)))


def grouped_holdout(hw: HardwareSpec, rows: np.ndarray) -> np.ndarray:
    """Relative errors on the rows of each number of experts, fitted without them."""
    errors = []
    for experts in np.unique(rows[:, 0]):
        out = rows[:, 0] == experts
        fit = fit_grouped(hw, rows[~out])
        errors.append(np.abs(grouped_us(fit, hw, rows[out]) / rows[out, 4] - 1.0))
    return np.concatenate(errors)
