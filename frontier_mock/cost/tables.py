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
class DecodeAttentionTable:
    """Measured one-token attention, one layer, for one cache type and head size.

    `time_us[i, j]` is for `tiles[i]` (sequences times KV heads) that each read `contexts[j]`
    tokens; all ascending. `bandwidth` is the measured GPU's memory bandwidth in bytes/s: on another
    GPU what exceeds the smallest time is scaled by the ratio. `stream` is the fraction of it that
    long contexts reach.
    """

    tiles: Floats
    contexts: Floats
    time_us: Floats
    bandwidth: float
    stream: float


@dataclass(frozen=True, slots=True)
class RaggedFit:
    """Decodes in one launch with prompt chunks under FlashAttention 2 (`attention.ragged_us`).

    `l2_bytes` is the GPU's L2, `sm_bytes_per_s` what an SM takes in of the cache, `tile_us` what a
    (sequence, query head) costs one SM beside that, `cold_us` what a (sequence, KV head) does where
    decodes are on their own, `empty_us` a tile that turns out to be empty.
    """

    l2_bytes: float
    sm_bytes_per_s: float
    tile_us: float
    cold_us: float
    empty_us: float


@dataclass(frozen=True, slots=True)
class PrefillAttentionFit:
    """Constants of causal chunk attention, for one cache type and head size.

    A tile is `tile_rows` rows of the queries of all heads that share a KV head, or of each head by
    itself where the kernel does not pack them (FlashAttention 2); a block is 128 keys it meets.
    `tile_us` opens a tile, `block_us` works off a block, both on one SM. A lone tile takes
    `path_us` a block after `path_start_us`, and `blend` joins the two bounds. A launch whose
    prompts all have 64 rows or fewer runs a narrower tile: it starts in `narrow_launch_us`, and its
    work takes `narrow_work` of what it would. `sm_flops` is the measured GPU's peak per SM, by
    which another GPU's times are scaled.
    """

    launch_us: float
    tile_us: float
    block_us: float
    path_us: float
    path_start_us: float
    blend: float
    narrow_launch_us: float
    narrow_work: float
    sm_flops: float
    tile_rows: int = 128
    packed: bool = True


@dataclass(frozen=True, slots=True)
class PrefillAttentionTable:
    """The equation, and how much longer than it says the work of a prompt takes.

    `work_ratio[i, j]` belongs to `log_group[i]` (query heads per KV head) and `log_length[j]`
    (length of a prompt without past, in whole tiles). `head_ratio[k, l]` multiplies it for as many
    KV heads as `log_heads[l]`, with one query head each (k = 0) or several.
    """

    fit: PrefillAttentionFit
    log_group: Floats
    log_length: Floats
    work_ratio: Floats
    log_heads: Floats
    head_ratio: Floats


@dataclass(frozen=True, slots=True)
class ExpertFit:
    """Constants of the grouped-GEMM equation (see `experts.equation_us`).

    `launch_us` is the fixed cost, `expert_us` that of one more expert, `memory` and `compute` the
    fractions of peak, `k_half` the inner size at which the tensor cores are half as well fed,
    `blend` the exponent that joins the two, `traffic` the fraction of bandwidth at which rows move
    between kernels, `route_us` the cost of sorting 1,000 routed rows. `block_rows` is how many rows
    of an expert the kernel works on at a time; with `block_rows_most` above 0 it takes as many as
    the average expert has, in powers of two from the one to the other. `sm_flops` is the measured
    GPU's peak per SM for these weights: what keeps a kernel below peak costs an SM the same time on
    another GPU.
    """

    launch_us: float
    expert_us: float
    memory: float
    compute: float
    blend: float
    traffic: float
    route_us: float
    k_half: float
    block_rows: int
    sm_flops: float
    block_rows_most: int = 0


@dataclass(frozen=True, slots=True)
class ExpertTable:
    """One expert kernel: the equation, and its correction on measured shapes and token counts.

    The correction at token count j is `mean[j] + sum_i near(i) * kernel[i, j]` with `near` a
    Gaussian of width `reach` around `shapes[i]` (base-2 logarithms of hidden size, inner size,
    top-k, experts of the rank, experts of all ranks). `log_tokens` are natural logarithms.
    """

    fit: ExpertFit
    shapes: Floats
    log_tokens: Floats
    mean: Floats
    kernel: Floats
    reach: float


@dataclass(frozen=True, slots=True)
class ContiguousFit:
    """Constants of DeepGEMM's contiguous grouped GEMM (see `contiguous.contiguous_us`): the
    fractions of peak and of bandwidth that its tiles reach, and the exponent that joins them."""

    compute: float
    memory: float
    blend: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Time by message size, both ascending; interpolated in logarithms, last slope beyond."""

    size_bytes: Floats
    time_us: Floats


@dataclass(frozen=True, slots=True)
class KernelTables:
    """All tables of one GPU.

    `gemm` is keyed by weight type ("bf16", "fp8"), attention by cache type and then head size, the
    collectives by number of ranks. `sustained` is, by weight type, the fraction of peak at which a
    forward pass can run its linear layers one after another: power limits it below what a single
    kernel reaches. `experts` is keyed by collection (`EnginePreset.expert_kernels`) and weight
    type; a type with "_ep" is for whole experts on each GPU, where that is another kernel.
    `contiguous` is DeepGEMM's grouped GEMM, None for GPUs it does not run on. `ragged` is how
    decodes fare beside prompt chunks, None where that makes no difference (FlashAttention 3).
    `elementwise_us` and `elementwise_memory` price every fused elementwise kernel: a fixed cost
    plus bytes at that fraction of the bandwidth.
    """

    name: str
    gemm: Mapping[str, GemmTable]
    sustained: Mapping[str, float]
    decode: Mapping[str, Mapping[int, DecodeAttentionTable]]
    prefill: Mapping[str, Mapping[int, PrefillAttentionTable]]
    all_reduce: Mapping[int, Curve]
    all_gather: Mapping[int, Curve]
    experts: Mapping[str, Mapping[str, ExpertTable]]
    elementwise_us: float
    elementwise_memory: float
    contiguous: ContiguousFit | None = None
    ragged: RaggedFit | None = None
