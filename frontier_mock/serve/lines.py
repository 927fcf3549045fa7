"""A connection that carries one JSON list per line, both ways: how processes share a clock."""

import asyncio
import json
from collections.abc import Mapping
from typing import cast

from frontier_mock.drive.following import Message
from frontier_mock.serve.sockets import notice_silence

PROTOCOL = "fmock-clock/3"
"""Value of the Upgrade header with which a follower asks for such a connection."""

JOIN_PATH = "/sim/clock/join"

_MAX_LINE_BYTES = 1 << 24


class Lines(asyncio.Protocol):
    """Subclasses get `heard` for each line, `heard_all` after those that came together, and `lost`
    at the end, once.

    What is sent within one turn of the event loop leaves in one write.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._pending: list[bytes] = []

    def heard(self, message: Message) -> None:
        """One line. A ValueError ends the connection."""
        raise NotImplementedError

    def heard_all(self) -> None:
        """Everything that has arrived so far has been heard."""

    def lost(self, why: str) -> None:
        """The connection is gone."""
        raise NotImplementedError

    def send(self, message: Message) -> None:
        """Put a message on its way; to a lost connection, nowhere."""
        if self._transport is None:
            return
        if not self._pending:
            asyncio.get_running_loop().call_soon(self.flush)
        self._pending.append(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """Close once everything sent has left."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def flush(self) -> None:
        """Put everything sent on its way now: the other end waits for it."""
        data, self._pending = b"".join(self._pending), []
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    # What asyncio says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        # uvloop's transports have the interface of asyncio.Transport without being one.
        self._transport = cast(asyncio.Transport, transport)
        notice_silence(transport.get_extra_info("socket"))

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called by the event loop."""
        self._transport = None
        self.lost("its connection was closed" if exc is None else str(exc) or type(exc).__name__)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            if len(self._rest) > _MAX_LINE_BYTES:
                raise ValueError("an endless line")
            for line in lines:
                message = json.loads(line)
                if not isinstance(message, list):
                    raise ValueError(f"not a list: {line[:80]!r}")
                self.heard(message)
            self.heard_all()
        except (ValueError, RecursionError) as error:
            transport, self._transport = self._transport, None
            if transport is not None:
                transport.abort()
            self.lost(f"it said something that makes no sense: {error}")


class Dialled(Lines):
    """The end of such a connection that asks for it.

    It is a POST of `body` to `path` that the other end answers by upgrading to `protocol`.
    """

    def __init__(
        self, address: tuple[str, int], path: str, protocol: str, body: Mapping[str, object]
    ) -> None:
        super().__init__()
        self._address = address
        self._request = path, protocol, body
        self._head = b""
        self._answer: asyncio.Future[None] | None = None

    async def dial(self) -> None:
        """Connect. Raises OSError if nobody answers, ConnectionRefusedError with what was said."""
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        host, port = self._address
        await loop.create_connection(lambda: self, host, port)
        await self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        super().connection_made(transport)
        (path, protocol, fields), (host, port) = self._request, self._address
        body = json.dumps(fields).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: upgrade\r\n"
            f"upgrade: {protocol}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        assert self._transport is not None
        self._transport.write(head.encode() + body)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop: first the answer to the request, then lines."""
        answer = self._answer
        if answer is None or answer.done():
            super().data_received(data)
            return
        self._head += data
        head, found, rest = self._head.partition(b"\r\n\r\n")
        if not found:
            return
        if head.startswith(b"HTTP/1.1 101 "):
            answer.set_result(None)
            if rest:
                super().data_received(rest)
        else:
            said = (
                rest.decode("utf-8", "replace").strip() or head.decode("latin-1").split("\r\n")[0]
            )
            answer.set_exception(ConnectionRefusedError(0, said))

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called by the event loop."""
        answer = self._answer
        if answer is not None and not answer.done():
            self._transport = None
            why = "its connection was closed" if exc is None else str(exc) or type(exc).__name__
            answer.set_exception(ConnectionResetError(0, why))
            return
        super().connection_lost(exc)


def switching(protocol: str) -> bytes:
    """The head with which a server agrees to speak `protocol` from now on."""
    return (
        f"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n"
    ).encode()
