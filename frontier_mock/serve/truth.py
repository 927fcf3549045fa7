"""GET /sim/truth: what is really the case in every engine, for those who check what others believe;
and GET /kv_event_sources: where vLLM says it publishes KV events.

A router learns loads from headers, metrics and events, each with its own delay. This is the engine
itself at the virtual present, all workers of the process at one instant, whichever port is asked.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.config.kv_events import KvEventsConfig
from frontier_mock.drive.driver import Driver
from frontier_mock.serve.answers import Answer, json_answer
from frontier_mock.serve.connection import Exchange
from frontier_mock.simtime import SimTime

if TYPE_CHECKING:
    from frontier_mock.serve.kv_events import KvEvents

Table = dict[tuple[str, str], Callable[[Exchange], Answer | None]]
"""Handlers by (method, path)."""


class TruthRoutes:
    """The route; one instance serves every port of a process."""

    def __init__(self, cluster: Cluster, driver: Driver, kv_events: "KvEvents | None") -> None:
        self._cluster = cluster
        self._driver = driver
        self._kv_events = kv_events

    def table(self) -> Table:
        """Handlers by (method, path)."""
        return {("GET", "/sim/truth"): self._truth}

    def _truth(self, exchange: Exchange) -> Answer:
        self._driver.catch_up()
        now_ns = self._cluster.now_ns
        hashes = exchange.request.query("hashes") in ("1", "true")
        engines = range(len(self._cluster.workers))
        workers = [self._engine(engine, now_ns, hashes=hashes) for engine in engines]
        return json_answer({"now_ns": now_ns, "workers": workers})

    def _engine(self, engine: int, now_ns: SimTime, *, hashes: bool) -> dict[str, object]:
        worker = self._cluster.workers[engine]
        spec = self._cluster.spec.workers[engine]
        gauges = worker.gauges(now_ns)
        truth: dict[str, object] = {
            "name": spec.name,
            "dp_rank": spec.dp_rank,
            "running": gauges.running,
            "waiting": gauges.waiting,
            "in_frontend": worker.in_frontend,
            "output_tokens_in_flight": self._driver.running_tokens(engine),
            "block_tokens": worker.spec.block_size,
            "num_blocks": gauges.num_blocks,
            "free_blocks": gauges.free_blocks,
            "cached_blocks": worker.kv.num_cached,
            "kv_usage": gauges.kv_usage,
            "query_tokens": gauges.query_tokens,
            "hit_tokens": gauges.hit_tokens,
            "preemptions": gauges.preemptions,
            "busy_ns": gauges.busy_ns,
        }
        if gauges.tiers:
            truth["tiers"] = [tier._asdict() for tier in gauges.tiers]
        publisher = None if self._kv_events is None else self._kv_events.publishers.get(engine)
        if publisher is not None:
            told: dict[str, object] = {
                "endpoints": publisher.endpoints,
                "batches": publisher.num_batches,
                "blocks": publisher.mapper.num_blocks,
            }
            if hashes:
                told["block_hashes"] = publisher.mapper.event_hashes()
            truth["kv_events"] = told
        return truth


class KvEventRoutes:
    """vLLM's own route: the resolved publisher of each data-parallel rank, {} without any."""

    def __init__(self, kv_events: "KvEvents | None", engines: Sequence[int]) -> None:
        self._kv_events = kv_events
        self._engines = engines

    def table(self) -> Table:
        """Handlers by (method, path)."""
        return {("GET", "/kv_event_sources"): self._sources}

    def _sources(self, exchange: Exchange) -> Answer:
        kv_events = self._kv_events
        sources = {} if kv_events is None else kv_events.sources(self._engines)
        return json_answer({rank: _shown(config) for rank, config in sources.items()})


def _shown(config: KvEventsConfig) -> dict[str, object]:
    """The fields that vLLM's own class has, in its order."""
    return {key: value for key, value in asdict(config).items() if key not in ("bind", "format")}
