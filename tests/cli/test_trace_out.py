"""--trace-out: the run as Perfetto shows it, from a scenario or from a journal."""

import json
from pathlib import Path

import pytest

from frontier_mock.cli.main import main

SCENARIO = """
name: traced
cluster:
  workers:
    - name: a
      model: stepfun-ai/step3-fp8
      parallel: {tp: 4}
      afd: {ffn: {instances: 2}}
      engine_args: {max-num-seqs: 8, max-model-len: 2048}
workload:
  kind: burst
  num_requests: 12
  input_tokens: {uniform: [10, 300]}
  output_tokens: {uniform: [1, 30]}
"""


def test_a_journal_gives_the_trace_of_its_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario, journal = tmp_path / "traced.yaml", tmp_path / "run.journal"
    scenario.write_text(SCENARIO, encoding="utf-8")
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    flags = ["--journal", str(journal), "--trace-out", str(first)]
    assert main(["simulate", str(scenario), *flags]) == 0
    assert main(["journal", "replay", str(journal), "--trace-out", str(second)]) == 0
    capsys.readouterr()
    assert first.read_bytes() == second.read_bytes()
    trace = json.loads(first.read_text(encoding="utf-8"))
    assert {event["name"] for event in trace["traceEvents"]} >= {"request", "micro-batch 2"}


def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = tmp_path / "traced.yaml"
    scenario.write_text(SCENARIO, encoding="utf-8")
    assert main(["simulate", str(scenario), "--trace-out", str(tmp_path / "no" / "t.json")]) == 2
    assert "t.json" in capsys.readouterr().err
