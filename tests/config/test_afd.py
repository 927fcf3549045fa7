"""Attention/FFN disaggregation as users write it: scenario keys and the engines' own flags."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from frontier_mock.config.afd import AfdArgs, afd_of_plugin, afd_of_sglang
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.journals import journal_lines, read_recording
from frontier_mock.config.resolve import (
    ResolvedCluster,
    resolve_scenario,
    resolve_single,
    resolve_single_sglang,
)
from frontier_mock.config.scenario import parse_scenario
from frontier_mock.config.sglang_flags import parse_sglang_serve
from frontier_mock.config.sglang_front import server_args
from frontier_mock.config.vllm_flags import parse_serve
from frontier_mock.config.workloads import trace_search
from frontier_mock.core.journal import Journal
from frontier_mock.cost.afd.step import AfdStepCost

PLUGIN = {"role": "attention", "num_attention_ranks": 4, "num_ffn_ranks": 2}


def cluster(
    afd: str,
    model: str = "stepfun-ai/step3-fp8",
    more: str = "",
    length: str = "max-model-len",
) -> ResolvedCluster:
    text = f"""
name: afd
cluster:
  workers:
    - name: a
      model: {model}
      {more}
      afd: {afd}
      engine_args: {{{length}: 32768}}
"""
    return resolve_scenario(parse_scenario(text, "afd.yaml", trace_search(None, {}, False)))


def plugin(**changes: object) -> AfdArgs | None:
    values = PLUGIN | changes
    return afd_of_plugin({"afd": values}, int(str(values["num_attention_ranks"])), dbo=False)


def test_attention_gpus_are_the_ranks_of_one_server() -> None:
    made = cluster("{attention: {instances: 3}, ffn: {instances: 2}}")
    assert len(made.workers) == 1
    assert len(made.spec.workers) == 24
    afd = made.spec.workers[0].afd
    assert afd is not None
    assert (afd.name, afd.ffn_gpus, afd.micro_batches) == ("3A2F", 16, 3)
    assert all(isinstance(cost, AfdStepCost) for cost in made.costs)


def test_ranks_of_several_gpus() -> None:
    made = cluster("{ffn: {instances: 2}}", more="parallel: {tp: 4}")
    assert [worker.dp_size for worker in made.spec.workers] == [2, 2]
    with pytest.raises(ConfigError, match="8 attention GPUs do not divide into ranks of tp 16"):
        cluster("{ffn: {instances: 2}}", more="parallel: {tp: 16}")


def test_each_side_has_its_own_memory() -> None:
    """Attention has room for more context than a GPU that also holds experts."""
    worker = cluster("{attention: {instances: 1}, ffn: {instances: 2}}").workers[0]
    assert worker.ffn_memory is not None
    experts = 3 * 7168 * 5120 * 56 * 48 / 16
    assert experts < worker.ffn_memory.weights_bytes < 1.6 * experts
    assert worker.memory.weights_bytes < 16 << 30


def test_four_bit_experts_leave_attention_in_bf16() -> None:
    made = cluster("{ffn: {gpus: 4}}", "openai/gpt-oss-120b").workers[0]
    # 36 layers of 2880 x (5120 + 4096) in two bytes, and two tables of 201,088 words.
    assert made.memory.weights_bytes > 2 * (36 * 2880 * 9216 + 2 * 201_088 * 2880)


def test_experts_that_do_not_fit_are_refused_with_numbers() -> None:
    with pytest.raises(ConfigError) as caught:
        cluster("{ffn: {gpus: 2}}")
    said = str(caught.value)
    assert "afd 1A1F: an FFN GPU needs " in said
    assert "24 of 48 experts" in said
    assert "h800 has 72." in said or "h800 has 73." in said


def test_a_cache_without_room_is_refused_with_numbers() -> None:
    with pytest.raises(ConfigError, match=r"on rtx-4090, tp 1: No available memory.*GiB"):
        cluster(
            "{ffn: {instances: 2, hardware: h800, quantization: fp8_block}}",
            "stepfun-ai/step3",
            "hardware: rtx-4090",
        )


def test_sides_on_different_hardware() -> None:
    made = cluster("{ffn: {instances: 2, hardware: h20}}", more="hardware: h800")
    spec = made.spec.workers[0]
    assert spec.afd is not None
    assert (spec.step.hardware.name, spec.afd.ffn_hardware.name) == ("h800", "h20")


@pytest.mark.parametrize(
    ("afd", "model", "said"),
    [
        ("{}", "meta-llama/Llama-3.1-70B-Instruct", "has no experts"),
        ("{ffn: {instances: 4}}", "stepfun-ai/step3-fp8", "48 experts .* into 32 FFN GPUs"),
        ("{ffn: {hardware: h900}}", "stepfun-ai/step3-fp8", "h900"),
        ("{fnn: {}}", "stepfun-ai/step3-fp8", r"unknown key 'fnn' \(did you mean ffn"),
        ("{connector: m3n}", "stepfun-ai/step3-fp8", "one of m2n, broadcast, p2p"),
        ("{micro_batches: 0}", "stepfun-ai/step3-fp8", "whole number 1..16"),
        ("{gate_on_attention: false}", "stepfun-ai/step3-fp8", "allowed: true"),
    ],
)
def test_what_cannot_be_is_one_line(afd: str, model: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cluster(afd, model)


def test_the_plugins_flags_make_an_instance() -> None:
    flags = ["-dp", "4", "-ep", "--enable-dbo", "--sim-ffn-hardware", "h20"]
    flags += ["--dbo-decode-token-threshold", "2"]
    config = json.dumps({"afd": PLUGIN | {"compute_gate_on_attention": True}})
    args = parse_serve(["stepfun-ai/step3-fp8", *flags, "--additional-config", config], {})
    assert args.vllm.afd == AfdArgs(
        4,
        2,
        ffn_hardware="h20",
        micro_batches=2,
        connector="p2p",
        a2f_bytes=2,
        gate_on_attention=True,
        least_decodes=2,
        least_prompt_tokens=512,
    )
    assert "--additional-config" not in args.without_effect


def test_ranks_of_the_plugin_are_engines() -> None:
    config = json.dumps({"afd": PLUGIN | {"num_attention_ranks": 16, "num_ffn_ranks": 16}})
    flags = ["-dp", "16", "-ep", "--max-model-len", "8k", "--additional-config", config]
    args = parse_serve(["deepseek-ai/DeepSeek-V3", *flags], {})
    made = resolve_single(args.vllm, "h800", "vllm-0.33", 0)
    assert [worker.dp_size for worker in made.spec.workers] == [16] * 16


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_attention_ranks": 3}, r"\(3\) must be a multiple of num_ffn_ranks \(2\)"),
        ({"num_ffn_ranks": 8}, r"\(4\) must be a multiple of num_ffn_ranks \(8\)"),
        ({"num_ffn_ranks": 0}, "num_ffn_ranks: 0 is not a whole number"),
        ({"role": "both"}, "role: 'both'; allowed: attention, ffn"),
        ({"connector": "tcp"}, "connector: 'tcp'; allowed: P2pNcclAFDConnector"),
        ({"connector": "CAMAsyncAFDConnector"}, "is not simulated"),
        ({"async": True}, "needs CAMAsyncAFDConnector"),
        ({"afd_role": "ffn"}, "role is given twice"),
        ({"num_fnn_ranks": 1}, r"did you mean num_ffn_ranks"),
        ({"compute_gate_on_attention": "yes"}, "is not true or false"),
    ],
)
def test_the_plugins_rules(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plugin(**changes)


def test_the_plugins_ranks_are_those_of_the_process() -> None:
    with pytest.raises(ConfigError, match=r"4 attention ranks are configured, but .* are 8"):
        afd_of_plugin({"afd": PLUGIN}, 8, dbo=False)
    assert afd_of_plugin({"afd": PLUGIN | {"role": "ffn"}}, 2, dbo=False) is not None
    assert afd_of_plugin({"ascend_scheduler_config": {}}, 8, dbo=False) is None


def test_other_connectors_do_not_need_a_multiple() -> None:
    made = plugin(num_attention_ranks=3, connector="CAMP2pAFDConnector")
    assert made is not None
    assert made.attention_gpus == 3


def test_sglangs_flags_make_an_instance() -> None:
    made = afd_of_sglang("attention", {"lanes": 2, "attention_lanes": 6})
    assert made == AfdArgs(
        6, 2, micro_batches=2, connector="p2p", a2f_bytes=2, gate_on_attention=False
    )
    alike = afd_of_sglang("attn", {"lanes": 8})
    assert alike is not None
    assert (alike.attention_gpus, alike.ffn_gpus) == (8, 8)
    assert afd_of_sglang("off", None) is None


@pytest.mark.parametrize(
    ("mode", "config", "code"),
    [
        ("off", {}, "AFD_GRAPH_WITHOUT_EXECUTION_MODE"),
        ("ffn", None, "AFD_GRAPH_CONFIG_REQUIRED"),
        ("ffn", {"stages": 3}, "AFD_GRAPH_STAGE_COUNT_UNSUPPORTED"),
        ("ffn", {"lanes": 3}, "AFD_GRAPH_LANE_COUNT_INVALID"),
        ("attention", {"attention_lanes": 0}, "AFD_GRAPH_ATTENTION_LANE_COUNT_INVALID"),
        ("attention", {"lane": 2}, "AFD_GRAPH_CONFIG_INVALID"),
    ],
)
def test_sglangs_rules(mode: str, config: object, code: str) -> None:
    with pytest.raises(ConfigError, match=code):
        afd_of_sglang(mode, config)


def test_an_sglang_worker_divides_its_gpus_into_ranks() -> None:
    made = cluster(
        "{attention: {instances: 2}, ffn: {instances: 2, hardware: h20}}",
        more="engine: sglang-0.5.23\n      parallel: {tp: 2}",
        length="context-length",
    )
    assert [worker.dp_size for worker in made.spec.workers] == [8] * 8
    spec = made.spec.workers[0]
    assert spec.afd is not None
    assert (spec.step.parallel.tp, spec.afd.ffn_hardware.name) == (2, "h20")
    assert made.workers[0].ffn_memory is not None


def sglang(*flags: str) -> AfdArgs | None:
    return parse_sglang_serve(["--model-path", "stepfun-ai/step3-fp8", *flags]).sglang.afd


def test_sglangs_command_line() -> None:
    config = json.dumps({"lanes": 16, "attention_lanes": 8})
    flags = ("--afd-execution-mode", "attention", "--afd-config", config, "--tp-size", "8")
    made = sglang(*flags, "--sim-ffn-hardware", "h20")
    assert made is not None
    assert (made.attention_gpus, made.ffn_gpus, made.ffn_hardware) == (8, 16, "h20")
    older = sglang("--afd-role", "attn", "--afd-ffn-addr", "10.0.0.2:1234", "--tp-size", "8")
    assert older is not None
    assert (older.attention_gpus, older.ffn_gpus, older.role) == (8, 8, "attention")
    assert sglang() is None
    with pytest.raises(ConfigError, match="8 attention lanes are configured, but --tp-size is 4"):
        sglang(*flags[:-1], "4")
    with pytest.raises(ConfigError, match="--dp-size: 2 replicas of attention cannot share"):
        sglang(*flags, "--dp-size", "2")
    with pytest.raises(ConfigError, match="--moe-a2a-backend: deepep"):
        sglang(*flags, "--moe-a2a-backend", "deepep")
    with pytest.raises(ConfigError, match="--enable-two-batch-overlap: does not go with"):
        sglang(*flags, "--enable-two-batch-overlap")


def test_server_info_has_the_flags_of_those_who_gave_them() -> None:
    def shown(*flags: str) -> dict[str, object]:
        args = parse_sglang_serve(
            ["--model-path", "stepfun-ai/step3-fp8", "--tp-size", "8", *flags]
        )
        made = resolve_single_sglang(args.sglang, "h800", "sglang-0.5.23", 0)
        return {k: v for k, v in server_args(made.workers[0]).items() if k.startswith("afd_")}

    config = json.dumps({"lanes": 16, "attention_lanes": 8})
    assert shown() == {}
    assert shown("--afd-execution-mode", "attention", "--afd-config", config) == {
        "afd_execution_mode": "attention",
        "afd_config": {"lanes": 16, "attention_lanes": 8},
    }


def test_a_journal_knows_the_instance(tmp_path: Path) -> None:
    made = cluster("{attention: {instances: 1}, ffn: {instances: 2, hardware: h20}}")
    path = tmp_path / "afd.journal"
    path.write_text("".join(journal_lines(made, Journal())), encoding="utf-8")
    again = read_recording(str(path)).cluster
    assert again.spec.workers == tuple(replace(worker, port=0) for worker in made.spec.workers)


def test_other_hardware_without_anything_on_it_is_told() -> None:
    args = parse_serve(["stepfun-ai/step3-fp8", "--sim-ffn-hardware", "h20"], {})
    assert args.without_effect == ("--sim-ffn-hardware",)
