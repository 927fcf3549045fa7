"""The laws of macro-steps, journal and conservation, for SGLang's scheduler."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frontier_mock.core.commands import Submit
from frontier_mock.core.events import Finished, FirstToken, Rejected
from frontier_mock.core.journal import from_lines, to_line
from frontier_mock.drive.offline import replay
from frontier_mock.serving.radix_cache import EVICTION_POLICIES
from frontier_mock.serving.schedulers.sglang_policy import POLICIES
from frontier_mock.serving.specs import SglangSchedulerSpec
from tests.engine import toy_cluster
from tests.laws.test_macro_steps import MODEL_LEN, commands, play


@st.composite
def schedulers(draw: st.DrawFn) -> SglangSchedulerSpec:
    page = draw(st.sampled_from([1, 1, 4, 16]))
    ranked = draw(st.booleans())
    return SglangSchedulerSpec(
        max_running_requests=draw(st.integers(1, 12)),
        context_length=MODEL_LEN,
        num_pages=MODEL_LEN // page + 4 + draw(st.integers(0, 2 * MODEL_LEN // page)),
        page_size=page,
        chunked_prefill_size=draw(st.sampled_from([-1, page, 2 * page, 32, 64, 8192])),
        max_prefill_tokens=draw(st.sampled_from([20, 100, 16384])),
        prefill_max_requests=draw(st.sampled_from([0, 0, 2])),
        schedule_policy=draw(st.sampled_from(POLICIES)),
        schedule_conservativeness=draw(st.sampled_from([0.1, 1.0, 2.0])),
        enable_mixed_chunk=draw(st.booleans()),
        enable_overlap=draw(st.booleans()),
        enable_radix_cache=draw(st.booleans()),
        radix_eviction_policy=draw(st.sampled_from(EVICTION_POLICIES)),
        enable_priority_scheduling=ranked,
        disable_priority_preemption=draw(st.booleans()),
        priority_scheduling_preemption_threshold=draw(st.sampled_from([0, 1, 10])),
        schedule_low_priority_values_first=draw(st.booleans()),
        retraction_policy=draw(st.sampled_from(["length", "length", "priority"])),
        max_queued_requests=draw(st.sampled_from([0, 0, 3])),
        classic=draw(st.booleans()),
    )


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_macro_steps_and_single_steps_give_the_same_log(data: st.DataObject) -> None:
    scheduler = data.draw(schedulers())
    timed = data.draw(commands(scheduler.page_size))
    workers = data.draw(st.integers(1, 2))
    frontend_s = data.draw(st.sampled_from([0.0, 0.0004]))
    macro = toy_cluster(scheduler, workers=workers, frontend_s=frontend_s)
    single = toy_cluster(scheduler, workers=workers, frontend_s=frontend_s, single_step=True)
    play(macro, timed)
    play(single, timed, check=True)
    assert macro.log.events == single.log.events
    assert macro.log.digest() == single.log.digest()
    for event in macro.log.events:
        if isinstance(event, Finished):
            times = macro.workers[event.worker].timeline.token_times_ns(event.spans)
            other = single.workers[event.worker].timeline.token_times_ns(event.spans)
            assert np.array_equal(times, other)
            assert np.all(np.diff(times) > 0)
    for left, right in zip(macro.workers, single.workers, strict=True):
        assert left.gauges(macro.now_ns) == right.gauges(single.now_ns)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_nothing_is_lost_and_no_page_leaks(data: st.DataObject) -> None:
    scheduler = data.draw(schedulers())
    timed = data.draw(commands(scheduler.page_size))
    cluster = toy_cluster(scheduler)
    play(cluster, timed)
    ended: dict[int, Finished | Rejected] = {}
    for event in cluster.log.events:
        if isinstance(event, Finished | Rejected):
            assert event.rid not in ended
            ended[event.rid] = event
    first_tokens = {e.rid: e.t_ns for e in cluster.log.events if isinstance(e, FirstToken)}
    submits = [command for _, command in timed if isinstance(command, Submit)]
    assert sorted(ended) == list(range(len(submits)))
    for rid, submit in enumerate(submits):
        end = ended[rid]
        if isinstance(end, Finished):
            assert sum(count for _, count in end.spans) == end.output_tokens
            if end.reason != "abort":
                assert end.output_tokens == submit.output_tokens
                assert end.reason == submit.finish_reason
            if end.output_tokens:
                token_times = cluster.workers[0].timeline.token_times_ns(end.spans)
                assert first_tokens[rid] == token_times[0]
                assert end.t_ns >= token_times[-1]
                if end.reason != "abort":
                    assert end.t_ns == token_times[-1]
    worker = cluster.workers[0]
    worker.kv.check()
    assert worker.kv.num_free == worker.kv.num_blocks
    assert worker.kv.reset()
    gauges = worker.gauges(cluster.now_ns)
    assert (gauges.running, gauges.waiting, gauges.kv_usage) == (0, 0, 0.0)
    times = [event.t_ns for event in cluster.log.events]
    assert times == sorted(times)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_looking_changes_nothing_and_the_journal_repeats_the_run(data: st.DataObject) -> None:
    scheduler = data.draw(schedulers())
    timed = data.draw(commands(scheduler.page_size))
    plain = toy_cluster(scheduler)
    play(plain, timed)
    watched = toy_cluster(scheduler)
    for t_ns, command in timed:
        while (boundary := watched.next_boundary(0)) is not None and boundary < t_ns:
            watched.advance_to(boundary)
            watched.workers[0].gauges(boundary)
        watched.feed(t_ns, command)
        watched.workers[0].gauges(t_ns)
    play(watched, [])
    assert watched.log.digest() == plain.log.digest()
    lines = [to_line(t_ns, command, scheduler.page_size) for t_ns, command in timed]
    assert replay(toy_cluster(scheduler), from_lines(lines)) == plain.log.digest()
