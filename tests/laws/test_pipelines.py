"""The laws of engines with pipeline stages, whose batches are several in flight."""

from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frontier_mock.core.commands import Submit
from frontier_mock.core.events import Finished, FirstToken, Rejected
from frontier_mock.core.journal import from_lines, to_line
from frontier_mock.drive.offline import replay
from frontier_mock.serving.specs import AnySchedulerSpec
from tests.engine import toy_cluster
from tests.laws.test_macro_steps import commands, play
from tests.laws.test_macro_steps import schedulers as vllm_schedulers
from tests.laws.test_sglang_macro_steps import schedulers as sglang_schedulers


@st.composite
def schedulers(draw: st.DrawFn) -> AnySchedulerSpec:
    stages = draw(st.integers(2, 4))
    if draw(st.booleans()):
        return replace(draw(vllm_schedulers()), pipeline_stages=stages)
    return replace(
        draw(sglang_schedulers()),
        enable_overlap=False,
        pipeline_stages=stages,
        pp_max_micro_batch_size=draw(st.sampled_from([0, 0, 1, 3])),
        pp_async_batch_depth=draw(st.sampled_from([0, 0, 1])),
    )


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_macro_steps_and_single_steps_give_the_same_log(data: st.DataObject) -> None:
    scheduler = data.draw(schedulers())
    timed = data.draw(commands(scheduler.block_size, controls=data.draw(st.booleans())))
    frontend_s = data.draw(st.sampled_from([0.0, 0.0004]))
    macro = toy_cluster(scheduler, frontend_s=frontend_s)
    single = toy_cluster(scheduler, frontend_s=frontend_s, single_step=True)
    play(macro, timed)
    play(single, timed, check=True)
    assert macro.log.events == single.log.events
    assert macro.log.digest() == single.log.digest()
    for event in macro.log.events:
        if isinstance(event, Finished):
            times = macro.workers[0].timeline.token_times_ns(event.spans)
            other = single.workers[0].timeline.token_times_ns(event.spans)
            assert np.array_equal(times, other)
            assert np.all(np.diff(times) > 0)
    one, other_one = macro.workers[0], single.workers[0]
    assert one.gauges(macro.now_ns) == other_one.gauges(single.now_ns)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_nothing_is_lost_and_no_block_leaks(data: st.DataObject) -> None:
    scheduler = data.draw(schedulers())
    timed = data.draw(commands(scheduler.block_size))
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
        if not isinstance(end, Finished):
            continue
        assert sum(count for _, count in end.spans) == end.output_tokens
        if end.output_tokens:
            token_times = cluster.workers[0].timeline.token_times_ns(end.spans)
            assert first_tokens[rid] == token_times[0]
            assert end.t_ns >= token_times[-1]
        if end.reason != "abort":
            assert end.output_tokens == submit.output_tokens
            assert end.reason == submit.finish_reason
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
    timed = data.draw(commands(scheduler.block_size, controls=data.draw(st.booleans())))
    plain = toy_cluster(scheduler)
    play(plain, timed)
    watched = toy_cluster(scheduler)
    alive: set[int] = set()
    for t_ns, command in timed:
        while (boundary := watched.next_boundary(0)) is not None and boundary < t_ns:
            watched.advance_to(boundary)
            watched.workers[0].gauges(boundary)
            ended = {e.rid for e in watched.log.events if isinstance(e, Finished | Rejected)}
            for rid in sorted(alive - ended):
                produced = watched.tokens(rid)
                assert produced <= len(watched.token_times_ns(rid)) <= produced + 1
        rid = watched.feed(t_ns, command)
        watched.workers[0].gauges(t_ns)
        if isinstance(command, Submit):
            alive.add(rid)
    play(watched, [])
    assert watched.log.digest() == plain.log.digest()
    lines = [to_line(t_ns, command, scheduler.block_size) for t_ns, command in timed]
    assert replay(toy_cluster(scheduler), from_lines(lines)) == plain.log.digest()
