"""Expert kernels: the grouped-GEMM equation and its correction by shape, from the MoE tables."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy.optimize import least_squares

from frontier_mock.cost.experts import (
    ExpertLoad,
    ExpertShape,
    balanced_load,
    block_rows,
    equation_us,
    experts_us,
    peak_flops,
    shape_point,
)
from frontier_mock.cost.specs import HardwareSpec
from frontier_mock.cost.tables import ExpertFit, ExpertTable

BLOCKS = (16, 32, 64, 128)
REACHES = (1.5, 2.5, 4.0)
PRIOR, NOISE = 0.2, 0.03
"""Standard deviations of the correction between far shapes, and of one measurement."""

START = (20.0, 0.05, 0.8, 0.6, 2.0, 0.8, 0.5, 100.0)
LOW = (2.0, 1e-4, 0.3, 0.1, 1.2, 0.1, 1e-3, 1.0)
HIGH = (120.0, 2.0, 1.0, 1.0, 8.0, 3.0, 20.0, 600.0)


@dataclass(frozen=True)
class ExpertSource:
    """One kernel in one collection. `ep`: True for whole experts per GPU, False for cut ones.

    `block_rows_most` as in `ExpertFit`; blocks then begin at the smallest of `BLOCKS`.
    """

    collection: str
    weights: str
    folder: str
    dtype: str
    kernel: str = ""
    ep: bool | None = None
    skew: float | None = None
    file: str = "moe_perf"
    even: str = "balanced"
    block_rows_most: int = 0

    @property
    def key(self) -> str:
        return f"{self.weights}_ep" if self.ep else self.weights


def sources(gpu: str) -> tuple[ExpertSource, ...]:
    """What is measured on this GPU, or on the GPU whose kernels it shares."""
    new = f"{gpu}/moe/vllm/0.24.0"
    if gpu == "a100_sxm":
        old = f"{gpu}/moe/vllm/0.14.0"
        return (ExpertSource("vllm-0.24", "bf16", old, "bfloat16", skew=1.01),)
    made = [
        ExpertSource("vllm-0.24", "bf16", new, "bfloat16"),
        ExpertSource("vllm-0.24", "fp8", new, "fp8"),
    ]
    most = 0 if gpu == "rtx_pro_6000_server" else 128
    openai = ExpertSource("vllm-0.24", "mxfp4", new, "w4a16_mxfp4", "gptoss", block_rows_most=most)
    made.append(openai)
    if gpu == "rtx_pro_6000_server":
        return (*made, ExpertSource("vllm-0.24", "int4", new, "int4_wo"))
    old, sglang = "h100_sxm/moe/vllm/0.19.0", f"{gpu}/moe/sglang/0.5.14"
    deepep, trtllm = "h100_sxm/moe/sglang/0.5.10", "h100_sxm/moe/trtllm/1.3.0rc20"
    return (
        *made,
        ExpertSource("vllm-0.24", "fp8_block", new, "fp8_block", "triton", False),
        ExpertSource("vllm-0.24", "fp8_block", new, "fp8_block", "flashinfer", True),
        ExpertSource("vllm-0.24", "int4", old, "int4_wo"),
        ExpertSource("flashinfer-cutlass", "fp8_block", trtllm, "fp8_block", "cutlass"),
        ExpertSource("vllm-0.19", "bf16", old, "bfloat16"),
        ExpertSource("vllm-0.19", "fp8", old, "fp8"),
        ExpertSource("vllm-0.19", "fp8_block", old, "fp8_block"),
        ExpertSource("vllm-0.19", "int4", old, "int4_wo"),
        replace(openai, collection="vllm-0.19"),
        ExpertSource("sglang", "bf16", sglang, "bfloat16", "fused_moe_triton"),
        ExpertSource("sglang", "fp8_block", sglang, "fp8_block"),
        ExpertSource("sglang", "mxfp4", sglang, "w4a16_mxfp4", "fused_moe_triton"),
        ExpertSource("sglang", "int4", sglang, "int4_wo"),
        *(
            ExpertSource(
                f"deepep_{mode}", "fp8_block", deepep, "fp8_block", file=file, even="uniform"
            )
            for mode, file in (
                ("normal", "wideep_context_moe_perf"),
                ("low_latency", "wideep_generation_moe_perf"),
            )
        ),
    )


@dataclass(frozen=True)
class Points:
    """Measured microseconds, `us[i, j]` for `shapes[i]` and `tokens[j]`; nan where not measured."""

    shapes: list[ExpertShape]
    tokens: np.ndarray
    us: np.ndarray


def points(data_dir: Path, source: ExpertSource, distribution: str) -> Points:
    """The rows of one kernel under one distribution of tokens over experts."""
    table = pq.read_table(data_dir / source.folder / f"{source.file}.parquet").to_pydict()
    cells: dict[ExpertShape, dict[int, list[float]]] = {}
    for i, latency in enumerate(table["latency"]):
        ep = table["moe_ep_size"][i]
        if table["moe_dtype"][i] != source.dtype or source.kernel not in table["kernel_source"][i]:
            continue
        if table["distribution"][i] != distribution or source.ep not in (None, ep > 1):
            continue
        shape = ExpertShape(
            table["hidden_size"][i],
            table["inter_size"][i] // table["moe_tp_size"][i],
            table["topk"][i],
            table["num_experts"][i],
            ep,
        )
        cell = cells.setdefault(shape, {}).setdefault(table["num_tokens"][i], [])
        cell.append(latency * 1e3)
    shapes = sorted(cells, key=lambda shape: (*tuple(shape_point(shape)), shape.ep))
    tokens = np.array(sorted({count for row in cells.values() for count in row}), dtype=float)
    us = [
        [np.median(cells[s][int(t)]) if int(t) in cells[s] else np.nan for t in tokens]
        for s in shapes
    ]
    return Points(shapes, tokens, np.array(us))


def skewed_load(
    shape: ExpertShape, block: int | np.ndarray, tokens: np.ndarray, alpha: float
) -> ExpertLoad:
    """The load under which the collector measures "power_law": the rank that got most rows.

    Rows per expert are drawn from a power law between 1 and 0.8 of the tokens (0.01 and 2 when
    there are fewer rows than experts) and scaled to the total.
    """
    draws = np.random.default_rng(0)
    columns = []
    for count, rows_of_block in zip(tokens, np.broadcast_to(block, tokens.shape), strict=True):
        total = count * shape.top_k
        low, high = (1.0, 0.8 * count) if total > shape.num_experts else (0.01, 2.0)
        power = 1.0 - alpha
        drawn = draws.random((8, shape.num_experts))
        share = ((high**power - low**power) * drawn + low**power) ** (1.0 / power)
        rows = np.round(share / share.sum(axis=1, keepdims=True) * total)
        rows = rows.reshape(8, shape.ep, -1)
        busiest = rows[np.arange(8), rows.sum(axis=2).argmax(axis=1)]
        blocks = np.ceil(busiest / rows_of_block) * rows_of_block
        columns.append(
            [
                (busiest > 0).sum(axis=1).mean(),
                busiest.sum(axis=1).mean(),
                blocks.sum(axis=1).mean(),
            ]
        )
    active, rows, padded = np.maximum(np.array(columns).T, 1.0)
    return ExpertLoad(tokens, active, rows, np.maximum(padded, block))


def loads(given: Points, block: int, skew: float | None) -> list[ExpertLoad]:
    if skew is None:
        return [balanced_load(shape, block, given.tokens) for shape in given.shapes]
    return [skewed_load(shape, block, given.tokens, skew) for shape in given.shapes]


def equation_grid(
    fit: ExpertFit, hw: HardwareSpec, weights: str, given: Points, on: list[ExpertLoad]
) -> np.ndarray:
    pairs = zip(given.shapes, on, strict=True)
    return np.array([equation_us(fit, hw, weights, shape, load) for shape, load in pairs])


def fit_equation(hw: HardwareSpec, source: ExpertSource, given: Points) -> ExpertFit:
    """The constants, with the block size that fits best."""
    known = ~np.isnan(given.us)
    target = np.log(given.us[known])
    best: tuple[float, ExpertFit] | None = None
    sm_flops = peak_flops(hw, source.weights) / hw.sm_count
    for block in BLOCKS[:1] if source.block_rows_most else BLOCKS:
        on = loads(given, block, source.skew)

        def error(x: np.ndarray, block: int = block, on: list[ExpertLoad] = on) -> np.ndarray:
            fit = ExpertFit(*np.exp(x), block, sm_flops)
            return np.log(equation_grid(fit, hw, source.weights, given, on)[known]) - target

        bounds = (np.log(LOW), np.log(HIGH))
        solved = least_squares(error, np.log(START), bounds=bounds, loss="soft_l1", f_scale=0.1)
        constants = (float(f"{v:.4g}") for v in np.exp(solved.x))
        off = float(np.abs(np.expm1(solved.fun)).mean())
        if best is None or off < best[0]:
            best = off, ExpertFit(*constants, block, sm_flops)
    assert best is not None
    return replace(best[1], block_rows_most=source.block_rows_most)


@dataclass(frozen=True)
class Fitted:
    """One kernel's table, and its relative errors: the equation's, and with each shape left out."""

    table: ExpertTable
    equation: np.ndarray
    held_out: np.ndarray


def fit_experts(hw: HardwareSpec, source: ExpertSource, data_dir: Path) -> Fitted:
    """Equation and Gaussian process; its reach is the one that predicts left-out shapes best."""
    distribution = source.even if source.skew is None else f"power_law_{source.skew}"
    given = points(data_dir, source, distribution)
    fit = fit_equation(hw, source, given)
    on = loads(given, fit.block_rows, source.skew)
    residual = np.log(given.us / equation_grid(fit, hw, source.weights, given, on))
    mean = np.nanmedian(residual, axis=0)
    known = ~np.isnan(residual)
    deviation = np.where(known, residual - mean, 0.0)
    at = np.array([shape_point(shape) for shape in given.shapes])
    distance = ((at[:, None] - at[None, :]) ** 2).sum(axis=2)
    best: tuple[float, float, np.ndarray, np.ndarray] | None = None
    for reach in REACHES:
        inverse = np.linalg.inv(
            PRIOR**2 * np.exp(-0.5 * distance / reach**2) + NOISE**2 * np.eye(len(at))
        )
        weight = inverse @ deviation
        off = np.abs(np.expm1(-weight / np.diag(inverse)[:, None]))[known]
        if best is None or off.mean() < best[0]:
            best = float(off.mean()), reach, PRIOR**2 * weight, off
    assert best is not None
    table = ExpertTable(fit, at, np.log(given.tokens), mean, best[2], best[1])
    return Fitted(table, np.abs(np.expm1(-residual[known])), best[3])


def skewed_errors(
    hw: HardwareSpec, source: ExpertSource, table: ExpertTable, data_dir: Path, alpha: float
) -> np.ndarray:
    """Signed relative errors on measured power-law loads, which took no part in the fit."""
    given = points(data_dir, source, f"power_law_{alpha}")
    errors = []
    for shape, us in zip(given.shapes, given.us, strict=True):
        load = skewed_load(shape, block_rows(table.fit, shape, given.tokens), given.tokens, alpha)
        errors.append(experts_us(table, hw, source.weights, shape, load) / us - 1.0)
    made = np.concatenate(errors)
    return made[~np.isnan(made)]


def written(
    source: ExpertSource, table: ExpertTable
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What goes into kernels.json and experts.npz."""
    key = f"experts_{source.collection}_{source.key}"
    arrays = {
        f"{key}_shapes": table.shapes.astype(np.float32),
        f"{key}_tokens": np.rint(np.exp(table.log_tokens)).astype(np.int32),
        f"{key}_mean": table.mean.astype(np.float32),
        f"{key}_kernel": table.kernel.astype(np.float16),
    }
    return {**asdict(table.fit), "reach": table.reach}, arrays
