"""Who waits for a request to SGLang: a whole answer, or a stream. See `serve.streaming`."""

import time
from collections.abc import Callable, Sequence

from frontier_mock.drive.protocol import Flight, Subscriber, Ticket
from frontier_mock.serve.answers import Answer
from frontier_mock.serve.connection import Exchange
from frontier_mock.serve.sglang_state import InFlight, ServerState
from frontier_mock.serve.streaming import ERROR, virtual_times
from frontier_mock.wire.sglang.dialects import DIALECTS, in_envelope
from frontier_mock.wire.sglang.disaggregation import failure
from frontier_mock.wire.sglang.errors import QUEUE_FULL, SglangError, http_error, openai_error
from frontier_mock.wire.sglang.request import Ended, Live, SglangRequest, SglangSequence


def ended(
    state: ServerState, entry: InFlight, ticket: Ticket, flight: Flight, reason: str
) -> Ended:
    """The engine's word on one sequence, in SGLang's terms."""
    word = Ended(
        index=flight.position,
        output_tokens=flight.output_tokens,
        reason=reason,
        cached_tokens=flight.cached_tokens,
        host_tokens=flight.fetched_tokens,
        stored_tokens=flight.stored_tokens,
        storage=state.storage_class,
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
        drafted=flight.drafted,
        verified_tokens=state.verified_tokens,
    )
    if state.request_log is not None and entry.body:
        state.request_log.finished(entry.request, entry.body, word)
    return word


def refusal(ticket: Ticket) -> SglangError:
    """What SGLang answers to a request that its engine would not take."""
    if ticket.rejected == "queue_full":
        return http_error(QUEUE_FULL, 503)
    return openai_error(f"Internal server error: {ticket.rejected}", "InternalServerError", 500)


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
            self._give_up(refusal(ticket))
            return
        request, endings = self._request, self._endings
        broken = _broken(self._state, request.sequences, endings)
        if broken is not None:
            self._give_up(broken)
            return
        created_s = int(time.time())
        self._state.keep(request, endings, created_s)
        body = DIALECTS[request.kind].whole(request, endings, created_s)
        times = virtual_times(self._entry.arrived_ns(ticket), [one.outcome for one in endings])
        self._exchange.reply(Answer(200, body, extra=times))

    def failed(self, error: BaseException) -> None:
        """The engine is gone."""
        self._state.leave(self._entry)
        self._give_up(engine_gone())

    def _give_up(self, error: SglangError) -> None:
        self._state.keep(self._request)
        shown = in_envelope(error, self._request.kind)
        self._exchange.reply(Answer(shown.status, shown.body()))


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

    `wire.sglang.dialects` says when its status leaves, and how it ends if something fails.
    """

    __slots__ = (
        "_begun",
        "_created_s",
        "_dialect",
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
        self._dialect = DIALECTS[request.kind]
        self._created_s = int(time.time())
        self._renderer = self._dialect.stream(request, self._created_s)
        self._endings: list[Ended] = []
        self._ticket: Ticket | None = None
        self._begun = False
        self._last = b""

    def started(self, ticket: Ticket) -> None:
        """The engine has taken it."""
        self._ticket = ticket
        if self._state.streams is not None:
            self._state.streams(ticket)
        if self._dialect.at_once:
            self._begin(ticket)
            self._exchange.write(self._renderer.head())

    def _begin(self, ticket: Ticket) -> None:
        if not self._begun:
            self._begun = True
            dialect = self._dialect
            arrival_ns = self._entry.arrived_ns(ticket)
            lines = f"x-frontier-arrival-ns: {arrival_ns}\r\n{dialect.headers}"
            self._exchange.begin(dialect.media_type, lines)

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
            flight.fetched_tokens,
            flight.stored_tokens,
            self._state.storage_class,
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
        broken = _broken(self._state, self._request.sequences, self._endings)
        if broken is not None:
            self._give_up(broken)
            return
        self._begin(ticket)
        self._state.keep(self._request, self._endings, self._created_s)
        self._exchange.end(self._last + self._renderer.tail(self._endings))

    def failed(self, error: BaseException) -> None:
        """The engine is gone."""
        self._state.leave(self._entry)
        self._give_up(engine_gone())

    def _refuse(self, ticket: Ticket) -> None:
        """A refusal by the scheduler is a chunk of /generate, and an error frame elsewhere."""
        error = refusal(ticket)
        self._begin(ticket)
        if not self._dialect.refused_in_chunk:
            self._fail(error)
            return
        renderer = self._renderer
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
        self._exchange.end(renderer.finish(0, 0, word) + renderer.tail([word]))

    def _give_up(self, error: SglangError) -> None:
        shown = in_envelope(error, self._request.kind)
        if self._begun:
            self._fail(shown)
        else:
            self._exchange.reply(Answer(shown.status, shown.body()))

    def _fail(self, error: SglangError) -> None:
        """An error and the end of a stream that has begun."""
        frame = self._renderer.error(error)
        if frame is None:
            self._exchange.break_off()
        else:
            self._exchange.end(frame)


def _broken(
    state: ServerState, sequences: Sequence[SglangSequence], endings: Sequence[Ended]
) -> SglangError | None:
    """500 if the transfer of a prompt's KV failed, in the words of this side of it."""
    for one in endings:
        if one.reason == ERROR:
            met = one.scheduled_ns >= 0
            message = failure(state.disaggregation_mode, met, sequences[one.index])
            return openai_error(message, "InternalServerError", 500)
    return None
