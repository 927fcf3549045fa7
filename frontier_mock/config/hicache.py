"""SGLang's host tier as users write it: `--enable-hierarchical-cache` and `--hicache-*`.

Sizes and thresholds are those of SGLang 0.5.23 (mem_cache/pool_host/base.py and
unified_radix_cache.py).
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from frontier_mock.config.document import plain, read_document
from frontier_mock.config.errors import ConfigError, shown
from frontier_mock.cost.memory import MemoryPlan
from frontier_mock.cost.offload import tiers
from frontier_mock.cost.specs import StepSpec
from frontier_mock.serving.tiers.specs import HostTierSpec, LaneSpec, StorageSpec

WRITE_POLICIES: Final = ("write_through", "write_through_selective")
"""Values of --hicache-write-policy that are simulated."""

_THRESHOLDS: Final = {"write_through": 1, "write_through_selective": 2}

_RATIO: Final = 2.0
"""Host tokens for each on the GPU, where nothing is given."""

_GB: Final = 1e9


STORAGE_CLASSES: Final[Mapping[str, str]] = {
    "file": "HiCacheFile",
    "sim": "SimHiCacheStorage",
    "mooncake": "MooncakeStore",
    "npu_memcache": "NpuMemcacheStore",
    "hf3fs": "HiCacheHF3FS",
    "nixl": "HiCacheNixl",
    "aibrix": "AibrixKVCacheStorage",
    "eic": "EICStorage",
    "simm": "HiCacheSiMM",
    "mori": "UMBPStore",
    "shm": "HiCacheShm",
    "tensorcast": "TensorcastStore",
    "seaweedfs": "SeaweedFSStore",
}
"""Values of --hicache-storage-backend that are simulated, and what answers call them."""

_LOCAL: Final = ("file", "shm", "sim")
"""Those that a server has for itself; the others are shared by all that name them."""

_EXTRA: Final = "argument --hicache-storage-backend-extra-config"

_GB_BINARY: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class StorageArgs:
    """What the flags say of storage behind the host; `where` tells apart pools of one kind."""

    backend: str
    policy: str
    where: str
    extra: Mapping[str, Any]


def storage_args(
    backend: str, policy: str, extra_config: str | None, path: str | None, server: str
) -> StorageArgs:
    """Check the flags; `extra_config` is JSON or, after "@", a file. Raises ConfigError."""
    extra = _extra(extra_config)
    tag = path or extra.get("file_storage_path")
    if backend in _LOCAL:
        where = server if tag is None or backend != "file" else str(tag)
    else:
        where = str(extra.get("extra_backend_tag") or "")
    return StorageArgs(backend, policy, where, extra)


def _extra(text: str | None) -> Mapping[str, Any]:
    if not text:
        return {}
    if text.startswith("@"):
        value = _read(text[1:])
    else:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise ConfigError(f"{_EXTRA}: {shown(text)} is not JSON") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{_EXTRA}: {shown(text)} is not an object")
    threshold = value.get("prefetch_threshold", 256)
    if type(threshold) is not int or threshold < 0:
        raise ConfigError(
            f"{_EXTRA}: prefetch_threshold: {shown(threshold)} is not a whole number >= 0"
        )
    for key in ("prefetch_timeout_base", "prefetch_timeout_per_ki_token"):
        given = value.get(key, 0)
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= 1e6:
            raise ConfigError(f"{_EXTRA}: {key}: {shown(given)} is not a number of seconds")
    return value


def _read(path: str) -> object:
    kinds = (".json", ".toml", ".yaml", ".yml")
    if not path.endswith(kinds):
        raise ConfigError(f"{_EXTRA}: {shown(path)}; allowed: a file of {', '.join(kinds)}")
    try:
        text = Path(path).read_text(encoding="utf-8")
        return tomllib.loads(text) if path.endswith(".toml") else plain(read_document(text, path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{_EXTRA}: cannot read {shown(path)}: {error}") from None


def storage_spec(
    args: StorageArgs, step: StepSpec, memory: MemoryPlan, page_size: int
) -> StorageSpec:
    """Storage behind the host tier of an engine. Raises ConfigError.

    Files are on the GPU's own drive; what servers share is behind the NIC. Mooncake keeps what
    the engines lend it, `global_segment_size` each (4 GiB unless said), or has, with 0, room of
    its own.
    """
    name = "ssd" if args.backend == "file" else "cpu" if args.backend in _LOCAL else "pool"
    by_name = {tier.name: tier for tier in tiers(step.hardware)}
    tier = by_name.get(name, by_name["ssd"])
    extra, tp = args.extra, step.parallel.tp
    pages = 0
    if args.backend == "mooncake":
        held = memory.bytes_per_block * (1 if step.model.latent is not None else tp)
        pages = -(-_segment_bytes(extra.get("global_segment_size", "4gb")) // held)
    return StorageSpec(
        args.backend,
        f"{args.backend}|{args.where}|{step.model.name}|tp{tp}|{page_size}",
        LaneSpec(tier.read_bytes_per_s, tier.latency_s),
        LaneSpec(tier.write_bytes_per_s, tier.latency_s),
        args.policy,
        max(extra.get("prefetch_threshold", 256), page_size),
        extra.get("prefetch_timeout_base", 1.0),
        extra.get("prefetch_timeout_per_ki_token", 0.25) * page_size / 1024,
        pages,
    )


def _segment_bytes(value: object) -> int:
    """`global_segment_size` as Mooncake's store reads it: bytes, or "4gb"."""
    text = str(value).strip().lower()
    number, factor = (text[:-2].strip(), _GB_BINARY) if text.endswith("gb") else (text, 1)
    if not number.isascii() or not number.isdecimal():
        raise ConfigError(
            f"{_EXTRA}: global_segment_size: {shown(value)}; allowed: bytes, or such as 4gb"
        )
    return int(number) * factor


def host_tier(
    ratio: float | None,
    size_gb: int,
    policy: str,
    step: StepSpec,
    memory: MemoryPlan,
    storage: StorageSpec | None = None,
) -> HostTierSpec:
    """The host tier of an engine; `size_gb`, of each rank, goes before `ratio`.

    Raises ConfigError for one that is no larger than the GPU's cache, as SGLang does.
    """
    if size_gb:
        pages = int(size_gb * _GB // memory.bytes_per_block)
    else:
        pages = int(memory.num_blocks * (_RATIO if ratio is None else ratio))
    if pages <= memory.num_blocks:
        raise ConfigError(
            f"hicache: a host tier of {pages} pages is no larger than the {memory.num_blocks} on "
            "the GPU; raise --hicache-ratio or --hicache-size"
        )
    cpu = tiers(step.hardware)[0]
    return HostTierSpec(
        pages,
        memory.bytes_per_block,
        LaneSpec(cpu.read_bytes_per_s, cpu.latency_s),
        LaneSpec(cpu.write_bytes_per_s, cpu.latency_s),
        step.model.num_layers,
        _THRESHOLDS[policy],
        storage,
    )
