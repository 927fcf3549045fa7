"""The rules of the Timekeeper, one by one, and as properties over random closed loops."""

import heapq
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_mock.drive.leases import ActorError, Feed, Move, Resume, StallError, State, Wait
from frontier_mock.drive.timekeeper import Timekeeper

MS = 1_000_000


def keeper(
    *,
    baton: bool = False,
    strict: bool = False,
    patience_ns: int = 1000 * MS,
    grace_ns: int = 5 * MS,
) -> Timekeeper[str, str]:
    return Timekeeper(baton=baton, strict=strict, patience_ns=patience_ns, grace_ns=grace_ns)


def test_held_lease_stops_time_until_it_parks() -> None:
    k = keeper()
    k.register(1, ["a"])
    assert isinstance(k.decide(100, 0), Wait)
    k.park("a")
    k.post("a", "submit")
    assert k.decide(100, 0) == Feed(["submit"])
    assert k.decide(100, 0) == Move(100)
    assert k.now_ns == 100


def test_commands_of_one_instant_are_fed_by_actor_then_by_own_sequence() -> None:
    k = keeper()
    k.register(1, ["b", "a"])
    k.post("b", "b1")
    k.post("a", "a1")
    k.post("b", "b2")
    k.park("a")
    assert isinstance(k.decide(None, 0), Wait)
    k.park("b")
    assert k.decide(None, 0) == Feed(["a1", "b1", "b2"])


def test_completion_resumes_the_lease_before_its_token_is_handed_out() -> None:
    k = keeper()
    k.register(1, ["a"])
    k.park("a")
    assert k.decide(50, 0) == Move(50)
    k.complete("a", "bytes")
    assert k.decide(60, 0) == Resume(["bytes"])
    assert k.actors["a"].state is State.HELD
    assert isinstance(k.decide(60, 0), Wait)


def test_actors_of_one_instant_resume_in_order_of_name() -> None:
    k = keeper()
    k.register(1, ["a", "b", "c"])
    for name in "abc":
        k.park(name)
    k.decide(10, 0)
    for name in "cab":
        k.complete(name, name)
    assert k.decide(20, 0) == Resume(["a", "b", "c"])


def test_baton_lets_one_actor_run_at_a_time() -> None:
    k = keeper(baton=True)
    k.register(1, ["a", "b"])
    k.park("a")
    k.park("b")
    k.decide(10, 0)
    k.complete("b", "b")
    k.complete("a", "a")
    assert k.decide(20, 0) == Resume(["a"])
    assert isinstance(k.decide(20, 0), Wait)
    k.park("a")
    k.post("a", "a2")
    assert k.decide(20, 0) == Resume(["b"])
    k.sleep("b", 15, "b")
    assert k.decide(20, 0) == Feed(["a2"])
    assert k.decide(20, 0) == Move(15)


def test_sleep_wakes_after_the_engine_events_of_that_time() -> None:
    k = keeper()
    k.register(1, ["a"])
    k.sleep("a", 100, "awake")
    assert k.decide(100, 0) == Move(100)
    assert k.decide(100, 0) == Resume(["awake"])


def test_sleep_into_the_past_is_a_turn_at_the_present() -> None:
    k = keeper()
    k.register(1, ["a", "b"])
    k.sleep("b", 0, "b")
    k.sleep("a", -5, "a")
    assert k.decide(None, 0) == Move(0)
    assert k.decide(None, 0) == Resume(["a", "b"])
    assert k.jumps == 0


def test_sleep_then_fork_holds_the_children_from_the_wake_on() -> None:
    k = keeper()
    k.register(1, ["loop"])
    k.sleep("loop", 10, "awake", children=["r0"], once=True)
    assert k.actors["r0"].state is State.PENDING
    assert k.decide(None, 0) == Move(10)
    assert k.decide(None, 0) == Resume(["awake"])
    assert k.actors["r0"].state is State.HELD
    k.sleep("loop", 20, "awake")
    assert isinstance(k.decide(None, 0), Wait)
    k.park("r0")
    assert k.decide(15, 0) == Move(15)
    k.complete("r0", "bytes")
    assert k.decide(None, 0) == Resume(["bytes"])
    assert "r0" not in k.actors
    assert k.decide(None, 0) == Move(20)


def test_once_child_ends_with_an_error_response_too() -> None:
    k = keeper()
    k.register(1, ["a"])
    k.fork("a", ["c"], once=True)
    k.park("a")
    k.refuse("c")
    assert "c" not in k.actors
    assert k.decide(5, 0) == Move(5)


def test_refused_request_leaves_the_lease_held() -> None:
    k = keeper()
    k.register(1, ["a"])
    k.refuse("a")
    assert k.actors["a"].state is State.HELD


def test_barrier_parks_until_all_have_arrived() -> None:
    k = keeper()
    k.register(1, ["a", "b"])
    k.barrier("b", "g", 2, "b")
    assert isinstance(k.decide(50, 0), Wait)
    k.barrier("a", "g", 2, "a")
    assert k.decide(50, 0) == Resume(["a", "b"])
    assert k.now_ns == 0


def test_barrier_that_waits_for_somebody_still_to_come_is_a_stall_and_stays() -> None:
    k = keeper()
    k.register(1, ["a", "early"])
    k.release(["early"])
    k.barrier("a", "sync", 2, "a")
    decision = k.decide(None, 0)
    assert isinstance(decision, Wait)
    assert decision.until_wall_ns == 1000 * MS
    assert k.holders() == []
    assert k.decide(None, 1000 * MS) == Wait(None, "barriers incomplete")
    assert str(k.stalls[-1]) == "clock stalled at 0 ns: held by a (last: barrier sync, 1 of 2)"
    assert k.holders() == [("a", "barrier sync, 1 of 2")]
    k.register(2, ["late"])
    k.barrier("late", "sync", 2, "late")
    assert k.decide(None, 1001 * MS) == Resume(["a", "late"])
    assert (k.take_fault("a"), k.holders()) == ("", [("a", A_BARRIER), ("late", A_BARRIER)])


A_BARRIER = "resumed after barrier sync"


def test_barrier_whose_actor_was_lost_is_broken_and_says_who() -> None:
    k = keeper()
    k.register(1, ["a", "b"])
    k.register(2, ["lost"])
    k.barrier("a", "sync", 3, "a")
    k.barrier("b", "sync", 3, "b")
    k.close(2)
    assert isinstance(k.decide(None, 0), Wait)
    assert k.decide(None, 1000 * MS) == Resume(["a", "b"])
    fault = k.take_fault("a")
    assert fault == (
        "barrier sync is broken: 2 of 3 wait (a, b), nobody else can come, and these have gone "
        "without a release: lost"
    )
    assert (k.take_fault("b"), k.take_fault("a")) == (fault, "")
    assert [actor.state for actor in k.actors.values()] == [State.HELD, State.HELD]


def test_barrier_is_not_broken_while_anything_can_happen() -> None:
    k = keeper()
    k.register(1, ["a", "busy"])
    k.register(2, ["lost"])
    k.close(2)
    k.barrier("a", "sync", 2, "a")
    k.sleep("busy", 5, "busy")
    assert k.decide(None, 5000 * MS) == Move(5)
    assert k.decide(None, 5000 * MS) == Resume(["busy"])
    k.barrier("busy", "sync", 2, "busy")
    assert k.decide(None, 5001 * MS) == Resume(["a", "busy"])
    assert k.stall_count == 0


def test_strict_raises_for_a_barrier_that_nobody_completes() -> None:
    k = keeper(strict=True)
    k.register(1, ["a"])
    k.barrier("a", "sync", 2, "a")
    k.decide(None, 0)
    with pytest.raises(StallError, match="a \\(last: barrier sync, 1 of 2\\)"):
        k.decide(None, 1000 * MS)


def test_actor_whose_wait_nobody_awaits_holds_time_again() -> None:
    k = keeper()
    k.register(1, ["a", "b"])
    k.sleep("a", 100, "a", children=["c"])
    k.barrier("b", "sync", 2, "b")
    k.give_up("a")
    k.give_up("b")
    assert k.holders() == [("a", "gave up: sleep until 100"), ("b", "gave up: barrier sync")]
    assert k.next_wake() is None
    k.sleep("a", 50, "again", children=["c"])
    k.barrier("b", "sync", 1, "alone")
    assert k.decide(None, 0) == Resume(["alone"])
    k.release(["b"])
    assert k.decide(None, 0) == Move(50)
    assert k.decide(None, 0) == Resume(["again"])
    k.give_up("a")
    k.give_up("nobody")
    assert k.actors["a"].last == "resumed after sleep until 50"


@pytest.mark.parametrize("name", ["", " a", "a,b", "a;legs=2", "a\r\nb", "\ud800", "é", "n" * 257])
def test_names_that_no_header_could_carry_are_refused(name: str) -> None:
    k = keeper()
    k.register(1, ["parent"])
    for act in (
        lambda: k.register(1, [name]),
        lambda: k.fork("parent", [name], once=True),
        lambda: k.sleep("parent", 1, "t", rename=name),
    ):
        with pytest.raises(ActorError, match="a name has 1 to 256 printable ASCII") as refused:
            act()
        assert str(refused.value).isprintable()
    k.register(1, ["a b/c.d-e_f~1", "n" * 256])


def test_advance_moves_an_idle_clock() -> None:
    k = keeper()
    k.advance(500, "done")
    assert k.decide(None, 0) == Move(500)
    assert k.decide(None, 0) == Resume(["done"])


def test_lost_client_holds_time_until_its_requests_are_given_up() -> None:
    k = keeper()
    k.register(1, ["lost"])
    k.register(2, ["a"])
    k.park("lost")
    k.park("lost")
    k.sleep("a", 7, "a")
    assert k.close(1) == []
    assert isinstance(k.decide(5, 0), Wait)
    assert k.holders() == [("lost", "lost its connection with a request inside")]
    k.disconnect("lost")
    assert isinstance(k.decide(5, 1), Wait)
    k.disconnect("lost")
    k.post("lost", "abort")
    assert k.decide(5, 2) == Feed(["abort"])
    assert k.decide(None, 2) == Move(7)
    assert (list(k.actors), k.stall_count) == (["a"], 0)


def test_request_that_outlives_its_client_goes_on_without_a_lease() -> None:
    k = keeper()
    k.register(1, ["lost"])
    k.park("lost")
    k.close(1)
    k.decide(5, 0)
    assert k.decide(5, 1000 * MS) == Move(5)
    assert k.stalled_by == {"lost": 1}
    assert k.actors == {}
    k.complete("lost", "bytes")
    assert k.decide(None, 1000 * MS) == Resume(["bytes"])


def test_request_that_ends_as_its_client_is_lost_ends_the_lease() -> None:
    k = keeper()
    k.register(1, ["lost"])
    k.park("lost")
    k.close(1)
    k.complete("lost", "bytes")
    assert k.actors == {}
    assert k.decide(None, 0) == Resume(["bytes"])
    assert k.decide(9, 0) == Move(9)


def test_closing_a_session_frees_time_and_returns_what_waited() -> None:
    k = keeper()
    k.register(1, ["a", "b"])
    k.register(2, ["x"])
    k.sleep("b", 100, "b asleep")
    k.park("x")
    assert k.close(1) == ["b asleep"]
    assert set(k.actors) == {"x"}
    assert k.decide(30, 0) == Move(30)
    assert k.next_wake() is None


def test_disconnect_puts_the_lease_outside_in_the_same_instant() -> None:
    k = keeper()
    k.register(1, ["a"])
    k.park("a")
    k.decide(10, 0)
    k.disconnect("a")
    k.post("a", "abort")
    assert isinstance(k.decide(20, 0), Wait)
    k.sleep("a", 30, "later")
    assert k.decide(20, 0) == Feed(["abort"])
    assert k.now_ns == 10


def test_glide_moves_only_where_there_is_nothing_to_decide() -> None:
    k = keeper(grace_ns=5)
    assert k.glide(10) is False  # Nobody has looked at the beginning yet.
    assert k.decide(10, 0) == Move(10)
    assert k.glide(20) is True
    assert (k.now_ns, k.jumps) == (20, 2)
    assert k.glide(None) is False
    assert k.glide(20) is False
    k.register(1, ["a"])
    assert k.glide(30) is False
    k.decide(30, 0)
    assert k.glide(30) is False  # Its lease is held.
    k.sleep("a", 40, "wakes")
    k.decide(30, 0)
    assert k.glide(40) is False  # It wakes then.
    assert k.glide(39) is True
    k.complete(None, "unleased")
    assert k.glide(39) is False
    assert k.decide(39, 0) == Resume(["unleased"])
    k.decide(39, 0)
    assert k.glide(39) is False  # Grace.
    k.release(["a"])
    k.arriving()
    k.decide(39, 100)
    assert k.glide(50) is False
    k.received()
    k.post(None, "item")
    assert k.glide(50) is False
    assert k.now_ns == 39


def test_returned_lease_is_outside_in_the_same_instant() -> None:
    k = keeper()
    k.register(1, ["a"])
    k.park("a")
    assert k.decide(10, 0) == Move(10)
    k.returned("a")
    assert k.holders() == [("a", "resumed after request")]
    assert isinstance(k.decide(20, 0), Wait)
    k.park("a")
    assert k.decide(20, 0) == Move(20)


def test_lease_returns_with_the_last_of_two_requests() -> None:
    """The second reached its engine before word came that the first had left its own."""
    k = keeper()
    k.register(1, ["a"])
    k.park("a")
    k.park("a")
    k.returned("a")
    assert k.decide(10, 0) == Move(10)
    k.returned("a")
    assert isinstance(k.decide(20, 0), Wait)


def test_returned_lease_of_one_request_or_of_a_lost_client_ends() -> None:
    k = keeper()
    k.register(1, ["a"])
    k.fork("a", ["child"], once=True)
    k.park("child")
    k.returned("child")
    assert not k.knows("child")
    k.park("a")
    k.close(1)
    assert k.knows("a")
    k.returned("a")
    assert not k.knows("a")


def test_second_request_of_an_actor_keeps_it_parked_until_the_last_ends() -> None:
    k = keeper()
    k.register(1, ["a"])
    k.park("a")
    k.park("a")
    k.complete("a", "first")
    assert k.decide(10, 0) == Resume(["first"])
    assert k.actors["a"].state is State.PARKED
    k.complete("a", "second")
    assert k.decide(10, 0) == Resume(["second"])
    assert k.actors["a"].state is State.HELD


def test_patience_turns_silence_into_a_stall_with_names() -> None:
    k = keeper(patience_ns=20 * MS)
    k.register(1, ["a", "b"])
    k.park("a")
    assert k.decide(100, 0) == Wait(20 * MS, "leases held")
    assert k.decide(100, 20 * MS) == Move(100)
    assert k.stall_count == 1
    assert k.stalled_by == {"b": 1}
    assert "b (last: register)" in str(k.stalls[0])
    # Until something moves, the held lease does not block again.
    assert k.decide(200, 21 * MS) == Move(200)
    k.complete("a", "bytes")
    assert k.decide(300, 22 * MS) == Resume(["bytes"])
    assert k.decide(300, 22 * MS) == Wait(42 * MS, "leases held")


def test_stalls_of_ever_new_actors_do_not_pile_up() -> None:
    k = keeper()
    for turn in range(1100):
        k.register(turn, [f"{turn:04d}"])
        k.decide(None, 5000 * MS * turn)
        k.decide(None, 5000 * MS * turn + 1000 * MS)
        k.release([f"{turn:04d}"])
    assert k.stall_count == 1100
    assert len(k.stalls) == 100
    assert len(k.stalled_by) == 1001
    assert k.stalled_by["(others)"] == 100


def test_strict_raises_at_the_first_stall() -> None:
    k = keeper(patience_ns=1, strict=True)
    k.register(1, ["slow"])
    k.decide(5, 0)
    with pytest.raises(StallError, match="held by slow"):
        k.decide(5, 10)


def test_a_half_received_request_stops_time() -> None:
    k = keeper(grace_ns=0)
    k.arriving()
    assert isinstance(k.decide(10, 0), Wait)
    assert k.holders() == [("1 request(s)", "still arriving")]
    k.received()
    assert k.decide(10, 0) == Move(10)


def test_grace_waits_once_per_message_and_counts_its_guesses() -> None:
    k = keeper(grace_ns=5 * MS)
    k.park(None)
    k.post(None, "submit")
    assert k.decide(10, MS) == Wait(6 * MS, "grace")
    assert k.decide(10, 6 * MS) == Feed(["submit"])
    assert k.decide(10, 6 * MS) == Move(10)
    assert k.guesses == 1
    assert k.decide(20, 6 * MS) == Move(20)
    assert k.guesses == 1
    k.complete(None, "bytes")
    assert k.decide(30, 7 * MS) == Resume(["bytes"])
    assert k.decide(30, 7 * MS) == Wait(12 * MS, "grace")


def test_leased_traffic_never_waits_for_grace() -> None:
    k = keeper()
    k.register(1, ["a"])
    for t in range(10, 50, 10):
        k.park("a")
        k.post("a", "s")
        assert k.decide(t, 0) == Feed(["s"])
        assert k.decide(t, 0) == Move(t)
        k.complete("a", "r")
        assert k.decide(t, 0) == Resume(["r"])
    assert k.guesses == 0


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda k: k.register(1, ["a"]), "a is already registered"),
        (lambda k: k.register(1, ["x", "x"]), "x is already registered"),
        (lambda k: k.sleep("nobody", 1, "t"), "nobody is not registered"),
        (lambda k: k.release(["nobody"]), "nobody is not registered"),
        (lambda k: k.fork("nobody", ["c"], once=False), "nobody is not registered"),
        (lambda k: k.barrier("a", "g", 0, "t"), "at least 1"),
        (lambda k: (k.sleep("a", 1, "t"), k.sleep("a", 2, "t")), "cannot sleep: it is sleeping"),
    ],
)
def test_senseless_verbs_are_refused_by_name(
    act: Callable[[Timekeeper[str, str]], object], message: str
) -> None:
    k = keeper()
    k.register(1, ["a"])
    with pytest.raises(ActorError, match=message):
        act(k)


def test_sleep_under_another_name_takes_its_place_in_the_order() -> None:
    k = keeper()
    k.register(1, ["a", "b"])
    k.sleep("a", 5, "was a", rename="c")
    k.sleep("b", 5, "b")
    assert "a" not in k.actors
    assert k.decide(None, 0) == Move(5)
    assert k.decide(None, 0) == Resume(["b", "was a"])
    assert k.holders() == [
        ("b", "resumed after sleep until 5"),
        ("c", "resumed after sleep until 5"),
    ]


def test_no_new_name_that_is_taken_or_while_a_request_is_inside() -> None:
    k = keeper()
    k.register(1, ["a", "b"])
    with pytest.raises(ActorError, match="b is already registered"):
        k.sleep("a", 5, "x", rename="b")
    k.park("a")
    with pytest.raises(ActorError, match="a cannot be renamed"):
        k.sleep("a", 5, "x", rename="c")
    assert k.actors["a"].state is State.PARKED


def test_double_dispatch_parks_when_both_legs_are_here() -> None:
    k = keeper()
    k.register(1, ["a"])
    k.park("a", legs=2)
    k.post("a", "prefill")
    assert isinstance(k.decide(10, 0), Wait)
    assert k.holders() == [("a", "1 of 2 requests")]
    k.park("a", legs=2)
    k.post("a", "decode")
    assert k.decide(10, 0) == Feed(["prefill", "decode"])
    assert k.decide(10, 0) == Move(10)
    k.complete("a", "prefill's bytes")
    assert k.decide(20, 0) == Resume(["prefill's bytes"])
    assert k.actors["a"].state is State.PARKED
    assert k.decide(20, 0) == Move(20)
    k.complete("a", "decode's bytes")
    assert k.decide(None, 0) == Resume(["decode's bytes"])
    assert k.actors["a"].state is State.HELD


def test_first_leg_may_end_before_the_second_is_here() -> None:
    k = keeper()
    k.register(1, ["a"])
    k.park("a", legs=2)
    k.complete("a", "early")
    assert k.decide(None, 0) == Resume(["early"])
    assert isinstance(k.decide(10, 0), Wait)
    k.park("a", legs=2)
    assert k.decide(10, 0) == Move(10)


@pytest.mark.parametrize("first_refused", [True, False])
def test_refused_leg_counts_as_arrived(first_refused: bool) -> None:
    k = keeper()
    k.register(1, ["a"])
    steps = [k.refuse, k.park] if first_refused else [k.park, k.refuse]
    steps[0]("a", 2)
    assert isinstance(k.decide(10, 0), Wait)
    steps[1]("a", 2)
    assert k.actors["a"].state is State.PARKED
    assert k.decide(10, 0) == Move(10)


def test_legs_of_two_requests_at_once_meet_in_their_own_rooms() -> None:
    k = keeper()
    k.register(1, ["a"])
    k.park("a", legs=2, room="7")
    k.park("a", legs=2, room="8")
    assert isinstance(k.decide(10, 0), Wait)
    k.park("a", legs=2, room="8")
    assert isinstance(k.decide(10, 0), Wait)
    k.park("a", legs=2, room="7")
    assert k.decide(10, 0) == Move(10)


def test_elapse_wakes_sleepers_of_a_paced_clock_in_order() -> None:
    k = keeper()
    k.register(1, ["a", "b"])
    k.sleep("b", 10, "b")
    k.sleep("a", 20, "a")
    assert k.elapse(5) == []
    assert k.next_wake() == 10
    assert k.elapse(25) == ["a", "b"]
    assert k.actors["a"].state is State.HELD


class Loop:
    """Closed-loop agents against an engine that takes `service[i]` for the i-th request it is fed.

    How the agents' messages interleave is drawn from `chaos`; what comes out must not depend on it.
    """

    def __init__(self, plan: list[list[int]], chaos: random.Random, baton: bool) -> None:
        self.keeper: Timekeeper[str, str] = Timekeeper(baton=baton)
        self.plan = {f"a{i}": list(turns) for i, turns in enumerate(plan)}
        self.chaos = chaos
        self.due: list[tuple[int, int, str]] = []
        self.fed: list[tuple[int, str]] = []
        self.running: list[str] = list(self.plan)
        self.baton = baton

    def run(self) -> list[tuple[int, str]]:
        k = self.keeper
        k.register(1, self.running)
        for _ in range(10_000):
            while self.running:
                self.act(self.running.pop(self.chaos.randrange(len(self.running))))
                if self.chaos.random() < 0.5:
                    break
            before = k.now_ns
            decision = k.decide(self.due[0][0] if self.due else None, 0)
            assert k.now_ns >= before
            if isinstance(decision, Resume):
                assert not (self.baton and (self.running or len(decision.tokens) > 1))
                self.running += decision.tokens
            elif isinstance(decision, Feed):
                for name in decision.items:
                    self.fed.append((k.now_ns, name))
                    service = 1 + (len(self.fed) * 7) % 5
                    heapq.heappush(self.due, (k.now_ns + service, len(self.fed), name))
            elif isinstance(decision, Move):
                assert not self.running
                while self.due and self.due[0][0] <= decision.t_ns:
                    name = heapq.heappop(self.due)[2]
                    k.complete(name, name)
            elif not self.running:
                break
        assert not k.actors
        return self.fed

    def act(self, name: str) -> None:
        turns = self.plan[name]
        if not turns:
            self.keeper.release([name])
            return
        think = turns.pop(0)
        if think:
            self.keeper.sleep(name, self.keeper.now_ns + think, name)
        else:
            self.keeper.park(name)
            self.keeper.post(name, name)


@settings(max_examples=60, deadline=None)
@given(
    plan=st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=5),
    baton=st.booleans(),
    seeds=st.tuples(st.integers(0, 99), st.integers(100, 199)),
)
def test_every_interleaving_feeds_the_same_commands_at_the_same_times(
    plan: list[list[int]], baton: bool, seeds: tuple[int, int]
) -> None:
    runs = [Loop(plan, random.Random(seed), baton) for seed in seeds]
    first, second = (loop.run() for loop in runs)
    assert first == second
    assert len(first) == sum(turn == 0 for turns in plan for turn in turns)
    assert first == sorted(first, key=lambda entry: entry[0])
