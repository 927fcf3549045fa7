"""One SGLang worker's books and /metrics: the folds over its events, rendered on demand."""

from collections.abc import Sequence

from frontier_mock.drive.driver import Driver
from frontier_mock.serving.worker import Worker
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.info import RankLoad
from frontier_mock.wire.sglang.load import LoadFold


class SglangWorkerMetrics:
    """Folds events as the Driver dispatches them (`drive.protocol.Folder`)."""

    def __init__(
        self, worker: Worker, served: ServedModel, created_s: float, rank: int = 0
    ) -> None:
        """`created_s` is the unix time at which the server started, `rank` its place in it."""
        self._worker = worker
        self._books = LoadFold()
        self.fold = self._books.fold

    def request(self, rids: Sequence[int]) -> None:
        """Choices are requests of their own in SGLang."""

    def settle(self) -> None:
        """Nothing is kept that looks at the timeline."""

    def load(self, driver: Driver) -> RankLoad:
        """The worker's load now."""
        now = driver.engine.now_ns
        running = driver.running_tokens(self._worker.index)
        return self._books.load(self._worker.gauges(now), now, running)

    def render_now(self, driver: Driver) -> bytes:
        """The exposition now."""
        return b""
