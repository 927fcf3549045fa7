"""Image encoders out of config.json, and what flags say of images."""

import json
from pathlib import Path
from typing import Any

import pytest

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.hf_config import model_from_config, read_config
from frontier_mock.config.profiles import load_model
from frontier_mock.config.vision_config import image_size
from frontier_mock.config.vllm_flags import parse_engine_args

QWEN25: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "num_hidden_layers": 28,
    "vocab_size": 152064,
    "max_position_embeddings": 128000,
    "image_token_id": 151655,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_config": {
        "model_type": "qwen2_5_vl",
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "out_hidden_size": 3584,
    },
}
GEMMA: dict[str, Any] = {
    "model_type": "gemma3",
    "mm_tokens_per_image": 256,
    "image_token_index": 262144,
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "num_hidden_layers": 34,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
}


def test_a_config_and_the_card_of_the_same_model_agree() -> None:
    read = model_from_config("here", QWEN25)
    assert read.vision == load_model("Qwen/Qwen2.5-VL-7B-Instruct").vision
    assert read.qkv_bias


def test_the_processors_file_bounds_images(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN25))
    bounds = {"min_pixels": 784, "max_pixels": 1003520}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(bounds))
    vision = read_config("here", tmp_path / "config.json").vision
    assert vision is not None
    assert (vision.min_pixels, vision.max_pixels) == (784, 1003520)
    for broken in ("[]", "{", '{"min_pixels": 9, "max_pixels": 3}'):
        (tmp_path / "preprocessor_config.json").write_text(broken)
        vision = read_config("here", tmp_path / "config.json").vision
        assert vision is not None
        assert vision.min_pixels == 3136


def test_an_encoder_of_fixed_size() -> None:
    vision = model_from_config("here", GEMMA).vision
    assert vision is not None
    assert (vision.image_size, vision.merge, vision.max_tokens) == (896, 4, 256)
    assert vision.out_size == 2560


def test_an_unknown_encoder_leaves_a_model_of_text() -> None:
    other = {**GEMMA, "vision_config": {"model_type": "new_vit"}}
    assert model_from_config("here", other).vision is None


def test_a_key_that_is_no_number_is_named() -> None:
    broken = {**QWEN25, "vision_config": {**QWEN25["vision_config"], "depth": "many"}}
    with pytest.raises(ConfigError, match=r"vision_config\.depth is 'many'"):
        model_from_config("here", broken)


@pytest.mark.parametrize(
    ("flags", "images"),
    [
        ([], 999),
        (["--language-model-only"], 0),
        (["--limit-mm-per-prompt", '{"image": 4}'], 4),
        (["--limit-mm-per-prompt", '{"image": {"count": 2, "width": 512}}'], 2),
        (["--limit-mm-per-prompt", '{"video": 1}'], 999),
    ],
)
def test_flags_bound_the_images_of_a_prompt(flags: list[str], images: int) -> None:
    args, idle = parse_engine_args(flags)
    assert (args.max_images, idle) == (images, ())


@pytest.mark.parametrize("value", ['{"image": "many"}', '{"image": -1}', "[3]"])
def test_a_bound_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"limit-mm-per-prompt: .*allowed: whole numbers"):
        parse_engine_args(["--limit-mm-per-prompt", value])


@pytest.mark.parametrize("text", ["", "10", "0x10", "10x", "-1x1", "99999x1", "1x1x1"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="image-size"):
        image_size(text)
    assert image_size("640x480") == (640, 480)
