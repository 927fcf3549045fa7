"""The load generator: plays a `Source` against a real endpoint, in real or in virtual time.

Theory of operation. `run_paced` follows the wall clock, scaled if the server's is: it sends each
request when it is due, whatever became of the others, and notes how late it was. `run_warp` keeps a
lease for every thread of control, so that virtual time moves only when all of them wait:

1. A pacer sleeps until the next instant at which anything is due, and wakes with one child per
   request of that instant. Nothing can happen before those have all arrived, because each child
   holds its lease until its request is inside the engine.
2. If completions release nothing (an open loop), a child's lease ends with its response: one clock
   call per instant is all it takes.
3. If they do, a child outlives its response, and then takes its turn: it sleeps until now, which
   returns when every child of that instant has done the same. Only then is the source told, in the
   order of the requests, and a successor forked for each request that it releases. What order the
   network delivered the responses in has no influence. Lanes that keep apart need no turn: each
   sleeps until its next request is due and takes that request's name, one clock call per request.
4. Actors are named by the request's number, padded: the engine's canonical order of commands within
   an instant is the source's own.
5. `one_at_a_time` wakes the pacer once per request instead of once per instant, and each time only
   after the previous request has reached its worker. A router in between sees one order, always.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import NamedTuple

from frontier_mock.client.clock import ClockClient
from frontier_mock.client.endpoint import NEVER, Answer, Endpoint
from frontier_mock.simtime import SimTime
from frontier_mock.workload.build import output_stream
from frontier_mock.workload.source import Item, Source, Timed

PACER = "loadgen"
"""The actor that waits for arrival times. Sorts after every request's name."""

Progress = Callable[[int, int, SimTime], None]
"""Told (requests done, requests in all, time in ns since the start) after each answer."""


class Exchange(NamedTuple):
    """A request and its answer. `due_ns` and `lateness_ns` are in the source's time.

    `lateness_ns` is how much later than due the request was sent: 0 in warp mode by construction.
    """

    item: Item
    due_ns: SimTime
    lateness_ns: SimTime
    prompt_tokens: int
    output_tokens: int
    answer: Answer


@dataclass(slots=True)
class _Play:
    """One run in progress."""

    source: Source
    endpoint: Endpoint
    progress: Progress
    exchanges: list[Exchange] = field(default_factory=list)
    spoken: dict[int, str] = field(default_factory=dict)

    async def exchange(
        self,
        timed: Timed,
        actor: str | None,
        lateness_ns: SimTime = 0,
        stamp: Callable[[Answer], Awaitable[Answer]] | None = None,
    ) -> Answer:
        """Send one request, wait for its answer, and keep both; `stamp` may see to its times."""
        submit = timed.submit
        answer = await self.endpoint.generate(submit, actor, self.spoken)
        if stamp is not None:
            answer = await stamp(answer)
        if self.source.feeds_back and len(answer.text) == submit.output_tokens:
            self.spoken[output_stream(timed.item.seq)] = answer.text
        answer = answer._replace(text="")
        self.exchanges.append(
            Exchange(
                timed.item,
                timed.t_ns,
                lateness_ns,
                submit.prompt.num_tokens,
                submit.output_tokens,
                answer,
            )
        )
        return answer

    def report(self, now_ns: SimTime) -> None:
        """Tell whoever watches how far it is."""
        self.progress(len(self.exchanges), self.source.num_requests, now_ns)


async def run_paced(
    source: Source, endpoint: Endpoint, progress: Progress, scale: float = 1.0
) -> list[Exchange]:
    """Play in wall time, `scale` seconds of the source per second; answers in order of arrival."""
    play = _Play(source, endpoint, progress)
    start = time.perf_counter_ns()

    def now_ns() -> SimTime:
        return round((time.perf_counter_ns() - start) * scale)

    async def wait_until(t_ns: SimTime) -> None:
        while (ahead_ns := t_ns - now_ns()) > 0:
            await asyncio.sleep(ahead_ns / scale / 1e9)

    async with asyncio.TaskGroup() as group:

        async def one(timed: Timed) -> None:
            await wait_until(timed.t_ns)
            await play.exchange(timed, None, max(0, now_ns() - timed.t_ns))
            now = now_ns()
            for released in source.on_finish(timed.item, now):
                group.create_task(one(released))
            play.report(now)

        for timed in source.initial():
            await wait_until(timed.t_ns)
            group.create_task(one(timed))
    return play.exchanges


async def run_warp(
    source: Source,
    endpoint: Endpoint,
    clock: ClockClient,
    progress: Progress,
    one_at_a_time: bool = False,
) -> list[Exchange]:
    """Play in virtual time, with leases from `clock`, on which `PACER` must be registered.

    The source's time 0 is the clock's present. Raises ClockError if the clock is lost.
    """
    warp = _Warp(_Play(source, endpoint, progress), clock)
    await warp.run(one_at_a_time)
    return warp.play.exchanges


class _Warp:
    """A run in virtual time; see the theory of operation, whose rules are numbered in comments."""

    def __init__(self, play: _Play, clock: ClockClient) -> None:
        self.play = play
        self._clock = clock
        self._start_ns = clock.now_ns
        self._width = len(str(play.source.num_requests))
        self._once = not play.source.releases
        self._apart = play.source.lanes_apart
        self._ended: list[tuple[SimTime, Item, str]] = []
        self._group = asyncio.TaskGroup()

    async def run(self, one_at_a_time: bool) -> None:
        clock = self._clock
        async with self._group as group:
            initial = self.play.source.initial()
            for t_ns, batch in _instants(initial, one_at_a_time):
                actors = self._names(batch)
                await clock.sleep(PACER, self._start_ns + t_ns, actors, self._once)  # 1, 5
                for timed, actor in zip(batch, actors, strict=True):
                    group.create_task(self._one(timed, actor))
            await clock.release([PACER])

    async def _one(self, timed: Timed, actor: str) -> None:
        stamp = None if self._once else partial(self._stamp, timed, actor)
        answer = await self.play.exchange(timed, actor, 0, stamp)
        clock = self._clock
        if self._once:  # 2
            if answer.arrival_ns == NEVER and answer.status != 200:
                # It never reached the engine, which would have ended the lease.
                await clock.release([actor])
            self._report(answer)
            return
        if self._apart:
            self._report(answer)
            await self._next_in_lane(answer, timed.item, actor)
            return
        self._ended.append((answer.finish_ns, timed.item, actor))
        await clock.sleep(actor, 0)  # 3
        self._report(answer)
        await self._follow_up()

    async def _stamp(self, timed: Timed, actor: str, answer: Answer) -> Answer:
        """The answer with its virtual times where a router has swallowed them.

        It arrived when it was due, and with the lease back, time stands where it ended.
        """
        if answer.status != 200 or answer.message or answer.finish_ns != NEVER:
            return answer
        await self._clock.sleep(actor, 0)
        arrival_ns = self._start_ns + timed.t_ns
        return answer._replace(arrival_ns=arrival_ns, finish_ns=self._clock.now_ns)

    async def _next_in_lane(self, answer: Answer, item: Item, actor: str) -> None:
        """The one request that `item` releases, if any, under a name of its own."""
        at_ns = self._clock.now_ns if answer.finish_ns == NEVER else answer.finish_ns
        released = self.play.source.on_finish(item, at_ns - self._start_ns)
        if not released:
            await self._clock.release([actor])
            return
        (timed,) = released
        (name,) = self._names(released)
        await self._clock.sleep(actor, self._start_ns + timed.t_ns, rename=name)
        self._group.create_task(self._one(timed, name))

    async def _follow_up(self) -> None:
        """Tell the source what ended at this instant and start what that releases."""
        ended, self._ended = self._ended, []
        if not ended:
            return
        clock = self._clock
        ended.sort(key=lambda one: one[1].seq)
        released: list[Timed] = []
        for finish_ns, item, _ in ended:
            at_ns = clock.now_ns if finish_ns == NEVER else finish_ns
            released.extend(self.play.source.on_finish(item, at_ns - self._start_ns))
        actors = self._names(released)
        parents = [actor for _, _, actor in ended]
        if released:
            await clock.fork(parents[0], actors)
        await clock.release(parents)
        for timed, actor in zip(released, actors, strict=True):
            self._group.create_task(self._later(timed, actor))

    async def _later(self, timed: Timed, actor: str) -> None:
        due_ns = self._start_ns + timed.t_ns
        if due_ns > self._clock.now_ns:
            await self._clock.sleep(actor, due_ns)
        await self._one(timed, actor)

    def _names(self, batch: Sequence[Timed]) -> list[str]:
        return [f"{timed.item.seq:0{self._width}d}" for timed in batch]  # 4

    def _report(self, answer: Answer) -> None:
        self.play.report(max(answer.finish_ns, self._clock.now_ns) - self._start_ns)


def _instants(initial: Sequence[Timed], one_at_a_time: bool) -> "list[tuple[SimTime, list[Timed]]]":
    if one_at_a_time:
        return [(timed.t_ns, [timed]) for timed in initial]
    return [(t_ns, list(batch)) for t_ns, batch in groupby(initial, lambda timed: timed.t_ns)]


def ignore_progress(done: int, total: int, now_ns: SimTime) -> None:
    """A `Progress` for when nobody watches."""
