"""One clock for several engines: drivers and a host in one event loop, messages through JSON."""

import asyncio
import json
import random
from collections.abc import Callable, Sequence

import pytest

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.core.commands import Submit
from frontier_mock.core.events import Event
from frontier_mock.core.words import word_of
from frontier_mock.drive.driver import Action, Driver, Item
from frontier_mock.drive.following import FollowingKeeper, Message
from frontier_mock.drive.hosting import ClockHost, Member, MemberLostError
from frontier_mock.drive.operations import Heard
from frontier_mock.drive.pace import ClockSpec
from frontier_mock.drive.protocol import ShutdownError, Ticket
from frontier_mock.report.worker_digests import by_name, digests_of
from frontier_mock.serving.specs import SchedulerSpec
from tests.engine import prompt, toy_cluster

SCHEDULER = SchedulerSpec(
    max_num_seqs=8, max_num_batched_tokens=64, max_model_len=512, num_blocks=256
)
WARP = ClockSpec(mode="warp", grace_ms=0.0, patience_s=60.0)
WORKERS = 4


class Nothing:
    """A fold that forgets."""

    def fold(self, event: Event) -> None:
        pass

    def request(self, rids: Sequence[int]) -> None:
        pass


class Reader:
    """A subscriber that waits for the end."""

    def __init__(self, stream_interval: int = 0) -> None:
        self.stream_interval = stream_interval
        self.done: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()

    def started(self, ticket: Ticket) -> None:
        pass

    def tokens(self, position: int, first: int, last: int) -> bool:
        return True

    def ended(self, ticket: Ticket, flight: object, reason: str) -> None:
        pass

    def deliver(self, ticket: Ticket) -> None:
        self.done.set_result(ticket)

    def failed(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)


def heard(word: object) -> Item:
    """What a letter is to a Driver."""
    return Heard(word_of(word)), True


class Shared:
    """`split[i]` workers in process i, on one host; or one driver with all of them."""

    def __init__(
        self, split: Sequence[int], *, baton: bool = False, chaos: int = 0, at_once: bool = False
    ) -> None:
        clock = ClockSpec(mode="warp", grace_ms=0.0, patience_s=60.0, baton=baton)
        self._chaos = random.Random(chaos)
        self._at_once = at_once
        self.host = ClockHost(clock)
        self.host.start()
        self.clusters: list[Cluster] = []
        self.drivers: list[Driver] = []
        self.members: list[Member] = []
        self.place: list[tuple[Driver, int]] = []
        for count in split:
            self._add(count, clock)

    def _add(self, count: int, clock: ClockSpec) -> None:
        cluster = toy_cluster(SCHEDULER, workers=count, frontend_s=0.001)
        names = tuple(f"w{len(self.place) + i}" for i in range(count))
        to_host: Channel = Channel(self._chaos, lambda message: self.host.heard(member, message))
        keeper: FollowingKeeper[Action, Item] = FollowingKeeper(to_host.send, lambda: None, heard)
        keeper.at_once = self._at_once
        driver = Driver(cluster, clock, [Nothing() for _ in names], keeper=keeper)

        def obey(message: Message) -> None:
            if message[0] == "fail":
                driver.fail(ShutdownError(str(message[1])))
                return
            keeper.order(message)
            driver.poke()

        member = Member(f"p{len(self.members)}", names, Channel(self._chaos, obey).send)
        driver.start()
        self.host.join(member)
        self.clusters.append(cluster)
        self.drivers.append(driver)
        self.members.append(member)
        self.place += [(driver, i) for i in range(count)]

    def digest(self) -> str:
        """That of all workers by name."""
        digests: dict[str, str] = {}
        for member, cluster in zip(self.members, self.clusters, strict=True):
            digests |= digests_of(member.workers, cluster.log.events)
        return by_name(digests)

    def stop(self) -> None:
        for driver in self.drivers:
            driver.stop()
        self.host.stop()


class Channel:
    """One direction of a connection: keeps the order, takes its time."""

    def __init__(self, chaos: random.Random, heard: Callable[[Message], None]) -> None:
        self._chaos = chaos
        self._heard = heard
        self._lines: list[str] = []

    def send(self, message: Message) -> None:
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._carry, self._chaos.randrange(4))
        self._lines.append(json.dumps(message))

    def _carry(self, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._carry, turns - 1)
            return
        lines, self._lines = self._lines, []
        for line in lines:
            self._heard(json.loads(line))


Clock = ClockHost | Driver


async def heard_out(clock: Clock) -> None:
    """Until no engine is at work, as `ClockServer` has it with verbs."""
    while isinstance(clock, ClockHost) and clock.at_work:
        await asyncio.sleep(0)


async def agents(clock: Clock, place: Sequence[tuple[Driver, int]], count: int = 6) -> None:
    """Closed-loop agents that wander over all workers, some streaming, some thinking."""
    keeper = clock.keeper
    names = [f"agent-{i}" for i in range(count)]
    keeper.register(1, names)
    clock.poke()

    async def live(i: int, name: str) -> None:
        for turn in range(6):
            driver, worker = place[(i * 3 + turn) % len(place)]
            tokens = 1 + (i + turn) % 7
            submit = Submit(prompt(40, i * 100 + turn, 16), tokens, tokens, worker=worker)
            reader = Reader(stream_interval=(i + turn) % 2)
            driver.submit([submit], reader, name)
            ticket = await reader.done
            # Stamped when it was fed, which is the instant at which its agent had last been told.
            assert ticket.arrival_ns <= keeper.now_ns
            if (i + turn) % 3 == 0:
                await heard_out(clock)
                woke: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                until = keeper.now_ns + 1_000_000 * (1 + i)
                keeper.sleep(name, until, lambda w=woke: w.set_result(None))
                clock.poke()
                await woke
                assert keeper.now_ns == until
        await heard_out(clock)
        keeper.release([name])
        clock.poke()

    await asyncio.gather(*(live(i, name) for i, name in enumerate(names)))


async def one_process() -> str:
    cluster = toy_cluster(SCHEDULER, workers=WORKERS, frontend_s=0.001)
    driver = Driver(cluster, WARP, [Nothing() for _ in range(WORKERS)])
    driver.start()
    await agents(driver, [(driver, i) for i in range(WORKERS)])
    driver.stop()
    return by_name(digests_of([f"w{i}" for i in range(WORKERS)], cluster.log.events))


@pytest.mark.parametrize("split", [(4,), (2, 2), (1, 3), (1, 1, 1, 1)])
@pytest.mark.parametrize(
    ("baton", "at_once"), [(False, False), (True, False), (False, True)], ids=["", "baton", "once"]
)
async def test_any_split_is_one_process(split: tuple[int, ...], baton: bool, at_once: bool) -> None:
    """With `at_once` a request may reach one engine before the host knows that the last one of its
    actor has ended in another."""
    expected = await one_process()
    for chaos in range(6 if at_once else 3):
        shared = Shared(split, baton=baton, chaos=chaos, at_once=at_once)
        await agents(shared.host, shared.place)
        assert shared.digest() == expected
        assert (shared.host.keeper.stall_count, shared.host.keeper.guesses) == (0, 0)
        assert shared.host.num_in_flight == 0
        shared.stop()


async def test_engine_alone_with_what_is_next_needs_no_order_per_event() -> None:
    shared = Shared((1, 1))
    reader = Reader(stream_interval=1)
    driver, worker = shared.place[0]
    driver.submit([Submit(prompt(40, 1, 16), 200, 200, worker=worker)], reader)
    await reader.done
    assert driver.keeper.jumps > 200
    assert shared.host.num_events < 10
    shared.stop()


async def test_lost_member_is_named_to_whoever_waits() -> None:
    shared = Shared((2, 2))
    host = shared.host
    host.keeper.register(1, ["waits", "holds"])
    woken: list[str] = []
    host.keeper.sleep("waits", 10**15, lambda: woken.append("waits"))
    host.keeper.advance(10**15, lambda: woken.append("advance"))
    driver, worker = shared.place[0]
    driver.submit([Submit(prompt(40, 1, 16), 400, 400, worker=worker)], Reader(), "nobody")
    while not shared.members[0].in_flight:
        await asyncio.sleep(0)
    host.leave(shared.members[0], "killed")
    assert isinstance(host.error, MemberLostError)
    assert str(host.error) == "engine process p0 (workers w0, w1) is gone: killed"
    assert woken == ["waits", "advance"]
    assert host.died.is_set()
    host.leave(shared.members[0], "again")
    await shared.drivers[1].died.wait()
    assert str(shared.drivers[1].error) == str(host.error)
    shared.stop()


async def test_idle_member_may_leave() -> None:
    shared = Shared((2, 2))
    shared.host.leave(shared.members[1])
    await agents(shared.host, shared.place[:2], count=2)
    assert shared.host.error is None
    shared.stop()


@pytest.mark.parametrize(
    "message", [[], ["what"], ["done", 1, None], ["park", 5, 1, ""], ["post", "a"], ["move"]]
)
async def test_nonsense_from_a_member_is_refused(message: Message) -> None:
    shared = Shared((1,))
    with pytest.raises(ValueError, match="engine process p0"):
        shared.host.heard(shared.members[0], message)
    shared.stop()


@pytest.mark.parametrize("message", [[], ["what"], ["done", 1, None]])
async def test_nonsense_from_the_host_is_refused(message: Message) -> None:
    keeper: FollowingKeeper[Action, Item] = FollowingKeeper(lambda sent: None, lambda: None, heard)
    with pytest.raises(ValueError, match="the clock host said"):
        keeper.order(message)


def letter(peer: str, due_ns: int, what: str = "ready", key: str = "k") -> Message:
    return ["letter", peer, due_ns, [what, key, "", 5, 0, 1, 0, 0, 1, 1]]


async def test_letters_are_heard_when_they_are_due_in_the_order_of_their_writing() -> None:
    host = ClockHost(WARP)
    host.start()
    orders: list[list[Message]] = [[], []]
    sender = Member("p0", ("d",), orders[0].append)
    reader = Member("p1", ("p",), orders[1].append, ("127.0.0.1:8998",))
    for member in (sender, reader):
        host.join(member)
    # By its name, its address, and its port under another name of its host.
    for key, peer in (("c", "p1"), ("a", "127.0.0.1:8998"), ("b", "prefill.local:8998")):
        host.heard(sender, letter(peer, 70, key=key))
    host.heard(sender, letter("p1", 50, "over", "z"))
    for _ in range(2):
        host.pump_now()
        host.heard(reader, ["done", host.now_ns(), None])
    assert [(message[0], message[1]) for message in orders[1]] == [("hear", 50), ("hear", 70)]
    words = [message[2] for message in orders[1]]
    assert words == [
        [["over", "z", "p0", 5, 0, 1, 0, 0, 1, 1]],
        # An answer goes to p0.
        [["ready", key, "p0", 5, 0, 1, 0, 0, 1, 1] for key in "cab"],
    ]
    assert orders[0] == []
    host.stop()


async def test_whoever_looks_for_nobody_is_told_after_fifteen_seconds() -> None:
    host = ClockHost(WARP)
    host.start()
    orders: list[Message] = []
    sender = Member("p0", ("d",), orders.append)
    host.join(sender)
    host.heard(sender, letter("127.0.0.1:1", 70))
    host.heard(sender, letter("127.0.0.1:1", 80, "over"))
    host.pump_now()
    (order,) = orders
    assert order[:3] == ["hear", 15_000_000_070, [["over", "k", "127.0.0.1:1", "unknown"]]]
    host.stop()


@pytest.mark.parametrize(
    "message", [letter("p0", 0), ["letter", "p0", 5, []], ["letter", "p0", 5, ["ready"]]]
)
async def test_letters_that_make_no_sense_are_refused(message: Message) -> None:
    shared = Shared((1,))
    with pytest.raises(ValueError, match="engine process p0"):
        shared.host.heard(shared.members[0], message)
    shared.stop()
