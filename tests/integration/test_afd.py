"""Instances with attention and FFN apart behind an unmodified router: it sees attention only."""

import json
from pathlib import Path

import pytest

from frontier_mock.config.scenario import load_scenario
from tests.integration.fleet import MODEL, digest_of_journal, fleet, play, router

pytestmark = pytest.mark.integration

SCENARIO = f"""
name: afd
cluster:
  workers:
    - name: a
      count: 2
      model: stepfun-ai/step3-fp8
      hardware: h20
      parallel: {{tp: 4}}
      afd: {{ffn: {{instances: 2, hardware: h800}}}}
      engine_args: {{served-model-name: {MODEL}, max-model-len: 8192}}
      port: 0
workload:
  kind: sessions
  num_sessions: 12
  rate_per_s: 20
  turns: 4
  first_input_tokens: {{uniform: [100, 300]}}
  input_tokens: {{uniform: [10, 60]}}
  output_tokens: {{uniform: [1, 64]}}
  think_time_s: {{exponential: 1.0}}
"""


async def test_agents_decode_on_disaggregated_instances_through_a_router(tmp_path: Path) -> None:
    path = tmp_path / "afd.yaml"
    path.write_text(SCENARIO, encoding="utf-8")
    scenario = load_scenario(str(path))
    with (
        fleet(scenario, tmp_path) as served,
        router("sglang-router", "round_robin", served.urls, tmp_path / "router.log") as url,
    ):
        played = await play(scenario, [url], served.clock_url)
        ready = json.loads((tmp_path / "ready.json").read_text())["workers"]
    assert [worker["name"] for worker in ready] == ["a0", "a1"]
    assert (played.errors, played.failures, played.stalls, played.guesses) == (0, [], 0, 0)
    assert len(played.exchanges) == 48
    assert played.digest == digest_of_journal(served.journal)
