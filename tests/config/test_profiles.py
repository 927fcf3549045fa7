"""Profiles by name: what is there, what is refused, and how."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.profiles import (
    known_hardware,
    known_models,
    load_engine,
    load_hardware,
    load_kernels,
    load_model,
)
from frontier_mock.cost.layers import shard_model
from frontier_mock.cost.memory import weight_bytes
from frontier_mock.cost.specs import ParallelSpec, PrecisionSpec

LLAMA: dict[str, object] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "eos_token_id": [128001, 128008],
    "vocab_size": 128256,
}


def test_every_profile_loads() -> None:
    for name in known_hardware():
        hardware = load_hardware(name)
        tables = load_kernels(hardware.kernels)
        assert hardware.source
        assert tables.all_reduce.keys() == tables.all_gather.keys()
        assert set(tables.sustained) >= set(tables.gemm) - {"fp8_block"}
    assert {"h800", "h100", "h200"} <= set(known_hardware())
    assert len(known_models()) >= 25
    for name in known_models():
        model = load_model(name)
        assert model.name == name
        assert model.num_heads % model.num_kv_heads == 0


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("meta-llama/Llama-2-7b-hf", 6.74e9),
        ("meta-llama/Llama-3.1-8B-Instruct", 8.03e9),
        ("meta-llama/Llama-3.1-70B-Instruct", 70.55e9),
        ("meta-llama/Llama-3.1-405B-Instruct", 405.8e9),
        ("codellama/CodeLlama-34b-Instruct-hf", 33.7e9),
        ("Qwen/Qwen3-8B", 8.19e9),
        ("Qwen/Qwen3-32B", 32.76e9),
        ("Qwen/Qwen2.5-72B-Instruct", 72.7e9),
        ("codellama/CodeLlama-7b-hf", 6.74e9),
        ("codellama/CodeLlama-13b-hf", 13.02e9),
        ("codellama/CodeLlama-70b-hf", 68.98e9),
        ("mistralai/Mistral-7B-v0.1", 7.24e9),
        ("mistralai/Mistral-7B-Instruct-v0.2", 7.24e9),
        ("mistralai/Mistral-7B-Instruct-v0.3", 7.25e9),
        ("mistralai/Mistral-Nemo-Instruct-2407", 12.25e9),
        ("mistralai/Mistral-Small-24B-Instruct-2501", 23.57e9),
        ("mistralai/Mistral-Large-Instruct-2407", 122.61e9),
        ("Qwen/Qwen3-30B-A3B", 30.53e9),
        ("Qwen/Qwen3-235B-A22B", 235.1e9),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 46.7e9),
        ("mistralai/Mixtral-8x22B-Instruct-v0.1", 140.6e9),
        ("deepseek-ai/DeepSeek-V3", 671.0e9),
        ("moonshotai/Kimi-K2-Instruct", 1026e9),
        ("openai/gpt-oss-20b", 20.9e9),
        ("openai/gpt-oss-120b", 116.8e9),
        ("zai-org/GLM-4.5", 353e9),
        ("zai-org/GLM-4.5-Air", 106.8e9),
        ("zai-org/GLM-5", 744e9),
        ("MiniMaxAI/MiniMax-M2.5", 228.7e9),
        ("stepfun-ai/step3", 316e9),
    ],
)
def test_shapes_add_up_to_the_published_parameter_counts(model: str, parameters: float) -> None:
    card = load_model(model)
    bf16 = replace(card, max_position_embeddings=0)
    one, precision = ParallelSpec(), PrecisionSpec("bf16")
    counted = weight_bytes(bf16, precision, shard_model(bf16, one, precision)) / 2
    assert counted == pytest.approx(parameters, rel=0.005)


def test_names_forgive_case_and_a_missing_organisation() -> None:
    assert load_model("qwen3-32b").num_layers == 64
    assert load_hardware("H800").name == "h800"
    for name in ("RTX PRO 6000", "rtx_pro_6000", "rtxpro6000"):
        assert load_hardware(name).name == "rtx-pro-6000"
    assert load_hardware("h100_sxm").name == "h100"


def test_an_alias_says_what_its_checkpoint_holds() -> None:
    quantised = load_model("nvidia/Llama-3.1-8B-Instruct-FP8")
    assert quantised.checkpoint_weights == "fp8"
    assert quantised.name == "nvidia/Llama-3.1-8B-Instruct-FP8"
    assert load_model("meta-llama/Llama-3.1-8B").checkpoint_weights == "bf16"


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("vllm-0.10.2", "vllm-0.10.2"),
        ("vllm-0.11.2", "vllm-0.11"),
        ("vllm-0.10", "vllm-0.10.2"),
        ("vllm-0.13", "vllm-0.12"),
        ("vllm-0.14.1", "vllm-0.14"),
        ("vllm-0.15", "vllm-0.15.1"),
        ("vllm-0.15.0", "vllm-0.14"),
        ("sglang-0.5.8", "sglang-0.5.5"),
        ("vllm-0.19.1", "vllm-0.19"),
        ("vllm-0.33.0", "vllm-0.33"),
        ("vllm-1.0", "vllm-0.33"),
        ("vllm", "vllm-0.33"),
    ],
)
def test_a_version_gets_the_newest_preset_that_is_not_newer(asked: str, given: str) -> None:
    assert load_engine(asked).name == given


@pytest.mark.parametrize(
    ("call", "argument", "message"),
    [
        (load_hardware, "h8000", r"hardware: 'h8000' is not known \(did you mean h800\?\)"),
        (load_model, "Qwen/Qwen3-33B", r"did you mean Qwen/Qwen3-32B\?.*config\.json"),
        (load_engine, "vllm-0.9", r"'vllm-0\.9' is older than any preset; allowed: vllm-0\.10\.2"),
        (load_engine, "vllm-new", r"engine: 'vllm-new' is not known"),
        (load_engine, "trtllm-1.0", r"engine: 'trtllm-1\.0' is not known"),
        (load_kernels, "h801", r"kernels: 'h801' is not known"),
    ],
)
def test_an_unknown_name_is_one_clear_line(call, argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        call(argument)
    assert "\n" not in str(refused.value)


def test_a_config_json_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    model = load_model(str(tmp_path))
    assert (model.num_layers, model.head_dim, model.eos_token_id) == (32, 128, 128001)
    assert load_model(str(tmp_path / "config.json")).hidden_size == 4096


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_local_experts": 8},
            r"num_local_experts and model_type 'llama'; allowed with experts",
        ),
        ({"model_type": "rwkv"}, "model_type 'rwkv', which is not simulated"),
        ({"linear_num_value_heads": 8}, "linear and state-space layers"),
        ({"hidden_size": "wide"}, "key hidden_size is 'wide'; allowed: a whole number"),
        ({"num_attention_heads": 0}, "no layers, heads or hidden units"),
        ({"vocab_size": None}, "key vocab_size is None"),
    ],
)
def test_a_config_json_we_cannot_model_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**LLAMA, **change}))
    with pytest.raises(ConfigError, match=message):
        load_model(str(path))


def test_a_config_json_that_is_not_there_or_not_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_model(str(tmp_path / "missing.json"))
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        load_model(str(broken))
    broken.write_text("[]")
    with pytest.raises(ConfigError, match="is not a JSON object"):
        load_model(str(broken))
