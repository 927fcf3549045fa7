"""The driver on a real cluster: modes, subscribers that fail, aborts, and the journal law."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.core.commands import Abort, Command, Submit
from frontier_mock.core.events import Event
from frontier_mock.drive.driver import Driver
from frontier_mock.drive.leases import StallError
from frontier_mock.drive.pace import ClockSpec
from frontier_mock.drive.protocol import Flight, LateError, ShutdownError, Ticket
from frontier_mock.serving.specs import SchedulerSpec
from frontier_mock.simtime import SimTime
from tests.engine import prompt, toy_cluster

SCHEDULER = SchedulerSpec(
    max_num_seqs=8, max_num_batched_tokens=64, max_model_len=512, num_blocks=256
)
WARP = ClockSpec(mode="warp", grace_ms=0.0)
FAST = ClockSpec(mode="scaled", scale=50.0, late_ms_max=1e9)


class Nothing:
    """A fold that forgets."""

    def fold(self, event: Event) -> None:
        pass

    def request(self, rids: Sequence[int]) -> None:
        pass


class Reader:
    """A subscriber that remembers what it was told."""

    def __init__(self, stream_interval: int = 0) -> None:
        self.stream_interval = stream_interval
        self.deltas: list[tuple[int, int, int]] = []
        self.reasons: list[str] = []
        self.done: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        self.begun = False
        self.flights: list[Flight] = []

    def started(self, ticket: Ticket) -> None:
        self.begun = True

    def tokens(self, position: int, first: int, last: int) -> bool:
        self.deltas.append((position, first, last))
        return True

    def ended(self, ticket: Ticket, flight: Flight, reason: str) -> None:
        self.reasons.append(reason)

    def deliver(self, ticket: Ticket) -> None:
        self.flights = list(ticket.flights)
        self.done.set_result(ticket)

    def failed(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)


def submit(content: int, output_tokens: int = 5, worker: int = 0) -> Submit:
    return Submit(prompt(40, content, 16), output_tokens, output_tokens, worker=worker)


class Run:
    """A driver on a fresh toy cluster, journalling into a list."""

    def __init__(
        self, clock: ClockSpec, workers: int = 1, keep_events: int = 0, **scheduler: int
    ) -> None:
        self.scheduler = replace(SCHEDULER, **scheduler)
        self.workers = workers
        self.journal: list[tuple[SimTime, Command]] = []
        self.cluster = self.fresh()
        self.driver = Driver(
            self.cluster,
            clock,
            [Nothing() for _ in range(workers)],
            journal=lambda t, command: self.journal.append((t, command)),
            keep_events=keep_events,
        )
        self.driver.start()

    def fresh(self) -> Cluster:
        return toy_cluster(self.scheduler, workers=self.workers, frontend_s=0.001)

    def replayed_digest(self) -> str:
        cluster = self.fresh()
        for stamp, command in self.journal:
            cluster.feed(stamp, command)
        while (due := cluster.next_time()) is not None:
            cluster.advance_to(due)
        return cluster.log.digest()


@pytest.mark.parametrize(
    "clock",
    [WARP, FAST, ClockSpec(), replace(FAST, precise=sys.platform == "linux")],
    ids=["warp", "scaled", "real", "precise"],
)
async def test_every_mode_equals_the_replay_of_its_journal(clock: ClockSpec) -> None:
    run = Run(clock, workers=2)
    readers = [Reader(stream_interval=i % 3) for i in range(12)]
    for i, reader in enumerate(readers):
        run.driver.submit([submit(i, 3 + i, worker=i % 2)], reader)
        if i % 4 == 3:
            await asyncio.sleep(0)
    for reader in readers:
        await reader.done
    assert [r.flights[0].output_tokens for r in readers] == [3 + i for i in range(12)]
    assert run.cluster.log.digest() == run.replayed_digest()
    run.driver.stop()


async def test_stream_sees_every_token_once_and_the_end_after_the_last_delta() -> None:
    run = Run(WARP)
    every, third = Reader(stream_interval=1), Reader(stream_interval=3)
    run.driver.submit([submit(1, 8)], every)
    run.driver.submit([submit(2, 8)], third)
    await every.done
    await third.done
    assert every.begun
    # The last token rides along with the finish, which is why it is not a delta.
    assert every.deltas == [(0, i, i + 1) for i in range(7)]
    assert third.deltas == [(0, 0, 1), (0, 1, 4), (0, 4, 7)]
    assert every.reasons == ["length"]
    run.driver.stop()


async def test_stream_that_cannot_be_written_now_gets_its_tokens_merged_later() -> None:
    run = Run(WARP)
    slow = Reader(stream_interval=1)
    refusals = 3

    def hesitant(position: int, first: int, last: int) -> bool:
        nonlocal refusals
        if first == 2 and refusals:
            refusals -= 1
            return False
        slow.deltas.append((position, first, last))
        return True

    slow.tokens = hesitant
    run.driver.submit([submit(1, 9)], slow)
    await slow.done
    assert slow.deltas == [(0, 0, 1), (0, 1, 2), (0, 2, 6), (0, 6, 7), (0, 7, 8)]
    run.driver.stop()


@pytest.mark.parametrize("keep_events", [0, 3000, 10**9])
async def test_digest_does_not_depend_on_what_the_log_keeps(keep_events: int) -> None:
    run = Run(WARP, keep_events=keep_events)
    readers = [Reader() for _ in range(1000)]
    for i, reader in enumerate(readers):
        run.driver.submit([submit(i, 1 + i % 3)], reader)
    for reader in readers:
        await reader.done
    assert run.driver.forgot_events is (keep_events < 5000)
    assert (len(run.cluster.log.events) == len(run.cluster.log)) is (keep_events >= 5000)
    assert run.cluster.log.digest() == run.replayed_digest()
    run.driver.stop()


async def test_stream_that_begins_and_ends_within_one_late_pump_begins_first() -> None:
    wall_ns = 0
    cluster = toy_cluster(SCHEDULER)
    driver = Driver(cluster, ClockSpec(), [Nothing()], wall_ns=lambda: wall_ns)
    driver.start()
    reader = Reader(stream_interval=1)
    told: list[str] = []
    reader.started = lambda ticket: told.append("started")
    reader.ended = lambda ticket, flight, reason: told.append(reason)
    driver.submit([submit(1, 3), submit(2, 5)], reader)
    wall_ns = 10**12
    await reader.done
    assert told == ["started", "length", "length"]
    driver.stop()


async def test_choices_share_a_ticket_and_are_delivered_together() -> None:
    run = Run(WARP)
    reader = Reader()
    run.driver.submit([submit(1, 2), submit(1, 9), submit(1, 4)], reader)
    await reader.done
    assert [f.output_tokens for f in reader.flights] == [2, 9, 4]
    assert reader.flights[1].finish_ns == max(f.finish_ns for f in reader.flights)
    assert all(0 < f.first_token_ns <= f.finish_ns for f in reader.flights)
    run.driver.stop()


async def test_refused_on_arrival_is_never_started() -> None:
    run = Run(WARP, max_num_queued_reqs=1)
    readers = [Reader(stream_interval=1) for _ in range(4)]
    for i, reader in enumerate(readers):
        run.driver.submit([submit(i)], reader)
    tickets = [await reader.done for reader in readers]
    assert [t.rejected for t in tickets] == ["", "queue_full", "queue_full", "queue_full"]
    assert [r.begun for r in readers] == [True, False, False, False]
    run.driver.stop()


async def test_choice_refused_on_arrival_takes_the_others_out_of_the_engine() -> None:
    run = Run(WARP, max_num_queued_reqs=2)
    refused = Reader()
    run.driver.submit([submit(1, 50), submit(2, 50), submit(3, 50)], refused)
    assert (await refused.done).rejected == "queue_full"
    later = Reader()
    run.driver.submit([submit(4)], later)
    await later.done
    aborts = [command.rid for _, command in run.journal if isinstance(command, Abort)]
    assert sorted(aborts) == [0, 1]
    assert not run.driver.delivery.flights
    run.driver.stop()


async def test_failing_subscriber_costs_its_own_request_only() -> None:
    run = Run(WARP)
    bad, good = Reader(stream_interval=1), Reader(stream_interval=1)

    def broken(position: int, first: int, last: int) -> bool:
        raise BrokenPipeError("gone")

    bad.tokens = broken
    run.driver.submit([submit(1, 50)], bad)
    run.driver.submit([submit(2, 50)], good)
    with pytest.raises(BrokenPipeError):
        await bad.done
    await good.done
    assert run.driver.error is None
    assert not run.driver.in_flight
    assert run.cluster.log.digest() == run.replayed_digest()
    run.driver.stop()


async def test_abort_frees_the_worker_and_is_journalled() -> None:
    run = Run(WARP)
    gone, stays = Reader(stream_interval=1), Reader()
    ticket = run.driver.submit([submit(1, 400)], gone)
    run.driver.submit([submit(2, 5)], stays)
    run.driver.abort(ticket)
    await stays.done
    assert not gone.done.done()
    # It gave up before its instant was fed, so the engine never saw it.
    assert len(run.journal) == 1
    late = Reader(stream_interval=1)
    ticket = run.driver.submit([submit(3, 400)], late)
    run.driver.keeper.register(1, ["observer"])
    while not late.begun:
        run.driver.keeper.sleep("observer", 0, lambda: None)
        run.driver.poke()
        await asyncio.sleep(0)
    run.driver.abort(ticket)
    run.driver.keeper.release(["observer"])
    after = Reader()
    run.driver.submit([submit(4, 3)], after)
    await after.done
    assert [type(c).__name__ for _, c in run.journal] == ["Submit", "Submit", "Abort", "Submit"]
    assert run.cluster.workers[0].gauges(run.cluster.now_ns).running == 0
    run.driver.stop()


async def test_settle_ends_what_is_in_flight_with_abort() -> None:
    run = Run(ClockSpec())
    reader = Reader(stream_interval=1)
    run.driver.submit([submit(1, 400)], reader)
    while not reader.begun:
        await asyncio.sleep(0)
    run.driver.settle()
    await reader.done
    assert reader.reasons == ["abort"]
    assert run.cluster.log.digest() == run.replayed_digest()
    run.driver.stop()


async def test_engine_failure_answers_everybody_and_refuses_the_rest() -> None:
    run = Run(WARP)

    def explode(t_ns: SimTime) -> None:
        raise ZeroDivisionError("engine bug")

    run.cluster.advance_to = explode
    reader = Reader()
    run.driver.submit([submit(1)], reader)
    with pytest.raises(ZeroDivisionError):
        await reader.done
    await run.driver.died.wait()
    with pytest.raises(ShutdownError):
        run.driver.submit([submit(2)], Reader())
    run.driver.stop()


async def test_strict_stall_ends_the_run_with_the_name_of_the_culprit() -> None:
    run = Run(replace(WARP, strict=True, patience_s=0.0))
    run.driver.keeper.register(1, ["sleepy"])
    reader = Reader()
    run.driver.submit([submit(1)], reader)
    with pytest.raises(StallError, match="sleepy"):
        await reader.done
    run.driver.stop()


async def test_on_late_abort_ends_the_run() -> None:
    wall_ns = 0
    clock = ClockSpec(on_late="abort", late_ms_max=100.0)
    driver = Driver(toy_cluster(SCHEDULER), clock, [Nothing()], wall_ns=lambda: wall_ns)
    driver.start()
    reader = Reader(stream_interval=1)
    driver.submit([submit(1, 400)], reader)
    while not reader.begun:
        await asyncio.sleep(0)
    wall_ns = 10**9
    with pytest.raises(LateError, match="more than 100 ms"):
        await reader.done
    driver.stop()


async def test_paced_lateness_is_measured() -> None:
    run = Run(FAST)
    # A machine that stalls for a whole answer delivers it in one piece, which is no paced delivery.
    for rid in range(1, 50):
        reader = Reader(stream_interval=1)
        run.driver.submit([submit(rid, 20)], reader)
        await reader.done
        if run.driver.drift.total:
            break
    assert run.driver.drift.total > 0
    assert run.driver.now_ns() >= run.cluster.now_ns
    run.driver.stop()


async def agents(run: Run, count: int, turns: int, delays: int) -> None:
    """Closed-loop agents with leases; `delays` varies how the loop interleaves them."""
    keeper = run.driver.keeper
    names = [f"agent-{i}" for i in range(count)]
    keeper.register(1, names)
    run.driver.poke()

    async def live(i: int, name: str) -> None:
        for turn in range(turns):
            for _ in range((i * delays + turn) % (delays + 1)):
                await asyncio.sleep(0)
            reader = Reader(stream_interval=(i + turn) % 2)
            run.driver.submit([submit(i * 100 + turn, 1 + (i + turn) % 7, i % 2)], reader, name)
            await reader.done
            if (i + turn) % 3 == 0:
                woke: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                until = keeper.now_ns + 1_000_000 * (1 + i)
                keeper.sleep(name, until, lambda w=woke: w.set_result(None))
                run.driver.poke()
                await woke
                assert keeper.now_ns == until
        keeper.release([name])
        run.driver.poke()

    await asyncio.gather(*(live(i, name) for i, name in enumerate(names)))


@pytest.mark.parametrize("baton", [False, True])
async def test_leased_agents_give_one_digest_whatever_the_interleaving(baton: bool) -> None:
    digests = set()
    for delays in (0, 1, 5):
        run = Run(replace(WARP, baton=baton, patience_s=60.0), workers=2)
        await agents(run, count=8, turns=6, delays=delays)
        assert run.driver.keeper.stall_count == 0
        assert run.driver.keeper.guesses == 0
        assert run.cluster.log.digest() == run.replayed_digest()
        digests.add(run.cluster.log.digest())
        run.driver.stop()
    assert len(digests) == 1
