"""The laws of the engine hold with speculative decoding: macro-steps, conservation, journal."""

from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.core.commands import Submit
from frontier_mock.core.events import Drafted, Finished, FirstToken, Rejected
from frontier_mock.core.journal import from_lines, to_line
from frontier_mock.drive.offline import replay
from frontier_mock.serving.specs import SchedulerSpec, SglangSchedulerSpec
from frontier_mock.serving.speculation import SpeculationSpec
from tests.engine import ranked_cluster, toy_cluster
from tests.laws.test_macro_steps import commands, play, schedulers
from tests.laws.test_sglang_macro_steps import schedulers as sglang_schedulers


@st.composite
def speculations(draw: st.DrawFn) -> SpeculationSpec:
    drafts = draw(st.integers(1, 5))
    rates = draw(
        st.lists(st.sampled_from([0.0, 0.3, 0.7, 0.9, 1.0]), min_size=drafts, max_size=drafts)
    )
    return SpeculationSpec(
        drafts,
        tuple(sorted(rates, reverse=True)),
        seed=draw(st.integers(0, 3)),
        proposed=draw(st.sampled_from([1.0, 1.0, 0.4])),
        lookahead=draw(st.sampled_from([0, drafts])),
        extra_slots=draw(st.sampled_from([0, 0, 1])),
    )


@st.composite
def drafted_schedulers(draw: st.DrawFn) -> SchedulerSpec:
    spec = draw(schedulers())
    speculation = draw(speculations())
    if spec.async_scheduling:
        speculation = replace(speculation, proposed=1.0)
    if speculation.extra_slots:
        # vLLM refuses a budget that does not pay for every sequence's slots.
        room = 2 * spec.max_num_seqs
        spec = replace(
            spec,
            max_num_batched_tokens=max(spec.max_num_batched_tokens, room),
            max_num_scheduled_tokens=0,
        )
        if not spec.enable_chunked_prefill:
            spec = replace(spec, max_num_batched_tokens=spec.max_num_batched_tokens + 1)
    return replace(spec, speculation=speculation)


@st.composite
def drafted_sglang(draw: st.DrawFn) -> SglangSchedulerSpec:
    spec = draw(sglang_schedulers())
    speculation = draw(speculations())
    width = speculation.num_drafts + 1 + draw(st.sampled_from([0, 0, 3]))
    speculation = replace(
        speculation, lookahead=0, extra_slots=0, reserve=2 * width, width=width, proposed=1.0
    )
    return replace(
        spec,
        speculation=speculation,
        num_pages=spec.num_pages + -(-speculation.reserve // spec.page_size),
        enable_mixed_chunk=False,
    )


def drafting() -> st.SearchStrategy[SchedulerSpec | SglangSchedulerSpec]:
    """An engine of either kind."""
    return st.one_of(drafted_schedulers(), drafted_sglang())


def token_times(cluster: Cluster) -> dict[int, np.ndarray]:
    """When each token of each sequence that ended was delivered."""
    bursts: dict[int, bytes] = {}
    times: dict[int, np.ndarray] = {}
    for event in cluster.log.events:
        if isinstance(event, Drafted):
            bursts[event.rid] = event.bursts
        elif isinstance(event, Finished):
            timeline = cluster.workers[event.worker].timeline
            times[event.rid] = timeline.token_times_ns(event.spans, bursts.get(event.rid, b""))
    return times


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_macro_steps_and_single_steps_give_the_same_log(data: st.DataObject) -> None:
    scheduler = data.draw(drafting())
    timed = data.draw(commands(scheduler.block_size, controls=data.draw(st.booleans())))
    workers = data.draw(st.integers(1, 2))
    macro = toy_cluster(scheduler, workers=workers)
    single = toy_cluster(scheduler, workers=workers, single_step=True)
    play(macro, timed)
    play(single, timed, check=True)
    assert macro.log.events == single.log.events
    theirs = token_times(single)
    for rid, mine in token_times(macro).items():
        assert np.array_equal(mine, theirs[rid])
        assert np.all(np.diff(mine) >= 0)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_nothing_is_lost_and_no_block_leaks(data: st.DataObject) -> None:
    scheduler = data.draw(drafting())
    timed = data.draw(commands(scheduler.block_size))
    cluster = toy_cluster(scheduler)
    play(cluster, timed)
    times = token_times(cluster)
    first_tokens = {e.rid: e.t_ns for e in cluster.log.events if isinstance(e, FirstToken)}
    submits = [command for _, command in timed if isinstance(command, Submit)]
    ended = {e.rid: e for e in cluster.log.events if isinstance(e, Finished | Rejected)}
    assert sorted(ended) == list(range(len(submits)))
    for rid, submit in enumerate(submits):
        end = ended[rid]
        if isinstance(end, Finished):
            assert len(times[rid]) == end.output_tokens
            if end.reason != "abort":
                assert end.output_tokens == submit.output_tokens
                assert end.reason == submit.finish_reason
                assert first_tokens[rid] == times[rid][0]
                assert end.t_ns == times[rid][-1]
    worker = cluster.workers[0]
    worker.kv.check()
    assert worker.kv.num_free == worker.kv.num_blocks
    assert worker.gauges(cluster.now_ns).kv_usage == 0.0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_looking_changes_nothing_and_the_journal_repeats_the_run(data: st.DataObject) -> None:
    scheduler = data.draw(drafting())
    timed = data.draw(commands(scheduler.block_size))
    plain = toy_cluster(scheduler, workers=2)
    play(plain, timed)
    watched = toy_cluster(scheduler, workers=2)
    for t_ns, command in timed:
        while (boundary := watched.next_boundary(0)) is not None and boundary < t_ns:
            watched.advance_to(boundary)
            watched.workers[0].gauges(boundary)
        watched.feed(t_ns, command)
        watched.workers[0].gauges(t_ns)
    play(watched, [])
    assert watched.log.digest() == plain.log.digest()
    lines = [to_line(t_ns, command, scheduler.block_size) for t_ns, command in timed]
    again = toy_cluster(scheduler, workers=2)
    assert replay(again, from_lines(lines)) == plain.log.digest()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_ranks_that_wait_for_each_other_lose_nothing(data: st.DataObject) -> None:
    scheduler = data.draw(drafting())
    timed = data.draw(commands(scheduler.block_size))
    cluster = ranked_cluster(scheduler, ranks=2)
    play(cluster, timed)
    times = token_times(cluster)
    for event in cluster.log.events:
        if isinstance(event, Finished):
            assert len(times[event.rid]) == event.output_tokens
    for worker in cluster.workers:
        assert worker.kv.num_free == worker.kv.num_blocks
