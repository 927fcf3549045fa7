"""Images at the beginning of synthetic prompts, played offline."""

import json
from pathlib import Path

import pytest

from frontier_mock.cli.main import main
from frontier_mock.cli.replay import run as replay
from frontier_mock.cli.simulate import scenario_source, simulate
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.resolve import resolve_scenario
from frontier_mock.config.scenario import load_scenario
from frontier_mock.report.summary import Result

SCENARIO = """\
name: pictures
cluster:
  workers:
    - {{name: w, count: 2, engine: {engine}, model: {model}}}
{more}  fabric: {{gpus_per_node: 1}}
workload:
  kind: poisson
  rate_per_s: 4
  num_requests: 40
  input_tokens: {tokens}
  output_tokens: 20
  images: {images}
"""
SEEING = "Qwen/Qwen2.5-VL-7B-Instruct"
ENCODERS = "    - {name: e, count: 2, model: Qwen/Qwen2.5-VL-7B-Instruct, role: encoder}\n"


def written(
    directory: Path,
    images: str,
    *,
    tokens: int = 3000,
    engine: str = "vllm-0.33",
    model: str = SEEING,
    more: str = "",
) -> str:
    path = directory / "pictures.yaml"
    path.write_text(
        SCENARIO.format(images=images, tokens=tokens, engine=engine, model=model, more=more)
    )
    return str(path)


def played(path: str) -> Result:
    scenario = load_scenario(path)
    resolved = resolve_scenario(scenario)
    source, _ = scenario_source(scenario, None, None, cluster=resolved)
    return simulate(scenario, resolved, source, None).result


@pytest.mark.parametrize("engine", ["vllm-0.33", "sglang-0.5.23"])
def test_images_cost_time_to_first_token_and_encoders_apart_save_it(
    engine: str, tmp_path: Path
) -> None:
    def ttft_ms(images: str, more: str = "") -> float:
        result = played(written(tmp_path, images, engine=engine, more=more))
        assert result["requests"]["completed"] == 40
        return result["ttft_ms"]["p50"] or 0.0

    text, two, small = ttft_ms("null"), ttft_ms("{count: 2}"), ttft_ms("{width: 224, height: 224}")
    # 14.2 ms each, in one call.
    assert two - text == pytest.approx(28.3, abs=6)
    assert 4 < small - text < 12
    # They all show the same image: it is encoded once by each worker.
    assert ttft_ms("{count: 2, distinct: 1}") - text < 3
    # Two encoders work side by side, and what they make has to move.
    assert text + 14 < ttft_ms("{count: 2}", ENCODERS) < two


def test_encoders_are_in_the_report(tmp_path: Path) -> None:
    result = played(written(tmp_path, "{count: 2}", more=ENCODERS))
    assert result["encoding"]["images"] == result["encoding"]["encoded"] == 80
    # 1,369 tokens of 3,584 numbers of two bytes.
    assert result["encoding"]["gigabytes"] == pytest.approx(80 * 1369 * 3584 * 2 / 1e9)
    busy = {role["role"]: role["utilization"] for role in result["roles"]}
    assert 0 < busy["encoder"] < 1


@pytest.mark.parametrize("engine", ["vllm-0.33", "sglang-0.5.23"])
def test_a_journal_remembers_who_encodes(
    engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ENCODERS.replace("{name: e,", f"{{name: e, engine: {engine},")
    path = written(tmp_path, "{count: 2}", engine=engine, more=more)
    journal, result = tmp_path / "journal.jsonl", tmp_path / "result.json"
    assert main(["simulate", path, "--journal", str(journal), "--json", str(result)]) == 0
    capsys.readouterr()
    assert main(["journal", "replay", str(journal)]) == 0
    assert capsys.readouterr().out.strip() == json.loads(result.read_text())["digest"]


def test_what_cannot_be_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2000 tokens has no room for 2 images of 1371"):
        played(written(tmp_path, "{count: 2}", tokens=2000))
    with pytest.raises(ConfigError, match="images: Qwen/Qwen3-8B takes none"):
        played(written(tmp_path, "{}", model="Qwen/Qwen3-8B"))
    with pytest.raises(ConfigError, match="aspect ratio"):
        played(written(tmp_path, "{width: 1000, height: 1}"))
    with pytest.raises(ConfigError, match=r"workload\.images"):
        load_scenario(written(tmp_path, "{with: 3}"))
    with pytest.raises(ConfigError, match="only --api chat sends them"):
        replay([written(tmp_path, "{}"), "--url", "http://127.0.0.1:9"])
