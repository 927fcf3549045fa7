"""The server alone: CPU seconds of its process while a lean client in this one loads it."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.bench.figures import Figure, best_of

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
START_LIMIT_S = 30.0


def server_figures() -> list[Figure]:
    """Start-up, memory, streamed chunks and unary requests per CPU second of the server."""
    with running_server("scaled:100") as server:
        figures = [
            Figure("server answers /health after", server.up_s, "s", 1.5, False),
            Figure("resident memory once up", server.rss_mb(), "MB", 150, False),
            *_unary(server),
        ]
    # Twice real time asks for some 40k chunks a second, near what one core can write; a faster
    # clock would only coalesce tokens.
    with running_server("scaled:2") as server:
        figures.append(_streams(server))
    return figures


class Server:
    """A `frontier-mock vllm serve` process."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, up_s: float) -> None:
        self.port = port
        self.up_s = up_s
        self._pid = process.pid

    def cpu_s(self) -> float:
        with open(f"/proc/{self._pid}/stat", encoding="ascii") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S

    def rss_mb(self) -> float:
        with open(f"/proc/{self._pid}/status", encoding="ascii") as file:
            line = next(line for line in file if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024


@contextmanager
def running_server(clock: str, *flags: str) -> Iterator[Server]:
    """A server that answers /health, until the end of the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "frontier_mock", "vllm", "serve", MODEL]
    command += ["--host", "127.0.0.1", "--port", str(port), "--sim-clock", clock, *flags]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield Server(process, port, _wait_healthy(port, start))
    finally:
        process.terminate()
        process.wait(timeout=20)


def _wait_healthy(port: int, start: float) -> float:
    while time.perf_counter() - start < START_LIMIT_S:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                if b" 200 " in connection.recv(4096):
                    return time.perf_counter() - start
        except OSError:
            time.sleep(0.01)
    raise TimeoutError(f"the server did not answer /health within {START_LIMIT_S:g} s")


def completion_request(body: dict[str, object]) -> bytes:
    """A whole HTTP request for /v1/completions."""
    return _request("completions", body)


def _request(route: str, body: dict[str, object]) -> bytes:
    payload = json.dumps(body).encode()
    head = (
        f"POST /v1/{route} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\n\r\n"
    )
    return head.encode() + payload


def _unary(server: Server) -> Iterator[Figure]:
    what = {"model": MODEL, "max_tokens": 1}
    turns = [{"role": "user", "content": "Hello there"}]
    completion = _request("completions", {**what, "prompt": "Hello there"})
    chat = _request("chat/completions", {**what, "messages": turns})
    yield _unary_figure(server, completion, "non-streamed completions")
    yield _unary_figure(server, chat, "non-streamed chat")


def _unary_figure(server: Server, request: bytes, name: str) -> Figure:
    async def lane(count: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for _ in range(count):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head[:20], head
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
        writer.close()

    async def load(lanes: int, count: int) -> None:
        await asyncio.gather(*(lane(count) for _ in range(lanes)))

    def cpu_s() -> float:
        before = server.cpu_s()
        asyncio.run(load(64, 125))
        return server.cpu_s() - before

    total = 64 * 125
    asyncio.run(load(64, 10))
    best, median = best_of(5, cpu_s)
    note = f"median of five {total / median:,.0f}"
    return Figure(name, total / best, "per CPU s", 8000, True, note)


def _streams(server: Server) -> Figure:
    tokens = 512
    body = {"model": MODEL, "prompt": "Hello there", "max_tokens": tokens, "stream": True}
    request = _request("completions", {**body, "ignore_eos": True})

    async def stream() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 20)
        writer.write(request)
        tail, chunks = b"", 0
        while b"[DONE]" not in tail:
            data = await reader.read(1 << 18)
            assert data, "the server closed the stream early"
            chunks += data.count(b"data: {")
            tail = tail[-16:] + data
        writer.close()
        return chunks

    async def load() -> int:
        return sum(await asyncio.gather(*(stream() for _ in range(256))))

    before, start = server.cpu_s(), time.perf_counter()
    chunks = asyncio.run(load())
    cpu_s, wall_s = server.cpu_s() - before, time.perf_counter() - start
    note = f"{chunks / wall_s:,.0f} per wall second; {256 * tokens / chunks:.1f} tokens a chunk"
    return Figure("SSE chunks, 256 streams", chunks / cpu_s, "per CPU s", 90_000, True, note)
