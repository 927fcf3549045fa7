"""From SGLang's flags to a fully resolved worker, with SGLang's own defaults filled in.

Defaults and their order are those of SGLang 0.5.23 (arg_groups/memory_hook.py); versions before
RULES_SINCE also schedule by the older rules (see `SglangSchedulerSpec.classic`).
"""

from frontier_mock.cluster.specs import WorkerSpec
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.profiles import load_hardware, load_model
from frontier_mock.config.sglang_flags import FP8_KV_TYPES, SglangArgs
from frontier_mock.cost.memory import MemoryPlan, OutOfMemory
from frontier_mock.cost.sglang_memory import (
    default_max_running_requests,
    default_mem_fraction_static,
    gpu_defaults,
    graph_sizes,
    plan_sglang_kv_cache,
    prefill_graph_sizes,
)
from frontier_mock.cost.specs import EnginePreset, ParallelSpec, PrecisionSpec, StepSpec
from frontier_mock.serving.specs import SglangSchedulerSpec

RULES_SINCE = (0, 5, 23)
"""Earliest version known to follow the newer scheduling rules; 0.5.9 is known not to."""

_SPARE_PAGES = 4
"""Pages a sequence of the longest length must leave free to be admitted (see serving.worker)."""


def resolve_sglang_worker(
    args: SglangArgs, hardware_name: str, engine: EnginePreset, name: str, port: int
) -> tuple[WorkerSpec, MemoryPlan]:
    """Fill in what SGLang would decide for `args` on that GPU, and size its KV cache.

    Raises ConfigError for an unknown profile, an impossible combination, or too little memory.
    """
    hardware = load_hardware(hardware_name)
    model = load_model(args.model_path)
    weights = "fp8" if args.quantization is not None else model.checkpoint_weights
    precision = PrecisionSpec(weights, "fp8" if args.kv_cache_dtype in FP8_KV_TYPES else "bf16")
    parallel = ParallelSpec(tp=args.tp_size)
    classic = _version(engine) < RULES_SINCE
    chunk, largest = gpu_defaults(hardware, parallel.tp)
    if args.chunked_prefill_size is not None:
        chunk = args.chunked_prefill_size or -1
    page = args.page_size or 1
    if chunk > 0 and chunk % page:
        raise ConfigError(
            f"chunked-prefill-size: {chunk} is not a multiple of the page size ({page})"
        )
    if args.cuda_graph_max_bs_decode is not None:
        largest = args.cuda_graph_max_bs_decode
    elif args.max_running_requests is not None and not classic:
        largest = min(largest, args.max_running_requests)
    graphs = graph_sizes(
        largest,
        args.cuda_graph_bs_decode,
        args.disable_cuda_graph,
        not args.disable_cuda_graph_padding,
    )
    fraction = args.mem_fraction_static
    if fraction is None:
        captured = 0 if classic or args.disable_cuda_graph else len(prefill_graph_sizes(chunk))
        fraction = default_mem_fraction_static(
            hardware,
            parallel,
            chunked_prefill_size=chunk,
            max_prefill_tokens=args.max_prefill_tokens,
            decode_graph_max=max(graphs, default=0),
            prefill_graphs=captured,
        )
    try:
        memory = plan_sglang_kv_cache(
            hardware,
            model,
            parallel,
            precision,
            mem_fraction_static=fraction,
            page_size=page,
            max_total_tokens=args.max_total_tokens,
        )
    except OutOfMemory as error:
        raise ConfigError(f"{model.name} on {hardware.name}, tp {parallel.tp}: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{model.name}: {error}") from None
    context = args.context_length or model.max_position_embeddings
    total = memory.num_blocks * page
    longest = min(context - 2, total - _SPARE_PAGES * page)
    if longest < 1:
        raise ConfigError(f"max-total-tokens: {total} tokens are too few to serve anything")
    running = args.max_running_requests or default_max_running_requests(total, context)
    scheduler = SglangSchedulerSpec(
        max_running_requests=max(1, min(running, total // 2)),
        context_length=longest,
        num_pages=memory.num_blocks,
        page_size=page,
        chunked_prefill_size=chunk,
        max_prefill_tokens=args.max_prefill_tokens,
        prefill_max_requests=args.prefill_max_requests or 0,
        schedule_policy=args.schedule_policy,
        schedule_conservativeness=args.schedule_conservativeness,
        enable_mixed_chunk=args.enable_mixed_chunk,
        enable_overlap=not args.disable_overlap_schedule,
        enable_radix_cache=not args.disable_radix_cache,
        radix_eviction_policy=args.radix_eviction_policy,
        enable_priority_scheduling=args.enable_priority_scheduling,
        disable_priority_preemption=args.disable_priority_preemption,
        priority_scheduling_preemption_threshold=args.priority_scheduling_preemption_threshold,
        schedule_low_priority_values_first=args.schedule_low_priority_values_first,
        retraction_policy=args.retraction_policy,
        max_queued_requests=args.max_queued_requests or 0,
        random_seed=args.random_seed,
        classic=classic,
    )
    overlap = scheduler.enable_overlap
    step = StepSpec(hardware, model, parallel, precision, engine, overlap, graphs)
    served = args.served_model_name or args.model_path
    return WorkerSpec(name, port, "colocated", served, step, scheduler), memory


def _version(engine: EnginePreset) -> tuple[int, ...]:
    return tuple(int(part) for part in engine.version.split("."))
