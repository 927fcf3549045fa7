"""Each adapter's launch line and scenario, as its README has them."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from frontier_mock.cli.demo import answers, free_ports, process, wait_until
from frontier_mock.config.scenario import load_scenario
from tests.integration.fleet import fleet

pytestmark = pytest.mark.integration

ADAPTERS = Path(__file__).resolve().parents[2] / "adapters"
EXEC = "import os, sys; os.environ['PYTHON'] = sys.executable; os.execv(sys.argv[1], sys.argv[1:])"


@pytest.mark.parametrize("name", ["sglang_router", "smg", "vllm_router"])
def test_launch_line_and_scenario(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install 'frontier-mock[integration]'")
    adapter = ADAPTERS / name
    scenario = load_scenario(str(adapter / "scenario.yaml"))
    port, metrics = free_ports(2)
    url, log, result = f"http://127.0.0.1:{port}", tmp_path / "router.log", tmp_path / "result.json"
    with fleet(scenario, tmp_path) as served:
        launch = [str(adapter / "launch"), str(port), str(metrics), "round_robin", *served.urls]
        with process(name, ["-c", EXEC, *launch], log) as router:
            wait_until(lambda: answers(f"{url}/v1/models"), router, name, log)
            replay = [sys.executable, "-m", "frontier_mock", "replay", scenario.source]
            replay += ["--url", url, "--clock-url", served.clock_url, "--json", str(result)]
            done = subprocess.run(replay, capture_output=True, text=True, timeout=60, check=False)
            router.kill()
    assert done.returncode == 0, done.stderr
    report = json.loads(result.read_text())
    assert report["requests"]["completed"] == 80
    assert (report["client"]["stalls"], report["client"]["grace_jumps"]) == (0, 0)
    assert all(worker["requests"] > 0 for worker in report["workers"])
