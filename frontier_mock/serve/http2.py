"""HTTP/2 with prior knowledge beside HTTP/1.1 on one port: what SGLang's --enable-http2 serves.

SGLang 0.5.23 then runs Granian in place of uvicorn, which tells the two apart by the first bytes a
client sends; an offer to upgrade (h2c) is ignored. The state machine is the package `h2`; this
module is its bytes, and one `Exchange` per stream. Flow control is the client's: what it will not
take yet waits here, and a stream whose reader is behind gets several tokens at once, as over
HTTP/1.1.
"""

import asyncio
import logging
import time

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from frontier_mock.serve.answers import Answer
from frontier_mock.serve.connection import READER_BEHIND_BYTES, Connection, Exchange, Http1Server
from frontier_mock.serve.http1 import Request
from frontier_mock.wire.sglang.served import Http2

logger = logging.getLogger("frontier_mock")

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client that knows sends first (RFC 9113 section 3.4)."""


_FRAME_HEAD_BYTES = 9


class Http2Server(Http1Server):
    """All connections of one port that speaks both."""

    def __init__(self, web: Http1Server, settings: Http2) -> None:
        """Takes the place of `web`, which has served nobody yet."""
        super().__init__(web.app, web.keepalive_s, "granian")
        self.settings = settings

    def __call__(self) -> Connection:
        """A protocol for a new connection."""
        return EitherConnection(self, self.settings)


class EitherConnection(Connection):
    """A connection of which the first bytes say what it speaks."""

    __slots__ = ("_first", "_peer", "_settings")

    def __init__(self, owner: Http1Server, settings: Http2) -> None:
        super().__init__(owner)
        self._settings = settings
        self._first: bytes | None = b""
        self._peer: Http2Connection | None = None

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._peer is not None:
            self._peer.receive(data)
            return
        if self._first is None:
            super().data_received(data)
            return
        self._first += data
        if self._first.startswith(PREFACE):
            assert self._transport is not None
            first, self._first = self._first, None
            self._peer = Http2Connection(self, self._transport, self._settings)
            self._peer.receive(first)
        elif not PREFACE.startswith(self._first):
            first, self._first = self._first, None
            super().data_received(first)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called by the event loop."""
        if self._peer is not None:
            self._peer.lost()
        super().connection_lost(exc)

    @property
    def busy(self) -> bool:
        """Whether a request is being received or answered."""
        peer = self._peer
        return bool(peer.streams or peer.incoming) if peer is not None else super().busy

    def close(self) -> None:
        """Close once everything written has left."""
        if self._peer is not None:
            self._peer.say_goodbye()
        super().close()


class Http2Connection:
    """The streams of one connection."""

    def __init__(
        self, owner: EitherConnection, transport: asyncio.Transport, settings: Http2
    ) -> None:
        self.owner = owner
        self.app = owner.app
        self.heads = owner.heads
        self.streams: dict[int, StreamExchange] = {}
        self._transport = transport
        self.incoming: dict[int, Request] = {}
        self._bodies: dict[int, list[bytes]] = {}
        self._frame_left = len(PREFACE)
        self._frame_head = b""
        self._state = H2Connection(H2Configuration(client_side=False, header_encoding="latin-1"))
        self._state.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: settings.max_concurrent_streams,
                SettingCodes.INITIAL_WINDOW_SIZE: settings.window_bytes,
                SettingCodes.MAX_HEADER_LIST_SIZE: 1 << 16,
            },
        )
        self._state.initiate_connection()
        self._state.increment_flow_control_window(settings.window_bytes)
        self.flush()

    # What the client says

    def receive(self, data: bytes) -> None:
        """Bytes of the client, the preface first."""
        if self._announces_too_much(data):
            # The state machine would wait for all of a frame before it refuses it.
            self._state.close_connection(ErrorCodes.FRAME_SIZE_ERROR)
            self.flush()
            self._transport.close()
            return
        try:
            events = self._state.receive_data(data)
        except ProtocolError as error:
            # The state machine has a GOAWAY ready that says what was wrong.
            logger.debug("not HTTP/2: %s", error)
            self.flush()
            self._transport.close()
            return
        for event in events:
            self._take(event)
        self.flush()

    def _announces_too_much(self, data: bytes) -> bool:
        """Whether a frame begins in `data` that is larger than any may be."""
        limit_bytes = self._state.max_inbound_frame_size
        at = 0
        while at < len(data):
            if self._frame_left:
                taken = min(self._frame_left, len(data) - at)
                self._frame_left -= taken
            else:
                taken = min(_FRAME_HEAD_BYTES - len(self._frame_head), len(data) - at)
                self._frame_head += data[at : at + taken]
                if len(self._frame_head) == _FRAME_HEAD_BYTES:
                    self._frame_left = int.from_bytes(self._frame_head[:3], "big")
                    self._frame_head = b""
                    if self._frame_left > limit_bytes:
                        return True
            at += taken
        return False

    def _take(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self._begin(event)
        elif isinstance(event, DataReceived):
            parts = self._bodies.get(event.stream_id)
            if parts is not None:
                parts.append(event.data)
            if event.flow_controlled_length:
                self._state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            self._complete(event.stream_id)
        elif isinstance(event, StreamReset):
            self._drop(event.stream_id)
        elif isinstance(event, WindowUpdated):
            # Of stream 0 it is the connection's window, which may let any of them go on.
            chosen = [event.stream_id] if event.stream_id else list(self.streams)
            for stream_id in chosen:
                self.push(stream_id)
        elif isinstance(event, ConnectionTerminated):
            self._transport.close()

    def _begin(self, event: RequestReceived) -> None:
        pseudo: dict[str, str] = {}
        headers: dict[str, str] = {}
        for raw_name, raw_value in event.headers:
            name, value = str(raw_name), str(raw_value)
            if name.startswith(":"):
                pseudo[name] = value
            else:
                headers[name] = f"{headers[name]}, {value}" if name in headers else value
        if ":authority" in pseudo:
            headers.setdefault("host", pseudo[":authority"])
        target = pseudo.get(":path") or "/"
        request = Request(pseudo.get(":method", "GET"), target, 1, headers)
        self.incoming[event.stream_id] = request
        if event.stream_ended is None:
            self._bodies[event.stream_id] = []
            self.app.arriving(request)

    def _complete(self, stream_id: int) -> None:
        request = self.incoming.pop(stream_id, None)
        if request is None:
            return
        parts = self._bodies.pop(stream_id, None)
        if parts is not None:
            request.body = b"".join(parts)
            self.app.received(request)
        exchange = StreamExchange(request, self, stream_id)
        self.streams[stream_id] = exchange
        self.app.handle(exchange)

    def _drop(self, stream_id: int) -> None:
        request = self.incoming.pop(stream_id, None)
        if request is not None and self._bodies.pop(stream_id, None) is not None:
            self.app.received(request)
        exchange = self.streams.pop(stream_id, None)
        if exchange is not None:
            exchange.lost()

    def lost(self) -> None:
        """The connection is gone."""
        for stream_id in [*self.incoming, *self.streams]:
            self._drop(stream_id)

    def say_goodbye(self) -> None:
        """No more streams."""
        if not self._transport.is_closing():
            self._state.close_connection()
            self.flush()

    # What is said to it

    def flush(self) -> None:
        """Send what the state machine has to send."""
        data = self._state.data_to_send()
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def send_head(self, stream_id: int, head: bytes, *, end: bool) -> None:
        """A status line and headers as HTTP/1.1 has them, without what only that has."""
        status, *lines = head.decode("latin-1").split("\r\n")
        fields = [(":status", status.split(" ", 2)[1])]
        for line in lines:
            name, found, value = line.partition(":")
            if found and name.lower() not in ("connection", "transfer-encoding", "keep-alive"):
                fields.append((name.lower(), value.strip()))
        self._state.send_headers(stream_id, fields, end_stream=end)

    def push(self, stream_id: int) -> None:
        """Send of a stream's pending bytes what its windows allow."""
        exchange = self.streams.get(stream_id)
        if exchange is None:
            return
        pending, state = exchange.pending, self._state
        while pending:
            room = min(state.local_flow_control_window(stream_id), state.max_outbound_frame_size)
            if room <= 0:
                return
            piece = bytes(pending[:room])
            del pending[:room]
            exchange.closed = exchange.ended and not pending
            state.send_data(stream_id, piece, end_stream=exchange.closed)
        if exchange.ended:
            if not exchange.closed:
                state.end_stream(stream_id)
            self.finished(stream_id)

    def finished(self, stream_id: int) -> None:
        """The stream is answered."""
        self.streams.pop(stream_id, None)
        self.owner.idle_since_s = time.monotonic()
        if self.owner.closing and not self.streams:
            self.owner.close()

    def reset(self, stream_id: int) -> None:
        """End a stream in mid-answer."""
        self._state.reset_stream(stream_id, ErrorCodes.INTERNAL_ERROR)
        self.finished(stream_id)
        self.flush()

    def unread_bytes(self) -> int:
        """What the kernel would not take yet."""
        return self._transport.get_write_buffer_size()


class StreamExchange(Exchange):
    """One request of a stream, and the way back."""

    __slots__ = ("_peer", "_stream_id", "closed", "ended", "pending")

    def __init__(self, request: Request, peer: Http2Connection, stream_id: int) -> None:
        super().__init__(request, None)
        self._peer: Http2Connection | None = peer
        self._stream_id = stream_id
        self.pending = bytearray()
        self.ended = False
        self.closed = False

    def reply(self, answer: Answer) -> None:
        """The whole answer."""
        peer = self._peer
        if peer is None:
            return
        extra = peer.app.answering(self, answer.status)
        head = peer.heads.complete(answer, extra, close=False)
        silent = self.request.method == "HEAD" or not answer.body
        peer.send_head(self._stream_id, head, end=silent)
        self._tell(answer.status)
        if silent:
            self.closed = True
        else:
            self.pending += answer.body
        peer.app.answered(self, answer.status, len(answer.body))
        self._close(peer)

    def begin(self, content_type: str, extra: str = "") -> None:
        """Status 200 and headers of an answer that follows piece by piece."""
        peer = self._peer
        if peer is None:
            return
        extra += peer.app.answering(self, 200)
        head = peer.heads.streamed(content_type, extra, chunked=False, close=False)
        peer.send_head(self._stream_id, head, end=False)
        self._tell(200)
        self.begun = True
        peer.flush()

    def write(self, data: bytes) -> None:
        """One piece of the answer."""
        peer = self._peer
        if peer is not None and data:
            self.pending += data
            peer.push(self._stream_id)
            peer.flush()

    def end(self, data: bytes = b"") -> None:
        """The last piece."""
        peer = self._peer
        if peer is None:
            return
        self.pending += data
        peer.app.answered(self, 200, 0)
        self._close(peer)

    def break_off(self) -> None:
        """End the stream in mid-answer."""
        peer, self._peer = self._peer, None
        if peer is not None:
            self.on_lost = None
            peer.app.answered(self, 200, 0)
            peer.reset(self._stream_id)

    def hand_over(self, protocol: asyncio.Protocol, head: bytes) -> None:
        """No stream can be made a connection of another protocol."""
        self.break_off()

    def behind(self) -> bool:
        """Whether the reader is so slow that it is better to write less often."""
        peer = self._peer
        return peer is not None and (
            len(self.pending) > READER_BEHIND_BYTES or peer.unread_bytes() > READER_BEHIND_BYTES
        )

    def is_lost(self) -> bool:
        """Whether there is nobody to answer any more."""
        return self._peer is None

    def lost(self) -> None:
        """The stream, or its connection, is gone."""
        peer, self._peer = self._peer, None
        if peer is None:
            return
        if self.begun:
            peer.app.answered(self, 200, 0)
        if self.on_lost is not None:
            self.on_lost()

    def _close(self, peer: Http2Connection) -> None:
        self.ended = True
        self._peer = None
        self.on_lost = None
        peer.push(self._stream_id)
        peer.flush()

    def _tell(self, status: int) -> None:
        peer = self._peer
        if peer is not None and peer.owner.access is not None:
            peer.owner.access(peer.owner.peer(), self.request, status)
