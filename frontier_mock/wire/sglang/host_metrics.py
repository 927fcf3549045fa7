"""What /metrics shows of SGLang's host tier, and of storage behind it, where there is one.

Source: SGLang 0.5.23, observability/metrics_collector.py.
"""

from typing import Final

from frontier_mock.serving.tiers.stats import TierStats
from frontier_mock.wire.prometheus import Counter, Gauge, Labels

_REASONS: Final = (
    *("below_threshold", "host_capacity", "device_capacity", "device_covered"),
    *("storage_transfer", "deadline", "anchor_lost", "aux_window_trim", "device_overlap"),
    *("cache_admission_shortfall", "dropped"),
)
"""Why what storage has is not used; every one is shown from the start."""


class HostMetrics:
    """The families of a host tier, all labelled as the scheduler's."""

    def __init__(self, own: Labels) -> None:
        self._used = Gauge(
            "sglang:hicache_host_used_tokens",
            "Number of tokens currently used in the host KV cache.",
            [own],
        )
        self._total = Gauge(
            "sglang:hicache_host_total_tokens",
            "Total capacity of the host KV cache in tokens.",
            [own],
        )
        self._backup = Counter(
            "sglang:hicache_backup_bytes",
            "Bytes backed up from GPU to local host DRAM (L2), all pools combined.",
            [own],
            None,
        )
        self._load_back = Counter(
            "sglang:load_back_bytes",
            "Bytes loaded back from local host DRAM (L2) to GPU, all pools combined.",
            [own],
            None,
        )

    def render(self, stats: TierStats) -> str:
        """Their lines at present."""
        self._used.values[0] = stats.held_tokens
        self._total.values[0] = stats.capacity_tokens
        self._backup.values[0] = stats.store_bytes
        self._load_back.values[0] = stats.load_bytes
        families = (self._used, self._total, self._backup, self._load_back)
        return "".join([family.render() for family in families])


class StorageMetrics:
    """The counters of storage behind the host, which have labels of their own."""

    def __init__(self, backend: str, rank: int, extra: Labels) -> None:
        ranks = {"tp_rank": "0", "dp_rank": str(rank), "pp_rank": "0", "pp_size": "1"}
        only = {"attn_cp_rank": "0", "attn_cp_size": "1"}
        labels = [{"storage_backend": backend, **ranks, **only, **extra}]
        self._fetched = Counter(
            "sglang:prefetched_tokens",
            "Prompt tokens successfully transferred from L3 storage into host memory, before "
            "admission-time reuse or discard.",
            labels,
            None,
        )
        self._written = Counter(
            "sglang:backuped_tokens", "Number of backuped tokens.", labels, None
        )
        self._found = Counter(
            "sglang:storage_prefetch_hit_tokens",
            "Storage-hit tokens returned by an L3 query before host allocation, transfer, or "
            "cache insertion.",
            labels,
            None,
        )
        self._lost = Counter(
            "sglang:storage_prefetch_unfulfilled_tokens",
            "Attempt-level storage-hit tokens that did not become a usable prefetch result, by "
            "diagnostic reason.",
            [{**labels[0], "reason": reason} for reason in _REASONS],
            None,
        )

    def render(self, stats: TierStats) -> str:
        """Their lines at present."""
        self._fetched.values[0] = stats.fetched_tokens
        self._written.values[0] = stats.written_tokens
        self._found.values[0] = stats.found_tokens
        for reason, tokens in (stats.lost_tokens or {}).items():
            self._lost.values[_REASONS.index(reason)] = tokens
        families = (self._fetched, self._written, self._found, self._lost)
        return "".join([family.render() for family in families])
