"""What InferSim measured: H20's linear layers, and DeepGEMM's contiguous grouped GEMM on H800."""

import csv
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from frontier_mock.cost.contiguous import ROWS, gemm_us
from frontier_mock.cost.experts import ExpertShape, balanced_load, floor_us
from frontier_mock.cost.experts import equation_us as experts_equation_us
from frontier_mock.cost.gemm import equation_us
from frontier_mock.cost.specs import HardwareSpec
from frontier_mock.cost.tables import ContiguousFit, ExpertFit, GemmFit

START = (6.0, 0.9, 0.85, 60.0, 4.0)
LOW, HIGH = (1.0, 0.3, 0.5, 1.0, 1.5), (20.0, 1.0, 1.0, 800.0, 8.0)

MASKED_START = (12.0, 0.5, 0.8, 0.7, 2.0, 0.8, 0.01, 50.0)
MASKED_LOW = (2.0, 1e-3, 0.3, 0.2, 1.2, 0.2, 1e-3, 1.0)
MASKED_HIGH = (60.0, 6.0, 1.0, 1.0, 8.0, 8.0, 1.0, 600.0)
"""The constants of `ExpertFit` without block and peak."""


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


def masked_rows(path: Path) -> list[tuple[ExpertShape, float, float]]:
    """Shape on one rank, tokens of all ranks, and microseconds of both masked grouped GEMMs."""
    made = []
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            names = ("hidden_size", "intermediate_size", "topk", "num_experts", "num_gpus")
            shape = ExpertShape(*(int(row[name]) for name in names))
            tokens = float(row["batch_size_per_gpu"]) * shape.ep
            made.append((shape, tokens, float(row["up_proj_us"]) + float(row["down_proj_us"])))
    return made


def masked_us(
    fit: ExpertFit, hw: HardwareSpec, rows: list[tuple[ExpertShape, float, float]]
) -> np.ndarray:
    """The equation on each row, no faster than the machine."""
    made = []
    for shape, tokens, _ in rows:
        load = balanced_load(shape, fit.block_rows, np.array([tokens]))
        us = experts_equation_us(fit, hw, "fp8_block", shape, load)
        made.append(float(np.maximum(us, floor_us(hw, "fp8_block", shape, load))[0]))
    return np.array(made)


def fit_masked(hw: HardwareSpec, rows: list[tuple[ExpertShape, float, float]]) -> ExpertFit:
    """Constants of the equation, with the block that fits best."""
    target = np.log([us for _, _, us in rows])
    sm_flops = hw.peak_fp8_flops / hw.sm_count
    best: tuple[float, ExpertFit] | None = None
    for block in (16, 32, 64, 128):

        def error(x: np.ndarray, block: int = block) -> np.ndarray:
            fit = ExpertFit(*np.exp(x), block, sm_flops)
            return np.log(masked_us(fit, hw, rows)) - target

        bounds = np.log(MASKED_LOW), np.log(MASKED_HIGH)
        solved = least_squares(
            error, np.log(MASKED_START), bounds=bounds, loss="soft_l1", f_scale=0.1
        )
        off = float(np.abs(np.expm1(solved.fun)).mean())
        if best is None or off < best[0]:
            constants = (float(f"{v:.4g}") for v in np.exp(solved.x))
            best = off, ExpertFit(*constants, block, sm_flops)
    assert best is not None
    return best[1]


def masked_holdout(hw: HardwareSpec, rows: list[tuple[ExpertShape, float, float]]) -> np.ndarray:
    """Relative errors on each (hidden, inner) size, fitted without it."""
    errors = []
    for size in sorted({(shape.hidden, shape.inner) for shape, _, _ in rows}):
        out = [row for row in rows if (row[0].hidden, row[0].inner) == size]
        fit = fit_masked(hw, [row for row in rows if (row[0].hidden, row[0].inner) != size])
        us = np.array([row[2] for row in out])
        errors.append(np.abs(masked_us(fit, hw, out) / us - 1.0))
    return np.concatenate(errors)
