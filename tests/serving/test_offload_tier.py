"""A CPU tier under vLLM's scheduler: what is stored, found, waited for, and what it costs."""

from dataclasses import replace

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.core.commands import Abort, Flush, Submit
from frontier_mock.core.events import Event, Fetched, Finished, FirstToken, Scheduled
from frontier_mock.core.prompt import KeyedPrompt
from frontier_mock.serving.specs import SchedulerSpec
from frontier_mock.serving.tiers.specs import LaneSpec, OffloadSpec
from tests.engine import toy_cluster
from tests.laws.test_macro_steps import play
from tests.laws.test_tiers import offload_of

MS = 1_000_000
TIER = OffloadSpec("OffloadingConnector", 1000, 1000, LaneSpec(1e6, 0.0), LaneSpec(1e6, 0.0))
"""A block of 16 tokens takes 1 ms either way."""

SPEC = SchedulerSpec(
    max_num_seqs=8,
    max_num_batched_tokens=512,
    max_model_len=512,
    block_size=16,
    num_blocks=33,
    async_scheduling=False,
    offload=TIER,
)
S = 1_000 * MS


def ask(name: int, tokens: int = 400, output: int = 2) -> Submit:
    keys = b"".join((name * 1000 + i).to_bytes(8, "little") for i in range(tokens // 16))
    return Submit(KeyedPrompt(tokens, 16, keys), output, output)


def run(spec: SchedulerSpec, *timed: tuple[int, Submit | Abort | Flush]) -> Cluster:
    cluster = toy_cluster(spec)
    play(cluster, list(timed))
    return cluster


def of(cluster: Cluster, rid: int) -> list[Event]:
    return [event for event in cluster.log.events if event.rid == rid]


def cached(cluster: Cluster, rid: int) -> int:
    return next(e.cached_tokens for e in of(cluster, rid) if isinstance(e, Scheduled))


def test_what_the_gpu_has_lost_is_fetched_and_the_request_waits_for_it() -> None:
    cluster = run(SPEC, (0, ask(1)), (S, ask(2)), (2 * S, ask(1)))
    assert [cached(cluster, rid) for rid in range(3)] == [0, 0, 400]
    (fetched,) = (e for e in of(cluster, 2) if isinstance(e, Fetched))
    # Seven blocks of the first prompt are still on the GPU: 33 less 26 of the second one's.
    assert (fetched.tokens, fetched.num_bytes) == (288, 18_000)
    begun = next(e for e in of(cluster, 2) if isinstance(e, Scheduled))
    assert begun.t_ns - fetched.t_ns == 18 * MS
    first = next(e for e in of(cluster, 2) if isinstance(e, FirstToken))
    assert first.t_ns - begun.t_ns < 2 * MS, "its last token alone is computed"
    (stats,) = offload_of(cluster).stats()
    assert (stats.hit_tokens, stats.load_bytes, stats.store_bytes) == (288, 18_000, 50_000)


def test_without_a_tier_the_same_is_computed_again() -> None:
    cluster = run(replace(SPEC, offload=None), (0, ask(1)), (S, ask(2)), (2 * S, ask(1)))
    assert cached(cluster, 2) == 112


def test_a_request_waits_until_what_it_needs_is_stored_and_others_pass_it() -> None:
    slow = replace(SPEC, offload=replace(TIER, store=LaneSpec(1e4, 0.0)))
    # The first prompt is stored for 2.5 s from its step on; the second pushes it out of the GPU.
    cluster = run(
        slow, (0, ask(1)), (100 * MS, ask(2, 500)), (200 * MS, ask(1)), (201 * MS, ask(3, 16))
    )
    (fetched,) = (e for e in of(cluster, 2) if isinstance(e, Fetched))
    assert 2500 * MS < fetched.t_ns < 2600 * MS
    passed = next(e for e in of(cluster, 3) if isinstance(e, Finished))
    assert passed.t_ns < 300 * MS


def test_two_that_need_the_same_load_it_once() -> None:
    spec, one = replace(SPEC, num_blocks=60), ask(1, 401)
    flood = [(i * S, ask(i, 500)) for i in (2, 3)]
    cluster = run(spec, (0, one), *flood, (4 * S, one), (4 * S + MS, one))
    (fetched,) = (e for e in cluster.log.events if isinstance(e, Fetched))
    assert (fetched.rid, fetched.tokens) == (3, 400)
    assert [cached(cluster, rid) for rid in (3, 4)] == [400, 400]
    begun = [e.t_ns for e in cluster.log.events if isinstance(e, Scheduled)][-2:]
    assert begun[1] - begun[0] <= 2 * MS, "the second has waited for the first one's load"


def test_the_block_of_the_last_token_is_fetched_although_the_gpu_has_it() -> None:
    cluster = run(SPEC, (0, ask(1)), (S, ask(1)))
    (fetched,) = (e for e in cluster.log.events if isinstance(e, Fetched))
    assert (fetched.tokens, cached(cluster, 1)) == (16, 400)


def test_one_that_leaves_while_it_waits_leaves_nothing_behind() -> None:
    cluster = run(SPEC, (0, ask(1)), (S, ask(2)), (2 * S, ask(1)), (2 * S + 5 * MS, Abort(2)))
    end = of(cluster, 2)[-1]
    assert isinstance(end, Finished)
    assert (end.reason, end.t_ns) == ("abort", 2 * S + 5 * MS)
    kv = cluster.workers[0].kv
    assert kv.num_free == kv.num_blocks
    assert offload_of(cluster).pool.num_held == 50


def test_lmcache_makes_the_step_wait_instead() -> None:
    spec = replace(SPEC, offload=replace(TIER, blocking=True, whole_prefix=True))
    cluster = run(spec, (0, ask(1)), (S, ask(2)), (2 * S, ask(1)))
    begun = next(e for e in of(cluster, 2) if isinstance(e, Scheduled))
    first = next(e for e in of(cluster, 2) if isinstance(e, FirstToken))
    assert (begun.t_ns, begun.cached_tokens) == (2 * S, 399)
    assert 18 * MS < first.t_ns - begun.t_ns < 20 * MS


def test_output_is_stored_only_if_asked_for() -> None:
    for prompt_only, blocks in ((True, 2), (False, 6)):
        tier = replace(TIER, offload_prompt_only=prompt_only)
        cluster = run(replace(SPEC, offload=tier), (0, ask(1, 32, 70)))
        assert offload_of(cluster).pool.num_held == blocks


def test_a_chunk_is_stored_when_offered_often_enough() -> None:
    spec = replace(SPEC, offload=replace(TIER, store_threshold=2))
    cluster = run(spec, (0, ask(1, 64)), (S, ask(2, 64)), (2 * S, ask(1, 64)))
    (stats,) = offload_of(cluster).stats()
    assert (stats.held_tokens, stats.dropped_tokens) == (64, 128)


def test_a_reset_of_the_external_cache_empties_the_tier_and_lets_waiters_go_on() -> None:
    slow = replace(SPEC, offload=replace(TIER, store=LaneSpec(1e4, 0.0)))
    story = (0, ask(1)), (100 * MS, ask(2, 500)), (200 * MS, ask(1))
    cluster = run(slow, *story, (300 * MS, Flush(0, below=True)))
    assert not [e for e in cluster.log.events if isinstance(e, Fetched)]
    begun = next(e.t_ns for e in of(cluster, 2) if isinstance(e, Scheduled))
    assert begun == 300 * MS + 1
    again = run(SPEC, (0, ask(1)), (S, Flush(0, below=True)), (2 * S, ask(1)))
    assert cached(again, 1) == 0
