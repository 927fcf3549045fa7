"""A small HTTP/1.1 client: one origin, kept-alive connections, nothing a load generator can spare.

aiohttp's client costs about 0.3 ms of CPU per request, more than the mock spends on answering it;
this one costs a tenth of that. `ResponseParser` holds no socket (bytes in, a response out), and
`HttpClient` is asyncio protocols around it. Bodies are whole, or handed over piece by piece as they
arrive, before any task switch, so that a stream's times are those of its bytes.
"""

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple, cast
from urllib.parse import urlsplit

_MAX_HEAD_BYTES = 1 << 16
_IDLE_S = 4.0
"""Connections idle for longer are not used again: uvicorn closes them after five seconds."""

OnData = Callable[[bytes], None]


class HttpError(ValueError):
    """What came back is not HTTP/1.1, or the URL is none."""


class Response(NamedTuple):
    """Header names in lower case. `body` is empty if it was handed over piece by piece."""

    status: int
    headers: dict[str, str]
    body: bytes


class _State(Enum):
    HEAD = 0
    LENGTH = 1
    CHUNK_SIZE = 2
    CHUNK_DATA = 3
    CHUNK_END = 4
    TRAILER = 5
    UNTIL_CLOSE = 6
    DONE = 7


class ResponseParser:
    """Parses one response, however it is cut into pieces."""

    __slots__ = ("_buffer", "_left", "_on_data", "_parts", "_state", "headers", "status")

    def __init__(self, on_data: OnData | None = None) -> None:
        """`on_data` gets the body of a 200 piece by piece; other bodies are always kept."""
        self._on_data = on_data
        self._buffer = b""
        self._parts: list[bytes] = []
        self._state = _State.HEAD
        self._left = 0
        self.status = 0
        self.headers: dict[str, str] = {}

    def feed(self, data: bytes) -> bool:
        """Take more bytes; True once the response is complete. Raises HttpError."""
        buffer = self._buffer + data if self._buffer else data
        state = self._state
        while state is not _State.DONE:
            if state is _State.HEAD:
                end = buffer.find(b"\r\n\r\n")
                if end < 0:
                    if len(buffer) > _MAX_HEAD_BYTES:
                        raise HttpError("response headers are too long")
                    break
                state = self._read_head(buffer[:end])
                buffer = buffer[end + 4 :]
            elif state is _State.LENGTH or state is _State.CHUNK_DATA:
                if not buffer:
                    break
                piece = buffer[: self._left]
                buffer = buffer[self._left :]
                self._left -= len(piece)
                self._take(piece)
                if self._left == 0:
                    state = _State.DONE if state is _State.LENGTH else _State.CHUNK_END
            elif state is _State.UNTIL_CLOSE:
                if buffer:
                    self._take(buffer)
                    buffer = b""
                break
            else:
                line, found, rest = buffer.partition(b"\r\n")
                if not found:
                    if len(buffer) > _MAX_HEAD_BYTES:
                        raise HttpError("a chunk's head is too long")
                    break
                buffer = rest
                state = self._read_line(state, line)
        if state is _State.DONE and buffer:
            raise HttpError("bytes after the end of the response")
        self._state = state
        self._buffer = buffer
        return state is _State.DONE

    def end(self) -> bool:
        """The connection is closed; True if that is how this response ends."""
        return self._state is _State.UNTIL_CLOSE

    def response(self) -> Response:
        """The response, once complete."""
        return Response(self.status, self.headers, b"".join(self._parts))

    def keeps_alive(self) -> bool:
        """Whether the connection can carry another request."""
        return (
            self._state is _State.DONE
            and self.headers.get("connection", "keep-alive").lower() != "close"
        )

    def _take(self, piece: bytes) -> None:
        if self._on_data is not None and self.status == 200:
            self._on_data(piece)
        else:
            self._parts.append(piece)

    def _read_head(self, head: bytes) -> _State:
        lines = head.decode("latin-1").split("\r\n")
        version, _, rest = lines[0].partition(" ")
        code = rest[:3]
        if not version.startswith("HTTP/1.") or not code.isdigit():
            raise HttpError(f"not an HTTP/1.1 response: {lines[0][:60]!r}")
        self.status = int(code)
        headers = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon:
                raise HttpError(f"not a header: {line[:60]!r}")
            headers[name.lower()] = value.strip()
        self.headers = headers
        if self.status < 200:
            return _State.HEAD
        if self.status in (204, 304):
            return _State.DONE
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return _State.CHUNK_SIZE
        length = headers.get("content-length")
        if length is None:
            return _State.UNTIL_CLOSE
        if not length.isdigit():
            raise HttpError(f"content-length is {length[:20]!r}")
        self._left = int(length)
        return _State.LENGTH if self._left else _State.DONE

    def _read_line(self, state: _State, line: bytes) -> _State:
        if state is _State.CHUNK_SIZE:
            try:
                self._left = int(line.partition(b";")[0], 16)
            except ValueError:
                raise HttpError(f"not a chunk size: {line[:20]!r}") from None
            if self._left < 0:
                raise HttpError(f"not a chunk size: {line[:20]!r}")
            return _State.CHUNK_DATA if self._left else _State.TRAILER
        if state is _State.CHUNK_END:
            if line:
                raise HttpError("a chunk is longer than it says")
            return _State.CHUNK_SIZE
        return _State.TRAILER if line else _State.DONE


class _Connection(asyncio.Protocol):
    """One socket, one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser: ResponseParser | None = None
        self._answer: asyncio.Future[Response] | None = None
        self.usable = True
        self.idle_since_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the interface of asyncio.Transport without being one.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        parser, answer = self._parser, self._answer
        if parser is None or answer is None or answer.done():
            self.close()
            return
        try:
            complete = parser.feed(data)
        except ValueError as error:
            self.close()
            answer.set_exception(error)
            return
        if complete:
            self.usable = self.usable and parser.keeps_alive()
            answer.set_result(parser.response())

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        parser, answer = self._parser, self._answer
        if parser is None or answer is None or answer.done():
            return
        if exc is None and parser.end():
            answer.set_result(parser.response())
        else:
            reason = str(exc) if exc else "the server closed it"
            answer.set_exception(ConnectionError(f"connection lost before the answer: {reason}"))

    async def exchange(self, request: bytes, on_data: OnData | None) -> Response:
        """Send one request and wait for its response; a cancelled wait closes the connection."""
        assert self._transport is not None
        self._parser = ResponseParser(on_data)
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._answer
        except BaseException:
            self.close()
            raise
        finally:
            self._parser = self._answer = None

    def close(self) -> None:
        """Close the socket now."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()


class HttpClient:
    """Requests to one origin over as many connections as there are requests at a time."""

    def __init__(self, url: str, headers: str = "") -> None:
        """`headers` are whole lines sent with every request. Raises HttpError for a bad URL."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise HttpError(f"url: expected http://host:port, got {url!r}")
        self.url = url.rstrip("/")
        self._host = parts.hostname
        self._tls = parts.scheme == "https"
        self._port = port or (443 if self._tls else 80)
        self._base = parts.path.rstrip("/")
        self._head = (
            f" HTTP/1.1\r\nHost: {parts.netloc.rpartition('@')[2]}\r\n"
            f"Accept: */*\r\nContent-Type: application/json\r\n{headers}"
        )
        self._idle: list[_Connection] = []
        self._address: str | None = None

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: str = "",
        on_data: OnData | None = None,
    ) -> Response:
        """One request. Raises OSError if no answer comes, HttpError if it is not one."""
        head = (
            f"{method} {self._base}{path}{self._head}{headers}Content-Length: {len(body)}\r\n\r\n"
        )
        connection = self._take_idle() or await self._connect()
        response = await connection.exchange(head.encode("latin-1") + body, on_data)
        if connection.usable:
            connection.idle_since_s = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.close()
        return response

    def close(self) -> None:
        """Close the idle connections; busy ones belong to whoever waits for them."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _take_idle(self) -> _Connection | None:
        fresh_s = asyncio.get_running_loop().time() - _IDLE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since_s > fresh_s:
                return connection
            connection.close()
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        if self._address is None:
            # Once, not per connection: asyncio looks names up in threads.
            found = await loop.getaddrinfo(self._host, self._port, type=1)
            if len(found) == 1:
                self._address = str(found[0][4][0])
        _, connection = await loop.create_connection(
            _Connection,
            self._address or self._host,
            self._port,
            ssl=True if self._tls else None,
            server_hostname=self._host if self._tls else None,
        )
        return connection
