"""A host tier under SGLang's radix tree: what is copied, kept, brought back, and what it costs."""

from dataclasses import replace

import pytest

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.core.commands import Flush, Pause, Submit
from frontier_mock.core.events import Event, Fetched, Finished, FirstToken, Scheduled
from frontier_mock.core.prompt import KeyedPrompt
from frontier_mock.serving.specs import SglangSchedulerSpec
from frontier_mock.serving.tiers.host_radix import HostRadixCache
from frontier_mock.serving.tiers.specs import HostTierSpec, LaneSpec
from frontier_mock.serving.tiers.stats import TierStats
from tests.engine import toy_cluster
from tests.laws.test_macro_steps import play

MS = 1_000_000
S = 1_000 * MS
TIER = HostTierSpec(1000, 1000, LaneSpec(1e6, 0.0), LaneSpec(1e6, 0.0), layers=1)
"""A page of 16 tokens takes 1 ms either way."""

SPEC = SglangSchedulerSpec(
    max_running_requests=8,
    context_length=512,
    num_pages=37,
    page_size=16,
    enable_overlap=False,
    host_tier=TIER,
)


def ask(name: int, tokens: int = 400, output: int = 2) -> Submit:
    keys = b"".join((name * 1000 + i).to_bytes(8, "little") for i in range(tokens // 16))
    return Submit(KeyedPrompt(tokens, 16, keys), output, output)


def run(spec: SglangSchedulerSpec, *timed: tuple[int, Submit]) -> Cluster:
    cluster = toy_cluster(spec)
    play(cluster, list(timed), check=True)
    return cluster


def of(cluster: Cluster, rid: int) -> list[Event]:
    return [event for event in cluster.log.events if event.rid == rid]


def cached(cluster: Cluster, rid: int) -> int:
    return next(e.cached_tokens for e in of(cluster, rid) if isinstance(e, Scheduled))


def tree(cluster: Cluster) -> HostRadixCache:
    kv = cluster.workers[0].kv
    assert isinstance(kv, HostRadixCache)
    return kv


def stats(cluster: Cluster) -> TierStats:
    return tree(cluster).stats()[0]


def waited_ns(cluster: Cluster, rid: int) -> int:
    begun = next(e.t_ns for e in of(cluster, rid) if isinstance(e, Scheduled))
    return next(e.t_ns for e in of(cluster, rid) if isinstance(e, FirstToken)) - begun


THREE = ((0, ask(1)), (S, ask(2)), (2 * S, ask(1)))


def test_what_left_the_gpu_comes_back_from_the_host_in_the_step_that_needs_it() -> None:
    cluster = run(SPEC, *THREE)
    plain = run(replace(SPEC, host_tier=None), *THREE)
    # The last page of a prompt is computed again; leaves go whole.
    assert [cached(cluster, rid) for rid in range(3)] == [0, 0, 384]
    assert [cached(plain, rid) for rid in range(3)] == [0, 0, 0]
    (fetched,) = (e for e in of(cluster, 2) if isinstance(e, Fetched))
    assert (fetched.tier, fetched.tokens, fetched.num_bytes) == ("cpu", 384, 24_000)
    # One page is computed, after 24 ms of loading.
    assert 25 * MS < waited_ns(cluster, 2) < 26 * MS
    assert (stats(cluster).hit_tokens, stats(cluster).load_bytes) == (384, 24_000)


def test_layers_compute_while_the_next_ones_come() -> None:
    layered = run(replace(SPEC, host_tier=replace(TIER, layers=32)), *THREE)
    assert 24 * MS < waited_ns(layered, 2) < 24.1 * MS


def test_fewer_than_ten_tokens_are_computed_and_become_the_gpus_copy() -> None:
    few = replace(SPEC, page_size=1, num_pages=600)
    keys = bytes(range(72))
    prompt = Submit(KeyedPrompt(9, 1, keys), 1, 1)
    flood = [(i * S, Submit(KeyedPrompt(480, 1, bytes([i]) * 3840), 2, 2)) for i in (1, 2)]
    cluster = toy_cluster(few)
    play(cluster, [(0, prompt), *flood], check=True)
    _, pages, below = tree(cluster).match_all(keys, 9)
    assert (pages, below.pages) == (0, 9)
    play(cluster, [(3 * S, prompt)], check=True)
    assert not [e for e in cluster.log.events if isinstance(e, Fetched)]
    _, pages, below = tree(cluster).match_all(keys, 9)
    assert (pages, below.pages) == (9, 0)


@pytest.mark.parametrize(("threshold", "pages"), [(1, 25), (2, 0)])
def test_selective_writing_waits_for_the_second_use(threshold: int, pages: int) -> None:
    spec = replace(SPEC, host_tier=replace(TIER, threshold=threshold))
    assert tree(run(spec, (0, ask(1)))).host_used == pages
    assert tree(run(spec, (0, ask(1)), (S, ask(1)))).host_used >= 24


def test_copies_lock_what_they_read_until_they_end() -> None:
    slow = replace(SPEC, host_tier=replace(TIER, store=LaneSpec(1e4, 0.0)))
    cluster = toy_cluster(slow)
    cluster.feed(0, ask(1))
    cluster.feed(50 * MS, ask(2))
    cluster.advance_to(2 * S)
    # 25 pages are copied for 2.5 s, and the other prompt does not fit beside them.
    assert tree(cluster).num_protected == 25
    assert cluster.workers[0].gauges(2 * S).waiting == 1
    cluster.advance_to(10 * S)
    begun = next(e.t_ns for e in of(cluster, 1) if isinstance(e, Scheduled))
    assert 2500 * MS < begun < 2520 * MS
    tree(cluster).check()


def test_the_host_gives_up_what_was_used_longest_ago() -> None:
    small = replace(SPEC, host_tier=replace(TIER, num_pages=60))
    cluster = run(
        small, (0, ask(1)), (S, ask(2)), (2 * S, ask(3)), (3 * S, ask(1)), (4 * S, ask(3))
    )
    assert [cached(cluster, rid) for rid in (3, 4)] == [0, 384]


def test_a_host_without_room_copies_nothing() -> None:
    none = replace(SPEC, host_tier=replace(TIER, num_pages=10))
    cluster = run(none, *THREE)
    assert cached(cluster, 2) == 0
    assert stats(cluster).dropped_tokens >= 3 * 400


def test_copies_begin_though_a_pause_keeps_from_deciding_more() -> None:
    cluster = toy_cluster(SPEC)
    cluster.feed(0, ask(1, output=1))
    cluster.feed(1, Pause(0, "keep"))
    play(cluster, [])
    # The step that was executing is the last one, and ends the prompt.
    assert isinstance(of(cluster, 0)[-1], Finished)
    assert stats(cluster).stores == 1
    assert not tree(cluster).copying
    assert tree(cluster).num_free == tree(cluster).num_blocks
    assert cluster.feed(S, Flush(0)) == 1
