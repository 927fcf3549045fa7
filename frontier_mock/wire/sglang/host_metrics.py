"""What /metrics shows of SGLang's host tier: only where there is one (`metrics_collector.py`)."""

from frontier_mock.serving.tiers.stats import TierStats
from frontier_mock.wire.prometheus import Counter, Gauge, Labels


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
