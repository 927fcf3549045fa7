"""Prefill and decode engines of different processes: their halves of a transfer exchange words."""

from dataclasses import replace
from heapq import heappop, heappush
from typing import TypeVar

import pytest

from frontier_mock.cluster.build import build_cluster
from frontier_mock.cluster.cluster import Cluster
from frontier_mock.cluster.links import FabricSpec
from frontier_mock.cluster.specs import ClusterSpec, WorkerSpec
from frontier_mock.core.commands import Abort, Change, Command, Submit, Transfer
from frontier_mock.core.events import (
    Event,
    Finished,
    FirstToken,
    KvFailed,
    KvReceived,
    KvReleased,
    KvTold,
    Scheduled,
)
from frontier_mock.core.journal import Journal, from_lines, to_line
from frontier_mock.core.words import Over, Ready, Sent, Word, word_of, word_to_list
from frontier_mock.drive.offline import replay
from frontier_mock.simtime import NS_PER_MS, NS_PER_S
from tests.cluster.test_pairing import ROOM, SGLANG, check_rest, pools
from tests.engine import LinearRankCost, prompt, step_spec

EventT = TypeVar("EventT", bound=Event)

PREFILL, DECODE = 0, 1


def engine(
    role: str, *, nic: float | None, single_step: bool, tp: int = 1, pages: int = 1024
) -> Cluster:
    step = step_spec(0.0, 1)
    step = replace(step, parallel=replace(step.parallel, tp=tp))
    scheduler = replace(SGLANG, num_pages=pages)
    worker = WorkerSpec(role, 8000, role, "toy", step, scheduler, connector=ROOM)
    fabric = FabricSpec(gpus_per_node=1, nic_bytes_per_s=nic)
    spec = ClusterSpec((worker,), "round_robin", 0, single_step, fabric=fabric)
    return build_cluster(spec, [LinearRankCost()])


class Duo:
    """A prefill and a decode engine, each a cluster of its own, on one clock.

    Carries words as the clock server does: they are heard when they are due, events before.
    """

    def __init__(
        self,
        *,
        nic: float | None = None,
        single_step: bool = False,
        decode_tp: int = 1,
        decode_pages: int = 1024,
    ) -> None:
        decode = engine(
            "decode", nic=nic, single_step=single_step, tp=decode_tp, pages=decode_pages
        )
        self.sides = [engine("prefill", nic=nic, single_step=single_step), decode]
        self.journals = [Journal(), Journal()]
        self._read = [0, 0]
        self._letters: list[tuple[int, int, int, Word]] = []

    def feed(self, t_ns: int, side: int, command: Command) -> int:
        self.run(t_ns)
        self.journals[side].record(t_ns, command)
        result = self.sides[side].feed(t_ns, command)
        self._collect(t_ns)
        return result

    def run(self, until_ns: int | None = None) -> None:
        """Let everything due by then happen; with None, everything."""
        while self.step(until_ns):
            pass

    def step(self, until_ns: int | None = None) -> bool:
        """The next instant at which anything happens."""
        due = [side.next_time() for side in self.sides]
        due.append(self._letters[0][0] if self._letters else None)
        t_ns = min((one for one in due if one is not None), default=None)
        if t_ns is None or (until_ns is not None and t_ns > until_ns):
            return False
        for side in self.sides:
            side.advance_to(max(t_ns, side.now_ns))
        self._collect(t_ns)
        while self._letters and self._letters[0][0] <= t_ns:
            _, _, target, word = heappop(self._letters)
            self.journals[target].record(t_ns, word)
            self.sides[target].feed(t_ns, word)
        self._collect(t_ns)
        return True

    def _collect(self, t_ns: int) -> None:
        for number, side in enumerate(self.sides):
            for event in side.log.events[self._read[number] :]:
                if isinstance(event, KvTold):
                    assert t_ns < event.due_ns
                    heard = replace(event.word, peer="P" if number == PREFILL else "D")
                    # Through JSON, as they travel.
                    heard = word_of(word_to_list(heard))
                    place = len(self._letters), 1 - number
                    heappush(self._letters, (event.due_ns, *place, heard))
            self._read[number] = len(side.log.events)

    def ends(self, side: int) -> list[tuple[str, int]]:
        return [(e.reason, e.output_tokens) for e in self.of(side, Finished)]

    def of(self, side: int, kind: type[EventT]) -> list[EventT]:
        return [e for e in self.sides[side].log.events if isinstance(e, kind)]

    def check(self) -> None:
        """Nothing is held on either side, and each journal repeats its side."""
        for side, journal in zip(self.sides, self.journals, strict=True):
            check_rest(side)
            lines = [to_line(t_ns, command, 1) for t_ns, command in journal.entries]
            again = build_cluster(side.spec, [LinearRankCost()])
            assert replay(again, from_lines(lines)) == side.log.digest()


def leg(key: str, sends: bool, tokens: int = 100, output: int = 9) -> Submit:
    transfer = Transfer(
        key, sends, "room", 30 * NS_PER_S, streams=True, peer="" if sends else "P:8998"
    )
    output = 1 if sends else output
    return Submit(prompt(tokens, 1, 1), output, output, worker=0, transfer=transfer)


@pytest.mark.parametrize("first", [PREFILL, DECODE])
@pytest.mark.parametrize("gap_ms", [0, 1, 40])
def test_legs_may_come_in_either_order(first: int, gap_ms: int) -> None:
    duo = Duo()
    duo.feed(0, first, leg("room 7", first == PREFILL))
    duo.feed(gap_ms * NS_PER_MS, 1 - first, leg("room 7", first != PREFILL))
    duo.run()
    assert duo.ends(PREFILL) == [("length", 1)]
    assert duo.ends(DECODE) == [("length", 9)]
    (received,) = duo.of(DECODE, KvReceived)
    (scheduled,) = duo.of(PREFILL, Scheduled)
    assert received.num_bytes == 100 * 256
    assert received.scheduled_ns == scheduled.t_ns > received.allocated_ns
    assert [e.reason for e in duo.of(PREFILL, KvReleased)] == ["sent"]
    duo.check()


def test_two_processes_take_as_long_as_one_and_a_notification() -> None:
    slow = 5e6
    one = pools(SGLANG, ROOM, fabric=FabricSpec(gpus_per_node=1, nic_bytes_per_s=slow))
    for worker, sends in ((0, True), (1, False)):
        half = leg("room 7", sends, 150)
        assert half.transfer is not None
        alone = replace(half, worker=worker, transfer=replace(half.transfer, peer=""))
        one.feed(0, alone)
    while (due := one.next_time()) is not None:
        one.advance_to(due)
    duo = Duo(nic=slow)
    duo.feed(0, PREFILL, leg("room 7", True, 150))
    duo.feed(0, DECODE, leg("room 7", False, 150))
    duo.run()
    (here,) = [e for e in one.log.events if isinstance(e, KvReceived)]
    (there,) = duo.of(DECODE, KvReceived)
    assert there.scheduled_ns - here.scheduled_ns in (0, 1)
    assert 0 <= there.t_ns - here.t_ns - 50_000 <= 3
    assert there[7:] == here[7:]
    duo.check()


def test_a_receiver_cut_otherwise_lays_its_blocks_out_anew() -> None:
    took = []
    for tp in (1, 2):
        duo = Duo(decode_tp=tp)
        duo.feed(0, PREFILL, leg("room 7", True, 200))
        duo.feed(0, DECODE, leg("room 7", False, 200))
        duo.run()
        (told,) = [e for e in duo.of(PREFILL, KvTold) if isinstance(e.word, Sent)]
        (received,) = duo.of(DECODE, KvReceived)
        took.append(received.t_ns - told.due_ns)
        duo.check()
    assert took[0] == 1 < took[1]


@pytest.mark.parametrize("side", [PREFILL, DECODE])
def test_a_half_that_stays_alone_gives_up(side: int) -> None:
    duo = Duo()
    duo.feed(0, side, leg("room 7", side == PREFILL))
    duo.run()
    assert duo.ends(side) == [("error", 0)]
    assert [e.reason for e in duo.of(side, KvFailed)] == ["timeout"]
    assert duo.of(side, KvFailed)[0].t_ns >= 30 * NS_PER_S
    if side == DECODE:
        # The prefill side has held a place for it, and hears that it is over.
        words = [type(e.word) for e in duo.of(DECODE, KvTold)]
        assert words == [Ready, Over]
    duo.check()


@pytest.mark.parametrize("side", [PREFILL, DECODE])
@pytest.mark.parametrize("step", range(30))
def test_an_abort_at_any_moment_leaves_nothing_behind(side: int, step: int) -> None:
    logs = []
    for single_step in (False, True):
        duo = Duo(single_step=single_step)
        rid = 0
        for which in (DECODE, PREFILL):
            duo.feed(0, which, leg("room 7", which == PREFILL, 150, 20))
        at_ns = step * NS_PER_MS // 4
        duo.feed(at_ns, side, Abort(rid))
        duo.run()
        (mine,), (other,) = duo.ends(side), duo.ends(1 - side)
        assert mine[0] in ("abort", "length")
        assert other[0] in (("error", "length") if mine[0] == "abort" else ("length",))
        duo.check()
        logs.append([one.log.digest() for one in duo.sides])
    assert logs[0] == logs[1]


@pytest.mark.parametrize("side", [PREFILL, DECODE])
@pytest.mark.parametrize("at_ms", [1, 3, 10])
def test_an_engine_that_fails_takes_the_other_half_with_it(side: int, at_ms: int) -> None:
    duo = Duo(nic=5e6)
    for which in (DECODE, PREFILL):
        duo.feed(0, which, leg("room 7", which == PREFILL, 200, 40))
    duo.feed(at_ms * NS_PER_MS, side, Change(0, "fail"))
    duo.run()
    assert duo.ends(side)[0][0] == "error"
    assert duo.ends(1 - side)[0][0] == "error"
    heard = [*duo.of(1 - side, KvFailed), *duo.of(1 - side, KvReleased)]
    assert [e.reason for e in heard] == ["broken"]
    duo.check()


def test_a_full_decode_engine_holds_prefill_back() -> None:
    duo = Duo(decode_pages=300)
    for number in range(4):
        key = f"room {number}"
        duo.feed(0, DECODE, leg(key, False, 120, 15))
        duo.feed(0, PREFILL, leg(key, True, 120))
    duo.run()
    begun = [e.t_ns for e in duo.of(PREFILL, Scheduled)]
    ended = [e.t_ns for e in duo.of(DECODE, Finished)]
    assert len(begun) == len(ended) == 4
    assert begun[-1] > min(ended)
    assert {e.reason for e in duo.of(DECODE, Finished)} == {"length"}
    duo.check()


def test_a_second_receiver_of_a_room_is_turned_away() -> None:
    duo = Duo()
    for _ in range(2):
        # An engine would not have two of a key; a second process might.
        word = Ready("room 7", "D", 50, 0, 256, 0, 0, 10**9, NS_PER_S)
        duo.feed(0, PREFILL, word)
    told = duo.of(PREFILL, KvTold)
    assert [e.word for e in told] == [Over("room 7", "D", "unknown")]


def test_a_slow_receiver_bounds_what_is_sent() -> None:
    duo = Duo()
    duo.feed(0, PREFILL, leg("room 7", True))
    duo.feed(0, PREFILL, Ready("room 7", "D", 100, 0, 256, 0, 0, 10**6, NS_PER_S))
    duo.run()
    (first,) = duo.of(PREFILL, FirstToken)
    told = [e for e in duo.of(PREFILL, KvTold) if isinstance(e.word, Sent)]
    # 25,600 bytes at a megabyte per second.
    assert told[0].t_ns - first.t_ns == pytest.approx(25.6e6 + 4e5, rel=0.5)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        ["ready", "k", "p"],
        ["ready", "k", "p", 0, 0, 1, 0, 0, 1, 1],
        ["ready", "k", "p", 1, -1, 1, 0, 0, 1, 1],
        ["sent", "k", "p", 1, 0, 1, 1, 1],
        ["over", "k", "p", 1],
        ["late", "k", "p", "timeout"],
    ],
)
def test_what_is_no_word_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="not a word"):
        word_of(value)
