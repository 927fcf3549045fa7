"""Utilisation, bubbles and cost by role, and the trace of a run."""

import io
import json
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from rich.console import Console

from frontier_mock.cluster.build import build_cluster
from frontier_mock.cluster.cluster import Cluster
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.resolve import ResolvedCluster, resolve_scenario
from frontier_mock.config.scenario import ScenarioSpec, parse_scenario
from frontier_mock.config.workloads import trace_search
from frontier_mock.cost.afd.step import AfdStepCost
from frontier_mock.cost.protocol import RankBatch
from frontier_mock.drive.offline import run
from frontier_mock.report.html import html_report
from frontier_mock.report.perfetto import trace_json
from frontier_mock.report.roles import StationBook, cost_stats, role_stats
from frontier_mock.report.step_runs import joint_runs, keep_step_logs
from frontier_mock.report.summary import report_cluster
from frontier_mock.report.terminal import print_result
from frontier_mock.workload.build import build_source

SCENARIO = """
name: two pools
cluster:
  prices: {h800: 3.0, h20: 1.5}
  workers:
    - name: a
      model: stepfun-ai/step3-fp8
      parallel: {tp: 4}
      afd: {ffn: {instances: 2, hardware: h20}}
      engine_args: {max-num-seqs: 24, max-model-len: 4096}
    - {name: b, count: 2, model: Qwen/Qwen3-8B, hardware: h20}
workload:
  kind: poisson
  rate_per_s: 30
  num_requests: 60
  input_tokens: {uniform: [10, 900]}
  output_tokens: {uniform: [1, 120]}
"""


def parsed(text: str = SCENARIO) -> ScenarioSpec:
    return parse_scenario(text, "pools.yaml", trace_search(None, {}, False))


def played(halts: int = 1) -> tuple[Cluster, ResolvedCluster, StationBook]:
    """A run, and the book of its stations, settled between so many equal parts of it."""
    spec = parsed()
    assert spec.workload is not None
    resolved = resolve_scenario(spec)
    cluster = build_cluster(resolved.spec, resolved.costs)
    book = StationBook(cluster, resolved.costs)
    if halts == 1:
        keep_step_logs(cluster)
        run(cluster, build_source(spec.workload, seed=1))
        return cluster, resolved, book
    for timed in build_source(spec.workload, seed=1).initial():
        cluster.feed(timed.t_ns, timed.submit)
    part = 0
    while (next_ns := cluster.next_time()) is not None:
        cluster.advance_to(next_ns)
        if (part := part + 1) % halts == 0:
            book.settle()
    return cluster, resolved, book


def test_every_step_is_in_exactly_one_run() -> None:
    cluster, _, _ = played()
    for server in cluster.servers:
        runs = joint_runs(cluster, server)
        for before, after in pairwise(runs):
            assert before.end_ns <= after.t_ns
        for rank, index in enumerate(server):
            worker = cluster.workers[index]
            mine = [one for one in runs if one.first_steps[rank]]
            assert sum(one.steps for one in mine) == worker.step_ended_by(cluster.now_ns)
            busy = sum(
                one.end_ns - one.t_ns for one in runs if one.batches[rank] != RankBatch(0, 0)
            )
            assert busy == worker.gauges(cluster.now_ns).busy_ns


def test_both_sides_have_rows_of_their_own() -> None:
    cluster, _, book = played()
    rows = {(row["role"], row["hardware"]): row for row in role_stats(cluster, book)}
    assert list(rows) == [
        ("attention", "h800"),
        ("ffn", "h20"),
        ("a2f", "h800, h20"),
        ("f2a", "h800, h20"),
        ("colocated", "h20"),
    ]
    assert [row["gpus"] for row in rows.values()] == [8, 16, 0, 0, 2]
    assert [row["usd_per_hour"] for row in rows.values()] == [24.0, 24.0, 0.0, 0.0, 3.0]
    for key in list(rows)[:4]:
        bubble = rows[key]["bubble"]
        assert bubble is not None
        assert 0 < rows[key]["utilization"] < 1
        assert 0 < bubble < 1
    assert rows["colocated", "h20"]["bubble"] is None


def test_work_and_bubbles_add_up_to_the_steps() -> None:
    cluster, resolved, book = played()
    cost = resolved.costs[0]
    assert isinstance(cost, AfdStepCost)
    runs = joint_runs(cluster, cluster.servers[0])
    attention = role_stats(cluster, book)[0]
    in_steps = sum(one.end_ns - one.t_ns for one in runs) / cluster.now_ns
    bubble = attention["bubble"]
    assert bubble is not None
    assert attention["utilization"] == pytest.approx(in_steps * (1 - bubble))
    for one in runs[:5]:
        step_ns = cost.lockstep(one.batches)
        assert cost.occupied(one.batches).attention_ns <= step_ns


def test_a_settled_book_says_the_same() -> None:
    once, _, whole = played()
    often, _, parts = played(halts=7)
    assert once.now_ns == often.now_ns
    for left, right in zip(role_stats(once, whole), role_stats(often, parts), strict=True):
        assert left["utilization"] == pytest.approx(right["utilization"])
        assert left["bubble"] == pytest.approx(right["bubble"])
    parts.settle()
    kept = [len(often.workers[index].step_log or []) for index in often.servers[0]]
    assert max(kept) <= 1


def test_without_step_logs_nothing_is_made_up() -> None:
    spec = parsed()
    resolved = resolve_scenario(spec)
    cluster = build_cluster(resolved.spec, resolved.costs)
    rows = role_stats(cluster)
    assert [row["role"] for row in rows] == ["attention", "ffn", "colocated"]
    assert all(row["bubble"] is None for row in rows)


def test_cost_follows_from_prices_and_rates() -> None:
    cluster, _, _ = played()
    cost = cost_stats(role_stats(cluster), 1000.0, 500.0)
    assert cost["usd_per_hour"] == 51.0
    assert cost["prices"] == {"h800": 3.0, "h20": 1.5}
    assert cost["output_tokens_per_usd"] == pytest.approx(1000 * 3600 / 51)
    assert cost["tokens_per_usd"] == pytest.approx(1500 * 3600 / 51)
    assert cost["usd_per_million_output_tokens"] == pytest.approx(51 / 3.6)


def test_prices_name_known_hardware() -> None:
    with pytest.raises(ConfigError, match=r"cluster.prices.h900: no such hardware"):
        parsed(SCENARIO.replace("h800: 3.0", "h900: 3.0"))
    with pytest.raises(ConfigError, match=r"a number >= 0"):
        parsed(SCENARIO.replace("h800: 3.0", "h800: cheap"))


def test_reports_show_roles_and_cost() -> None:
    cluster, _, book = played()
    report = report_cluster(cluster, "two pools", 0.1, book=book)
    console = Console(file=io.StringIO(), width=100)
    print_result(report.result, console)
    assert isinstance(console.file, io.StringIO)
    text, page = console.file.getvalue(), html_report(report)
    for word in ("attention", "ffn", "bubbles", "output tokens/$", "h20 1.50"):
        assert word in text
        assert word in page


def trace() -> tuple[list[dict[str, Any]], Cluster]:
    cluster, resolved, _ = played()
    made = json.loads(trace_json(cluster, resolved.costs, sampled_steps=3))
    return made["traceEvents"], cluster


def test_a_trace_has_every_step_and_every_request() -> None:
    events, cluster = trace()
    steps = [e for e in events if e["ph"] == "X" and e["pid"] < 1000]
    counted = Counter((e["pid"], e["tid"]) for e in steps)
    for number, server in enumerate(cluster.servers, 1):
        for rank, index in enumerate(server):
            worker = cluster.workers[index]
            assert counted[number, rank + 1] == worker.step_ended_by(cluster.now_ns)
    begun = Counter(e["name"] for e in events if e["ph"] == "b")
    ended = Counter(e["name"] for e in events if e["ph"] == "e")
    assert begun == ended
    assert begun["request"] == begun["prefill"] == 60
    names = {e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {
        "a (colocated)",
        "a: inside sampled steps, 1A2F",
        "b0 (colocated)",
        "b1 (colocated)",
    }


PAIRED = """
name: pair
cluster:
  workers:
    - {name: p, role: prefill, model: Qwen/Qwen3-8B}
    - {name: d, role: decode, model: Qwen/Qwen3-8B}
workload: {kind: burst, num_requests: 5, input_tokens: {fixed: 500}, output_tokens: {fixed: 9}}
"""


def test_a_trace_has_the_transfers_between_engines() -> None:
    spec = parsed(PAIRED)
    assert spec.workload is not None
    resolved = resolve_scenario(spec)
    cluster = build_cluster(resolved.spec, resolved.costs)
    keep_step_logs(cluster)
    run(cluster, build_source(spec.workload, seed=1))
    events = json.loads(trace_json(cluster, resolved.costs))["traceEvents"]
    moved = [e for e in events if e.get("cat") == "transfer"]
    begun = {e["id"]: e["ts"] for e in moved if e["ph"] == "b"}
    ended = {e["id"]: e["ts"] for e in moved if e["ph"] == "e"}
    assert len(begun) == len(ended) == 5
    assert all(begun[rid] < ended[rid] for rid in begun)
    assert {e["pid"] for e in moved} == {2}


def test_a_trace_shows_the_ping_pong() -> None:
    """Attention works on one micro-batch while FFN works on another."""
    events, _ = trace()
    inside = [e for e in events if e["ph"] == "X" and e["pid"] > 1000]
    tracks = {
        e["tid"]: e["args"]["name"]
        for e in events
        if e["name"] == "thread_name" and e["pid"] == 1001
    }
    ffn = [e for e in inside if tracks[e["tid"]] == "FFN"]
    attention = [e for e in inside if tracks[e["tid"]].startswith("attention")]
    assert len({e["args"]["layer"] for e in ffn}) == 61
    overlapping = [
        (one["name"], other["name"])
        for one in ffn[:100]
        for other in attention
        if one["ts"] < other["ts"] + other["dur"] and other["ts"] < one["ts"] + one["dur"]
    ]
    assert overlapping
    assert all(one != other for one, other in overlapping)
