"""SGLang's metrics and load books: names and labels of the real thing, figures from events."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from frontier_mock.core.events import (
    Event,
    Fetched,
    Finished,
    FirstToken,
    Preempted,
    Queued,
    Rejected,
    Scheduled,
    Submitted,
)
from frontier_mock.serving.gauges import Gauges
from frontier_mock.serving.tiers.stats import TierStats
from frontier_mock.wire.sglang.info import RankLoad
from frontier_mock.wire.sglang.load import LoadFold
from frontier_mock.wire.sglang.metrics import PoolState, SglangMetrics
from frontier_mock.wire.sglang.served import SglangFront

S = 1_000_000_000
FRONT = SglangFront(
    context_len=4096,
    max_req_len=4095,
    max_req_input_len=4090,
    num_pages=1000,
    enable_metrics=True,
    extra_metric_labels={"zone": "a"},
    largest_graph=8,
)
IDLE = Gauges(0, 0, 0.0, 1000, 1000, 0, 0, 0, 0, 0)
SPEC = Path(__file__).resolve().parents[4] / "shared" / "specs" / "sglang_metrics_0.5.23.txt"

LIFE: list[Event] = [
    Submitted(1 * S, 0, 0, 100, 10),
    Queued(2 * S, 0, 0),
    Scheduled(3 * S, 0, 0, 40, False),
    FirstToken(4 * S, 0, 0),
    Preempted(5 * S, 0, 0, 3),
    Scheduled(6 * S, 0, 0, 90, True),
    Finished(13 * S, 0, 0, "length", 10, ((1, 10),)),
]


def samples(text: bytes) -> dict[tuple[str, str], float]:
    """Values by sample name and, where that matters, what is_streaming or mode says."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = sample.labels
            key = labels.get("is_streaming") or labels.get("mode") or labels.get("le") or ""
            found[sample.name.removeprefix("sglang:"), key] = sample.value
    return found


def render(metrics: SglangMetrics, load: RankLoad | None = None) -> dict[tuple[str, str], float]:
    shown = load or RankLoad(IDLE)
    return samples(metrics.render(shown, PoolState(700, 200, 55), running_tokens=0, aborts=2))


def test_a_life_is_counted_once_and_by_kind_of_answer() -> None:
    metrics = SglangMetrics("m", FRONT, 0, 7)
    for event in LIFE[:2]:
        metrics.fold(event)
    metrics.streams([0])
    for event in LIFE[2:]:
        metrics.fold(event)
    metrics.fold_itl(np.array([S]), np.array([9]))
    found = render(metrics)
    assert found["prompt_tokens_total", "true"] == 100
    assert found["generation_tokens_total", "true"] == 10
    assert found["num_requests_total", "true"] == 1
    assert found["num_requests_total", "false"] == 0
    assert found["time_to_first_token_seconds_sum", "true"] == 3.0
    assert found["e2e_request_latency_seconds_sum", "true"] == 12.0
    assert found["request_time_per_output_token_seconds_sum", "true"] == 1.0
    assert found["queue_time_seconds_sum", ""] == 1.0
    assert found["uncached_prompt_tokens_histogram_sum", ""] == 60
    assert found["realtime_tokens_total", "prefill_cache"] == 40
    assert found["num_retracted_requests_total", ""] == 1
    assert found["num_retracted_output_tokens_total", ""] == 3
    assert found["inter_token_latency_seconds_count", ""] == 9
    assert found["num_aborted_requests_total", ""] == 2
    assert found["kv_evictable_tokens", ""] == 200
    assert found["kv_used_tokens", ""] == 100
    assert found["token_usage", ""] == 0.1
    assert found["decode_sum_seq_lens", ""] == 55


def test_what_never_ran_is_no_request_and_what_was_refused_is_forgotten() -> None:
    metrics = SglangMetrics("m", FRONT, 0, 7)
    for event in (
        Submitted(0, 0, 0, 5, 5),
        Queued(0, 0, 0),
        Finished(S, 0, 0, "abort", 0, ()),
        Submitted(0, 0, 1, 5, 5),
        Rejected(0, 0, 1, "queue_full"),
    ):
        metrics.fold(event)
    found = render(metrics)
    assert found["num_requests_total", "false"] == 0
    assert found["e2e_request_latency_seconds_count", "false"] == 0


def test_labels_are_those_of_a_scheduler_and_of_a_front_end() -> None:
    text = SglangMetrics("m", FRONT, 0, 7).render(RankLoad(IDLE), PoolState(0, 0), 0, 0).decode()
    labels = {
        sample.name.removeprefix("sglang:"): sample.labels
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    front = {"model_name": "m", "engine_type": "unified", "zone": "a"}
    own = {**front, "tp_rank": "0", "pp_rank": "0", "moe_ep_rank": "0"}
    assert labels["num_running_reqs"] == own
    assert labels["num_paused_reqs"] == {**own, "pid": "7"}
    assert labels["num_aborted_requests_total"] == front
    assert labels["cached_tokens_total"] == {**front, "cache_source": "device"}


@pytest.mark.golden
def test_every_family_is_one_of_sglangs() -> None:
    if not SPEC.exists():
        pytest.skip("shared/specs is not here: the list of SGLang's metrics lies there")
    rows = [line.split("|") for line in SPEC.read_text().splitlines()]
    kinds = {row[1]: row[0].lower() for row in rows}
    text = SglangMetrics("m", FRONT, 0, 7).render(RankLoad(IDLE), PoolState(0, 0), 0, 0).decode()
    headers = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    assert {name: kinds.get(name) for name, _ in headers} == dict(headers)


def test_books_follow_the_queue() -> None:
    books = LoadFold()
    seen = []
    for event in LIFE:
        books.fold(event)
        seen.append((books.waiting_tokens, books.running_prompt_tokens, books.retracted))
    assert seen == [(0, 0, 0), (100, 0, 0), (0, 100, 0), (0, 100, 0), (103, 0, 1), (0, 100, 0),
                    (0, 0, 0)]  # fmt: skip
    assert books.prefilled_tokens == 60 + 13
    assert books.prefill_busy_ns == 1 * S
    assert books.finished_tokens == 10
    assert books.hit_rate(13 * S) == 130 / 203
    assert books.hit_rate(20 * S) == 90 / 103
    assert books.hit_rate(60 * S) == 0.0


def test_the_rate_is_over_a_second_at_least_and_nothing_when_idle() -> None:
    books = LoadFold()
    assert books.rate(2 * S, 100, idle=False) == 50.0
    assert books.rate(5 * S // 2, 200, idle=False) == 80.0
    assert books.rate(4 * S, 300, idle=False) == 100.0
    assert books.rate(5 * S, 300, idle=True) == 0.0


def test_a_host_tier_has_families_of_its_own() -> None:
    metrics = SglangMetrics("m", replace(FRONT, host_tier=True), 0, 7)
    for event in (LIFE[0], Fetched(S, 0, 0, "cpu", 30, 900), *LIFE[1:]):
        metrics.fold(event)
    tier = TierStats("cpu", 60, 30, 1, 900, 5, 2, 4000, 9, 0, 800, 5000)
    text = metrics.render(RankLoad(IDLE._replace(tiers=(tier,))), PoolState(0, 0), 0, 0).decode()
    for source, tokens in (("device", 10), ("host", 30)):
        assert re.search(
            rf'cached_tokens_total{{[^}}]*cache_source="{source}"[^}}]*}} {tokens}.0', text
        )
    for name, value in (
        ("hicache_host_used_tokens", 800),
        ("hicache_host_total_tokens", 5000),
        ("hicache_backup_bytes_total", 4000),
        ("load_back_bytes_total", 900),
    ):
        assert re.search(rf"sglang:{name}{{[^}}]*}} {value}.0", text), name
    plain = SglangMetrics("m", FRONT, 0, 7).render(RankLoad(IDLE), PoolState(0, 0), 0, 0)
    assert b"hicache" not in plain


def test_storage_behind_the_host_has_counters_with_labels_of_their_own() -> None:
    front = replace(FRONT, host_tier=True, storage_backend="mooncake")
    metrics = SglangMetrics("m", front, 0, 7)
    fetched = (Fetched(S, 0, 0, "cpu", 10, 300), Fetched(S, 0, 0, "storage", 20, 600))
    for event in (LIFE[0], *fetched, *LIFE[1:]):
        metrics.fold(event)
    host = TierStats("cpu", 60, 30, 1, 900, 5, 2, 4000, 9, 0, 800, 5000)
    storage = TierStats(
        "storage", 90, 20, 1, 600, 5, 2, 4000, 9, 0, 800, 0, 70, 50, 40, {"deadline": 20}
    )
    load = RankLoad(IDLE._replace(tiers=(host, storage)))
    text = metrics.render(load, PoolState(0, 0), 0, 0).decode()
    for source, tokens in (("device", 10), ("host", 10), ("storage", 20)):
        assert re.search(
            rf'cached_tokens_total{{[^}}]*cache_source="{source}"[^}}]*}} {tokens}.0', text
        )
    for name, value in (
        ("storage_prefetch_hit_tokens_total", 70),
        ("prefetched_tokens_total", 50),
        ("backuped_tokens_total", 40),
    ):
        assert re.search(
            rf'sglang:{name}{{[^}}]*storage_backend="mooncake"[^}}]*}} {value}.0', text
        ), name
    name = "storage_prefetch_unfulfilled_tokens_total"
    for reason, tokens in (("deadline", 20), ("host_capacity", 0)):
        assert re.search(rf'{name}{{[^}}]*reason="{reason}"[^}}]*}} {tokens}.0', text)
