"""Sweeps: a cell is the scenario it says it is, and a capacity is the edge of the SLO."""

import csv
import json
from pathlib import Path

import pytest

from frontier_mock.cli.main import main
from frontier_mock.cli.sweep import good_share, play_cell
from frontier_mock.config.sweep import load_sweep

SCENARIO = """\
name: small
cluster:
  workers:
    - {name: w, count: 2, model: meta-llama/Llama-3.1-8B-Instruct}
workload: {kind: poisson, rate_per_s: 10, num_requests: 60, input_tokens: 500, output_tokens: 40}
slo: {ttft_ms: 100, tpot_ms: 12}
"""

AXES = """\
scenario: small.yaml
axes:
  cluster.workers.w.engine_args.max-num-seqs: [2, 64]
  layout:
    two: {cluster.workers.0.count: 2}
    one tp2: {cluster.workers.0.count: 1, cluster.workers.0.parallel.tp: 2}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(SCENARIO)
    return tmp_path


def sweep_file(folder: Path, text: str) -> str:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return str(path)


def test_a_cell_is_what_simulate_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "cells.json"
    name = sweep_file(folder, AXES)
    assert main(["sweep", name, "--json", str(out), "--out", str(folder), "--jobs", "2"]) == 0
    cells = json.loads(out.read_text())["cells"]
    labels = [tuple(cell["labels"].values()) for cell in cells]
    assert labels == [("2", "two"), ("2", "one tp2"), ("64", "two"), ("64", "one tp2")]
    changed = SCENARIO.replace(
        "count: 2", "count: 1, parallel: {tp: 2}, engine_args: {max-num-seqs: 2}"
    )
    (folder / "changed.yaml").write_text(changed)
    alone = folder / "alone.json"
    assert main(["simulate", str(folder / "changed.yaml"), "--json", str(alone)]) == 0
    assert json.loads(alone.read_text())["digest"] == cells[1]["result"]["digest"]
    assert len({cell["result"]["digest"] for cell in cells}) == 4
    with (folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["requests_per_s"]) for row in rows] == [
        cell["result"]["requests_per_s"] for cell in cells
    ]
    assert "one tp2" in capsys.readouterr().out


def test_capacity_is_the_edge_of_the_slo(folder: Path) -> None:
    text = "scenario: small.yaml\naxes: {seed: [0]}\n"
    text += "capacity: {key: workload.rate_per_s, low: 1, high: 400, share: 0.9}\n"
    sweep = load_sweep(sweep_file(folder, text))
    [cell] = sweep.cells()
    found = play_cell(sweep, cell)
    assert found.capacity is not None
    assert 1 < found.capacity < 400
    load = found.capacity * 1.1
    assert found.result is not None
    assert good_share(found.result) >= 0.9
    loaded = text.split("capacity")[0].replace("seed: [0]", f"workload.rate_per_s: [{load}]")
    more = load_sweep(sweep_file(folder, loaded))
    beyond = play_cell(more, more.cells()[0])
    assert beyond.result is not None
    assert good_share(beyond.result) < 0.9


def test_a_capacity_that_is_not_in_the_interval(folder: Path) -> None:
    text = "scenario: small.yaml\naxes: {seed: [0]}\ncapacity: {key: workload.rate_per_s, "
    sweep = load_sweep(sweep_file(folder, text + "low: 400, high: 500}\n"))
    assert play_cell(sweep, sweep.cells()[0]).capacity is None
    sweep = load_sweep(sweep_file(folder, text + "low: 1, high: 2}\n"))
    assert play_cell(sweep, sweep.cells()[0]).capacity == 2


def test_whole_numbers_only(folder: Path) -> None:
    text = "scenario: small.yaml\naxes: {workload.num_requests: [80]}\n"
    text += "capacity: {key: cluster.workers.w.count, low: 1, high: 9, whole: true, share: 0.1}\n"
    spec = load_sweep(sweep_file(folder, text)).capacity
    assert spec is not None
    assert [spec.between(1, 9), spec.between(1, 2), spec.between(2, 4)] == [3, None, 3]


def test_what_does_not_fit_is_a_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "scenario: small.yaml\naxes: {cluster.workers.w.model: [Qwen/Qwen3-8B, "
    text += "meta-llama/Llama-3.1-70B-Instruct]}\n"
    assert main(["sweep", sweep_file(folder, text), "--jobs", "1"]) == 0
    said = capsys.readouterr().out
    assert "No available memory for the cache blocks" in said
    assert said.count("Qwen/Qwen3-8B") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("axes: {seed: [0]}", "key scenario is missing"),
        ("scenario: nosuch\naxes: {seed: [0]}", "scenario 'nosuch': neither a file nor in"),
        ("scenario: small.yaml\naxes: {seed: 3}", "axes.seed: allowed: a list of values, or a"),
        ("scenario: small.yaml\naxes: {seed: []}", "axes.seed: allowed: a list of values, or a"),
        ("scenario: small.yaml\naxes: {seed: [zero]}", "sweep.yaml:2: seed: got 'zero'"),
        ("scenario: small.yaml\naxes: {cluster.workers.v.count: [1]}", "no 'v' in cluster.workers"),
        ("scenario: small.yaml\naxes: {name.x: [1]}", "name.x: name is 'small' and has no keys"),
        ("scenario: small.yaml\naxes: {workload..x: [1]}", "is not a path such as"),
        ("scenario: small.yaml\naxes: {workload.rat: [1]}", "unknown key 'rat'"),
        ("scenario: small.yaml\naxes: {a: {b: 1}}", "a named choice is a mapping of paths"),
        ("scenario: small.yaml\naxes: {seed: [0]}\ncolumns: [ttft]", "no result has 'ttft'"),
        (
            (
                "scenario: small.yaml\naxes: {slo: [null]}\n"
                "capacity: {key: workload.rate_per_s, low: 1, high: 2}"
            ),
            "capacity: the scenario has no slo to meet",
        ),
        (
            (
                "scenario: small.yaml\naxes: {seed: [0]}\n"
                "capacity: {key: workload.rate_per_s, low: 2, high: 2}"
            ),
            "capacity.high: 2 is not above low (2)",
        ),
    ],
)
def test_each_mistake_is_told_in_one_line(
    folder: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", sweep_file(folder, text), "--jobs", "1"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1
