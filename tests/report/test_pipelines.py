"""What a report says of pipeline stages."""

import json
from collections import defaultdict

import pytest

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.core.commands import Submit
from frontier_mock.report.perfetto import trace_json
from frontier_mock.report.roles import role_stats
from frontier_mock.report.step_runs import keep_step_logs
from frontier_mock.report.summary import report_cluster
from frontier_mock.serving.pipelined import PipelinedWorker
from frontier_mock.serving.specs import AnySchedulerSpec, SchedulerSpec, SglangSchedulerSpec
from tests.engine import LinearStages, prompt, toy_cluster

VLLM = SchedulerSpec(8, 64, 4096, num_blocks=2000, pipeline_stages=3)
SGLANG = SglangSchedulerSpec(
    8, 4000, 2000, 16, chunked_prefill_size=64, enable_overlap=False, pipeline_stages=3
)


def played(scheduler: AnySchedulerSpec, *, single_step: bool = False) -> Cluster:
    cluster = toy_cluster(scheduler, single_step=single_step)
    keep_step_logs(cluster)
    for name in range(5):
        cluster.feed(0, Submit(prompt(40 + 30 * name, name, 16), output_tokens=600, max_tokens=600))
    while (next_ns := cluster.next_time()) is not None:
        cluster.advance_to(next_ns)
    return cluster


@pytest.mark.parametrize("scheduler", [VLLM, SGLANG])
def test_stages_bubbles_and_drawn_steps_agree(scheduler: AnySchedulerSpec) -> None:
    cluster = played(scheduler)
    worker = cluster.workers[0]
    assert isinstance(worker, PipelinedWorker)
    (stats,) = report_cluster(cluster, "toy", 1.0).result["workers"]
    drawn: defaultdict[int, float] = defaultdict(float)
    for event in json.loads(trace_json(cluster, [LinearStages(3, True)]))["traceEvents"]:
        if event["ph"] == "X" and event["pid"] == 1:
            drawn[event["tid"]] += event["dur"] * 1000
    assert len(drawn) == 3
    for share, busy_ns in zip(stats["stages"], (drawn[tid] for tid in sorted(drawn)), strict=True):
        assert busy_ns / cluster.now_ns == pytest.approx(share, rel=1e-5)
    assert stats["stages"][1] == max(stats["stages"])
    working = sum(stats["stages"]) / 3
    assert stats["bubble_fraction"] == pytest.approx(1 - working / stats["busy_fraction"])
    (row,) = role_stats(cluster)
    assert row["bubble"] == pytest.approx(stats["bubble_fraction"])
    assert stats["steps"] == len(worker.stage_log)


@pytest.mark.parametrize("scheduler", [VLLM, SGLANG])
def test_the_log_of_steps_is_the_same_however_they_are_made(scheduler: AnySchedulerSpec) -> None:
    logs = []
    for single_step in (False, True):
        worker = played(scheduler, single_step=single_step).workers[0]
        assert isinstance(worker, PipelinedWorker)
        logs.append((worker.stage_log, worker.stages_busy_ns(10**18)))
    assert logs[0] == logs[1]


def test_an_engine_of_one_stage_says_nothing_of_stages() -> None:
    cluster = toy_cluster(SchedulerSpec(8, 64, 4096, num_blocks=2000))
    (stats,) = report_cluster(cluster, "toy", 1.0).result["workers"]
    assert "stages" not in stats
    assert "bubble_fraction" not in stats
