"""Prefill and decode workers behind the routers that pair them."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from frontier_mock.cli.demo import answers, free_ports, process, wait_until
from frontier_mock.config.scenario import load_scenario
from tests.integration.fleet import fleet
from tests.integration.test_adapters import ADAPTERS, EXEC, need

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("name", "scenario_of", "words", "legs"),
    [
        ("vllm_router", "vllm_router/scenario-pd", ["nixl"], 1),
        ("vllm_router", "vllm_router/scenario-mooncake", ["mooncake"], 1),
        ("sglang_router", "sglang_router/scenario-pd", [], 2),
        ("smg", "sglang_router/scenario-pd", [], 2),
    ],
)
def test_a_router_pairs_prefill_and_decode_workers(
    name: str, scenario_of: str, words: list[str], legs: int, tmp_path: Path
) -> None:
    need(name)
    scenario = load_scenario(str(ADAPTERS / f"{scenario_of}.yaml"))
    port, metrics = free_ports(2)
    url, log, result = f"http://127.0.0.1:{port}", tmp_path / "router.log", tmp_path / "result.json"
    with fleet(scenario, tmp_path) as served:
        ready = json.loads((tmp_path / "ready.json").read_text())["workers"]
        prefill, decode = ready[:2], [worker["url"] for worker in ready[2:]]
        sources = [
            f"{one['url']}={one['bootstrap_port']}" if "bootstrap_port" in one else one["url"]
            for one in prefill
        ]
        launch = [str(ADAPTERS / name / "launch-pd"), str(port), str(metrics)]
        launch += [*words, *sources, "--", *decode]
        with process(name, ["-c", EXEC, *launch], log) as router:
            wait_until(lambda: answers(f"{url}/v1/models"), router, name, log)
            replay = [sys.executable, "-m", "frontier_mock", "replay", scenario.source]
            replay += ["--url", url, "--clock-url", served.clock_url, "--json", str(result)]
            replay += ["--legs", str(legs)]
            done = subprocess.run(replay, capture_output=True, text=True, timeout=60, check=False)
            report = _get(f"{served.clock_url}/sim/report")
            router.kill()
    assert done.returncode == 0, done.stderr
    replayed = json.loads(result.read_text())
    assert replayed["requests"]["completed"] == 64
    assert (replayed["client"]["stalls"], replayed["client"]["grace_jumps"]) == (0, 0)
    # What came over the fabric is no hit of the prefix cache.
    assert replayed["prefix_cache"]["hit_rate"] < 0.01
    transfers = report["transfers"]
    assert replayed["transfers"] == transfers
    assert transfers["requests"] == 80
    assert transfers["failed"] == {}
    assert transfers["released"] == {"sent": 80}
    assert min(worker["requests"] for worker in report["workers"]) >= 20
    assert {link["name"][:2] for link in transfers["links"]} == {"p0", "p1", "d0", "d1"}


FAILURES = """\
name: failures
cluster:
  workers:
    - {{name: p, count: 2, engine: {engine}, model: {model}, role: prefill, port: 0}}
    - {{name: d, count: 2, engine: {engine}, model: {model}, role: decode, port: 0}}
  fabric: {{gpus_per_node: 1}}
  timeline:
    - {{at_s: 0.5, worker: p0, do: link, factor: 0.02}}
    - {{at_s: 0.9, worker: d1, do: fail}}
    - {{at_s: 1.6, worker: d1, do: recover}}
    - {{at_s: 2.2, worker: p1, do: fail}}
    - {{at_s: 2.8, worker: p1, do: recover}}
workload:
  kind: closed_loop
  concurrency: 8
  num_requests: 100
  input_tokens: {{uniform: [200, 2000]}}
  output_tokens: {{uniform: [20, 100]}}
"""


@pytest.mark.parametrize(
    ("name", "engine", "words", "legs"),
    [("vllm_router", "vllm-0.33", ["nixl"], 1), ("sglang_router", "sglang-0.5.23", [], 2)],
)
def test_every_request_ends_whatever_happens_to_workers(
    name: str, engine: str, words: list[str], legs: int, tmp_path: Path
) -> None:
    need(name)
    path = tmp_path / "failures.yaml"
    path.write_text(FAILURES.format(engine=engine, model="meta-llama/Llama-3.1-8B-Instruct"))
    scenario = load_scenario(str(path))
    port, metrics = free_ports(2)
    url, log, result = f"http://127.0.0.1:{port}", tmp_path / "router.log", tmp_path / "result.json"
    with fleet(scenario, tmp_path) as served:
        ready = json.loads((tmp_path / "ready.json").read_text())["workers"]
        sources = [
            f"{one['url']}={one['bootstrap_port']}" if "bootstrap_port" in one else one["url"]
            for one in ready[:2]
        ]
        decode = [worker["url"] for worker in ready[2:]]
        launch = [str(ADAPTERS / name / "launch-pd"), str(port), str(metrics)]
        launch += [*words, *sources, "--", *decode]
        with process(name, ["-c", EXEC, *launch], log) as router:
            wait_until(lambda: answers(f"{url}/v1/models"), router, name, log)
            replay = [sys.executable, "-m", "frontier_mock", "replay", str(path), "--url", url]
            replay += ["--clock-url", served.clock_url, "--json", str(result), "--legs", str(legs)]
            subprocess.run(replay, capture_output=True, text=True, timeout=90, check=False)
            router.kill()
        now_ns = _get(f"{served.clock_url}/sim/clock")["now_ns"]
        # Whatever is still held for somebody who will not come is free after its patience.
        _post(f"{served.clock_url}/sim/clock/advance", {"until_ns": now_ns + 700 * 10**9})
        truth = _get(f"{served.clock_url}/sim/truth")
    requests = json.loads(result.read_text())["requests"]
    assert requests["completed"] + requests["rejected"] == 100
    assert requests["completed"] >= 60
    for worker in truth["workers"]:
        assert (worker["running"], worker["waiting"], worker["in_frontend"]) == (0, 0, 0)
        assert worker["free_blocks"] == worker["num_blocks"]


FULL = """\
name: full
cluster:
  workers:
    - {{name: p, count: 2, engine: {engine}, model: {model}, role: prefill, port: 0}}
    - {{name: d, engine: {engine}, model: {model}, role: decode, port: 0, engine_args: {args}}}
  fabric: {{gpus_per_node: 1}}
workload:
  kind: closed_loop
  concurrency: 16
  num_requests: 48
  input_tokens: {{uniform: [800, 1500]}}
  output_tokens: {{uniform: [20, 60]}}
"""


@pytest.mark.parametrize(
    ("name", "engine", "args", "words", "legs"),
    [
        (
            "vllm_router",
            "vllm-0.33",
            "{num-gpu-blocks-override: 300, max-model-len: 4096}",
            ["nixl"],
            1,
        ),
        ("sglang_router", "sglang-0.5.23", "{max-total-tokens: 5000}", [], 2),
    ],
)
def test_a_full_decode_pool_loses_nobody(
    name: str, engine: str, args: str, words: list[str], legs: int, tmp_path: Path
) -> None:
    need(name)
    path = tmp_path / "full.yaml"
    model = "meta-llama/Llama-3.1-8B-Instruct"
    path.write_text(FULL.format(engine=engine, model=model, args=args))
    scenario = load_scenario(str(path))
    port, metrics = free_ports(2)
    url, log, result = f"http://127.0.0.1:{port}", tmp_path / "router.log", tmp_path / "result.json"
    with fleet(scenario, tmp_path) as served:
        ready = json.loads((tmp_path / "ready.json").read_text())["workers"]
        sources = [
            f"{one['url']}={one['bootstrap_port']}" if "bootstrap_port" in one else one["url"]
            for one in ready[:2]
        ]
        launch = [str(ADAPTERS / name / "launch-pd"), str(port), str(metrics)]
        launch += [*words, *sources, "--", ready[2]["url"]]
        with process(name, ["-c", EXEC, *launch], log) as router:
            wait_until(lambda: answers(f"{url}/v1/models"), router, name, log)
            replay = [sys.executable, "-m", "frontier_mock", "replay", str(path), "--url", url]
            replay += ["--clock-url", served.clock_url, "--json", str(result), "--legs", str(legs)]
            subprocess.run(replay, capture_output=True, text=True, timeout=90, check=False)
            router.kill()
        report = _get(f"{served.clock_url}/sim/report")
        truth = _get(f"{served.clock_url}/sim/truth")
    assert json.loads(result.read_text())["requests"]["completed"] == 48
    parts = report["transfers"]["ttft_parts_ms"]
    # vLLM computes first and waits for blocks then, SGLang the other way round.
    waited = parts["decode_queue" if legs == 1 else "queue"]
    assert waited["max"] > 100
    for worker in truth["workers"]:
        assert worker["free_blocks"] == worker["num_blocks"]


def _get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        told: dict[str, Any] = json.loads(answer.read())
    return told


def _post(url: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=30).close()
