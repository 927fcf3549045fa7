"""Metrics under the names that vLLM gave up, for routers that still scrape them.

`gpu_cache_usage_perc` and `gpu_prefix_cache_*` are vLLM's of the V0 and early V1 engines;
production-stack of 2026-08-05 reads nothing newer (specs/sglang_and_routers.md section 7c).
"""

from frontier_mock.serving.gauges import Gauges
from frontier_mock.wire.prometheus import Counter, Gauge, Labels


class OldNames:
    """The old families of one engine."""

    def __init__(self, labels: Labels, created_s: float) -> None:
        """`labels` are those of the engine's other families."""
        own = [labels]
        self._usage = Gauge(
            "vllm:gpu_cache_usage_perc", "GPU KV-cache usage. 1 means 100 percent usage.", own
        )
        self._rate = Gauge(
            "vllm:gpu_prefix_cache_hit_rate", "GPU prefix cache block hit rate.", own
        )
        self._queries = Counter(
            "vllm:gpu_prefix_cache_queries",
            "GPU prefix cache queries, in terms of number of queried tokens.",
            own,
            created_s,
        )
        self._hits = Counter(
            "vllm:gpu_prefix_cache_hits",
            "GPU prefix cache hits, in terms of number of cached tokens.",
            own,
            created_s,
        )

    def render(self, gauges: Gauges) -> bytes:
        """The families' lines."""
        queries, hits = gauges.query_tokens, gauges.hit_tokens
        self._usage.values[0] = gauges.kv_usage
        self._rate.values[0] = hits / queries if queries else 0.0
        self._queries.values[0] = queries
        self._hits.values[0] = hits
        families = (self._usage, self._rate, self._queries, self._hits)
        return "".join([family.render() for family in families]).encode()
