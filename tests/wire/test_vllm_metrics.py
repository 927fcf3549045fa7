"""Metric exposition: the same bytes as prometheus_client, vLLM's families, vLLM's definitions."""

import numpy as np
import prometheus_client as prom
import pytest
from prometheus_client.parser import text_string_to_metric_families

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
from frontier_mock.serving.gauges import Gauges
from frontier_mock.wire.prometheus import Counter, Gauge, Histogram, format_value
from frontier_mock.wire.vllm_metrics import VllmMetrics, token_buckets

S = 1_000_000_000
IDLE = Gauges(0, 0, 0.0, 100, 100, 0, 0, 0, 0, 0)

# tests/entrypoints/serve/instrumentator/test_metrics.py of vLLM 0.33 looks for these.
EXPECTED = (
    "num_requests_running",
    "num_requests_waiting",
    "num_requests_waiting_by_reason",
    "kv_cache_usage_perc",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "num_preemptions_total",
    "prompt_tokens_total",
    "generation_tokens_total",
    "iteration_tokens_total_sum",
    "request_success_total",
    "request_prompt_tokens_bucket",
    "request_generation_tokens_count",
    "request_params_n_sum",
    "request_params_max_tokens_count",
    "request_max_num_generation_tokens_bucket",
    "request_num_preemptions_count",
    "time_to_first_token_seconds_bucket",
    "inter_token_latency_seconds_sum",
    "request_time_per_output_token_seconds_count",
    "e2e_request_latency_seconds_bucket",
    "request_queue_time_seconds_sum",
    "request_inference_time_seconds_count",
    "request_prefill_time_seconds_bucket",
    "request_decode_time_seconds_sum",
    "request_prefill_kv_computed_tokens_count",
    "engine_sleep_state",
    "prompt_tokens_by_source_total",
    "prompt_tokens_cached_total",
    "prompt_tokens_cached_by_source_total",
    "external_prefix_cache_queries_total",
    "mm_cache_hits_total",
    "admission_rejections_total",
)


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(text: bytes, name: str, **labels: str) -> float:
    """The one sample of that name whose labels include `labels`."""
    found = [
        v
        for (n, own), v in samples(text).items()
        if n == f"vllm:{name}" and labels.items() <= dict(own).items()
    ]
    assert len(found) == 1, (name, found)
    return found[0]


def metrics() -> VllmMetrics:
    return VllmMetrics("mock", 4096, 1.5e9, cache_config={"block_size": "16"})


def life(rid: int, reason: str = "length", tokens: int = 5) -> list[Event]:
    """Arrives at 1 s, queued at 1.25, scheduled at 1.5, first token at 2, ends at 4."""
    return [
        Submitted(1 * S, 0, rid, 100, 64),
        Queued(5 * S // 4, 0, rid),
        Scheduled(3 * S // 2, 0, rid, 32, False),
        FirstToken(2 * S, 0, rid),
        Finished(4 * S, 0, rid, reason, tokens, ((1, tokens),)),
    ]


@pytest.mark.parametrize(
    "number", [0.0, 1.0, 0.025, 999999.0, 1e6, 12345678.5, 1.8e9, 123456789012.0, -5e7, 1e21, 1e-7]
)
def test_values_print_as_in_the_python_client(number: float) -> None:
    assert format_value(number) == prom.utils.floatToGoString(number)


def test_families_match_prometheus_client_byte_for_byte() -> None:
    registry = prom.CollectorRegistry()
    names = ["model_name", "engine"]
    gauge = prom.Gauge("vllm:g", "A gauge.", [*names, "x"], registry=registry)
    counter = prom.Counter("vllm:c", "A counter.", names, registry=registry)
    histogram = prom.Histogram("vllm:h", "Some.", names, buckets=[0.3, 1, 5e6], registry=registry)
    own = {"model_name": 'a"\\\n', "engine": "0"}
    gauge.labels(**own, x="one").set(2.5)
    counter.labels(**own).inc(3e6)
    for observed in (0.25, 0.5, 2e6, 2e6, 9e9):
        histogram.labels(**own).observe(observed)
    theirs = prom.generate_latest(registry).decode().splitlines()

    ours_gauge = Gauge("vllm:g", "A gauge.", [{**own, "x": "one"}])
    ours_gauge.values[0] = 2.5
    ours_counter = Counter("vllm:c", "A counter.", [own], 7.0)
    ours_counter.values[0] = 3e6
    ours_histogram = Histogram("vllm:h", "Some.", own, [0.3, 1, 5e6], 7.0)
    ours_histogram.observe(0.25)
    ours_histogram.observe_many(np.array([0.5, 2e6, 9e9]), np.array([1, 2, 1]))
    ours = (ours_gauge.render() + ours_counter.render() + ours_histogram.render()).splitlines()
    stamps = [line.split("}")[0] for line in theirs if "_created{" in line]
    assert [line for line in ours if "_created{" not in line] == [
        line for line in theirs if "_created{" not in line
    ]
    assert [line.split("}")[0] for line in ours if "_created{" in line] == stamps


def test_every_expected_family_is_there() -> None:
    text = metrics().render(IDLE)
    names = {name for name, _ in samples(text)}
    assert {f"vllm:{name}" for name in EXPECTED} <= names
    assert value(text, "cache_config_info", block_size="16", engine="0") == 1
    assert "vllm:cache_config_info" not in VllmMetrics("m", 16, 0.0).render(IDLE).decode()


def test_latencies_follow_vllms_definitions() -> None:
    folded = metrics()
    for event in life(7):
        folded.fold(event)
    text = folded.render(IDLE)
    assert value(text, "time_to_first_token_seconds_sum") == 1.0
    assert value(text, "e2e_request_latency_seconds_sum") == 3.0
    assert value(text, "request_queue_time_seconds_sum") == 0.25
    assert value(text, "request_prefill_time_seconds_sum") == 0.5
    assert value(text, "request_decode_time_seconds_sum") == 2.0
    assert value(text, "request_inference_time_seconds_sum") == 2.5
    assert value(text, "request_time_per_output_token_seconds_sum") == 0.5
    assert value(text, "request_success_total", finished_reason="length") == 1
    assert value(text, "prompt_tokens_total") == 100
    assert value(text, "prompt_tokens_by_source_total", source="local_compute") == 68
    assert value(text, "prompt_tokens_cached_total") == 32
    assert value(text, "request_prefill_kv_computed_tokens_sum") == 68
    assert value(text, "request_params_max_tokens_sum") == 64
    assert value(text, "generation_tokens_total") == 5
    assert value(text, "e2e_request_latency_seconds_bucket", le="2.5") == 0
    assert value(text, "e2e_request_latency_seconds_bucket", le="5.0") == 1


def test_choices_of_one_request_count_as_one() -> None:
    folded = metrics()
    folded.request([0, 1])
    for rid, tokens in ((0, 5), (1, 9), (2, 3)):
        for event in life(rid, tokens=tokens):
            folded.fold(event)
    text = folded.render(IDLE)
    assert value(text, "request_params_n_count") == 2
    assert value(text, "request_params_n_sum") == 3
    assert value(text, "request_max_num_generation_tokens_sum") == 9 + 3
    assert value(text, "request_generation_tokens_count") == 3


def test_preemptions_rejections_and_early_aborts() -> None:
    folded = metrics()
    for event in life(0)[:4]:
        folded.fold(event)
    folded.fold(Preempted(2 * S, 0, 0, 1))
    folded.fold(Scheduled(3 * S, 0, 0, 96, True))
    folded.fold(Finished(4 * S, 0, 0, "length", 5, ((1, 5),)))
    folded.fold(Submitted(S, 0, 1, 10, 10))
    folded.fold(Finished(2 * S, 0, 1, "abort", 0, ()))
    folded.fold(Submitted(S, 0, 2, 10, 10))
    folded.fold(Rejected(S, 0, 2, "queue_full"))
    text = folded.render(IDLE)
    assert value(text, "num_preemptions_total") == 1
    assert value(text, "request_num_preemptions_sum") == 1
    assert value(text, "prompt_tokens_cached_total") == 32
    assert value(text, "request_success_total", finished_reason="abort") == 1
    assert value(text, "request_queue_time_seconds_count") == 2
    assert value(text, "admission_rejections_total", reason="max_num_queued_reqs") == 1


def test_gauges_and_step_counts_come_from_the_worker() -> None:
    folded = metrics()
    for event in life(0):
        folded.fold(event)
    gauges = Gauges(3, 4, 0.5, 100, 50, 1000, 480, 0, steps=10, busy_ns=0)
    text = folded.render(gauges, running_tokens=22)
    assert value(text, "num_requests_running") == 3
    assert value(text, "num_requests_waiting") == 4
    assert value(text, "num_requests_waiting_by_reason", reason="capacity") == 4
    assert value(text, "kv_cache_usage_perc") == 0.5
    assert value(text, "prefix_cache_hits_total") == 480
    assert value(text, "prompt_tokens_cached_by_source_total", source="device") == 480
    assert value(text, "generation_tokens_total") == 27
    assert value(text, "iteration_tokens_total_count") == 10
    assert value(text, "iteration_tokens_total_sum") == pytest.approx(68 + 27)
    later = folded.render(gauges._replace(steps=12))
    assert value(later, "generation_tokens_total") == 27
    assert value(later, "iteration_tokens_total_count") == 12


def test_inter_token_latencies_are_folded_by_count() -> None:
    folded = metrics()
    folded.fold_itl(np.array([10_000_000, 10_000_001]), np.array([3, 2]))
    text = folded.render(IDLE)
    assert value(text, "inter_token_latency_seconds_count") == 5
    assert value(text, "inter_token_latency_seconds_bucket", le="0.01") == 3


def test_token_buckets_end_at_the_context_length() -> None:
    assert token_buckets(4096) == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000]
    assert token_buckets(5) == [1, 2, 5]
