"""Punctuality: how late steps are told on a real clock, with and without --sim-precise."""

import asyncio
import urllib.request

from tests.bench.figures import Figure
from tests.bench.server import MODEL, Server, completion_request, running_server

STREAMS = 32
TOKENS = 512


def clock_figures() -> list[Figure]:
    """Lateness per step of 32 streams on one worker in real time, as the server measures it."""
    figures = []
    for name, flags, p50_ms, p99_ms in (
        ("real", (), 1.0, 2.5),
        ("real --sim-precise", ("--sim-precise",), 0.3, 1.5),
    ):
        with running_server("real", *flags) as server:
            asyncio.run(_load(server))
            buckets = _drift(server)
        note = f"{buckets[-1][1]:,.0f} steps"
        for share, goal_ms in ((0.5, p50_ms), (0.99, p99_ms)):
            value_ms = 1e3 * _quantile_s(buckets, share)
            what = f"lateness p{share * 100:.0f}, {STREAMS} streams, {name}"
            figures.append(Figure(what, value_ms, "ms", goal_ms, False, note))
    return figures


async def _load(server: Server) -> None:
    body = {"model": MODEL, "prompt": "Hello there", "max_tokens": TOKENS, "stream": True}
    request = completion_request({**body, "ignore_eos": True})

    async def stream() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 20)
        writer.write(request)
        tail = b""
        while b"[DONE]" not in tail:
            data = await reader.read(1 << 18)
            assert data, "the server closed the stream early"
            tail = tail[-16:] + data
        writer.close()

    await asyncio.gather(*(stream() for _ in range(STREAMS)))


def _drift(server: Server) -> list[tuple[float, float]]:
    """(upper bound in seconds, cumulative count) of the server's histogram of lateness."""
    url = f"http://127.0.0.1:{server.port}/metrics"
    with urllib.request.urlopen(url) as reply:
        lines = reply.read().decode().splitlines()
    found = [line for line in lines if line.startswith("mock_drift_seconds_bucket")]
    return [
        (float(line.split('le="')[1].split('"')[0].replace("+Inf", "inf")), float(line.split()[-1]))
        for line in found
    ]


def _quantile_s(buckets: list[tuple[float, float]], share: float) -> float:
    """As PromQL's histogram_quantile: linear within a bucket."""
    rank = share * buckets[-1][1]
    low, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank and count > below:
            return low + (bound - low) * (rank - below) / (count - below)
        low, below = bound, count
    return low
