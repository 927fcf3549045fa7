"""The result of a run, on events checked by hand, and on an engine against brute force."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontier_mock.core.events import (
    Event,
    Finished,
    FirstToken,
    Preempted,
    Queued,
    Rejected,
    Scheduled,
    Submitted,
)
from frontier_mock.drive.offline import run
from frontier_mock.report.itl import inter_token_gaps
from frontier_mock.report.latency import Sample
from frontier_mock.report.records import (
    ABORTED,
    COMPLETED,
    NEVER,
    REJECTED,
    UNFINISHED,
    RequestRecord,
    fold_events,
    keep_measured,
)
from frontier_mock.report.specs import SloSpec
from frontier_mock.report.summary import report_cluster, report_records
from frontier_mock.serving.specs import SchedulerSpec
from frontier_mock.serving.timeline import Timeline
from frontier_mock.workload.build import build_source
from frontier_mock.workload.specs import ClosedLoopSpec, FixedTokens, PromptSpec, UniformTokens
from tests.engine import toy_cluster

MS = 1_000_000
LOG: list[Event] = [
    Submitted(0, 0, 0, 100, 5),
    Submitted(1 * MS, 1, 1, 50, 9),
    Queued(2 * MS, 0, 0),
    Scheduled(2 * MS, 0, 0, 32, False),
    Submitted(3 * MS, 0, 2, 9_999, 5),
    Rejected(3 * MS, 0, 2, "prompt_too_long"),
    Queued(3 * MS, 1, 1),
    Scheduled(3 * MS, 1, 1, 0, False),
    FirstToken(10 * MS, 0, 0),
    FirstToken(11 * MS, 1, 1),
    Preempted(12 * MS, 1, 1, 2),
    Scheduled(13 * MS, 1, 1, 48, True),
    Submitted(14 * MS, 0, 3, 10, 5),
    Finished(30 * MS, 0, 0, "length", 5, ((1, 5),)),
    Finished(40 * MS, 1, 1, "abort", 3, ((1, 2), (4, 1))),
]


def test_the_fold_gives_every_request_one_record() -> None:
    records, finished, _ = fold_events(LOG)
    assert records == [
        RequestRecord(0, 10 * MS, 30 * MS, 100, 5, 32, COMPLETED, "length", 0, 0, True),
        RequestRecord(1 * MS, 11 * MS, 40 * MS, 50, 3, 0, ABORTED, "abort", 1, 1, True),
        RequestRecord(3 * MS, NEVER, 3 * MS, 9_999, 0, 0, REJECTED, "prompt_too_long", 0, 0, False),
        RequestRecord(14 * MS, NEVER, NEVER, 10, 0, 0, UNFINISHED, "", 0, 0, False),
    ]
    assert finished == [LOG[-2], None, None, None]


def test_the_result_has_the_keys_and_figures_of_the_design() -> None:
    records = fold_events(LOG).records
    report = report_records(records, "s", 0.5, SloSpec(10, 5), Sample([4 * MS, 6 * MS]), [], "d")
    result = report.result
    assert list(result) == [
        "scenario",
        "requests",
        "warmup_requests",
        "outcomes",
        "duration_s",
        "wall_s",
        "ttft_ms",
        "tpot_ms",
        "itl_ms",
        "e2e_ms",
        "output_tokens_per_s",
        "input_tokens_per_s",
        "requests_per_s",
        "goodput_requests_per_s",
        "prefix_cache",
        "preemptions",
        "workers",
        "digest",
    ]
    assert result["requests"] == {"submitted": 4, "completed": 1, "rejected": 1, "aborted": 1}
    assert result["outcomes"] == {
        "aborted: abort": 1,
        "completed: length": 1,
        "rejected: prompt_too_long": 1,
        "unfinished": 1,
    }
    assert result["duration_s"] == 0.04
    assert result["wall_s"] == 0.5
    assert set(result["ttft_ms"].values()) == {10.0}
    assert result["tpot_ms"]["mean"] == 5.0
    assert result["itl_ms"] == {
        "mean": 5.0,
        "p50": 5.0,
        "p90": pytest.approx(5.8),
        "p95": pytest.approx(5.9),
        "p99": pytest.approx(5.98),
        "max": 6.0,
    }
    assert result["e2e_ms"]["max"] == 30.0
    assert result["output_tokens_per_s"] == 5 / 0.04
    assert result["input_tokens_per_s"] == 100 / 0.04
    assert result["requests_per_s"] == 1 / 0.04
    assert result["goodput_requests_per_s"] == 1 / 0.04
    assert result["prefix_cache"] == {"hit_tokens": 32, "query_tokens": 150, "hit_rate": 32 / 150}
    assert result["preemptions"] == 1
    assert result["digest"] == "d"
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize(
    ("slo", "good"),
    [
        (SloSpec(), 2),
        (SloSpec(ttft_ms=5), 1),
        (SloSpec(tpot_ms=1), 1),
        (SloSpec(e2e_ms=9), 1),
        (SloSpec(ttft_ms=5, tpot_ms=1), 0),
        (SloSpec(ttft_ms=10, tpot_ms=2, e2e_ms=14), 2),
    ],
)
def test_goodput_counts_requests_that_meet_every_target(slo: SloSpec, good: int) -> None:
    records = [
        RequestRecord(0, 4 * MS, 14 * MS, 1, 6, 0, COMPLETED, "length", 0),
        RequestRecord(0, 8 * MS, 8 * MS, 1, 1, 0, COMPLETED, "length", 0),
    ]
    result = report_records(records, "s", 0, slo, Sample([]), [], "").result
    assert result["goodput_requests_per_s"] == good / 0.014


def test_nothing_to_report_is_none_not_zero() -> None:
    result = report_records([], "s", 0, None, Sample([]), [], "").result
    assert set(result["ttft_ms"].values()) == {None}
    assert result["goodput_requests_per_s"] is None
    assert result["duration_s"] == 0
    assert result["requests_per_s"] == 0


def test_warm_up_is_left_out() -> None:
    kept = keep_measured(fold_events(LOG), [True, False, True, False])
    assert [record.detail for record in kept.records] == ["length", "prompt_too_long"]
    assert kept.finished == [LOG[-2], None]


@given(
    st.lists(st.tuples(st.integers(0, 10**14), st.integers(0, 5)), max_size=30),
    st.lists(st.floats(0, 1), min_size=1, max_size=5),
)
def test_quantiles_are_numpys_over_the_expanded_list(
    pairs: list[tuple[int, int]], quantiles: list[float]
) -> None:
    expanded = [value for value, weight in pairs for _ in range(weight)]
    sample = Sample([value for value, _ in pairs], [weight for _, weight in pairs])
    assert sample.count == len(expanded)
    if expanded:
        expected = np.quantile(np.array(expanded, np.float64), quantiles)
        assert sample.quantiles_ns(quantiles) == pytest.approx(expected, rel=1e-9, abs=1e-3)
        stats = sample.stats_ms()
        assert stats["mean"] == pytest.approx(sum(expanded) / len(expanded) / 1e6)
        assert stats["max"] == max(expanded) / 1e6
        assert Sample(expanded).stats_ms() == pytest.approx(stats)


def test_gaps_within_and_between_spans() -> None:
    timeline = Timeline()
    timeline.begin(1, 100, 10.0, 0.0)
    timeline.begin(4, 200, 20.0, 2.0)
    ends = [timeline.boundary_ns(step) for step in range(1, 8)]
    assert ends == [110, 120, 130, 220, 242, 266, 292]
    finished = [
        Finished(0, 0, 0, "length", 4, ((1, 4),)),
        Finished(0, 0, 1, "length", 5, ((2, 2), (6, 2))),
        None,
        Finished(0, 0, 3, "length", 1, ((3, 1),)),
    ]
    sample = inter_token_gaps(finished, [timeline])
    values = np.repeat(sample.values_ns, sample.weights).tolist()
    assert values == sorted([10, 10, 90, 10, 136, 26])
    assert inter_token_gaps([None], [timeline]).count == 0


@given(
    st.integers(1, 12), st.integers(3, 20), st.integers(1, 60), st.integers(20, 60), st.booleans()
)
def test_gaps_on_an_engine_equal_brute_force(
    lanes: int, requests: int, longest: int, blocks: int, single_step: bool
) -> None:
    scheduler = SchedulerSpec(8, 64, 120, 4, blocks + 10)
    cluster = toy_cluster(scheduler, workers=2, single_step=single_step)
    spec = ClosedLoopSpec(
        PromptSpec(UniformTokens(1, 50), UniformTokens(1, longest)), lanes, requests, 2
    )
    offline = run(cluster, build_source(spec, seed=longest))
    measured = [item.measured for item in offline.items]
    report = report_cluster(cluster, "toy", 0.0, measured)
    gaps: list[int] = []
    for event in cluster.log.events:
        if isinstance(event, Finished) and measured[event.rid]:
            times = cluster.workers[event.worker].timeline.token_times_ns(event.spans)
            gaps.extend(np.diff(times).tolist())
    itl = report.samples.itl
    assert np.repeat(itl.values_ns, itl.weights).tolist() == sorted(gaps)
    result = report.result
    assert result["requests"]["completed"] == requests
    assert result["warmup_requests"] == 2
    assert sum(worker["requests"] for worker in result["workers"]) == requests + 2
    assert sum(worker["preemptions"] for worker in result["workers"]) >= result["preemptions"]
    assert all(0 <= worker["busy_fraction"] <= 1 for worker in result["workers"])
    assert result["digest"] == cluster.log.digest()
    assert result["itl_ms"]["max"] == (max(gaps) / 1e6 if gaps else None)


def test_prefix_hits_of_the_result_agree_with_the_workers() -> None:
    cluster = toy_cluster(SchedulerSpec(8, 64, 200, 4, 2000))
    spec = ClosedLoopSpec(PromptSpec(FixedTokens(30), FixedTokens(8), 20), 3, 30)
    run(cluster, build_source(spec, seed=0))
    result = report_cluster(cluster, "toy", 0.0).result
    (worker,) = result["workers"]
    assert result["prefix_cache"]["hit_tokens"] == worker["hit_tokens"] == 29 * 20
    assert result["prefix_cache"]["query_tokens"] == worker["query_tokens"] == 30 * 50
    assert worker["kv_capacity_tokens"] == 8000
