"""Every worker of a cluster on its own port: one process, one clock, one Driver."""

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from frontier_mock.cluster.build import build_cluster
from frontier_mock.cluster.cluster import Cluster
from frontier_mock.cluster.observed import KvBatch
from frontier_mock.config.errors import ConfigError
from frontier_mock.core.events import Event
from frontier_mock.drive.driver import Driver
from frontier_mock.drive.event_loop import new_event_loop
from frontier_mock.drive.protocol import Folder
from frontier_mock.drive.virtual_loop import VirtualTimeLoop
from frontier_mock.report.roles import StationBook
from frontier_mock.report.summary import report_cluster
from frontier_mock.report.worker_digests import WorkerDigests, by_name, by_role
from frontier_mock.serve.bootstrap import (
    BootstrapServer,
)
from frontier_mock.serve.clock_routes import ClockRoutes
from frontier_mock.serve.connection import Http1Server
from frontier_mock.serve.engine_logs import EngineLogs
from frontier_mock.serve.engine_logs import logger as engine_logger
from frontier_mock.serve.follow import FollowedClock, Follower
from frontier_mock.serve.grpc_settings import open_ports
from frontier_mock.serve.halves import Halves
from frontier_mock.serve.opening import (
    bind_all,
    bootstrap_server,
    grpc_clock,
    kv_publishers,
    open_journal,
    proxy_notices,
)
from frontier_mock.serve.sglang_app import SglangApp
from frontier_mock.serve.sglang_metrics import SglangWorkerMetrics
from frontier_mock.serve.sglang_port import sglang_app
from frontier_mock.serve.sockets import url_of
from frontier_mock.serve.spec import ServeSpec as ServeSpec
from frontier_mock.serve.truth import KvEventRoutes, TruthRoutes
from frontier_mock.serve.vllm_app import VllmApp, WorkerPart
from frontier_mock.serve.worker_metrics import ServerMetrics, WorkerMetrics
from frontier_mock.serving.worker import Worker
from frontier_mock.simtime import to_seconds
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.disaggregation import Disaggregation

if TYPE_CHECKING:
    from frontier_mock.serve.clock_grpc import GrpcClock
    from frontier_mock.serve.grpc_server import GrpcServer
    from frontier_mock.serve.kv_events import KvEvents

logger = logging.getLogger("frontier_mock")
uvicorn_logger = logging.getLogger("frontier_mock.uvicorn")

_BACKLOG = 2048
_KEEPALIVE_S = 75.0
"""Longer than any router's pool keeps an idle connection. uvicorn's 5 s lets a client's request
race the server's close; with virtual think times of hours that would be every request."""
_GC_ALLOCATIONS = 50_000


def run_cluster(spec: ServeSpec) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code: 0, or 1 if the engine failed.

    Raises ConfigError for a port in use, an unknown host, or a file that cannot be written.
    """
    log_to_stderr()
    with asyncio.Runner(loop_factory=new_event_loop()) as runner:
        return runner.run(_serve(spec))


async def _serve(spec: ServeSpec) -> int:
    server = ClusterServer(spec)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await server.start()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_ALLOCATIONS, 20, 50)
    waits = [asyncio.create_task(stop.wait()), asyncio.create_task(server.driver.died.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    logger.info("Shutting down")
    await server.stop()
    return 1 if server.driver.error is not None else 0


class ClusterServer:
    """All ports of one cluster. `start` and `stop` must run in the same event loop."""

    def __init__(self, spec: ServeSpec) -> None:
        """Binds the ports and builds the engine. Raises ConfigError."""
        self._spec = spec
        self.kv_events: KvEvents | None = None
        self.cluster: Cluster = build_cluster(
            spec.cluster,
            spec.costs,
            on_kv=self._publish if spec.kv_sources else None,
            with_oracle=spec.oracle,
        )
        self._book = StationBook(self.cluster, spec.costs)
        self._follower: Follower | None = None
        if spec.clock_server is not None:
            names = [worker.name for worker in spec.cluster.workers]
            me = f"{socket.gethostname()}:{os.getpid()}"
            self._follower = Follower(spec.clock_server, me, names)
        created_s = time.time()
        self.metrics = [
            metrics_of(self.cluster.workers[index], served, created_s, rank)
            for server, served in zip(self.cluster.servers, spec.served, strict=True)
            for rank, index in enumerate(server)
        ]
        with contextlib.ExitStack() as opened:
            self._sockets = [opened.enter_context(sock) for sock in bind_all(spec)]
            if spec.http.uds is not None:
                opened.callback(Path(spec.http.uds).unlink, missing_ok=True)
            journal = opened.enter_context(open_journal(spec))
            if spec.kv_sources:
                self.kv_events = kv_publishers(spec, created_s)
            self._opened = opened.pop_all()
        self._digests = WorkerDigests(worker.name for worker in spec.cluster.workers)
        self.driver = Driver(
            self.cluster,
            spec.clock,
            self._folders(),
            journal=journal,
            keep_events=spec.keep_events,
            on_drop=self._let_go,
            keeper=None if self._follower is None else self._follower.keeper,
        )
        self._clock_routes: ClockRoutes | FollowedClock = ClockRoutes(self.driver, self._report)
        if self._follower is not None:
            self._follower.report = self._report
            self._clock_routes = FollowedClock(self._follower, self.driver)
        servers = zip(self.cluster.servers, spec.served, strict=True)
        self._halves = Halves(self.driver, _parts(servers), self._follower)
        self._notices = proxy_notices(spec, self.driver)
        self._truth = TruthRoutes(self.cluster, self.driver, self.kv_events)
        self.grpc: GrpcClock | None = None
        if spec.clock_grpc_port is not None:
            if spec.clock_server is not None:
                raise ConfigError("clock-grpc-port: the clock is served by its clock-server alone")
            self.grpc = grpc_clock(self.driver, spec.host, spec.clock_grpc_port)
        self._logs = EngineLogs(self.cluster, self.driver, spec.logs, spec.served, self.metrics)
        self._servers: list[asyncio.Server] = []
        self.webs: list[Http1Server] = []
        """Connections of each worker's port; each makes protocols for any kind of transport."""
        self._sglang: list[SglangApp] = []
        self.grpc_ports: list[GrpcServer | None] = []
        """The gRPC port of each server that has one, once it listens."""
        self.bootstraps: list[BootstrapServer | None] = []
        """The bootstrap server of each SGLang prefill server."""

    def _publish(self, batch: KvBatch) -> None:
        """A cache has changed."""
        assert self.kv_events is not None
        self.kv_events.publish(batch)

    def _folders(self) -> Sequence[Folder]:
        """Who hears of every event of each engine."""
        kv_events = self.kv_events
        if kv_events is None:
            return self.metrics
        return [kv_events.heralded(metrics, i) for i, metrics in enumerate(self.metrics)]

    def _let_go(self, events: Sequence[Event]) -> None:
        """The log is about to forget these events: nobody needs the times of their steps then."""
        self._digests.dropped(events)
        for metrics in self.metrics:
            metrics.settle()
        self._book.settle()
        self.cluster.trim()

    @property
    def urls(self) -> list[str]:
        """Base URL of each worker, in order."""
        return [url_of(sock, self._spec.host) for sock in self._sockets]

    async def start(self) -> None:
        """Listen on every port, then say so."""
        loop = asyncio.get_running_loop()
        self.driver.start()
        for served, sock in zip(self._spec.served, self._sockets, strict=True):
            rooms = bootstrap_server(self._spec.host, served, sock, self._halves)
            self.bootstraps.append(rooms)
        if self._follower is not None:
            host = self._spec.host or socket.gethostname()
            ports = [rooms.port for rooms in self.bootstraps if rooms is not None]
            await self._follower.join(self.driver, [f"{host}:{port}" for port in ports])
        for rooms in self.bootstraps:
            if rooms is not None:
                await rooms.start()
        if self.grpc is not None:
            await self.grpc.start()
        if self.kv_events is not None:
            self.kv_events.start(self.driver)
        parts = zip(self.cluster.servers, self._spec.served, self._sockets, strict=True)
        apps: list[VllmApp | SglangApp] = []
        for server, served, sock in parts:
            app = self.app(server.start, served)
            apps.append(app)
            if isinstance(app, SglangApp):
                self._sglang.append(app)
            web = _web(app, served)
            if not isinstance(loop, VirtualTimeLoop):
                # There a client's pool may count real seconds and be silent for virtual hours.
                web.start()
            web.access = self._logs.access(len(self.webs))
            self.webs.append(web)
            listen = loop.create_server if self._spec.http.uds is None else loop.create_unix_server
            self._servers.append(await listen(web, sock=sock, backlog=_BACKLOG))
            if isinstance(app, SglangApp):
                app.state.peer_of = self._halves.peer_of
                app.state.request_log = self._logs.requests(len(self.webs) - 1)
            engine = "vLLM" if served.sglang is None else "SGLang"
            logger.info("Starting %s server on %s", engine, url_of(sock, self._spec.host))
        await self._start_grpc(apps)
        uvicorn_logger.info("Started server process [%d]", os.getpid())
        uvicorn_logger.info("Waiting for application startup.")
        uvicorn_logger.info("Application startup complete.")
        for app in self._sglang:
            app.open()
        self._logs.start()
        self._write_ready_file()

    async def _start_grpc(self, apps: Sequence[VllmApp | SglangApp]) -> None:
        """Listen for gRPC where that is asked for."""
        spec = self._spec
        ports = open_ports(spec.grpc, self, spec.served, apps, spec.host)
        for port in ports:
            if port is not None:
                await port.start()
            self.grpc_ports.append(port)

    def app(self, number: int, served: ServedModel) -> VllmApp | SglangApp:
        """The application of the server whose first engine is `number`.

        With AUTO_WORKER it is that of the cluster behind its own router, with the metrics of the
        first server.
        """
        engines = self.cluster.ranks(max(number, 0))
        if served.sglang is not None:
            app = sglang_app(
                number,
                served,
                self.driver,
                [self.metrics[index] for index in engines],
                [self._clock_routes, self._truth],
            )
            if self.kv_events is not None:
                app.state.kv_events = self.kv_events.describe(engines)
            return app
        running = [partial(self.driver.running_tokens, index) for index in engines]
        folds = [self.metrics[index] for index in engines]
        metrics = ServerMetrics([m for m in folds if isinstance(m, WorkerMetrics)], running)
        part = WorkerPart(number, served, metrics)
        more = [self._clock_routes, self._truth, KvEventRoutes(self.kv_events, engines)]
        return VllmApp(part, self.driver, self._spec.http, more)

    async def stop(self) -> None:
        """No new connections; let requests in flight drain or abort them; close and report."""
        for server in self._servers:
            server.close()
        for app in self._sglang:
            app.state.exiting = True
        for rooms in self.bootstraps:
            if rooms is not None:
                await rooms.stop()
        self._halves.stop()
        driver = self.driver
        driver.accepting = False
        patience_s = self._spec.http.shutdown_timeout_s
        if driver.in_flight and patience_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    while driver.in_flight and driver.error is None:
                        await asyncio.sleep(_DRAIN_POLL_S)
        driver.settle()
        self._clock_routes.close()
        if self.grpc is not None:
            await self.grpc.stop()
        for port in self.grpc_ports:
            if port is not None:
                await port.stop()
        if self._follower is not None:
            await self._follower.leave()
        await asyncio.gather(*(web.shutdown(_CLOSE_TIMEOUT_S) for web in self.webs))
        self._logs.stop()
        driver.stop()
        if self.kv_events is not None:
            self.kv_events.stop()
        if self._notices is not None:
            self._notices.stop()
        self._opened.close()
        self._say_goodbye()

    def _report(self) -> dict[str, object]:
        """The result so far; figures over requests are left out once their events are gone."""
        driver = self.driver
        head: dict[str, object] = {
            "now_ns": driver.now_ns(),
            "in_flight": len(driver.in_flight),
            "log_complete": not driver.forgot_events,
            "workers_digest": self._workers_digest(),
        }
        if driver.forgot_events:
            return {**head, "wall_s": driver.wall_s(), "digest": self.cluster.log.digest()}
        report = report_cluster(self.cluster, self._spec.scenario, driver.wall_s(), book=self._book)
        return {**head, **report.result}

    def _workers_digest(self) -> dict[str, object]:
        self._digests.catch_up(self.cluster.log.events)
        digests = self._digests.digests()
        return {"by_name": by_name(digests), "by_role": by_role(digests), "workers": digests}

    def _write_ready_file(self) -> None:
        path = self._spec.ready_file
        if path is None:
            return
        pairs = zip(self._spec.names, self.urls, strict=True)
        workers: list[dict[str, str | int]] = [{"name": name, "url": url} for name, url in pairs]
        for worker, port in zip(workers, self.grpc_ports, strict=True):
            if port is not None:
                worker["grpc_url"] = port.url
        for worker, rooms in zip(workers, self.bootstraps, strict=True):
            if rooms is not None:
                worker["bootstrap_port"] = rooms.port
        ready: dict[str, object] = {"workers": workers}
        if self.grpc is not None:
            ready["clock_grpc_port"] = self.grpc.port
        text = json.dumps(ready)
        try:
            # Written beside and renamed, so that whoever waits for the file never reads half of it.
            draft = Path(f"{path}.part")
            draft.write_text(text + "\n", encoding="utf-8")
            draft.replace(path)
        except OSError as error:
            raise ConfigError(f"ready-file: cannot write {path}: {error.strerror}") from None

    def _say_goodbye(self) -> None:
        driver = self.driver
        keeper = driver.keeper
        virtual_s, wall_s = to_seconds(driver.now_ns()), driver.wall_s()
        logger.info(
            "clock: %.3f virtual s in %.3f real s (%.2fx)",
            virtual_s,
            wall_s,
            virtual_s / wall_s if wall_s > 0 else 0.0,
        )
        if self._spec.clock.mode == "warp":
            logger.info(
                "warp: %d jumps, %d of them past clients without a lease; %d stalls",
                keeper.jumps,
                keeper.guesses,
                keeper.stall_count,
            )
            for stall in keeper.stalls[-10:]:
                logger.warning("%s", stall)
        else:
            logger.info("%s", driver.drift.verdict())
        logger.info("digest: %s", self.cluster.log.digest())


def _parts(servers: Iterable[tuple[range, ServedModel]]) -> dict[int, Disaggregation]:
    """The engines that are in a disaggregation mode of SGLang's."""
    parts = {}
    for engines, served in servers:
        if served.sglang is not None and served.sglang.disaggregation is not None:
            parts.update(dict.fromkeys(engines, served.sglang.disaggregation))
    return parts


def metrics_of(
    worker: Worker, served: ServedModel, created_s: float, rank: int
) -> WorkerMetrics | SglangWorkerMetrics:
    """The fold over a worker's events that its kind of engine wants."""
    if served.sglang is not None:
        return SglangWorkerMetrics(worker, served, created_s, rank)
    return WorkerMetrics(worker, served, created_s, rank)


_DRAIN_POLL_S = 0.02
_CLOSE_TIMEOUT_S = 5.0


def _web(app: VllmApp | SglangApp, served: ServedModel) -> Http1Server:
    """The connections of one port. Raises ConfigError if h2 is not installed where it is needed."""
    web = Http1Server(app, _KEEPALIVE_S)
    settings = None if served.sglang is None else served.sglang.http2
    if settings is None:
        return web
    try:
        from frontier_mock.serve.http2 import Http2Server
    except ImportError as error:
        raise ConfigError(
            f"enable-http2: {error}; needs pip install 'frontier-mock[http2]'"
        ) from None
    return Http2Server(web, settings)


def log_to_stderr() -> None:
    """vLLM's and uvicorn's line shapes, which harnesses watch for (vllm.md section 9.1)."""
    for target, shape in (
        (logger, "%(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s"),
        (uvicorn_logger, "%(levelname)s:     %(message)s"),
        (engine_logger, "%(message)s"),
    ):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(shape, "%m-%d %H:%M:%S"))
        target.handlers[:] = [handler]
        target.setLevel(logging.INFO)
        target.propagate = False
