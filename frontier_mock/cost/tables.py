"""Fitted kernel tables: what `scripts/fit_profiles` derived from measurements of one GPU.

Data only; the equations that read them are in `gemm`, `attention` and `collectives`. Each equation
is written against the hardware's peak and bandwidth, so a GPU without measurements of its own
borrows another's efficiencies and keeps its own peaks. Times are microseconds, sizes bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class GemmFit:
    """Constants of the dense-linear equation (cost_model.md section 1.2).

    `launch_us` is the fixed cost, `compute` and `memory` the fractions of peak reached by large
    shapes, `k_half` the inner dimension at which the tensor cores are half as well fed, `blend`
    the exponent that joins compute and memory time.
    """

    launch_us: float
    compute: float
    memory: float
    k_half: float
    blend: float


@dataclass(frozen=True, slots=True)
class GemmTable:
    """One weight type: the equation, and log(measured / equation) on a grid of (N, K, M).

    `residual[i, j, l]` belongs to `log_n[i], log_k[j], log_m[l]` (natural logarithms, ascending).
    A table reached by transfer has axes of length 0.
    """

    fit: GemmFit
    log_n: Floats
    log_k: Floats
    log_m: Floats
    residual: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DecodeAttentionFit:
    """Constants of one-token attention over a paged cache (cost_model.md section 1.3).

    With B bytes of keys and values read: `launch_us + tile_us * batch * kv_heads / SMs +
    ramp_us * B / (B + ramp_bytes) + B / (memory * bandwidth)`.
    """

    launch_us: float
    tile_us: float
    ramp_us: float
    ramp_bytes: float
    memory: float


@dataclass(frozen=True, slots=True)
class PrefillAttentionFit:
    """Constants of causal chunk attention (cost_model.md section 1.4), for one head size.

    `compute` is the fraction of bf16 peak, `tile_us` the cost of opening a 128-query tile, and
    `path_us` the time one tile needs to walk 128 keys, which bounds a lone sequence.
    """

    launch_us: float
    compute: float
    tile_us: float
    path_us: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Time by message size, both ascending; interpolated in logarithms, last slope beyond."""

    size_bytes: Floats
    time_us: Floats


@dataclass(frozen=True, slots=True)
class KernelTables:
    """All tables of one GPU.

    `gemm` is keyed by weight type ("bf16", "fp8"), `decode` by cache type, `prefill` by head
    size, the collectives by number of ranks. `norm_us` and `norm_memory` price every fused
    elementwise kernel: a fixed cost plus bytes at that fraction of the bandwidth.
    """

    name: str
    gemm: Mapping[str, GemmTable]
    decode: Mapping[str, DecodeAttentionFit]
    prefill: Mapping[int, PrefillAttentionFit]
    all_reduce: Mapping[int, Curve]
    all_gather: Mapping[int, Curve]
    elementwise_us: float
    elementwise_memory: float
