"""Routed experts: the grouped GEMM of one layer on one rank, and how tokens fall on experts. PURE.

An equation in the experts that are hit and the rows that fall on them (cost_model.md section 1.5),
corrected by what was measured. The correction depends on the shape through a Gaussian process over
the logarithms of five numbers, so that a shape nobody measured borrows from its neighbours and one
far from all of them gets the mean. Nothing is faster than peak and bandwidth allow.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from frontier_mock.cost.gemm import WEIGHT_BYTES
from frontier_mock.cost.specs import ExpertsSpec, HardwareSpec, RoutingSpec
from frontier_mock.cost.tables import ExpertFit, ExpertTable, Floats
from frontier_mock.rng import stream

_ZIPF: Final = 0.45
"""Exponent of expert popularity. cost_model.md section 1.5 infers 0.3 to 0.6 for routers balanced
by biases and 1.0 for others; but Qwen3-30B-A3B's expert kernels on 8 GPUs took between 0.73 and
1.35 times their mean (h200_kernels_nsys_4096tok_tp4dp2ep8.csv), as loads of 0.3 to 0.45 do (0.71 to
1.5) and loads of 1.0 do not (0.3 to 3.3)."""

_ACTIVATION_BYTES: Final = 2.0

_TENSOR_PEAK: Final = 0.9
"""What tensor cores reach alone (H20's grouped GEMM: 0.83 to 0.90, cost_model.md row B24)."""


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """Experts as one rank sees them: `inner` is its share of the intermediate size."""

    hidden: int
    inner: int
    top_k: int
    num_experts: int
    ep: int


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """What a number of tokens means for one rank; arrays of one shape.

    `active` experts get at least one row, `rows` is how many fall on this rank, `padded` how many
    there are once each expert's are filled up to whole blocks. `tokens` is the batch of all ranks.
    """

    tokens: Floats
    active: Floats
    rows: Floats
    padded: Floats


def block_rows(fit: ExpertFit, shape: ExpertShape, tokens: Floats) -> Floats:
    """Rows of a block for each number of tokens.

    OpenAI's triton_kernels, which run mxfp4 experts on Hopper, size blocks on the host, where only
    the average expert's rows are known (matmul_ogs_details/opt_flags.py of triton-lang/triton).
    """
    if not fit.block_rows_most:
        return np.full_like(tokens, fit.block_rows)
    average = np.maximum(np.floor(tokens * shape.top_k / shape.num_experts), 1.0)
    rows: Floats = np.clip(2.0 ** np.ceil(np.log2(average)), fit.block_rows, fit.block_rows_most)
    return rows


def balanced_load(shape: ExpertShape, block_rows: int | Floats, tokens: Floats) -> ExpertLoad:
    """Every expert gets the same, and no expert is hit twice before all are hit once."""
    rows = np.maximum(tokens * shape.top_k / shape.ep, 1.0)
    active = np.minimum(shape.num_experts / shape.ep, rows)
    padded = active * np.ceil(rows / active / block_rows) * block_rows
    return ExpertLoad(tokens, active, rows, padded)


def expected_load(
    popularity: Floats, top_k: int, block_rows: int | Floats, tokens: Floats
) -> ExpertLoad:
    """Expectation when each token picks experts by `popularity`.

    `popularity` sums to 1 over all experts and has the experts of one rank along its last axis;
    the result has the other axes, then one for `tokens`. An expert is picked at most once a token.
    """
    picked = np.minimum(popularity * top_k, 1.0)[..., None]
    hit = -np.expm1(tokens * np.log1p(-np.minimum(picked, 1.0 - 1e-12)))
    rows = picked * tokens
    # The last block of an expert is half empty on average, and a lone row fills a whole one.
    padded = np.maximum(hit * block_rows, rows + 0.5 * hit * block_rows)
    return ExpertLoad(
        np.broadcast_to(tokens, rows.shape[:-2] + tokens.shape),
        hit.sum(axis=-2),
        rows.sum(axis=-2),
        padded.sum(axis=-2),
    )


def popularity(model: ExpertsSpec, routing: RoutingSpec, layers: int) -> Floats:
    """Share of the rows that each expert gets, [layer, expert], drawn once per layer."""
    exponent = routing.exponent
    if routing.kind == "model":
        exponent = _ZIPF
    elif routing.kind == "uniform":
        exponent = 0.0
    share = np.arange(1.0, model.num_experts + 1.0) ** -exponent
    share /= share.sum()
    draws = stream(routing.seed, "experts/popularity")
    made: Floats = np.stack([share[draws.permutation(model.num_experts)] for _ in range(layers)])
    return made


def drifted(model: ExpertsSpec, routing: RoutingSpec, shares: Floats) -> Floats:
    """What popularity has become: part of it went to experts drawn anew, layer by layer."""
    if not routing.drift:
        return shares
    draws = stream(routing.seed, "experts/drift")
    moved = np.stack([share[draws.permutation(model.num_experts)] for share in shares])
    made: Floats = (1.0 - routing.drift) * shares + routing.drift * moved
    return made


def placed(shares: Floats, ranks: int, redundant: int, now: Floats | None = None) -> Floats:
    """Popularity by [layer, rank, slot] on `ranks` GPUs.

    Experts are placed by `shares`; the load they bring is `now`, if that is another.

    Without redundant experts each rank has consecutive ones, as vLLM's linear placement. With them
    the most loaded expert gets one replica more until there are enough, and replicas go, heaviest
    first, to the least loaded rank with a free slot (as EPLB packs them).
    """
    layers, experts = shares.shape
    load_of = shares if now is None else now
    if not redundant:
        return load_of.reshape(layers, ranks, experts // ranks)
    slots = (experts + redundant) // ranks
    packed = np.zeros((layers, ranks, slots))
    for layer, share in enumerate(shares):
        replicas = np.ones(experts)
        for _ in range(redundant):
            replicas[np.argmax(share / replicas)] += 1.0
        owners = np.repeat(np.arange(experts), replicas.astype(int))
        known, loads = share / replicas, load_of[layer] / replicas
        load, used = np.zeros(ranks), np.zeros(ranks, dtype=int)
        for owner in owners[np.argsort(-known[owners], kind="stable")]:
            rank = int(np.argmin(np.where(used < slots, load, np.inf)))
            packed[layer, rank, used[rank]] = loads[owner]
            load[rank] += known[owner]
            used[rank] += 1
    return packed


def equation_us(
    fit: ExpertFit, hw: HardwareSpec, weights: str, shape: ExpertShape, load: ExpertLoad
) -> Floats:
    """Microseconds of sorting, both grouped GEMMs, activation and sum, by the equation alone."""
    bandwidth = hw.hbm_bytes_per_s
    per_expert = 3.0 * shape.hidden * shape.inner
    memory_us = load.active * (per_expert * WEIGHT_BYTES[weights] / (fit.memory * bandwidth) * 1e6)
    feed = shape.inner / (shape.inner + fit.k_half)
    reached = _reached(fit, hw, weights)
    compute_us = load.padded * (2e6 * per_expert / (peak_flops(hw, weights) * reached * feed))
    moved = load.rows * ((2 * shape.hidden + 4 * shape.inner) * 2 * _ACTIVATION_BYTES)
    routed = load.tokens * (shape.top_k * fit.route_us / 1e3)
    both: Floats = (memory_us**fit.blend + compute_us**fit.blend) ** (1.0 / fit.blend)
    return (
        fit.launch_us
        + fit.expert_us * load.active
        + moved / (fit.traffic * bandwidth) * 1e6
        + routed
        + both
    )


def floor_us(hw: HardwareSpec, weights: str, shape: ExpertShape, load: ExpertLoad) -> Floats:
    """Microseconds below which no machine with this peak and bandwidth can go."""
    per_expert = 3.0 * shape.hidden * shape.inner
    read = load.active * per_expert * WEIGHT_BYTES[weights] / hw.hbm_bytes_per_s
    computed = load.rows * 2.0 * per_expert / peak_flops(hw, weights)
    slowest: Floats = np.maximum(read, computed) * 1e6
    return slowest


def experts_us(
    table: ExpertTable, hw: HardwareSpec, weights: str, shape: ExpertShape, load: ExpertLoad
) -> Floats:
    """Microseconds of the experts of one rank, measured where possible."""
    if table.fit.block_rows_most:
        time_us = _by_blocks_us(table, hw, weights, shape, load)
    else:
        time_us = _corrected_us(table, hw, weights, shape, load)
    return np.maximum(time_us, floor_us(hw, weights, shape, load))


def _by_blocks_us(
    table: ExpertTable, hw: HardwareSpec, weights: str, shape: ExpertShape, load: ExpertLoad
) -> Floats:
    """Time of an even load of as many tokens, scaled by the blocks that this one makes of them.

    Every block goes through its expert's weights once and turns them from four bits to sixteen, so
    what is beyond the fixed cost is the blocks' (a popular expert has many, an idle one none).
    """
    smallest = table.fit.block_rows
    even = balanced_load(shape, smallest, load.tokens)
    fewest = balanced_load(shape, smallest, np.ones(1))
    even_us = _corrected_us(table, hw, weights, shape, even)
    least_us = np.minimum(_corrected_us(table, hw, weights, shape, fewest), even_us)
    rows = block_rows(table.fit, shape, load.tokens)
    more = even.active * np.ceil(even.rows / even.active / rows) - fewest.active
    beyond = np.maximum(load.padded / rows - fewest.active, 0.0)
    share = np.divide(beyond, more, out=np.ones_like(beyond), where=more > 0.0)
    made: Floats = least_us + (even_us - least_us) * share
    return made


def _corrected_us(
    table: ExpertTable, hw: HardwareSpec, weights: str, shape: ExpertShape, load: ExpertLoad
) -> Floats:
    """The equation, and what was measured beside it."""
    time_us = equation_us(table.fit, hw, weights, shape, load)
    if table.log_tokens.size:
        column = correction(table, shape)
        equivalent = load.rows * (shape.ep / shape.top_k)
        time_us = time_us * np.exp(np.interp(np.log(equivalent), table.log_tokens, column))
    return time_us


def correction(table: ExpertTable, shape: ExpertShape) -> Floats:
    """log(measured / equation) at each of the table's token counts, for this shape."""
    distance = ((table.shapes - shape_point(shape)) ** 2).sum(axis=1)
    near = np.exp(-0.5 * distance / table.reach**2)
    column: Floats = table.mean + near @ table.kernel
    return column


def shape_point(shape: ExpertShape) -> Floats:
    """Where a shape lies among the measured ones: base-2 logarithms."""
    local = shape.num_experts / shape.ep
    numbers = (shape.hidden, shape.inner, shape.top_k, local, shape.num_experts)
    point: Floats = np.log2(np.array(numbers, dtype=np.float64))
    return point


def _reached(fit: ExpertFit, hw: HardwareSpec, weights: str) -> float:
    """Fraction of peak on this GPU: slower tensor cores wait less for everything else (H20)."""
    alone = min(1.0 / _TENSOR_PEAK, 1.0 / fit.compute)
    slower = peak_flops(hw, weights) / hw.sm_count / fit.sm_flops
    return 1.0 / (alone + (1.0 / fit.compute - alone) * slower)


def peak_flops(hw: HardwareSpec, weights: str) -> float:
    """FLOP/s that these weights are multiplied at."""
    return hw.peak_fp8_flops if weights.startswith("fp8") else hw.peak_bf16_flops
