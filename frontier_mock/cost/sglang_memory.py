"""What SGLang decides from the size of the GPU: chunk, graphs, size of the KV cache. PURE.

SGLang does not profile. It reserves memory for activations and CUDA graphs by a rule of thumb in
MiB, expresses what remains as `mem_fraction_static`, and gives the KV cache what is left of that
fraction after the weights are loaded (specs/sglang_and_routers.md section 8.3; SGLang 0.5.23,
arg_groups/memory_hook.py, model_executor/pool_configurator.py).
"""

from collections.abc import Sequence
from typing import Final

from frontier_mock.cost.layers import shard_model
from frontier_mock.cost.memory import MemoryPlan, OutOfMemory, draft_bytes, weight_bytes
from frontier_mock.cost.specs import (
    DraftSpec,
    HardwareSpec,
    ModelSpec,
    ParallelSpec,
    PrecisionSpec,
)
from frontier_mock.cost.stages import stage_models

_MIB: Final = 1 << 20

_CONTEXT_BYTES: Final = 560 << 20
"""Taken before the weights are loaded: CUDA, and what NCCL holds by then (inference)."""

_BY_GPU_MIB: Final = (
    (20 * 1024, 2048, 8, 8),
    (35 * 1024, 4096, 48, 160),
    (60 * 1024, 4096, 32, 160),
    (90 * 1024, 8192, 256, 512),
    (160 * 1024, 8192, 256, 512),
)
"""(below this many MiB: chunked_prefill_size, largest graph with tp < 4, with tp >= 4)."""

_LARGEST_GPU: Final = (16384, 512, 512)

_GRAPH_MIB_PER_REQUEST: Final = 2
_PREFILL_GRAPH_MIB: Final = 8
_ACTIVATION_MIB_PER_TOKEN: Final = 1.5
_LEAST_RESERVE_MIB: Final = 10 * 1024
"""Reserved at least on GPUs of more than 60 GiB."""


def gpu_defaults(hardware: HardwareSpec, tp: int) -> tuple[int, int]:
    """(chunked_prefill_size, largest captured decode batch) for this GPU."""
    mib = hardware.hbm_bytes / _MIB
    for below, chunk, small, large in _BY_GPU_MIB:
        if mib < below:
            return chunk, large if tp >= 4 else small
    chunk, small, large = _LARGEST_GPU
    return chunk, large if tp >= 4 else small


def decode_graph_sizes(largest: int, padding: bool = True) -> tuple[int, ...]:
    """Captured decode batch sizes up to `largest`, which is always one of them."""
    if not padding:
        return tuple(range(1, largest + 1))
    sizes = [1, 2, 4, 8, 12, *range(16, 257, 8), *range(272, 512, 16)]
    sizes += range(512, largest + 1, 32)
    return tuple(sorted({size for size in sizes if size <= largest} | {largest}))


def drafted_graph_sizes(largest: int) -> tuple[int, ...]:
    """Captured batch sizes with speculative decoding, in sequences."""
    sizes = [*range(1, 9), *range(10, 33, 2), *range(40, 65, 4), *range(72, 257, 8)]
    sizes += range(272, largest + 1, 16)
    return tuple(sorted({size for size in sizes if size <= largest} | {largest}))


def prefill_graph_sizes(largest: int) -> tuple[int, ...]:
    """Token counts for which prefill is captured, up to `largest` (0.5.23)."""
    sizes = [*range(4, 33, 4), *range(48, 257, 16), *range(288, 513, 32)]
    sizes += [*range(576, 1025, 64), *range(1280, 4097, 256), *range(4608, largest + 1, 512)]
    return tuple(size for size in sizes if size <= largest)


def default_mem_fraction_static(
    hardware: HardwareSpec,
    parallel: ParallelSpec,
    *,
    chunked_prefill_size: int,
    max_prefill_tokens: int,
    decode_graph_max: int,
    prefill_graphs: int,
) -> float:
    """Share of the GPU for weights and KV cache where none is given, rounded as SGLang does.

    `decode_graph_max` is 0 without decode graphs; `prefill_graphs` is how many are captured.
    """
    mib = hardware.hbm_bytes / _MIB
    tokens = chunked_prefill_size if chunked_prefill_size > 0 else max_prefill_tokens
    reserved = 512 + max(tokens, 2048) * _ACTIVATION_MIB_PER_TOKEN
    reserved += parallel.tp * parallel.pp / 8 * 1024
    reserved += decode_graph_max * _GRAPH_MIB_PER_REQUEST + prefill_graphs * _PREFILL_GRAPH_MIB
    if mib > 60 * 1024:
        reserved = max(reserved, _LEAST_RESERVE_MIB)
    return round((mib - reserved) / mib, 3)


def plan_sglang_kv_cache(
    hardware: HardwareSpec,
    model: ModelSpec,
    parallel: ParallelSpec,
    precision: PrecisionSpec,
    *,
    mem_fraction_static: float,
    page_size: int,
    max_total_tokens: int | None = None,
    draft: DraftSpec | None = None,
) -> MemoryPlan:
    """Size the KV cache of one worker; the plan's blocks are SGLang's pages, all of them usable.
    Of pipeline stages the one with fewest decides.

    Raises OutOfMemory when the fraction does not even hold the weights; ValueError when the
    parallelism does not divide the model.
    """
    shard = shard_model(model, parallel, precision)
    before_load = hardware.hbm_bytes - _CONTEXT_BYTES
    plans = []
    stages = stage_models(model, parallel)
    for number, stage in enumerate(stages):
        weights = weight_bytes(stage, precision, shard, (number == 0, number == len(stages) - 1))
        drafter, draft_token = draft_bytes(draft, parallel, precision)
        weights += drafter
        kv_bytes = int(before_load * mem_fraction_static) - weights
        cell = shard.heads.bytes_per_token * stage.num_layers + draft_token
        tokens = max(kv_bytes, 0) // cell
        if max_total_tokens is not None:
            tokens = min(tokens, max_total_tokens)
        pages = tokens // page_size
        if not pages:
            raise OutOfMemory(
                f"Not enough memory. Please try to increase --mem-fraction-static. "
                f"Current value: mem_fraction_static={mem_fraction_static} "
                f"(weights {weights / (1 << 30):.2f} GiB of {before_load / (1 << 30):.2f} GiB)"
            )
        plans.append(
            MemoryPlan(
                num_blocks=pages,
                weights_bytes=weights,
                activation_bytes=0,
                cudagraph_bytes=0,
                non_torch_bytes=_CONTEXT_BYTES,
                kv_bytes=pages * page_size * cell,
                bytes_per_block=page_size * cell,
            )
        )
    return min(plans, key=lambda plan: plan.num_blocks)


def default_max_running_requests(total_tokens: int, context_length: int) -> int:
    """Largest running batch where none is given: by the pool, within 2048 to 4096."""
    return min(max(min(int(total_tokens / context_length * 512), 4096), 2048), total_tokens // 2)


def graph_sizes(
    largest: int, explicit: Sequence[int] | None, disabled: bool, padding: bool
) -> tuple[int, ...]:
    """Captured decode batch sizes as the flags say; empty without graphs."""
    if disabled:
        return ()
    if explicit is not None:
        return tuple(sorted(set(explicit)))
    return decode_graph_sizes(largest, padding)
