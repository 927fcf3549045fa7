"""Responses as bytes: what uvicorn would put on the wire, written in one go.

aiohttp parses requests and owns connections; its response objects are bypassed, because header
dictionaries cost more than everything else a short answer needs.
"""

import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import NamedTuple

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = (
    *("Jan", "Feb", "Mar", "Apr", "May", "Jun"),
    *("Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
)

JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"
NDJSON = "application/x-ndjson"
LAST_CHUNK = b"0\r\n\r\n"
_END = {True: "connection: close\r\n\r\n", False: "\r\n"}


class Answer(NamedTuple):
    """A complete response. `extra` are header lines, each ended by CRLF."""

    status: int
    body: bytes
    content_type: str = JSON
    extra: str = ""


Handler = Callable[[web.BaseRequest], Awaitable[Answer | None]]
"""Returns the answer, or None when it has written one itself."""


class Heads:
    """Status lines and headers, with the date rendered once a second."""

    __slots__ = ("_fixed", "_second")

    def __init__(self) -> None:
        self._second = 0
        self._fixed = ""

    def complete(self, answer: Answer, *, close: bool) -> bytes:
        """The head of a response whose body is known."""
        kind = f"content-type: {answer.content_type}\r\n" if answer.content_type else ""
        return (
            f"HTTP/1.1 {answer.status} {_PHRASES.get(answer.status, '')}\r\n{self._common()}"
            f"content-length: {len(answer.body)}\r\n{kind}{answer.extra}"
            f"{_END[close]}"
        ).encode("latin-1", "replace")

    def streamed(self, content_type: str, extra: str, *, chunked: bool, close: bool) -> bytes:
        """The head of a 200 response whose body follows piece by piece."""
        framing = "transfer-encoding: chunked\r\n" if chunked else ""
        return (
            f"HTTP/1.1 200 OK\r\n{self._common()}content-type: {content_type}\r\n"
            f"{extra}{framing}{_END[close]}"
        ).encode("latin-1", "replace")

    def _common(self) -> str:
        second = int(time.time())
        if second != self._second:
            t = time.gmtime(second)
            self._second = second
            self._fixed = (
                f"date: {_DAYS[t.tm_wday]}, {t.tm_mday:02d} {_MONTHS[t.tm_mon - 1]} {t.tm_year} "
                f"{t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d} GMT\r\nserver: uvicorn\r\n"
            )
        return self._fixed


def chunk(data: bytes) -> bytes:
    """`data` as one piece of a chunked body (RFC 9112 section 7.1); never the empty last one."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


class Written(web.StreamResponse):
    """Tells aiohttp that the response is on its way already."""

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._stays_open = keep_alive

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection may carry another request."""
        return self._stays_open

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Nothing left to prepare."""
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing left to write."""
