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
            report = _report(served.clock_url)
            router.kill()
    assert done.returncode == 0, done.stderr
    replayed = json.loads(result.read_text())
    assert replayed["requests"]["completed"] == 64
    assert (replayed["client"]["stalls"], replayed["client"]["grace_jumps"]) == (0, 0)
    transfers = report["transfers"]
    assert transfers["requests"] == 80
    assert transfers["failed"] == {}
    assert transfers["released"] == {"sent": 80}
    assert min(worker["requests"] for worker in report["workers"]) >= 20
    assert {link["name"][:2] for link in transfers["links"]} == {"p0", "p1", "d0", "d1"}


def _report(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/sim/report", timeout=10) as answer:
        report: dict[str, Any] = json.loads(answer.read())
    return report
