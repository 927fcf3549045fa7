"""What an engine writes to its log while it serves, in its own words: batches, statistics, access.

Only under --sim-engine-logs. A worker's place for a step log is taken by a sink that is told of
every run of steps as it begins, so nothing is looked at step by step; the lines of a run are made
when the next one begins, or when somebody looks (`EngineLog.catch_up`). Times, rates included, are
virtual; a line's date is the server's start plus them.

Formats: SGLang 0.5.23 managers/scheduler_components/metrics_reporter.py, vLLM 0.33
v1/metrics/loggers.py, uvicorn's AccessFormatter.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Protocol
from urllib.parse import quote

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.drive.driver import Driver
from frontier_mock.drive.virtual_loop import VirtualTimeLoop
from frontier_mock.serve.http1 import Request
from frontier_mock.serve.settings import LogSettings
from frontier_mock.serve.sglang_metrics import SglangWorkerMetrics
from frontier_mock.serve.worker_metrics import WorkerMetrics
from frontier_mock.serving.step_log import StepRun
from frontier_mock.serving.worker import Worker
from frontier_mock.simtime import NS_PER_S, SimTime, from_seconds
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.request import Ended, SglangRequest
from frontier_mock.wire.sglang.request_log import RequestLines

logger = logging.getLogger("frontier_mock.engine")

Write = Callable[[SimTime, str], None]
"""Writes a line that belongs to an instant."""

_LOOK_S = 1.0

_RECENT_REQUESTS = 1000
"""How many requests vLLM's hit rate looks back on (v1/metrics/stats.py CachingMetrics)."""


class EngineLog(Protocol):
    """The log of one engine."""

    def begin(self, run: StepRun) -> None:
        """A run of steps begins, and the one before it is over."""
        ...

    def catch_up(self, now_ns: SimTime) -> None:
        """Write what there is to say up to now."""
        ...


class Sink(list[StepRun]):
    """Takes the place of a worker's step log; keeps nothing, and tells of each run."""

    def __init__(self, log: EngineLog) -> None:
        super().__init__()
        self._log = log

    def append(self, run: StepRun) -> None:
        """A run begins."""
        self._log.begin(run)


class SglangBatches:
    """SGLang's lines: one per prefill batch, one every so many decode steps."""

    def __init__(
        self, worker: Worker, settings: LogSettings, pending: Callable[[], int], write: Write
    ) -> None:
        """`pending` are tokens of prompts that wait."""
        self._worker = worker
        self._interval = settings.interval
        self._largest_graph = settings.largest_graph
        self._pending = pending
        self._write = write
        self._run: StepRun | None = None
        self._used = 0
        self._told = 0
        self._ticks = 0
        self._tokens = 0
        self._decode_ns: SimTime = 0
        self._prefill_ns: SimTime = 0
        self._hits = 0
        self._queued = 0

    def begin(self, run: StepRun) -> None:
        """As the protocol's."""
        self._decodes(run.first_step - 1)
        kv, scheduler = self._worker.kv, self._worker.scheduler
        self._used = (kv.num_blocks - kv.num_free) * self._worker.spec.block_size
        self._queued = scheduler.num_waiting
        self._run, self._told = run, run.first_step - 1
        if run.batch.chunks:
            self._prefill(run)

    def catch_up(self, now_ns: SimTime) -> None:
        """As the protocol's."""
        self._decodes(self._worker.step_ended_by(now_ns))

    def _prefill(self, run: StepRun) -> None:
        scheduler = self._worker.scheduler
        new = sum(chunk.new for chunk in run.batch.chunks)
        gap_ns = run.t_ns - self._prefill_ns
        rate = new * NS_PER_S / gap_ns if gap_ns > 0 else 0.0
        hits, self._hits = scheduler.hit_tokens - self._hits, scheduler.hit_tokens
        self._prefill_ns = run.t_ns
        # SGLang's running batch gets these sequences when their prompts are computed.
        running = max(0, len(scheduler.running) - len(run.batch.chunks))
        self._write(
            run.t_ns,
            f"Prefill batch, #new-seq: {len(run.batch.chunks)}, #new-token: {new}, "
            f"#cached-token: {hits}, token usage: {self._share(self._used):.2f}, "
            f"#running-req: {running}, #queue-req: {self._queued}, "
            f"#pending-token: {self._pending()}, cuda graph: False, "
            f"input throughput (token/s): {rate:.2f}",
        )

    def _decodes(self, last: int) -> None:
        """Lines of the present run up to step `last`."""
        run = self._run
        # A batch with prompts in it is no decode batch to SGLang.
        if run is None or run.pause_end_ns or run.batch.chunks or not run.batch.num_decodes:
            return
        n = run.batch.num_decodes
        while self._told < last:
            ahead = min(last - self._told, self._interval - self._ticks % self._interval)
            self._told += ahead
            self._ticks += ahead
            self._tokens += n * ahead
            if self._ticks % self._interval == 0:
                self._decode(n, self._used + n * (self._told - run.first_step + 1))

    def _decode(self, n: int, used: int) -> None:
        t_ns = self._worker.timeline.boundary_ns(self._told)
        gap_ns = t_ns - self._decode_ns
        rate = self._tokens * NS_PER_S / gap_ns if gap_ns > 0 else 0.0
        self._decode_ns, self._tokens = t_ns, 0
        self._write(
            t_ns,
            f"Decode batch, #running-req: {n}, #token: {used}, "
            f"token usage: {self._share(used):.2f}, cuda graph: {n <= self._largest_graph}, "
            f"gen throughput (token/s): {rate:.2f}, #queue-req: {self._queued}",
        )

    def _share(self, used: int) -> float:
        return used / max(1, self._worker.kv.num_blocks * self._worker.spec.block_size)


class VllmStats:
    """vLLM's line of averages, every so many virtual seconds in which something happened."""

    def __init__(self, worker: Worker, rank: int, settings: LogSettings, write: Write) -> None:
        self._worker = worker
        self._rank = rank
        self._interval_ns = from_seconds(settings.stats_s)
        self._write = write
        self._due_ns = self._interval_ns
        self._run: StepRun | None = None
        self._told = 0
        self._new = 0
        self._computed = 0
        self._generated = 0
        self._last = (0.0, 0.0)
        self._preemptions = 0
        self._state = (0, 0, 0.0)
        self._counted = (0, 0)
        self._recent: deque[tuple[int, int]] = deque(maxlen=_RECENT_REQUESTS)

    def begin(self, run: StepRun) -> None:
        """As the protocol's."""
        self._pass(run.t_ns, run.first_step - 1, over=True)
        kv, scheduler = self._worker.kv, self._worker.scheduler
        self._state = (
            len(scheduler.running),
            scheduler.num_waiting,
            1 - kv.num_free / kv.num_blocks,
        )
        counted = (scheduler.query_tokens, scheduler.hit_tokens)
        if counted != self._counted:
            asked, hit = (now - before for now, before in zip(counted, self._counted, strict=True))
            self._recent.append((asked, hit))
            self._counted = counted
        self._run, self._told = run, run.first_step - 1
        self._new = sum(chunk.new for chunk in run.batch.chunks)

    def catch_up(self, now_ns: SimTime) -> None:
        """As the protocol's."""
        over = self._worker.executing is None
        self._pass(now_ns, self._worker.step_ended_by(now_ns), over=over)

    def _pass(self, now_ns: SimTime, last: int, *, over: bool) -> None:
        """Time passes until `now_ns`. Step `last` has ended by then; `over`: the run with it."""
        while self._due_ns <= now_ns:
            self._count(self._ended_by(self._due_ns, last))
            waits = self._worker.executing is None or self._due_ns < now_ns
            idle = over and waits and self._told >= last
            self._line(idle)
            self._due_ns += self._interval_ns
            if not any((*self._last, self._generated, self._computed)) and self._told >= last:
                # Nobody hears of an engine that is idle: go straight to the last time before now.
                skipped = (now_ns - self._due_ns) // self._interval_ns
                self._due_ns += max(0, skipped) * self._interval_ns
        self._count(last)

    def _ended_by(self, t_ns: SimTime, last: int) -> int:
        """The last step of the present run, `last` at most, that had ended at `t_ns`."""
        low, high = self._told, last
        timeline = self._worker.timeline
        while low < high:
            middle = (low + high + 1) // 2
            if timeline.boundary_ns(middle) <= t_ns:
                low = middle
            else:
                high = middle - 1
        return low

    def _count(self, last: int) -> None:
        run = self._run
        if run is None:
            return
        if self._new and (run.pause_end_ns or last > self._told):
            # Prompts end with the step that computes them; each of them has its first token then.
            self._computed += self._new
            self._generated += len(run.batch.chunks)
            self._new = 0
        if last > self._told:
            self._generated += run.batch.num_decodes * (last - self._told)
            self._told = last

    def _line(self, idle: bool) -> None:
        """The line that is due; `idle`: nothing is executing then."""
        interval_s = self._interval_ns / NS_PER_S
        rates = (self._computed / interval_s, self._generated / interval_s)
        quiet = not any((*rates, *self._last))
        self._last, self._computed, self._generated = rates, 0, 0
        if quiet:
            return
        running, waiting, usage = self._state
        if idle:
            running = 0
        parts = [
            f"Avg prompt throughput: {rates[0]:.1f} tokens/s",
            f"Avg generation throughput: {rates[1]:.1f} tokens/s",
            f"Running: {running} reqs",
            f"Waiting: {waiting} reqs",
        ]
        preemptions = self._worker.scheduler.preemptions - self._preemptions
        self._preemptions += preemptions
        if preemptions:
            parts.append(f"Preemptions: {preemptions}")
        parts.append(f"GPU KV cache usage: {usage * 100:.1f}%")
        asked = sum(one[0] for one in self._recent)
        if asked:
            hit = sum(one[1] for one in self._recent)
            parts.append(f"Prefix cache hit rate: {hit / asked * 100:.1f}%")
        self._write(self._due_ns, f"Engine {self._rank:03d}: {', '.join(parts)}")


class Writer:
    """Lines with the date that virtual time makes of the server's start."""

    def __init__(self) -> None:
        self._start_s = time.time()

    def sglang(self, prefix: str) -> Write:
        """As SGLang's processes write them; `prefix` tells its ranks apart."""

        def write(t_ns: SimTime, text: str) -> None:
            logger.info("[%s%s] %s", self._date(t_ns, "%Y-%m-%d %H:%M:%S"), prefix, text)

        return write

    def vllm(self, t_ns: SimTime, text: str) -> None:
        """As vLLM's API server writes them."""
        logger.info("INFO %s [loggers.py:336] %s", self._date(t_ns, "%m-%d %H:%M:%S"), text)

    def requests(self, settings: LogSettings, now_ns: Callable[[], SimTime]) -> "RequestLog":
        """SGLang's request logger."""
        lines = RequestLines(settings.requests, as_json=settings.requests_as_json)

        def stamp() -> str:
            return self._date(now_ns(), "%Y-%m-%dT%H:%M:%S")

        return RequestLog(lines, self.sglang(""), stamp, now_ns)

    def access(self, settings: LogSettings, now_ns: Callable[[], SimTime]) -> "Access":
        """Who writes a line for each answer."""

        def write(peer: str, request: Request, status: int) -> None:
            path = request.path
            if settings.excluded and path.startswith(settings.excluded):
                return
            query = f"?{request.query_string}" if request.query_string else ""
            line = (
                f'INFO:     {peer} - "{request.method} {quote(path)}{query} '
                f'HTTP/1.{request.minor}" {status} {HTTPStatus(status).phrase}'
            )
            if settings.sglang:
                line = f"[{self._date(now_ns(), '%Y-%m-%d %H:%M:%S')}] {line}"
            logger.info("%s", line)

        return write

    def _date(self, t_ns: SimTime, shape: str) -> str:
        return time.strftime(shape, time.localtime(self._start_s + t_ns / NS_PER_S))


class RequestLog:
    """Writes a line when a request comes, and one when each of its sequences is over."""

    def __init__(
        self,
        lines: RequestLines,
        write: Write,
        stamp: Callable[[], str],
        now_ns: Callable[[], SimTime],
    ) -> None:
        self._lines = lines
        self._write = write
        self._stamp = stamp
        self._now_ns = now_ns

    def received(self, request: SglangRequest, body: bytes) -> None:
        """A request is taken in."""
        for line in self._lines.received(request, body, self._stamp()):
            self._write(self._now_ns(), line)

    def finished(self, request: SglangRequest, body: bytes, ended: Ended) -> None:
        """A sequence is over."""
        self._write(self._now_ns(), self._lines.finished(request, body, ended, self._stamp()))


Access = Callable[[str, Request, int], None]
"""Told who asked what, and which status the answer has."""


class EngineLogs:
    """The logs of all servers of a process."""

    def __init__(
        self,
        cluster: Cluster,
        driver: Driver,
        settings: Sequence[LogSettings | None],
        served: Sequence[ServedModel],
        folds: Sequence[WorkerMetrics | SglangWorkerMetrics],
    ) -> None:
        """`settings` and `served` are those of the servers, `folds` those of all engines.

        To be made before anything is executed.
        """
        self._driver = driver
        self._settings = settings
        self._writer = Writer()
        self._logs: list[EngineLog] = []
        self._timer: asyncio.TimerHandle | None = None
        for server, wanted, model in zip(cluster.servers, settings, served, strict=False):
            if wanted is None or not wanted.batches:
                continue
            for rank, index in enumerate(server):
                worker = cluster.workers[index]
                if worker.step_log is None:
                    log = self._log(worker, rank, wanted, model, folds[index])
                    self._logs.append(log)
                    worker.step_log = Sink(log)

    def _log(
        self,
        worker: Worker,
        rank: int,
        settings: LogSettings,
        model: ServedModel,
        fold: WorkerMetrics | SglangWorkerMetrics,
    ) -> EngineLog:
        front = model.sglang
        if front is None or not isinstance(fold, SglangWorkerMetrics):
            return VllmStats(worker, rank, settings, self._writer.vllm)
        prefix = f" DP{rank}" if front.num_dp_ranks > 1 else ""
        if front.server_args.get("tp_size", 1) != 1:
            prefix += " TP0"
        write = self._writer.sglang(prefix)
        return SglangBatches(worker, settings, fold.waiting_tokens, write)

    def access(self, server: int) -> Access | None:
        """Who is told of the answers of one server, None if nobody wants to know."""
        wanted = self._settings[server] if server < len(self._settings) else None
        if wanted is None or not wanted.access:
            return None
        return self._writer.access(wanted, self._driver.now_ns)

    def requests(self, server: int) -> RequestLog | None:
        """Who is told of one SGLang server's requests, None without --log-requests."""
        wanted = self._settings[server] if server < len(self._settings) else None
        if wanted is None or wanted.requests < 0:
            return None
        return self._writer.requests(wanted, self._driver.now_ns)

    def start(self) -> None:
        """From now on look every real second for lines that nothing has set off."""
        loop = asyncio.get_running_loop()
        if self._logs and not isinstance(loop, VirtualTimeLoop):
            self._timer = loop.call_later(_LOOK_S, self._look)

    def stop(self) -> None:
        """Write what is left."""
        if self._timer is not None:
            self._timer.cancel()
        self._catch_up()

    def _look(self) -> None:
        self._catch_up()
        self.start()

    def _catch_up(self) -> None:
        for log in self._logs:
            log.catch_up(self._driver.engine.now_ns)
