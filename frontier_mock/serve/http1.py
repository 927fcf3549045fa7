"""HTTP/1.1 requests from bytes, sans I/O: heads and bodies as RFC 9112 frames them.

Only what a server behind routers and SDKs meets: no upgrades (an offer of h2c is ignored, as
uvicorn ignores it), no content codings (nor has vLLM), folded headers and ambiguous framing are
refused. A parsed request costs a fifth of what aiohttp's request object does.
"""

from urllib.parse import parse_qs, unquote

MAX_HEAD_BYTES = 4 << 20
"""vLLM's --h11-max-incomplete-event-size."""

_MAX_CHUNK_LINE_BYTES = 4096
_VERSIONS = {"HTTP/1.1": 1, "HTTP/1.0": 0}


class BadRequestError(ValueError):
    """Bytes that are no HTTP/1 request; the connection cannot go on."""


class Request:
    """One request. `headers` has lower-case names, repeated ones joined by a comma."""

    __slots__ = ("body", "headers", "keep_alive", "method", "minor", "path", "query_string")

    def __init__(self, method: str, target: str, minor: int, headers: dict[str, str]) -> None:
        """`minor` is 1 for HTTP/1.1, 0 for HTTP/1.0."""
        self.method = method
        path, _, self.query_string = target.partition("?")
        self.path = unquote(path) if "%" in path else path
        self.minor = minor
        self.headers = headers
        self.body = b""
        connection = headers.get("connection")
        if connection is None:
            self.keep_alive = minor == 1
        else:
            options = connection.lower()
            self.keep_alive = "close" not in options if minor else "keep-alive" in options

    def query(self, name: str) -> str | None:
        """First value of a query parameter."""
        values = parse_qs(self.query_string).get(name)
        return values[0] if values else None


def parse_head(head: str) -> Request:
    """A request from its request line and header lines, without the blank line that ends them.

    Raises BadRequestError.
    """
    first, *lines = head.split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3:
        raise BadRequestError("malformed request line")
    method, target, version = parts
    minor = _VERSIONS.get(version)
    if minor is None or not method.isalpha() or not target:
        raise BadRequestError("malformed request line")
    if target[0] != "/":
        target = _origin_form(target)
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name[0] in " \t" or name[-1] in " \t" or "\n" in line:
            raise BadRequestError("malformed header line")
        name = name.lower()
        value = value.strip(" \t")
        known = headers.get(name)
        headers[name] = value if known is None else f"{known}, {value}"
    return Request(method, target, minor, headers)


def _origin_form(target: str) -> str:
    """The path of an absolute-form target; `*` stays as it is."""
    scheme, found, rest = target.partition("://")
    if not found:
        return target
    if scheme.lower() not in ("http", "https"):
        raise BadRequestError("unknown scheme")
    slash = rest.find("/")
    return rest[slash:] if slash >= 0 else "/"


class SizedBody:
    """A body of known length."""

    __slots__ = ("_size", "content")

    def __init__(self, size: int) -> None:
        self._size = size
        self.content = b""

    def take(self, buffer: bytearray) -> bool:
        """Take what belongs to the body from the front of `buffer`; True once complete."""
        size = self._size
        if len(buffer) < size:
            return False
        self.content = bytes(buffer[:size])
        del buffer[:size]
        return True


class ChunkedBody:
    """A body in chunks; extensions and trailers are read and forgotten."""

    __slots__ = ("_in_trailer", "_left", "_parts", "content")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._left = -1
        self._in_trailer = False
        self.content = b""

    def take(self, buffer: bytearray) -> bool:
        """As `SizedBody.take`. Raises BadRequestError for bytes that are no chunk."""
        while True:
            if self._left >= 0:
                if len(buffer) < self._left + 2:
                    return False
                if buffer[self._left : self._left + 2] != b"\r\n":
                    raise BadRequestError("a chunk is longer than it says")
                self._parts.append(bytes(buffer[: self._left]))
                del buffer[: self._left + 2]
                self._left = -1
            end = buffer.find(b"\r\n")
            if end < 0:
                if len(buffer) > _MAX_CHUNK_LINE_BYTES:
                    raise BadRequestError("endless chunk header")
                return False
            line = bytes(buffer[:end])
            del buffer[: end + 2]
            if self._in_trailer:
                if not line:
                    self.content = b"".join(self._parts)
                    return True
                continue
            self._left = _chunk_size(line)
            if self._left == 0:
                self._in_trailer = True
                self._left = -1


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    if not digits or len(digits) > 15 or digits.strip(b"0123456789abcdefABCDEF"):
        raise BadRequestError("malformed chunk size")
    return int(digits, 16)


def body_of(request: Request) -> SizedBody | ChunkedBody:
    """What follows the head. Raises BadRequestError for framing that could be read two ways."""
    headers = request.headers
    coding = headers.get("transfer-encoding")
    length = headers.get("content-length")
    if coding is not None:
        if coding.lower() != "chunked" or length is not None:
            raise BadRequestError("unsupported framing")
        return ChunkedBody()
    if length is None:
        return SizedBody(0)
    if not (length.isascii() and length.isdigit() and len(length) < 16):
        raise BadRequestError("malformed content-length")
    return SizedBody(int(length))
