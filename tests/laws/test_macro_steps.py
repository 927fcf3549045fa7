"""The macro-step law: stepping by thousands and one by one tell the same story."""

from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.cluster.routing import POLICIES
from frontier_mock.core.commands import (
    PAUSE_MODES,
    Abort,
    Command,
    Flush,
    Pause,
    Resume,
    Slow,
    Storage,
    Submit,
)
from frontier_mock.core.events import Finished, FirstToken, Rejected
from frontier_mock.core.journal import from_lines, to_line
from frontier_mock.drive.offline import replay
from frontier_mock.serving.specs import SchedulerSpec
from tests.engine import prompt, toy_cluster

MODEL_LEN = 256


@st.composite
def schedulers(draw: st.DrawFn) -> SchedulerSpec:
    block = draw(st.sampled_from([1, 4, 16]))
    max_seqs = draw(st.integers(1, 12))
    chunked = draw(st.booleans())
    budget = draw(st.integers(max_seqs, 96)) if chunked else MODEL_LEN
    return SchedulerSpec(
        max_num_seqs=max_seqs,
        max_num_batched_tokens=budget,
        max_model_len=MODEL_LEN,
        block_size=block,
        num_blocks=MODEL_LEN // block + draw(st.integers(0, 2 * MODEL_LEN // block)),
        enable_prefix_caching=draw(st.booleans()),
        enable_chunked_prefill=chunked,
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 8, 40])),
        policy=draw(st.sampled_from(["fcfs", "priority"])),
        async_scheduling=draw(st.booleans()),
        watermark=draw(st.sampled_from([0.0, 0.1])),
        reserve_full_isl=draw(st.booleans()),
        max_num_queued_reqs=draw(st.sampled_from([0, 0, 3])),
        max_num_queued_tokens=draw(st.sampled_from([None, None, 200])),
        max_num_scheduled_tokens=draw(st.sampled_from([0, 0, 5, 16])) if chunked else 0,
        max_num_active_seqs=draw(st.sampled_from([0, 0, 1])),
        long_prefill_token_threshold_adaptive=draw(st.booleans()),
        prefill_schedule_interval=draw(st.sampled_from([1, 1, 2, 7])),
    )


@st.composite
def commands(draw: st.DrawFn, block: int, *, controls: bool = False) -> list[tuple[int, Command]]:
    timed: list[tuple[int, Command]] = []
    now = 0
    submitted = 0
    for _ in range(draw(st.integers(1, 24))):
        now += draw(st.sampled_from([0, 1, 1000, 700_000, 1_000_123, 9_000_000, 200_000_000]))
        if submitted and draw(st.integers(0, 5)) == 0:
            timed.append((now, Abort(draw(st.integers(0, submitted)))))
            continue
        if controls and draw(st.integers(0, 3)) == 0:
            timed.append((now, draw(control_commands())))
            continue
        length = draw(st.integers(1, 180))
        output = draw(st.integers(1, 110))
        shared = draw(st.sampled_from([0, 2, 9]))
        timed.append(
            (
                now,
                Submit(
                    prompt=prompt(length, draw(st.integers(0, 3)), block, shared),
                    output_tokens=output,
                    max_tokens=output + draw(st.sampled_from([0, 5])),
                    finish_reason=draw(st.sampled_from(["length", "stop"])),
                    priority=draw(st.integers(0, 2)),
                    reads_cache=draw(st.integers(0, 5)) > 0,
                ),
            )
        )
        submitted += 1
    if controls:
        timed.append((now + draw(st.sampled_from([0, 1_000_000, 10**9])), Resume(0)))
    return timed


def control_commands() -> st.SearchStrategy[Command]:
    """What an operator may ask of worker 0."""
    return st.one_of(
        st.builds(Pause, st.just(0), st.sampled_from(PAUSE_MODES), st.booleans()),
        st.builds(Resume, st.just(0)),
        st.builds(Flush, st.just(0), st.booleans(), st.booleans()),
        st.builds(Slow, st.just(0), st.sampled_from([0, 1_000, 7_000_000])),
        st.builds(
            Storage,
            st.just(0),
            st.sampled_from(["attach", "detach", "clear"]),
            st.sampled_from(["", "wait_complete"]),
        ),
    )


def play(cluster: Cluster, timed: list[tuple[int, Command]], check: bool = False) -> None:
    for t_ns, command in timed:
        cluster.feed(t_ns, command)
    steps = 0
    while (next_ns := cluster.next_time()) is not None:
        assert next_ns >= cluster.now_ns
        cluster.advance_to(next_ns)
        steps += 1
        assert steps < 20_000, "the run does not end"
        if check:
            for worker in cluster.workers:
                worker.kv.check()


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_macro_steps_and_single_steps_give_the_same_log(data: st.DataObject) -> None:
    scheduler = data.draw(schedulers())
    timed = data.draw(commands(scheduler.block_size))
    workers = data.draw(st.integers(1, 2))
    frontend_s = data.draw(st.sampled_from([0.0, 0.0004]))
    policy = data.draw(st.sampled_from(POLICIES))
    macro = toy_cluster(scheduler, workers=workers, frontend_s=frontend_s, policy=policy)
    single = toy_cluster(
        scheduler, workers=workers, frontend_s=frontend_s, policy=policy, single_step=True
    )
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
        if isinstance(end, Finished):
            assert sum(count for _, count in end.spans) == end.output_tokens
            if end.reason != "abort":
                assert end.output_tokens == submit.output_tokens
                assert end.reason == submit.finish_reason
            if end.output_tokens and end.reason != "abort":
                token_times = cluster.workers[0].timeline.token_times_ns(end.spans)
                assert first_tokens[rid] == token_times[0]
                assert end.t_ns == token_times[-1]
    worker = cluster.workers[0]
    worker.kv.check()
    assert worker.kv.num_free == worker.kv.num_blocks
    gauges = worker.gauges(cluster.now_ns)
    assert (gauges.running, gauges.waiting, gauges.kv_usage) == (0, 0, 0.0)
    times = [event.t_ns for event in cluster.log.events]
    assert times == sorted(times)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_looking_changes_nothing_and_the_journal_repeats_the_run(data: st.DataObject) -> None:
    scheduler = data.draw(schedulers())
    timed = data.draw(commands(scheduler.block_size))
    policy = data.draw(st.sampled_from(POLICIES))
    plain = toy_cluster(scheduler, workers=2, policy=policy)
    play(plain, timed)
    watched = toy_cluster(scheduler, workers=2, policy=policy)
    for t_ns, command in timed:
        while (boundary := watched.next_boundary(0)) is not None and boundary < t_ns:
            watched.advance_to(boundary)
            watched.workers[0].gauges(boundary)
        watched.feed(t_ns, command)
        watched.workers[0].gauges(t_ns)
    play(watched, [])
    assert watched.log.digest() == plain.log.digest()
    lines = [to_line(t_ns, command, scheduler.block_size) for t_ns, command in timed]
    again = toy_cluster(replace(scheduler), workers=2, policy=policy)
    assert replay(again, from_lines(lines)) == plain.log.digest()
