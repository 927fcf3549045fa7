"""Requests from bytes: framing, limits, and the same request however it is cut up."""

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontier_mock.serve.answers import Answer
from frontier_mock.serve.connection import Connection, Exchange, Http1Server
from frontier_mock.serve.http1 import BadRequestError, Request, RequestReader


class Echo:
    """Answers every request with its method, path and body."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.late: list[Exchange] = []
        self.hold = False
        self.on_the_way = 0
        self.answers: list[tuple[int, int]] = []

    def handle(self, exchange: Exchange) -> None:
        self.requests.append(exchange.request)
        if self.hold:
            self.late.append(exchange)
        else:
            exchange.reply(Answer(200, exchange.request.body, "text/plain"))

    def answering(self, exchange: Exchange, status: int) -> str:
        return "x-seen: yes\r\n"

    def answered(self, exchange: Exchange, status: int, body_bytes: int) -> None:
        self.answers.append((status, body_bytes))

    def arriving(self, request: Request) -> None:
        self.on_the_way += 1

    def received(self, request: Request) -> None:
        self.on_the_way -= 1


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.sent = b""
        self.closed = False
        self.paused = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_write_buffer_size(self) -> int:
        return 0


def connect() -> tuple[Connection, Echo, Wire]:
    app, wire = Echo(), Wire()
    connection = Http1Server(app, 60.0)()
    connection.connection_made(wire)
    return connection, app, wire


POST = b"POST /a%20b?x=1&y=%32 HTTP/1.1\r\nHost: h\r\nX-Twice: 1\r\nx-twice: 2\r\n"
SIZED = POST + b"Content-Length: 5\r\n\r\nhello"
OFFERED = SIZED.replace(b"Content-", b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-")
CHUNKED = (
    POST + b"Transfer-Encoding: chunked\r\n\r\n2;ext=1\r\nhe\r\n3\r\nllo\r\n0\r\nTrailer: t\r\n\r\n"
)


@pytest.mark.parametrize("message", [SIZED, CHUNKED, OFFERED, b"\r\n" + SIZED])
@given(data=st.data())
def test_request_is_the_same_however_it_is_cut(message: bytes, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(message)), max_size=6).map(sorted))
    connection, app, wire = connect()
    for start, end in zip([0, *cuts], [*cuts, len(message)], strict=True):
        if end > start:
            connection.data_received(message[start:end])
    (request,) = app.requests
    assert (request.method, request.path, request.body) == ("POST", "/a b", b"hello")
    assert request.headers["x-twice"] == "1, 2"
    assert request.query("y") == "2"
    assert request.query("z") is None
    assert app.on_the_way == 0
    assert wire.sent.startswith(b"HTTP/1.1 200 OK\r\ndate: ")
    assert wire.sent.endswith(
        b"server: uvicorn\r\ncontent-length: 5\r\ncontent-type: text/plain\r\n"
        b"x-seen: yes\r\n\r\nhello"
    )
    assert not wire.closed


async def test_pipelined_requests_are_answered_in_order_one_at_a_time() -> None:
    connection, app, wire = connect()
    app.hold = True
    connection.data_received(SIZED + b"GET /next HTTP/1.1\r\n\r\n" + b"GET /last HTTP/1.1\r\n\r\n")
    for path in ("/a b", "/next", "/last"):
        assert [r.path for r in app.requests][-1] == path
        assert wire.paused
        app.late.pop().reply(Answer(200, path.encode()))
        await asyncio.sleep(0)
    assert wire.sent.find(b"/a b") < wire.sent.find(b"/next") < wire.sent.find(b"/last")
    assert not app.late


@pytest.mark.parametrize(
    ("head", "closes"),
    [
        ("GET / HTTP/1.1\r\n", False),
        ("GET / HTTP/1.1\r\nConnection: close\r\n", True),
        ("GET / HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n", False),
        ("GET / HTTP/1.0\r\n", True),
        ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n", False),
    ],
)
def test_connection_lives_as_long_as_asked(head: str, closes: bool) -> None:
    connection, _, wire = connect()
    connection.data_received(head.encode() + b"\r\n")
    assert wire.closed is closes
    assert (b"connection: close" in wire.sent) is closes


def test_head_gets_the_headers_only() -> None:
    connection, _, wire = connect()
    connection.data_received(b"HEAD / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc")
    assert b"content-length: 3\r\n" in wire.sent
    assert wire.sent.endswith(b"\r\n\r\n")


def test_client_that_waits_for_leave_to_send_gets_it() -> None:
    connection, app, wire = connect()
    connection.data_received(POST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert wire.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert app.on_the_way == 1
    connection.data_received(b"ok")
    assert app.on_the_way == 0
    assert wire.sent.endswith(b"ok")


def test_request_that_never_completes_ends_with_its_connection() -> None:
    connection, app, _ = connect()
    connection.data_received(POST + b"Content-Length: 9\r\n\r\nhalf")
    assert app.on_the_way == 1
    connection.connection_lost(None)
    assert app.on_the_way == 0
    assert app.requests == []


def test_answer_to_a_lost_connection_goes_nowhere_and_is_told() -> None:
    connection, app, wire = connect()
    app.hold = True
    connection.data_received(SIZED)
    told: list[str] = []
    app.late[0].on_lost = lambda: told.append("lost")
    connection.connection_lost(None)
    app.late[0].begin("text/plain")
    app.late[0].write(b"x")
    app.late[0].end(b"y")
    app.late[0].reply(Answer(200, b""))
    assert told == ["lost"]
    assert wire.sent == b""


@pytest.mark.parametrize(
    "data",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1 extra\r\n\r\n",
        b"G3T / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nspaced : v\r\n\r\n",
        b"GET / HTTP/1.1\r\na: b\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\na: b\nc: d\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: +5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked, gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nabcd\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + b"1" * 5000,
        b"\x16\x03\x01" + b"\x00" * (5 << 20),
    ],
)
def test_what_is_not_http_gets_uvicorns_answer(data: bytes) -> None:
    connection, app, wire = connect()
    connection.data_received(data)
    assert wire.sent.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert wire.sent.endswith(b"Invalid HTTP request received.")
    assert wire.closed
    assert app.requests == []


@pytest.mark.parametrize(
    ("target", "path"),
    [("http://host:8000/v1/models?x=1", "/v1/models"), ("http://host", "/"), ("*", "*")],
)
def test_every_form_of_target(target: str, path: str) -> None:
    reader = RequestReader()
    reader.feed(f"OPTIONS {target} HTTP/1.1\r\n\r\n".encode())
    assert [request.path for request in reader.ready] == [path]


async def test_refused_upgrade_leaves_what_follows_to_http() -> None:
    offer = b"GET /a HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    connection, app, wire = connect()
    connection.data_received(offer + offer.replace(b"/a", b"/b") + SIZED[:20])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    connection.data_received(SIZED[20:])
    await asyncio.sleep(0)
    assert [request.path for request in app.requests] == ["/a", "/b", "/a b"]
    assert not wire.closed


def test_protocol_that_takes_over_gets_what_was_read_ahead() -> None:
    class Other(asyncio.Protocol):
        data = b""

        def data_received(self, data: bytes) -> None:
            self.data += data

    connection, app, wire = connect()
    app.hold = True
    connection.data_received(b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n\x00not")
    connection.data_received(b" http")
    other = Other()
    app.late[0].hand_over(other, b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
    assert other.data == b"\x00not http"
    assert wire.protocol is other


async def test_requests_before_bytes_that_are_none_are_answered() -> None:
    connection, app, wire = connect()
    app.hold = True
    connection.data_received(SIZED + b"\x00\x01\x02")
    assert not wire.closed
    app.late[0].reply(Answer(200, b"fine"))
    await asyncio.sleep(0)
    assert b"fine" in wire.sent
    assert wire.sent.endswith(b"Invalid HTTP request received.")
    assert wire.closed


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8))
def test_chunks_are_joined(parts: list[bytes]) -> None:
    body = b"".join(b"%X\r\n%b\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n"
    reader = RequestReader()
    reader.feed(POST + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"GET /next HTTP/1.1\r\n\r\n")
    first, second = reader.ready
    assert first.body == b"".join(parts)
    assert second.path == "/next"


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_any_bytes_are_a_request_or_refused(pieces: list[bytes]) -> None:
    reader = RequestReader()
    with contextlib.suppress(BadRequestError):
        for piece in (b"GET / HTTP/1.1\r\n", *pieces):
            reader.feed(piece)
    assert all(request.method == "GET" or request.path for request in reader.ready)
