from dataclasses import replace

import pytest

from frontier_mock.core.commands import Abort, Submit
from frontier_mock.core.events import Finished, FirstToken, Queued, Rejected, Scheduled
from frontier_mock.serving.specs import AnySchedulerSpec, SchedulerSpec, SglangSchedulerSpec
from tests.engine import prompt, toy_cluster

SCHEDULER = SchedulerSpec(
    max_num_seqs=8, max_num_batched_tokens=512, max_model_len=512, num_blocks=64
)


def test_time_does_not_run_backwards() -> None:
    cluster = toy_cluster(SCHEDULER)
    cluster.advance_to(10)
    with pytest.raises(ValueError, match="cannot go back from 10 ns to 9 ns"):
        cluster.advance_to(9)


def test_the_front_end_delays_by_length() -> None:
    cluster = toy_cluster(SCHEDULER, frontend_s=0.001)
    cluster.feed(0, Submit(prompt(100, 0, 16), 1, 1))
    cluster.advance_to(10**9)
    queued = next(event for event in cluster.log.events if isinstance(event, Queued))
    assert queued.t_ns == 1_000_000 + 100 * 1000


def test_too_long_and_too_many_are_rejected_and_counted() -> None:
    cluster = toy_cluster(replace(SCHEDULER, max_num_queued_reqs=1), frontend_s=0.001)
    cluster.feed(0, Submit(prompt(512, 0, 16), 1, 1))
    cluster.feed(0, Submit(prompt(10, 1, 16), 1, 1))
    cluster.feed(0, Submit(prompt(10, 2, 16), 1, 1))
    reasons = [event.reason for event in cluster.log.events if isinstance(event, Rejected)]
    assert reasons == ["prompt_too_long", "queue_full"]


def test_tokens_can_be_watched_as_they_appear() -> None:
    cluster = toy_cluster(SCHEDULER)
    rid = cluster.feed(0, Submit(prompt(100, 0, 16), 20, 20))
    cluster.advance_to(0)
    seen = []
    while (boundary := cluster.next_boundary(0)) is not None:
        cluster.advance_to(boundary)
        if cluster.next_time() is not None:
            seen.append(cluster.tokens(rid))
            assert len(cluster.token_times_ns(rid)) == seen[-1]
            assert cluster.token_times_ns(rid)[-1] == boundary
    assert seen == list(range(1, 20))


@pytest.mark.parametrize(
    "scheduler",
    [SCHEDULER, SglangSchedulerSpec(8, 512, num_pages=256, page_size=16)],
    ids=["vllm", "sglang"],
)
def test_trimming_leaves_what_unfinished_sequences_need(
    scheduler: AnySchedulerSpec,
) -> None:
    cluster, untouched = toy_cluster(scheduler), toy_cluster(scheduler)
    rids = []
    for i in range(40):
        t_ns = i * 7_000_000
        rids.append(cluster.feed(t_ns, submit := Submit(prompt(40, i, 16), 3 + 5 * (i % 9), 50)))
        untouched.feed(t_ns, submit)
        cluster.trim()
        ended = {event.rid for event in cluster.log.events if isinstance(event, Finished)}
        for rid in rids:
            if rid not in ended:
                times_ns = untouched.token_times_ns(rid).tolist()
                assert cluster.token_times_ns(rid).tolist() == times_ns
    assert cluster.workers[0].timeline.dropped_steps > 50
    cluster.advance_to(10**10)
    untouched.advance_to(10**10)
    assert cluster.log.digest() == untouched.log.digest()


def test_an_abort_takes_effect_before_the_next_boundarys_tokens_and_frees_all() -> None:
    cluster = toy_cluster(SCHEDULER)
    rid = cluster.feed(0, Submit(prompt(100, 0, 16), 300, 300))
    cluster.advance_to(50_000_000)
    before = cluster.tokens(rid)
    boundary = cluster.next_boundary(0)
    cluster.feed(50_000_000, Abort(rid))
    cluster.advance_to(10**9)
    end = cluster.log.events[-1]
    assert isinstance(end, Finished)
    assert (end.t_ns, end.reason, end.output_tokens) == (boundary, "abort", before)
    assert cluster.workers[0].kv.num_free == 64


def test_async_lag_a_request_joins_the_step_after_the_one_already_scheduled() -> None:
    cluster = toy_cluster(SCHEDULER)
    cluster.feed(0, Submit(prompt(16, 0, 16), 100, 100))
    cluster.advance_to(10_500_000)
    executing_ends = cluster.next_boundary(0)
    assert executing_ends is not None
    cluster.feed(10_500_000, Submit(prompt(16, 1, 16), 100, 100))
    cluster.advance_to(10**8)
    scheduled = [e for e in cluster.log.events if isinstance(e, Scheduled)][1]
    first = [e for e in cluster.log.events if isinstance(e, FirstToken)][1]
    assert scheduled.t_ns == executing_ends
    timeline = cluster.workers[0].timeline
    step = timeline.last_step_ended_by(executing_ends)
    assert first.t_ns == timeline.boundary_ns(step + 2)
