"""Responses as bytes: what uvicorn would put on the wire, written in one go."""

import json
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple

JSON = "application/json"
NDJSON = "application/x-ndjson"

LAST_CHUNK = b"0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
INVALID = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"connection: close\r\n\r\nInvalid HTTP request received."
)
"""What uvicorn says to bytes that are not HTTP/1, a router's HTTP/2 preface among them."""

_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = (
    *("Jan", "Feb", "Mar", "Apr", "May", "Jun"),
    *("Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
)
_END = {True: "connection: close\r\n\r\n", False: "\r\n"}


class Answer(NamedTuple):
    """A complete response. `extra` are header lines, each ended by CRLF."""

    status: int
    body: bytes
    content_type: str = JSON
    extra: str = ""


def json_answer(value: Mapping[str, object], status: int = 200) -> Answer:
    """`value` as compact JSON."""
    return Answer(status, json.dumps(value, separators=(",", ":")).encode())


class Heads:
    """Status lines and headers, with the date rendered once a second."""

    __slots__ = ("_common_lines", "_name", "_second")

    def __init__(self, name: str = "uvicorn") -> None:
        """`name` is what the server is called."""
        self._name = name
        self._second = 0
        self._common_lines = ""

    def complete(self, answer: Answer, extra: str, *, close: bool) -> bytes:
        """The head of a response whose body is known."""
        kind = f"content-type: {answer.content_type}\r\n" if answer.content_type else ""
        return (
            f"HTTP/1.1 {answer.status} {_PHRASES.get(answer.status, '')}\r\n{self._common()}"
            f"content-length: {len(answer.body)}\r\n{kind}{answer.extra}{extra}{_END[close]}"
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
            self._common_lines = (
                f"date: {_DAYS[t.tm_wday]}, {t.tm_mday:02d} {_MONTHS[t.tm_mon - 1]} {t.tm_year} "
                f"{t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d} GMT\r\nserver: {self._name}\r\n"
            )
        return self._common_lines


def chunk(data: bytes) -> bytes:
    """`data` as one piece of a chunked body (RFC 9112 section 7.1); never the empty last one."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
