"""One SGLang worker's books and /metrics: the folds over its events, rendered on demand."""

import os
from collections.abc import Sequence

from frontier_mock.core.events import Drafted, Event, Finished
from frontier_mock.drive.driver import Driver
from frontier_mock.report.itl import inter_token_gaps, spread_gaps
from frontier_mock.serving.drafted_worker import DraftedWorker
from frontier_mock.serving.radix_cache import RadixCache
from frontier_mock.serving.worker import Worker
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.info import RankLoad
from frontier_mock.wire.sglang.load import LoadFold
from frontier_mock.wire.sglang.metrics import PoolState, SglangMetrics
from frontier_mock.wire.sglang.plan import front_of

_FINISHED_BATCH = 1024
"""Finished sequences whose inter-token latencies are folded in one vectorised go."""


class SglangWorkerMetrics:
    """Folds events as the Driver dispatches them (`drive.protocol.Folder`).

    Without --enable-metrics only the books behind /v1/loads are kept.
    """

    __slots__ = ("_books", "_bursts", "_finished", "_metrics", "_worker", "fold")

    def __init__(
        self, worker: Worker, served: ServedModel, created_s: float, rank: int = 0
    ) -> None:
        """`created_s` is the unix time at which the server started, `rank` its place in it."""
        front = front_of(served)
        self._worker = worker
        self._books = LoadFold()
        self._finished: list[Finished] = []
        self._bursts: dict[int, bytes] = {}
        self._metrics: SglangMetrics | None = None
        self.fold = self._books.fold
        if front.enable_metrics:
            self._metrics = SglangMetrics(served.names[0], front, rank, os.getpid())
            self.fold = self._fold_both

    def _fold_both(self, event: Event) -> None:
        metrics = self._metrics
        assert metrics is not None
        self._books.fold(event)
        metrics.fold(event)
        if isinstance(event, Drafted):
            self._bursts[event.rid] = event.bursts
        elif isinstance(event, Finished):
            self._finished.append(event)
            if len(self._finished) >= _FINISHED_BATCH:
                self.settle()

    def request(self, rids: Sequence[int]) -> None:
        """Choices are requests of their own in SGLang."""

    def streams(self, rids: Sequence[int]) -> None:
        """The answers to these sequences are streamed."""
        if self._metrics is not None:
            self._metrics.streams(rids)

    def settle(self) -> None:
        """Look at the timeline now for everything that has finished: it may be trimmed."""
        if not self._finished or self._metrics is None:
            return
        timeline = self._worker.timeline
        if self._bursts:
            gaps = spread_gaps(self._finished, self._bursts, timeline)
            self._bursts.clear()
        else:
            gaps = inter_token_gaps(self._finished, [timeline] * (self._worker.index + 1))
        self._finished.clear()
        if len(gaps.values_ns):
            self._metrics.fold_itl(gaps.values_ns, gaps.weights)

    def loads_took(self, duration_s: float) -> None:
        """/v1/loads was answered."""
        if self._metrics is not None:
            self._metrics.loads_took(duration_s)

    def waiting_tokens(self) -> int:
        """Tokens of the prompts that wait, as far as events have told."""
        return self._books.waiting_tokens

    def load(self, driver: Driver) -> RankLoad:
        """The worker's load now."""
        return self._load(driver, self._running_tokens(driver), self._drafts(driver))

    def _load(
        self, driver: Driver, running_tokens: int, live: Sequence[tuple[int, ...]]
    ) -> RankLoad:
        now = driver.engine.now_ns
        return self._books.load(self._worker.gauges(now), now, running_tokens, live)

    def _drafts(self, driver: Driver) -> list[tuple[int, ...]]:
        """What became of the drafts of unfinished sequences."""
        if not isinstance(self._worker, DraftedWorker):
            return []
        return [steps for steps, _ in self._worker.drafts_at(driver.engine.now_ns)]

    def render(self, driver: Driver, aborts: int) -> str:
        """The exposition now; empty without --enable-metrics."""
        metrics = self._metrics
        if metrics is None:
            return ""
        self.settle()
        running, live = self._running_tokens(driver), self._drafts(driver)
        if isinstance(self._worker, DraftedWorker):
            metrics.verified(live)
        load = self._load(driver, running, live)
        context = self._books.running_prompt_tokens + running
        return metrics.render(load, self._pool(context), running, aborts).decode()

    def _running_tokens(self, driver: Driver) -> int:
        return driver.running_tokens(self._worker.index)

    def _pool(self, context_tokens: int) -> PoolState:
        cache = self._worker.kv
        if isinstance(cache, RadixCache):
            return PoolState(cache.num_available, cache.num_evictable, context_tokens)
        return PoolState(cache.num_free, 0, context_tokens)
