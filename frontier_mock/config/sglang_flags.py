"""`sglang serve` flags: from a command line or a scenario's engine_args to frozen arguments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from frontier_mock.config.afd import AfdArgs, afd_of_sglang, on_hardware
from frontier_mock.config.errors import ConfigError, shown
from frontier_mock.config.flags import Flag, expand_config_file, parse, read_table
from frontier_mock.config.hicache import STORAGE_CLASSES, WRITE_POLICIES
from frontier_mock.config.pipelines import read_partition
from frontier_mock.config.sglang_flag_table import FIRST_FLAGS
from frontier_mock.config.sglang_flag_table_more import AFD_FLAGS, MORE_FLAGS
from frontier_mock.config.sglang_speculative import read_speculative
from frontier_mock.config.speculative import DraftArgs
from frontier_mock.config.vllm_flags import SimulatorArgs, simulator_flags
from frontier_mock.config.weights import SGLANG_WEIGHTS
from frontier_mock.serving.radix_cache import EVICTION_POLICIES
from frontier_mock.serving.schedulers.sglang_policy import POLICIES

FP8_KV_TYPES = ("fp8_e5m2", "fp8_e4m3")
"""--kv-cache-dtype values simulated as a one-byte KV cache."""

DEFAULT_ENGINE = "sglang-0.5.23"
"""The version impersonated unless --sim-engine names another."""

_LARGE = 2**31 - 1


@dataclass(frozen=True, slots=True)
class SglangArgs:
    """The SGLang flags acted upon, under SGLang's names; None where SGLang decides for itself.

    Units are in SGLang's own terms: tokens, requests, pages.
    """

    model_path: str = ""
    served_model_name: str | None = None
    tokenizer_path: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    random_seed: int = 0
    context_length: int | None = None
    tp_size: int = 1
    pp_size: int = 1
    pp_max_micro_batch_size: int | None = None
    pp_async_batch_depth: int = 0
    pp_layer_partition: tuple[int, ...] = ()
    dp_size: int = 1
    attn_dp_size: int = 1
    enable_dp_attention: bool = False
    ep_size: int = 1
    moe_a2a_backend: str = "none"
    deepep_mode: str = "auto"
    enable_two_batch_overlap: bool = False
    load_balance_method: str = "auto"
    mem_fraction_static: float | None = None
    max_running_requests: int | None = None
    max_queued_requests: int | None = None
    max_total_tokens: int | None = None
    chunked_prefill_size: int | None = None
    max_prefill_tokens: int = 16384
    prefill_max_requests: int | None = None
    schedule_policy: str = "fcfs"
    schedule_conservativeness: float = 1.0
    page_size: int | None = None
    enable_mixed_chunk: bool = False
    disable_overlap_schedule: bool = False
    enable_priority_scheduling: bool = False
    disable_priority_preemption: bool = False
    priority_scheduling_preemption_threshold: int = 10
    schedule_low_priority_values_first: bool = False
    disable_radix_cache: bool = False
    radix_eviction_policy: str = "lru"
    retraction_policy: str = "length"
    cuda_graph_max_bs_decode: int | None = None
    cuda_graph_bs_decode: tuple[int, ...] | None = None
    cuda_graph_max_bs_prefill: int | None = None
    cuda_graph_bs_prefill: tuple[int, ...] | None = None
    disable_prefill_cuda_graph: bool = False
    disable_cuda_graph: bool = False
    disable_cuda_graph_padding: bool = False
    host: str | None = None
    port: int = 30000
    smg_grpc_mode: bool = False
    smg_http_sidecar_port: int | None = None
    api_key: str | None = None
    admin_api_key: str | None = None
    afd: AfdArgs | None = None
    disaggregation_mode: str = "null"
    disaggregation_transfer_backend: str = "mooncake"
    disaggregation_bootstrap_port: int = 8998
    disaggregation_decode_enable_radix_cache: bool = False
    num_reserved_decode_tokens: int = 512
    drafts: DraftArgs | None = None
    enable_hierarchical_cache: bool = False
    hicache_ratio: float | None = None
    hicache_size: int = 0
    hicache_write_policy: str = "write_through"
    hicache_storage_backend: str | None = None
    hicache_storage_prefetch_policy: str = "timeout"
    hicache_storage_backend_extra_config: str | None = None
    file_storage_path: str | None = None
    encoder_only: bool = False
    language_only: bool = False
    encoder_urls: tuple[str, ...] = ()
    given: tuple[tuple[str, object], ...] = field(default=(), compare=False)
    """Every flag given and its value, keys apart: what /server_info shows, and front-end flags."""


def sglang_flags() -> tuple[Flag, ...]:
    """Every flag of SGLang 0.5.23's `sglang serve`, and those its tree has for AFD since."""
    return read_table(FIRST_FLAGS) + read_table(MORE_FLAGS) + read_table(AFD_FLAGS)


def parse_sglang_args(argv: Sequence[str]) -> tuple[SglangArgs, tuple[str, ...]]:
    """A worker's engine_args as a command line: the arguments, and the flags without effect.

    Raises ConfigError on an unknown flag, a bad value, or one that is not simulated.
    """
    given = parse(sglang_flags(), argv)
    idle = tuple(f.options[0] for f in sglang_flags() if not f.effect and f.name in given)
    return to_sglang_args(given), idle


@dataclass(frozen=True, slots=True)
class SglangServeArgs:
    """A parsed `sglang serve` command line; `without_effect` are flags accepted but idle."""

    sglang: SglangArgs
    simulator: SimulatorArgs
    without_effect: tuple[str, ...]


def parse_sglang_serve(
    argv: Sequence[str], environment: Mapping[str, str] | None = None
) -> SglangServeArgs:
    """Read what follows `sglang serve`; the model may be named without its flag, and
    SGLANG_PP_LAYER_PARTITION of `environment` is honoured as SGLang does.

    Raises ConfigError on an unknown flag, a bad value, or one that is not simulated.
    """
    flags = sglang_flags() + simulator_flags()
    given = parse(flags, expand_config_file(flags, argv), positional="model_tag")
    model_tag = given.pop("model_tag", None)
    if model_tag is not None:
        given["model_path"] = model_tag
    own = {name.removeprefix("sim_"): given.pop(name) for name in list(given) if name[:4] == "sim_"}
    simulator = SimulatorArgs(**{"engine": DEFAULT_ENGINE, **own})
    if not simulator.engine.lower().startswith("sglang"):
        raise ConfigError(
            f"argument --sim-engine: {shown(simulator.engine)} does not take SGLang's flags; "
            "allowed: sglang-X.Y.Z"
        )
    idle = tuple(f.options[0] for f in sglang_flags() if not f.effect and f.name in given)
    args = to_sglang_args(given)
    if args.pp_size > 1:
        partition = read_partition("SGLANG_PP_LAYER_PARTITION", environment or {})
        args = replace(args, pp_layer_partition=partition)
    args = replace(args, afd=on_hardware(args.afd, simulator.ffn_hardware))
    if args.afd is None and simulator.ffn_hardware is not None:
        idle += ("--sim-ffn-hardware",)
    return SglangServeArgs(args, simulator, idle)


def to_sglang_args(given: Mapping[str, Any]) -> SglangArgs:
    """Check what argparse cannot and make the arguments. Raises ConfigError."""
    _refuse(given)
    acted = {one.name for one in fields(SglangArgs)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if name in acted and value is not None
    }
    if given.get("grpc_mode"):
        values["smg_grpc_mode"] = True
    if given.get("disable_cuda_graph"):
        values["disable_prefill_cuda_graph"] = True
    if given.get("disable_decode_cuda_graph"):
        values["disable_cuda_graph"] = True
    if not values.get("model_path"):
        raise ConfigError("argument --model-path: is required")
    _check(values)
    values["afd"] = _afd(given, values.get("tp_size", 1))
    values["drafts"] = read_speculative(given, values["model_path"])
    values["given"] = tuple(
        (name, tuple(value) if isinstance(value, list) else value)
        for name, value in given.items()
        if name not in SECRETS
    )
    return SglangArgs(**values)


def _afd(given: Mapping[str, Any], tp_size: int) -> AfdArgs | None:
    """What the AFD flags say. `--afd-role` alone is as many FFN GPUs as attention has."""
    mode, config = given.get("afd_execution_mode", "off"), given.get("afd_config")
    role = given.get("afd_role")
    if role is not None and mode == "off":
        mode = role
        config = config or {"lanes": tp_size}
    made = afd_of_sglang(mode, config)
    if made is None:
        return None
    own = made.attention_gpus if made.role == "attention" else made.ffn_gpus
    if own != tp_size:
        raise ConfigError(
            f"argument --afd-config: {own} {made.role} lanes are configured, but --tp-size is "
            f"{tp_size}; they must be equal"
        )
    if given.get("dp_size", 1) > 1 and not given.get("enable_dp_attention"):
        raise ConfigError(
            f"argument --dp-size: {given['dp_size']} replicas of attention cannot share FFN GPUs; "
            "allowed: 1, or --attn-dp-size"
        )
    for name in ("enable_two_batch_overlap", "enable_single_batch_overlap"):
        if given.get(name):
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"argument {option}: does not go with attention/FFN disaggregation")
    if given.get("moe_a2a_backend", "none") != "none":
        backend = given["moe_a2a_backend"]
        raise ConfigError(
            f"AFD_INTERNAL_COLLECTIVE_UNSUPPORTED: argument --moe-a2a-backend: {backend}; "
            "allowed with attention/FFN disaggregation: none"
        )
    return made


SECRETS = ("api_key", "admin_api_key")
"""Flags that journals must not show."""

_NOT_SIMULATED: Mapping[str, tuple[object, ...]] = {
    "prefill_decode_interval": (None, 0),
}
"""Flags that change the behaviour in ways not simulated, and the values they may have."""


def _refuse(given: Mapping[str, Any]) -> None:
    for name, allowed in _NOT_SIMULATED.items():
        if name in given and given[name] not in allowed:
            option = "--" + name.replace("_", "-")
            words = " or ".join(str(value) for value in allowed if value is not None) or "none"
            raise ConfigError(
                f"argument {option}: {shown(given[name])} is not simulated; allowed: {words}"
            )


_CHOICES: Mapping[str, tuple[str, ...]] = {
    "moe_a2a_backend": ("none", "deepep"),
    "load_balance_method": ("auto", "round_robin", "total_requests"),
    "dtype": ("auto", "half", "float16", "bfloat16"),
    "quantization": tuple(SGLANG_WEIGHTS),
    "kv_cache_dtype": ("auto", "bf16", "bfloat16", *FP8_KV_TYPES),
    "schedule_policy": POLICIES,
    "radix_eviction_policy": EVICTION_POLICIES,
    "hicache_write_policy": WRITE_POLICIES,
    "hicache_storage_backend": tuple(STORAGE_CLASSES),
}

_RANGES: tuple[tuple[str, float, float], ...] = (
    ("context_length", 1, _LARGE),
    ("tp_size", 1, 1024),
    ("pp_size", 1, 64),
    ("pp_max_micro_batch_size", 1, 1 << 20),
    ("pp_async_batch_depth", 0, 64),
    ("dp_size", 1, 1024),
    ("attn_dp_size", 1, 1024),
    ("mem_fraction_static", 0.01, 1.0),
    ("max_running_requests", 1, 1 << 20),
    ("max_queued_requests", 1, _LARGE),
    ("max_total_tokens", 1, 1 << 40),
    ("chunked_prefill_size", -1, _LARGE),
    ("max_prefill_tokens", 1, _LARGE),
    ("prefill_max_requests", 1, _LARGE),
    ("schedule_conservativeness", 0.0, 1000.0),
    ("page_size", 1, 1024),
    ("hicache_ratio", 0.0, 1e6),
    ("hicache_size", 0, 1 << 20),
    ("cuda_graph_max_bs_decode", 1, 1 << 16),
    ("cuda_graph_max_bs_prefill", 1, 1 << 20),
    ("random_seed", 0, 2**63 - 1),
    ("port", 0, 65535),
    ("smg_http_sidecar_port", 0, 65535),
)


def _check(values: Mapping[str, Any]) -> None:
    for name, allowed in _CHOICES.items():
        value = values.get(name)
        if value is not None and value not in allowed:
            option = "--" + name.replace("_", "-")
            raise ConfigError(
                f"argument {option}: {shown(value)} is not simulated; allowed: {', '.join(allowed)}"
            )
    for name, low, high in _RANGES:
        value = values.get(name)
        if value is not None and not low <= value <= high:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"argument {option}: {shown(value)} is not in {low:g}..{high:g}")
    for name in ("cuda_graph_bs_decode", "cuda_graph_bs_prefill"):
        sizes = values.get(name)
        if sizes is not None and (not sizes or min(sizes) < 1):
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"argument {option}: sizes must be 1 or more")
