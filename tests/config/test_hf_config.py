"""Shapes out of config.json files of models with experts, latent attention and windows."""

from pathlib import Path

import pytest

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.hf_config import model_from_config, read_config
from frontier_mock.config.profiles import load_model

MODELS = Path(__file__).parents[2].parent / "shared/data/kernels/frontier/config/models"

GPT_OSS: dict[str, object] = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_hidden_layers": 36,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "max_position_embeddings": 131072,
    "attention_bias": True,
    "eos_token_id": 200002,
    "vocab_size": 201088,
    "quantization_config": {"quant_method": "mxfp4"},
}


def same_shape(name: str, file: str) -> None:
    card, read = load_model(name), read_config(file, MODELS / file)
    for field in (
        "num_layers",
        "hidden_size",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "vocab_size",
    ):
        assert getattr(card, field) == getattr(read, field), field
    for field in ("experts", "latent", "q_rank", "checkpoint_weights", "qk_norm"):
        assert getattr(card, field) == getattr(read, field), field


@pytest.mark.golden
@pytest.mark.skipif(not MODELS.is_dir(), reason="needs ../shared/data/kernels")
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("deepseek-ai/DeepSeek-V3", "deepseek-v3.json"),
        ("Qwen/Qwen3-235B-A22B", "Qwen3-235B-A22B.json"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "qwen3-a3b-30b-moe.json"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral_8x7b_moe.json"),
        ("stepfun-ai/step3-fp8", "step-moe.json"),
    ],
)
def test_cards_agree_with_published_configurations(name: str, file: str) -> None:
    same_shape(name, file)


def test_a_configuration_of_gpt_oss_is_its_card() -> None:
    card, read = load_model("openai/gpt-oss-120b"), model_from_config("here", GPT_OSS)
    assert read.experts == card.experts
    assert (read.sliding_window, read.sliding_layers) == (128, 18)
    assert (read.checkpoint_weights, read.qkv_bias) == ("mxfp4", True)


def test_the_text_model_inside_a_larger_one_counts() -> None:
    read = model_from_config("here", {"model_type": "wrapped", "text_config": GPT_OSS})
    assert read.num_layers == 36


@pytest.mark.parametrize(
    ("quantization", "weights"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "gptq", "bits": 4}, "int4"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "int4"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "fp8"),
    ],
)
def test_what_the_checkpoint_holds(quantization: dict[str, object], weights: str) -> None:
    read = model_from_config("here", {**GPT_OSS, "quantization_config": quantization})
    assert read.checkpoint_weights == weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"quant_method": "bitnet"}}, "quant_method 'bitnet'"),
        ({"num_experts_per_tok": 200}, "200 experts a token of 128"),
        ({"num_local_experts": None}, "key num_local_experts is None"),
        ({"model_type": "deepseek_v3"}, "key kv_lora_rank is None"),
        ({"model_type": "mamba"}, "model_type 'mamba', which is not simulated"),
    ],
)
def test_a_configuration_half_understood_is_refused(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        model_from_config("here", {**GPT_OSS, **change})
    assert "\n" not in str(refused.value)
