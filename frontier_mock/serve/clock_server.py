"""`frontier-mock clock`: one clock for several `up` processes, without an engine of its own."""

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from frontier_mock.config.errors import ConfigError
from frontier_mock.drive.following import Message
from frontier_mock.drive.hosting import ClockHost, Member
from frontier_mock.drive.pace import ClockSpec
from frontier_mock.report.worker_digests import by_name, by_role
from frontier_mock.serve.answers import Answer, json_answer
from frontier_mock.serve.clock_metrics import render_clock_metrics
from frontier_mock.serve.clock_routes import ClockRoutes
from frontier_mock.serve.connection import Exchange, Http1Server
from frontier_mock.serve.http1 import Request
from frontier_mock.serve.lines import JOIN_PATH, PROTOCOL, Lines, switching
from frontier_mock.serve.opening import grpc_clock
from frontier_mock.serve.sockets import bind, url_of
from frontier_mock.simtime import to_seconds

logger = logging.getLogger("frontier_mock")

_BACKLOG = 512
_KEEPALIVE_S = 75.0
_CLOSE_TIMEOUT_S = 5.0
_VERBS = "/sim/clock"
_VIEW_LIMIT_S = 1.0
"""Real time after which GET /sim/clock no longer waits for engines at work."""
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class ClockServerSpec:
    """`host` None listens on all interfaces, port 0 on any free one."""

    clock: ClockSpec
    port: int
    host: str | None = None
    ready_file: str | None = None
    grpc_port: int | None = None


class ClockServer:
    """The host's port. `start` and `stop` must run in the same event loop."""

    def __init__(self, spec: ClockServerSpec) -> None:
        """Binds the port. Raises ConfigError."""
        self._spec = spec
        self._socket = bind(spec.host, spec.port)
        self.host = ClockHost(spec.clock)
        self._grpc = None
        if spec.grpc_port is not None:
            self._grpc = grpc_clock(self.host, spec.host, spec.grpc_port)
        self._reports: dict[int, _Report] = {}
        self._links: list[_Link] = []
        self._put_off: list[Exchange] = []
        # Verbs over gRPC are not put off, and a baton is handed on by the host alone.
        self._at_once = self._grpc is None and not spec.clock.baton
        self._routes = ClockRoutes(self.host, self._no_report)
        self._table = {**self._routes.table(), ("POST", JOIN_PATH): self._join}
        self._table["GET", "/sim/report"] = self._get_report
        created_s = time.time()
        self._table["GET", "/metrics"] = lambda exchange: Answer(
            200, render_clock_metrics(self.host, created_s), _METRICS_TYPE
        )
        self._table["GET", "/health"] = lambda exchange: Answer(200, b"", "")
        self._web = Http1Server(self, _KEEPALIVE_S)
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Where clients and engine processes reach the clock."""
        return url_of(self._socket, self._spec.host)

    async def start(self) -> None:
        """Listen, then say so."""
        self.host.start()
        self._web.start()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._web, sock=self._socket, backlog=_BACKLOG)
        logger.info("Clock on %s", self.url)
        ready: dict[str, object] = {"url": self.url}
        if self._grpc is not None:
            await self._grpc.start()
            ready["clock_grpc_port"] = self._grpc.port
        path = self._spec.ready_file
        if path is not None:
            try:
                draft = Path(f"{path}.part")
                draft.write_text(json.dumps(ready) + "\n", encoding="utf-8")
                draft.replace(path)
            except OSError as error:
                why = error.strerror
                raise ConfigError(f"ready-file: cannot write {path}: {why}") from None

    async def stop(self) -> None:
        """Let everybody go, and report."""
        if self._server is not None:
            self._server.close()
        self._at_once = False
        put_off, self._put_off = self._put_off, []
        for exchange in put_off:
            self._answer(exchange)
        self._routes.close()
        if self._grpc is not None:
            await self._grpc.stop()
        self.host.stop()
        for link in list(self._links):
            link.close()
        await self._web.shutdown(_CLOSE_TIMEOUT_S)
        keeper = self.host.keeper
        logger.info(
            "clock: %.3f virtual s in %.3f real s; %d jumps, %d of them past clients without a "
            "lease; %d stalls",
            to_seconds(keeper.now_ns),
            self.host.wall_s(),
            keeper.jumps,
            keeper.guesses,
            keeper.stall_count,
        )
        for stall in keeper.stalls[-10:]:
            logger.warning("%s", stall)

    # What a connection says (serve.connection.App)

    def handle(self, exchange: Exchange) -> None:
        """Answer one request, now or later. Never raises."""
        if self._at_once and self.host.at_work and exchange.request.path.startswith(_VERBS):
            if not self._put_off:
                asyncio.get_running_loop().call_later(_VIEW_LIMIT_S, self._show)
            self._put_off.append(exchange)
            return
        self._answer(exchange)

    def _answer(self, exchange: Exchange) -> None:
        request = exchange.request
        handler = self._table.get((request.method, request.path))
        if handler is None:
            exchange.reply(Answer(404, b'{"detail":"Not Found"}'))
            return
        try:
            answer = handler(exchange)
        except Exception as error:
            logger.error("%s %s failed: %r", request.method, request.path, error)
            answer = json_answer({"error": "internal error"}, 500)
        if answer is not None:
            exchange.reply(answer)

    def answering(self, exchange: Exchange, status: int) -> str:
        """No headers of our own."""
        return ""

    def answered(self, exchange: Exchange, status: int, body_bytes: int) -> None:
        """Nothing is counted."""

    def arriving(self, request: Request) -> None:
        """Clock verbs hold nothing while they arrive: their actor's lease is held already."""

    def received(self, request: Request) -> None:
        """See `arriving`."""

    # Members

    def _join(self, exchange: Exchange) -> Answer | None:
        request = exchange.request
        if request.headers.get("upgrade") != PROTOCOL:
            return json_answer({"error": f"upgrade: only {PROTOCOL} is spoken here"}, 426)
        try:
            body = json.loads(request.body)
            name, workers = body["name"], body["workers"]
            addresses = body.get("addresses", [])
            if not all(isinstance(word, str) for word in (name, *workers, *addresses)):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):
            return json_answer({"error": "name and workers are required"}, 400)
        taken = {worker: member for member in self.host.members for worker in member.workers}
        for worker in workers:
            if worker in taken:
                said = f"worker {worker} is already served by {taken[worker]}"
                return json_answer({"error": said}, 409)
        link = _Link(self, name, tuple(workers), tuple(addresses))
        self._links.append(link)
        exchange.hand_over(link, switching(PROTOCOL))
        link.send(["now", self.host.now_ns(), self._at_once])
        self.host.join(link.member)
        return None

    def decide(self) -> None:
        """Let the host decide now, and tell its members."""
        self.catch_up()
        self.host.pump_now()
        for link in self._links:
            link.flush()

    def catch_up(self) -> None:
        """Hear what was put off, if no engine is at work any more, or ever will be."""
        if self._put_off and (self.host.error is not None or not self.host.at_work):
            put_off, self._put_off = self._put_off, []
            for exchange in put_off:
                if not exchange.is_lost():
                    self._answer(exchange)

    def _show(self) -> None:
        """An engine is long at work: whoever only looks at the clock is shown that."""
        views = [one for one in self._put_off if one.request.method == "GET"]
        self._put_off = [one for one in self._put_off if one.request.method != "GET"]
        for exchange in views:
            self._answer(exchange)

    def gone(self, link: "_Link") -> None:
        """A member's connection has ended."""
        if link in self._links:
            self._links.remove(link)
        for report in list(self._reports.values()):
            report.awaited.pop(link.member, None)
            self._finish(report)

    # Reports

    def _no_report(self) -> Mapping[str, object]:
        return {}

    def _get_report(self, exchange: Exchange) -> Answer | None:
        number = max(self._reports, default=0) + 1
        report = _Report(number, exchange, dict.fromkeys(self.host.members))
        self._reports[number] = report
        exchange.on_lost = lambda: self._reports.pop(number, None)
        for member in report.awaited:
            member.send(["report", number])
        self._finish(report)
        return None

    def reported(self, member: Member, number: int, said: Mapping[str, object]) -> None:
        """A member's part of a report."""
        report = self._reports.get(number)
        if report is not None and member in report.awaited:
            del report.awaited[member]
            report.parts.append(said)
            self._finish(report)

    def _finish(self, report: "_Report") -> None:
        if report.awaited or self._reports.pop(report.number, None) is None:
            return
        report.exchange.reply(json_answer(self._merged(report.parts)))

    def _merged(self, parts: list[Mapping[str, object]]) -> dict[str, object]:
        digests: dict[str, str] = {}
        for part in parts:
            said = part.get("workers_digest")
            if isinstance(said, dict):
                digests.update(said["workers"])
        return {
            "now_ns": self.host.now_ns(),
            "digest": by_name(digests),
            "workers_digest": {
                "by_name": by_name(digests),
                "by_role": by_role(digests),
                "workers": dict(sorted(digests.items())),
            },
            "processes": parts,
        }


@dataclass(slots=True)
class _Report:
    """A GET /sim/report that waits for the members' parts."""

    number: int
    exchange: Exchange
    awaited: dict[Member, None]
    parts: list[Mapping[str, object]] = field(default_factory=list)


class _Link(Lines):
    """The connection of one member."""

    def __init__(
        self,
        server: ClockServer,
        name: str,
        workers: tuple[str, ...],
        addresses: tuple[str, ...],
    ) -> None:
        super().__init__()
        self._server = server
        self.member = Member(name, workers, self.send, addresses)

    def heard(self, message: Message) -> None:
        """See `drive.following`."""
        match message:
            case ["bye"]:
                self._server.host.leave(self.member)
                self._server.catch_up()
            case ["report", int(number), dict(said)]:
                self._server.reported(self.member, number, said)
            case _:
                self._server.host.heard(self.member, message)

    def heard_all(self) -> None:
        """Decide at once, as engines and clients wait for it."""
        self._server.decide()

    def lost(self, why: str) -> None:
        """Without a goodbye this ends the run."""
        self._server.gone(self)
        self._server.host.leave(self.member, why)
        self._server.catch_up()
