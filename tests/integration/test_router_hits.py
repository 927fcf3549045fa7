"""A conversation trace before SGLang workers, through real routers: all answered, hits in order.

The whole of Mooncake's trace takes minutes; adapters/README.md has its figures and the command.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from frontier_mock.config.scenario import load_scenario
from tests.integration.fleet import fleet, router

pytestmark = pytest.mark.integration

SCENARIO = """\
name: conversation-sglang
seed: 0
cluster:
  workers:
    - {name: w, count: 4, engine: sglang-0.5.23, model: meta-llama/Llama-3.1-8B-Instruct,
       hardware: h800, port: 0}
workload:
  kind: trace
  trace: synthetic:conversation
  pacing: timestamps
"""
REQUESTS = 1000


def replayed(name: str, policy: str, path: Path, directory: Path) -> tuple[dict[str, Any], str]:
    """`replay` of the scenario through a router: its result, and what terminal and page say."""
    directory.mkdir()
    with (
        fleet(load_scenario(str(path)), directory, "--oracle") as up,
        router(name, policy, up.urls, directory / "router.log") as url,
    ):
        argv = [sys.executable, "-m", "frontier_mock", "replay", str(path), "--url", url]
        argv += ["--clock-url", up.clock_url, "--requests", str(REQUESTS)]
        argv += ["--out", str(directory)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=True)
    result = json.loads((directory / "result.json").read_text())
    return result, done.stdout + (directory / "report.html").read_text()


@pytest.mark.parametrize("name", ["sglang-router", "smg"])
def test_every_request_is_answered_and_hits_are_in_order(name: str, tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO)
    found = {}
    for policy in ("cache_aware", "round_robin"):
        result, said = replayed(name, policy, path, tmp_path / policy)
        assert result["requests"] == {
            "submitted": REQUESTS,
            "completed": REQUESTS,
            "rejected": 0,
            "aborted": 0,
        }
        stats = result["cache_oracle"]
        assert stats["requests"] == REQUESTS
        assert said.count("regret, tokens/request") == 2
        assert said.count("against round robin") == 2
        assert said.count(f"{stats['regret_vs_oracle_tokens']:,.1f}") >= 2
        found[policy] = stats
    # Without the block that all prompts begin with.
    aware, turns = (found[policy]["beyond_common_prefix"] for policy in found)
    assert aware["unlimited"] >= aware["oracle"] >= aware["taken"] > turns["taken"] > 0
    regrets = [stats["regret_vs_oracle_tokens"] for stats in found.values()]
    assert 0 <= regrets[0] < regrets[1]
    assert found["cache_aware"]["regret_vs_round_robin_tokens"] < 0
