"""From SGLang's flags to a fully resolved worker, with SGLang's own defaults filled in.

Defaults and their order are those of SGLang 0.5.23 (arg_groups/memory_hook.py); versions before
RULES_SINCE also schedule by the older rules (see `SglangSchedulerSpec.classic`).
"""

from dataclasses import replace

from frontier_mock.cluster.specs import WorkerSpec
from frontier_mock.config.afd import afd_spec
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.hicache import host_tier, storage_args, storage_spec
from frontier_mock.config.kv_events import read_kv_events
from frontier_mock.config.kv_transfer import sglang_connector
from frontier_mock.config.pipelines import checked_stages
from frontier_mock.config.profiles import load_hardware, load_model
from frontier_mock.config.sglang_flags import FP8_KV_TYPES, SglangArgs
from frontier_mock.config.sglang_speculative import MAX_RUNNING_REQUESTS, reserve_tokens
from frontier_mock.config.speculative import check_drafts, draft_of, speculation_of
from frontier_mock.config.weights import SGLANG_WEIGHTS, weight_format
from frontier_mock.cost.afd.memory import attention_only, attention_precision
from frontier_mock.cost.memory import MemoryPlan, OutOfMemory
from frontier_mock.cost.sglang_memory import (
    default_max_running_requests,
    default_mem_fraction_static,
    drafted_graph_sizes,
    gpu_defaults,
    graph_sizes,
    plan_sglang_kv_cache,
    prefill_graph_sizes,
)
from frontier_mock.cost.specs import EnginePreset, ModelSpec, ParallelSpec, PrecisionSpec, StepSpec
from frontier_mock.cost.stages import sglang_split
from frontier_mock.serving.specs import SglangSchedulerSpec
from frontier_mock.serving.tiers.specs import HostTierSpec

RULES_SINCE = (0, 5, 23)
"""Earliest version known to follow the newer scheduling rules; 0.5.9 is known not to."""

_DP_CONSERVATIVENESS = 0.3
"""Factor on schedule_conservativeness under DP attention (specs/sglang_and_routers.md 8)."""

_SPARE_PAGES = 4
"""Pages a sequence of the longest length must leave free to be admitted (see serving.worker)."""


def resolve_sglang_worker(
    args: SglangArgs, hardware_name: str, engine: EnginePreset, name: str, port: int
) -> tuple[WorkerSpec, MemoryPlan]:
    """Fill in what SGLang would decide for `args` on that GPU, and size its KV cache.

    Raises ConfigError for an unknown profile, an impossible combination, or too little memory.
    """
    if args.drafts is not None:
        args = _drafting(args)
    hardware = load_hardware(hardware_name)
    model = load_model(args.model_path)
    weights = weight_format(model.checkpoint_weights, args.quantization, SGLANG_WEIGHTS)
    precision = PrecisionSpec(weights, "fp8" if args.kv_cache_dtype in FP8_KV_TYPES else "bf16")
    ranks, parallel = _parallel(args, model)
    checked_stages(model, parallel)
    afd = None if args.afd is None else afd_spec(args.afd, hardware, weights)
    classic = _version(engine) < RULES_SINCE
    default_chunk, largest = gpu_defaults(hardware, args.tp_size)
    chunk = _chunk(args, parallel, default_chunk)
    graphs = _graphs(args, largest, classic)
    # With pipeline stages SGLang turns it off by itself.
    overlap = not args.disable_overlap_schedule and parallel.pp == 1
    prompt_graphs = () if classic else _prompt_graphs(args, chunk)
    step = StepSpec(
        hardware,
        model,
        parallel,
        precision,
        engine,
        overlap,
        graphs,
        prompt_graph_sizes=prompt_graphs,
    )
    if args.drafts is not None:
        check_drafts(parallel, afd)
        branches = tuple(size * args.drafts.branches for size in graphs)
        step = replace(step, draft=draft_of(args.drafts, model, weights, branches))
    memory = _plan_memory(args, step, chunk, classic, apart=afd is not None)
    if args.drafts is not None:
        # From here on sizes are tokens: a graph of so many sequences verifies as many of each.
        sizes = tuple(size * args.drafts.verified for size in graphs)
        step = replace(step, cudagraph_sizes=sizes)
    if args.encoder_only:
        step = _encoding_only(args, step)
    mode, policy = args.disaggregation_mode, args.load_balance_method
    worker = WorkerSpec(
        name,
        port,
        "colocated" if mode == "null" else mode,
        args.served_model_name or args.model_path,
        step,
        _scheduler(args, step, memory, chunk, classic, name),
        dp_size=ranks,
        rank_policy="round_robin" if policy == "auto" else policy,
        afd=afd,
        connector=sglang_connector(mode, args.disaggregation_transfer_backend),
    )
    return worker, memory


def _encoding_only(args: SglangArgs, step: StepSpec) -> StepSpec:
    """An encoder server's steps. Raises ConfigError."""
    if args.language_only:
        raise ConfigError("Cannot set --encoder-only and --language-only together")
    if args.disaggregation_mode != "null":
        raise ConfigError(
            "Cannot set --encoder-only and --disaggregation-mode prefill/decode together"
        )
    if step.model.vision is None:
        raise ConfigError(f"argument --encoder-only: {step.model.name} has no encoder")
    if step.draft is not None or step.parallel.pp > 1 or step.parallel.dp > 1:
        raise ConfigError(
            "argument --encoder-only: not with drafts, pipeline stages or attention ranks"
        )
    return replace(step, encodes_only=True)


def _drafting(args: SglangArgs) -> SglangArgs:
    """What SGLang changes for speculative decoding: fewer requests, and no mixed batches.

    (EAGLE may keep mixed chunks in 0.5.23; a step without verification for the decodes in it is
    not simulated.)
    """
    running = args.max_running_requests or MAX_RUNNING_REQUESTS
    return replace(args, max_running_requests=running, enable_mixed_chunk=False)


def _chunk(args: SglangArgs, parallel: ParallelSpec, default: int) -> int:
    """Tokens of a prompt chunk, -1 for whole prompts; ranks of attention share it."""
    chunk = default
    if args.chunked_prefill_size is not None:
        chunk = args.chunked_prefill_size or -1
    if chunk <= 0:
        return chunk
    chunk = max(1, chunk // parallel.dp)
    page = args.page_size or 1
    if chunk % page:
        raise ConfigError(
            f"chunked-prefill-size: {chunk} is not a multiple of the page size ({page})"
        )
    return chunk


def _graphs(args: SglangArgs, default_largest: int, classic: bool) -> tuple[int, ...]:
    """Batch sizes of the decode graphs."""
    largest = default_largest
    if args.cuda_graph_max_bs_decode is not None:
        largest = args.cuda_graph_max_bs_decode
    elif args.max_running_requests is not None and not classic:
        largest = min(largest, args.max_running_requests)
    plain = args.cuda_graph_bs_decode is None and not args.disable_cuda_graph
    if args.drafts is not None and plain and not args.disable_cuda_graph_padding:
        return drafted_graph_sizes(largest)
    return graph_sizes(
        largest,
        args.cuda_graph_bs_decode,
        args.disable_cuda_graph,
        not args.disable_cuda_graph_padding,
    )


def _prompt_graphs(args: SglangArgs, chunk: int) -> tuple[int, ...]:
    """Numbers of tokens of the prefill graphs."""
    if args.disable_prefill_cuda_graph:
        return ()
    if args.cuda_graph_bs_prefill is not None:
        return tuple(sorted(set(args.cuda_graph_bs_prefill)))
    return prefill_graph_sizes(args.cuda_graph_max_bs_prefill or chunk)


def _plan_memory(
    args: SglangArgs, step: StepSpec, chunk: int, classic: bool, *, apart: bool
) -> MemoryPlan:
    """The KV pool; `apart` if another GPU holds the experts. Raises ConfigError."""
    hardware, model, parallel, precision = step.hardware, step.model, step.parallel, step.precision
    fraction = args.mem_fraction_static
    if fraction is None:
        captured = 0 if classic else len(_prompt_graphs(args, chunk))
        fraction = default_mem_fraction_static(
            hardware,
            parallel,
            chunked_prefill_size=chunk,
            max_prefill_tokens=args.max_prefill_tokens,
            decode_graph_max=max(step.cudagraph_sizes, default=0),
            prefill_graphs=captured,
        )
    held, types = model, precision
    if apart:
        held, types = attention_only(model), attention_precision(model, precision)
    try:
        return plan_sglang_kv_cache(
            hardware,
            held,
            parallel,
            types,
            mem_fraction_static=fraction,
            page_size=args.page_size or 1,
            max_total_tokens=args.max_total_tokens,
            draft=step.draft,
        )
    except OutOfMemory as error:
        raise ConfigError(f"{model.name} on {hardware.name}, tp {parallel.tp}: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{model.name}: {error}") from None


def _scheduler(
    args: SglangArgs, step: StepSpec, memory: MemoryPlan, chunk: int, classic: bool, server: str
) -> SglangSchedulerSpec:
    page = args.page_size or 1
    dp = step.parallel.dp
    context = args.context_length or step.model.max_position_embeddings
    total = memory.num_blocks * page
    speculation, reserve = None, 0
    if args.drafts is not None:
        reserve = reserve_tokens(args.drafts, page)
        speculation = speculation_of(args.drafts, ahead=False, lookahead=False, reserve=reserve)
        total -= reserve
    if context < 3:
        raise ConfigError(f"context-length: {context} is too short; allowed: at least 3")
    spare = _SPARE_PAGES * page
    longest = min(context - 2, total - spare)
    if longest < 1:
        drafts = f" and the {reserve} that drafts reserve" if reserve else ""
        raise ConfigError(
            f"max-total-tokens: {memory.num_blocks * page} tokens are too few to serve anything; "
            f"allowed: more than {_SPARE_PAGES} pages of {page}{drafts}"
        )
    if args.max_running_requests is None:
        running = default_max_running_requests(total, context)
    else:
        running = args.max_running_requests // dp
    caching = not args.disable_radix_cache
    if args.disaggregation_mode == "decode" and not args.disaggregation_decode_enable_radix_cache:
        caching = False
    # An encoder server has no KV; what it remembers are embeddings.
    caching = caching and not args.encoder_only
    return SglangSchedulerSpec(
        max_running_requests=max(1, min(running, total // 2)),
        context_length=longest,
        num_pages=memory.num_blocks,
        page_size=page,
        chunked_prefill_size=chunk,
        max_prefill_tokens=args.max_prefill_tokens,
        prefill_max_requests=args.prefill_max_requests or 0,
        schedule_policy=args.schedule_policy,
        schedule_conservativeness=args.schedule_conservativeness
        * (_DP_CONSERVATIVENESS if dp > 1 else 1.0),
        enable_mixed_chunk=args.enable_mixed_chunk,
        enable_overlap=step.async_scheduling,
        enable_radix_cache=caching,
        radix_eviction_policy=args.radix_eviction_policy,
        enable_priority_scheduling=args.enable_priority_scheduling,
        disable_priority_preemption=args.disable_priority_preemption,
        priority_scheduling_preemption_threshold=args.priority_scheduling_preemption_threshold,
        schedule_low_priority_values_first=args.schedule_low_priority_values_first,
        retraction_policy=args.retraction_policy,
        max_queued_requests=args.max_queued_requests or 0,
        random_seed=args.random_seed,
        classic=classic,
        num_reserved_decode_tokens=args.num_reserved_decode_tokens,
        enable_kv_cache_events=caching and _publishes(args),
        speculation=speculation,
        encoder_cache_tokens=_cached_image_tokens(step.model),
        pipeline_stages=step.parallel.pp,
        pp_max_micro_batch_size=args.pp_max_micro_batch_size or 0,
        pp_async_batch_depth=args.pp_async_batch_depth if step.parallel.pp > 1 else 0,
        host_tier=_host_tier(args, step, memory, server) if caching else None,
    )


_VISION_CACHE_BYTES = 4096 << 20
"""SGLANG_VLM_CACHE_SIZE_MB's default."""


def _cached_image_tokens(model: ModelSpec) -> int:
    """Tokens of encoded images that SGLang keeps, in bf16."""
    return 0 if model.vision is None else _VISION_CACHE_BYTES // (2 * model.vision.out_size)


def _host_tier(
    args: SglangArgs, step: StepSpec, memory: MemoryPlan, server: str
) -> HostTierSpec | None:
    if not args.enable_hierarchical_cache:
        return None
    if step.parallel.pp > 1:
        raise ConfigError("enable-hierarchical-cache: not simulated together with pp-size above 1")
    if _publishes(args):
        raise ConfigError("enable-hierarchical-cache: not simulated together with kv-events-config")
    policy = args.hicache_write_policy
    storage = None
    if args.hicache_storage_backend is not None:
        asked = storage_args(
            args.hicache_storage_backend,
            args.hicache_storage_prefetch_policy,
            args.hicache_storage_backend_extra_config,
            args.file_storage_path,
            server,
        )
        storage = storage_spec(asked, step, memory, args.page_size or 1)
    return host_tier(args.hicache_ratio, args.hicache_size, policy, step, memory, storage)


def _publishes(args: SglangArgs) -> bool:
    config = dict(args.given).get("kv_events_config")
    return config is not None and read_kv_events(config, sglang=True).publishes


def _parallel(args: SglangArgs, model: ModelSpec) -> tuple[int, ParallelSpec]:
    """Engines behind the port, and how one is split. Raises ConfigError.

    Attention data parallelism divides the tensor-parallel GPUs; plain data parallelism adds
    replicas (SGLang 0.5.23; `--enable-dp-attention` turns --dp-size into --attn-dp-size).
    """
    tp, replicas, ranks = args.tp_size, args.dp_size, args.attn_dp_size
    if args.enable_dp_attention and ranks == 1:
        replicas, ranks = 1, args.dp_size
    if tp % ranks:
        raise ConfigError(f"attn-dp-size: {ranks} does not divide the tensor-parallel size ({tp})")
    if ranks > 1 and replicas > 1:
        raise ConfigError(
            f"dp-size: {replicas} replicas of {ranks} attention ranks are not simulated; "
            "allowed: one of the two above 1"
        )
    if args.ep_size not in (1, tp):
        raise ConfigError(f"ep-size: {args.ep_size} is not simulated; allowed: 1 or {tp}")
    if ranks > 1 and model.experts is None:
        raise ConfigError(
            f"attn-dp-size: {ranks} is not simulated for {model.name}, which has no experts"
        )
    if args.enable_two_batch_overlap and args.moe_a2a_backend == "none" and ranks == 1:
        raise ConfigError(
            "When enabling two batch overlap without an EP a2a backend (moe_a2a_backend='none'), "
            "attention DP (--attn-dp-size) is required (DeepSeek-V4 non-EP DP TBO path)."
        )
    dispatch = "allgather"
    if args.moe_a2a_backend == "deepep" and ranks > 1:
        normal = args.deepep_mode == "normal"
        dispatch = "deepep_normal" if normal else "deepep_low_latency"
    # Backends that move tokens between all GPUs have whole experts on each of them.
    spread = args.ep_size > 1 or args.moe_a2a_backend == "deepep"
    spread = spread and model.experts is not None and args.afd is None
    parallel = ParallelSpec(
        tp=tp // ranks,
        dp=ranks,
        ep=tp if spread else 1,
        dispatch=dispatch,
        overlap=args.enable_two_batch_overlap and ranks > 1,
        pp=args.pp_size,
        stage_layers=_stage_layers(args, model),
    )
    return max(ranks, replicas), parallel


def _stage_layers(args: SglangArgs, model: ModelSpec) -> tuple[int, ...]:
    """Layers of each pipeline stage. Raises ConfigError for what stages are not combined with."""
    stages = args.pp_size
    if stages == 1:
        return ()
    if args.disaggregation_mode != "null":
        raise ConfigError(f"pp-size: {stages} is not simulated with --disaggregation-mode")
    if args.afd is not None:
        raise ConfigError(f"pp-size: {stages}; only 1 with FFN GPUs apart")
    return args.pp_layer_partition or sglang_split(model.num_layers, stages)


def _version(engine: EnginePreset) -> tuple[int, ...]:
    return tuple(int(part) for part in engine.version.split("."))
