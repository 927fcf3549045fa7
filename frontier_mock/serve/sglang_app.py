"""One SGLang worker's HTTP surface: routes, keys, and the way from a request to the Driver.

One `SglangApp` serves one port (specs/sglang_and_routers.md sections 1.1 to 1.4). What changes a
running server (pauses, weights, sessions, adapters) comes from routes that are handed in.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from uuid import uuid4

from frontier_mock.core.commands import AUTO_WORKER, Submit
from frontier_mock.drive.driver import Driver
from frontier_mock.drive.protocol import ShutdownError, Subscriber
from frontier_mock.serve.answers import Answer
from frontier_mock.serve.connection import Exchange
from frontier_mock.serve.cors import Cors
from frontier_mock.serve.entrance import Accepted, enter
from frontier_mock.serve.http1 import Request
from frontier_mock.serve.routing import Handler, Routes, RouteTable, Table
from frontier_mock.serve.sglang_encoders import ENCODE, RemoteEncoders
from frontier_mock.serve.sglang_http_counts import HttpCounts
from frontier_mock.serve.sglang_keys import Keys
from frontier_mock.serve.sglang_responses import StoredResponses
from frontier_mock.serve.sglang_state import UP, InFlight, ServerState
from frontier_mock.serve.sglang_streaming import (
    Stream,
    Warming,
    Whole,
    engine_gone,
)
from frontier_mock.simtime import SimTime
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.anthropic import NOT_JSON, count_tokens_body, parse_messages
from frontier_mock.wire.sglang.chat import parse_chat
from frontier_mock.wire.sglang.completions import parse_completion
from frontier_mock.wire.sglang.dialects import in_envelope
from frontier_mock.wire.sglang.disaggregation import legs
from frontier_mock.wire.sglang.encoding import image_urls, received
from frontier_mock.wire.sglang.errors import (
    CrashError,
    SettledError,
    SglangError,
    anthropic_error,
    denied,
    native_error,
    openai_error,
    responses_error,
    stream_error_frame,
    unsupported_media_type,
)
from frontier_mock.wire.sglang.generate import parse_generate, read_abort
from frontier_mock.wire.sglang.late import LateError
from frontier_mock.wire.sglang.ollama import parse_ollama_chat, parse_ollama_generate
from frontier_mock.wire.sglang.ollama_answer import NDJSON
from frontier_mock.wire.sglang.request import (
    GENERATE,
    OLLAMA_CHAT,
    OLLAMA_GENERATE,
    VERTEX,
    SglangRequest,
)
from frontier_mock.wire.sglang.score import parse_score, refuse_embeddings
from frontier_mock.wire.sglang.tokenize import detokenize_body, tokenize_body
from frontier_mock.wire.sglang.vertex import parse_vertex
from frontier_mock.wire.sse import DONE, EVENT_STREAM

logger = logging.getLogger("frontier_mock")

Parse = Callable[[bytes, Mapping[str, str], ServedModel], SglangRequest]

_JSON_ROUTES = frozenset(
    (
        *("/v1/chat/completions", "/v1/completions", "/v1/tokenize", "/tokenize"),
        *("/v1/detokenize", "/detokenize", "/v1/score", "/v1/messages"),
        *("/v1/messages/count_tokens", "/v1/responses"),
    )
)
"""Routes that want to be told that the body is JSON."""

_TEXT = "text/plain; charset=utf-8"


class SglangApp:
    """The HTTP application of one worker (`serve.connection.App`)."""

    def __init__(
        self,
        served: ServedModel,
        driver: Driver,
        state: ServerState,
        keys: Keys,
        http: HttpCounts,
        more: Sequence[Routes],
    ) -> None:
        """`served.worker` is the port's first engine, or AUTO_WORKER for the cluster's own router.

        `more` are the routes beside those that generate.
        """
        self.state = state
        self._served = served
        # The cluster's own router makes the legs itself.
        front = served.sglang
        alone = front is None or served.worker == AUTO_WORKER
        self._part = None if alone or front is None else front.disaggregation
        self._driver = driver
        self._keys = keys
        self._http = http
        self._cors = Cors(("*",), ("*",), ("*",), allow_credentials=True)
        self._responses = StoredResponses(
            self.abort_matching, enabled=front is not None and front.enable_response_store
        )
        state.kept = self._responses.ended
        self._generators: dict[str, Parse] = {
            "/generate": parse_generate,
            "/v1/chat/completions": parse_chat,
            "/v1/completions": parse_completion,
            "/invocations": parse_chat,
            "/v1/score": parse_score,
            "/v1/messages": parse_messages,
            "/v1/responses": self._responses.parse,
        }
        if front is not None:
            names = front.routes
            self._generators |= {
                names.ollama_chat: parse_ollama_chat,
                names.ollama_generate: parse_ollama_generate,
                names.vertex: parse_vertex,
            }
        encoder = None if front is None else front.encoder
        self._encoders = RemoteEncoders(encoder.urls) if encoder and encoder.urls else None
        every = [self._responses, *more]
        self._waits_for = {*self._generators}
        own = self._own_routes()
        if encoder is not None and encoder.encodes_only:
            every, own = [*more], {}
            self._waits_for = {ENCODE}
        self._routes = RouteTable([own, *(routes.table() for routes in every)])
        self._asking: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Warm-up is over: the server says that it is ready, and /health agrees."""
        self.state.status = UP
        logger.info("The server is fired up and ready to roll!")

    def _own_routes(self) -> Table:
        table: dict[tuple[str, str], Handler] = {
            ("PUT", "/generate"): self._generate,
            ("POST", "/abort_request"): self._abort,
        }
        for path in self._generators:
            table["POST", path] = self._generate
        table["POST", "/v1/messages/count_tokens"] = self._count_tokens
        for path in ("/v1/embeddings", "/v1/classify", "/v1/rerank", "/encode", "/classify"):
            table["POST", path] = self._embed
        for path in ("/v1/rerank", "/encode", "/classify"):
            table["PUT", path] = self._embed
        for prefix in ("", "/v1"):
            table["POST", f"{prefix}/tokenize"] = self._tokenize
            table["POST", f"{prefix}/detokenize"] = self._detokenize
        return table

    # What a connection says

    def handle(self, exchange: Exchange) -> None:
        """Answer one request, now or later. Never raises."""
        self._try(self._route, exchange)

    def _route(self, exchange: Exchange) -> Answer | None:
        request = exchange.request
        answer = self._before(request)
        if answer is not None:
            return answer
        exchange.began_ns = self._driver.now_ns()
        self._http.began(request)
        found = self._routes.find(request.path, request.method)
        if isinstance(found, Answer):
            moved = self._routes.redirection(request, request.path)
            return moved if moved is not None and found.status == 404 else found
        return found(exchange)

    def _try(self, handler: Handler, exchange: Exchange) -> None:
        """The handler's answer, or that of the error it raises."""
        request = exchange.request
        try:
            answer = handler(exchange)
        except SglangError as error:
            answer = Answer(error.status, error.body())
        except Exception as error:
            logger.error("%s %s failed: %r", request.method, request.path, error)
            logger.debug("cause", exc_info=error)
            answer = Answer(500, b"Internal Server Error", _TEXT)
        if answer is not None:
            exchange.reply(answer)

    def answering(self, exchange: Exchange, status: int) -> str:
        """Cross-origin lines."""
        return self._cors.lines(exchange.request) if exchange.began_ns >= 0 else ""

    def answered(self, exchange: Exchange, status: int, body_bytes: int) -> None:
        """Count the answer, if the request came as far as a route."""
        if exchange.began_ns >= 0:
            self._http.ended(exchange.request, status)

    def arriving(self, request: Request) -> None:
        """Time stands still while a prompt is on its way in."""
        if request.path in self._waits_for:
            self._driver.keeper.arriving()

    def received(self, request: Request) -> None:
        """The end of `arriving`."""
        if request.path in self._waits_for:
            self._driver.keeper.received()
            self._driver.poke()

    def _before(self, request: Request) -> Answer | None:
        """The answer of whoever stands before the routes: keys, then cross-origin rules."""
        status = self._keys.refusal(
            request.method, request.path, request.headers.get("authorization")
        )
        if status:
            return Answer(status, denied(status).body())
        return self._cors.preflight(request) if request.method == "OPTIONS" else None

    # Generation

    def _generate(self, exchange: Exchange) -> Answer | None:
        encoders, request = self._encoders, exchange.request
        if encoders is None or not (images := self._images(request)):
            return self._enter(exchange)
        asked_ns = self._driver.now_ns()

        async def ask() -> None:
            failed: SglangError | None = None
            try:
                await encoders.encode(images, uuid4().hex, request)
            except SglangError as error:
                failed = error

            def go_on(exchange: Exchange) -> Answer | None:
                if failed is not None:
                    raise failed
                return self._enter(exchange, asked_ns)

            if not exchange.is_lost():
                self._try(go_on, exchange)

        task = asyncio.get_running_loop().create_task(ask())
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        return None

    def _images(self, request: Request) -> list[str]:
        """The images of a request for which others have encoders.

        A request that is refused or crashes has none: it need not wait to be told.
        """
        try:
            self._check_json(request)
            parsed = self._generators[request.path](request.body, request.headers, self._served)
        except (SglangError, LateError, SettledError, CrashError):
            return []
        seen = any(one.plan.submit.media for one in parsed.sequences)
        return image_urls(request.body) if seen else []

    def _enter(self, exchange: Exchange, asked_ns: SimTime = -1) -> Answer | None:
        """Parse and submit; with `asked_ns` images have been encoded since then."""
        request = exchange.request
        state = self.state

        def read() -> Accepted:
            self._check_json(request)
            parsed = self._generators[request.path](request.body, request.headers, self._served)
            if asked_ns >= 0:
                parsed = received(parsed)
            try:
                submits = legs(self._part, parsed.sequences, state.peer_of)
                entry = state.enter(parsed)
            except ValueError as error:
                raise _refused(str(error), parsed) from None
            if state.request_log is not None:
                entry.body = request.body
                state.request_log.received(parsed, request.body)
            kind = Stream if parsed.stream else Whole
            entry.arrival_ns = asked_ns
            entries.append(entry)
            behind = parsed.record is not None and parsed.record.background
            # Nobody waits for what is made in the background.
            waits = Exchange(request, None) if behind else exchange
            accepted = self.first(entry, kind(entry, waits, state), submits)
            return accepted._replace(detached=behind)

        entries: list[InFlight] = []
        try:
            ticket = enter(self._driver, exchange, read)
        except LateError as error:
            if error.stream:
                if error.frames is not None:
                    return Answer(200, error.frames(int(time.time())), EVENT_STREAM)
                return Answer(200, stream_error_frame(error.message) + DONE, EVENT_STREAM)
            raise native_error(error.message) from None
        except SettledError as settled:
            return Answer(200, settled.body(time.time()), settled.media_type)
        except CrashError as error:
            return self._crash(exchange, error)
        except ShutdownError:
            (entry,) = entries
            state.leave(entry)
            raise in_envelope(engine_gone(), entry.request.kind) from None
        (entry,) = entries
        entry.ticket = ticket
        answer = self._responses.entered(entry.request)
        if answer is not None:
            return answer

        def lost() -> None:
            state.leave(entry)
            if entry.ticket is not None:
                self._driver.abort(entry.ticket)

        exchange.on_lost = lost
        return None

    def _crash(self, exchange: Exchange, error: CrashError) -> Answer | None:
        logger.info("%s %s fails: %s", exchange.request.method, exchange.request.path, error)
        if not error.media_type:
            return Answer(500, b"Internal Server Error", _TEXT)
        exchange.begin(error.media_type)
        exchange.break_off()
        return None

    def first(
        self, entry: InFlight, subscriber: Subscriber, submits: Sequence[Submit] | None = None
    ) -> Accepted:
        """What to submit first: all of it, or the prompt of the samples to come.

        With n above 1 SGLang first computes each prompt, one after the other, with a request of its
        own that generates nothing (`_handle_batch_request`). A request that meets its other half
        elsewhere is left alone.
        """
        request = entry.request
        actor = request.routing.actor
        if submits is None:
            submits = legs(self._part, request.sequences, self.state.peer_of)
        if not request.warms or request.sequences[0].bootstrap is not None:
            return Accepted(submits, subscriber, request.n, actor)
        prompts = [
            replace(submit, output_tokens=1, max_tokens=1, finish_reason="length", output_keys=b"")
            for submit in submits[:: request.n]
        ]

        def go_on() -> None:
            ticket = entry.ticket
            assert ticket is not None
            carrier = ticket.actor
            try:
                if prompts:
                    entry.ticket = self._driver.submit([prompts.pop(0)], warming, carrier)
                    return
                entry.ticket = self._driver.submit(submits, subscriber, carrier, request.n)
            except ShutdownError as error:
                subscriber.failed(error)

        warming = Warming(entry, subscriber, go_on)
        return Accepted([prompts.pop(0)], warming, 1, actor)

    def _check_json(self, request: Request) -> None:
        if request.path in _JSON_ROUTES:
            kind = request.headers.get("content-type", "").lower()
            if kind.split(";")[0] != "application/json":
                if request.path.startswith("/v1/messages"):
                    raise anthropic_error(NOT_JSON, 400)
                if request.path == "/v1/responses":
                    raise responses_error(unsupported_media_type().message, 400)
                raise unsupported_media_type()

    # What ends it

    def _abort(self, exchange: Exchange) -> Answer:
        """POST /abort_request: always 200. The id must be one in flight, or everything is meant.

        From there on it is a prefix: the scheduler aborts whatever begins so. Running sequences
        end with their next token, and their answers carry what there is.
        """
        rid, everything = read_abort(exchange.request.body)
        state = self.state
        if everything:
            rid = ""
        elif not rid or rid not in state:
            return Answer(200, b"", "")
        state.aborts_asked += 1
        self.abort_matching(rid)
        return Answer(200, b"", "")

    def abort_matching(self, prefix: str) -> None:
        """Abort every sequence of this port whose id begins so; "" is all of them."""
        for entry, position in self.state.matching(prefix):
            if entry.ticket is not None:
                self._driver.halt(entry.ticket, position)

    # The rest

    def _embed(self, exchange: Exchange) -> Answer:
        """No model here makes embeddings."""
        raise refuse_embeddings(exchange.request.body)

    def _count_tokens(self, exchange: Exchange) -> Answer:
        self._check_json(exchange.request)
        return Answer(200, count_tokens_body(exchange.request.body, self._served))

    def _tokenize(self, exchange: Exchange) -> Answer:
        self._check_json(exchange.request)
        return Answer(200, tokenize_body(exchange.request.body, self._served))

    def _detokenize(self, exchange: Exchange) -> Answer:
        self._check_json(exchange.request)
        return Answer(200, detokenize_body(exchange.request.body, self._served))


def _refused(message: str, request: SglangRequest) -> Exception:
    """A ValueError of the tokenizer manager, as the route's handler tells of it."""
    if request.kind in (GENERATE, VERTEX):
        return LateError(message, request.stream)
    if request.kind in (OLLAMA_CHAT, OLLAMA_GENERATE):
        return CrashError(message, NDJSON if request.stream else "")
    return in_envelope(openai_error(message), request.kind)
