"""`vllm serve` flags and the simulator's own, from a command line to frozen arguments."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from frontier_mock.config.afd import AfdArgs, afd_of_plugin, on_hardware
from frontier_mock.config.ec_transfer import EcTransferArgs, read_ec_transfer
from frontier_mock.config.errors import ConfigError, shown
from frontier_mock.config.flags import Flag, expand_config_file, parse, read_table
from frontier_mock.config.kv_events import read_kv_events
from frontier_mock.config.kv_offload import OffloadArgs, read_offload, transfer_section
from frontier_mock.config.kv_transfer import KvTransferArgs, read_kv_transfer
from frontier_mock.config.pipelines import read_partition
from frontier_mock.config.speculative import IDLE, DraftArgs, read_speculative
from frontier_mock.config.vision_config import max_images
from frontier_mock.config.vllm_flag_table import ENGINE_FLAGS, FRONTEND_FLAGS, SIMULATOR_FLAGS
from frontier_mock.config.weights import VLLM_WEIGHTS

DEFAULT_MODEL = "Qwen/Qwen3-0.6B"
"""What `vllm serve` serves when no model is named."""

CUDAGRAPH_MODES = ("NONE", "PIECEWISE", "FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE")
"""vLLM 0.33's values of compilation_config.cudagraph_mode."""

_STRUCTURED_BACKENDS = ("auto", "xgrammar", "guidance", "outlines", "lm-format-enforcer")

FLOAT16_TYPES = ("auto", "half", "float16", "bfloat16")
"""--dtype values that mean two bytes per weight."""

DISPATCH_BACKENDS = {
    "allgather_reducescatter": "allgather",
    "deepep_high_throughput": "deepep_normal",
    "deepep_low_latency": "deepep_low_latency",
}
"""--all2all-backend values simulated, and what they are to the cost model."""

FP8_KV_TYPES = ("fp8", "fp8_e4m3", "fp8_e5m2")
"""--kv-cache-dtype values simulated as a one-byte KV cache."""

BF16_KV_TYPES = ("auto", "float16", "bfloat16")
"""--kv-cache-dtype values simulated as a two-byte KV cache."""

SHAPE_KEYS = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
}
"""What --hf-overrides may replace: keys of a config.json, and the names ModelSpec has for them."""


@dataclass(frozen=True, slots=True)
class VllmArgs:
    """The vLLM flags acted upon, under vLLM's names; None where vLLM decides for itself.

    `max_model_len` is -1 for "auto". `max_new_tokens` is that of --override-generation-config.
    Units are in vLLM's own terms: tokens, requests, blocks, seconds.
    """

    model: str = DEFAULT_MODEL
    served_model_name: tuple[str, ...] = ()
    tokenizer: str | None = None
    hf_config_path: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    seed: int = 0
    max_model_len: int | None = None
    max_logprobs: int = 20
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    pp_layer_partition: tuple[int, ...] = ()
    data_parallel_size: int = 1
    enable_expert_parallel: bool = False
    all2all_backend: str = "allgather_reducescatter"
    enable_dbo: bool = False
    decode_context_parallel_size: int = 1
    enable_eplb: bool = False
    num_redundant_experts: int = 0
    enable_lora: bool = False
    lora_modules: tuple[str, ...] = ()
    max_loras: int = 1
    max_lora_rank: int = 16
    block_size: int = 16
    gpu_memory_utilization: float | None = None
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    enable_prefix_caching: bool = True
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    max_num_queued_reqs: int = 0
    max_num_queued_tokens: int | None = None
    max_num_scheduled_tokens: int = 0
    max_num_active_seqs: int = 0
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    long_prefill_token_threshold_adaptive: bool = False
    prefill_schedule_interval: int = 1
    scheduling_policy: str = "fcfs"
    async_scheduling: bool | None = None
    stream_interval: int = 1
    watermark: float = 0.0
    scheduler_reserve_full_isl: bool = True
    enforce_eager: bool = False
    cudagraph_capture_sizes: tuple[int, ...] | None = None
    max_cudagraph_capture_size: int | None = None
    optimization_level: int = 2
    performance_mode: str = "balanced"
    host: str | None = None
    port: int = 8000
    api_key: tuple[str, ...] = ()
    enable_prompt_tokens_details: bool = False
    enable_server_load_tracking: bool = False
    enable_request_id_headers: bool = False
    enable_force_include_usage: bool = False
    root_path: str = ""
    sse_keep_alive_interval: int = 0
    allowed_origins: tuple[str, ...] = ()
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False
    uds: str | None = None
    grpc: bool = False
    grpc_port: int | None = None
    shutdown_timeout: int = 0
    return_tokens_as_token_ids: bool = False
    trust_request_chat_template: bool = False
    enable_auto_tool_choice: bool = False
    tool_call_parser: str | None = None
    enable_scale_out: bool = False
    tokens_only: bool = False
    enable_sleep_mode: bool = False
    enable_trace_replay: bool = False
    weight_transfer_backend: str = ""
    structured_outputs_backend: str = "auto"
    fingerprint_mode: str = "full"
    fingerprint_value: str | None = None
    max_new_tokens: int | None = None
    hf_overrides: Mapping[str, int] = field(default_factory=dict)
    prefix_caching_hash_algo: str = "sha256"
    kv_events_config: Mapping[str, Any] | None = None
    afd: AfdArgs | None = None
    kv_transfer_config: KvTransferArgs | None = None
    speculative_config: DraftArgs | None = None
    disable_log_stats: bool = False
    enable_log_requests: bool = False
    uvicorn_log_level: str = "info"
    disable_uvicorn_access_log: bool = False
    disable_access_log_for_endpoints: str | None = None
    kv_offload: OffloadArgs | None = None
    max_images: int = 999
    per_request_spec_decode_metrics: str = "none"
    ec_transfer_config: EcTransferArgs | None = None


@dataclass(frozen=True, slots=True)
class SimulatorArgs:
    """The --sim-* flags."""

    hardware: str = "h800"
    ffn_hardware: str | None = None
    engine: str = "vllm-0.33"
    clock: str = "real"
    clock_server: str | None = None
    name: str = "w0"
    seed: int = 0
    journal: str | None = None
    old_metric_names: bool = False
    compat: str | None = None
    engine_logs: bool = False
    single_step: bool = False
    ready_file: str | None = None
    eos: bool = True
    eos_mean_tokens: float = 256.0
    eos_sigma: float = 1.0
    on_late: str = "report"
    late_ms: float = 5.0
    late_ms_max: float = 100.0
    precise: bool = False
    grace_ms: float = 5.0
    patience_s: float = 1.0
    strict: bool = False
    baton: bool = False
    keep_events: int = 500_000
    clock_grpc_port: int | None = None
    image_size: str = "1024x1024"
    kv_event_dialect: str | None = None
    kv_events_also: str | None = None
    kv_event_settle_ms: float = 5.0
    oracle: bool = False


@dataclass(frozen=True, slots=True)
class ServeArgs:
    """A parsed `vllm serve` command line; `without_effect` are flags accepted but not simulated."""

    vllm: VllmArgs
    simulator: SimulatorArgs
    without_effect: tuple[str, ...]


def vllm_flags() -> tuple[Flag, ...]:
    """Every flag of vLLM 0.33.0's `vllm serve`."""
    return read_table(ENGINE_FLAGS) + read_table(FRONTEND_FLAGS)


def simulator_flags() -> tuple[Flag, ...]:
    """The simulator's own flags."""
    return read_table(SIMULATOR_FLAGS)


def parse_serve(argv: Sequence[str], environment: Mapping[str, str]) -> ServeArgs:
    """Read what follows `vllm serve`. VLLM_API_KEY and VLLM_PP_LAYER_PARTITION of `environment` are
    honoured as vLLM does.

    Raises ConfigError on an unknown flag or a bad value, worded as argparse words it.
    """
    flags = vllm_flags() + simulator_flags()
    given = parse(flags, expand_config_file(flags, argv), positional="model_tag")
    model_tag = given.pop("model_tag", None)
    if model_tag is not None:
        given["model"] = model_tag
    own = {name: given.pop(name) for name in list(given) if name.startswith("sim_")}
    if not given.get("api_key") and environment.get("VLLM_API_KEY"):
        given["api_key"] = [environment["VLLM_API_KEY"]]
    simulator = SimulatorArgs(**{name.removeprefix("sim_"): value for name, value in own.items()})
    args = to_vllm_args(given)
    if args.pipeline_parallel_size > 1:
        partition = read_partition("VLLM_PP_LAYER_PARTITION", environment)
        args = replace(args, pp_layer_partition=partition)
    args = replace(args, afd=on_hardware(args.afd, simulator.ffn_hardware))
    idle = without_effect(given)
    if args.afd is None and simulator.ffn_hardware is not None:
        idle += ("--sim-ffn-hardware",)
    return ServeArgs(args, simulator, idle)


def parse_engine_args(argv: Sequence[str]) -> tuple[VllmArgs, tuple[str, ...]]:
    """A worker's engine_args as a command line: the arguments, and the flags without effect."""
    given = parse(vllm_flags(), argv)
    return to_vllm_args(given), without_effect(given)


def without_effect(given: Mapping[str, Any]) -> tuple[str, ...]:
    """The flags among `given` that are accepted without effect, as options, in table order."""
    idle = [flag.options[0] for flag in vllm_flags() if not flag.effect and flag.name in given]
    overrides = given.get("hf_overrides")
    if isinstance(overrides, dict):
        idle += [f"--hf-overrides.{key}" for key in overrides if key not in SHAPE_KEYS]
    drafts = given.get("speculative_config")
    if isinstance(drafts, dict):
        idle += [f"--speculative-config.{key}" for key in drafts if key in IDLE]
    return tuple(idle)


def to_vllm_args(given: Mapping[str, Any]) -> VllmArgs:
    """Check what argparse cannot and make the arguments. Raises ConfigError."""
    acted = {field.name for field in fields(VllmArgs)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if name in acted and value is not None
    }
    values |= _compilation(given.get("compilation_config"), given)
    values |= _generation(given.get("override_generation_config"))
    values |= _overrides(values.pop("hf_overrides", None))
    values |= _weight_transfer(given.get("weight_transfer_config"))
    values |= _structured(given.get("structured_outputs_config"))
    values["max_images"] = max_images(
        given.get("limit_mm_per_prompt"), bool(given.get("language_model_only"))
    )
    values |= _eplb(given.get("eplb_config"), values.get("enable_eplb", False))
    ranks = values.get("tensor_parallel_size", 1) * values.get("data_parallel_size", 1)
    values["speculative_config"] = read_speculative(given)
    told = given.get("per_request_spec_decode_metrics")
    if told in ("summary", "detailed") and values["speculative_config"] is None:
        raise ConfigError(
            f"argument --per-request-spec-decode-metrics: {told} needs --speculative-config"
        )
    transfer = given.get("kv_transfer_config")
    values["kv_transfer_config"] = read_kv_transfer(transfer_section(transfer))
    values["ec_transfer_config"] = read_ec_transfer(given.get("ec_transfer_config"))
    backend = given.get("kv_offloading_backend") or "native"
    values["kv_offload"] = read_offload(transfer, given.get("kv_offloading_size"), backend)
    thresholds = (
        given.get("dbo_decode_token_threshold", 32),
        given.get("dbo_prefill_token_threshold", 512),
    )
    values["afd"] = afd_of_plugin(
        given.get("additional_config"), ranks, values.get("enable_dbo", False), thresholds
    )
    if values.get("kv_events_config") is not None:
        read_kv_events(values["kv_events_config"])
    if "max_lora_rank" in values:
        values["max_lora_rank"] = int(values["max_lora_rank"])
    if "optimization_level" in values:
        values["optimization_level"] = int(values["optimization_level"])
    _check(values)
    return VllmArgs(**values)


def _compilation(config: object, given: Mapping[str, Any]) -> dict[str, Any]:
    """What --compilation-config says about CUDA graphs; the flags of their own go first."""
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise ConfigError(f"argument --compilation-config: {shown(config)} is not a JSON object")
    made: dict[str, Any] = {}
    mode = config.get("cudagraph_mode")
    if mode is not None:
        if str(mode).upper() not in CUDAGRAPH_MODES:
            allowed = ", ".join(CUDAGRAPH_MODES)
            raise ConfigError(
                f"argument --compilation-config: cudagraph_mode {shown(mode)}; allowed: {allowed}"
            )
        if str(mode).upper() == "NONE":
            made["enforce_eager"] = True
    sizes = config.get("cudagraph_capture_sizes")
    if sizes is not None and given.get("cudagraph_capture_sizes") is None:
        listed = sizes if isinstance(sizes, list) else [sizes]
        made["cudagraph_capture_sizes"] = tuple(
            _whole("cudagraph_capture_sizes", size) for size in listed
        )
    largest = config.get("max_cudagraph_capture_size")
    if largest is not None and given.get("max_cudagraph_capture_size") is None:
        made["max_cudagraph_capture_size"] = _whole("max_cudagraph_capture_size", largest)
    return made


def _generation(config: object) -> dict[str, Any]:
    """What --override-generation-config says about lengths."""
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise ConfigError(
            f"argument --override-generation-config: {shown(config)} is not a JSON object"
        )
    cap = config.get("max_new_tokens")
    if cap is None:
        return {}
    if not isinstance(cap, int) or isinstance(cap, bool) or cap < 1:
        raise ConfigError(
            f"argument --override-generation-config: max_new_tokens: {shown(cap)} is not a whole "
            "number >= 1"
        )
    return {"max_new_tokens": cap}


def _overrides(config: object) -> dict[str, Any]:
    """The keys of --hf-overrides that change the model's shape."""
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise ConfigError(f"argument --hf-overrides: {shown(config)} is not a JSON object")
    shape = {key: config[key] for key in SHAPE_KEYS if key in config}
    for key, value in shape.items():
        if type(value) is not int or not 1 <= value <= _LARGE:
            raise ConfigError(
                f"argument --hf-overrides: {key}: {shown(value)} is not a whole number >= 1"
            )
    return {"hf_overrides": shape}


def _eplb(config: object, enabled: bool) -> dict[str, Any]:
    """The replicas that --eplb-config asks for; balancing itself is taken to be up to date."""
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise ConfigError(f"argument --eplb-config: {shown(config)} is not a JSON object")
    count = config.get("num_redundant_experts", 0)
    if type(count) is not int or not 0 <= count <= _LARGE:
        raise ConfigError(
            f"argument --eplb-config: num_redundant_experts: {shown(count)} is not a whole "
            "number >= 0"
        )
    if count and not enabled:
        raise ConfigError(
            f"num_redundant_experts is set to {count} but EPLB is not enabled. Either enable EPLB "
            "or unset num_redundant_experts."
        )
    return {"num_redundant_experts": count}


def _structured(config: object) -> dict[str, Any]:
    """The backend of --structured-outputs-config, "auto" if it names none."""
    backend = config.get("backend", "auto") if isinstance(config, dict) else "auto"
    if backend not in _STRUCTURED_BACKENDS:
        raise ConfigError(
            f"argument --structured-outputs-config: backend: {shown(backend)}; allowed: "
            f"{', '.join(_STRUCTURED_BACKENDS)}"
        )
    return {"structured_outputs_backend": backend}


def _weight_transfer(config: object) -> dict[str, Any]:
    """The backend of --weight-transfer-config, "nccl" if it names none."""
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise ConfigError(
            f"argument --weight-transfer-config: {shown(config)} is not a JSON object"
        )
    backend = config.get("backend", "nccl")
    if not isinstance(backend, str) or not backend:
        raise ConfigError(
            f"argument --weight-transfer-config: backend: {shown(backend)} is not a name, such as "
            "nccl or ipc"
        )
    return {"weight_transfer_backend": backend}


def _whole(key: str, value: object) -> int:
    """A whole number in a JSON flag; digits in quotes count, as they do for vLLM."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
        return int(value)
    raise ConfigError(f"argument --compilation-config: {key}: {shown(value)} is not a whole number")


def _check(values: Mapping[str, Any]) -> None:
    """Refuse what would give wrong figures in silence: values vLLM has and we do not simulate."""
    _allow(values, "dtype", FLOAT16_TYPES)
    _allow(values, "quantization", VLLM_WEIGHTS)
    _allow(values, "kv_cache_dtype", (*BF16_KV_TYPES, *FP8_KV_TYPES))
    _allow(values, "all2all_backend", DISPATCH_BACKENDS)
    for name, low, high in _RANGES:
        value = values.get(name)
        if value is not None and not low <= value <= high:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"argument {option}: {shown(value)} is not in {low}..{high}")
    if values.get("enable_auto_tool_choice") and not values.get("tool_call_parser"):
        raise ConfigError("argument --enable-auto-tool-choice: requires --tool-call-parser")
    for name in ("allowed_origins", "allowed_methods", "allowed_headers"):
        listed = values.get(name, ())
        if not isinstance(listed, tuple) or not all(isinstance(item, str) for item in listed):
            option = "--" + name.replace("_", "-")
            given = list(listed) if isinstance(listed, tuple) else listed
            raise ConfigError(f"argument {option}: {shown(given)} is not a JSON list of strings")
    if values.get("grpc") and values.get("grpc_port") is not None:
        raise ConfigError("argument --grpc-port: not with --grpc, which serves gRPC on --port")
    names = values.get("served_model_name")
    if names is not None and not all(names):
        raise ConfigError("argument --served-model-name: '' is no name; give at least one letter")
    sizes = values.get("cudagraph_capture_sizes")
    if sizes is not None and (not sizes or any(size is None or size < 1 for size in sizes)):
        raise ConfigError(
            f"argument --cudagraph-capture-sizes: {shown(list(sizes))}; every size must be >= 1"
        )


def _allow(values: Mapping[str, Any], name: str, allowed: Collection[str]) -> None:
    value = values.get(name)
    if value is not None and value not in allowed:
        option = "--" + name.replace("_", "-")
        words = ", ".join(allowed)
        raise ConfigError(f"argument {option}: {shown(value)} is not simulated; allowed: {words}")


_LARGE = 2**40
_RANGES: tuple[tuple[str, int, int], ...] = (
    ("port", 0, 65535),
    ("grpc_port", 0, 65535),
    ("max_model_len", -1, _LARGE),
    ("data_parallel_size", 1, 1024),
    ("pipeline_parallel_size", 1, 64),
    ("max_num_batched_tokens", 1, _LARGE),
    ("max_num_seqs", 1, 1_000_000),
    ("max_num_queued_reqs", 1, _LARGE),
    ("max_num_queued_tokens", 0, _LARGE),
    ("max_num_scheduled_tokens", 1, _LARGE),
    ("max_num_active_seqs", 1, 1_000_000),
    ("prefill_schedule_interval", 1, _LARGE),
    ("block_size", 1, 4096),
    ("kv_cache_memory_bytes", 1, 2**50),
    ("num_gpu_blocks_override", 2, _LARGE),
    ("max_cudagraph_capture_size", 1, _LARGE),
    ("long_prefill_token_threshold", 0, _LARGE),
    ("stream_interval", 1, _LARGE),
    ("shutdown_timeout", 0, 1_000_000),
    ("seed", -(2**63), 2**63 - 1),
)
"""What the table's kinds leave open; the upper ends keep arithmetic in 64 bits."""
