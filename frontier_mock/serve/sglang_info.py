"""SGLang's read-only routes: health, models, server information, loads, metrics."""

import asyncio
import logging
import time
from datetime import UTC, datetime
from functools import partial

from frontier_mock.drive.driver import Driver
from frontier_mock.drive.virtual_loop import VirtualTimeLoop
from frontier_mock.serve.answers import Answer
from frontier_mock.serve.clock_metrics import render_clock_metrics
from frontier_mock.serve.connection import Exchange
from frontier_mock.serve.routing import Handler, Table
from frontier_mock.serve.sglang_http_counts import HttpCounts
from frontier_mock.serve.sglang_metrics import SglangWorkerMetrics
from frontier_mock.serve.sglang_state import STARTING, UNHEALTHY, UP, ServerState
from frontier_mock.simtime import NS_PER_MS
from frontier_mock.wire.compat import REMOVED_ROUTES
from frontier_mock.wire.prometheus import merged
from frontier_mock.wire.render import dumps
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.errors import bad_query
from frontier_mock.wire.sglang.info import (
    loads_body,
    loads_prometheus,
    model_body,
    model_info_body,
    models_body,
    old_load_body,
    rank_load,
    read_include,
    server_info,
)
from frontier_mock.wire.sglang.plan import front_of
from frontier_mock.wire.tokenizer import Json

logger = logging.getLogger("frontier_mock")

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LAG_NS = 50 * NS_PER_MS
"""How old what /v1/loads and /metrics show may be: a few decode steps."""

HEALTH_POLL_S = 1.0
"""How long /health waits before it looks whether its probe has come back, again and again."""


class InfoRoutes:
    """Routes that look and change nothing."""

    def __init__(
        self,
        served: ServedModel,
        driver: Driver,
        state: ServerState,
        ranks: list[SglangWorkerMetrics],
        http: HttpCounts,
    ) -> None:
        """`ranks` are the folds of the port's data-parallel ranks, `http` counts its answers."""
        self._served = served
        self._front = front_of(served)
        self._driver = driver
        self._state = state
        self._ranks = ranks
        self._http = http
        self._created_s = time.time()

    def table(self) -> Table:
        """Handlers by (method, path)."""
        table: dict[tuple[str, str], Handler] = {
            ("GET", "/health"): self._health,
            ("GET", "/health_generate"): self._health,
            ("GET", "/ready"): lambda _: _flag(self._state.ready),
            ("GET", "/ping"): lambda _: _flag(self._state.healthy),
            ("GET", "/v1/models"): self._models,
            ("GET", "/v1/models/*"): self._model,
            ("GET", "/model_info"): self._model_info,
            ("GET", "/get_model_info"): self._model_info,
            ("GET", "/server_info"): self._server_info,
            ("GET", "/get_server_info"): self._server_info,
            ("GET", "/v1/loads"): self._loads,
        }
        if self._front.enable_metrics:
            for path in ("/metrics", "/metrics/"):
                table["GET", path] = self._metrics
        if REMOVED_ROUTES in self._front.compat:
            table["GET", "/get_load"] = self._old_load
            table["GET", "/get_weight_version"] = self._weight_version
        return table

    def _settle(self) -> None:
        """Bring the engine to the present, unless it is there or nearly so.

        With streams it is never further behind than a step, and to catch up would be to send them
        their tokens first. SGLang itself publishes its load once in 15 steps.
        """
        driver = self._driver
        if driver.now_ns() - driver.engine.now_ns > _LAG_NS:
            driver.catch_up()

    # Health

    def _health(self, exchange: Exchange) -> Answer | None:
        """SGLang's probe of one token: any output since the call counts, looked for each second.

        The probe itself stays out of the engine: it would be a command like any other, and turn up
        in the event log at a time that only the caller's wall knows.
        """
        state = self._state
        if state.exiting or state.status == STARTING:
            return Answer(503, b"", "")
        if not self._front.health_generates and exchange.request.path == "/health":
            return _flag(True)
        poll_s = self._poll_s()
        if poll_s == 0.0:
            return self._verdict(alive=self._driver.error is None)
        started_s = time.monotonic()
        asyncio.get_running_loop().call_later(
            poll_s, self._look, exchange, started_s, self._driver.num_events
        )
        return None

    def _poll_s(self) -> float:
        """Real seconds of one virtual one; none where time does not pass by itself."""
        clock = self._driver.clock
        if clock.mode == "warp" or isinstance(asyncio.get_running_loop(), VirtualTimeLoop):
            return 0.0
        return HEALTH_POLL_S / clock.scale

    def _look(self, exchange: Exchange, started_s: float, events: int) -> None:
        if exchange.is_lost():
            return
        driver, state = self._driver, self._state
        # A paused server takes no probe; only what it still runs can show that it is alive.
        alive = driver.error is None and (not state.paused or driver.num_events > events)
        poll_s = self._poll_s()
        if not alive and driver.error is None:
            limit_s = self._front.health_timeout_s * poll_s / HEALTH_POLL_S
            if time.monotonic() - started_s < limit_s:
                asyncio.get_running_loop().call_later(
                    poll_s, self._look, exchange, started_s, events
                )
                return
        exchange.reply(self._verdict(alive=alive))

    def _verdict(self, *, alive: bool) -> Answer:
        self._state.status = UP if alive else UNHEALTHY
        return _flag(alive)

    # Who and what

    def _models(self, exchange: Exchange) -> Answer:
        return Answer(200, models_body(self._served, self._state.identity(), int(time.time())))

    def _model(self, exchange: Exchange) -> Answer:
        name = exchange.request.path.partition("/v1/models/")[2]
        return Answer(200, model_body(self._served, self._state.identity(), name, int(time.time())))

    def _model_info(self, exchange: Exchange) -> Answer:
        return Answer(200, model_info_body(self._served, self._state.identity()))

    def _server_info(self, exchange: Exchange) -> Answer:
        self._settle()
        rates = [rank.load(self._driver).gen_throughput for rank in self._ranks]
        return _json(server_info(self._served, rates, self._state.kv_events))

    def _weight_version(self, exchange: Exchange) -> Answer:
        return _json({"weight_version": self._state.weight_version})

    # Loads

    def _loads(self, exchange: Exchange) -> Answer:
        query = exchange.request.query
        began_s = time.perf_counter()
        entries = self._entries(query("include"), query("dp_rank"))
        for rank in self._ranks[:1]:
            rank.loads_took(time.perf_counter() - began_s)
        if query("format") == "prometheus":
            return Answer(200, loads_prometheus(entries), METRICS_TYPE)
        stamp = datetime.now(UTC).isoformat()
        return Answer(200, loads_body(self._front, entries, stamp))

    def _old_load(self, exchange: Exchange) -> Answer:
        return Answer(200, old_load_body(self._entries("core", None)))

    def _entries(self, include: str | None, dp_rank: str | None) -> list[dict[str, Json]]:
        sections = read_include(include)
        ranks = list(enumerate(self._ranks))
        if dp_rank is not None:
            try:
                wanted = int(dp_rank)
            except ValueError:
                raise bad_query("dp_rank", dp_rank) from None
            ranks = [(rank, fold) for rank, fold in ranks if rank == wanted]
        self._settle()
        now_s = time.time()
        look = partial(rank_load, self._front, sections=sections, now_s=now_s)
        return [look(rank, fold.load(self._driver)) for rank, fold in ranks]

    def _metrics(self, exchange: Exchange) -> Answer:
        driver = self._driver
        self._settle()
        aborts = self._state.aborts_asked
        text = merged([rank.render(driver, aborts) for rank in self._ranks])
        text += self._http.render()
        clock = render_clock_metrics(driver, self._created_s)
        return Answer(200, text.encode() + clock, METRICS_TYPE)


def _flag(good: bool) -> Answer:
    return Answer(200 if good else 503, b"", "")


def _json(value: Json) -> Answer:
    return Answer(200, dumps(value).encode("utf-8", "surrogatepass"))
