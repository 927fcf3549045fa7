"""SGLang's flags, and what SGLang makes of the ones not given."""

import json
from pathlib import Path

import pytest

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.journals import journal_lines, read_recording
from frontier_mock.config.resolve import resolve_scenario, resolve_single_sglang
from frontier_mock.config.scenario import parse_scenario
from frontier_mock.config.sglang_flags import (
    SglangArgs,
    parse_sglang_args,
    parse_sglang_serve,
    sglang_flags,
)
from frontier_mock.config.workloads import TraceSearch
from frontier_mock.core.journal import Journal
from frontier_mock.serving.specs import SglangSchedulerSpec

FACTS = Path(__file__).resolve().parents[3] / "shared/specs/sglang_flags_0.5.23.txt"
MODEL = "Qwen/Qwen3-32B"


def scheduler_of(
    *argv: str, engine: str = "sglang-0.5.23", gpu: str = "h100"
) -> SglangSchedulerSpec:
    args, _ = parse_sglang_args(["--model", MODEL, *argv])
    (worker,) = resolve_single_sglang(args, gpu, engine, 0).spec.workers
    assert isinstance(worker.scheduler, SglangSchedulerSpec)
    return worker.scheduler


def test_every_flag_of_the_release_is_accepted_under_its_own_name() -> None:
    if not FACTS.exists():
        pytest.skip(f"{FACTS} is not here; it comes with the project's shared data")
    known = {flag.name for flag in sglang_flags()}
    # Fields without a generated flag, for which `add_cli_args` spells one out.
    spelled = {"disable_cuda_graph", "enable_dp_attention", "sampling_backend"}
    spelled |= {"kv_canary_real_data", "reasoning_parser", "tool_call_parser"}
    for line in FACTS.read_text().splitlines():
        if line.startswith("##") or ":" not in line:
            continue
        name = line.split(":")[0]
        if "nocli" in line.lower() and name not in spelled:
            continue
        assert name in known, name


def test_parsers_of_output_have_names() -> None:
    args, _ = parse_sglang_args(
        ["--model", MODEL, "--tool-call-parser", "qwen25", "--reasoning-parser", "auto"]
    )
    assert dict(args.given)["tool_call_parser"] == "qwen25"
    with pytest.raises(ConfigError, match="--tool-call-parser"):
        parse_sglang_args(["--model", MODEL, "--tool-call-parser", "qwen26"])


def test_a_file_may_hold_flags(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(f"model-path: {MODEL}\npage-size: 16\nenable-metrics: true\n")
    args = parse_sglang_serve(["--config", str(file), "--page-size", "32"]).sglang
    given = dict(args.given)
    assert (args.model_path, given["page_size"], given["enable_metrics"]) == (MODEL, 32, True)


def test_flags_without_effect_are_named() -> None:
    args, idle = parse_sglang_args(["--model", MODEL, "--tp", "2", "--revision", "main"])
    assert (args.tp_size, args.model_path, idle) == (2, MODEL, ("--revision",))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["--schedule-policy", "hrrn"],
            "--schedule-policy: 'hrrn' is not simulated; allowed: fcfs",
        ),
        (["--speculative-algorithm", "DFLASH"], "'DFLASH' is not simulated; allowed: EAGLE"),
        (["--pp-size", "65"], "--pp-size: 65 is not in 1..64"),
        (["--pp-max-micro-batch-size", "0"], "--pp-max-micro-batch-size: 0 is not in 1.."),
        (
            ["--quantization", "bitsandbytes"],
            "--quantization: 'bitsandbytes' is not simulated; allowed: fp8",
        ),
        (["--mem-fraction-static", "1.5"], "--mem-fraction-static: 1.5 is not in 0.01..1"),
        (["--chunked-prefil-size", "1"], "did you mean --chunked-prefill-size"),
    ],
)
def test_what_is_not_simulated_is_refused_by_name(argv: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_sglang_args(["--model", MODEL, *argv])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_defaults_come_from_the_gpu() -> None:
    h100 = scheduler_of()
    assert h100.chunked_prefill_size == 8192
    assert h100.page_size == 1
    assert h100.max_running_requests == 2048
    assert (h100.schedule_policy, h100.enable_overlap, h100.enable_mixed_chunk) == (
        "fcfs",
        True,
        False,
    )
    assert scheduler_of("--quantization", "fp8", gpu="l40s").chunked_prefill_size == 4096
    assert not h100.classic
    assert scheduler_of(engine="sglang-0.5.9").classic


def test_graphs_go_to_256_with_one_gpu_and_512_with_four() -> None:
    def graphs(*argv: str) -> tuple[int, ...]:
        args, _ = parse_sglang_args(["--model", MODEL, *argv])
        (worker,) = resolve_single_sglang(args, "h100", "sglang-0.5.23", 0).spec.workers
        return worker.step.cudagraph_sizes

    assert graphs()[:7] == (1, 2, 4, 8, 12, 16, 24)
    assert graphs()[-1] == 256
    assert graphs("--tp", "4")[-3:] == (480, 496, 512)
    assert graphs("--max-running-requests", "20")[-2:] == (16, 20)
    assert graphs("--cuda-graph-max-bs", "10") == (1, 2, 4, 8, 10)
    assert graphs("--disable-cuda-graph") == ()


def test_prompts_have_graphs_of_their_own_since_0_5_23() -> None:
    def graphs(*argv: str, engine: str = "sglang-0.5.23") -> tuple[int, ...]:
        args, _ = parse_sglang_args(["--model", MODEL, *argv])
        (worker,) = resolve_single_sglang(args, "h100", engine, 0).spec.workers
        assert worker.step.prompt_graph_sizes is not None
        return worker.step.prompt_graph_sizes

    assert graphs()[:3] == (4, 8, 12)
    assert graphs()[-1] == 8192
    assert graphs("--chunked-prefill-size", "2048")[-1] == 2048
    assert graphs("--cuda-graph-max-bs-prefill", "300")[-2:] == (256, 288)
    assert graphs("--cuda-graph-bs-prefill", "512", "64") == (64, 512)
    assert graphs("--disable-decode-cuda-graph")[-1] == 8192
    assert graphs("--disable-prefill-cuda-graph") == graphs("--disable-cuda-graph") == ()
    assert graphs(engine="sglang-0.5.9") == ()


def test_the_longest_sequence_leaves_room_in_the_pool() -> None:
    spec = scheduler_of("--max-total-tokens", "1000")
    assert (spec.num_pages, spec.context_length, spec.max_running_requests) == (1000, 996, 500)
    assert scheduler_of("--context-length", "600").context_length == 598


def test_a_journal_of_an_sglang_cluster_says_what_it_was_recorded_on(tmp_path: Path) -> None:
    args, _ = parse_sglang_args(["--model", MODEL, "--cuda-graph-bs", "1", "2", "--api-key", "x"])
    cluster = resolve_single_sglang(args, "h100", "sglang-0.5.9", 3)
    path = tmp_path / "j"
    path.write_text("".join(journal_lines(cluster, Journal())))
    assert "x" not in json.loads(path.read_text())["workers"][0]["args"].values()
    again = read_recording(str(path)).cluster
    assert again.spec.workers[0].scheduler == cluster.spec.workers[0].scheduler
    assert again.spec.workers[0].step == cluster.spec.workers[0].step


def test_a_scenario_may_name_an_sglang_engine() -> None:
    text = f"""
name: mixed
cluster:
  workers:
    - {{name: a, count: 2, engine: sglang-0.5.23, model: {MODEL}, hardware: h100,
        engine_args: {{schedule-policy: lpm, page-size: 16}}}}
    - {{name: b, engine: vllm-0.33, model: {MODEL}, hardware: h100, quantization: fp8}}
"""
    resolved = resolve_scenario(parse_scenario(text, "mixed.yaml", TraceSearch(())))
    kinds = [type(worker.scheduler).__name__ for worker in resolved.spec.workers]
    assert kinds == ["SglangSchedulerSpec", "SglangSchedulerSpec", "SchedulerSpec"]
    spec = resolved.spec.workers[0].scheduler
    assert isinstance(spec, SglangSchedulerSpec)
    assert (spec.schedule_policy, spec.page_size) == ("lpm", 16)
    assert resolved.workers[0].sglang == SglangArgs(
        model_path=MODEL, schedule_policy="lpm", page_size=16
    )


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--page-size", "16"], r"64 tokens are too few .* more than 4 pages of 16$"),
        (
            ["--page-size", "16", "--speculative-algorithm", "NGRAM"],
            r"64 tokens are too few .* 4 pages of 16 and the \d+ that drafts reserve$",
        ),
        (["--context-length", "2"], "context-length: 2 is too short; allowed: at least 3"),
    ],
)
def test_a_pool_that_serves_nothing_is_refused_as_it_was_written(
    argv: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        scheduler_of("--max-total-tokens", "64", *argv)
