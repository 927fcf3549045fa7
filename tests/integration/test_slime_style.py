"""slime's manner of rolling out, by its adapter's glue, through two real routers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from frontier_mock.cli.demo import answers, free_ports, healthy_workers, process, wait_until
from frontier_mock.config.scenario import load_scenario
from tests.integration.fleet import fleet
from tests.integration.test_adapters import ADAPTERS, EXEC, need

pytestmark = pytest.mark.integration

ADAPTER = ADAPTERS / "slime_style"


@pytest.mark.parametrize(("router", "module"), [("sglang-router", "sglang_router"), ("smg", "smg")])
def test_partial_rollouts_add_up(router: str, module: str, tmp_path: Path) -> None:
    need(module)
    scenario = load_scenario(str(ADAPTER / "scenario.yaml"))
    port, metrics = free_ports(2)
    url, log = f"http://127.0.0.1:{port}", tmp_path / "router.log"
    with fleet(scenario, tmp_path, "--clock", "scaled:20") as served:
        launch = [str(ADAPTER / "launch"), router, str(port), str(metrics), *served.urls]
        with process(router, ["-c", EXEC, *launch], log) as running:
            wait_until(lambda: answers(f"{url}/health"), running, router, log)
            wait_until(lambda: healthy_workers(url) == 2, running, router, log)
            loop = [sys.executable, str(ADAPTER / "loop.py"), url, "3"]
            done = subprocess.run(loop, capture_output=True, text=True, timeout=120, check=False)
            running.kill()
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["workers"] == 2
    # Three steps of 16 samples, at least ten complete in each.
    assert said["complete"] >= 30
    assert said["complete"] + said["partial"] == 3 * 16
    assert said["partial"] > 0
    assert said["resumed"] > 0
    assert said["versions"] == ["default", "step-1", "step-2"]
