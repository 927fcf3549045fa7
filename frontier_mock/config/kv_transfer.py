"""Prefill/decode disaggregation as users write it: `--kv-transfer-config`, roles, the fabric.

vLLM names a connector and what it may do (`--kv-transfer-config`); SGLang has `--disaggregation-*`.
A scenario says `role: prefill` or `role: decode` and leaves the rest to the engine's defaults; its
`cluster.fabric` says what lies between the engines.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from frontier_mock.cluster.links import SAME_NODE, FabricSpec
from frontier_mock.cluster.specs import ConnectorSpec
from frontier_mock.config.document import Value
from frontier_mock.config.errors import ConfigError, nearest, shown
from frontier_mock.config.keys import Key, integer, number, one_of, open_section, optional

_FLAG: Final = "argument --kv-transfer-config"

STYLES: Final[Mapping[str, str]] = {
    "NixlConnector": "pull",
    "NixlPullConnector": "pull",
    "NixlPushConnector": "push",
    "MooncakeConnector": "push",
    "MoRIIOConnector": "push",
    "LMCacheConnectorV1": "pull",
    "LMCacheMPConnector": "pull",
}
"""Connectors that move KV between engines, and which side begins."""

OTHERS: Final = (
    "ExampleConnector",
    "ExampleHiddenStatesConnector",
    "MultiConnector",
    "HiSparseConnector",
    "OffloadingConnector",
    "DecodeBenchConnector",
    "MooncakeStoreConnector",
    "FlexKVConnectorV1",
    "SimpleCPUOffloadConnector",
    "HF3FSKVConnector",
)
"""vLLM 0.33's other connectors: they move no KV between engines."""

ROLES: Final = ("kv_producer", "kv_consumer", "kv_both")
_KEYS: Final = (
    "kv_connector",
    "kv_role",
    "engine_id",
    "kv_buffer_device",
    "kv_port",
    "kv_connector_extra_config",
    "kv_connector_module_path",
    "kv_load_failure_policy",
)

_LEASE_S: Final = 30.0
"""NIXL's kv_lease_duration (vLLM 0.33 nixl/base_scheduler.py)."""

_PUSH_PATIENCE_S: Final = 480.0
"""VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT, and NIXL push's decoder_kv_blocks_ttl."""

_MOST: Final = 1e9
"""Seconds or tokens: as good as for ever."""

_BOOTSTRAP_S: Final = 300.0
"""SGLang's SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT and _WAITING_TIMEOUT."""


@dataclass(frozen=True, slots=True)
class KvTransferArgs:
    """`--kv-transfer-config`, checked. `engine_id` "" lets the server make one up."""

    connector: str = "NixlConnector"
    role: str = "kv_both"
    engine_id: str = ""
    recompute: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    def spec(self) -> ConnectorSpec | None:
        """What the engine is told; None for a connector without effect."""
        style = STYLES.get(self.connector)
        if style is None:
            return None
        default_s = _LEASE_S if style == "pull" else _PUSH_PATIENCE_S
        patience_s = (
            self.extra.get("kv_lease_duration", default_s) if style == "pull" else default_s
        )
        streams = self.connector == "MoRIIOConnector"
        return ConnectorSpec(self.connector, style, float(patience_s), self.recompute, streams)

    def back_s(self) -> float:
        """How long a decode server keeps KV for the next turn's prefill; 0 if it does not."""
        if not self.extra.get("bidirectional_kv_xfer"):
            return 0.0
        return float(self.extra.get("decoder_kv_blocks_ttl", _PUSH_PATIENCE_S))

    def threshold(self) -> int:
        """Fewer tokens than this are computed rather than fetched back."""
        return int(self.extra.get("kv_recompute_threshold", 64))


def read_kv_transfer(config: object) -> KvTransferArgs | None:
    """What `--kv-transfer-config` says; None without it. Raises ConfigError."""
    if config is None:
        return None
    if not isinstance(config, dict):
        raise ConfigError(f"{_FLAG}: {shown(config)} is not a JSON object")
    for key in config:
        if key not in _KEYS:
            raise ConfigError(f"{_FLAG}: unknown key {shown(key)}{nearest(str(key), _KEYS)}")
    connector = config.get("kv_connector")
    known = (*STYLES, *OTHERS)
    if connector not in known and config.get("kv_connector_module_path") is None:
        hint = nearest(str(connector), known)
        raise ConfigError(
            f"{_FLAG}: kv_connector: {shown(connector)}{hint}; allowed: {', '.join(known)}"
        )
    role = config.get("kv_role")
    if role not in ROLES:
        raise ConfigError(f"{_FLAG}: kv_role: {shown(role)}; allowed: {', '.join(ROLES)}")
    policy = config.get("kv_load_failure_policy", "fail")
    if policy not in ("fail", "recompute"):
        raise ConfigError(
            f"{_FLAG}: kv_load_failure_policy: {shown(policy)}; allowed: fail, recompute"
        )
    extra = config.get("kv_connector_extra_config") or {}
    if not isinstance(extra, dict):
        raise ConfigError(f"{_FLAG}: kv_connector_extra_config: {shown(extra)} is not an object")
    for key in ("kv_lease_duration", "decoder_kv_blocks_ttl", "kv_recompute_threshold"):
        given = extra.get(key, 1)
        least = 0 if key == "kv_recompute_threshold" else 1e-3
        is_number = isinstance(given, int | float) and not isinstance(given, bool)
        # NaN is in no range.
        if not is_number or not least <= given <= _MOST:
            raise ConfigError(
                f"{_FLAG}: {key}: {shown(given)}; allowed: a number from {least:g} to {_MOST:g}"
            )
    return KvTransferArgs(
        connector=str(connector),
        role=str(role),
        engine_id=str(config.get("engine_id") or ""),
        recompute=policy == "recompute",
        extra=extra,
    )


def sglang_connector(mode: str, backend: str) -> ConnectorSpec | None:
    """What an SGLang engine in a `--disaggregation-mode` is told."""
    if mode == "null":
        return None
    return ConnectorSpec(backend, "room", _BOOTSTRAP_S, streams=True)


def role_of(args: KvTransferArgs | None) -> str:
    """The engine's role by its flags alone."""
    if args is None or args.spec() is None:
        return "colocated"
    return {"kv_producer": "prefill", "kv_consumer": "decode"}.get(args.role, "colocated")


GPUS_PER_NODE = Key("gpus_per_node", integer(1, 1024), 8, "engines are packed into such nodes")
NODE_LINK = Key("same_node", one_of(*SAME_NODE), "nvlink", "what joins engines of one node")
NIC = Key(
    "nic_gb_per_s",
    optional(number(0, above=True)),
    None,
    "one GPU's NIC, each way, in GB/s; null: the hardware profile's",
)
NVLINK = Key("nvlink_gb_per_s", optional(number(0, above=True)), None, "likewise NVLink")
PCIE = Key("pcie_gb_per_s", optional(number(0, above=True)), None, "likewise PCIe")
SPINE = Key("spine_gb_per_s", number(0), 0.0, "all traffic between nodes together; 0: non-blocking")
EFFICIENCY = Key(
    "efficiency",
    number(0, 1, above=True),
    FabricSpec().efficiency,
    "share of nominal speed",
)
LATENCY = Key(
    "latency_ms", number(0), FabricSpec().latency_s * 1e3, "before a transfer's first byte, in ms"
)
FABRIC_KEYS: tuple[Key[Any], ...] = (
    GPUS_PER_NODE,
    NODE_LINK,
    NIC,
    NVLINK,
    PCIE,
    SPINE,
    EFFICIENCY,
    LATENCY,
)

_GB: Final = 1e9


def read_fabric(value: Value | None) -> FabricSpec:
    """A scenario's `cluster.fabric`. Raises ConfigError."""
    if value is None:
        return FabricSpec()
    section = open_section(value, FABRIC_KEYS)

    def rate(key: Key[float | None]) -> float | None:
        given = section.get(key)
        return None if given is None else given * _GB

    return FabricSpec(
        gpus_per_node=section.get(GPUS_PER_NODE),
        same_node=section.get(NODE_LINK),
        nic_bytes_per_s=rate(NIC),
        nvlink_bytes_per_s=rate(NVLINK),
        pcie_bytes_per_s=rate(PCIE),
        spine_bytes_per_s=section.get(SPINE) * _GB,
        efficiency=section.get(EFFICIENCY),
        latency_s=section.get(LATENCY) / 1e3,
    )
