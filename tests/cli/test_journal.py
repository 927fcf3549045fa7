"""`simulate --journal` and `journal replay`: one run, told twice."""

import json
from pathlib import Path

import pytest

from frontier_mock.cli.main import main

MIXED = """
name: mixed
cluster:
  workers:
    - {name: a, model: meta-llama/Llama-3.1-8B-Instruct, engine: sglang-0.5.23}
    - {name: b, model: meta-llama/Llama-3.1-8B-Instruct, engine: vllm-0.33}
workload:
  kind: poisson
  rate_per_s: 20
  num_requests: 10
  input_tokens: {uniform: [1, 100]}
  output_tokens: {fixed: 4}
"""


def test_a_router_over_engines_with_pages_of_different_sizes_is_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario, journal, result = (tmp_path / name for name in ("m.yaml", "m.jsonl", "m.json"))
    scenario.write_text(MIXED)
    assert main(["simulate", str(scenario), "--journal", str(journal), "--json", str(result)]) == 0
    capsys.readouterr()
    assert main(["journal", "replay", str(journal)]) == 0
    assert capsys.readouterr().out.strip() == json.loads(result.read_text())["digest"]
