"""The laws hold while engines are paused, resumed and flushed; and what each of these does."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frontier_mock.core.commands import Change, Flush, Pause, Resume, Submit
from frontier_mock.core.events import Controlled, Finished, Preempted, Rejected, Scheduled
from frontier_mock.core.journal import from_lines, to_line
from frontier_mock.drive.offline import replay
from frontier_mock.serving.specs import AnySchedulerSpec, SchedulerSpec, SglangSchedulerSpec
from tests.engine import prompt, toy_cluster
from tests.laws import test_macro_steps as vllm
from tests.laws import test_sglang_macro_steps as sglang

VLLM = SchedulerSpec(
    max_num_seqs=8,
    max_num_batched_tokens=64,
    max_model_len=256,
    block_size=16,
    num_blocks=64,
)
SGLANG = SglangSchedulerSpec(
    max_running_requests=8, context_length=256, num_pages=64, page_size=16, chunked_prefill_size=64
)
MS = 1_000_000


def submit(name: int = 0, output: int = 40) -> Submit:
    return Submit(prompt(40, name, 16, 0), output_tokens=output, max_tokens=output)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_pauses_keep_every_law(data: st.DataObject) -> None:
    scheduler: AnySchedulerSpec = data.draw(st.one_of(vllm.schedulers(), sglang.schedulers()))
    block = scheduler.block_size
    timed = data.draw(vllm.commands(block, controls=True))
    frontend_s = data.draw(st.sampled_from([0.0, 0.0004]))
    macro = toy_cluster(scheduler, frontend_s=frontend_s)
    single = toy_cluster(scheduler, frontend_s=frontend_s, single_step=True)
    vllm.play(macro, timed)
    vllm.play(single, timed, check=True)
    assert macro.log.events == single.log.events
    ended = [e.rid for e in macro.log.events if isinstance(e, Finished | Rejected)]
    submits = sum(isinstance(command, Submit) for _, command in timed)
    assert sorted(ended) == list(range(submits))
    kv = macro.workers[0].kv
    kv.check()
    lines = [to_line(t_ns, command, block) for t_ns, command in timed]
    again = toy_cluster(scheduler, frontend_s=frontend_s)
    assert replay(again, from_lines(lines)) == macro.log.digest()


def happened(cluster_events: list[object], what: str) -> list[int]:
    return [e.t_ns for e in cluster_events if isinstance(e, Controlled) and e.what == what]


@pytest.mark.parametrize("spec", [VLLM, SGLANG])
def test_keep_stops_the_clock_of_a_sequence_and_nothing_else(spec: AnySchedulerSpec) -> None:
    plain = toy_cluster(spec)
    vllm.play(plain, [(0, submit())])
    paused = toy_cluster(spec)
    vllm.play(paused, [(0, submit()), (5 * MS, Pause(0)), (500 * MS, Resume(0))])
    events = list(paused.log.events)
    (rest_ns,) = happened(events, "rest")
    assert 5 * MS <= rest_ns < 500 * MS
    end, paused_end = plain.log.events[-1], paused.log.events[-1]
    assert isinstance(end, Finished)
    assert isinstance(paused_end, Finished)
    assert paused_end.output_tokens == end.output_tokens
    # Restarting an async pipeline costs nothing but the time that was slept.
    assert paused_end.t_ns - end.t_ns == 500 * MS - rest_ns
    assert not any(isinstance(e, Preempted) for e in events)


@pytest.mark.parametrize("spec", [VLLM, SGLANG])
def test_retract_computes_the_prompt_and_the_partial_output_again(spec: AnySchedulerSpec) -> None:
    cluster = toy_cluster(spec)
    timed = [(0, submit(i)) for i in range(3)]
    vllm.play(cluster, [*timed, (9 * MS, Pause(0, "retract")), (500 * MS, Resume(0))])
    events = cluster.log.events
    assert sum(isinstance(e, Preempted) for e in events) == 3
    resumed = [e.t_ns for e in events if isinstance(e, Scheduled) and e.resumed]
    assert len(resumed) == 3
    assert min(resumed) == 500 * MS
    assert all(e.output_tokens == 40 for e in events if isinstance(e, Finished))


@pytest.mark.parametrize("spec", [VLLM, SGLANG])
@pytest.mark.parametrize("refuse", [True, False])
def test_abort_ends_what_is_there_and_keeps_the_rest_outside(
    spec: AnySchedulerSpec, refuse: bool
) -> None:
    cluster = toy_cluster(spec)
    pause = Pause(0, "abort", refuse)
    vllm.play(
        cluster,
        [(0, submit()), (9 * MS, pause), (100 * MS, submit(1)), (500 * MS, Resume(0))],
    )
    events = cluster.log.events
    (rest_ns,) = happened(list(events), "rest")
    first = next(e for e in events if isinstance(e, Finished))
    assert (first.rid, first.reason) == (0, "abort")
    assert 0 < first.output_tokens < 40
    assert first.t_ns <= rest_ns < 100 * MS
    last = events[-1]
    if refuse:
        assert Rejected(100 * MS, 0, 1, "paused") in events
    else:
        assert isinstance(last, Finished)
        assert (last.rid, last.output_tokens) == (1, 40)
        assert last.t_ns > 500 * MS


@pytest.mark.parametrize("spec", [VLLM, SGLANG])
def test_finish_lets_everything_end_first(spec: AnySchedulerSpec) -> None:
    cluster = toy_cluster(spec, frontend_s=0.0004)
    vllm.play(
        cluster, [(0, submit()), (0, Pause(0, "finish")), (1, submit(1)), (900 * MS, Resume(0))]
    )
    events = cluster.log.events
    ends = [e for e in events if isinstance(e, Finished)]
    (rest_ns,) = happened(list(events), "rest")
    assert [e.rid for e in ends] == [0, 1]
    assert ends[0].t_ns == rest_ns < 900 * MS < ends[1].t_ns


@pytest.mark.parametrize("spec", [VLLM, SGLANG])
def test_a_flush_needs_an_idle_cache_or_a_retraction(spec: AnySchedulerSpec) -> None:
    cluster = toy_cluster(spec)
    cluster.feed(0, submit())
    assert cluster.feed(9 * MS, Flush(0)) == 0
    assert cluster.feed(9 * MS, Flush(0, retract=True)) == 1
    vllm.play(cluster, [])
    assert len(happened(list(cluster.log.events), "flush")) == 1
    again = [e for e in cluster.log.events if isinstance(e, Scheduled) and e.resumed]
    assert [e.cached_tokens for e in again] == [0]
    assert cluster.feed(cluster.now_ns, Flush(0)) == 1
    cluster.feed(cluster.now_ns, submit())
    vllm.play(cluster, [])
    assert [e.cached_tokens for e in cluster.log.events if isinstance(e, Scheduled)] == [0, 0, 0]


@pytest.mark.parametrize("spec", [VLLM, SGLANG])
def test_a_resume_lifts_the_pause_and_not_the_flush(spec: AnySchedulerSpec) -> None:
    cluster = toy_cluster(spec)
    cluster.feed(0, submit())
    cluster.feed(9 * MS, Pause(0, "keep"))
    assert cluster.feed(9 * MS, Flush(0, retract=True)) == 1
    cluster.feed(9 * MS, Resume(0))
    vllm.play(cluster, [])
    events = list(cluster.log.events)
    assert len(happened(events, "flush")) == 1
    again = [e for e in events if isinstance(e, Scheduled) and e.resumed]
    assert [e.cached_tokens for e in again] == [0]
    assert [e.rid for e in events if isinstance(e, Finished)] == [0]


@pytest.mark.parametrize("spec", [VLLM, SGLANG])
def test_only_a_recovery_ends_a_failure(spec: AnySchedulerSpec) -> None:
    cluster = toy_cluster(spec)
    vllm.play(
        cluster,
        [
            (0, Change(0, "fail")),
            (MS, Pause(0, "keep")),
            (2 * MS, Resume(0)),
            (3 * MS, submit(0)),
            (4 * MS, Change(0, "recover")),
            (5 * MS, submit(1)),
        ],
    )
    events = cluster.log.events
    assert [(e.rid, e.reason) for e in events if isinstance(e, Rejected)] == [(0, "failed")]
    assert [e.rid for e in events if isinstance(e, Finished)] == [1]
