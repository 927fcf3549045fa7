"""`frontier-mock calibrate`: constants that were changed on purpose are found again."""

import json
from pathlib import Path

import pytest
import yaml

from frontier_mock.cli import calibrate
from frontier_mock.cli.calibration import UNCHANGED, changed, compare, split
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.profiles import load_engine, load_hardware
from frontier_mock.config.resolve import resolve_single
from frontier_mock.config.vllm_flags import VllmArgs
from frontier_mock.workload.observations import Observation, read_observations
from frontier_mock.workload.specs import ClosedLoopSpec, FixedTokens, PromptSpec

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
SERVER = ["--", "vllm", "serve", MODEL, "--max-model-len", "4096", "--sim-hardware", "h800"]
LOADS = [(200, 100, 1), (200, 60, 8), (1500, 20, 4), (100, 60, 48)]


def write_results(folder: Path, factors: dict[str, float]) -> list[str]:
    """Result files as `vllm bench serve` would write them on a machine with other constants."""
    cluster = resolve_single(VllmArgs(model=MODEL, max_model_len=4096), "h800", "vllm-0.33", 0)
    paths = []
    for prompt, output, lanes in LOADS:
        count = 3 * lanes + 5
        lengths = PromptSpec(FixedTokens(prompt), FixedTokens(output))
        load = ClosedLoopSpec(lengths, lanes, count)
        (seen,) = compare(cluster, factors, [Observation("x", load, None, 1.0, 1.0, 1.0)])
        document = {
            "completed": count,
            "request_rate": "inf",
            "max_concurrency": lanes,
            "total_input_tokens": prompt * count,
            "total_output_tokens": output * count,
            "mean_ttft_ms": seen.ttft + 1.0,
            "mean_tpot_ms": seen.tpot + 1.0,
            "output_throughput": seen.output_tokens_per_s + 1.0,
        }
        path = folder / f"c{lanes}.json"
        path.write_text(json.dumps(document))
        paths.append(str(path))
    return paths


def test_a_slower_machine_is_recognised_and_its_profile_can_be_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("scipy")
    truth = {**UNCHANGED, "frontend": 2.0, "memory": 0.85}
    out = tmp_path / "ours.yaml"
    results = write_results(tmp_path, truth)
    assert calibrate.run([*results, "--out", str(out), *SERVER]) == 0
    written = yaml.safe_load(out.read_text())["calibration"]
    assert written["factors"]["memory"] == pytest.approx(0.85, rel=0.03)
    assert written["factors"]["frontend"] == pytest.approx(2.0, rel=0.1)
    assert written["factors"]["cpu"] == pytest.approx(1.0, abs=0.02)  # hidden: nothing tells
    held_back = written["held_back"]
    assert held_back["before"]["tpot_off"] > 8.0
    assert held_back["after"]["tpot_off"] < 1.0
    assert "held back" in capsys.readouterr().out
    calibrated = resolve_single(VllmArgs(model=MODEL), str(out), str(out), 0)
    step = calibrated.spec.workers[0].step
    assert step.hardware.hbm_bytes_per_s == pytest.approx(0.85 * 3.35e12, rel=0.03)
    assert step.engine.frontend_s > 0.0105


def test_only_what_is_asked_for_changes(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    results = write_results(tmp_path, {**UNCHANGED, "memory": 0.9})
    out = tmp_path / "ours.yaml"
    assert calibrate.run([*results, "--fit", "frontend", "--out", str(out), *SERVER]) == 0
    factors = yaml.safe_load(out.read_text())["calibration"]["factors"]
    assert (factors["memory"], factors["compute"], factors["cpu"]) == (1.0, 1.0, 1.0)


def test_factors_of_one_change_nothing() -> None:
    step = resolve_single(VllmArgs(model=MODEL), "h800", "vllm-0.33", 0).spec.workers[0].step
    assert changed(step, UNCHANGED) == step


def test_few_results_are_all_fitted_and_others_keep_a_part_back() -> None:
    document = {
        "completed": 1,
        "request_rate": "inf",
        "max_concurrency": 1,
        "total_input_tokens": 9,
        "total_output_tokens": 9,
        "mean_ttft_ms": 1.0,
        "mean_tpot_ms": 1.0,
        "output_throughput": 1.0,
    }
    seen = [read_observations(document, f"r{i}")[0] for i in range(10)]
    fitted, held = split(seen, 0.3)
    assert (len(fitted), len(held)) == (7, 3)
    assert not {o.name for o in fitted} & {o.name for o in held}
    assert split(seen[:3], 0.5) == (seen[:3], [])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["r.json", "--fit", "luck", *SERVER], "--fit: 'luck' is not known; allowed: cpu, "),
        (["r.json", "--hold-back", "1.5", *SERVER], "--hold-back: 1.5 is not allowed"),
        (["missing.json", *SERVER], "missing.json: No such file or directory"),
    ],
)
def test_a_bad_command_line_is_refused_in_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        calibrate.run(argv)


def test_a_file_that_is_no_result_and_a_missing_server_are_named(tmp_path: Path) -> None:
    text = tmp_path / "r.json"
    text.write_text("hello")
    with pytest.raises(ConfigError, match="not JSON"):
        calibrate.run([str(text), *SERVER])
    write_results(tmp_path, dict(UNCHANGED))
    with pytest.raises(ConfigError, match="the server's command is missing"):
        calibrate.run([str(tmp_path / "c1.json")])


def test_a_profile_file_that_is_none_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "p.yaml"
    bad.write_text("hardware: {name: h800}\n")
    with pytest.raises(ConfigError, match="has no hardware as"):
        load_hardware(str(bad))
    with pytest.raises(ConfigError, match="has no engine as"):
        load_engine(str(bad))
    with pytest.raises(ConfigError, match="No such file"):
        load_engine(str(tmp_path / "absent.yaml"))
