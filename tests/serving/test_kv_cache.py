"""The extent cache against a block-by-block one, and the rules one by one."""

import gc
from dataclasses import dataclass, field

import pytest
from block_reference import BlockPool, Sequence
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_mock.core.prompt import KEY_BYTES
from frontier_mock.serving.kv_cache import BlockTable, KvCache
from frontier_mock.serving.prefix_tree import Extent, common_blocks


def keys_of(text: str) -> bytes:
    """One block key per character."""
    return b"".join(ord(letter).to_bytes(KEY_BYTES, "little") for letter in text)


def text_of(keys: bytes) -> str:
    return "".join(
        chr(int.from_bytes(keys[at : at + KEY_BYTES], "little"))
        for at in range(0, len(keys), KEY_BYTES)
    )


def path_of(cache: KvCache, extent: Extent) -> bytes:
    path = b""
    while extent is not cache.root:
        path = extent.keys[: extent.count * KEY_BYTES] + path
        extent = extent.parent
    return path


def eviction_order(cache: KvCache) -> list[bytes | None]:
    """Every free block in the order it will be taken: the prefix it caches, or None."""
    order: list[bytes | None] = []
    extent = cache.queue.ends.next
    while extent is not cache.queue.ends:
        if extent.keys:
            path = path_of(cache, extent)
            last = len(path)
            first = last - extent.count * KEY_BYTES
            order.extend(path[:end] for end in range(last, first, -KEY_BYTES))
        else:
            order.extend([None] * extent.count)
        extent = extent.next
    return order


def cached_prefixes(cache: KvCache) -> set[bytes]:
    found: set[bytes] = set()
    walk = list(cache.root.children.values())
    while walk:
        extent = walk.pop()
        path = path_of(cache, extent)
        first = len(path) - extent.count * KEY_BYTES
        found.update(path[:end] for end in range(len(path), first, -KEY_BYTES))
        walk.extend(extent.children.values())
    return found


def free_texts(cache: KvCache) -> list[str]:
    """The eviction order as text, '-' for an uncached block."""
    return ["-" if path is None else text_of(path) for path in eviction_order(cache)]


def run_whole(cache: KvCache, text: str) -> int:
    """Admit `text`, compute all of it, finish; returns the hit in blocks."""
    keys = keys_of(text)
    match = cache.lookup(keys, len(text))
    table = cache.open(match)
    cache.take(len(text) - match.num_blocks)
    cache.close(table, len(text), keys, len(text))
    cache.check()
    return match.num_blocks


def start(cache: KvCache, text: str, max_blocks: int | None = None) -> BlockTable:
    """Admit `text` and register all its blocks."""
    keys = keys_of(text)
    match = cache.lookup(keys, len(text) if max_blocks is None else max_blocks)
    table = cache.open(match)
    cache.take(len(text) - match.num_blocks)
    cache.commit(table, keys, len(text))
    cache.check()
    return table


# -- the property: same as block by block --------------------------------------------------------


@dataclass
class Live:
    """One open sequence in both caches: its content, and how many blocks it holds."""

    keys: bytes
    table: BlockTable
    mirror: Sequence
    held: int
    full: int = field(default=0)


class Twins:
    """The cache and its reference under the same operations, compared after each."""

    def __init__(self, num_blocks: int) -> None:
        self.cache = KvCache(num_blocks, 16, prefix_caching=True)
        self.pool = BlockPool(num_blocks)
        self.live: list[Live] = []

    def compare(self) -> None:
        self.cache.check()
        assert self.cache.num_free == len(self.pool.free)
        assert eviction_order(self.cache) == self.pool.eviction_order()
        assert cached_prefixes(self.cache) == set(self.pool.cached)

    def admit(self, keys: bytes, cap: int, held: int, full: int) -> None:
        """Look up at most `cap` blocks; take until `held` are held; commit `full` of them."""
        match = self.cache.lookup(keys, cap)
        hit = self.pool.lookup(keys, cap)
        assert match.num_blocks == len(hit)
        assert match.num_evictable == sum(block.refs == 0 for block in hit)
        self.compare()
        held = max(held, match.num_blocks)
        if held - match.num_blocks + match.num_evictable > self.cache.num_free:
            return
        live = Live(keys, self.cache.open(match), self.pool.open(hit), match.num_blocks)
        self.live.append(live)
        self.compare()
        self.take(live, held - match.num_blocks)
        self.commit(live, full)

    def take(self, live: Live, count: int) -> None:
        if count > self.cache.num_free:
            with pytest.raises(ValueError, match="cannot take"):
                self.cache.take(count)
        else:
            self.cache.take(count)
            self.pool.take(live.mirror, count)
            live.held += count
        self.compare()

    def commit(self, live: Live, full: int) -> None:
        full = min(full, live.held)
        self.cache.commit(live.table, live.keys, full)
        self.pool.commit(live.mirror, live.keys, full)
        self.compare()

    def close(self, live: Live, full: int) -> None:
        full = min(full, live.held)
        self.cache.close(live.table, live.held, live.keys, full)
        self.pool.close(live.mirror, live.keys, full)
        self.live.remove(live)
        self.compare()


prompts = st.text(alphabet="ab", min_size=1, max_size=10)
small = st.integers(min_value=0, max_value=12)
operations = st.one_of(
    st.tuples(st.just("admit"), prompts, small, small, small),
    st.tuples(st.just("grow"), small, st.text(alphabet="abc", max_size=4), small, small),
    st.tuples(st.just("finish"), small, small),
    st.tuples(st.just("preempt"), small),
)


def apply(twins: Twins, operation: tuple[str, ...]) -> None:
    kind, *values = operation
    if kind == "admit":
        text, cap, held, full = values
        twins.admit(keys_of(text), cap, min(held, len(text)), full)
        return
    if not twins.live:
        return
    live = twins.live[values[0] % len(twins.live)]
    if kind == "grow":
        live.keys += keys_of(values[1])
        twins.take(live, values[2] % 4)
        twins.commit(live, values[3])
    elif kind == "finish":
        twins.close(live, values[1])
    else:
        twins.close(live, 0)
        full = len(live.keys) // KEY_BYTES
        twins.admit(live.keys, max(full - 1, 0), full, full)


@settings(max_examples=400, deadline=None)
@given(st.integers(min_value=1, max_value=24), st.lists(operations, max_size=40))
def test_same_hits_and_same_evictions_as_block_by_block(
    num_blocks: int, script: list[tuple[str, ...]]
) -> None:
    twins = Twins(num_blocks)
    for operation in script:
        apply(twins, operation)
    while twins.live:
        twins.close(twins.live[0], 12)
    assert twins.cache.num_free == num_blocks
    assert twins.cache.num_private == 0
    assert twins.cache.reset()
    twins.cache.check()
    assert cached_prefixes(twins.cache) == set()


@given(st.text("ab", min_size=1, max_size=40), st.text("ab", min_size=1, max_size=40), small)
def test_common_blocks_is_the_common_prefix(left: str, right: str, offset: int) -> None:
    left, right = "a" + left, "a" + right
    limit = min(len(left), len(right))
    expected = next((i for i in range(limit) if left[i] != right[i]), limit)
    keys = keys_of("b" * offset + left)
    assert common_blocks(keys, offset * KEY_BYTES, keys_of(right), limit) == expected


# -- the rules, one by one -----------------------------------------------------------------------


def test_a_prompt_hits_what_an_earlier_one_left() -> None:
    cache = KvCache(10, 16, prefix_caching=True)
    assert run_whole(cache, "abcd") == 0
    assert run_whole(cache, "abcd") == 4
    assert run_whole(cache, "abxy") == 2
    assert cache.num_free == 10


def test_eviction_takes_uncached_blocks_then_the_oldest_sequence_from_its_tail() -> None:
    cache = KvCache(6, 16, prefix_caching=True)
    run_whole(cache, "abc")
    run_whole(cache, "xy")
    assert free_texts(cache) == ["-", "abc", "ab", "a", "xy", "x"]
    cache.take(3)
    assert free_texts(cache) == ["a", "xy", "x"]
    assert cache.lookup(keys_of("abc"), 3).num_blocks == 1


def test_a_hit_moves_its_blocks_to_the_back() -> None:
    cache = KvCache(6, 16, prefix_caching=True)
    run_whole(cache, "abc")
    run_whole(cache, "xy")
    table = cache.open(cache.lookup(keys_of("ab"), 2))
    assert free_texts(cache) == ["-", "abc", "xy", "x"]
    cache.close(table, 2, keys_of("ab"), 2)
    assert free_texts(cache) == ["-", "abc", "xy", "x", "ab", "a"]


def test_unregistered_blocks_go_to_the_front() -> None:
    cache = KvCache(5, 16, prefix_caching=True)
    run_whole(cache, "abcde")
    table = cache.open(cache.lookup(b"", 0))
    cache.take(2)
    cache.close(table, 2, keys_of("x"), 2)
    assert free_texts(cache) == ["-", "abc", "ab", "a", "x"]


def test_lookup_stops_at_max_blocks_and_leaves_no_trace() -> None:
    cache = KvCache(6, 16, prefix_caching=True)
    run_whole(cache, "abcd")
    before = eviction_order(cache)
    match = cache.lookup(keys_of("abcd"), 3)
    assert (match.num_blocks, match.num_evictable) == (3, 3)
    assert eviction_order(cache) == before
    assert cache.lookup(keys_of("abcd"), 0).num_blocks == 0


def test_blocks_in_use_are_neither_evictable_nor_evicted() -> None:
    cache = KvCache(4, 16, prefix_caching=True)
    start(cache, "abc")
    match = cache.lookup(keys_of("abc"), 3)
    assert (match.num_blocks, match.num_evictable) == (3, 0)
    cache.take(1)
    with pytest.raises(ValueError, match="cannot take 1 blocks, 0 are free"):
        cache.take(1)
    assert cache.lookup(keys_of("abc"), 3).num_blocks == 3


def test_output_blocks_are_hit_by_the_next_turn() -> None:
    cache = KvCache(10, 16, prefix_caching=True)
    table = start(cache, "abc")
    cache.take(2)
    cache.close(table, 5, keys_of("abcde"), 4)
    assert cache.lookup(keys_of("abcdef"), 6).num_blocks == 4
    assert free_texts(cache)[0] == "-"


def test_commit_reaches_no_further_than_the_keys() -> None:
    cache = KvCache(10, 16, prefix_caching=True)
    table = cache.open(cache.lookup(keys_of("abcd"), 4))
    cache.take(4)
    cache.commit(table, keys_of("ab"), 4)
    assert table.num_registered == 2
    assert cached_prefixes(cache) == {keys_of("a"), keys_of("ab")}
    assert cache.num_private == 2


def test_a_growing_sequence_stays_one_extent() -> None:
    cache = KvCache(50, 16, prefix_caching=True)
    table = start(cache, "a")
    for length in range(2, 40):
        cache.take(1)
        cache.commit(table, keys_of("a" * length), length)
    assert table.extent.count == 39
    assert table.extent.parent is cache.root


def test_a_copy_of_cached_blocks_in_use_stays_private_until_closed() -> None:
    cache = KvCache(8, 16, prefix_caching=True)
    first = start(cache, "ab")
    second = start(cache, "abc", max_blocks=0)
    assert second.num_duplicates == 2
    assert cache.num_free == 3
    cache.close(first, 2, keys_of("ab"), 2)
    assert cache.num_free == 3
    cache.close(second, 3, keys_of("abc"), 3)
    assert free_texts(cache) == ["-"] * 5 + ["abc", "ab", "a"]


def test_a_copy_of_free_cached_blocks_changes_places_with_them() -> None:
    cache = KvCache(6, 16, prefix_caching=True)
    run_whole(cache, "ab")
    run_whole(cache, "x")
    assert free_texts(cache) == ["-", "-", "-", "ab", "a", "x"]
    table = start(cache, "ab", max_blocks=1)
    assert table.num_duplicates == 0
    assert free_texts(cache) == ["-", "-", "-", "x"]
    cache.close(table, 2, keys_of("ab"), 2)
    assert free_texts(cache) == ["-", "-", "-", "x", "ab", "a"]


def test_without_prefix_caching_nothing_hits() -> None:
    cache = KvCache(4, 16, prefix_caching=False)
    assert run_whole(cache, "abc") == 0
    assert run_whole(cache, "abc") == 0
    assert free_texts(cache) == ["-"] * 4


def test_reset_waits_for_every_block() -> None:
    cache = KvCache(4, 16, prefix_caching=True)
    table = start(cache, "ab")
    assert not cache.reset()
    cache.close(table, 2, keys_of("ab"), 2)
    assert cache.reset()
    assert cache.lookup(keys_of("ab"), 2).num_blocks == 0
    assert free_texts(cache) == ["-"] * 4
    cache.check()


def test_evicted_extents_go_away_without_the_garbage_collector() -> None:
    """Neither a prefix in use nor a stale match keeps the history of evictions alive."""

    def extents_alive() -> int:
        return sum(isinstance(thing, Extent) for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = extents_alive()
        cache = KvCache(4, 16, prefix_caching=True)
        run_whole(cache, "sa")
        pinned = cache.open(cache.lookup(keys_of("s"), 1))
        stale = cache.lookup(keys_of("sa"), 2)
        for index in range(100):
            run_whole(cache, "s" + chr(index + 1000) + "x")
        assert extents_alive() - before < 10
        assert (pinned.extent.refs, stale.num_blocks) == (1, 2)
    finally:
        gc.enable()


def test_check_notices_a_lost_block() -> None:
    cache = KvCache(4, 16, prefix_caching=True)
    run_whole(cache, "ab")
    cache.queue.ends.next.count -= 1
    with pytest.raises(AssertionError):
        cache.check()
