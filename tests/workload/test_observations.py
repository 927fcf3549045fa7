"""Result files of benchmark tools: `vllm bench serve`, guidellm 0.8 and aiperf 0.13."""

from typing import Any

import pytest

from frontier_mock.workload.observations import ResultError, read_observations
from frontier_mock.workload.specs import (
    BurstSpec,
    ClosedLoopSpec,
    FixedTokens,
    OpenLoopSpec,
    PromptSpec,
    TraceSpec,
)


def bench(**changes: Any) -> dict[str, Any]:
    return {
        "backend": "vllm",
        "model_id": "m",
        "num_prompts": 40,
        "request_rate": "inf",
        "burstiness": 1.0,
        "max_concurrency": 4,
        "duration": 10.0,
        "completed": 40,
        "total_input_tokens": 4000,
        "total_output_tokens": 800,
        "output_throughput": 80.0,
        "mean_ttft_ms": 50.0,
        "mean_tpot_ms": 9.0,
    } | changes


def test_a_closed_loop_of_vllm_bench() -> None:
    (seen,) = read_observations(bench(), "r.json")
    lengths = PromptSpec(FixedTokens(100), FixedTokens(20))
    assert seen.workload == ClosedLoopSpec(lengths, 4, 40)
    assert (seen.ttft_ms, seen.tpot_ms, seen.output_tokens_per_s) == (50.0, 9.0, 80.0)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"max_concurrency": None}, BurstSpec),
        ({"max_concurrency": None, "request_rate": 3.5}, OpenLoopSpec),
    ],
)
def test_a_burst_and_an_open_loop_of_vllm_bench(changes: dict[str, Any], kind: type) -> None:
    (seen,) = read_observations(bench(**changes), "r.json")
    assert type(seen.workload) is kind


def test_the_requests_that_save_detailed_kept_are_played_as_they_were() -> None:
    detail = {"input_lens": [10, 30, 20], "output_lens": [5, 0, 6], "start_times": [7.5, 7.0, 7.25]}
    (closed,) = read_observations(bench(**detail), "r.json")
    assert closed.workload == TraceSpec("r.json", concurrency=4)
    assert closed.rows is not None
    assert [row.prompt_tokens for row in closed.rows.rows] == [10, 20]  # the failed one is left out
    (timed,) = read_observations(bench(**detail, max_concurrency=None), "r.json")
    assert timed.rows is not None
    assert timed.rows.timed
    assert [(row.t_ns, row.prompt_tokens) for row in timed.rows.rows] == [
        (250_000_000, 20),
        (500_000_000, 10),
    ]


def distribution(mean: float, count: int = 12) -> dict[str, Any]:
    return {"successful": {"mean": mean, "count": count}, "errored": None}


def guidellm(strategy: dict[str, Any]) -> dict[str, Any]:
    metrics = {
        "time_to_first_token_ms": distribution(60.0),
        "inter_token_latency_ms": distribution(11.0),
        "time_per_output_token_ms": distribution(99.0),
        "output_tokens_per_second": distribution(300.0),
        "prompt_token_count": distribution(256.0),
        "output_token_count": distribution(127.6),
    }
    return {"config": {"strategy": strategy}, "metrics": metrics}


def test_every_run_of_a_guidellm_sweep() -> None:
    runs = [
        guidellm({"type_": "synchronous"}),
        guidellm({"type_": "concurrent", "streams": 8}),
        guidellm({"type_": "constant", "rate": 2.5}),
        guidellm({"type_": "throughput", "max_concurrency": None}),
    ]
    seen = read_observations({"benchmarks": runs}, "g.json")
    lengths = PromptSpec(FixedTokens(256), FixedTokens(128))
    assert [run.workload for run in seen] == [
        ClosedLoopSpec(lengths, 1, 12),
        ClosedLoopSpec(lengths, 8, 12),
        OpenLoopSpec(lengths, "constant", 2.5, num_requests=12),
        BurstSpec(lengths, 12),
    ]
    assert {run.tpot_ms for run in seen} == {11.0}
    assert seen[1].name == "g.json#1"


AIPERF = {
    "schema_version": "1.4",
    "time_to_first_token": {"unit": "ms", "avg": 70.0, "p99": 90.0},
    "inter_token_latency": {"unit": "ms", "avg": 12.0},
    "output_token_throughput": {"unit": "tokens/sec", "avg": 400.0},
    "request_count": {"unit": "requests", "avg": 100.0},
    "input_sequence_length": {"unit": "tokens", "avg": 512.2},
    "output_sequence_length": {"unit": "tokens", "avg": 64.0},
}


@pytest.mark.parametrize(
    ("config", "workload"),
    [
        (
            {
                "phases": [
                    {"name": "warmup", "type": "concurrency", "concurrency": 2},
                    {"name": "profiling", "type": "concurrency", "concurrency": 16},
                ]
            },
            ClosedLoopSpec(PromptSpec(FixedTokens(512), FixedTokens(64)), 16, 100),
        ),
        (
            {"phases": {"profiling": {"type": "constant", "rate": 4.0}}},
            OpenLoopSpec(
                PromptSpec(FixedTokens(512), FixedTokens(64)), "constant", 4.0, num_requests=100
            ),
        ),
        (
            {"loadgen": {"concurrency": 3, "request_rate": None}},
            ClosedLoopSpec(PromptSpec(FixedTokens(512), FixedTokens(64)), 3, 100),
        ),
    ],
)
def test_a_run_of_aiperf_in_phases_and_before_it_had_any(
    config: dict[str, Any], workload: object
) -> None:
    (seen,) = read_observations(AIPERF | {"input_config": config}, "a.json")
    assert seen.workload == workload
    assert (seen.ttft_ms, seen.tpot_ms) == (70.0, 12.0)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "not a result of vllm bench serve, guidellm or aiperf"),
        ({"benchmarks": []}, "there are none"),
        (bench(completed=0), "no request was completed"),
        (bench(mean_tpot_ms=None), "mean_tpot_ms is missing or not a number"),
        (bench(request_rate=-1.0, max_concurrency=None), "a request rate of -1.0 is not above 0"),
        (bench(input_lens=[1], output_lens=[1, 2]), "differ in length"),
        ({"benchmarks": [guidellm({"type_": "trace"})]}, "strategy 'trace' is not simulated"),
        (AIPERF, "input_config is missing"),
    ],
)
def test_what_cannot_be_used_is_named(document: Any, message: str) -> None:
    with pytest.raises(ResultError, match=message):
        read_observations(document, "r.json")
