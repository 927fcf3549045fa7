"""One worker's /metrics: the fold over its events, and what only a running server can add."""

from collections.abc import Callable, Sequence

from frontier_mock.core.events import Event, Finished
from frontier_mock.report.itl import inter_token_gaps
from frontier_mock.serving.drafted_worker import DraftedWorker
from frontier_mock.serving.worker import Worker
from frontier_mock.simtime import SimTime
from frontier_mock.wire.draft_metrics import DraftMetrics
from frontier_mock.wire.nixl_metrics import NixlMetrics
from frontier_mock.wire.prometheus import merged
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.vllm_metrics import VllmMetrics
from frontier_mock.wire.vllm_old_metrics import OldNames

_FINISHED_BATCH = 1024
"""Finished sequences whose inter-token latencies are folded in one vectorised go."""


class WorkerMetrics:
    """Folds events as the Driver dispatches them; renders on demand."""

    __slots__ = ("_drafts", "_finished", "_fold", "_metrics", "_nixl", "_old_names", "_worker")

    def __init__(
        self, worker: Worker, served: ServedModel, created_s: float, rank: int = 0
    ) -> None:
        """`created_s` is the unix time of the server's start, `rank` the "engine" label."""
        spec = worker.spec
        cache_config = {
            "block_size": str(spec.block_size),
            "enable_prefix_caching": str(spec.enable_prefix_caching),
            "num_gpu_blocks": str(spec.num_blocks),
        }
        self._metrics = VllmMetrics(
            served.names[0], served.max_model_len, created_s, rank, cache_config
        )
        labels = {"model_name": served.names[0], "engine": str(rank)}
        self._nixl: NixlMetrics | None = None
        if served.kv is not None and served.kv.connector.startswith("Nixl"):
            self._nixl = NixlMetrics(labels, created_s, served.kv.descriptor_bytes)
        self._drafts: DraftMetrics | None = None
        if spec.speculation is not None:
            self._drafts = DraftMetrics(labels, created_s, spec.speculation.num_drafts)
        self._old_names = OldNames(labels, created_s) if served.old_metric_names else None
        self._fold = self._metrics.fold
        self._worker = worker
        self._finished: list[Finished] = []

    @property
    def index(self) -> int:
        """The engine's place in the cluster."""
        return self._worker.index

    def fold(self, event: Event) -> None:
        """Take one event of this worker into account."""
        self._fold(event)
        if self._nixl is not None:
            self._nixl.fold(event)
        if self._drafts is not None:
            self._drafts.fold(event)
        if isinstance(event, Finished):
            self._finished.append(event)
            if len(self._finished) >= _FINISHED_BATCH:
                self._fold_gaps()

    def request(self, rids: Sequence[int]) -> None:
        """These sequences are the choices of one request."""
        self._metrics.request(rids)

    def sleep(self, level: int | None) -> None:
        """The engine sleeps at this level, or is awake (None)."""
        self._metrics.sleep(level)

    def settle(self) -> None:
        """Look at the timeline now for everything that has finished: it may be trimmed."""
        self._fold_gaps()

    def render(self, now: SimTime, running_tokens: int) -> bytes:
        """The exposition at `now`; `running_tokens` were produced by unfinished sequences."""
        self._fold_gaps()
        gauges = self._worker.gauges(now)
        text = self._metrics.render(gauges, running_tokens=running_tokens)
        if self._drafts is not None and isinstance(self._worker, DraftedWorker):
            text = self._drafts.render(self._worker.drafts_at(now)) + text
        if self._nixl is not None:
            text += self._nixl.render()
        return text if self._old_names is None else text + self._old_names.render(gauges)

    def _fold_gaps(self) -> None:
        if not self._finished:
            return
        timeline = self._worker.timeline
        # Spans are of this worker alone; the others' places in the list are never looked at.
        gaps = inter_token_gaps(self._finished, [timeline] * (self._worker.index + 1))
        self._finished.clear()
        if len(gaps.values_ns):
            self._metrics.fold_itl(gaps.values_ns, gaps.weights)


class ServerMetrics:
    """The /metrics of one port: those of each of its engines, as children of the same families."""

    __slots__ = ("_engines", "_running_tokens")

    def __init__(
        self, engines: Sequence[WorkerMetrics], running_tokens: Sequence[Callable[[], int]]
    ) -> None:
        """`running_tokens[i]()` are the output tokens of the i-th engine's unfinished sequences."""
        self._engines = engines
        self._running_tokens = running_tokens

    @property
    def engines(self) -> range:
        """The places of its engines in the cluster."""
        return range(self._engines[0].index, self._engines[-1].index + 1)

    def sleep(self, level: int | None) -> None:
        """All of them sleep at this level, or are awake (None)."""
        for engine in self._engines:
            engine.sleep(level)

    def render(self, now: SimTime) -> bytes:
        """The exposition at `now`."""
        pairs = zip(self._engines, self._running_tokens, strict=True)
        return merged([engine.render(now, tokens()).decode() for engine, tokens in pairs]).encode()
