"""Attention/FFN disaggregation as users write it: a scenario's `afd:` and the engines' own flags.

Three spellings lead to the same `AfdArgs`. A scenario says what an instance is made of. vLLM's
afd-plugin puts it into `--additional-config '{"afd": {...}}'` (afd_plugin/config.py). SGLang's tree
has `--afd-execution-mode` and `--afd-config` (python/sglang/srt/afd/config.py), neither of them in
a release yet.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from frontier_mock.config.document import Value
from frontier_mock.config.errors import ConfigError, nearest, shown
from frontier_mock.config.keys import (
    Key,
    boolean,
    integer,
    mapping,
    one_of,
    open_section,
    optional,
    string,
)
from frontier_mock.config.profiles import load_hardware
from frontier_mock.cost.afd.spec import CONNECTORS, AfdSpec
from frontier_mock.cost.gemm import WEIGHT_BYTES
from frontier_mock.cost.specs import HardwareSpec

ROLES: Final = ("attention", "ffn")


@dataclass(frozen=True, slots=True)
class AfdArgs:
    """One instance, both sides. `role` is that of the process asked for: "ffn" serves nobody.

    `ffn_hardware` and `ffn_weights` are those of the attention side where None. GPUs are counted
    over all machines of a side.
    """

    attention_gpus: int
    ffn_gpus: int
    attention_instances: int = 1
    ffn_instances: int = 1
    ffn_hardware: str | None = None
    ffn_weights: str | None = None
    micro_batches: int = 3
    connector: str = "m2n"
    a2f_bytes: int = 1
    gate_on_attention: bool = True
    redundant_experts: int = 0
    least_decodes: int = 1
    least_prompt_tokens: int = 1
    role: str = "attention"

    def ranks(self, tp: int) -> int:
        """Ranks of attention. Raises ConfigError if the GPUs do not divide into them."""
        if self.attention_gpus % tp:
            raise ConfigError(
                f"afd: {self.attention_gpus} attention GPUs do not divide into ranks of tp {tp}"
            )
        return self.attention_gpus // tp


INSTANCES = Key("instances", integer(1, 512), 1, "machines of this side: the x or y of xAyF")
GPUS = Key("gpus", integer(1, 64), 8, "GPUs of one machine")
FFN_HARDWARE = Key("hardware", optional(string()), None, "GPU type; null: as attention")
FFN_WEIGHTS = Key(
    "quantization",
    optional(one_of(*sorted(WEIGHT_BYTES))),
    None,
    "weight format of the experts; null: as the worker's",
)
REDUNDANT = Key("redundant_experts", integer(0, 1024), 0, "replicas of popular experts (EPLB)")
ATTENTION = Key("attention", optional(mapping()), None, "the attention side, in ranks of tp GPUs")
FFN = Key("ffn", optional(mapping()), None, "the FFN side, whole experts on each GPU")
MICRO_BATCHES = Key("micro_batches", integer(1, 16), 3, "in flight at once")
CONNECTOR = Key("connector", one_of(*CONNECTORS), "m2n", "how tokens reach FFN GPUs")
A2F_DTYPE = Key("a2f_dtype", one_of("fp8", "bf16"), "fp8", "type of tokens on their way to FFN")
GATE = Key(
    "gate_on_attention",
    optional(boolean()),
    None,
    "where the router runs; null: on attention with m2n, else on FFN",
)
ATTENTION_KEYS: tuple[Key[Any], ...] = (INSTANCES, GPUS)
FFN_KEYS: tuple[Key[Any], ...] = (INSTANCES, GPUS, FFN_HARDWARE, FFN_WEIGHTS, REDUNDANT)
AFD_KEYS: tuple[Key[Any], ...] = (ATTENTION, FFN, MICRO_BATCHES, CONNECTOR, A2F_DTYPE, GATE)


def read_afd(value: Value) -> AfdArgs:
    """A worker's `afd:`. Raises ConfigError."""
    section = open_section(value, AFD_KEYS)
    empty = Value({}, value.path, value.source, value.line)
    attention = open_section(section.get(ATTENTION) or empty, ATTENTION_KEYS)
    ffn = open_section(section.get(FFN) or empty, FFN_KEYS)
    connector, gate = section.get(CONNECTOR), section.get(GATE)
    if connector == "m2n" and gate is False:
        raise section.at("gate_on_attention").error(
            "connector m2n sends tokens to their experts; allowed: true"
        )
    return AfdArgs(
        attention_gpus=attention.get(INSTANCES) * attention.get(GPUS),
        ffn_gpus=ffn.get(INSTANCES) * ffn.get(GPUS),
        attention_instances=attention.get(INSTANCES),
        ffn_instances=ffn.get(INSTANCES),
        ffn_hardware=ffn.get(FFN_HARDWARE),
        ffn_weights=ffn.get(FFN_WEIGHTS),
        micro_batches=section.get(MICRO_BATCHES),
        connector=connector,
        a2f_bytes=1 if section.get(A2F_DTYPE) == "fp8" else 2,
        gate_on_attention=connector == "m2n" if gate is None else gate,
        redundant_experts=ffn.get(REDUNDANT),
    )


def afd_spec(args: AfdArgs, hardware: HardwareSpec, weights: str) -> AfdSpec:
    """What the cost model is told; `hardware` and `weights` are the attention side's."""
    other = hardware if args.ffn_hardware is None else load_hardware(args.ffn_hardware)
    return AfdSpec(
        attention_instances=args.attention_instances,
        ffn_instances=args.ffn_instances,
        ffn_gpus=args.ffn_gpus,
        ffn_hardware=other,
        ffn_weights=args.ffn_weights or weights,
        micro_batches=args.micro_batches,
        connector=args.connector,
        a2f_bytes=args.a2f_bytes,
        gate_on_attention=args.gate_on_attention,
        redundant_experts=args.redundant_experts,
        least_decodes=args.least_decodes,
        least_prompt_tokens=args.least_prompt_tokens,
    )


# vLLM's plugin ----------------------------------------------------------------------------------

_PLUGIN_KEYS: Final = (
    "connector",
    "async_dp",
    "role",
    "port",
    "host",
    "num_attention_ranks",
    "num_ffn_ranks",
    "compute_gate_on_attention",
)
_PLUGIN_ALIASES: Final = {
    "afd_connector": "connector",
    "afd_role": "role",
    "afd_port": "port",
    "afd_host": "host",
    "async": "async_dp",
}
_PLUGIN_CONNECTORS: Final = ("P2pNcclAFDConnector", "CAMP2pAFDConnector", "CAMAsyncAFDConnector")
_PLUGIN_SIMULATED: Final = _PLUGIN_CONNECTORS[:2]
_GPUS_PER_MACHINE: Final = 8
_FLAG: Final = "argument --additional-config: afd"


def afd_of_plugin(
    config: object, ranks: int, dbo: bool, thresholds: tuple[int, int] = (1, 1)
) -> AfdArgs | None:
    """What `--additional-config` says about AFD; None if nothing.

    `ranks` are the process's data-parallel times tensor-parallel ranks; with `--enable-dbo` there
    are two micro-batches, else one, and `thresholds` are its --dbo-decode-token-threshold and
    --dbo-prefill-token-threshold. Raises ConfigError where the plugin raises, and for what is not
    simulated.
    """
    if not isinstance(config, dict) or "afd" not in config:
        return None
    raw = config["afd"]
    if not isinstance(raw, dict):
        raise ConfigError(f"{_FLAG}: {shown(raw)} is not a JSON object")
    values = _plugin_values(raw)
    attention, ffn = (_count(values, key, 1) for key in ("num_attention_ranks", "num_ffn_ranks"))
    connector = values.get("connector", _PLUGIN_CONNECTORS[0])
    role = values.get("role", "attention")
    if role not in ROLES:
        raise ConfigError(f"{_FLAG}.role: {shown(role)}; allowed: {', '.join(ROLES)}")
    if connector not in _PLUGIN_CONNECTORS:
        allowed = ", ".join(_PLUGIN_CONNECTORS)
        raise ConfigError(f"{_FLAG}.connector: {shown(connector)}; allowed: {allowed}")
    if connector not in _PLUGIN_SIMULATED:
        allowed = ", ".join(_PLUGIN_SIMULATED)
        raise ConfigError(f"{_FLAG}.connector: {connector} is not simulated; allowed: {allowed}")
    if _switch(values, "async_dp"):
        raise ConfigError(f"{_FLAG}.async_dp: true needs CAMAsyncAFDConnector")
    if connector == "P2pNcclAFDConnector" and (attention < ffn or attention % ffn):
        raise ConfigError(
            f"{_FLAG}: num_attention_ranks ({attention}) must be a multiple of num_ffn_ranks "
            f"({ffn}) with P2pNcclAFDConnector"
        )
    own = attention if role == "attention" else ffn
    if own != ranks:
        raise ConfigError(
            f"{_FLAG}: {own} {role} ranks are configured, but data-parallel times tensor-parallel "
            f"ranks are {ranks}; they must be equal"
        )
    return AfdArgs(
        attention_gpus=attention,
        ffn_gpus=ffn,
        attention_instances=-(-attention // _GPUS_PER_MACHINE),
        ffn_instances=-(-ffn // _GPUS_PER_MACHINE),
        micro_batches=2 if dbo else 1,
        least_decodes=thresholds[0] if dbo else 1,
        least_prompt_tokens=thresholds[1] if dbo else 1,
        connector="p2p",
        a2f_bytes=2,
        gate_on_attention=_switch(values, "compute_gate_on_attention"),
        role=role,
    )


def _plugin_values(raw: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in raw.items():
        name = _PLUGIN_ALIASES.get(key, key)
        if name == "connector_extra_config":
            continue
        if name not in _PLUGIN_KEYS:
            raise ConfigError(f"{_FLAG}: unknown key {shown(key)}{nearest(key, _PLUGIN_KEYS)}")
        if name in values:
            raise ConfigError(f"{_FLAG}: {name} is given twice, under its alias too")
        values[name] = value
    return values


def _count(values: Mapping[str, Any], key: str, default: int) -> int:
    value = values.get(key, default)
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 4096:
        raise ConfigError(f"{_FLAG}.{key}: {shown(value)} is not a whole number 1..4096")
    return value


def _switch(values: Mapping[str, Any], key: str) -> bool:
    value = values.get(key, False)
    if not isinstance(value, bool):
        raise ConfigError(f"{_FLAG}.{key}: {shown(value)} is not true or false")
    return value


# SGLang's tree ----------------------------------------------------------------------------------

_SGLANG_KEYS: Final = {
    "stages": 2,
    "max_hbm_bytes": 8 << 30,
    "attention_backend": "fa3",
    "lanes": 1,
    "attention_lanes": None,
    "rendezvous_host": "127.0.0.1",
    "rendezvous_port": 1239,
    "rendezvous_timeout_seconds": 1800,
    "idle_timeout_seconds": 86400,
    "close_timeout_seconds": 30,
    "nccl_num_channels": 8,
}
_SGLANG_LANES: Final = (1, 2, 4, 8, 16, 32)
_SGLANG_ROLES: Final = {"attention": "attention", "attn": "attention", "ffn": "ffn"}


def afd_of_sglang(mode: str, config: object) -> AfdArgs | None:
    """What `--afd-execution-mode` (or `--afd-role`) and `--afd-config` say; None if it is off.

    Raises ConfigError with SGLang's own code where it has one.
    """
    if mode == "off":
        if config is not None:
            raise ConfigError(
                "AFD_GRAPH_WITHOUT_EXECUTION_MODE: argument --afd-execution-mode: off, with an "
                "--afd-config; allowed: attention, ffn"
            )
        return None
    if config is None:
        raise ConfigError(
            f"AFD_GRAPH_CONFIG_REQUIRED: argument --afd-config: is required with mode={mode}"
        )
    if not isinstance(config, dict):
        raise ConfigError(f"argument --afd-config: {shown(config)} is not a JSON object")
    for key in config:
        if key not in _SGLANG_KEYS:
            raise ConfigError(
                f"AFD_GRAPH_CONFIG_INVALID: argument --afd-config: unknown key {shown(key)}"
                f"{nearest(key, _SGLANG_KEYS)}"
            )
    values = {**_SGLANG_KEYS, **config}
    if values["stages"] != 2:
        raise ConfigError(
            f"AFD_GRAPH_STAGE_COUNT_UNSUPPORTED: argument --afd-config: stages="
            f"{shown(values['stages'])}; allowed: 2"
        )
    ffn = values["lanes"]
    attention = ffn if values["attention_lanes"] is None else values["attention_lanes"]
    if ffn not in _SGLANG_LANES:
        raise ConfigError(
            f"AFD_GRAPH_LANE_COUNT_INVALID: argument --afd-config: lanes={shown(ffn)}; allowed: "
            f"{', '.join(map(str, _SGLANG_LANES))}"
        )
    if isinstance(attention, bool) or not isinstance(attention, int) or attention < 1:
        raise ConfigError(
            f"AFD_GRAPH_ATTENTION_LANE_COUNT_INVALID: argument --afd-config: "
            f"attention_lanes={shown(attention)}; allowed: a whole number >= 1"
        )
    return AfdArgs(
        attention_gpus=attention,
        ffn_gpus=ffn,
        attention_instances=-(-attention // _GPUS_PER_MACHINE),
        ffn_instances=-(-ffn // _GPUS_PER_MACHINE),
        micro_batches=2,
        connector="p2p",
        a2f_bytes=2,
        gate_on_attention=False,
        role=_SGLANG_ROLES[mode],
    )


def on_hardware(args: AfdArgs | None, ffn_hardware: str | None) -> AfdArgs | None:
    """The same with FFN GPUs of another type, if one is named."""
    if args is None or ffn_hardware is None:
        return args
    return replace(args, ffn_hardware=ffn_hardware)
