"""One vLLM worker's HTTP surface: routes, guards, and the way from a request to the Driver.

One `VllmApp` serves one port. It is a plain callable for `aiohttp.web.Server`; routing is a
dictionary because every path is fixed.
"""

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from aiohttp import web

from frontier_mock.core.commands import Submit
from frontier_mock.drive.driver import Driver, ShutdownError, Ticket
from frontier_mock.serve.answers import EVENT_STREAM, Answer, Handler, Heads, Written
from frontier_mock.serve.carriers import actor_of
from frontier_mock.serve.clock_metrics import render_clock_metrics
from frontier_mock.serve.settings import HttpSettings
from frontier_mock.serve.streaming import Stream, Whole
from frontier_mock.serve.worker_metrics import WorkerMetrics
from frontier_mock.wire.chat import parse_chat
from frontier_mock.wire.completions import parse_completion
from frontier_mock.wire.errors import (
    ApiError,
    engine_dead,
    internal_error,
    unauthorized_body,
    wrong_content_type,
)
from frontier_mock.wire.generation import Generation, Outcome
from frontier_mock.wire.models import models_body
from frontier_mock.wire.prometheus import Counter
from frontier_mock.wire.render import render_response
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sse import error_frames
from frontier_mock.wire.tokenize import detokenize_body, tokenize_body

logger = logging.getLogger("frontier_mock")

Parse = Callable[[bytes, Mapping[str, str], ServedModel], Generation]

_GUARDED = ("/v1", "/v2", "/inference", "/cohere")
"""Path prefixes behind the API key (vllm.md section 3.1)."""

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_UNCOUNTED = frozenset(
    ("/metrics", "/metrics/", "/health", "/load", "/ping", "/version", "/server_info")
)
"""Handlers that vLLM leaves out of http_requests_total (vllm.md section 1.1)."""


class WorkerPart(NamedTuple):
    """What one port serves: the worker's place in the cluster, its model and its metrics."""

    number: int
    served: ServedModel
    metrics: WorkerMetrics


class Routes(Protocol):
    """A set of routes that another module contributes."""

    def table(self) -> dict[tuple[str, str], Handler]:
        """Handlers by (method, path)."""
        ...


class VllmApp:
    """The HTTP application of one worker."""

    def __init__(
        self,
        part: WorkerPart,
        driver: Driver,
        settings: HttpSettings,
        more: Sequence[Routes],
    ) -> None:
        self._part = part
        self._driver = driver
        self._settings = settings
        self._heads = Heads()
        self._stays = Written(keep_alive=True)
        self._closes = Written(keep_alive=False)
        self._load = 0
        self._created_s = time.time()
        self._requests: dict[tuple[str, str, str], int] = {}
        self._keys = [key.encode() for key in settings.api_key]
        self._root = settings.root_path.rstrip("/")
        self._routes: dict[str, dict[str, Handler]] = {}
        tables = [self._own_routes(), *(routes.table() for routes in more)]
        for (method, path), handler in (item for table in tables for item in table.items()):
            self._routes.setdefault(path, {})[method] = handler

    def _own_routes(self) -> dict[tuple[str, str], Handler]:
        table: dict[tuple[str, str], Handler] = {
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._completions,
            ("GET", "/v1/models"): self._models,
            ("GET", "/health"): self._health,
            ("GET", "/ping"): self._health,
            ("POST", "/ping"): self._health,
            ("GET", "/version"): self._version,
            ("GET", "/load"): self._server_load,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/detokenize"): self._detokenize,
        }
        for path in ("/metrics", "/metrics/"):
            for method in ("GET", "HEAD", "POST"):
                table[method, path] = self._metrics
        if self._settings.dev_mode:
            table["GET", "/server_info"] = self._server_info
        return table

    # The way through

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request. Raises nothing but the cancellation of a client that is gone."""
        path = request.path
        if self._root and path.startswith(self._root + "/"):
            path = path[len(self._root) :]
        method = request.method
        answer: Answer | None
        try:
            handler = self._find(method, path, request)
            answer = handler if isinstance(handler, Answer) else await handler(request)
        except ApiError as error:
            answer = _error_answer(error)
        except ConnectionError:
            return self._closes
        except Exception as error:
            logger.error("%s %s failed: %r", method, path, error)
            logger.debug("cause", exc_info=error)
            answer = _error_answer(internal_error())
        if path not in _UNCOUNTED:
            status = 200 if answer is None else answer.status
            label = path if path in self._routes else "none"
            key = (label, method, f"{status // 100}xx")
            self._requests[key] = self._requests.get(key, 0) + 1
        if answer is not None:
            if not self._write(request, answer):
                return self._closes
        elif request.version < (1, 1):
            # A body without chunks ends where the connection does.
            return self._closes
        return self._stays if request.keep_alive else self._closes

    def _find(self, method: str, path: str, request: web.BaseRequest) -> Handler | Answer:
        """The handler, or the answer of whoever stands before it."""
        if self._keys and method != "OPTIONS" and path.startswith(_GUARDED):
            given = request.headers.get("authorization", "")
            scheme, _, key = given.partition(" ")
            known = [hmac.compare_digest(key.encode(), wanted) for wanted in self._keys]
            if scheme.lower() != "bearer" or not any(known):
                return Answer(401, unauthorized_body())
        by_method = self._routes.get(path)
        if by_method is None:
            return Answer(404, b'{"detail":"Not Found"}')
        handler = by_method.get(method)
        if handler is None:
            allow = f"allow: {', '.join(by_method)}\r\n"
            return Answer(405, b'{"detail":"Method Not Allowed"}', extra=allow)
        return handler

    def _write(self, request: web.BaseRequest, answer: Answer) -> bool:
        transport = request.transport
        if transport is None or transport.is_closing():
            return False
        if self._settings.enable_request_id_headers:
            answer = answer._replace(extra=answer.extra + self._request_id(request))
        head = self._heads.complete(answer, close=not request.keep_alive)
        transport.write(head if request.method == "HEAD" else head + answer.body)
        return True

    def _request_id(self, request: web.BaseRequest) -> str:
        given = request.headers.get("x-request-id")
        return f"x-request-id: {uuid.uuid4().hex if given is None else given}\r\n"

    # Generation

    async def _chat(self, request: web.BaseRequest) -> Answer | None:
        return await self._generate(request, parse_chat)

    async def _completions(self, request: web.BaseRequest) -> Answer | None:
        return await self._generate(request, parse_completion)

    async def _generate(self, request: web.BaseRequest, parse: Parse) -> Answer | None:
        self._load += 1
        try:
            ticket, subscriber, generation = await self._enter(request, parse)
            try:
                await subscriber.done
            except (ApiError, asyncio.CancelledError):
                # Refused in part, or the client has gone: what is still inside has no reader.
                self._driver.abort(ticket)
                raise
            except Exception:
                raise engine_dead() from None
            if isinstance(subscriber, Stream):
                return None
            body = render_response(generation, subscriber.outcomes, int(time.time()))
            return Answer(200, body, extra=_virtual_times(ticket, subscriber.outcomes))
        finally:
            self._load -= 1

    async def _enter(
        self, request: web.BaseRequest, parse: Parse
    ) -> tuple[Ticket, Whole | Stream, Generation]:
        """Read, parse and submit; time stands still meanwhile."""
        driver = self._driver
        keeper = driver.keeper
        actor = actor_of(request.headers)
        keeper.arriving()
        try:
            _check_json(request)
            body = await request.read()
            generation = parse(body, request.headers, self._part.served)
            actor = actor or generation.actor
            subscriber = self._subscriber(request, generation)
            submits = [self._placed(plan.submit) for plan in generation.sequences]
            ticket = driver.submit(submits, subscriber, actor, generation.n)
            return ticket, subscriber, generation
        except ApiError:
            keeper.refuse(actor)
            raise
        except ShutdownError:
            keeper.refuse(actor)
            raise engine_dead() from None
        finally:
            keeper.received()
            driver.poke()

    def _placed(self, submit: Submit) -> Submit:
        return Submit(
            submit.prompt,
            submit.output_tokens,
            submit.max_tokens,
            submit.finish_reason,
            self._part.number,
            submit.priority,
            submit.output_keys,
            submit.tag,
        )

    def _subscriber(self, request: web.BaseRequest, generation: Generation) -> Whole | Stream:
        loop = asyncio.get_running_loop()
        if not generation.stream:
            return Whole(generation, loop)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client is gone")
        chunked = request.version >= (1, 1)
        own = self._request_id(request) if self._settings.enable_request_id_headers else ""
        close = not (chunked and request.keep_alive)

        def head(ticket: Ticket) -> bytes:
            extra = f"x-frontier-arrival-ns: {ticket.arrival_ns}\r\n{own}"
            return self._heads.streamed(EVENT_STREAM, extra, chunked=chunked, close=close)

        return Stream(generation, int(time.time()), transport, head, loop, chunked=chunked)

    # The rest

    async def _health(self, request: web.BaseRequest) -> Answer:
        return Answer(200 if self._driver.error is None else 503, b"", "")

    async def _version(self, request: web.BaseRequest) -> Answer:
        return _json_answer({"version": self._settings.version})

    async def _server_load(self, request: web.BaseRequest) -> Answer:
        tracked = self._load if self._settings.enable_server_load_tracking else 0
        return _json_answer({"server_load": tracked})

    async def _models(self, request: web.BaseRequest) -> Answer:
        return Answer(200, models_body(self._part.served, int(time.time())))

    async def _tokenize(self, request: web.BaseRequest) -> Answer:
        _check_json(request)
        return Answer(200, tokenize_body(await request.read(), self._part.served))

    async def _detokenize(self, request: web.BaseRequest) -> Answer:
        _check_json(request)
        return Answer(200, detokenize_body(await request.read(), self._part.served))

    async def _server_info(self, request: web.BaseRequest) -> Answer:
        served = self._part.served
        config = {"model": served.root, "max_model_len": served.max_model_len, "seed": served.seed}
        as_object = request.query.get("config_format") == "json"
        shown = {"model_config": config} if as_object else str(config)
        return _json_answer({"vllm_config": shown, "vllm_env": {}, "system_env": {}})

    async def _metrics(self, request: web.BaseRequest) -> Answer:
        driver = self._driver
        driver.catch_up()
        part = self._part
        running_tokens = driver.running_tokens(part.number)
        text = part.metrics.render(driver.engine.now_ns, running_tokens)
        text += self._http_metrics() + render_clock_metrics(driver, self._created_s)
        return Answer(200, text, _METRICS_TYPE)

    def _http_metrics(self) -> bytes:
        children = [
            {"handler": handler, "method": method, "status": status}
            for handler, method, status in self._requests
        ]
        help_text = "Total number of requests by method, status and handler."
        family = Counter("http_requests", help_text, children, self._created_s)
        family.values[:] = list(self._requests.values())
        return family.render().encode()


def _check_json(request: web.BaseRequest) -> None:
    kind = request.headers.get("content-type", "")
    if kind != "application/json" and kind.split(";")[0].strip().lower() != "application/json":
        raise wrong_content_type()


def _json_answer(value: Mapping[str, object]) -> Answer:
    return Answer(200, json.dumps(value, separators=(",", ":")).encode())


def _error_answer(error: ApiError) -> Answer:
    """A late error of a request that asked for a stream is a stream with one error frame."""
    if error.late and error.stream_kind:
        return Answer(200, error_frames(error, error.stream_kind), EVENT_STREAM)
    return Answer(error.status, error.body())


def _virtual_times(ticket: Ticket, outcomes: Sequence[Outcome]) -> str:
    """When it happened in virtual time, as response headers."""
    firsts = [o.first_token_ns for o in outcomes if o.first_token_ns >= 0]
    return (
        f"x-frontier-arrival-ns: {ticket.arrival_ns}\r\n"
        f"x-frontier-first-token-ns: {min(firsts, default=-1)}\r\n"
        f"x-frontier-finish-ns: {max([o.finish_ns for o in outcomes], default=-1)}\r\n"
        f"x-frontier-output-tokens: {sum([o.output_tokens for o in outcomes])}\r\n"
        f"x-frontier-cached-tokens: {sum([o.cached_tokens for o in outcomes])}\r\n"
    )
