"""From flags and scenarios to fully resolved specs: profiles looked up, vLLM's defaults filled in.

Defaults and the order in which they are applied are those of vLLM 0.33's `EngineArgs`
(`_set_default_max_num_seqs_and_batched_tokens_args`) in the context of the OpenAI server; what the
GPU decides there comes from the hardware profile, what the version decides from the engine preset.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from frontier_mock.cluster.specs import ClusterSpec, WorkerSpec, ranks_of
from frontier_mock.config.afd import afd_spec
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.grpc_ports import ports_of
from frontier_mock.config.kv_events import read_kv_events
from frontier_mock.config.kv_offload import offload_spec
from frontier_mock.config.kv_transfer import role_of
from frontier_mock.config.pipelines import checked_stages
from frontier_mock.config.profiles import load_engine, load_hardware, load_kernels, load_model
from frontier_mock.config.resolve_sglang import resolve_sglang_worker
from frontier_mock.config.scenario import ScenarioSpec, WorkerGroup
from frontier_mock.config.sglang_flags import SglangArgs
from frontier_mock.config.speculative import (
    check_drafts,
    draft_of,
    seeded,
    speculation_of,
)
from frontier_mock.config.timeline import changes
from frontier_mock.config.vllm_flags import (
    DISPATCH_BACKENDS,
    FP8_KV_TYPES,
    SHAPE_KEYS,
    VllmArgs,
)
from frontier_mock.config.weights import VLLM_WEIGHTS, weight_format
from frontier_mock.cost.afd.memory import FfnMemory, attention_only, attention_precision, plan_ffn
from frontier_mock.cost.afd.spec import AfdSpec
from frontier_mock.cost.afd.step import build_afd_cost
from frontier_mock.cost.cuda_graphs import default_capture_sizes, widened
from frontier_mock.cost.drafted import build_drafted_cost
from frontier_mock.cost.encoding import EncodingOnly
from frontier_mock.cost.memory import MemoryPlan, OutOfMemory, plan_kv_cache
from frontier_mock.cost.protocol import StepCost
from frontier_mock.cost.specs import (
    EnginePreset,
    HardwareSpec,
    LoraSpec,
    ModelSpec,
    ParallelSpec,
    PrecisionSpec,
    RoutingSpec,
    StepSpec,
)
from frontier_mock.cost.staged import build_staged_cost
from frontier_mock.cost.step import build_step_cost
from frontier_mock.serving.specs import SchedulerSpec, SglangSchedulerSpec
from frontier_mock.wire.compat import DEFAULT_COMPAT

DEFAULT_PORT = 8000

LARGE_GPU_BYTES = 70 * (1 << 30)
"""From this much memory on, and unless it is an A100, a GPU gets vLLM's larger batch defaults."""

SMALL_GPU_MAX_NUM_BATCHED_TOKENS = 2048
SMALL_GPU_MAX_NUM_SEQS = 256

_SGLANG_FFN_FRACTION = 0.9
"""Share of an SGLang FFN GPU that may be used where --mem-fraction-static is not given: it holds no
cache that would make SGLang work one out."""


@dataclass(frozen=True, slots=True)
class ResolvedWorker:
    """One worker: what the engine simulates, the flags it was started with, its memory plan.

    For an SGLang worker `sglang` has the flags and `args` only what any engine has. `place` counts
    the equal workers before this one. `ffn_memory` is that of one FFN GPU, if they are apart.
    `grpc_port` is None unless it speaks gRPC as well; 0 is any free one. `compat` is what it still
    does that its version does not (`wire.compat`).
    """

    spec: WorkerSpec
    args: VllmArgs
    memory: MemoryPlan
    without_effect: tuple[str, ...] = ()
    sglang: SglangArgs | None = None
    place: int = 0
    ffn_memory: FfnMemory | None = None
    grpc_port: int | None = None
    compat: tuple[str, ...] = DEFAULT_COMPAT


@dataclass(frozen=True, slots=True)
class ResolvedCluster:
    """A cluster ready to build: its spec, the price of each engine's steps, and the details.

    `workers` are servers; one with data-parallel ranks is several engines of `spec`.
    """

    spec: ClusterSpec
    costs: tuple[StepCost, ...]
    workers: tuple[ResolvedWorker, ...]


def resolve_scenario(
    scenario: ScenarioSpec,
    *,
    single_step: bool = False,
    base_port: int | None = None,
    host: str | None = None,
) -> ResolvedCluster:
    """Every worker of the scenario. `base_port` and `host` replace those it names.

    Raises ConfigError if it has no cluster, a profile is unknown, a model does not fit, or two
    workers share a name or a port.
    """
    if not scenario.groups:
        raise ConfigError(f"{scenario.source}: key cluster is missing; there is nothing to serve")
    groups = scenario.groups
    if base_port is not None:
        groups = tuple(_rebased(group, base_port) for group in groups)
    if host is not None:
        groups = tuple(_bound_to(group, host) for group in groups)
    workers: list[ResolvedWorker] = []
    next_port = DEFAULT_PORT if base_port is None else base_port
    for group in groups:
        try:
            worker = _resolve_group(group)
        except ConfigError as error:
            raise ConfigError(f"{group.where}: {error}") from None
        worker = replace(worker, spec=_priced(_routed(worker.spec, group), scenario.prices))
        workers.extend(_expand(worker, group, next_port))
        last = _last_port(group, workers[-1])
        next_port = last + 1 if last else next_port
    _check_distinct(workers, scenario.source)
    like = ClusterSpec(
        (),
        scenario.router_policy,
        scenario.seed,
        single_step,
        scenario.decode_policy,
        fabric=scenario.fabric,
    )
    resolved = cluster_of(workers, like)
    timeline = changes(scenario.timeline, _servers(resolved))
    return replace(resolved, spec=replace(resolved.spec, timeline=timeline))


def _servers(resolved: ResolvedCluster) -> list[tuple[str, int, float]]:
    """Name, first engine and seconds to load of each server."""
    servers, first = [], 0
    for worker in resolved.workers:
        load_s = worker.memory.weights_bytes / worker.spec.step.hardware.pcie_bytes_per_s
        servers.append((worker.spec.name, first, load_s))
        first += worker.spec.dp_size
    return servers


def _routed(spec: WorkerSpec, group: WorkerGroup) -> WorkerSpec:
    """The same worker with requests that sample, and experts as popular, as the scenario says."""
    spec = replace(spec, step=replace(spec.step, sampling=group.sampling))
    if group.routing is None:
        return spec
    if spec.step.model.experts is None:
        raise ConfigError(f"{group.where}: experts: {spec.step.model.name} has none")
    redundant = spec.step.routing.redundant_experts
    routing = replace(group.routing, redundant_experts=redundant)
    return replace(spec, step=replace(spec.step, routing=routing))


def _priced(spec: WorkerSpec, prices: Mapping[str, float]) -> WorkerSpec:
    """The same worker with GPUs that cost what the scenario says."""

    def priced(hardware: HardwareSpec) -> HardwareSpec:
        usd_per_hour = prices.get(hardware.name, hardware.usd_per_hour)
        return replace(hardware, usd_per_hour=usd_per_hour)

    afd = spec.afd
    if afd is not None:
        afd = replace(afd, ffn_hardware=priced(afd.ffn_hardware))
    step = replace(spec.step, hardware=priced(spec.step.hardware))
    return replace(spec, step=step, afd=afd)


def cluster_of(workers: Sequence[ResolvedWorker], like: ClusterSpec) -> ResolvedCluster:
    """The cluster of these servers, with everything else as in `like`. Raises ConfigError."""
    engines = tuple(
        seeded(engine, like.seed) for worker in workers for engine in ranks_of(worker.spec)
    )
    spec = replace(like, workers=engines)
    return ResolvedCluster(spec, build_costs(spec), tuple(workers))


def resolve_single(
    args: VllmArgs, hardware: str, engine: str, seed: int, *, single_step: bool = False
) -> ResolvedCluster:
    """The one worker of `vllm serve`, named w0. Raises ConfigError."""
    worker = resolve_worker(args, hardware, engine, "w0", args.port)
    worker = _on_ports(worker, args.port, None)
    return cluster_of([worker], ClusterSpec((), "round_robin", seed, single_step))


def resolve_worker(
    args: VllmArgs, hardware_name: str, engine_name: str, name: str, port: int
) -> ResolvedWorker:
    """Fill in what vLLM would decide for `args` on that GPU, and size its KV cache.

    Raises ConfigError for an unknown profile, an impossible combination, or too little memory.
    """
    hardware = load_hardware(hardware_name)
    engine = load_engine(engine_name)
    if engine.family != "vllm":
        raise ConfigError(f"engine: {engine_name!r} does not take vLLM's flags")
    model = _shaped(load_model(args.hf_config_path or args.model), args)
    precision = _precision(args, model)
    max_model_len = _longest(args, model)
    max_num_seqs, max_num_batched_tokens = _batch_limits(args, hardware, engine, max_model_len)
    drafts = args.speculative_config
    width = 1 if drafts is None else drafts.verified
    graphs = _capture_sizes(args, max_num_seqs, max_num_batched_tokens, width)
    utilization = args.gpu_memory_utilization
    if utilization is None:
        utilization = engine.gpu_memory_utilization
    parallel = checked_stages(model, _parallel(args, model))
    routing, lora = _routing(args, model, parallel), _lora(args)
    afd = None if args.afd is None else afd_spec(args.afd, hardware, precision.weights)
    draft = None
    if drafts is not None:
        check_drafts(parallel, afd)
        draft = draft_of(drafts, model, precision.weights)

    held, types = model, precision
    if afd is not None:
        held, types = attention_only(model), attention_precision(model, precision)

    def plan(longest: int) -> MemoryPlan:
        return plan_kv_cache(
            hardware,
            held,
            parallel,
            types,
            gpu_memory_utilization=utilization,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            block_size=args.block_size,
            max_model_len=longest,
            cudagraph_sizes=graphs,
            kv_cache_memory_bytes=args.kv_cache_memory_bytes,
            num_gpu_blocks_override=args.num_gpu_blocks_override,
            count_cudagraphs=engine.counts_cudagraph_memory,
            redundant_experts=routing.redundant_experts,
            lora=lora,
            draft=draft,
        )

    try:
        if args.max_model_len == -1:
            usable = (plan(1).num_blocks - 1) * args.block_size * parallel.dcp
            max_model_len = min(max_model_len, usable)
        memory = plan(max_model_len)
    except OutOfMemory as error:
        raise ConfigError(f"{model.name} on {hardware.name}, tp {parallel.tp}: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{model.name}: {error}") from None
    use_async = _schedules_ahead(args, engine)
    if drafts is not None and drafts.method == "ngram":
        # Its look-up needs the tokens of the step before (specs/vllm.md section 8.4).
        use_async = False
    # Both are at least one image (vLLM's `compute_mm_encoder_budget`).
    vision = model.vision
    images = 0 if vision is None else max(max_num_batched_tokens, vision.max_tokens)
    scheduler = SchedulerSpec(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
        block_size=args.block_size * parallel.dcp,
        num_blocks=memory.num_blocks - 1,  # vLLM keeps one as its null block
        enable_prefix_caching=args.enable_prefix_caching,
        enable_chunked_prefill=args.enable_chunked_prefill,
        long_prefill_token_threshold=args.long_prefill_token_threshold,
        policy=args.scheduling_policy,
        async_scheduling=use_async,
        watermark=args.watermark,
        reserve_full_isl=args.scheduler_reserve_full_isl,
        max_num_queued_reqs=args.max_num_queued_reqs,
        max_num_queued_tokens=args.max_num_queued_tokens,
        max_num_scheduled_tokens=args.max_num_scheduled_tokens,
        max_num_active_seqs=args.max_num_active_seqs,
        long_prefill_token_threshold_adaptive=args.long_prefill_token_threshold_adaptive,
        # vLLM's data-parallel engines count steps together, which is not simulated.
        prefill_schedule_interval=args.prefill_schedule_interval if parallel.dp == 1 else 1,
        enable_kv_cache_events=args.enable_prefix_caching and _publishes(args.kv_events_config),
        speculation=None
        if drafts is None
        else speculation_of(drafts, ahead=use_async, lookahead=True),
        encoder_budget_tokens=images,
        encoder_cache_tokens=images,
        pipeline_stages=parallel.pp,
    )
    step = StepSpec(hardware, model, parallel, precision, engine, use_async, graphs, routing, lora)
    step = replace(step, draft=draft)
    if args.ec_transfer_config is not None and args.ec_transfer_config.encodes_only:
        step, scheduler = _encoding_only(step, scheduler)
    below = offload_spec(args.kv_offload, step, memory, scheduler.block_size)
    scheduler = replace(scheduler, offload=below)
    ffn = None if afd is None else ffn_memory(step, afd, max_num_batched_tokens, utilization)
    served = args.served_model_name[0] if args.served_model_name else args.model
    ranks = args.data_parallel_size if afd is None else parallel.dp
    transfer = args.kv_transfer_config
    spec = WorkerSpec(
        name,
        port,
        role_of(transfer),
        served,
        step,
        scheduler,
        dp_size=ranks,
        afd=afd,
        connector=None if transfer is None else transfer.spec(),
    )
    return ResolvedWorker(spec, args, memory, ffn_memory=ffn)


def _encoding_only(step: StepSpec, scheduler: SchedulerSpec) -> tuple[StepSpec, SchedulerSpec]:
    """An engine that produces embeddings: it has no KV cache to find prompts in."""
    where = "argument --ec-transfer-config: ec_producer"
    if step.model.vision is None:
        raise ConfigError(f"{where}: {step.model.name} has no encoder")
    if step.draft is not None or step.parallel.pp > 1 or step.parallel.dp > 1:
        raise ConfigError(f"{where}: not with drafts, pipeline stages or data-parallel experts")
    scheduler = replace(scheduler, enable_prefix_caching=False, enable_kv_cache_events=False)
    return replace(step, encodes_only=True), scheduler


def ffn_memory(step: StepSpec, afd: AfdSpec, rank_tokens: int, utilization: float) -> FfnMemory:
    """What an FFN GPU holds for steps of at most `rank_tokens` a rank. Raises ConfigError."""
    model = step.model
    if model.experts is None:
        raise ConfigError(f"afd: {model.name} has no experts to move to FFN GPUs")
    try:
        return plan_ffn(step, afd, -(-rank_tokens // afd.micro_batches), utilization)
    except OutOfMemory as error:
        raise ConfigError(f"{model.name}, afd {afd.name}: {error}") from None


def resolve_sglang(
    args: SglangArgs, hardware_name: str, engine_name: str, name: str, port: int
) -> ResolvedWorker:
    """As `resolve_worker`, for an SGLang engine."""
    engine = load_engine(engine_name)
    spec, memory = resolve_sglang_worker(args, hardware_name, engine, name, port)
    common = VllmArgs(
        model=args.model_path,
        quantization=args.quantization,
        tensor_parallel_size=args.tp_size,
        tokenizer=args.tokenizer_path,
        seed=args.random_seed,
        host=args.host,
    )
    ffn = None
    if spec.afd is not None:
        assert isinstance(spec.scheduler, SglangSchedulerSpec)
        chunk = spec.scheduler.chunked_prefill_size
        tokens = chunk if chunk > 0 else spec.scheduler.max_prefill_tokens
        share = args.mem_fraction_static or _SGLANG_FFN_FRACTION
        ffn = ffn_memory(spec.step, spec.afd, tokens, share)
    return ResolvedWorker(spec, common, memory, sglang=args, ffn_memory=ffn)


def resolve_single_sglang(
    args: SglangArgs, hardware: str, engine: str, seed: int, *, single_step: bool = False
) -> ResolvedCluster:
    """One SGLang worker, named w0. Raises ConfigError."""
    worker = resolve_sglang(args, hardware, engine, "w0", args.port)
    worker = _on_ports(worker, args.port, None)
    return cluster_of([worker], ClusterSpec((), "round_robin", seed, single_step))


def _bound_to(group: WorkerGroup, host: str) -> WorkerGroup:
    """The group, listening on another address than it asks for."""
    sglang = None if group.sglang is None else replace(group.sglang, host=host)
    return replace(group, args=replace(group.args, host=host), sglang=sglang)


def _resolve_group(group: WorkerGroup) -> ResolvedWorker:
    worker = _resolve_engine(group)
    if group.role != "encoder":
        return worker
    if worker.spec.step.model.vision is None:
        raise ConfigError(f"role encoder: {group.model} has no encoder")
    return replace(worker, spec=replace(worker.spec, role="encoder"))


def _resolve_engine(group: WorkerGroup) -> ResolvedWorker:
    if group.sglang is not None:
        port = group.port or 0
        return resolve_sglang(group.sglang, group.hardware, group.engine, group.name, port)
    worker = resolve_worker(group.args, group.hardware, group.engine, group.name, group.port or 0)
    if group.role in ("colocated", "encoder"):
        return worker
    if worker.spec.connector is None:
        raise ConfigError(f"role {group.role}: its kv_connector moves no KV between engines")
    return replace(worker, spec=replace(worker.spec, role=group.role))


def _expand(worker: ResolvedWorker, group: WorkerGroup, next_port: int) -> Iterator[ResolvedWorker]:
    """`count` equal workers on consecutive ports; port 0 stays 0 for all of them."""
    first = next_port if group.port is None else group.port
    for index in range(group.count):
        port = first + index if first else 0
        if port > 65535:
            raise ConfigError(f"{group.where}: port: {port} is beyond 65535")
        name = group.name if group.count == 1 else f"{group.name}{index}"
        grpc_port = group.grpc_port and group.grpc_port + index
        if grpc_port is not None and grpc_port > 65535:
            raise ConfigError(f"{group.where}: grpc_port: {grpc_port} is beyond 65535")
        placed = _on_ports(worker, port, grpc_port)
        spec = replace(placed.spec, name=name)
        idle = group.without_effect
        yield replace(placed, spec=spec, without_effect=idle, place=index, compat=group.compat)


def _last_port(group: WorkerGroup, worker: ResolvedWorker) -> int:
    """The highest port that the group's own one has led to, 0 if it takes any."""
    if group.grpc_port is not None:
        return worker.spec.port
    return max(worker.spec.port, worker.grpc_port or 0)


def _on_ports(worker: ResolvedWorker, port: int, grpc_port: int | None) -> ResolvedWorker:
    ports = ports_of(worker.args, worker.sglang, port, grpc_port)
    return replace(worker, spec=replace(worker.spec, port=ports.http), grpc_port=ports.grpc)


def _rebased(group: WorkerGroup, base_port: int) -> WorkerGroup:
    """The group on the next ports from `base_port` on, or, for 0, on any free ones."""
    if base_port:
        return replace(group, port=None)
    return replace(group, port=0, grpc_port=None if group.grpc_port is None else 0)


def _publishes(kv_events_config: Mapping[str, Any] | None) -> bool:
    return kv_events_config is not None and read_kv_events(kv_events_config).publishes


def _check_distinct(workers: Sequence[ResolvedWorker], source: str) -> None:
    names: set[str] = set()
    ports: dict[int, str] = {}
    for worker in workers:
        name = worker.spec.name
        if name in names:
            raise ConfigError(f"{source}: cluster.workers: two workers are named {name}")
        names.add(name)
        for port in (worker.spec.port, worker.grpc_port):
            if port in ports:
                raise ConfigError(
                    f"{source}: cluster.workers: {ports[port]} and {name} both use port {port}"
                )
            if port:
                ports[port] = name


def build_costs(spec: ClusterSpec) -> tuple[StepCost, ...]:
    """The price of each worker's steps; equal workers share one. Raises ConfigError."""
    costs: dict[tuple[StepSpec, AfdSpec | None], StepCost] = {}
    for worker in spec.workers:
        key = (worker.step, worker.afd)
        if key not in costs:
            costs[key] = _build_cost(*key)
    return tuple(costs[worker.step, worker.afd] for worker in spec.workers)


def _build_cost(step: StepSpec, afd: AfdSpec | None) -> StepCost:
    tables = load_kernels(step.hardware.kernels)
    try:
        if afd is not None:
            return build_afd_cost(step, afd, tables, load_kernels(afd.ffn_hardware.kernels))
        if step.draft is not None:
            return build_drafted_cost(step, tables)
        if step.parallel.pp > 1:
            return build_staged_cost(step, tables)
        cost = build_step_cost(step, tables)
        return EncodingOnly(cost) if step.encodes_only else cost
    except ValueError as error:
        raise ConfigError(f"{step.model.name} on {step.hardware.name}: {error}") from None


def _precision(args: VllmArgs, model: ModelSpec) -> PrecisionSpec:
    """What the checkpoint holds, unless --quantization turns bf16 into something smaller."""
    weights = weight_format(model.checkpoint_weights, args.quantization, VLLM_WEIGHTS)
    return PrecisionSpec(weights, "fp8" if args.kv_cache_dtype in FP8_KV_TYPES else "bf16")


def _parallel(args: VllmArgs, model: ModelSpec) -> ParallelSpec:
    """vLLM ignores --enable-expert-parallel where there are no experts.

    There, data-parallel ranks are engines that know nothing of each other. With FFN GPUs apart it
    is the attention GPUs that are divided.
    """
    tp, dp, pp = args.tensor_parallel_size, args.data_parallel_size, args.pipeline_parallel_size
    dcp = args.decode_context_parallel_size
    if args.afd is not None:
        if dcp > 1:
            raise ConfigError(f"decode-context-parallel-size: {dcp}; only 1 with FFN GPUs apart")
        if pp > 1:
            raise ConfigError(f"pipeline-parallel-size: {pp}; only 1 with FFN GPUs apart")
        return ParallelSpec(tp=tp, dp=args.afd.ranks(tp))
    if model.experts is None:
        return ParallelSpec(tp=tp, dcp=dcp, pp=pp, stage_layers=args.pp_layer_partition)
    return ParallelSpec(
        tp=tp,
        dcp=dcp,
        pp=pp,
        stage_layers=args.pp_layer_partition,
        dp=dp,
        ep=tp * dp if args.enable_expert_parallel else 1,
        dispatch=DISPATCH_BACKENDS[args.all2all_backend] if dp > 1 else "allgather",
        overlap=args.enable_dbo and dp > 1,
    )


def _schedules_ahead(args: VllmArgs, engine: EnginePreset) -> bool:
    """Whether steps are scheduled before the output of the one before them is back."""
    staged = args.pipeline_parallel_size > 1 and not engine.async_pipeline
    if args.async_scheduling is None:
        return engine.async_scheduling and not staged
    if args.async_scheduling and staged:
        raise ConfigError(
            "async-scheduling: Async scheduling is not supported by the V1 model runner with "
            f"pipeline parallelism ({engine.name})"
        )
    return args.async_scheduling


def _routing(args: VllmArgs, model: ModelSpec, parallel: ParallelSpec) -> RoutingSpec:
    """Replicas of experts; vLLM has them only where whole experts are spread over ranks."""
    extra = args.num_redundant_experts
    if model.experts is None or not extra:
        return RoutingSpec()
    if parallel.ep == 1:
        raise ConfigError("eplb-config: num_redundant_experts needs --enable-expert-parallel")
    if (model.experts.num_experts + extra) % parallel.ep:
        raise ConfigError(
            f"eplb-config: num_redundant_experts: {model.experts.num_experts} experts and {extra} "
            f"replicas are not divisible by ep={parallel.ep}"
        )
    return RoutingSpec(redundant_experts=extra)


def _lora(args: VllmArgs) -> LoraSpec | None:
    return LoraSpec(args.max_lora_rank, args.max_loras) if args.enable_lora else None


def _shaped(model: ModelSpec, args: VllmArgs) -> ModelSpec:
    """The model with what --hf-overrides says about its shape."""
    changes: dict[str, Any] = {SHAPE_KEYS[key]: value for key, value in args.hf_overrides.items()}
    return replace(model, **changes)


def _longest(args: VllmArgs, model: ModelSpec) -> int:
    limit = model.max_position_embeddings
    if args.max_model_len in (None, -1):
        return limit
    assert args.max_model_len is not None
    if args.max_model_len < 1:
        raise ConfigError(f"max-model-len: {args.max_model_len} is not positive; -1 means auto")
    if args.max_model_len > limit:
        raise ConfigError(
            f"max-model-len: {args.max_model_len} is more than the {limit} positions of "
            f"{model.name} (max_position_embeddings)"
        )
    return args.max_model_len


def _batch_limits(
    args: VllmArgs, hardware: HardwareSpec, engine: EnginePreset, max_model_len: int
) -> tuple[int, int]:
    """(max_num_seqs, max_num_batched_tokens), with vLLM's own caps and refusals."""
    large = hardware.hbm_bytes >= LARGE_GPU_BYTES and not hardware.name.startswith("a100")
    default_tokens = engine.max_num_batched_tokens if large else SMALL_GPU_MAX_NUM_BATCHED_TOKENS
    default_seqs = engine.max_num_seqs if large else SMALL_GPU_MAX_NUM_SEQS
    doubled = 2 if args.performance_mode == "throughput" else 1
    seqs = args.max_num_seqs or default_seqs * doubled
    tokens = args.max_num_batched_tokens
    if tokens is None:
        tokens = default_tokens * doubled
        if not args.enable_chunked_prefill:
            tokens = max(tokens, max_model_len)
        tokens = min(tokens, seqs * max_model_len)
    if args.max_num_seqs is None:
        seqs = min(seqs, tokens)
    if tokens < max_model_len and not args.enable_chunked_prefill:
        raise ConfigError(
            f"max-num-batched-tokens: {tokens} is smaller than max-model-len ({max_model_len}), "
            "which needs chunked prefill"
        )
    if tokens < seqs:
        raise ConfigError(
            f"max-num-batched-tokens: {tokens} is smaller than max-num-seqs ({seqs}); "
            "allowed: at least as many"
        )
    if args.long_prefill_token_threshold > max_model_len:
        raise ConfigError(
            f"long-prefill-token-threshold: {args.long_prefill_token_threshold} is more than "
            f"max-model-len ({max_model_len})"
        )
    if args.max_num_active_seqs > seqs:
        raise ConfigError(
            f"max-num-active-seqs: {args.max_num_active_seqs} is more than max-num-seqs ({seqs})"
        )
    scheduled = args.max_num_scheduled_tokens
    if 0 < scheduled < max_model_len and not args.enable_chunked_prefill:
        raise ConfigError(
            f"max-num-scheduled-tokens: {scheduled} is smaller than max-model-len "
            f"({max_model_len}): without chunked prefill longer prompts would wait forever"
        )
    return seqs, tokens


def _capture_sizes(
    args: VllmArgs, max_num_seqs: int, max_num_batched_tokens: int, width: int
) -> tuple[int, ...]:
    """Captured sizes; decodes are of `width` tokens each, and sizes are multiples of that."""
    if args.enforce_eager or args.optimization_level == 0:
        return ()
    sizes = args.cudagraph_capture_sizes
    if sizes is None:
        largest = args.max_cudagraph_capture_size
        tokens = max_num_seqs * width
        sizes = default_capture_sizes(tokens, max_num_batched_tokens, largest)
    fitting = tuple(sorted({size for size in sizes if size <= max_num_batched_tokens}))
    return fitting if width == 1 else widened(fitting, width)
