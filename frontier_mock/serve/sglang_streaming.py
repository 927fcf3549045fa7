"""Who waits for a request to SGLang: a whole answer, or a stream. See `serve.streaming`."""

import time
from collections.abc import Callable, Sequence

from frontier_mock.drive.protocol import Flight, Subscriber, Ticket
from frontier_mock.serve.answers import EVENT_STREAM, Answer
from frontier_mock.serve.connection import Exchange
from frontier_mock.serve.sglang_state import InFlight, ServerState
from frontier_mock.serve.streaming import ERROR, virtual_times
from frontier_mock.wire.sglang.anthropic_answer import MessagesStream, render_messages
from frontier_mock.wire.sglang.disaggregation import failure
from frontier_mock.wire.sglang.errors import (
    QUEUE_FULL,
    SglangError,
    anthropic_error,
    http_error,
    nested_error,
    openai_error,
    openai_stream_error_frame,
    stream_error_frame,
)
from frontier_mock.wire.sglang.native import GenerateStream, render_generate
from frontier_mock.wire.sglang.openai import OpenAiStream, render_openai
from frontier_mock.wire.sglang.request import (
    GENERATE,
    MESSAGES,
    RESPONSES,
    SCORE,
    Ended,
    Live,
    SglangRequest,
)
from frontier_mock.wire.sglang.responses_answer import ResponsesStream, render_responses
from frontier_mock.wire.sglang.score import render_score
from frontier_mock.wire.sse import DONE

_NAMES = {400: "BAD_REQUEST", 503: "SERVICE_UNAVAILABLE", 500: "INTERNAL_SERVER_ERROR"}


def ended(
    state: ServerState, entry: InFlight, ticket: Ticket, flight: Flight, reason: str
) -> Ended:
    """The engine's word on one sequence, in SGLang's terms."""
    return Ended(
        index=flight.position,
        output_tokens=flight.output_tokens,
        reason=reason,
        cached_tokens=flight.cached_tokens,
        retractions=flight.preemptions,
        queued=flight.queued,
        arrival_ns=entry.arrived_ns(ticket),
        scheduled_ns=flight.scheduled_ns,
        first_token_ns=flight.first_token_ns,
        finish_ns=flight.finish_ns,
        weight_version=state.weight_version,
        weight_versions=state.spans_of(flight),
        now_s=time.time(),
        dp_rank=state.rank_of(flight),
    )


def refusal(ticket: Ticket) -> SglangError:
    """What SGLang answers to a request that its engine would not take."""
    if ticket.rejected == "queue_full":
        return http_error(QUEUE_FULL, 503)
    return openai_error(f"Internal server error: {ticket.rejected}", "InternalServerError", 500)


def in_envelope(error: SglangError, request: SglangRequest) -> SglangError:
    """The same in the envelope of the request's route."""
    if request.kind == MESSAGES:
        return anthropic_error(error.message, error.status)
    if request.kind == RESPONSES:
        # The handler answers whatever it catches with a 400 that says what it was.
        message = error.message if error.status == 400 else f"{error.status}: {error.message}"
        return nested_error(message, "invalid_request_error", 400)
    return error


def engine_gone() -> SglangError:
    """500 once the engine is gone, where SGLang's own process would be gone with it."""
    return openai_error("Internal server error: engine is dead", "InternalServerError", 500)


class Whole:
    """Waits for every sequence, then renders once."""

    __slots__ = ("_endings", "_entry", "_exchange", "_request", "_state")

    stream_interval = 0

    def __init__(self, entry: InFlight, exchange: Exchange, state: ServerState) -> None:
        self._entry = entry
        self._request: SglangRequest = entry.request
        self._exchange = exchange
        self._state = state
        self._endings: list[Ended] = []

    def started(self, ticket: Ticket) -> None:
        """Nothing to say before the end."""

    def tokens(self, position: int, first: int, last: int) -> bool:
        """Nothing to say before the end."""
        return True

    def ended(self, ticket: Ticket, flight: Flight, reason: str) -> None:
        """One sequence is complete."""
        self._endings.append(ended(self._state, self._entry, ticket, flight, reason))

    def deliver(self, ticket: Ticket) -> None:
        """The answer, or why there is none."""
        self._state.leave(self._entry)
        self._state.last_output_ns = ticket.arrival_ns
        if ticket.rejected:
            error = in_envelope(refusal(ticket), self._request)
            self._exchange.reply(Answer(error.status, error.body()))
            return
        request, endings = self._request, self._endings
        broken = _broken(self._state, endings)
        if broken is not None:
            error = in_envelope(broken, request)
            self._exchange.reply(Answer(error.status, error.body()))
            return
        if request.kind == GENERATE:
            body = render_generate(request, endings)
        elif request.kind == SCORE:
            body = render_score(request, endings)
        elif request.kind == MESSAGES:
            body = render_messages(request, endings)
        elif request.kind == RESPONSES:
            body = render_responses(request, endings, int(time.time()))
        else:
            body = render_openai(request, endings, int(time.time()))
        times = virtual_times(self._entry.arrived_ns(ticket), [one.outcome for one in endings])
        self._exchange.reply(Answer(200, body, extra=times))

    def failed(self, error: BaseException) -> None:
        """The engine is gone."""
        self._state.leave(self._entry)
        gone = in_envelope(engine_gone(), self._request)
        self._exchange.reply(Answer(gone.status, gone.body()))


class Warming:
    """Waits for the hidden request that computes one prompt, and sets off what comes next."""

    __slots__ = ("_entry", "_next", "_real")

    stream_interval = 0

    def __init__(self, entry: InFlight, real: Subscriber, go_on: Callable[[], None]) -> None:
        """`real` is who waits for the samples, and hears of it if there will be none."""
        self._entry = entry
        self._real = real
        self._next = go_on

    def started(self, ticket: Ticket) -> None:
        """Nobody sees it."""

    def tokens(self, position: int, first: int, last: int) -> bool:
        """Nobody sees it."""
        return True

    def ended(self, ticket: Ticket, flight: Flight, reason: str) -> None:
        """Nobody sees it."""

    def deliver(self, ticket: Ticket) -> None:
        """The prompt is cached, or the queue was full."""
        if self._entry.arrival_ns < 0:
            self._entry.arrival_ns = ticket.arrival_ns
        if ticket.rejected:
            self._real.deliver(ticket)
        else:
            self._next()

    def failed(self, error: BaseException) -> None:
        """The engine is gone."""
        self._real.failed(error)


class Stream:
    """Writes one event stream.

    Most routes send their status as soon as a request is in; chat and completions wait for the
    first chunk, so that a refusal can still be a plain error.
    """

    __slots__ = (
        "_begun",
        "_endings",
        "_entry",
        "_exchange",
        "_last",
        "_renderer",
        "_request",
        "_state",
        "_ticket",
        "stream_interval",
    )

    def __init__(self, entry: InFlight, exchange: Exchange, state: ServerState) -> None:
        request = entry.request
        self.stream_interval = request.stream_interval
        self._entry = entry
        self._request = request
        self._exchange = exchange
        self._state = state
        self._renderer = _renderer(request)
        self._endings: list[Ended] = []
        self._ticket: Ticket | None = None
        self._begun = False
        self._last = b""

    def started(self, ticket: Ticket) -> None:
        """The engine has taken it."""
        self._ticket = ticket
        if self._state.streams is not None:
            self._state.streams(ticket)
        renderer = self._renderer
        if not isinstance(renderer, OpenAiStream):
            self._begin(ticket)
        if isinstance(renderer, ResponsesStream):
            self._exchange.write(renderer.head())

    def _begin(self, ticket: Ticket) -> None:
        if not self._begun:
            self._begun = True
            arrival_ns = self._entry.arrived_ns(ticket)
            self._exchange.begin(EVENT_STREAM, f"x-frontier-arrival-ns: {arrival_ns}\r\n")

    def tokens(self, position: int, first: int, last: int) -> bool:
        """One step's worth of one sequence; a reader that is behind gets several at once later."""
        exchange, ticket = self._exchange, self._ticket
        assert ticket is not None
        if exchange.behind():
            return False
        flight = ticket.flights[position]
        live = Live(
            flight.cached_tokens,
            flight.preemptions,
            self._state.weight_version,
            time.time(),
            self._state.rank_of(flight),
        )
        data = self._renderer.delta(position, first, last, live)
        if data:
            self._begin(ticket)
            exchange.write(data)
        return True

    def ended(self, ticket: Ticket, flight: Flight, reason: str) -> None:
        """Last text of a sequence. That of the last one waits for `deliver`."""
        result = ended(self._state, self._entry, ticket, flight, reason)
        self._endings.append(result)
        if reason == ERROR:
            return
        data = self._renderer.finish(result.index, flight.sent, result)
        if ticket.open == 0:
            self._last = data
        elif data:
            self._begin(ticket)
            self._exchange.write(data)

    def deliver(self, ticket: Ticket) -> None:
        """The last bytes: last text, what follows it, `[DONE]`, end of body."""
        self._state.leave(self._entry)
        if ticket.rejected:
            self._refuse(ticket)
            return
        broken = _broken(self._state, self._endings)
        if broken is not None:
            error = in_envelope(broken, self._request)
            if self._begun:
                self._exchange.end(self._error_end(error))
            else:
                self._exchange.reply(Answer(error.status, error.body()))
            return
        self._begin(ticket)
        self._exchange.end(self._last + self._renderer.tail(self._endings))

    def failed(self, error: BaseException) -> None:
        """The engine is gone."""
        self._state.leave(self._entry)
        gone = in_envelope(engine_gone(), self._request)
        if self._begun:
            self._exchange.end(self._error_end(gone))
        else:
            self._exchange.reply(Answer(gone.status, gone.body()))

    def _refuse(self, ticket: Ticket) -> None:
        """A refusal by the scheduler is a chunk of /generate, and an error frame elsewhere."""
        error = refusal(ticket)
        self._begin(ticket)
        if self._request.kind != GENERATE:
            self._exchange.end(self._error_end(error))
            return
        renderer = self._renderer
        assert isinstance(renderer, GenerateStream)
        word = Ended(
            0,
            0,
            "abort",
            queued=True,
            arrival_ns=ticket.arrival_ns,
            finish_ns=ticket.arrival_ns,
            weight_version=self._state.weight_version,
            message=error.message,
            status=error.status,
            now_s=time.time(),
        )
        self._exchange.end(renderer.finish(0, 0, word) + DONE)

    def _error_end(self, error: SglangError) -> bytes:
        """An error and the end of the stream."""
        if isinstance(self._renderer, MessagesStream):
            return self._renderer.error(error.message, error.status)
        if isinstance(self._renderer, ResponsesStream):
            return self._renderer.error(error.message)
        if self._request.kind == GENERATE:
            return stream_error_frame(error.message, error.status) + DONE
        name = _NAMES.get(error.status, str(error.status))
        return openai_stream_error_frame(error.message, name, error.status) + DONE


def _broken(state: ServerState, endings: Sequence[Ended]) -> SglangError | None:
    """500 if the transfer of a prompt's KV failed, in the words of this side of it."""
    for one in endings:
        if one.reason == ERROR:
            met = one.scheduled_ns >= 0
            message = failure(state.disaggregation_mode, met)
            return openai_error(message, "InternalServerError", 500)
    return None


Renderer = GenerateStream | MessagesStream | OpenAiStream | ResponsesStream


def _renderer(request: SglangRequest) -> Renderer:
    if request.kind == GENERATE:
        return GenerateStream(request)
    if request.kind == MESSAGES:
        return MessagesStream(request)
    if request.kind == RESPONSES:
        return ResponsesStream(request, int(time.time()))
    return OpenAiStream(request, int(time.time()))
