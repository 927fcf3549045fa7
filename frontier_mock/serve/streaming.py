"""Who waits for a request: a whole body, or a stream that is written as steps end.

Both are subscribers of the Driver (`drive.driver.Subscriber`) and write from inside its pump,
straight into the connection: no queue, no task and no wake-up per chunk.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from frontier_mock.drive.protocol import Flight, Ticket
from frontier_mock.serve.answers import Answer
from frontier_mock.serve.connection import Exchange
from frontier_mock.serve.weight_versions import WeightVersions
from frontier_mock.simtime import SimTime
from frontier_mock.wire.dialects import DIALECTS, error_body, late_error
from frontier_mock.wire.errors import (
    ApiError,
    backlog_full,
    engine_dead,
    internal_error,
    paused,
    queue_full,
)
from frontier_mock.wire.generation import Generation, Outcome, WeightSpan
from frontier_mock.wire.request_metrics import with_metrics
from frontier_mock.wire.sse import EVENT_STREAM, KEEP_ALIVE

Keep = Callable[[Sequence[Outcome], int], None]
"""Told of a request's outcomes and of the unix time that its answer carries."""

ERROR = "error"
"""Why a sequence ended whose KV transfer failed."""


class Whole:
    """Waits for every choice, then renders once."""

    __slots__ = ("_exchange", "_outcomes", "_versions", "generation", "kept")

    stream_interval = 0

    def __init__(
        self, generation: Generation, exchange: Exchange, versions: WeightVersions | None = None
    ) -> None:
        """`versions` are asked which weights made the output, if somebody may change them.

        `kept`, where it is set, is told of the outcomes at the end, of none if there are none.
        """
        self.kept: Keep | None = None
        self.generation = generation
        self._exchange = exchange
        self._versions = versions
        self._outcomes: list[Outcome] = []

    def started(self, ticket: Ticket) -> None:
        """Nothing to say before the end."""

    def tokens(self, position: int, first: int, last: int) -> bool:
        """Nothing to say before the end."""
        return True

    def ended(self, ticket: Ticket, flight: Flight, reason: str) -> None:
        """One choice is complete."""
        self._outcomes.append(_outcome(self.generation, ticket, flight, reason, self._versions))

    def deliver(self, ticket: Ticket) -> None:
        """The answer, or why there is none."""
        if ticket.rejected:
            self._give_up(refusal(ticket))
            return
        outcomes = self._outcomes
        if _failed(outcomes):
            self._give_up(internal_error())
            return
        created_s = int(time.time())
        if self.kept is not None:
            self.kept(outcomes, created_s)
        body = DIALECTS[self.generation.kind].whole(self.generation, outcomes, created_s)
        self._exchange.reply(Answer(200, body, extra=virtual_times(ticket.arrival_ns, outcomes)))

    def failed(self, error: BaseException) -> None:
        """The engine is gone."""
        self._give_up(engine_dead())

    def _give_up(self, error: ApiError) -> None:
        if self.kept is not None:
            self.kept((), 0)
        self._exchange.reply(error_answer(error, self.generation.kind))


class Stream:
    """Writes one event stream.

    Before `started` nothing has been written, and a refusal still becomes a plain HTTP error.
    """

    __slots__ = (
        "_begun",
        "_created_s",
        "_exchange",
        "_last",
        "_outcomes",
        "_renderer",
        "_versions",
        "generation",
        "kept",
        "stream_interval",
    )

    def __init__(
        self, generation: Generation, exchange: Exchange, versions: WeightVersions | None = None
    ) -> None:
        """As a whole body's."""
        self.kept: Keep | None = None
        self.stream_interval = generation.stream_interval
        self.generation = generation
        self._exchange = exchange
        self._versions = versions
        self._created_s = int(time.time())
        self._renderer = DIALECTS[generation.kind].stream(generation, self._created_s)
        self._outcomes: list[Outcome] = []
        self._begun = False
        self._last = b""

    def started(self, ticket: Ticket) -> None:
        """The engine has taken it: status and headers leave now, as uvicorn sends them."""
        self._begun = True
        self._exchange.begin(EVENT_STREAM, f"x-frontier-arrival-ns: {ticket.arrival_ns}\r\n")
        self._exchange.write(self._renderer.head())

    def tokens(self, position: int, first: int, last: int) -> bool:
        """One step's worth of one choice.

        A reader that is behind gets its next tokens merged into one chunk, as vLLM's output
        collector does when its consumer is slower than the engine.
        """
        exchange = self._exchange
        if exchange.behind():
            return False
        index = self.generation.sequences[position].index
        exchange.write(self._renderer.delta(index, first, last))
        return True

    def ended(self, ticket: Ticket, flight: Flight, reason: str) -> None:
        """Last delta of a choice. That of the last choice waits for `deliver`."""
        result = _outcome(self.generation, ticket, flight, reason, self._versions)
        self._outcomes.append(result)
        if reason == ERROR:
            return
        data = self._renderer.finish(result.index, flight.sent, result)
        if ticket.open == 0:
            self._last = data
        else:
            self._exchange.write(data)

    def deliver(self, ticket: Ticket) -> None:
        """The last bytes: final delta, usage if asked for, `[DONE]`, end of body."""
        if ticket.rejected:
            self._give_up(refusal(ticket))
        elif _failed(self._outcomes):
            self._give_up(internal_error())
        else:
            if self.kept is not None:
                self.kept(self._outcomes, self._created_s)
            self._exchange.end(self._last + self._renderer.tail(self._outcomes))

    def failed(self, error: BaseException) -> None:
        """The engine is gone."""
        self._give_up(internal_error() if self._begun else engine_dead())

    def _give_up(self, error: ApiError) -> None:
        if self.kept is not None:
            self.kept((), 0)
        if self._begun:
            self._exchange.end(self._renderer.error(error))
        else:
            if error.late and error.status == 503:
                error.stream_kind = self.generation.kind
            self._exchange.reply(error_answer(error, self.generation.kind))


class KeptAlive(Stream):
    """A stream that says something whenever it has been silent for `interval_s` real seconds."""

    __slots__ = ("_interval_s", "_loop", "_said_s", "_timer")

    def __init__(
        self,
        generation: Generation,
        exchange: Exchange,
        versions: WeightVersions | None,
        interval_s: float,
    ) -> None:
        super().__init__(generation, exchange, versions)
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._said_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def started(self, ticket: Ticket) -> None:
        """Headers leave, and silence begins."""
        super().started(ticket)
        self._said_s = self._loop.time()
        self._timer = self._loop.call_later(self._interval_s, self._look)

    def tokens(self, position: int, first: int, last: int) -> bool:
        """As a stream's."""
        said = super().tokens(position, first, last)
        if said:
            self._said_s = self._loop.time()
        return said

    def deliver(self, ticket: Ticket) -> None:
        """As a stream's."""
        self._stop()
        super().deliver(ticket)

    def failed(self, error: BaseException) -> None:
        """As a stream's."""
        self._stop()
        super().failed(error)

    def _look(self) -> None:
        """One timer per stream, set anew for what is left of the interval."""
        if self._exchange.is_lost():
            return
        now_s = self._loop.time()
        if now_s - self._said_s >= self._interval_s:
            self._exchange.write(KEEP_ALIVE)
            self._said_s = now_s
        left_s = self._said_s + self._interval_s - now_s
        self._timer = self._loop.call_later(left_s, self._look)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def error_answer(error: ApiError, kind: str = "") -> Answer:
    """A late error of a request that asked for a stream is a stream with one error frame.

    `kind` is that of the generation, or of the route, whose dialect the error is told in.
    """
    if error.late and error.stream_kind:
        return Answer(200, late_error(error, error.stream_kind), EVENT_STREAM)
    return Answer(error.status, error_body(error, kind))


def _outcome(
    generation: Generation,
    ticket: Ticket,
    flight: Flight,
    reason: str,
    versions: WeightVersions | None,
) -> Outcome:
    """The engine's word on one choice, in the wire's terms."""
    spans = None
    if versions is not None:
        made_by = versions.spans_of(flight)
        if generation.weight_versions:
            whole = ((versions.current, 0, flight.output_tokens),)
            spans = tuple(WeightSpan(*s) for s in made_by or whole if s[1] < s[2])
    if generation.is_silent:
        reason = "stop" if reason == "length" else reason
        spans = () if spans else spans
    outcome = generation.sequences[flight.position].outcome(
        0 if generation.is_silent else flight.output_tokens,
        reason,
        flight.cached_tokens,
        ticket.arrival_ns,
        flight.first_token_ns,
        flight.finish_ns,
        spans,
    )
    return with_metrics(generation, outcome, flight.drafted)


def _failed(outcomes: Sequence[Outcome]) -> bool:
    """Whether the engine gave up on a choice: its prompt's KV did not come."""
    return any(outcome.finish_reason == ERROR for outcome in outcomes)


def refusal(ticket: Ticket) -> ApiError:
    """What vLLM answers to a request that its engine would not take.

    Over-long prompts never get this far, so any other reason is a fault of ours.
    """
    refusals = {
        "queue_full": queue_full,
        "backlog_full": backlog_full,
        "paused": paused,
        "failed": engine_dead,
    }
    return refusals.get(ticket.rejected, internal_error)()


def virtual_times(arrival_ns: SimTime, outcomes: Sequence[Outcome]) -> str:
    """When it happened in virtual time, as response headers."""
    firsts = [o.first_token_ns for o in outcomes if o.first_token_ns >= 0]
    return (
        f"x-frontier-arrival-ns: {arrival_ns}\r\n"
        f"x-frontier-first-token-ns: {min(firsts, default=-1)}\r\n"
        f"x-frontier-finish-ns: {max([o.finish_ns for o in outcomes], default=-1)}\r\n"
        f"x-frontier-output-tokens: {sum([o.output_tokens for o in outcomes])}\r\n"
        f"x-frontier-cached-tokens: {sum([o.cached_tokens for o in outcomes])}\r\n"
    )
