"""The tier of runs against a tier chunk by chunk; `scripts/oracle/tiers.py` has vLLM's own."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_mock.serving.tiers.arc import ArcPool
from frontier_mock.serving.tiers.lane import Lane, Transfer
from frontier_mock.serving.tiers.lru import LruPool
from frontier_mock.serving.tiers.pool import Access, Pool
from frontier_mock.serving.tiers.specs import LaneSpec
from tests.serving.tier_reference import ChunkPool, Request


def path(*chunks: int) -> bytes:
    return b"".join(chunk.to_bytes(8, "little") for chunk in chunks)


@dataclass
class Pair:
    """One request, as either side knows it."""

    theirs: Request
    access: Access = field(default_factory=Access)
    offered: int = 0
    load: Transfer | None = None

    @property
    def length(self) -> int:
        return len(self.theirs.keys) // 8


@st.composite
def paths(draw: st.DrawFn) -> bytes:
    forks = draw(st.lists(st.sampled_from([0, 0, 0, 1]), min_size=1, max_size=12))
    return path(*[10 * depth + fork for depth, fork in enumerate(forks)])


def unload(ours: LruPool, theirs: ChunkPool, pair: Pair) -> None:
    if pair.load is not None:
        ours.unpin(pair.load)
        theirs.unpin(pair.theirs, *pair.load.ranges[0])
        pair.load = None


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_runs_and_chunks_keep_and_give_up_the_same(data: st.DataObject) -> None:
    capacity = data.draw(st.integers(0, 25))
    ours, theirs = LruPool(capacity), ChunkPool(capacity)
    live: list[Pair] = []
    stores: list[tuple[Pair, Transfer, list[int]]] = []
    for _ in range(data.draw(st.integers(1, 60))):
        action = data.draw(st.sampled_from(["arrive", "offer", "offer", "store", "end"]))
        if action == "arrive":
            pair = Pair(Request(data.draw(paths())))
            live.append(pair)
            first = data.draw(st.integers(0, pair.length - 1))
            chunks, pending = ours.reach(pair.theirs.keys, first, pair.length)
            assert chunks == theirs.reach(pair.theirs, first, pair.length)
            if chunks and not pending:
                pair.load = Transfer(pair.theirs.keys, [(first, first + chunks)], 0)
                pair.offered = first + chunks
                ours.pin(pair.access, pair.load)
                theirs.pin(pair.theirs, first, first + chunks)
        elif action == "store" and stores:
            pair, transfer, places = stores.pop(0)
            ours.stored(transfer)
            theirs.stored(pair.theirs, places)
        elif live and action == "offer":
            pair = data.draw(st.sampled_from(live))
            unload(ours, theirs, pair)
            last = data.draw(st.integers(pair.offered, pair.length))
            transfer = Transfer(pair.theirs.keys, (), 0)
            new = ours.offer(pair.theirs.keys, pair.offered, last, pair.access, transfer)
            expected = theirs.offer(pair.theirs, pair.offered, last)
            pair.offered = last
            assert (new is None) == (expected is None)
            if new is not None and expected:
                assert [at for a, b in new for at in range(a, b)] == expected
                transfer.ranges = tuple(new)
                stores.append((pair, transfer, expected))
        elif live and action == "end":
            pair = live.pop(data.draw(st.integers(0, len(live) - 1)))
            unload(ours, theirs, pair)
            ours.finish(pair.theirs.keys, pair.access)
            theirs.finish(pair.theirs)
        ours.check()
        assert ours.num_held == len(theirs.chunks)


def store(pool: Pool, keys: bytes, access: Access | None = None) -> list[tuple[int, int]] | None:
    """One request that stores all of `keys`, is done with it at once, and ends."""
    access = access or Access()
    transfer = Transfer(keys, (), 0)
    new = pool.offer(keys, 0, len(keys) // 8, access, transfer)
    if new:
        transfer.ranges = tuple(new)
        pool.stored(transfer)
    pool.finish(keys, access)
    pool.check()
    return new


@pytest.mark.parametrize("pool", [LruPool(4), ArcPool(4)])
def test_what_is_used_last_stays_and_its_tail_goes_first(pool: LruPool | ArcPool) -> None:
    assert store(pool, path(1, 2, 3)) == [(0, 3)]
    assert store(pool, path(7, 8)) == [(0, 2)]
    assert pool.reach(path(1, 2, 3), 0, 3).chunks == 2
    assert pool.reach(path(7, 8), 0, 2).chunks == 2


def test_the_head_of_a_prompt_can_be_gone_and_its_tail_here() -> None:
    pool = LruPool(3)
    store(pool, path(1))
    keys, access = path(1, 2, 3), Access()
    transfer = Transfer(keys, [(1, 3)], 0)
    assert pool.offer(keys, 1, 3, access, transfer) == [(1, 3)]
    pool.stored(transfer)
    store(pool, path(9))
    assert pool.reach(keys, 0, 3).chunks == 0
    assert pool.reach(keys, 1, 3).chunks == 2


def test_more_than_there_is_room_for_is_not_stored_at_all() -> None:
    pool = LruPool(2)
    store(pool, path(5))
    assert store(pool, path(1, 2, 3)) is None
    assert pool.reach(path(5), 0, 1).chunks == 1


def test_arc_keeps_what_is_reused_from_a_flood_of_new_chunks() -> None:
    arc, lru = ArcPool(6), LruPool(6)
    pools: tuple[Pool, ...] = (arc, lru)
    for pool in pools:
        store(pool, path(1, 2))
        store(pool, path(1, 2))
        for other in range(10, 40, 3):
            store(pool, path(other, other + 1, other + 2))
    assert arc.reach(path(1, 2), 0, 2).chunks == 2
    assert lru.reach(path(1, 2), 0, 2).chunks == 0


def test_transfers_of_one_direction_follow_each_other() -> None:
    lane = Lane(LaneSpec(1e9, 1e-5))
    assert lane.book(0, 90_000) == 100_000
    assert lane.book(10_000, 190_000) == 300_000
    assert lane.book(1_000_000, 90_000) == 1_100_000
    assert (lane.num_bytes, lane.busy_ns) == (370_000, 400_000)
