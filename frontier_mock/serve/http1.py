"""HTTP/1.1 requests from bytes, sans I/O: llhttp through httptools, as in uvicorn.

llhttp decides what is a request; this module keeps what the application looks at. What llhttp
refuses, uvicorn refuses as well: ambiguous framing, folded headers, unknown methods. An offer of
h2c is ignored, as uvicorn ignores it.
"""

from collections import deque
from urllib.parse import parse_qs, unquote

import httptools

MAX_HEAD_BYTES = 4 << 20
"""vLLM's --h11-max-incomplete-event-size."""

MAX_HEADERS = 256
"""vLLM's --h11-max-header-count."""


_NAMES = {
    spelling.encode(): name
    for name in (
        *("accept", "accept-encoding", "authorization", "connection", "content-length"),
        *("content-type", "host", "traceparent", "tracestate", "user-agent", "x-request-id"),
    )
    for spelling in (name, name.title())
}
"""Headers that nearly every request has, in their usual spellings."""


class BadRequestError(ValueError):
    """Bytes that are no HTTP/1 request; the connection cannot go on."""


class Request:
    """One request. `headers` has lower-case names, repeated ones joined by a comma."""

    __slots__ = ("body", "headers", "keep_alive", "method", "minor", "path", "query_string")

    def __init__(self, method: str, target: str, minor: int, headers: dict[str, str]) -> None:
        """`minor` is 1 for HTTP/1.1, 0 for HTTP/1.0."""
        self.method = method
        if target[0] != "/":
            target = _origin_form(target)
        path, _, self.query_string = target.partition("?")
        self.path = unquote(path) if "%" in path else path
        self.minor = minor
        self.headers = headers
        self.body = b""
        self.keep_alive = minor == 1

    def query(self, name: str) -> str | None:
        """First value of a query parameter."""
        values = self.queries(name)
        return values[0] if values else None

    def queries(self, name: str) -> list[str]:
        """Every value of a query parameter."""
        return parse_qs(self.query_string).get(name, [])


def _origin_form(target: str) -> str:
    """The path of an absolute-form target; `*` stays as it is."""
    _, found, rest = target.partition("://")
    if not found:
        return target
    slash = rest.find("/")
    return rest[slash:] if slash >= 0 else "/"


class RequestReader:
    """Requests of one connection, however its bytes are cut.

    `ready` are the complete ones, oldest first; `partial` is one whose head is here and whose body
    is not. `offered`: the last of them offers another protocol, which what follows would be in; it
    is `held` until the offer is declined. Methods named `on_...` are called by httptools.
    """

    __slots__ = (
        "_continued",
        "_expecting",
        "_head_bytes",
        "_headers",
        "_in_head",
        "_num_headers",
        "_parser",
        "_parts",
        "_target",
        "held",
        "offered",
        "partial",
        "ready",
    )

    def __init__(self) -> None:
        self.ready: deque[Request] = deque()
        self.partial: Request | None = None
        self.offered = False
        self.held = b""
        self._continued: Request | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: dict[str, str] = {}
        self._parts: list[bytes] = []
        self._in_head = True
        self._head_bytes = 0
        self._num_headers = 0
        self._expecting = False

    def feed(self, data: bytes) -> None:
        """Take more bytes. Raises BadRequestError; requests before the bad bytes are `ready`."""
        if self.offered:
            self.held += data
            return
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._take_offer(data[offer.args[0] :])
        except httptools.HttpParserError as error:
            raise BadRequestError(str(error)) from None
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            raise BadRequestError("endless head")

    def _take_offer(self, rest: bytes) -> None:
        request = self.ready[-1]
        for name in ("content-length", "transfer-encoding"):
            framing = request.headers.get(name)
            if framing is not None:
                # httptools stops at the head; uvicorn loses the body. A head that offers nothing
                # makes llhttp read it.
                self._continued = self.ready.pop()
                self._parser = httptools.HttpRequestParser(self)
                self.feed(f"POST / HTTP/1.1\r\n{name}: {framing}\r\n\r\n".encode("latin-1"))
                if rest:
                    self.feed(rest)
                return
        self.offered = True
        self.held = rest

    def decline(self) -> None:
        """What is held is HTTP. Raises BadRequestError, as `feed`."""
        self._parser = httptools.HttpRequestParser(self)
        self.offered = False
        held, self.held = self.held, b""
        if held:
            self.feed(held)

    def take_expectation(self) -> bool:
        """Whether the client waits for leave to send the body; it is asked once."""
        expecting, self._expecting = self._expecting, False
        return expecting

    def on_message_begin(self) -> None:
        """A request begins."""
        self._target = b""
        self._headers = {}
        self._num_headers = 0
        self._parts = []

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which is forgotten."""
        if not self._in_head:
            return
        self._num_headers += 1
        if self._num_headers > MAX_HEADERS:
            raise BadRequestError("too many headers")
        key = _NAMES.get(name) or name.decode("latin-1").lower()
        text = value.decode("latin-1").strip(" \t")
        headers = self._headers
        headers[key] = f"{headers[key]}, {text}" if key in headers else text

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self._in_head = False
        if self._continued is not None:
            self.partial, self._continued = self._continued, None
            return
        parser = self._parser
        minor = 0 if parser.get_http_version() == "1.0" else 1
        headers = self._headers
        target = self._target.decode("latin-1")
        request = Request(parser.get_method().decode("latin-1"), target, minor, headers)
        request.keep_alive = parser.should_keep_alive()
        self.partial = request
        self._expecting = headers.get("expect", "").lower() == "100-continue"

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        request, self.partial = self.partial, None
        assert request is not None
        parts = self._parts
        request.body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._expecting = False
        self._in_head = True
        self._head_bytes = 0
        self.ready.append(request)
