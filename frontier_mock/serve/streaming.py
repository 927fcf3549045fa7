"""Who waits for a request: one future for a whole body, or a socket that is written as steps end.

Both are subscribers of the Driver (`drive.driver.Subscriber`). A stream is written from inside the
driver's pump, straight into the transport: no queue, no task and no wake-up per chunk.
"""

import asyncio
from collections.abc import Callable

from frontier_mock.drive.driver import Flight, Ticket
from frontier_mock.serve.answers import LAST_CHUNK, chunk
from frontier_mock.wire.errors import ApiError, internal_error, queue_full
from frontier_mock.wire.generation import Generation, Outcome
from frontier_mock.wire.sse import StreamRenderer

_BUFFER_LIMIT_BYTES = 1 << 20
"""A reader this far behind gets its next tokens merged into one chunk, as vLLM's output collector
does when the consumer is slower than the engine."""


class Whole:
    """Waits for every choice, then renders once."""

    __slots__ = ("_generation", "done", "outcomes")

    stream_interval = 0

    def __init__(self, generation: Generation, loop: asyncio.AbstractEventLoop) -> None:
        self._generation = generation
        self.done: asyncio.Future[None] = loop.create_future()
        self.outcomes: list[Outcome] = []

    def started(self, ticket: Ticket) -> None:
        """Nothing to say before the end."""

    def tokens(self, position: int, first: int, last: int) -> bool:
        """Nothing to say before the end."""
        return True

    def ended(self, ticket: Ticket, flight: Flight, reason: str) -> None:
        """One choice is complete, or the engine refused it."""
        if ticket.rejected:
            self.failed(refusal(ticket))
            return
        self.outcomes.append(outcome(self._generation, ticket, flight, reason))

    def deliver(self, ticket: Ticket) -> None:
        """Wake the handler, which renders and writes."""
        if not self.done.done():
            self.done.set_result(None)

    def failed(self, error: BaseException) -> None:
        """Wake the handler with an error."""
        if not self.done.done():
            self.done.set_exception(error)


class Stream:
    """Writes one event stream into one transport.

    Before `started` nothing has been written, and a refusal still becomes a plain HTTP error.
    """

    __slots__ = (
        "_created_s",
        "_generation",
        "_head",
        "_last",
        "_outcomes",
        "_pack",
        "_renderer",
        "_transport",
        "begun",
        "done",
        "stream_interval",
    )

    def __init__(
        self,
        generation: Generation,
        created_s: int,
        transport: asyncio.Transport,
        head: Callable[[Ticket], bytes],
        loop: asyncio.AbstractEventLoop,
        *,
        chunked: bool,
    ) -> None:
        self.stream_interval = generation.stream_interval
        self.begun = False
        self.done: asyncio.Future[None] = loop.create_future()
        self._generation = generation
        self._renderer = StreamRenderer(generation, created_s)
        self._transport = transport
        self._head = head
        self._pack = chunk if chunked else _unframed
        self._outcomes: list[Outcome] = []
        self._last = b""

    def started(self, ticket: Ticket) -> None:
        """The engine has taken it: status and headers leave now, as uvicorn sends them."""
        self.begun = True
        self._transport.write(self._head(ticket))

    def tokens(self, position: int, first: int, last: int) -> bool:
        """One step's worth of one choice."""
        transport = self._transport
        if transport.get_write_buffer_size() > _BUFFER_LIMIT_BYTES:
            return False
        if transport.is_closing():
            return True
        index = self._generation.sequences[position].index
        data = self._renderer.delta(index, first, last)
        if data:
            transport.write(self._pack(data))
        return True

    def ended(self, ticket: Ticket, flight: Flight, reason: str) -> None:
        """Last delta of a choice. That of the last choice waits for `deliver`."""
        if ticket.rejected:
            self.failed(refusal(ticket))
            return
        result = outcome(self._generation, ticket, flight, reason)
        self._outcomes.append(result)
        data = self._renderer.finish(result.index, flight.sent, result)
        if ticket.open == 0:
            self._last = data
        elif not self._transport.is_closing():
            self._transport.write(self._pack(data))

    def deliver(self, ticket: Ticket) -> None:
        """The last bytes: final delta, usage if asked for, `[DONE]`, end of body."""
        if self.done.done():
            return
        self._finish(self._last + self._renderer.tail(self._outcomes))
        self.done.set_result(None)

    def failed(self, error: BaseException) -> None:
        """An error frame if the stream has begun, else the handler answers with the error."""
        if self.done.done():
            return
        if not self.begun:
            self.done.set_exception(error)
            return
        shown = error if isinstance(error, ApiError) else internal_error()
        self._finish(self._renderer.error(shown))
        self.done.set_result(None)

    def _finish(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        tail = LAST_CHUNK if self._pack is chunk else b""
        self._transport.write(self._pack(data) + tail)


def outcome(generation: Generation, ticket: Ticket, flight: Flight, reason: str) -> Outcome:
    """The engine's word on one choice, in the wire's terms."""
    return generation.sequences[flight.position].outcome(
        flight.output_tokens,
        reason,
        flight.cached_tokens,
        ticket.arrival_ns,
        flight.first_token_ns,
        flight.finish_ns,
    )


def refusal(ticket: Ticket) -> ApiError:
    """What vLLM answers to a request that its engine would not take.

    Over-long prompts never get this far, so any other reason is a fault of ours.
    """
    return queue_full() if ticket.rejected == "queue_full" else internal_error()


def _unframed(data: bytes) -> bytes:
    return data
