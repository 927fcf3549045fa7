"""Whole engines on whole traces, against exact reference counts (specs/traces.md section 3.1)."""

from dataclasses import replace
from pathlib import Path

import pytest

from frontier_mock.core.events import Finished
from frontier_mock.drive.offline import run
from frontier_mock.serving.specs import SchedulerSpec
from frontier_mock.workload.build import build_source
from frontier_mock.workload.readers import read_trace
from frontier_mock.workload.specs import TraceSpec
from tests.engine import toy_cluster

pytestmark = pytest.mark.golden

TRACE = Path(__file__).resolve().parents[3] / "shared/data/traces/mooncake/conversation_trace.jsonl"
AMPLE = SchedulerSpec(
    max_num_seqs=256, max_num_batched_tokens=8192, max_model_len=131_072, num_blocks=12_000_000
)


def test_the_conversation_trace_one_by_one_hits_what_vllms_rule_says() -> None:
    if not TRACE.exists():
        pytest.skip(f"{TRACE} is not here; it comes with the project's shared data")
    with TRACE.open() as lines:
        rows = read_trace(lines, TRACE.name)
    cluster = toy_cluster(AMPLE)
    run(cluster, build_source(TraceSpec(str(TRACE), concurrency=1), seed=0, rows=rows))
    gauges = cluster.workers[0].gauges(cluster.now_ns)
    assert (gauges.hit_tokens, gauges.query_tokens) == (54_097_440, 144_793_823)
    ended = [event for event in cluster.log.events if isinstance(event, Finished)]
    assert len(ended) == 12_031
    assert gauges.preemptions == 0


def test_the_same_trace_at_its_own_times_on_eight_workers_twice() -> None:
    if not TRACE.exists():
        pytest.skip(f"{TRACE} is not here; it comes with the project's shared data")
    with TRACE.open() as lines:
        rows = read_trace(lines, TRACE.name)
    digests = []
    for _ in range(2):
        cluster = toy_cluster(replace(AMPLE, num_blocks=40_000), workers=8, frontend_s=0.006)
        run(cluster, build_source(TraceSpec(str(TRACE)), seed=0, rows=rows))
        for worker in cluster.workers:
            worker.kv.check()
            assert worker.kv.num_free == worker.kv.num_blocks
        digests.append(cluster.log.digest())
    assert digests[0] == digests[1]
