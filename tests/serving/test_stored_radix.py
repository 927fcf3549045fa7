"""Storage behind SGLang's host tier: what engines find that others computed, and wait for."""

from dataclasses import replace

import pytest

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.core.commands import Abort, Submit
from frontier_mock.core.events import Event, Fetched, Queued, Scheduled
from frontier_mock.core.prompt import KeyedPrompt
from frontier_mock.serving.specs import SglangSchedulerSpec
from frontier_mock.serving.tiers.specs import HostTierSpec, LaneSpec, StorageSpec
from frontier_mock.serving.tiers.stored_radix import StoredRadixCache
from tests.engine import toy_cluster
from tests.laws.test_macro_steps import play

MS = 1_000_000
S = 1_000 * MS
FAST = LaneSpec(1e9, 0.0)
STORAGE = StorageSpec("mooncake", "shared", LaneSpec(1e6, 0.0), FAST, "wait_complete")
"""A page of 16 tokens takes 1 ms to the host."""

TIER = HostTierSpec(2000, 1000, FAST, FAST, layers=1, storage=STORAGE)
SPEC = SglangSchedulerSpec(
    max_running_requests=8,
    context_length=8192,
    num_pages=1000,
    page_size=16,
    enable_overlap=False,
    host_tier=TIER,
)


def ask(name: int, worker: int, tokens: int = 400) -> Submit:
    keys = b"".join((name * 10_000 + i).to_bytes(8, "little") for i in range(tokens // 16))
    return Submit(KeyedPrompt(tokens, 16, keys), 2, 2, worker=worker)


def stored(storage: StorageSpec, **changes: int) -> SglangSchedulerSpec:
    return replace(SPEC, host_tier=replace(TIER, storage=storage, **changes))


def run(spec: SglangSchedulerSpec, *timed: tuple[int, Submit | Abort]) -> Cluster:
    cluster = toy_cluster(spec, workers=2)
    play(cluster, list(timed), check=True)
    return cluster


def of(cluster: Cluster, rid: int) -> list[Event]:
    return [event for event in cluster.log.events if event.rid == rid]


def cached(cluster: Cluster, rid: int) -> int:
    return next(e.cached_tokens for e in of(cluster, rid) if isinstance(e, Scheduled))


def queued_ns(cluster: Cluster, rid: int) -> int:
    entered = next(e.t_ns for e in of(cluster, rid) if isinstance(e, Queued))
    return next(e.t_ns for e in of(cluster, rid) if isinstance(e, Scheduled)) - entered


def tree(cluster: Cluster, worker: int) -> StoredRadixCache:
    kv = cluster.workers[worker].kv
    assert isinstance(kv, StoredRadixCache)
    return kv


def test_one_engine_finds_what_another_has_computed() -> None:
    cluster = run(SPEC, (0, ask(1, 0)), (S, ask(1, 1)))
    assert cached(cluster, 1) == 384
    (fetched,) = (e for e in of(cluster, 1) if isinstance(e, Fetched))
    assert (fetched.tier, fetched.tokens, fetched.num_bytes) == ("storage", 384, 24_000)
    assert queued_ns(cluster, 1) == 24 * MS
    host, storage = tree(cluster, 1).stats()
    assert (host.hit_tokens, host.load_bytes) == (0, 24_000)
    assert (storage.query_tokens, storage.hit_tokens, storage.found_tokens) == (384, 384, 384)
    assert (storage.loads, storage.load_bytes, storage.load_ns) == (1, 24_000, 24 * MS)
    # The other engine wrote them once; this one has nothing new.
    written = tree(cluster, 0).stats()[1]
    assert (written.stores, written.store_bytes, written.held_tokens) == (1, 25_000, 400)
    assert storage.store_bytes == 1000 * (storage.held_tokens // 16 - 25)


def test_engines_of_different_pools_share_nothing() -> None:
    cluster = toy_cluster(SPEC, workers=2)
    assert tree(cluster, 0).pool is tree(cluster, 1).pool
    alone = run(
        replace(SPEC, host_tier=replace(TIER, storage=None)), (0, ask(1, 0)), (S, ask(1, 1))
    )
    assert cached(alone, 1) == 0


def test_what_is_being_written_is_not_there_yet() -> None:
    slow = stored(replace(STORAGE, store=LaneSpec(1e4, 0.0)))
    cluster = run(slow, (0, ask(1, 0)), (S, ask(1, 1)), (4 * S, ask(1, 0)))
    assert cached(cluster, 1) == 0


def test_fewer_tokens_than_the_threshold_are_computed() -> None:
    cluster = run(SPEC, (0, ask(1, 0, 272)), (S, ask(1, 1, 272)), (2 * S, ask(1, 1, 272)))
    assert cached(cluster, 1) == 256
    high = stored(replace(STORAGE, threshold_tokens=257))
    cluster = run(high, (0, ask(1, 0, 272)), (S, ask(1, 1, 272)))
    assert cached(cluster, 1) == 0
    assert tree(cluster, 1).stats()[1].query_tokens == 0


@pytest.mark.parametrize(
    ("policy", "base_s", "hit", "wait_ms"),
    [
        ("best_effort", 1.0, 0, 0),
        ("wait_complete", 0.0, 4992, 312),
        ("timeout", 1.0, 4992, 312),
        # Two batches of 128 pages are there after 300 ms, and no part of the third.
        ("timeout", 0.3, 4096, 300),
        ("timeout", 0.1, 0, 100),
    ],
)
def test_policies_say_how_long_to_wait(policy: str, base_s: float, hit: int, wait_ms: int) -> None:
    storage = replace(STORAGE, policy=policy, timeout_base_s=base_s, timeout_per_page_s=0.0)
    cluster = run(stored(storage), (0, ask(1, 0, 5008)), (S, ask(1, 1, 5008)))
    assert (cached(cluster, 1), queued_ns(cluster, 1)) == (hit, wait_ms * MS)


def test_a_busy_engine_takes_with_best_effort_what_has_come_meanwhile() -> None:
    spec = replace(stored(replace(STORAGE, policy="best_effort")), max_running_requests=1)
    long = replace(ask(2, 1), output_tokens=200, max_tokens=200)
    cluster = run(spec, (0, ask(1, 0)), (S, long), (S + MS, ask(1, 1)))
    assert cached(cluster, 2) == 384


def test_others_pass_what_waits_and_fetches_follow_each_other() -> None:
    cluster = run(
        SPEC, (0, ask(1, 0)), (0, ask(2, 0)), (S, ask(1, 1)), (S, ask(2, 1)), (S, ask(3, 1))
    )
    assert [queued_ns(cluster, rid) for rid in (2, 3, 4)] == [24 * MS, 48 * MS, 0]


def test_a_fetch_that_is_given_up_lets_the_next_one_move_up() -> None:
    storage = replace(STORAGE, policy="timeout", timeout_base_s=0.01, timeout_per_page_s=0.001)
    spec = stored(storage, num_pages=4000)
    timed = [(0, ask(1, 0, 5008)), (S, ask(1, 1, 5008)), (S, ask(2, 0, 400))]
    cluster = run(spec, *timed, (3 * S, ask(3, 1)))
    # 312 pages: a deadline of 322 ms is not reached.
    assert queued_ns(cluster, 1) == 312 * MS
    short = stored(replace(storage, timeout_per_page_s=0.0), num_pages=4000)
    cluster = run(short, (0, ask(1, 0, 5008)), (0, ask(2, 0)), (S, ask(1, 1, 5008)), (S, ask(2, 1)))
    # Both deadlines pass 10 ms after arrival; the first fetch ends with its batch at 128 ms.
    assert [cached(cluster, rid) for rid in (2, 3)] == [0, 0]
    lane = tree(cluster, 1).stats()[1]
    assert (lane.load_bytes, lane.load_ns) == (128_000, 128 * MS)
    assert lane.dropped_tokens == (312 + 24) * 16
    assert lane.lost_tokens is not None
    assert lane.lost_tokens["deadline"] == lane.dropped_tokens


def test_what_is_fetched_for_an_aborted_request_is_thrown_away() -> None:
    cluster = run(SPEC, (0, ask(1, 0)), (S, ask(1, 1)), (S + MS, Abort(1)), (2 * S, ask(1, 1)))
    assert not tree(cluster, 1).fetching
    assert tree(cluster, 1).stats()[1].dropped_tokens == 384
    assert cached(cluster, 2) == 384


def test_a_pool_of_limited_size_gives_up_what_was_used_longest_ago() -> None:
    small = stored(replace(STORAGE, contributed_pages=15))
    cluster = run(small, (0, ask(1, 0)), (S, ask(2, 0)), (2 * S, ask(2, 1)), (3 * S, ask(1, 1)))
    assert [cached(cluster, rid) for rid in (2, 3)] == [384, 0]
    assert tree(cluster, 0).stats()[1].capacity_tokens == 30 * 16
