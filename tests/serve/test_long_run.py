"""A server that runs for days: whatever grows with requests is let go again."""

import asyncio
import gc
from array import array
from collections import Counter, deque
from dataclasses import replace
from types import BuiltinFunctionType, FunctionType, ModuleType

import numpy as np
import pytest

from frontier_mock.core.commands import Submit
from frontier_mock.drive.protocol import Flight, Ticket
from frontier_mock.serve.up import ClusterServer
from tests.engine import prompt
from tests.serve.live import WARP, live, serve_spec

IN_FLIGHT = 8


class Loop:
    """Keeps `IN_FLIGHT` requests in the engine until `total` have ended."""

    def __init__(self, server: ClusterServer) -> None:
        self.server = server
        self.begun = 0
        self.ended = 0
        self.total = 0
        self.done = asyncio.Event()

    async def run_until(self, total: int) -> None:
        self.total = total
        self.done.clear()
        for _ in range(IN_FLIGHT):
            self.next()
        await self.done.wait()

    def next(self) -> None:
        if self.begun < self.total:
            content = self.begun
            self.begun += 1
            tokens = 1 + content % 3
            submit = Submit(prompt(32, content, 16), tokens, tokens, worker=content % 2)
            self.server.driver.submit([submit], Client(self), f"unknown-{content}")


class Client:
    """One request, a stream every other time."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.stream_interval = loop.begun % 2

    def started(self, ticket: Ticket) -> None:
        pass

    def tokens(self, position: int, first: int, last: int) -> bool:
        return True

    def ended(self, ticket: Ticket, flight: Flight, reason: str) -> None:
        pass

    def deliver(self, ticket: Ticket) -> None:
        self.loop.ended += 1
        if self.loop.ended == self.loop.total:
            self.loop.done.set()
        self.loop.next()

    def failed(self, error: BaseException) -> None:
        raise error


def census(root: object) -> Counter[str]:
    """Entries of every container reachable from `root`, by the type that holds it."""
    found: Counter[str] = Counter()
    seen = {id(root)}
    queue: deque[tuple[object, str]] = deque([(root, "root")])
    while queue:
        thing, owner = queue.popleft()
        if isinstance(thing, list | dict | set | deque | array):
            found[owner] += len(thing)
        elif isinstance(thing, np.ndarray):
            found[owner] += thing.size
        elif not isinstance(thing, tuple):
            owner = type(thing).__qualname__
        for other in gc.get_referents(thing):
            skipped = (type, ModuleType, FunctionType, BuiltinFunctionType, asyncio.BaseEventLoop)
            if not isinstance(other, skipped) and id(other) not in seen:
                seen.add(id(other))
                queue.append((other, owner))
    return found


@pytest.mark.parametrize(
    ("kept", "requests"),
    [(20_000, 40_000), pytest.param(500_000, 200_000, marks=pytest.mark.slow)],
)
async def test_nothing_grows_with_the_number_of_requests(kept: int, requests: int) -> None:
    # That many events are kept for reports at first, five a request.
    spec = replace(serve_spec(replace(WARP, patience_s=3600.0), workers=2), keep_events=kept)
    async with live(spec) as server:
        loop = Loop(server)
        await loop.run_until(requests * 3 // 4)
        assert server.driver.forgot_events
        gc.collect()
        before = census(server)
        await loop.run_until(requests)
        gc.collect()
        after = census(server)
        grown = {owner: (before[owner], n) for owner, n in after.items() if n > before[owner] + 500}
    # What is let go in batches may stand anywhere between two of them.
    assert {owner: pair for owner, pair in grown.items() if pair[1] - pair[0] > 4096} == {}
    assert len(server.cluster.log.events) < 2 * 4096
