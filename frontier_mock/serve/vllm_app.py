"""One vLLM worker's HTTP surface: routes, guards, and the way from a request to the Driver.

One `VllmApp` serves one port. Routing is a dictionary because every path is fixed.
"""

import hmac
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from frontier_mock.drive.driver import Driver
from frontier_mock.drive.protocol import ShutdownError, Subscriber
from frontier_mock.serve.answers import Answer, json_answer
from frontier_mock.serve.clock_metrics import render_clock_metrics
from frontier_mock.serve.connection import Exchange
from frontier_mock.serve.cors import Cors
from frontier_mock.serve.entrance import Accepted, enter
from frontier_mock.serve.http1 import Request
from frontier_mock.serve.http_metrics import HttpMetrics
from frontier_mock.serve.routing import Handler as Handler
from frontier_mock.serve.routing import Routes, RouteTable
from frontier_mock.serve.settings import HttpSettings
from frontier_mock.serve.streaming import KeptAlive, Stream, Whole, error_answer
from frontier_mock.serve.vllm_adapters import AdapterRoutes
from frontier_mock.serve.vllm_control import ControlRoutes
from frontier_mock.serve.vllm_edges import EdgeRoutes
from frontier_mock.serve.vllm_responses import StoredResponses
from frontier_mock.serve.vllm_scale_out import GENERATE_PATH, ScaleOutRoutes
from frontier_mock.serve.weight_versions import WeightVersions
from frontier_mock.serve.worker_metrics import ServerMetrics
from frontier_mock.simtime import NS_PER_S
from frontier_mock.wire.anthropic import count_tokens_body, parse_messages
from frontier_mock.wire.chat import parse_chat
from frontier_mock.wire.combined import parse_chat_batch, parse_invocation
from frontier_mock.wire.completions import parse_completion
from frontier_mock.wire.errors import (
    ApiError,
    engine_dead,
    internal_error,
    unauthorized_body,
    wrong_content_type,
)
from frontier_mock.wire.generation import MESSAGES, Generation, Outcome
from frontier_mock.wire.inference import parse_inference
from frontier_mock.wire.lora_metrics import LoraInfo
from frontier_mock.wire.models import models_body
from frontier_mock.wire.request_log import received_lines
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.server_info import server_config
from frontier_mock.wire.tokenize import detokenize_body, tokenize_body
from frontier_mock.wire.tokenizer import Json

logger = logging.getLogger("frontier_mock")

Parse = Callable[[bytes, Mapping[str, str], ServedModel], Generation]

_GUARDED = ("/v1", "/v2", "/inference", "/cohere")
"""Path prefixes behind the API key (vllm.md section 3.1)."""

DEFAULT_VERSION = "default"
"""What vLLM calls the weights it was started with."""

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_UNCOUNTED = frozenset(
    ("/metrics", "/metrics/", "/health", "/load", "/ping", "/version", "/server_info")
)
"""Handlers that vLLM leaves out of http_requests_total (vllm.md section 1.1)."""


class WorkerPart(NamedTuple):
    """What one port serves: its first engine's place in the cluster, its model and metrics."""

    number: int
    served: ServedModel
    metrics: ServerMetrics


class VllmApp:
    """The HTTP application of one worker (`serve.connection.App`)."""

    def __init__(
        self,
        part: WorkerPart,
        driver: Driver,
        settings: HttpSettings,
        more: Sequence[Routes],
    ) -> None:
        self._part = part._replace(served=replace(part.served, worker=part.number))
        self._driver = driver
        self._settings = settings
        self._created_s = time.time()
        self._http_metrics = HttpMetrics(self._created_s)
        max_loras = part.served.deployment.max_loras
        self._lora = LoraInfo(max_loras) if max_loras else None
        self._cors = Cors(
            settings.allowed_origins,
            settings.allowed_methods,
            settings.allowed_headers,
            settings.allow_credentials,
        )
        self._keys = [key.encode() for key in settings.api_key]
        self._root = settings.root_path.rstrip("/")
        self._versions = WeightVersions(driver, max(part.number, 0), DEFAULT_VERSION)
        self._responses = StoredResponses(driver, self._versions, enabled=settings.response_store)
        self._generators: dict[str, Parse] = {
            "/v1/chat/completions": parse_chat,
            "/v1/chat/completions/batch": parse_chat_batch,
            "/v1/completions": parse_completion,
            "/invocations": parse_invocation,
            "/v1/messages": parse_messages,
            "/v1/responses": self._responses.parse,
        }
        self._kinds = {"/v1/messages": MESSAGES, "/v1/messages/count_tokens": MESSAGES}
        if settings.scale_out:
            self._generators[GENERATE_PATH] = parse_inference
        served = self._part.served
        self.control = ControlRoutes(
            served, driver, settings, self._versions, part.metrics, self._created_s
        )
        scale_out = ScaleOutRoutes(lambda: self._part.served, settings.scale_out, _check_json)
        edges = EdgeRoutes(_check_json)
        every: list[Routes] = [edges, scale_out, self.control, self._responses, *more]
        self.adapters = AdapterRoutes(self._adapters, _check_json)
        if settings.lora_updating:
            every.append(self.adapters)
        self._routes = RouteTable([self._own_routes(), *(routes.table() for routes in every)])

    @property
    def served(self) -> ServedModel:
        """What is served now."""
        return self._part.served

    def _adapters(self, adapters: Mapping[str, str] | None) -> ServedModel:
        """What is served, with these adapters from now on if any are given."""
        if adapters is not None:
            served = replace(self._part.served, adapters=adapters)
            self._part = self._part._replace(served=served)
        return self._part.served

    def _own_routes(self) -> dict[tuple[str, str], Handler]:
        table: dict[tuple[str, str], Handler] = {
            ("GET", "/v1/models"): self._models,
            ("GET", "/health"): self._health,
            ("GET", "/ping"): self._health,
            ("POST", "/ping"): self._health,
            ("GET", "/version"): self._version,
            ("GET", "/load"): self._server_load,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/detokenize"): self._detokenize,
            ("POST", "/v1/messages/count_tokens"): self._count_tokens,
        }
        for path in self._generators:
            table["POST", path] = self._generate
        for path in ("/metrics", "/metrics/"):
            for method in ("GET", "HEAD", "POST"):
                table[method, path] = self._metrics
        if self._settings.dev_mode:
            table["GET", "/server_info"] = self._server_info
        return table

    # What a connection says

    def handle(self, exchange: Exchange) -> None:
        """Answer one request, now or later. Never raises."""
        request = exchange.request
        answer: Answer | None
        try:
            answer = self._before(request)
            if answer is None:
                exchange.began_ns = self._driver.now_ns()
                path = self._path(request)
                found = self._routes.find(path, request.method)
                if isinstance(found, Answer):
                    moved = self._routes.redirection(request, path)
                    answer = moved if moved is not None and found.status == 404 else found
                else:
                    answer = self._ask(found, exchange)
        except Exception as error:
            logger.error("%s %s failed: %r", request.method, request.path, error)
            logger.debug("cause", exc_info=error)
            answer = error_answer(internal_error())
        if answer is not None:
            exchange.reply(answer)

    def _ask(self, handler: Handler, exchange: Exchange) -> Answer | None:
        """The handler's answer, or the error it raised in the dialect of its route."""
        try:
            return handler(exchange)
        except ApiError as error:
            return error_answer(error, self._kinds.get(self._path(exchange.request), ""))

    def answering(self, exchange: Exchange, status: int) -> str:
        """Cross-origin lines, and X-Request-Id if the server was told to send one."""
        request = exchange.request
        # Neither a refused key nor a preflight comes as far as cross-origin lines.
        lines = self._cors.lines(request) if exchange.began_ns >= 0 else ""
        if not self._settings.enable_request_id_headers:
            return lines
        given = request.headers.get("x-request-id")
        return f"{lines}x-request-id: {uuid.uuid4().hex if given is None else given}\r\n"

    def answered(self, exchange: Exchange, status: int, body_bytes: int) -> None:
        """Count the answer, if the request came as far as a route."""
        began_ns = exchange.began_ns
        if began_ns < 0:
            return
        request = exchange.request
        path = self._path(request)
        if path not in _UNCOUNTED:
            self._http_metrics.answered(
                path if path in self._routes else "none",
                request.method,
                status,
                request.headers.get("content-length", "0"),
                body_bytes,
                self._driver.now_ns() - began_ns,
            )

    def arriving(self, request: Request) -> None:
        """Time stands still while a prompt is on its way in."""
        if self._path(request) in self._generators:
            self._driver.keeper.arriving()

    def received(self, request: Request) -> None:
        """The end of `arriving`."""
        if self._path(request) in self._generators:
            self._driver.keeper.received()
            self._driver.poke()

    def _path(self, request: Request) -> str:
        """The path below --root-path; paths that do not have that prefix are served as well."""
        path = request.path
        if self._root and path.startswith(self._root + "/"):
            return path[len(self._root) :]
        return path

    def _before(self, request: Request) -> Answer | None:
        """The answer of whoever stands before the routes: API keys, then cross-origin rules."""
        path, method = self._path(request), request.method
        if self._keys and method != "OPTIONS" and path.startswith(_GUARDED):
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            known = [hmac.compare_digest(key.encode(), wanted) for wanted in self._keys]
            if scheme.lower() != "bearer" or not any(known):
                return Answer(401, unauthorized_body())
        return self._cors.preflight(request) if method == "OPTIONS" else None

    # Generation

    def _generate(self, exchange: Exchange) -> Answer | None:
        """Parse and submit. The answer comes from the subscriber, out of the driver's pump."""
        request = exchange.request

        def read() -> Accepted:
            _check_json(request)
            parse: Parse = self._generators[self._path(request)]
            generation = parse(request.body, request.headers, self._part.served)
            if self._part.served.told_drafts:
                generation = generation._replace(told_drafts=self._part.served.told_drafts)
            if generation.model in self._part.served.adapters:
                adapters.append(generation.model)
            if self._settings.enable_log_requests:
                for line in received_lines(generation, request.body):
                    logger.info("%s", line)
            submits = generation.submits
            background = self._responses.subscriber(generation, exchange)
            subscriber = background or self._subscriber(generation, exchange)
            if generation.record is not None:
                kept.append((generation, subscriber))
            detached = background is not None and not generation.stream
            return Accepted(submits, subscriber, generation.n, generation.actor, detached)

        kept: list[tuple[Generation, Subscriber]] = []
        adapters: list[str] = []
        try:
            ticket = enter(self._driver, exchange, read)
        except ShutdownError:
            raise engine_dead() from None
        if adapters:
            ticket.adapter = adapters[0]
        if kept:
            ((generation, subscriber),) = kept
            return self._responses.entered(generation, ticket, subscriber, exchange)
        return None

    def _subscriber(self, generation: Generation, exchange: Exchange) -> Subscriber:
        subscriber: Whole | Stream
        interval_s = self._settings.sse_keep_alive_interval_s
        if not generation.stream:
            subscriber = Whole(generation, exchange, self._versions)
        elif interval_s > 0:
            subscriber = KeptAlive(generation, exchange, self._versions, interval_s)
        else:
            subscriber = Stream(generation, exchange, self._versions)
        encoded = generation.encoded
        if encoded is not None:

            def kept(outcomes: Sequence[Outcome], created_s: int) -> None:
                if outcomes:
                    encoded.keep()

            subscriber.kept = kept
        return subscriber

    # The rest

    def _health(self, exchange: Exchange) -> Answer:
        return Answer(200 if self._driver.error is None else 503, b"", "")

    def _version(self, exchange: Exchange) -> Answer:
        return json_answer({"version": self._settings.version})

    def _server_load(self, exchange: Exchange) -> Answer:
        load = 0
        if self._settings.enable_server_load_tracking:
            tickets = self._driver.in_flight
            load = sum(ticket.submits[0].worker == self._part.number for ticket in tickets)
        return json_answer({"server_load": load})

    def _models(self, exchange: Exchange) -> Answer:
        return Answer(200, models_body(self._part.served, int(time.time())))

    def _tokenize(self, exchange: Exchange) -> Answer:
        _check_json(exchange.request)
        return Answer(200, tokenize_body(exchange.request.body, self._part.served))

    def _detokenize(self, exchange: Exchange) -> Answer:
        _check_json(exchange.request)
        return Answer(200, detokenize_body(exchange.request.body, self._part.served))

    def _count_tokens(self, exchange: Exchange) -> Answer:
        request = exchange.request
        _check_json(request)
        return Answer(200, count_tokens_body(request.body, request.headers, self._part.served))

    def _server_info(self, exchange: Exchange) -> Answer:
        config = server_config(self._part.served)
        as_object = exchange.request.query("config_format") == "json"
        shown: Json = config if as_object else str(config)
        return json_answer({"vllm_config": shown, "vllm_env": {}, "system_env": {}})

    def _metrics(self, exchange: Exchange) -> Answer:
        driver = self._driver
        driver.catch_up()
        text = self._part.metrics.render(driver.engine.now_ns)
        text += self.control.metrics.render().encode() + self._lora_text().encode()
        text += self._http_metrics.render() + render_clock_metrics(driver, self._created_s)
        return Answer(200, text, _METRICS_TYPE)

    def _lora_text(self) -> str:
        """Which adapters have requests; "" without --enable-lora."""
        if self._lora is None:
            return ""
        here, driver = self._part.metrics.engines, self._driver
        flights = driver.delivery.flights.values()
        tickets = [flight.ticket for flight in flights if flight.worker in here]
        now_s = self._created_s + driver.engine.now_ns / NS_PER_S
        return self._lora.render([one.adapter for one in tickets if one.adapter], now_s)


def _check_json(request: Request) -> None:
    kind = request.headers.get("content-type", "")
    if kind != "application/json" and kind.split(";")[0].strip().lower() != "application/json":
        raise wrong_content_type()
