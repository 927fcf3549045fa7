"""Engines with pipeline stages against what is known of pipelines."""

from fractions import Fraction

import numpy as np
import pytest

from frontier_mock.cluster.build import build_cluster
from frontier_mock.cluster.cluster import Cluster
from frontier_mock.cluster.specs import ClusterSpec, WorkerSpec
from frontier_mock.core.commands import Abort, Submit
from frontier_mock.core.events import Finished, FirstToken
from frontier_mock.cost.protocol import DecodeLine
from frontier_mock.serving.pipelined import PipelinedWorker
from frontier_mock.serving.specs import SchedulerSpec
from tests.engine import prompt, step_spec

MS = 1_000_000


class Stage:
    """1 ms a step, whatever is in it."""

    def decode(self, num_seqs: int, kv_tokens: int) -> DecodeLine:
        return DecodeLine(float(MS), 0.0, 1 << 60)

    def mixed(self, num_decodes: int, decode_kv_tokens: int, chunks: object) -> int:
        return MS


class Stages(Stage):
    """Equal stages, and nothing else that takes time."""

    def __init__(self, stages: int) -> None:
        self.stages = tuple(Stage() for _ in range(stages))
        self.gap_ns = 0.0

    def cpu_ns(self, rows: int) -> float:
        return 0.0

    def hop_ns(self, stage: int, tokens: int) -> float:
        return 0.0


def cluster_of(stages: int, *, ahead: bool = True, seqs: int = 64) -> Cluster:
    scheduler = SchedulerSpec(
        max_num_seqs=seqs,
        max_num_batched_tokens=64,
        max_model_len=100_000,
        num_blocks=100_000,
        enable_prefix_caching=False,
        async_scheduling=ahead,
        pipeline_stages=stages,
    )
    worker = WorkerSpec("w", 8000, "colocated", "toy", step_spec(), scheduler)
    return build_cluster(ClusterSpec((worker,), "round_robin", 0), [Stages(stages)])


def started(stages: int, *, ahead: bool = True) -> Cluster:
    """An engine that looks at its queue `stages` ms from now: it is busy with somebody's token."""
    cluster = cluster_of(stages, ahead=ahead)
    cluster.feed(0, submit(16, 1, 99))
    return cluster


def submit(tokens: int, output: int, name: int = 0) -> Submit:
    return Submit(prompt(tokens, name, 16), output_tokens=output, max_tokens=output)


def run(cluster: Cluster, until_ns: int | None = None) -> int:
    """Wake-ups until nothing is left."""
    wakes = 0
    while (next_ns := cluster.next_time()) is not None and (until_ns is None or next_ns < until_ns):
        cluster.advance_to(next_ns)
        wakes += 1
    return wakes


def pipelined(cluster: Cluster) -> PipelinedWorker:
    worker = cluster.workers[0]
    assert isinstance(worker, PipelinedWorker)
    return worker


@pytest.mark.parametrize("stages", [2, 4])
@pytest.mark.parametrize("ahead", [False, True])
def test_the_classical_bubble(stages: int, *, ahead: bool) -> None:
    """Prompts that fill a batch each are m micro-batches: (p - 1) / (m + p - 1) of the time of
    every stage is bubbles."""
    count = 12
    cluster = started(stages, ahead=ahead)
    for name in range(count):
        cluster.feed(0, submit(64, 1, name))
    run(cluster)
    total_ns = cluster.now_ns - stages * MS
    assert total_ns == (count + stages - 1) * MS
    for all_ns in pipelined(cluster).stages_busy_ns(cluster.now_ns):
        busy_ns = all_ns - MS
        assert Fraction(total_ns - busy_ns, total_ns) == Fraction(stages - 1, count + stages - 1)


@pytest.mark.parametrize("ahead", [False, True])
def test_chunks_of_one_prompt_follow_each_other_through_the_stages(*, ahead: bool) -> None:
    cluster = cluster_of(4, ahead=ahead)
    cluster.feed(0, submit(640, 1))
    run(cluster)
    assert cluster.now_ns == (10 + 3) * MS


@pytest.mark.parametrize("ahead", [False, True])
def test_a_request_alone_decodes_at_the_pipelines_latency(*, ahead: bool) -> None:
    cluster = cluster_of(4, ahead=ahead)
    cluster.feed(0, submit(16, 50))
    run(cluster)
    assert cluster.now_ns == 50 * 4 * MS


@pytest.mark.parametrize("ahead", [False, True])
def test_lanes_that_are_all_full_decode_one_after_the_other(*, ahead: bool) -> None:
    """Each of four prompts fills a step: each decodes in a lane of its own, none waits."""
    cluster = started(4, ahead=ahead)
    for name in range(4):
        cluster.feed(0, submit(64, 101, name))
    run(cluster)
    ends = [event.t_ns for event in cluster.log.events if isinstance(event, Finished)]
    assert ends[1:] == [(4 + 4 * 101 + lane) * MS for lane in range(4)]
    # All bubbles are from filling and draining.
    assert pipelined(cluster).stages_busy_ns(cluster.now_ns) == [405 * MS] * 4


def test_requests_that_start_together_leave_the_other_lanes_empty() -> None:
    """What vLLM is known for: one step takes in all prompts, and all of them decode in its lane."""
    cluster = started(4)
    for name in range(4):
        cluster.feed(0, submit(16, 101, name))
    run(cluster)
    assert cluster.now_ns == (4 + 4 * 101) * MS


def test_a_long_output_costs_no_more_wake_ups_than_a_short_one() -> None:
    wakes = []
    for output in (300, 60_000):
        cluster = started(4)
        for name in range(4):
            cluster.feed(0, submit(64, output, name))
        wakes.append(run(cluster))
        for event in cluster.log.events:
            if isinstance(event, Finished):
                times = cluster.workers[0].timeline.token_times_ns(event.spans)
                assert np.all(np.diff(times) == 4 * MS)
    assert wakes[1] == wakes[0] < 60


def test_an_abort_takes_what_is_in_flight_with_it() -> None:
    cluster = started(4)
    for name in range(4):
        cluster.feed(0, submit(64, 1000, name))
    cluster.feed(100 * MS + 1, Abort(2))
    run(cluster)
    ends = {e.rid: e for e in cluster.log.events if isinstance(e, Finished)}
    # The step that leaves the pipeline next is that of another lane.
    assert ends[2].t_ns == 101 * MS
    firsts = {e.rid: e.t_ns for e in cluster.log.events if isinstance(e, FirstToken)}
    assert ends[2].output_tokens == (100 * MS - firsts[2]) // (4 * MS) + 1
    assert all(ends[rid].output_tokens == 1000 for rid in (1, 3, 4))
    cluster.workers[0].kv.check()


def test_what_is_produced_by_now_is_what_has_left_the_last_stage() -> None:
    cluster = started(4)
    rids = [cluster.feed(0, submit(64, 1000, name)) for name in range(4)]
    run(cluster, 9 * MS)
    for now_ns in (100 * MS, 101 * MS, 101 * MS + 1, 102 * MS - 1, 500 * MS):
        cluster.advance_to(now_ns)
        for lane, rid in enumerate(rids):
            expected = (now_ns - (4 + lane) * MS) // (4 * MS)
            assert cluster.tokens(rid) == cluster.token_counter(0)(rid) == expected
            assert len(cluster.token_times_ns(rid)) == expected
        boundary = cluster.next_boundary(0)
        assert boundary == (now_ns // MS + 1) * MS
        assert cluster.workers[0].gauges(now_ns).steps == now_ns // MS - 6
