"""The HTTP client: any cut of the bytes gives the same response; bad servers give clear errors."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontier_mock.client.http1 import HttpClient, HttpError, Response, ResponseParser

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1: 2 \r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n"
    b"3\r\nhel\r\n2;ext=1\r\nlo\r\n0\r\nTrailer: x\r\n\r\n"
)
CONTINUED = b"HTTP/1.1 100 Continue\r\n\r\n" + LENGTH
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"
REFUSED = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\nConnection: Close\r\n\r\nno"
UNTIL_CLOSE = b"HTTP/1.0 200 OK\r\n\r\nhello"


def parse(pieces: Sequence[bytes]) -> tuple[Response, bytes, list[bool]]:
    """The response, what was handed over piece by piece, and what each feed said."""
    seen: list[bytes] = []
    parser = ResponseParser(seen.append)
    done = [parser.feed(piece) for piece in pieces]
    return parser.response(), b"".join(seen), done


@given(
    st.sampled_from([LENGTH, CHUNKED, CONTINUED, EMPTY, REFUSED, UNTIL_CLOSE]),
    st.lists(st.integers(0, 120), max_size=12),
)
def test_any_cut_gives_the_same_response(raw: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    pieces = [raw[a:b] for a, b in pairwise(places) if b > a]
    response, streamed, done = parse(pieces)
    whole, whole_streamed, (complete,) = parse([raw])
    assert (response, streamed) == (whole, whole_streamed)
    assert done[:-1] == [False] * (len(pieces) - 1)
    assert done[-1] is complete
    assert complete is (raw is not UNTIL_CLOSE)


def test_what_the_responses_say() -> None:
    response, streamed, _ = parse([LENGTH])
    assert (response.status, streamed, response.body) == (200, b"hello", b"")
    assert response.headers == {"content-length": "5", "x-a": "1: 2"}
    assert parse([CHUNKED])[1] == b"hello"
    assert parse([CONTINUED])[0].status == 200
    refused, streamed, _ = parse([REFUSED])
    assert (refused.status, refused.body, streamed) == (400, b"no", b"")
    parser = ResponseParser()
    parser.feed(LENGTH)
    assert parser.response().body == b"hello"
    assert parser.keeps_alive()
    assert not parser.end()


@pytest.mark.parametrize("raw", [REFUSED, UNTIL_CLOSE])
def test_connections_that_end_are_not_kept(raw: bytes) -> None:
    parser = ResponseParser()
    parser.feed(raw)
    assert not parser.keeps_alive()
    assert parser.end() is (raw is UNTIL_CLOSE)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "Expected HTTP/.* in b'SSH-2.0"),
        (b"HTTP/1.1 OK\r\n\r\n", "not an HTTP/1.1 response"),
        (b"HTTP/1.1 200 OK\r\nbroken\r\n\r\n", "Invalid header token"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "Invalid character in Content-Length"),
        (LENGTH + b"x", "bytes after the end"),
        (LENGTH + LENGTH, "bytes after the end"),
        (CHUNKED.replace(b"3\r\nhel", b"zz\r\nhel"), "Invalid character in chunk size"),
        (CHUNKED.replace(b"3\r\nhel", b"2\r\nhel"), "after chunk data"),
        (b"HTTP/1.1 101 Other\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "another protocol"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, "headers are too long"),
        (CHUNKED[:48] + b"1" * 70_000, "Chunk size overflow"),
    ],
)
def test_what_is_not_http_is_an_error(raw: bytes, message: str) -> None:
    with pytest.raises(HttpError, match=message):
        ResponseParser().feed(raw)


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port", "http://h:99999"])
def test_what_is_not_a_url_is_an_error(url: str) -> None:
    with pytest.raises(HttpError, match="expected http://host:port"):
        HttpClient(url)


@asynccontextmanager
async def scripted(answers: Sequence[bytes]) -> AsyncIterator[tuple[HttpClient, list[bytes]]]:
    """A server that gives `answers` one per request, and a list of one entry per connection."""
    script = iter(answers)
    connections: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(b"")
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                connections[-1] += head + await reader.readexactly(size)
                answer = next(script)
                writer.write(answer)
                if not answer or b"lose\r\n" in answer or answer is UNTIL_CLOSE:
                    return
        except asyncio.IncompleteReadError:
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = HttpClient(f"http://127.0.0.1:{port}/base/", "X-Key: k\r\n")
    try:
        yield client, connections
    finally:
        client.close()
        server.close()


async def test_connections_are_kept_and_used_again() -> None:
    async with scripted([LENGTH, CHUNKED, LENGTH]) as (client, connections):
        for _ in range(3):
            assert (await client.request("POST", "/x", b"body", "Y: 1\r\n")).body == b"hello"
        assert len(connections) == 1
    head = connections[0]
    assert head.startswith(b"POST /base/x HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"X-Key: k\r\nY: 1\r\nContent-Length: 4\r\n\r\nbody" in head


async def test_a_closed_connection_is_replaced() -> None:
    async with scripted([REFUSED, UNTIL_CLOSE, LENGTH]) as (client, connections):
        assert (await client.request("GET", "/")).status == 400
        assert (await client.request("GET", "/")).body == b"hello"
        assert (await client.request("GET", "/")).body == b"hello"
        assert len(connections) == 3


async def test_no_answer_is_an_os_error() -> None:
    async with scripted([b""]) as (client, _):
        with pytest.raises(ConnectionError, match="connection lost before the answer"):
            await client.request("GET", "/")


async def test_a_handler_that_fails_fails_the_request() -> None:
    def refuse(data: bytes) -> None:
        raise ValueError("not this")

    async with scripted([LENGTH]) as (client, _):
        with pytest.raises(ValueError, match="not this"):
            await client.request("GET", "/", on_data=refuse)


async def test_a_cancelled_request_closes_its_connection() -> None:
    async with scripted([b"HTTP/1.1 200 OK\r\n", LENGTH]) as (client, connections):
        waiting = asyncio.create_task(client.request("GET", "/"))
        while not any(connections):
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await client.request("GET", "/")).body == b"hello"
        assert len(connections) == 2


async def test_nobody_listening_is_an_os_error(unused_tcp_port: int) -> None:
    with pytest.raises(OSError, match=str(unused_tcp_port)):
        await HttpClient(f"127.0.0.1:{unused_tcp_port}").request("GET", "/")


def test_works_on_a_loop_whose_transports_are_not_asyncios() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def ask() -> Response:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(LENGTH)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            http = HttpClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            reply = await http.request("GET", "/")
            http.close()
            return reply

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(ask()).body == b"hello"
