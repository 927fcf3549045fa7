"""A small HTTP/1.1 client: one origin, kept-alive connections, nothing a load generator can spare.

aiohttp's client costs about 0.3 ms of CPU per request, more than the mock spends on answering it;
this one costs a tenth of that. `ResponseParser` holds no socket (bytes in, a response out), and
`HttpClient` is asyncio protocols around it. Bodies are whole, or handed over piece by piece as they
arrive, before any task switch, so that a stream's times are those of its bytes.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import httptools

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


class ResponseParser:
    """Parses one response, however it is cut into pieces. `on_...` are called by httptools."""

    __slots__ = (
        "_complete",
        "_failure",
        "_head_bytes",
        "_in_head",
        "_keeps_alive",
        "_on_data",
        "_parser",
        "_parts",
        "_surplus",
        "headers",
        "status",
    )

    def __init__(self, on_data: OnData | None = None) -> None:
        """`on_data` gets the body of a 200 piece by piece; other bodies are always kept."""
        self._on_data = on_data
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._in_head = True
        self._head_bytes = 0
        self._complete = False
        self._surplus = False
        self._keeps_alive = False
        self._failure: Exception | None = None
        self.status = 0
        self.headers: dict[str, str] = {}

    def feed(self, data: bytes) -> bool:
        """Take more bytes; True once the response is complete. Raises HttpError."""
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise HttpError("the server switched to another protocol") from None
        except httptools.HttpParserCallbackError as error:
            raise self._failure or HttpError(str(error)) from None
        except httptools.HttpParserError as error:
            what = f"{error} in {data[:40]!r}"
            if self._complete:
                what = "bytes after the end of the response"
            raise HttpError(f"not an HTTP/1.1 response: {what}") from None
        if self._surplus:
            raise HttpError("bytes after the end of the response")
        if self._in_head and self._head_bytes > _MAX_HEAD_BYTES:
            raise HttpError("response headers are too long")
        return self._complete

    def end(self) -> bool:
        """The connection was closed; True if that was the end of the body."""
        headers = self.headers
        open_ended = not self._in_head and not self._complete and "content-length" not in headers
        return open_ended and "transfer-encoding" not in headers

    def response(self) -> Response:
        """What was received."""
        return Response(self.status, self.headers, b"".join(self._parts))

    def keeps_alive(self) -> bool:
        """Whether the connection can carry another request."""
        return self._complete and self._keeps_alive

    def on_message_begin(self) -> None:
        """A response begins; with the first one complete, one too many."""
        self._surplus = self._complete
        self.headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which is forgotten."""
        if self._in_head:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1").strip()

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self.status = self._parser.get_status_code()
        self._in_head = False

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self._on_data is None or self.status != 200:
            self._parts.append(body)
            return
        try:
            self._on_data(body)
        except Exception as error:
            self._failure = error
            raise

    def on_message_complete(self) -> None:
        """The response is complete, unless it was a provisional one."""
        if self.status < 200:
            self._in_head = True
            return
        self._complete = True
        self._keeps_alive = self._parser.should_keep_alive()


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
