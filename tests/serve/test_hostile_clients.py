"""Whatever arrives on the socket, nobody sees a traceback and the server goes on serving."""

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from frontier_mock.drive.pace import ClockSpec
from frontier_mock.serve.spec import ServeSpec
from frontier_mock.serve.up import ClusterServer
from tests.serve.live import FAST, WARP, live, serve_spec

LIMIT_S = 60.0
CHAT = {"model": "mock", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
ROUTES = (
    "/v1/completions",
    "/v1/chat/completions",
    "/tokenize",
    "/detokenize",
    "/sim/clock/register",
    "/sim/clock/fork",
    "/sim/clock/sleep",
    "/sim/clock/barrier",
    "/sim/clock/release",
    "/sim/clock/advance",
    "/metrics",
    "/nowhere",
)


def post(path: str, body: bytes, headers: str = "") -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{headers}"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


GOOD = post("/v1/chat/completions", json.dumps(CHAT).encode())
STREAM = post("/v1/chat/completions", json.dumps({**CHAT, "stream": True}).encode())
CHUNKED = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"1\r\n%c\r\n" % byte for byte in json.dumps(CHAT).encode())
    + b"0\r\n\r\n"
)
EXPECTING = post("/v1/chat/completions", json.dumps(CHAT).encode(), "Expect: 100-continue\r\n")


class Peer:
    """A client that says what it likes."""

    def __init__(self, server: ClusterServer) -> None:
        self.port = server._sockets[0].getsockname()[1]

    async def say(self, *pieces: bytes, eof: bool = False, read: bool = True) -> bytes:
        """Send the pieces, one at a time; what the server answers until it closes or is done."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        heard = b""
        try:
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0)
            await writer.drain()
            if eof:
                writer.write_eof()
            if read:
                heard = await reader.read()
        except OSError:
            pass
        finally:
            writer.close()
        return heard

    async def answer(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of a request whose connection closes behind it."""
        heard = await self.say(request.replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n"))
        return int(heard.split(b" ", 2)[1]), heard.partition(b"\r\n\r\n")[2]


@asynccontextmanager
async def besieged(
    caplog: pytest.LogCaptureFixture,
    warp: bool = False,
    make: Callable[[ClockSpec], ServeSpec] = serve_spec,
) -> AsyncIterator[Peer]:
    """A server that must be as good as new at the end of the block."""
    failures: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context))
    caplog.set_level(logging.INFO)
    async with asyncio.timeout(LIMIT_S), live(make(WARP if warp else FAST)) as server:
        peer = Peer(server)
        yield peer
        assert (await peer.answer(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200
        status, body = await peer.answer(GOOD)
        assert status == 200
        assert json.loads(body)["usage"]["completion_tokens"] == 3
        while server.driver.in_flight or server.webs[0].connections:
            await asyncio.sleep(0)
        assert server.driver.keeper.holders() == []
        assert server.driver.error is None
    assert failures == []
    # asyncio warns of clients here that write on, although the server has hung up.
    bad = [r for r in caplog.records if r.levelno >= logging.WARNING and r.name != "asyncio"]
    assert bad + [r for r in caplog.records if r.levelno >= logging.ERROR] == []


def mangled(rng: random.Random, message: bytes) -> bytes:
    data = bytearray(message)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data))
        kind = rng.random()
        if kind < 0.4:
            data[at] = rng.choice(b"\x00\r\n :;,/\xff0aZ{}\"'")
        elif kind < 0.7:
            del data[at : at + rng.randint(1, 9)]
        else:
            data[at:at] = rng.randbytes(rng.randint(1, 9))
        if not data:
            break
    return bytes(data)


async def test_random_and_mangled_bytes(caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(20)
    async with besieged(caplog) as peer:
        for _ in range(300):
            message = rng.choice((GOOD, STREAM, CHUNKED, EXPECTING, rng.randbytes(400)))
            data = mangled(rng, message)
            cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randint(0, 4)))
            pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
            await peer.say(*pieces, eof=True, read=rng.random() < 0.7)


async def test_any_json_on_any_route(caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(21)
    values = [None, True, 0, -1, 2**70, 1.5, "x", "", [], {}, [[]], ["a", 1], {"a": 1}, "\ud800"]
    keys = [*CHAT, "prompt", "stream", "n", "stop", "tokens", "actor", "actors", "until_ns"]
    keys += ["seconds", "parent", "children", "once", "group", "size", "then_fork", "metadata"]

    def value(depth: int) -> object:
        kind = rng.random()
        if depth and kind < 0.2:
            return [value(depth - 1) for _ in range(rng.randint(0, 3))]
        if depth and kind < 0.4:
            return {rng.choice(keys): value(depth - 1) for _ in range(rng.randint(0, 3))}
        return rng.choice(values)

    async with besieged(caplog) as peer:
        for _ in range(600):
            body: dict[str, object] = {rng.choice(keys): value(2) for _ in range(rng.randint(0, 4))}
            if rng.random() < 0.5:
                body = {**CHAT, **body}
            path, text = rng.choice(ROUTES), json.dumps(body).encode()
            if path.startswith("/sim/clock"):
                # Some of these wait, rightly, for what never comes.
                await peer.say(post(path, text), read=False)
                continue
            status, answer = await peer.answer(post(path, text))
            assert status in (200, 400, 404, 405, 409, 501), (body, answer)


@pytest.mark.parametrize("warp", [False, True])
async def test_clients_that_never_finish(caplog: pytest.LogCaptureFixture, warp: bool) -> None:
    async with besieged(caplog, warp) as peer:
        lingering = []
        for length in (1, 20, 60, len(GOOD) - 1):
            reader, writer = await asyncio.open_connection("127.0.0.1", peer.port)
            for byte in GOOD[:length]:
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            lingering.append((reader, writer))
        if not warp:
            # In warp a half-received request holds time, which is the point of it.
            assert (await peer.answer(GOOD))[0] == 200
        for _, writer in lingering:
            writer.transport.abort()


async def test_clients_that_leave_early(caplog: pytest.LogCaptureFixture) -> None:
    async with besieged(caplog) as peer:
        for request in (GOOD, STREAM, CHUNKED) * 10:
            await peer.say(request, read=False)
            await peer.say(request, eof=True)
            reader, writer = await asyncio.open_connection("127.0.0.1", peer.port)
            writer.write(request)
            await reader.read(20)
            writer.transport.abort()


async def test_pipelined_requests_and_what_is_behind_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    last = GOOD.replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n")
    async with besieged(caplog) as peer:
        heard = await peer.say((GOOD + STREAM + CHUNKED + EXPECTING) * 10 + last)
        assert heard.count(b"HTTP/1.1 200 OK") == 41
        heard = await peer.say(GOOD + b"\x00\x01 neither\r\n\r\n")
        assert heard.count(b"HTTP/1.1 200 OK") == 1
        assert heard.endswith(b"Invalid HTTP request received.")
        reader, writer = await asyncio.open_connection("127.0.0.1", peer.port)
        writer.write(EXPECTING[:-10])
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(EXPECTING[-10:] + last)
        assert (await reader.read()).count(b"HTTP/1.1 200 OK") == 2
        writer.close()


async def test_heads_without_end(caplog: pytest.LogCaptureFixture) -> None:
    async with besieged(caplog) as peer:
        for start in (b"GET /", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\n"):
            filling = b"Y: z\r\n" * 1000 if start.endswith(b"\n") else b"y" * 6000
            heard = await peer.say(start, *[filling] * 900)
            assert heard == b"" or heard.endswith(b"Invalid HTTP request received.")
        heard = await peer.say(b"GET / HTTP/1.1\r\n" + b"Y: z\r\n" * 258)
        assert heard.endswith(b"Invalid HTTP request received.")
        long = GOOD.replace(b"Host: x", b"Host: x\r\nX: " + b"y" * 1_000_000)
        assert (await peer.answer(long))[0] == 200
