"""A connection that carries one JSON list per line, both ways: how processes share a clock."""

import asyncio
import json
from typing import cast

from frontier_mock.drive.following import Message
from frontier_mock.serve.sockets import notice_silence

PROTOCOL = "fmock-clock/2"
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
