"""Connections in memory: two asyncio transports, each the other's end, and who makes them.

Bytes are handed over by a callback of the event loop, so they are never in a kernel and nothing
has to be believed about one. Flow control is that of a socket: a reader that pauses fills a buffer,
a full buffer pauses the writer.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

_HIGH_WATER_BYTES = 1 << 16
_LOW_WATER_BYTES = 1 << 14

Origin = tuple[str, int]
"""Host and port."""

ServerFactory = Callable[[], asyncio.Protocol]
"""Makes the server's side of a new connection."""


class MemoryTransport(asyncio.Transport):
    """One end. What is written here arrives at the other end's protocol."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, protocol: asyncio.BaseProtocol, names: dict[str, Any]
    ) -> None:
        super().__init__(names)
        self._loop = loop
        self._protocol = protocol
        self._peer: MemoryTransport | None = None
        self._arrived: list[bytes] = []
        self._arrived_bytes = 0
        self._eof_arrived = False
        self._lost = False
        self._closing = False
        self._reading = True
        self._peer_paused = False
        self._delivery: asyncio.Handle | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Hand over; after close, forget."""
        peer = self._peer
        if self._closing or peer is None or not data:
            return
        peer._arrived.append(bytes(data))
        peer._arrived_bytes += len(data)
        peer._deliver_soon()
        if peer._arrived_bytes > _HIGH_WATER_BYTES and not peer._peer_paused:
            peer._peer_paused = True
            self._protocol.pause_writing()

    def write_eof(self) -> None:
        """Nothing more follows, though more may come."""
        if self._peer is not None:
            self._peer._eof_arrived = True
            self._peer._deliver_soon()

    def can_write_eof(self) -> bool:
        """It can."""
        return True

    def get_write_buffer_size(self) -> int:
        """Bytes written here that the other end has not taken."""
        return 0 if self._peer is None else self._peer._arrived_bytes

    def is_closing(self) -> bool:
        """Whether it is closed or about to be."""
        return self._closing

    def is_reading(self) -> bool:
        """Whether bytes are handed to the protocol."""
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        """Keep what arrives."""
        self._reading = False

    def resume_reading(self) -> None:
        """Hand over what was kept, and all that follows."""
        if not self._reading:
            self._reading = True
            self._deliver_soon()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Whoever reads from now on."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Whoever reads."""
        return self._protocol

    def close(self) -> None:
        """Close both ends, once the other has what was written."""
        if self._closing:
            return
        self._closing = True
        self._loop.call_soon(self._lose)
        if self._peer is not None:
            self._peer._eof_arrived = True
            self._peer._deliver_soon()

    def abort(self) -> None:
        """Close both ends now."""
        peer = self._peer
        self.close()
        if peer is not None:
            peer._arrived.clear()
            peer._arrived_bytes = 0

    def _deliver_soon(self) -> None:
        if self._delivery is None:
            self._delivery = self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._delivery = None
        if self._closing or not self._reading:
            return
        if self._arrived:
            data = self._arrived[0] if len(self._arrived) == 1 else b"".join(self._arrived)
            self._arrived = []
            self._arrived_bytes = 0
            if self._peer_paused and self._peer is not None:
                self._peer_paused = False
                self._peer._protocol.resume_writing()
            assert isinstance(self._protocol, asyncio.Protocol)
            self._protocol.data_received(data)
        if self._eof_arrived and not self._arrived and not self._closing and self._reading:
            assert isinstance(self._protocol, asyncio.Protocol)
            stays_open = self._protocol.eof_received()
            if not stays_open or (self._peer is not None and self._peer._closing):
                self.close()

    def _lose(self) -> None:
        if not self._lost:
            self._lost = True
            self._peer = None
            self._protocol.connection_lost(None)


def connect(
    loop: asyncio.AbstractEventLoop,
    client: asyncio.BaseProtocol,
    server: asyncio.BaseProtocol,
    origin: Origin,
) -> MemoryTransport:
    """Join two protocols. Returns the client's end."""
    here, there = ("127.0.0.1", 0), origin
    ours = MemoryTransport(loop, client, {"sockname": here, "peername": there})
    theirs = MemoryTransport(loop, server, {"sockname": there, "peername": here})
    ours._peer, theirs._peer = theirs, ours
    server.connection_made(theirs)
    client.connection_made(ours)
    return ours


def aiohttp_connector(servers: Mapping[Origin, ServerFactory], **options: Any) -> Any:
    """A connector for `aiohttp.ClientSession(connector=...)`; needs aiohttp installed."""
    import aiohttp
    from aiohttp.client_proto import ResponseHandler

    class MemoryConnector(aiohttp.BaseConnector):
        async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> ResponseHandler:
            origin = (req.url.host or "", req.url.port or 80)
            factory = servers.get(origin)
            if factory is None:
                refused = ConnectionRefusedError(f"no such mock: {req.url.origin()}")
                raise aiohttp.ClientConnectorError(req.connection_key, refused)
            protocol = self._factory()
            connect(self._loop, protocol, factory(), origin)
            return protocol

    return MemoryConnector(**options)


def httpcore_backend(core: Any, servers: Mapping[Origin, ServerFactory]) -> Any:
    """A network backend for `core`, which is httpcore or httpcore2."""

    class MemoryStream(core.AsyncNetworkStream):  # type: ignore[misc]
        def __init__(self, reader: asyncio.StreamReader, transport: MemoryTransport) -> None:
            self._reader = reader
            self._transport = transport

        async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
            try:
                async with asyncio.timeout(timeout):
                    return await self._reader.read(max_bytes)
            except TimeoutError:
                raise core.ReadTimeout() from None

        async def write(self, buffer: bytes, timeout: float | None = None) -> None:
            self._transport.write(buffer)

        async def aclose(self) -> None:
            self._transport.close()

        def get_extra_info(self, info: str) -> Any:
            return None

    class MemoryBackend(core.AsyncNetworkBackend):  # type: ignore[misc]
        async def connect_tcp(
            self,
            host: str,
            port: int,
            timeout: float | None = None,
            local_address: str | None = None,
            socket_options: Any = None,
        ) -> MemoryStream:
            factory = servers.get((host, port))
            if factory is None:
                raise core.ConnectError(f"no such mock: {host}:{port}")
            loop = asyncio.get_running_loop()
            reader = asyncio.StreamReader(loop=loop)
            protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
            return MemoryStream(reader, connect(loop, protocol, factory(), (host, port)))

        async def sleep(self, seconds: float) -> None:
            await asyncio.sleep(seconds)

    return MemoryBackend()
