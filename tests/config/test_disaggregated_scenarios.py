"""Scenarios with prefill and decode pools: what they say, and what then happens."""

from pathlib import Path
from typing import Any

import pytest

from frontier_mock.cluster.build import build_cluster
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.journals import journal_lines, read_recording
from frontier_mock.config.resolve import resolve_scenario
from frontier_mock.config.scenario import ScenarioSpec, load_scenario
from frontier_mock.core.commands import Change
from frontier_mock.core.events import Finished, KvReceived, Submitted, prefill_leg
from frontier_mock.core.journal import Journal
from frontier_mock.drive.offline import replay, run
from frontier_mock.report.summary import Result, report_cluster
from frontier_mock.simtime import NS_PER_S, from_seconds
from frontier_mock.workload.build import build_source

MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def scenario(directory: Path, workers: str, workload: str, more: str = "") -> ScenarioSpec:
    path = directory / "s.yaml"
    path.write_text(
        f"name: s\ncluster:\n  workers:\n{workers}"
        f"  router: {{decode_policy: least_loaded}}\n  fabric: {{gpus_per_node: 1}}\n{more}"
        f"workload: {workload}\n"
    )
    return load_scenario(str(path))


def pool(name: str, count: int, role: str, engine: str = "vllm-0.33") -> str:
    fields = f"name: {name}, count: {count}, role: {role}, engine: {engine}, model: {MODEL}"
    return f"    - {{{fields}, port: 0}}\n"


def played(spec: ScenarioSpec, journal: Journal | None = None) -> tuple[Result, list[Any]]:
    resolved = resolve_scenario(spec)
    cluster = build_cluster(resolved.spec, resolved.costs)
    assert spec.workload is not None
    done = run(cluster, build_source(spec.workload, seed=0), journal)
    for worker in cluster.workers:
        worker.kv.check()
        assert worker.scheduler.num_live == 0
    measured = [item.measured for item in done.items]
    return report_cluster(cluster, "s", 0.0, measured).result, cluster.log.events


LOAD = "{kind: poisson, rate_per_s: %s, num_requests: 200, input_tokens: %s, output_tokens: %s}"


@pytest.mark.parametrize("engine", ["vllm-0.33", "sglang-0.5.23"])
def test_the_five_parts_add_up_to_the_time_to_first_token(engine: str, tmp_path: Path) -> None:
    pools = pool("p", 1, "prefill", engine) + pool("d", 2, "decode", engine)
    result, _ = played(scenario(tmp_path, pools, LOAD % (6, 2000, 100)))
    transfers = result["transfers"]
    assert transfers["requests"] == 200
    parts = sum(part["mean"] or 0.0 for part in transfers["ttft_parts_ms"].values())
    assert parts == pytest.approx(result["ttft_ms"]["mean"], rel=1e-9)
    sent = {link["name"]: link["gigabytes"] for link in transfers["links"]}
    assert sent["p nic out"] == pytest.approx(sent["d0 nic in"] + sent["d1 nic in"])
    assert sent["p nic out"] == pytest.approx(transfers["gigabytes"])


@pytest.mark.parametrize("engine", ["vllm-0.33", "sglang-0.5.23"])
def test_prefill_stalls_decode_only_where_they_share_an_engine(engine: str, tmp_path: Path) -> None:
    load = LOAD % (4, 8000, 300)
    apart = pool("p", 2, "prefill", engine) + pool("d", 2, "decode", engine)
    together = pool("w", 4, "colocated", engine)
    disaggregated, _ = played(scenario(tmp_path, apart, load))
    colocated, _ = played(scenario(tmp_path, together, load))
    worst = disaggregated["itl_ms"]["max"]
    assert worst is not None
    assert worst < 1.6 * (disaggregated["itl_ms"]["p50"] or 0)
    assert (colocated["itl_ms"]["max"] or 0) > 10 * worst


def test_ratios_rank_as_the_work_does(tmp_path: Path) -> None:
    """Long prompts want prefill engines, long outputs decode engines."""

    def makespan_s(prefill: int, load: str) -> float:
        pools = pool("p", prefill, "prefill") + pool("d", 4 - prefill, "decode")
        return played(scenario(tmp_path, pools, load))[0]["duration_s"]

    long_prompts = "{kind: burst, num_requests: 60, input_tokens: 16000, output_tokens: 8}"
    long_outputs = "{kind: burst, num_requests: 800, input_tokens: 64, output_tokens: 300}"
    by_prompts = [makespan_s(prefill, long_prompts) for prefill in (1, 2, 3)]
    by_outputs = [makespan_s(prefill, long_outputs) for prefill in (1, 2, 3)]
    assert by_prompts[0] > by_prompts[1] > by_prompts[2]
    assert by_outputs[0] < by_outputs[1] < by_outputs[2]


TIMELINE = """\
  timeline:
    - {at_s: 0, worker: d2, do: leave}
    - {at_s: 4, worker: d2, do: start, load_s: 1}
    - {at_s: 8, worker: d0, do: fail}
    - {at_s: 11, worker: d0, do: recover}
    - {at_s: 14, worker: p1, do: decode}
    - {at_s: 17, worker: p0, do: link, factor: 0.05}
    - {at_s: 18, worker: p0, do: cut}
"""


@pytest.mark.parametrize("engine", ["vllm-0.33", "sglang-0.5.23"])
def test_what_happens_to_workers_while_they_serve(engine: str, tmp_path: Path) -> None:
    pools = pool("p", 2, "prefill", engine) + pool("d", 3, "decode", engine)
    spec = scenario(tmp_path, pools, LOAD % (8, 2000, 200), TIMELINE)
    journal = Journal()
    result, events = played(spec, journal)
    counts = result["requests"]
    assert counts["completed"] + counts["aborted"] == counts["submitted"] == 200
    assert result["outcomes"]["aborted: error"] == counts["aborted"] > 0
    arrivals = [event for event in events if isinstance(event, Submitted) and event.rid >= 0]

    def served(worker: int, first_s: float, last_s: float) -> int:
        first_ns, last_ns = from_seconds(first_s), from_seconds(last_s)
        return sum(e.worker == worker and first_ns < e.t_ns < last_ns for e in arrivals)

    assert served(4, 0, 5) == 0 < served(4, 5, 8)
    assert served(2, 8, 11) == 0 < served(2, 11, 14)
    assert served(1, 0, 14) == 0 < served(1, 14, 25)
    legs = [event.worker for event in events if isinstance(event, Submitted) and event.rid < -1]
    assert sorted(set(legs)) == [0, 1]
    slow = [e for e in events if isinstance(e, KvReceived) and e.t_ns > 19 * NS_PER_S]
    quick = [e for e in events if isinstance(e, KvReceived) and e.t_ns < 17 * NS_PER_S]
    assert min(e.t_ns - e.computed_ns for e in slow) > max(e.t_ns - e.computed_ns for e in quick)
    ended = [event.rid for event in events if isinstance(event, Finished)]
    assert all(prefill_leg(rid) in ended for rid in range(200))
    path = tmp_path / "journal"
    path.write_text("".join(journal_lines(resolve_scenario(spec), journal)))
    recording = read_recording(str(path))
    again = build_cluster(recording.cluster.spec, recording.cluster.costs)
    assert replay(again, recording.journal) == result["digest"]


def test_a_worker_starts_when_its_weights_are_loaded(tmp_path: Path) -> None:
    pools = pool("p", 1, "prefill") + pool("d", 1, "decode")
    more = "  timeline: [{at_s: 2, worker: d, do: start}]\n"
    resolved = resolve_scenario(scenario(tmp_path, pools, LOAD % (1, 10, 10), more))
    ((at_ns, change),) = resolved.spec.timeline
    # 16 GB of weights over 64 GB/s.
    assert (at_ns - 2 * NS_PER_S) / NS_PER_S == pytest.approx(0.25, rel=0.02)
    assert change == Change(1, "join")


def test_a_timeline_names_workers_that_are_there(tmp_path: Path) -> None:
    pools = pool("p", 1, "prefill") + pool("d", 1, "decode")
    more = "  timeline: [{at_s: 2, worker: dd, do: fail}]\n"
    spec = scenario(tmp_path, pools, LOAD % (1, 10, 10), more)
    with pytest.raises(ConfigError, match=r"s\.yaml:8: .*no worker is named 'dd' \(did you mean d"):
        resolve_scenario(spec)
