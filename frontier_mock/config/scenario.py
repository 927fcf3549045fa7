"""Scenario files: one schema for `up`, `replay` and `simulate`, from YAML to frozen specs.

A file says what the cluster is, what drives it, or both; a command asks for the parts it needs.
Unknown keys, keys given twice, wrong types and values out of range are errors that name the file,
the line, the key's path and what is allowed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from frontier_mock.cluster.links import FabricSpec
from frontier_mock.cluster.routing import POLICIES
from frontier_mock.config.afd import AfdArgs, read_afd
from frontier_mock.config.compat import read_compat
from frontier_mock.config.document import Value, plain, read_document
from frontier_mock.config.errors import ConfigError, nearest
from frontier_mock.config.flags import Flag, from_mapping
from frontier_mock.config.keys import (
    REQUIRED,
    Key,
    Section,
    integer,
    listing,
    mapping,
    number,
    one_of,
    open_section,
    optional,
    string,
)
from frontier_mock.config.kv_transfer import (
    KvTransferArgs,
    read_fabric,
)
from frontier_mock.config.profiles import known_hardware
from frontier_mock.config.scenario_files import open_scenario
from frontier_mock.config.sglang_flags import SglangArgs, parse_sglang_args, sglang_flags
from frontier_mock.config.speculative import accepting
from frontier_mock.config.timeline import Happening, read_timeline
from frontier_mock.config.vllm_flags import VllmArgs, parse_engine_args, vllm_flags
from frontier_mock.config.weights import (
    SCENARIO_WORDS,
    SGLANG_WEIGHTS,
    VLLM_WEIGHTS,
    engine_word,
)
from frontier_mock.config.workloads import TraceSearch, read_slo, read_workload
from frontier_mock.cost.specs import ParallelSpec, RoutingSpec, SamplingSpec
from frontier_mock.report.specs import SloSpec
from frontier_mock.wire.compat import DEFAULT_COMPAT
from frontier_mock.workload.specs import WorkloadSpec

ArgsT = TypeVar("ArgsT", VllmArgs, SglangArgs)

ROLES = ("colocated", "prefill", "decode", "encoder", "attention", "ffn")
"""Every role of the schema; attention and FFN workers are one worker with `afd`."""


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """One entry of `cluster.workers`, which stands for `count` equal workers.

    `where` is file, line and path, for errors found when the profiles are looked up. `args` holds
    `engine_args` with model, tensor-parallel-size and quantization filled in. For an SGLang worker
    `sglang` holds them, and `args` only what any engine has: model, degree, weights, address.
    """

    name: str
    count: int
    engine: str
    model: str
    hardware: str
    role: str
    parallel: ParallelSpec
    args: VllmArgs
    without_effect: tuple[str, ...]
    port: int | None
    where: str
    grpc_port: int | None = None
    compat: tuple[str, ...] = DEFAULT_COMPAT
    sglang: SglangArgs | None = None
    routing: RoutingSpec | None = None
    sampling: SamplingSpec = field(default_factory=SamplingSpec)


@dataclass(frozen=True, slots=True)
class ScenarioSpec:
    """A whole scenario file. `groups` is empty without `cluster:`, `workload` None without one.

    `prices` are USD per GPU and hour by hardware, for those the file names.
    """

    name: str
    seed: int
    groups: tuple[WorkerGroup, ...]
    router_policy: str
    workload: WorkloadSpec | None
    slo: SloSpec
    source: str
    decode_policy: str = "round_robin"
    fabric: FabricSpec = field(default_factory=FabricSpec)
    timeline: tuple[Happening, ...] = ()
    prices: Mapping[str, float] = field(default_factory=dict)


MAX_WORKERS = 4096

NAME = Key("name", string(), REQUIRED, "name of the scenario, used in reports")
SEED = Key("seed", integer(0, 2**63 - 1), 0, "seed of every random stream")
CLUSTER = Key("cluster", optional(mapping()), None, "the workers and the router")
WORKLOAD = Key("workload", optional(mapping()), None, "what drives them")
SLO = Key("slo", optional(mapping()), None, "targets that make a request good")
SCENARIO_KEYS: tuple[Key[Any], ...] = (NAME, SEED, CLUSTER, WORKLOAD, SLO)

WORKERS = Key("workers", listing("a list of workers"), REQUIRED, "groups of equal workers")
ROUTER = Key("router", optional(mapping()), None, "stand-in for a router when none is in front")
PRICES = Key(
    "prices",
    optional(mapping()),
    None,
    "USD per GPU and hour by hardware; those of the profiles are placeholders",
)
FABRIC = Key("fabric", optional(mapping()), None, "what moves KV between prefill and decode")
TIMELINE = Key("timeline", listing("a list of changes"), (), "what happens to workers, and when")
CLUSTER_KEYS: tuple[Key[Any], ...] = (WORKERS, ROUTER, PRICES, FABRIC, TIMELINE)

POLICY = Key("policy", one_of(*POLICIES), "round_robin", "how requests are spread")
DECODE_POLICY = Key(
    "decode_policy", one_of(*POLICIES), "round_robin", "likewise over decode workers, if there are"
)
ROUTER_KEYS: tuple[Key[Any], ...] = (POLICY, DECODE_POLICY)

WORKER_NAME = Key("name", string(), "w", "name; with count > 1 a number is appended: w0, w1, ...")
WORKER_COUNT = Key("count", integer(1, MAX_WORKERS), 1, "how many of them")
ENGINE = Key("engine", string(), "vllm-0.33", "engine version, vllm-X.Y[.Z] or sglang-X.Y.Z")
MODEL = Key(
    "model", string(), REQUIRED, "name under profiles/models, or a directory or config.json"
)
HARDWARE = Key("hardware", string(), "h800", "name under profiles/hardware")
ROLE = Key("role", one_of(*ROLES), "colocated", "prefill and decode workers share requests")
PARALLEL = Key("parallel", optional(mapping()), None, "ranks per worker along each axis")
QUANTIZATION = Key("quantization", one_of(*SCENARIO_WORDS), "none", "weight format")
ENGINE_ARGS = Key("engine_args", optional(mapping()), None, "the engine's flags, its own names")
GRPC_PORT = Key(
    "grpc_port",
    optional(integer(0, 65535)),
    None,
    "first port of a gRPC server beside HTTP; 0: any free one; null: none",
)
COMPAT = Key("compat", string(), "default", "what its version gave up and is served, by name")
PORT = Key("port", optional(integer(0, 65535)), None, "first port; 0: any free one; null: the next")
AFD = Key("afd", optional(mapping()), None, "attention and FFN on GPUs of their own")
SAMPLING = Key("sampling", optional(mapping()), None, "how requests sample, as far as it costs")
SPECULATION = Key(
    "speculation", optional(mapping()), None, "how many drafts of its engine_args are accepted"
)
EXPERTS = Key("experts", optional(mapping()), None, "how popular the model's experts are")
WORKER_KEYS: tuple[Key[Any], ...] = (
    WORKER_NAME,
    WORKER_COUNT,
    ENGINE,
    MODEL,
    HARDWARE,
    ROLE,
    PARALLEL,
    QUANTIZATION,
    ENGINE_ARGS,
    PORT,
    GRPC_PORT,
    COMPAT,
    AFD,
    EXPERTS,
    SAMPLING,
    SPECULATION,
)

TOP_P = Key("top_p", number(0, 1), 0.0, "share of requests with top-p or top-k")
PENALTIES = Key("penalties", number(0, 1), 0.0, "share with penalties")
GRAMMAR = Key("grammar", number(0, 1), 0.0, "share with structured output")
SAMPLING_KEYS: tuple[Key[Any], ...] = (TOP_P, PENALTIES, GRAMMAR)

POPULARITY = Key(
    "popularity", one_of("model", "uniform", "zipf"), "model", "model: what is assumed of any"
)
EXPONENT = Key("exponent", number(0, 3), 1.0, "of zipf: 0 is even, 1 is steep")
DRIFT = Key("drift", number(0, 1), 0.0, "share of popularity that moved since EPLB placed experts")
EXPERT_SEED = Key("seed", integer(0, 2**63 - 1), 0, "decides which experts are popular")
EXPERT_KEYS: tuple[Key[Any], ...] = (POPULARITY, EXPONENT, DRIFT, EXPERT_SEED)

TP = Key("tp", integer(1, 64), 1, "tensor parallel ranks")
PP = Key("pp", integer(1, 64), 1, "pipeline stages")
DP = Key(
    "dp",
    integer(1, 1024),
    1,
    "data parallel engines behind the port; vLLM's step together if there are experts",
)
EP = Key("ep", integer(1, 1024), 1, "ranks that whole experts are spread over; vLLM: all or one")
PARALLEL_KEYS: tuple[Key[Any], ...] = (TP, PP, DP, EP)

ELSEWHERE = {
    "model": "model",
    "model-path": "model",
    "tensor-parallel-size": "parallel.tp",
    "tp-size": "parallel.tp",
    "tp": "parallel.tp",
    "pipeline-parallel-size": "parallel.pp",
    "pp-size": "parallel.pp",
    "pp": "parallel.pp",
    "data-parallel-size": "parallel.dp",
    "dp-size": "parallel.dp",
    "dp": "parallel.dp",
    "quantization": "quantization",
    "port": "port",
    "enable-expert-parallel": "parallel.ep",
    "ep-size": "parallel.ep",
    "ep": "parallel.ep",
}
"""Engine flags that have a scenario key of their own; `dp` and `ep` may be left to the flag."""


def load_scenario(
    name: str, environment: Mapping[str, str] | None = None, *, need_trace: bool = True
) -> ScenarioSpec:
    """The scenario in file `name`, or of that name in the library.

    `need_trace` False lets a trace be absent, for commands that only want the cluster. Raises
    ConfigError.
    """
    return read_scenario(*open_scenario(name, environment, need_trace=need_trace))


def parse_scenario(text: str, source: str, search: TraceSearch) -> ScenarioSpec:
    """The scenario written in `text`; `source` names it in errors. Raises ConfigError."""
    return read_scenario(read_document(text, source), search)


def read_scenario(document: Value, search: TraceSearch) -> ScenarioSpec:
    """The scenario that a document says. Raises ConfigError."""
    if document.data is None:
        raise ConfigError(f"{document.source}: the file is empty")
    section = open_section(document, SCENARIO_KEYS)
    cluster = section.get(CLUSTER)
    workload = section.get(WORKLOAD)
    slo = section.get(SLO)
    groups, policy = ((), "round_robin") if cluster is None else _read_cluster(cluster)
    decode_policy, fabric = _read_pools(cluster, groups)
    return ScenarioSpec(
        name=section.get(NAME),
        seed=section.get(SEED),
        groups=groups,
        router_policy=policy,
        workload=None if workload is None else read_workload(workload, search),
        slo=SloSpec() if slo is None else read_slo(slo),
        source=document.source,
        decode_policy=decode_policy,
        fabric=fabric,
        timeline=() if cluster is None else _read_changes(cluster),
        prices={} if cluster is None else _read_prices(cluster),
    )


def _read_cluster(value: Value) -> tuple[tuple[WorkerGroup, ...], str]:
    section = open_section(value, CLUSTER_KEYS)
    groups = _beside_encoders(tuple(_read_worker(entry) for entry in section.get(WORKERS)))
    total = sum(group.count for group in groups)
    if total > MAX_WORKERS:
        raise section.at("workers").error(f"{total} workers; at most {MAX_WORKERS}")
    router = section.get(ROUTER)
    policy = "round_robin" if router is None else open_section(router, ROUTER_KEYS).get(POLICY)
    return groups, policy


def _beside_encoders(groups: tuple[WorkerGroup, ...]) -> tuple[WorkerGroup, ...]:
    """SGLang's workers as the others' encoders make them: they have a language model only."""
    if all(group.role != "encoder" for group in groups):
        return groups
    return tuple(
        group
        if group.sglang is None or group.role == "encoder"
        else replace(group, sglang=replace(group.sglang, language_only=True))
        for group in groups
    )


def _read_pools(cluster: Value | None, groups: tuple[WorkerGroup, ...]) -> tuple[str, FabricSpec]:
    """The policy over decode workers, and the fabric. Raises ConfigError for half a pair."""
    if cluster is None:
        return "round_robin", FabricSpec()
    section = open_section(cluster, CLUSTER_KEYS)
    roles = {group.role: group for group in groups}
    if ("prefill" in roles) != ("decode" in roles):
        have, lack = ("prefill", "decode") if "prefill" in roles else ("decode", "prefill")
        raise section.at("workers").error(f"{have} workers, but no {lack} workers")
    if set(roles) == {"encoder"}:
        raise section.at("workers").error("encoder workers, but nobody to encode for")
    if "prefill" in roles:
        paired = [group for group in groups if group.role in ("prefill", "decode")]
        families = {group.sglang is not None for group in paired}
        if len(families) > 1:
            raise section.at("workers").error(
                "prefill and decode workers of different engines cannot exchange KV"
            )
    router = section.get(ROUTER)
    policy = "round_robin"
    if router is not None:
        policy = open_section(router, ROUTER_KEYS).get(DECODE_POLICY)
    return policy, read_fabric(section.get(FABRIC))


def _read_changes(cluster: Value) -> tuple[Happening, ...]:
    return read_timeline(open_section(cluster, CLUSTER_KEYS).get(TIMELINE))


def _read_prices(cluster: Value) -> dict[str, float]:
    value = open_section(cluster, CLUSTER_KEYS).get(PRICES)
    if value is None:
        return {}
    assert isinstance(value.data, dict)
    known = known_hardware()
    for name, entry in value.data.items():
        if name not in known:
            raise entry.error(
                f"no such hardware{nearest(name, known)}; allowed: {', '.join(known)}"
            )
    return {name: number(0).read(entry) for name, entry in value.data.items()}


def _read_worker(value: Value) -> WorkerGroup:
    section = open_section(value, WORKER_KEYS)
    role = section.get(ROLE)
    if role in ("attention", "ffn"):
        raise section.at("role").error(
            f"{role} workers are one worker with key afd; "
            "allowed: colocated, prefill, decode, encoder"
        )
    parallel = _read_parallel(section)
    sglang = None
    if section.get(ENGINE).lower().startswith("sglang"):
        sglang, idle = _read_sglang_args(section, parallel)
        if role in ("prefill", "decode"):
            sglang = replace(sglang, disaggregation_mode=role)
        if role == "encoder":
            sglang = replace(sglang, encoder_only=True)
        args = VllmArgs(
            model=sglang.model_path,
            quantization=sglang.quantization,
            tensor_parallel_size=sglang.tp_size,
            host=sglang.host,
        )
    else:
        args, idle = _read_engine_args(section, parallel)
        if role in ("prefill", "decode") and args.kv_transfer_config is None:
            args = replace(args, kv_transfer_config=KvTransferArgs())
    where = f"{value.source}:{value.line}: {value.path}"
    return WorkerGroup(
        name=section.get(WORKER_NAME),
        count=section.get(WORKER_COUNT),
        engine=section.get(ENGINE),
        model=section.get(MODEL),
        hardware=section.get(HARDWARE),
        role=role,
        parallel=parallel,
        args=args,
        without_effect=idle,
        port=section.get(PORT),
        grpc_port=section.get(GRPC_PORT),
        compat=read_compat(section.get(COMPAT), f"{where}.compat"),
        where=where,
        sglang=sglang,
        routing=_read_experts(section),
        sampling=_read_sampling(section),
    )


def _read_sampling(section: Section) -> SamplingSpec:
    value = section.get(SAMPLING)
    if value is None:
        return SamplingSpec()
    keys = open_section(value, SAMPLING_KEYS)
    return SamplingSpec(keys.get(TOP_P), keys.get(PENALTIES), keys.get(GRAMMAR))


def _read_experts(section: Section) -> RoutingSpec | None:
    value = section.get(EXPERTS)
    if value is None:
        return None
    keys = open_section(value, EXPERT_KEYS)
    return RoutingSpec(
        keys.get(POPULARITY), keys.get(EXPONENT), keys.get(EXPERT_SEED), drift=keys.get(DRIFT)
    )


def _read_parallel(section: Section) -> ParallelSpec:
    value = section.get(PARALLEL)
    if value is None:
        return ParallelSpec()
    axes = open_section(value, PARALLEL_KEYS)
    for key in (PP, DP, EP):
        if axes.get(key) != 1 and section.get(AFD) is not None:
            raise axes.at(key.name).error("the worker's key afd says how many ranks it has")
    return ParallelSpec(tp=axes.get(TP), pp=axes.get(PP), dp=axes.get(DP), ep=axes.get(EP))


def _read_engine_args(section: Section, parallel: ParallelSpec) -> tuple[VllmArgs, tuple[str, ...]]:
    argv: list[str] = []
    value = section.get(ENGINE_ARGS)
    if value is not None:
        argv = _engine_argv(value, vllm_flags(), parallel)
    argv += _common_argv(section, parallel, VLLM_WEIGHTS)
    ranks = parallel.tp * parallel.dp
    if parallel.ep not in (1, ranks):
        raise section.at("parallel").error(f"ep: {parallel.ep}; allowed: 1 or tp x dp, {ranks}")
    if parallel.ep > 1:
        argv += ["--enable-expert-parallel"]
    try:
        args, idle = parse_engine_args(argv)
    except ConfigError as error:
        raise section.at("engine_args").error(str(error)) from None
    afd = section.get(AFD)
    drafts = accepting(args.speculative_config, section.get(SPECULATION))
    args = replace(args, speculative_config=drafts)
    return _with_afd(section, args, None if afd is None else read_afd(afd)), idle


def _read_sglang_args(
    section: Section, parallel: ParallelSpec
) -> tuple[SglangArgs, tuple[str, ...]]:
    value, afd = section.get(ENGINE_ARGS), section.get(AFD)
    argv = [] if value is None else _engine_argv(value, sglang_flags(), parallel)
    argv += _common_argv(section, parallel, SGLANG_WEIGHTS)
    if parallel.ep > 1:
        argv += ["--ep-size", str(parallel.ep)]
    instance = None if afd is None else read_afd(afd)
    if instance is not None:
        # SGLang divides tensor-parallel GPUs into ranks of attention.
        ranks = instance.ranks(parallel.tp)
        argv += ["--tp-size", str(instance.attention_gpus), "--attn-dp-size", str(ranks)]
    try:
        args, idle = parse_sglang_args(argv)
    except ConfigError as error:
        raise section.at("engine_args").error(str(error)) from None
    drafts = accepting(args.drafts, section.get(SPECULATION))
    return _with_afd(section, replace(args, drafts=drafts), instance), idle


def _with_afd(section: Section, args: ArgsT, instance: AfdArgs | None) -> ArgsT:
    """The worker's `afd:` among its arguments, unless the engine's flags say it too."""
    if instance is None:
        return args
    if args.afd is not None:
        raise section.at("engine_args").error("they have AFD flags; the worker's key afd sets it")
    return replace(args, afd=instance)


def _common_argv(section: Section, parallel: ParallelSpec, weights: Mapping[str, str]) -> list[str]:
    argv = ["--model", section.get(MODEL), "--tensor-parallel-size", str(parallel.tp)]
    if parallel.pp != 1:
        argv += ["--pipeline-parallel-size", str(parallel.pp)]
    if parallel.dp != 1:
        argv += ["--data-parallel-size", str(parallel.dp)]
    try:
        quantization = engine_word(section.get(QUANTIZATION), weights)
    except ConfigError as error:
        raise section.at(QUANTIZATION.name).error(str(error)) from None
    if quantization is not None:
        argv += ["--quantization", quantization]
    return argv


def _engine_argv(value: Value, flags: tuple[Flag, ...], parallel: ParallelSpec) -> list[str]:
    bare = plain(value)
    assert isinstance(bare, dict)
    axes = (("parallel.dp", parallel.dp), ("parallel.ep", parallel.ep))
    left = [key for key, ranks in axes if ranks == 1]
    for name in bare:
        own = ELSEWHERE.get(name.lstrip("-").replace("_", "-"))
        if own is not None and own not in left:
            raise value.error(f"{name} is set by the worker's key {own}")
    try:
        return from_mapping(flags, bare, "engine_args")
    except ConfigError as error:
        raise value.error(str(error)) from None
