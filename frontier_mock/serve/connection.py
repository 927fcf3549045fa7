"""Connections: bytes in, requests out, answers back, one request at a time per connection.

No task and no future per request: a request is handed to the application as soon as its last byte
is here, and the application answers through the `Exchange` whenever it can, which is often from
inside the driver's pump.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol, cast

from frontier_mock.serve.answers import CONTINUE, INVALID, LAST_CHUNK, Answer, Heads, chunk
from frontier_mock.serve.http1 import BadRequestError, Request, RequestReader
from frontier_mock.simtime import SimTime

logger = logging.getLogger("frontier_mock")

READER_BEHIND_BYTES = 1 << 20
"""A reader with this much unread is behind: its stream waits, see `Exchange.behind`."""

_SWEEP_S = 5.0
_CLOSE_POLL_S = 0.01


class App(Protocol):
    """Who answers."""

    def handle(self, exchange: "Exchange") -> None:
        """A request is complete; answer through the exchange, now or later. Must not raise."""
        ...

    def answering(self, exchange: "Exchange", status: int) -> str:
        """An answer leaves. Returns header lines that every answer carries."""
        ...

    def answered(self, exchange: "Exchange", status: int, body_bytes: int) -> None:
        """An answer is complete; `body_bytes` is 0 if it was not sent whole."""
        ...

    def arriving(self, request: Request) -> None:
        """A request's head is here, its body is not."""
        ...

    def received(self, request: Request) -> None:
        """The body of an `arriving` request is complete, or will never be."""
        ...


class Exchange:
    """One request and the way back to who sent it. Writing to a lost connection does nothing.

    `began_ns` is for the application to remember when it was handed over, -1 until then. Without
    a connection nobody hears what is said.
    """

    __slots__ = ("_chunked", "_connection", "began_ns", "begun", "on_lost", "request")

    def __init__(self, request: Request, connection: "Connection | None") -> None:
        self.request = request
        self.on_lost: Callable[[], object] | None = None
        self.began_ns: SimTime = -1
        self.begun = False
        self._connection = connection
        self._chunked = request.minor == 1

    def reply(self, answer: Answer) -> None:
        """The whole answer."""
        connection = self._connection
        if connection is None:
            return
        request = self.request
        extra = connection.app.answering(self, answer.status)
        close = not request.keep_alive or connection.closing
        head = connection.heads.complete(answer, extra, close=close)
        connection.write(head if request.method == "HEAD" else head + answer.body)
        if connection.access is not None:
            connection.access(connection.peer(), request, answer.status)
        connection.app.answered(self, answer.status, len(answer.body))
        self._done(close)

    def begin(self, content_type: str, extra: str = "") -> None:
        """Status 200 and headers of an answer that follows piece by piece."""
        connection = self._connection
        if connection is None:
            return
        request = self.request
        extra += connection.app.answering(self, 200)
        close = not (self._chunked and request.keep_alive)
        head = connection.heads.streamed(content_type, extra, chunked=self._chunked, close=close)
        connection.write(head)
        self.begun = True
        if connection.access is not None:
            connection.access(connection.peer(), request, 200)

    def write(self, data: bytes) -> None:
        """One piece of the answer."""
        connection = self._connection
        if connection is not None and data:
            connection.write(chunk(data) if self._chunked else data)

    def end(self, data: bytes = b"") -> None:
        """The last piece."""
        connection = self._connection
        if connection is None:
            return
        if self._chunked:
            connection.write(chunk(data) + LAST_CHUNK)
        elif data:
            connection.write(data)
        connection.app.answered(self, 200, 0)
        self._done(not (self._chunked and self.request.keep_alive) or connection.closing)

    def break_off(self) -> None:
        """End the connection in mid-answer, as uvicorn does if a handler fails there."""
        connection = self._connection
        if connection is not None:
            connection.app.answered(self, 200, 0)
            self._done(close=True)

    def hand_over(self, protocol: asyncio.Protocol, head: bytes) -> None:
        """Send `head` and leave the connection to `protocol`, which speaks something else."""
        connection, self._connection = self._connection, None
        self.on_lost = None
        if connection is not None:
            connection.hand_over(protocol, head)

    def behind(self) -> bool:
        """Whether the reader is so slow that it is better to write less often."""
        connection = self._connection
        return connection is not None and connection.unread_bytes() > READER_BEHIND_BYTES

    def is_lost(self) -> bool:
        """Whether there is nobody to answer any more."""
        return self._connection is None

    def lost(self) -> None:
        """The connection is gone."""
        connection, self._connection = self._connection, None
        if self.begun and connection is not None:
            connection.app.answered(self, 200, 0)
        if self.on_lost is not None:
            self.on_lost()

    def _done(self, close: bool) -> None:
        connection, self._connection = self._connection, None
        self.on_lost = None
        if connection is not None:
            connection.answered(close)


class Connection(asyncio.Protocol):
    """One TCP connection."""

    __slots__ = (
        "_broken",
        "_exchange",
        "_incoming",
        "_owner",
        "_paused",
        "_reader",
        "_transport",
        "access",
        "app",
        "closing",
        "heads",
        "idle_since_s",
    )

    def __init__(self, owner: "Http1Server") -> None:
        self.app = owner.app
        self.heads = owner.heads
        self.access = owner.access
        self.closing = False
        self.idle_since_s = time.monotonic()
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._reader = RequestReader()
        self._broken = False
        self._paused = False
        self._incoming: Request | None = None
        self._exchange: Exchange | None = None

    # What asyncio says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        # uvloop's transports have the interface of asyncio.Transport without being one.
        self._transport = cast(asyncio.Transport, transport)
        self._owner.connections[self] = None

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called by the event loop."""
        self._transport = None
        self._owner.connections.pop(self, None)
        if self._incoming is not None:
            self.app.received(self._incoming)
            self._incoming = None
        if self._exchange is not None:
            exchange, self._exchange = self._exchange, None
            exchange.lost()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._broken:
            return
        try:
            self._reader.feed(data)
        except BadRequestError as error:
            self._break(error)
        if self._exchange is None:
            self._go_on()
        if self._exchange is not None and self._reader.ready and not self._paused:
            # Pipelined: what is here is enough for now.
            self._paused = True
            if self._transport is not None:
                self._transport.pause_reading()

    # What an exchange says

    def write(self, data: bytes) -> None:
        """Send `data`, unless the peer is gone."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.write(data)

    def peer(self) -> str:
        """Who is at the other end, as uvicorn writes it: empty for a socket file."""
        found = None if self._transport is None else self._transport.get_extra_info("peername")
        return f"{found[0]}:{found[1]}" if isinstance(found, tuple) else ""

    def unread_bytes(self) -> int:
        """What the peer has not read yet and the kernel would not take."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def answered(self, close: bool) -> None:
        """The exchange is over: close, or go on with what was pipelined behind it."""
        self._exchange = None
        self.idle_since_s = time.monotonic()
        if close or self.closing:
            self.close()
            return
        reader = self._reader
        if self._broken or self._paused or reader.ready or reader.partial or reader.held:
            asyncio.get_running_loop().call_soon(self._go_on)

    def hand_over(self, protocol: asyncio.Protocol, head: bytes) -> None:
        """Leave the transport, and what has been read ahead, to `protocol`."""
        transport, self._transport = self._transport, None
        self._exchange = None
        self._owner.connections.pop(self, None)
        if transport is None:
            return
        transport.write(head)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._reader.held:
            protocol.data_received(self._reader.held)

    @property
    def busy(self) -> bool:
        """Whether a request is being received or answered."""
        return self._exchange is not None or self._incoming is not None

    def close(self) -> None:
        """Close once everything written has left."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    def _break(self, error: BadRequestError) -> None:
        """What is not HTTP/1 ends the connection, once what came before it is answered."""
        self._broken = True
        logger.debug("not HTTP/1: %s", error)

    def _go_on(self) -> None:
        """Serve the next complete request, or note that one is on its way."""
        transport, reader = self._transport, self._reader
        if self._exchange is not None or transport is None or transport.is_closing():
            return
        if reader.offered and not reader.ready:
            try:
                reader.decline()
            except BadRequestError as error:
                self._break(error)
        if reader.ready:
            request = reader.ready.popleft()
            if self._incoming is not None:
                self._incoming = None
                self.app.received(request)
            self._exchange = Exchange(request, self)
            self.app.handle(self._exchange)
        elif self._broken:
            self.write(INVALID)
            self.close()
        else:
            partial = reader.partial
            if partial is not None and self._incoming is None:
                self._incoming = partial
                self.app.arriving(partial)
                if reader.take_expectation():
                    self.write(CONTINUE)
            if self._paused:
                self._paused = False
                transport.resume_reading()


class Http1Server:
    """All connections of one port; `loop.create_server(Http1Server(...))` makes it listen."""

    def __init__(self, app: App, keepalive_s: float, name: str = "uvicorn") -> None:
        """Idle connections are closed after `keepalive_s` real seconds; `name` is in answers."""
        self.app = app
        self.heads = Heads(name)
        self.connections: dict[Connection, None] = {}
        self.access: Callable[[str, Request, int], None] | None = None
        """Told of every answer's peer, request and status as it leaves, if somebody logs them."""
        self.keepalive_s = keepalive_s
        self._sweeper: asyncio.TimerHandle | None = None

    def __call__(self) -> Connection:
        """A protocol for a new connection."""
        return Connection(self)

    def start(self) -> None:
        """Begin to close idle connections."""
        self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)

    async def shutdown(self, patience_s: float) -> None:
        """Close idle connections now, busy ones when they have answered, all in the end."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self.connections):
            connection.closing = True
            if not connection.busy:
                connection.close()
        deadline_s = time.monotonic() + patience_s
        while self.connections and time.monotonic() < deadline_s:
            await asyncio.sleep(_CLOSE_POLL_S)
        for connection in list(self.connections):
            connection.abort()
        while self.connections:
            await asyncio.sleep(0)

    def _sweep(self) -> None:
        limit_s = time.monotonic() - self.keepalive_s
        for connection in list(self.connections):
            if not connection.busy and connection.idle_since_s < limit_s:
                connection.close()
        self.start()
