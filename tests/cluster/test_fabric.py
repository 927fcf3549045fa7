"""Laws of the fabric: everything arrives, nothing is too fast, shares are max-min fair."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_mock.cluster.fabric import Fabric, LinkSpec
from frontier_mock.simtime import NS_PER_S

GB = 10**9


def links(*gb_per_s: float) -> Fabric:
    return Fabric([LinkSpec(f"l{i}", rate * GB) for i, rate in enumerate(gb_per_s)])


def test_a_flow_alone_gets_its_slowest_link() -> None:
    fabric = links(50, 25)
    fabric.start(0, 1, (0, 1), 25_000_000)
    assert fabric.next_time() == 1_000_000
    assert fabric.pop_done(999_999) == []
    assert fabric.pop_done(1_000_000) == [1]
    assert fabric.next_time() is None


def test_two_flows_share_and_the_survivor_speeds_up() -> None:
    fabric = links(2)
    fabric.start(0, 1, (0,), 1000)
    fabric.start(0, 2, (0,), 3000)
    assert fabric.next_time() == 1000
    assert fabric.pop_done(1000) == [1]
    # The other has moved 1000 of 3000 bytes and now goes at 2 bytes per nanosecond.
    assert fabric.next_time() == 2000


def test_what_one_flow_cannot_use_goes_to_the_others() -> None:
    fabric = links(10, 4)
    fabric.start(0, 1, (0, 1), 1 << 20)
    fabric.start(0, 2, (1,), 1 << 20)
    fabric.start(0, 3, (0,), 1 << 20)
    rates = [fabric.rate_bytes_per_s(flow) / GB for flow in (1, 2, 3)]
    assert rates == pytest.approx([2, 2, 8], rel=1e-5)


def test_a_cap_is_lifted() -> None:
    fabric = links(10)
    fabric.start(0, 1, (0,), 1000, cap_bytes_per_s=1 * GB)
    assert fabric.next_time() == 1000
    fabric.uncap(500, 1)
    assert fabric.next_time() == 550


def test_a_slower_link_delays_what_is_on_it() -> None:
    fabric = links(10)
    fabric.start(0, 1, (0,), 1000)
    fabric.set_capacity(50, 0, 1 * GB)
    assert fabric.next_time() == 550


def test_a_cancelled_flow_says_what_it_moved_and_leaves_its_share() -> None:
    fabric = links(2)
    fabric.start(0, 1, (0,), 1000)
    fabric.start(0, 2, (0,), 1000)
    assert fabric.cancel(400, 1) == 400
    assert fabric.next_time() == 700
    assert fabric.use(700)[0].num_bytes == 400 + 1000


@pytest.mark.parametrize(
    ("path", "num_bytes"), [((), 10), ((0, 0), 10), ((0,), 0)], ids=["nowhere", "twice", "nothing"]
)
def test_flows_that_make_no_sense_are_refused(path: tuple[int, ...], num_bytes: int) -> None:
    with pytest.raises(ValueError, match="flow 1"):
        links(1).start(0, 1, path, num_bytes)


@st.composite
def scripts(draw: st.DrawFn) -> tuple[list[float], list[tuple[int, tuple[int, ...], int]]]:
    capacities = draw(st.lists(st.floats(0.05, 200), min_size=1, max_size=5))
    paths = st.lists(st.integers(0, len(capacities) - 1), min_size=1, unique=True).map(tuple)
    flow = st.tuples(st.integers(0, 100_000), paths, st.integers(1, 10_000_000))
    return capacities, sorted(draw(st.lists(flow, min_size=1, max_size=12)))


@given(scripts())
@settings(max_examples=150, deadline=None)
def test_everything_arrives_and_every_byte_is_counted_once(
    script: tuple[list[float], list[tuple[int, tuple[int, ...], int]]],
) -> None:
    capacities, flows = script
    fabric = links(*capacities)
    arrived: list[int] = []
    now = 0
    todo = list(enumerate(flows))
    while todo or len(fabric):
        due = fabric.next_time()
        if todo and (due is None or todo[0][1][0] < due):
            number, (now, path, size) = todo.pop(0)
            fabric.start(now, number, path, size)
        else:
            assert due is not None
            assert due >= now
            now = due
            done = fabric.pop_done(now)
            assert done
            arrived += done
        _check_rates(fabric, flows, capacities, arrived, len(flows) - len(todo))
    assert sorted(arrived) == list(range(len(flows)))
    for index, use in enumerate(fabric.use(now)):
        assert use.num_bytes == sum(size for _, path, size in flows if index in path)
        assert use.num_bytes * NS_PER_S <= use.busy_ns * use.bytes_per_s * (1 + 1e-9)


def _check_rates(
    fabric: Fabric,
    flows: list[tuple[int, tuple[int, ...], int]],
    capacities: list[float],
    arrived: list[int],
    started: int,
) -> None:
    """Capacity, and fairness: each flow is held back by a full link on which nobody gets more."""
    active = [i for i in range(started) if i not in arrived]
    rates = {i: fabric.rate_bytes_per_s(i) for i in active}
    load = [sum(rates[i] for i in active if link in flows[i][1]) for link in range(len(capacities))]
    slack = 13 * NS_PER_S / (1 << 20)
    for link, total in enumerate(load):
        assert total <= capacities[link] * GB + 1
    for i in active:
        assert any(
            load[link] >= capacities[link] * GB - slack
            and all(rates[i] >= rates[j] - slack for j in active if link in flows[j][1])
            for link in flows[i][1]
        )


def test_time_does_not_go_back() -> None:
    fabric = links(1)
    fabric.start(10, 1, (0,), 5)
    with pytest.raises(ValueError, match="cannot go back"):
        fabric.cancel(9, 1)
