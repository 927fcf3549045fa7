"""CPU tiers under vLLM engines as users write them.

`--kv-offloading-size` with `--kv-offloading-backend`, or a `--kv-transfer-config` whose connector
is OffloadingConnector or LMCache's, alone or among those of a MultiConnector. Keys and refusals are
those of vLLM 0.33.0 (kv_connector/v1/offloading/config.py, v1/kv_offload/cpu/spec.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from frontier_mock.config.errors import ConfigError, nearest, shown
from frontier_mock.cost.memory import MemoryPlan
from frontier_mock.cost.offload import tiers
from frontier_mock.cost.specs import StepSpec
from frontier_mock.serving.tiers.specs import POLICIES, LaneSpec, OffloadSpec

_FLAG: Final = "argument --kv-transfer-config"
_GIB: Final = 1 << 30

NATIVE: Final = "OffloadingConnector"
LMCACHE: Final = ("LMCacheConnectorV1", "LMCacheMPConnector")

_PAGE_BYTES: Final = 4096
"""Chunks of the native tier begin on pages of host memory."""

_LMCACHE_CHUNK_TOKENS: Final = 256
_LMCACHE_GIB: Final = 5.0
"""LMCache's defaults: chunk_size, and max_local_cpu_size of each rank."""

_PD_BUFFER_BYTES: Final = 1 << 30
"""pd_buffer_size of LMCache's example (it has no default), of each rank."""

_SPECS: Final = ("CPUOffloadingSpec",)

_MOST: Final = 2.0**60


@dataclass(frozen=True, slots=True)
class OffloadArgs:
    """A tier as the flags ask for it: who keeps it, `cpu_bytes` over all ranks (0: its default).

    `receives`: prefill engines fill it, and nobody else (LMCache's receiver).
    """

    connector: str
    cpu_bytes: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)
    receives: bool = False


def read_offload(config: object, size_gib: float | None, backend: str) -> OffloadArgs | None:
    """What the flags say of a CPU tier; None if there is none. Raises ConfigError.

    `config` is `--kv-transfer-config`. Given with a size, the backend's connector goes first.
    """
    section = _section(config)
    if size_gib is not None:
        if not 0 < size_gib * _GIB <= _MOST:
            raise ConfigError(f"argument --kv-offloading-size: {shown(size_gib)} is not above 0")
        native = backend == "native"
        extra = dict(section[1]) if section is not None and native else {}
        connector = NATIVE if native else "LMCacheMPConnector"
        return _checked(OffloadArgs(connector, size_gib * _GIB, extra))
    if section is None:
        return None
    connector, keys = section
    if connector == LMCACHE[0] and _role(config) == "kv_consumer":
        return _checked(OffloadArgs(connector, 0.0, keys, receives=True))
    if connector == NATIVE:
        given: Any = keys.get("cpu_bytes_to_use")
        if not _is_number(given) or not 0 < given <= _MOST:
            raise ConfigError(
                f"{_FLAG}: kv_connector_extra_config: cpu_bytes_to_use: {shown(given)}; "
                "allowed: the bytes of the CPU tier"
            )
        return _checked(OffloadArgs(connector, float(given), keys))
    return _checked(OffloadArgs(connector, 0.0, keys))


def transfer_section(config: object) -> object:
    """`--kv-transfer-config` as what moves KV between engines sees it: of a MultiConnector's
    connectors the first that does, if any."""
    if not isinstance(config, dict) or config.get("kv_connector") != "MultiConnector":
        return config
    for one in _connectors(config):
        if one.get("kv_connector") not in (NATIVE, "MultiConnector"):
            return {"kv_role": config.get("kv_role"), "engine_id": config.get("engine_id"), **one}
    return config


def _section(config: object) -> tuple[str, Mapping[str, Any]] | None:
    """The connector with a tier that a configuration names, and its extra keys."""
    if not isinstance(config, dict):
        return None
    connector = config.get("kv_connector")
    if connector == "MultiConnector":
        found = [_section(one) for one in _connectors(config)]
        return next((one for one in found if one is not None), None)
    extra = config.get("kv_connector_extra_config") or {}
    if not isinstance(extra, dict):
        raise ConfigError(f"{_FLAG}: kv_connector_extra_config: {shown(extra)} is not an object")
    # LMCache's multi-process connector does not look at the role; the other one's producer keeps
    # nothing.
    keeps = connector in (NATIVE, LMCACHE[1]) or (
        connector == LMCACHE[0] and _role(config) != "kv_producer"
    )
    return (str(connector), extra) if keeps else None


def _role(config: object) -> str:
    return str(config.get("kv_role", "kv_both")) if isinstance(config, dict) else "kv_both"


def _connectors(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    extra = config.get("kv_connector_extra_config") or {}
    listed = extra.get("connectors") if isinstance(extra, dict) else None
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise ConfigError(
            f"{_FLAG}: kv_connector_extra_config: connectors: {shown(listed)}; allowed: a list of "
            "such configurations"
        )
    return listed


def _checked(args: OffloadArgs) -> OffloadArgs:
    """Refuse values the engine would refuse, or that are not simulated."""
    extra, where = args.extra, f"{_FLAG}: kv_connector_extra_config"
    if args.connector != NATIVE:
        return args
    name = extra.get("spec_name", _SPECS[0])
    if name not in _SPECS:
        hint = nearest(str(name), _SPECS)
        raise ConfigError(
            f"{where}: spec_name: {shown(name)}{hint} is not simulated; allowed: {_SPECS[0]}"
        )
    policy = extra.get("eviction_policy", "lru")
    if policy not in POLICIES:
        allowed = ", ".join(POLICIES)
        raise ConfigError(f"{where}: eviction_policy: {shown(policy)}; allowed: {allowed}")
    if extra.get("block_size") is not None and extra.get("blocks_per_chunk") is not None:
        raise ConfigError(f"{where}: give only one of block_size and blocks_per_chunk")
    for key, least in (
        ("block_size", 1),
        ("blocks_per_chunk", 1),
        ("store_threshold", 0),
        ("max_tracker_size", 1),
    ):
        value = extra.get(key)
        if value is not None and (type(value) is not int or not least <= value <= _MOST):
            raise ConfigError(f"{where}: {key}: {shown(value)} is not a whole number >= {least}")
    return args


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def offload_spec(
    args: OffloadArgs | None, step: StepSpec, memory: MemoryPlan, block_size: int
) -> OffloadSpec | None:
    """The tier of an engine whose blocks hold `block_size` tokens. Raises ConfigError."""
    if args is None:
        return None
    if step.parallel.pp > 1:
        raise ConfigError(
            f"a tier under the KV cache of {step.parallel.pp} pipeline stages is not simulated; "
            "allowed: one of the two"
        )
    cpu = tiers(step.hardware)[0]
    ranks = step.parallel.gpus // step.parallel.dp
    load = LaneSpec(cpu.read_bytes_per_s, cpu.latency_s)
    store = LaneSpec(cpu.write_bytes_per_s, cpu.latency_s)
    extra = args.extra
    if args.receives:
        return _receiver(args, step, memory, block_size)
    if args.connector != NATIVE:
        per_chunk = _lmcache_blocks(extra, block_size)
        gib = _lmcache_number(extra, "lmcache.max_local_cpu_size", _LMCACHE_GIB)
        room = args.cpu_bytes or gib * _GIB * ranks
        return OffloadSpec(
            args.connector,
            int(room // (memory.bytes_per_block * per_chunk * ranks)),
            memory.bytes_per_block,
            load,
            store,
            blocks_per_chunk=per_chunk,
            offload_prompt_only=args.connector == LMCACHE[0]
            and not extra.get("lmcache.save_decode_cache", False),
            whole_prefix=True,
            blocking=args.connector == LMCACHE[0],
        )
    per_chunk = _native_blocks(extra, block_size)
    # Ranks that all hold the same keep one copy.
    copies = 1 if step.model.latent is not None else ranks
    chunk_bytes = memory.bytes_per_block * copies * per_chunk
    aligned = -(-chunk_bytes // _PAGE_BYTES) * _PAGE_BYTES
    return OffloadSpec(
        args.connector,
        int(args.cpu_bytes) // aligned,
        memory.bytes_per_block,
        load,
        store,
        blocks_per_chunk=per_chunk,
        eviction_policy=str(extra.get("eviction_policy", "lru")),
        store_threshold=int(extra.get("store_threshold", 0)),
        max_tracker_size=int(extra.get("max_tracker_size", 64_000)),
        offload_prompt_only=bool(extra.get("offload_prompt_only", True)),
    )


def _receiver(
    args: OffloadArgs, step: StepSpec, memory: MemoryPlan, block_size: int
) -> OffloadSpec:
    """The buffer into which LMCache's senders write; in GPU memory unless it is said otherwise.

    With `skip_last_n_tokens`, without which the proxy's added token hides the last chunk, that
    chunk counts as well: as far as it fills blocks here.
    """
    extra = args.extra
    per_chunk = _lmcache_blocks(extra, block_size)
    if _lmcache_number(extra, "skip_last_n_tokens", 0, least=0):
        per_chunk = 1
    room = _lmcache_number(extra, "lmcache.pd_buffer_size", _PD_BUFFER_BYTES)
    cpu = tiers(step.hardware)[0]
    # Copied from GPU memory to GPU memory: read once and written once.
    rate = step.hardware.hbm_bytes_per_s / 2
    if extra.get("lmcache.pd_buffer_device", "cuda") == "cpu":
        rate = cpu.read_bytes_per_s
    lane = LaneSpec(rate, cpu.latency_s)
    return OffloadSpec(
        args.connector,
        int(room // (memory.bytes_per_block * per_chunk)),
        memory.bytes_per_block,
        lane,
        lane,
        blocks_per_chunk=per_chunk,
        whole_prefix=True,
        blocking=True,
        stores=False,
    )


def _native_blocks(extra: Mapping[str, Any], block_size: int) -> int:
    tokens = extra.get("block_size")
    if tokens is None:
        return int(extra.get("blocks_per_chunk") or 1)
    if tokens % block_size:
        raise ConfigError(
            f"'block_size'={tokens} in kv_connector_extra_config must be a multiple of the GPU KV "
            f"cache block size ({block_size} tokens). Use {-(-tokens // block_size) * block_size} "
            "instead, or set 'blocks_per_chunk' to express the chunk size in blocks."
        )
    return int(tokens) // block_size


def _lmcache_blocks(extra: Mapping[str, Any], block_size: int) -> int:
    tokens = _lmcache_number(extra, "lmcache.chunk_size", _LMCACHE_CHUNK_TOKENS)
    if tokens < 1 or tokens % block_size:
        raise ConfigError(
            f"{_FLAG}: lmcache.chunk_size: {tokens:g} is not a multiple of the block size "
            f"({block_size} tokens)"
        )
    return int(tokens) // block_size


def _lmcache_number(
    extra: Mapping[str, Any], key: str, default: float, least: float = 1e-9
) -> float:
    value = extra.get(key, default)
    if not _is_number(value) or not least <= value <= _MOST:
        bound = "above 0" if least else "from 0 on"
        raise ConfigError(f"{_FLAG}: {key}: {shown(value)} is not a number {bound}")
    return float(value)
