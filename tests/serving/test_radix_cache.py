"""The radix cache against SGLang's rules in numbers, and against a page-by-page reference."""

from array import array
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frontier_mock.serving.radix_cache import EVICTION_POLICIES, RadixCache, RadixNode
from tests.serving.radix_reference import RadixReference


def keys_of(pages: list[int]) -> bytes:
    return array("Q", pages).tobytes()


def pages_of(keys: bytes) -> tuple[int, ...]:
    return tuple(array("Q", keys))


def cache_with(*prompts: list[int], pages: int = 100, policy: str = "lru") -> RadixCache:
    """A cache in which `prompts` were computed and given up, one after another."""
    kv = RadixCache(pages, 1, True, policy)
    for prompt in prompts:
        store(kv, prompt)
    return kv


def store(kv: RadixCache, prompt: list[int], prompt_pages: int = 0) -> int:
    """One sequence from match to end; returns its hit."""
    keys = keys_of(prompt)
    node, hit = kv.match(keys, len(prompt))
    kv.lock(node)
    new = len(prompt) - hit
    kv.make_room(new)
    kv.take(new)
    kv.unlock(kv.checkpoint(node, hit, keys[8 * hit :], prompt_pages, 0, 0))
    return hit


def cuts(kv: RadixCache) -> set[tuple[tuple[int, ...], int, int]]:
    """Every node as (path down to its end, its pages, its locks)."""
    found = set()
    walk: list[tuple[RadixNode, tuple[int, ...]]] = [(kv.root, ())]
    while walk:
        node, above = walk.pop()
        for child in node.children.values():
            path = above + pages_of(child.keys)
            found.add((path, child.count, child.locks))
            walk.append((child, path))
    return found


def test_a_match_that_ends_inside_a_node_splits_it_there() -> None:
    kv = cache_with([1, 2, 3, 4])
    assert cuts(kv) == {((1, 2, 3, 4), 4, 0)}
    node, hit = kv.match(keys_of([1, 2, 9]), 3)
    assert (hit, node.count) == (2, 2)
    assert cuts(kv) == {((1, 2), 2, 0), ((1, 2, 3, 4), 2, 0)}
    kv.check()


def test_looking_up_splits_nothing() -> None:
    kv = cache_with([1, 2, 3, 4])
    assert kv.lookup(keys_of([1, 2, 9]), 3).num_blocks == 2
    assert kv.lookup(keys_of([1, 2, 3, 4, 5]), 3).num_blocks == 3
    assert cuts(kv) == {((1, 2, 3, 4), 4, 0)}


def test_a_whole_leaf_goes_for_one_page() -> None:
    kv = cache_with([1, 2, 3, 4], [5, 6], pages=6)
    assert kv.num_available == 0
    assert kv.evict(1) == 4
    assert cuts(kv) == {((5, 6), 2, 0)}


def test_a_leaf_goes_before_the_older_node_above_it() -> None:
    kv = cache_with([1, 2, 3], [1, 2, 4], [7])
    assert kv.evict(1) == 1  # [3]: accessed when it was split off
    assert kv.evict(1) == 1  # [4]
    assert cuts(kv) == {((1, 2), 2, 0), ((7,), 1, 0)}
    assert kv.evict(1) == 2  # [1, 2], a leaf by now and older than [7]
    assert cuts(kv) == {((7,), 1, 0)}


def test_a_split_makes_the_part_nobody_asked_for_recent() -> None:
    kv = cache_with([1, 2, 3], [8, 9])
    kv.match(keys_of([1]), 1)
    assert kv.evict(1) == 2
    assert cuts(kv) == {((1,), 1, 0), ((1, 2, 3), 2, 0)}


def test_locked_paths_stay() -> None:
    kv = cache_with([1, 2, 3], [4])
    node, _ = kv.match(keys_of([1, 2]), 2)
    kv.lock(node)
    assert (kv.num_protected, kv.num_evictable) == (2, 2)
    assert kv.evict(10) == 2
    assert cuts(kv) == {((1, 2), 2, 1)}
    kv.unlock(node)
    assert kv.evict(10) == 2
    kv.check()


def test_what_the_tree_has_already_is_given_back_at_once() -> None:
    kv = RadixCache(20, 1, True)
    root = kv.root
    kv.take(8)  # two sequences compute the same four pages at the same time
    first = kv.checkpoint(root, 0, keys_of([1, 2, 3, 4]), 0, 0, 0)
    assert (kv.num_private, kv.num_available, kv.num_protected) == (4, 12, 4)
    second = kv.checkpoint(root, 0, keys_of([1, 2, 3, 4]), 0, 0, 0)
    assert first is second
    assert (kv.num_private, kv.num_available, kv.num_protected) == (0, 16, 4)
    kv.check()


def test_output_can_be_evicted_without_its_prompt() -> None:
    kv = RadixCache(20, 1, True)
    store(kv, [1, 2, 3, 4, 5], prompt_pages=3)
    assert cuts(kv) == {((1, 2, 3), 3, 0), ((1, 2, 3, 4, 5), 2, 0)}
    assert kv.evict(1) == 2


@pytest.mark.parametrize(
    ("policy", "gone"), [("lru", 2), ("fifo", 1), ("filo", 3), ("mru", 1), ("lfu", 2), ("slru", 2)]
)
def test_policies_choose_different_leaves(policy: str, gone: int) -> None:
    kv = cache_with([1], [2], [3], [3], [1], policy=policy)  # used: 1 and 3 twice, 1 last
    kv.evict(1)
    left = {path[0] for path, _, _ in cuts(kv)}
    assert left == {1, 2, 3} - {gone}


def test_a_higher_priority_outlives_a_lower_one() -> None:
    kv = RadixCache(20, 1, True, "priority")
    for page, priority in ((1, 5), (2, 0), (3, 1)):
        kv.take(1)
        kv.unlock(kv.checkpoint(kv.root, 0, keys_of([page]), 0, 0, priority))
    assert [kv.evict(1) for _ in range(2)] == [1, 1]
    assert cuts(kv) == {((1,), 1, 0)}


def test_without_a_tree_nothing_is_found_and_everything_comes_back() -> None:
    kv = RadixCache(10, 1, False)
    assert kv.match(keys_of([1]), 1) == (kv.root, 0)
    kv.take(10)
    with pytest.raises(ValueError, match="cannot take 1 pages, 0 are available"):
        kv.take(1)
    kv.give(10)
    assert kv.num_free == 10


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown radix eviction policy 'tlru': one of lru"):
        RadixCache(1, 1, True, "tlru")


def test_reset_forgets_only_when_nothing_is_held() -> None:
    kv = cache_with([1, 2])
    node, _ = kv.match(keys_of([1, 2]), 2)
    kv.lock(node)
    assert not kv.reset()
    kv.unlock(node)
    assert kv.reset()
    assert (kv.num_available, kv.num_evictable, kv.lookup(keys_of([1]), 1).num_blocks) == (
        100,
        0,
        0,
    )


prompts = st.lists(st.integers(1, 3), min_size=1, max_size=9)
operations = st.one_of(
    st.tuples(st.just("match"), prompts),
    st.tuples(st.just("insert"), prompts, st.integers(0, 9), st.integers(0, 2)),
    st.tuples(st.just("lock"), prompts),
    st.tuples(st.just("unlock"), st.integers(0, 9)),
    st.tuples(st.just("evict"), st.integers(1, 6)),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(EVICTION_POLICIES), st.lists(operations, max_size=30))
def test_page_by_page_the_tree_is_the_same(policy: str, ops: list[tuple[Any, ...]]) -> None:
    kv = RadixCache(1000, 1, True, policy)
    slow = RadixReference(policy)
    held: list[tuple[RadixNode, list[int]]] = []
    for name, *rest in ops:
        if name == "match":
            assert kv.match(keys_of(rest[0]), len(rest[0]))[1] == slow.match(rest[0])
        elif name == "insert":
            pages, inserted, priority = rest
            kv.take(len(pages))
            _, matched, leaf = kv.insert(keys_of(pages), inserted, priority)
            kv.give(matched)
            if leaf is not None:
                kv.settle(leaf)
            assert matched == slow.insert(pages, inserted, priority)
        elif name == "lock":
            node, hit = kv.match(keys_of(rest[0]), len(rest[0]))
            assert hit == slow.match(rest[0])
            kv.lock(node)
            slow.lock(rest[0][:hit], 1)
            held.append((node, rest[0][:hit]))
        elif name == "unlock" and held:
            node, path = held.pop(rest[0] % len(held))
            kv.unlock(node)
            slow.lock(path, -1)
        elif name == "evict":
            assert kv.evict(rest[0]) == slow.evict(rest[0])
        assert cuts(kv) == slow.cuts()
        assert kv.num_evictable == slow.evictable()
        kv.check()
