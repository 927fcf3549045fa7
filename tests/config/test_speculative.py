"""Speculative decoding from vLLM's flags and a scenario to what is simulated."""

import csv
import json
from pathlib import Path

import pytest

from frontier_mock.config.acceptance import AcceptanceCurve, acceptance_curves, rates_of_curve
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.journals import journal_lines, read_recording
from frontier_mock.config.resolve import (
    ResolvedCluster,
    resolve_scenario,
    resolve_single,
    resolve_single_sglang,
)
from frontier_mock.config.scenario import parse_scenario
from frontier_mock.config.sglang_flags import parse_sglang_args
from frontier_mock.config.sglang_front import server_args
from frontier_mock.config.speculative import CURVES, METHODS
from frontier_mock.config.vllm_flags import parse_serve
from frontier_mock.config.workloads import trace_search
from frontier_mock.core.journal import Journal
from frontier_mock.serving.specs import SglangSchedulerSpec

LENGTHS = (
    Path(__file__).resolve().parents[3]
    / "shared/data/measurements/speculative_acceptance_length.csv"
)
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def resolve(*argv: str, model: str = LLAMA) -> ResolvedCluster:
    args = parse_serve([model, *argv], {})
    return resolve_single(args.vllm, "h800", "vllm-0.33", 0)


def drafts(**config: object) -> list[str]:
    return ["--speculative-config", json.dumps(config)]


def test_a_drafter_gets_slots_memory_and_graphs_in_units_of_a_verification() -> None:
    plain, drafted = (
        resolve(),
        resolve(*drafts(method="eagle3", model="x", num_speculative_tokens=3)),
    )
    spec, step = drafted.spec.workers[0].scheduler, drafted.spec.workers[0].step
    assert spec.speculation is not None
    assert (spec.speculation.num_drafts, spec.speculation.lookahead) == (3, 3)
    assert spec.num_blocks < plain.spec.workers[0].scheduler.num_blocks
    assert step.cudagraph_sizes
    assert all(size % 4 == 0 for size in step.cudagraph_sizes)
    assert spec.async_scheduling


def test_look_up_needs_neither_memory_nor_slots_and_waits_for_the_step_before() -> None:
    plain = resolve("--cudagraph-capture-sizes", "5")
    found = resolve(
        *drafts(method="ngram", num_speculative_tokens=4), "--cudagraph-capture-sizes", "5"
    )
    spec = found.spec.workers[0].scheduler
    assert spec.speculation is not None
    assert spec.speculation.lookahead == 0
    assert spec.num_blocks == plain.spec.workers[0].scheduler.num_blocks
    assert not spec.async_scheduling


def test_short_forms_are_the_same() -> None:
    short = resolve("--spec-method", "ngram", "--spec-tokens", "4")
    assert short.spec == resolve(*drafts(method="ngram", num_speculative_tokens=4)).spec


def test_synthetic_acceptance_is_vllms() -> None:
    given = {"method": "ngram", "num_speculative_tokens": 3, "rejection_sample_method": "synthetic"}
    by_length = resolve(*drafts(**given, synthetic_acceptance_length=2.5))
    speculation = by_length.spec.workers[0].scheduler.speculation
    assert speculation is not None
    assert speculation.rates == (1.0, 0.5, 0.0)
    by_rates = resolve(*drafts(**given, synthetic_acceptance_rates=[0.9, 0.4, 0.1]))
    speculation = by_rates.spec.workers[0].scheduler.speculation
    assert speculation is not None
    assert speculation.rates == (0.9, 0.4, 0.1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "dflash", "num_speculative_tokens": 2}, "method: 'dflash' is not simulated"),
        ({"method": "egale", "num_speculative_tokens": 2}, "did you mean"),
        ({"method": "eagle"}, "num_speculative_tokens was not provided"),
        ({"method": "eagle", "num_speculative_tokens": 2}, "without speculative model"),
        ({"method": "ngram", "num_speculative_tokens": 0}, "is not in 1..128"),
        ({"method": "ngram", "num_speculative_token": 2}, "unknown key"),
        ({"method": "mtp", "num_speculative_tokens": 1}, "has no MTP layer"),
        ({"method": "ngram", "num_speculative_tokens": 2, "parallel_drafting": True}, "leave it"),
        (
            {"method": "ngram", "num_speculative_tokens": 2, "synthetic_acceptance_length": 2},
            "only valid with rejection_sample_method='synthetic'",
        ),
        (
            {
                "method": "ngram",
                "num_speculative_tokens": 2,
                "rejection_sample_method": "synthetic",
                "synthetic_acceptance_rates": [0.1, 0.2],
            },
            "must be non-increasing",
        ),
        (
            {"model": "Qwen/Qwen3-0.6B", "num_speculative_tokens": 2},
            "should have the same vocabulary size",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(config: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")) as error:
        resolve(*drafts(**config))
    assert "\n" not in str(error.value)


def test_pipeline_and_drafts_do_not_go_together() -> None:
    config = drafts(method="ngram", num_speculative_tokens=2)
    with pytest.raises(ConfigError, match="not simulated"):
        resolve(*config, "--pipeline-parallel-size", "2")


SCENARIO = """
name: drafts
cluster:
  workers:
    - model: meta-llama/Llama-3.1-8B-Instruct
      hardware: h800
      engine_args: {{speculative-config: {{method: ngram, num_speculative_tokens: 3}}}}
      speculation: {speculation}
"""


def of_scenario(speculation: str) -> ResolvedCluster:
    text = SCENARIO.format(speculation=speculation)
    return resolve_scenario(parse_scenario(text, "x.yaml", trace_search(None, {}, False)))


def test_a_scenario_says_what_is_accepted_and_a_journal_keeps_it(tmp_path: Path) -> None:
    cluster = of_scenario("{acceptance_rates: [0.5, 0.25, 0.1], proposed: 0.4}")
    speculation = cluster.spec.workers[0].scheduler.speculation
    assert speculation is not None
    assert (speculation.rates, speculation.proposed) == ((0.5, 0.25, 0.1), 0.4)
    file = tmp_path / "journal"
    file.write_text("".join(journal_lines(cluster, Journal())))
    again = read_recording(str(file)).cluster
    assert again.spec.workers[0].scheduler == cluster.spec.workers[0].scheduler


@pytest.mark.parametrize(
    ("speculation", "message"),
    [
        ("{acceptance_rates: [0.5]}", "3 drafts need as many rates"),
        ("{acceptance_length: 9}", r"must be in \[1, 4\]"),
        ("{acceptance_curve: eagle}", "no acceptance curve 'eagle'"),
        ("{acceptance_length: 2, acceptance_curve: mtp}", "at most one of"),
    ],
)
def test_a_scenarios_mistakes_are_told_in_one_line(speculation: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        of_scenario(speculation)


def test_a_curve_passes_through_its_lengths_and_goes_on() -> None:
    curve = AcceptanceCurve({1: 1.8, 3: 2.6}, "made up")
    rates = rates_of_curve(curve, 6)
    assert 1 + sum(rates[:1]) == pytest.approx(1.8)
    assert 1 + sum(rates[:3]) == pytest.approx(2.6)
    assert list(rates) == sorted(rates, reverse=True)
    assert rates[-1] > 0


def test_every_method_has_a_curve_with_a_source() -> None:
    for method in METHODS:
        assert acceptance_curves()[CURVES[method]].source


@pytest.mark.golden
def test_published_lengths_come_back() -> None:
    if not LENGTHS.is_file():
        pytest.skip("../shared/data is not there")
    names = {
        ("mtp", "on"): "mtp",
        ("eagle3", "on"): "eagle3",
        ("eagle3", "off"): "eagle3-no-thinking",
    }
    with LENGTHS.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    for row in rows:
        curve = acceptance_curves()[names[row["method"], row["thinking"]]]
        rates = rates_of_curve(curve, int(row["num_speculative_tokens"]))
        assert 1 + sum(rates) == pytest.approx(float(row["acceptance_length"]), abs=1e-6)


def sglang(*flags: str, model: str = LLAMA, hardware: str = "h800") -> ResolvedCluster:
    args, _ = parse_sglang_args(["--model-path", model, *flags])
    return resolve_single_sglang(args, hardware, "sglang-0.5.23", 0)


def test_sglang_reserves_room_for_two_verifications() -> None:
    plain = sglang()
    drafted = sglang(
        "--speculative-algorithm", "EAGLE", "--speculative-draft-model-path", "some/head"
    )
    spec = drafted.spec.workers[0].scheduler
    assert spec.speculation is not None
    # Llama's own (steps, branches, verified tokens) are (5, 4, 8).
    assert (spec.speculation.num_drafts, spec.speculation.width) == (5, 8)
    assert spec.speculation.reserve == 2 * 5 * 4
    assert isinstance(spec, SglangSchedulerSpec)
    assert spec.max_running_requests == 48
    assert spec.num_blocks < plain.spec.workers[0].scheduler.num_blocks
    step = drafted.spec.workers[0].step
    assert step.cudagraph_sizes[:3] == (8, 16, 24)
    assert step.draft is not None
    assert step.draft.graph_sizes is not None
    assert step.draft.graph_sizes[:3] == (4, 8, 12)


def test_nextn_is_the_layer_a_model_brings_along() -> None:
    flags = ("--speculative-algorithm", "NEXTN", "--tp-size", "8")
    cluster = sglang(*flags, model="deepseek-ai/DeepSeek-V3", hardware="h200")
    step = cluster.spec.workers[0].step
    assert step.draft is not None
    assert (step.draft.method, step.draft.verified, step.draft.passes) == ("mtp", 4, 3)
    shown = server_args(cluster.workers[0])
    assert shown["speculative_algorithm"] == "EAGLE"
    assert (shown["speculative_num_steps"], shown["speculative_num_draft_tokens"]) == (3, 4)
    # 48 requests at most, and so no larger graph.
    assert shown["cuda_graph_max_bs_decode"] == 48


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--speculative-algorithm", "DFLASH"], "'DFLASH' is not simulated; allowed: EAGLE"),
        (["--speculative-algorithm", "EAGEL"], "did you mean"),
        (["--speculative-algorithm", "STANDALONE"], "needs --speculative-draft-model-path"),
        (["--speculative-algorithm", "EAGLE"], "has no MTP layer"),
        (
            ["--speculative-algorithm", "NEXTN", "--speculative-eagle-topk", "2"],
            "--speculative-num-steps: is missing",
        ),
        (
            ["--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", "1"],
            "is not in 2..128",
        ),
    ],
)
def test_what_sglang_cannot_do_is_refused_in_one_line(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sglang(*flags)
