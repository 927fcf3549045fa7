"""The way of a gRPC call into the engine, and of its messages back out.

Theory of operation. A servicer parses a request into sequences and a `Speech`, which makes the
messages of its dialect; `generate` submits the sequences and writes. The subscriber, called from
the driver's pump, appends messages to an `Outbox`; the call's own coroutine takes them from there,
as fast as the peer reads. A peer that is far behind gets its next tokens merged into one message,
as over HTTP. When the peer is gone grpc cancels the coroutine, and the request is aborted.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import grpc

from frontier_mock.core.commands import Submit
from frontier_mock.drive.driver import Driver
from frontier_mock.drive.protocol import Flight, ShutdownError, Subscriber, Ticket
from frontier_mock.serve.carriers import actor_and_legs, actor_of
from frontier_mock.wire.grpc_status import INTERNAL, UNAVAILABLE, GrpcError

Context = Any
"""grpc.aio.ServicerContext: grpc has no types."""

Message = Any
"""A protobuf message of any dialect."""

EndT = TypeVar("EndT")
EndOfCallT = TypeVar("EndOfCallT", contravariant=True)

_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_BEHIND_MESSAGES = 64
"""A peer with this many messages not yet handed to grpc is behind."""


class Speech(Protocol[EndOfCallT]):
    """What one dialect says of one request.

    `stream_interval` is that of a subscriber: tokens per message, 0 where nothing is streamed.
    """

    stream: bool
    stream_interval: int

    def delta(self, position: int, first: int, last: int, cached_tokens: int) -> Sequence[Message]:
        """Output tokens [first, last) of a sequence exist."""
        ...

    def finish(self, position: int, first: int, ended: EndOfCallT) -> Sequence[Message]:
        """A streamed sequence has ended; its tokens from `first` on are new."""
        ...

    def whole(self, endings: Sequence[EndOfCallT]) -> Sequence[Message]:
        """Everything at once, for a request that does not stream."""
        ...


class Outbox:
    """Messages of one call on their way out, and then why it ends."""

    __slots__ = ("_waiter", "error", "messages", "over", "trailer")

    def __init__(self) -> None:
        self.messages: deque[Message] = deque()
        self.over = False
        self.error: GrpcError | None = None
        self.trailer: tuple[tuple[str, str], ...] = ()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, messages: Iterable[Message]) -> None:
        """More to say."""
        self.messages.extend(messages)
        self._wake()

    def end(self, error: GrpcError | None = None) -> None:
        """Nothing more to say."""
        self.over = True
        self.error = error
        self._wake()

    async def wait(self) -> None:
        """Until there is something to do."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class CallSubscriber(Generic[EndT]):
    """Puts one request's messages into its call's outbox (`drive.protocol.Subscriber`)."""

    __slots__ = (
        "_conclude",
        "_endings",
        "_error",
        "_held",
        "_outbox",
        "_refuse",
        "_speech",
        "_ticket",
        "stream_interval",
    )

    def __init__(
        self,
        speech: Speech[EndT],
        outbox: Outbox,
        conclude: Callable[[Ticket, Flight, str], EndT],
        refuse: Callable[[Ticket], GrpcError],
    ) -> None:
        """`conclude` says in the dialect's terms how a sequence ended, `refuse` why none began."""
        self.stream_interval = speech.stream_interval
        self._speech = speech
        self._outbox = outbox
        self._conclude = conclude
        self._refuse = refuse
        self._ticket: Ticket | None = None
        self._endings: list[EndT] = []
        self._held: Sequence[Message] = ()
        self._error: GrpcError | None = None

    def started(self, ticket: Ticket) -> None:
        """The engine has taken it."""
        self._ticket = ticket

    def tokens(self, position: int, first: int, last: int) -> bool:
        """One step's worth of one sequence."""
        outbox, ticket = self._outbox, self._ticket
        assert ticket is not None
        if len(outbox.messages) > _BEHIND_MESSAGES:
            return False
        cached = ticket.flights[position].cached_tokens
        outbox.put(self._speech.delta(position, first, last, cached))
        return True

    def ended(self, ticket: Ticket, flight: Flight, reason: str) -> None:
        """One sequence is complete. What the last one has to say waits for `deliver`."""
        ending = self._conclude(ticket, flight, reason)
        self._endings.append(ending)
        if not self._speech.stream:
            return
        try:
            messages = self._speech.finish(flight.position, flight.sent, ending)
        except GrpcError as error:
            self._error = error
            return
        if ticket.open == 0:
            self._held = messages
        else:
            self._outbox.put(messages)

    def deliver(self, ticket: Ticket) -> None:
        """The last messages, or why there are none."""
        outbox = self._outbox
        if ticket.rejected:
            outbox.end(self._refuse(ticket))
            return
        outbox.trailer = virtual_times(ticket)
        error = self._error
        if error is None:
            try:
                outbox.messages.extend(
                    self._held if self._speech.stream else self._speech.whole(self._endings)
                )
            except GrpcError as found:
                error = found
        outbox.end(error)

    def failed(self, error: BaseException) -> None:
        """The engine is gone."""
        shutting_down = isinstance(error, ShutdownError)
        code = UNAVAILABLE if shutting_down else INTERNAL
        self._outbox.end(GrpcError(code, str(error) or "the engine is dead"))


def virtual_times(ticket: Ticket) -> tuple[tuple[str, str], ...]:
    """When it happened in virtual time, as trailing metadata: the HTTP routes' headers."""
    flights = ticket.flights
    firsts = [flight.first_token_ns for flight in flights if flight.first_token_ns >= 0]
    figures = (
        ("arrival-ns", ticket.arrival_ns),
        ("first-token-ns", min(firsts, default=-1)),
        ("finish-ns", max([flight.finish_ns for flight in flights], default=-1)),
        ("output-tokens", sum([flight.output_tokens for flight in flights])),
        ("cached-tokens", sum([flight.cached_tokens for flight in flights])),
    )
    return tuple([(f"x-frontier-{name}", str(value)) for name, value in figures])


def metadata_of(context: Context) -> dict[str, str]:
    """A call's metadata that is text."""
    return {key: value for key, value in context.invocation_metadata() if value.__class__ is str}


def carrier(metadata: Mapping[str, str], request_id: str) -> tuple[str | None, int]:
    """The actor whose lease a call carries, and its legs.

    smg sends no metadata, but makes its request ids out of the client's x-request-id.
    """
    return actor_and_legs(actor_of(metadata) or actor_of({"x-request-id": request_id}))


def enter(
    driver: Driver,
    submits: Sequence[Submit],
    subscriber: Subscriber,
    leased: tuple[str | None, int],
    choices: int,
) -> Ticket:
    """Submit a call's sequences. Raises GrpcError if the engine takes no more."""
    actor, legs = leased
    try:
        return driver.submit(submits, subscriber, actor, choices, legs)
    except ShutdownError as error:
        give_back(driver, leased)
        raise GrpcError(UNAVAILABLE, str(error)) from None


def give_back(driver: Driver, leased: tuple[str | None, int]) -> None:
    """The call was refused before it was submitted: its actor has its lease back."""
    driver.keeper.refuse(*leased)
    driver.poke()


async def write_all(context: Context, outbox: Outbox, lost: Callable[[], None]) -> None:
    """Send a call's messages as they come, then its trailer or its status.

    `lost` is called when nobody waits any more, which may be because all has been said.
    """
    messages = outbox.messages
    write = context.write
    try:
        while True:
            while messages:
                await write(messages.popleft())
            if outbox.over:
                break
            await outbox.wait()
    finally:
        lost()
    if outbox.error is not None:
        await refuse(context, outbox.error)
    context.set_trailing_metadata(outbox.trailer)


async def whole_answer(context: Context, outbox: Outbox, lost: Callable[[], None]) -> list[Message]:
    """All messages of a call that has one answer; ends the call with its status if it has none."""
    try:
        while not outbox.over:
            await outbox.wait()
    finally:
        lost()
    if outbox.error is not None:
        await refuse(context, outbox.error)
    context.set_trailing_metadata(outbox.trailer)
    return list(outbox.messages)


async def refuse(context: Context, error: GrpcError) -> None:
    """End the call with a status; raises, as `abort` of the context does."""
    await context.abort(_CODES[error.code], error.message, error.trailer)
