"""Dense linear layers: an equation of tiles and waves, corrected by what was measured. PURE.

The equation is cost_model.md section 1.2. The correction is the logarithm of measured over
predicted, interpolated on the measured grid; outside the grid the nearest edge holds, so that the
equation extrapolates. Nothing is ever faster than the hardware's peak.
"""

from typing import Final

import numpy as np

from frontier_mock.cost.specs import HardwareSpec
from frontier_mock.cost.tables import Floats, GemmFit, GemmTable

WEIGHT_BYTES: Final = {"bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "int4": 0.52, "mxfp4": 0.53125}
"""Bytes per weight, scales included: int4 has one of two bytes per 128, mxfp4 one byte per 32."""

PACKED: Final = ("int4", "mxfp4")
"""Weight types that are multiplied as bf16."""

OUTPUT_BYTES: Final = 2
"""Activations leave every linear layer in bf16, whatever the weights are."""

_TILES: Final = (
    (64, 64, 0.55),
    (64, 128, 0.75),
    (64, 256, 0.85),
    (128, 64, 0.75),
    (128, 128, 0.90),
    (128, 256, 1.0),
    (256, 128, 1.0),
)
"""Tile rows, tile columns, relative efficiency (cost_model.md section 1.2)."""

_MAX_SPLIT_K: Final = 4.0
_SPLIT_K_COST: Final = 1.1


def equation_us(fit: GemmFit, hw: HardwareSpec, weights: str, m: Floats, n: int, k: int) -> Floats:
    """Microseconds of M x K times K x N for each M, by the equation alone."""
    width, peak = _width_and_peak(hw, weights)
    moved = m * (k * _input_bytes(weights)) + float(n) * k * width + m * (n * OUTPUT_BYTES)
    memory_us = moved / (fit.memory * hw.hbm_bytes_per_s) * 1e6
    feed = k / (k + fit.k_half)
    compute_us = np.full_like(m, np.inf)
    for rows, columns, efficiency in _TILES:
        tiles = np.ceil(m / rows) * -(-n // columns)
        waves = np.ceil(tiles / hw.sm_count)
        flops = waves * (hw.sm_count * 2.0 * rows * columns * k)
        split = np.clip(hw.sm_count / tiles, 1.0, _MAX_SPLIT_K)
        shorter = np.minimum(1.0, _SPLIT_K_COST / split)
        tile_us = flops * shorter / (peak * fit.compute * efficiency * feed) * 1e6
        np.minimum(compute_us, tile_us, out=compute_us)
    blended: Floats = (compute_us**fit.blend + memory_us**fit.blend) ** (1.0 / fit.blend)
    return fit.launch_us + blended


def floor_us(hw: HardwareSpec, weights: str, m: Floats, n: int, k: int) -> Floats:
    """Microseconds below which no machine with this peak and bandwidth can go."""
    width, peak = _width_and_peak(hw, weights)
    moved = float(n) * k * width + m * (k * _input_bytes(weights) + n * OUTPUT_BYTES)
    return np.maximum(moved / hw.hbm_bytes_per_s, 2.0 * m * n * k / peak) * 1e6


def gemm_us(table: GemmTable, hw: HardwareSpec, weights: str, m: Floats, n: int, k: int) -> Floats:
    """Microseconds of M x K times K x N for each M (float array), measured where possible."""
    time_us = equation_us(table.fit, hw, weights, m, n, k)
    if table.log_m.size:
        column = _blend(table, n, k)
        time_us = time_us * np.exp(np.interp(np.log(m), table.log_m, column))
    return np.maximum(time_us, floor_us(hw, weights, m, n, k))


def _blend(table: GemmTable, n: int, k: int) -> Floats:
    """The correction by M at this (N, K), bilinear in the logarithms."""
    i, u = _locate(table.log_n, n)
    j, v = _locate(table.log_k, k)
    r = table.residual
    low = (1.0 - v) * r[i, j] + v * r[i, j + 1]
    high = (1.0 - v) * r[i + 1, j] + v * r[i + 1, j + 1]
    blended: Floats = np.asarray((1.0 - u) * low + u * high, dtype=np.float64)
    return blended


def _locate(axis: Floats, size: int) -> tuple[int, float]:
    """Cell of `size` on an axis of logarithms, and how far into the cell; clipped to the grid."""
    x = float(np.log(size))
    index = int(np.clip(np.searchsorted(axis, x, side="right") - 1, 0, len(axis) - 2))
    fraction = (x - axis[index]) / (axis[index + 1] - axis[index])
    return index, float(np.clip(fraction, 0.0, 1.0))


def packed_table(bf16: GemmTable) -> GemmTable:
    """Weights unpacked on the way to bf16 tensor cores (Marlin): not measured.

    Those of four bits, and those in fp8 on a GPU whose tensor cores do not know it (Ampere). The
    bf16 equation with fewer bytes and no correction.
    """
    none = np.empty(0)
    return GemmTable(bf16.fit, none, none, none, np.empty((0, 0, 0), dtype=np.float32))


def _width_and_peak(hw: HardwareSpec, weights: str) -> tuple[float, float]:
    """Bytes per weight, scales of packed ones included, and the peak of the kernel."""
    peak = hw.peak_fp8_flops if weights.startswith("fp8") else hw.peak_bf16_flops
    return WEIGHT_BYTES[weights], peak


def _input_bytes(weights: str) -> int:
    """Bytes per element of the activations that go in."""
    return 1 if weights.startswith("fp8") else 2
