"""Image encoders out of a Hugging Face `config.json`, and the processor's file beside it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from frontier_mock.config.errors import ConfigError, shown
from frontier_mock.cost.specs import VisionSpec

_PIXELS: Final = {
    "qwen2_5_vl": (3136, 12_845_056),
    "qwen3_vl": (65_536, 16_777_216),
    "qwen3_vl_moe": (65_536, 16_777_216),
}
"""Bounds of an image, in pixels, of processors that resize, unless a file says otherwise: those of
the checkpoints' own preprocessor_config.json."""

_SIGLIP: Final = "siglip_vision_model"


MAX_IMAGES: Final = 999
"""What vLLM allows a prompt unless told otherwise."""


def max_images(limits: object, text_only: bool) -> int:
    """Images a prompt may have, by --limit-mm-per-prompt and --language-model-only.

    Raises ConfigError.
    """
    if text_only:
        return 0
    if limits is None:
        return MAX_IMAGES
    said = limits.get("image", MAX_IMAGES) if isinstance(limits, dict) else None
    count = said.get("count", MAX_IMAGES) if isinstance(said, dict) else said
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ConfigError(
            f"limit-mm-per-prompt: {limits!r}; allowed: whole numbers by modality, as image"
        )
    return count


def image_size(text: str) -> tuple[int, int]:
    """Width and height out of --sim-image-size. Raises ConfigError."""
    width, _, height = text.partition("x")
    if not (width + height).isascii() or not (width.isdecimal() and height.isdecimal()):
        raise ConfigError(f"image-size: {shown(text)} is not WIDTHxHEIGHT in pixels")
    size = int(width), int(height)
    if not 1 <= min(size) <= max(size) <= 1 << 16:
        raise ConfigError(f"image-size: {shown(text)}; allowed: 1 to 65536 pixels each way")
    return size


def vision_of(name: str, config: Mapping[str, Any], folder: Path | None) -> VisionSpec | None:
    """The encoder of a model; None if it has none, or one that is not simulated.

    Raises ConfigError for keys that are no whole numbers.
    """
    vision = config.get("vision_config")
    if not isinstance(vision, dict):
        return None
    kind = str(vision.get("model_type") or config.get("model_type") or "")
    if kind == _SIGLIP:
        made = _pooled(name, config, vision)
    elif kind in _PIXELS:
        made = _resizing(name, vision, kind, folder)
    else:
        return None
    return replace(
        made,
        token_id=_whole(name, config, "image_token_id", config.get("image_token_index", 0)),
        start_id=_whole(name, config, "vision_start_token_id", config.get("boi_token_index", 0)),
        end_id=_whole(name, config, "vision_end_token_id", config.get("eoi_token_index", 0)),
    )


def _resizing(name: str, vision: Mapping[str, Any], kind: str, folder: Path | None) -> VisionSpec:
    """Qwen's: images keep their shape, and patches are merged."""
    low, high = _bounds(kind, folder)
    patch = _whole(name, vision, "patch_size", 14)
    merge = _whole(name, vision, "spatial_merge_size", 2)
    window = _whole(name, vision, "window_size", 0) // patch
    full = vision.get("fullatt_block_indexes")
    deep = vision.get("deepstack_visual_indexes")
    return VisionSpec(
        num_layers=_whole(name, vision, "depth"),
        hidden_size=_whole(name, vision, "hidden_size"),
        intermediate_size=_whole(name, vision, "intermediate_size"),
        num_heads=_whole(name, vision, "num_heads"),
        patch_size=patch,
        out_size=_whole(name, vision, "out_hidden_size"),
        merge=merge,
        gated=kind == "qwen2_5_vl",
        full_layers=len(full) if isinstance(full, list) else 0,
        window=window * window,
        mergers=1 + (len(deep) if isinstance(deep, list) else 0),
        min_pixels=low,
        max_pixels=high,
    )


def _pooled(name: str, config: Mapping[str, Any], vision: Mapping[str, Any]) -> VisionSpec:
    """Gemma 3: a square of fixed size whose patches are averaged, so that nothing merges them."""
    size, patch = _whole(name, vision, "image_size", 896), _whole(name, vision, "patch_size", 14)
    tokens = _whole(name, config, "mm_tokens_per_image", 256)
    text = config.get("text_config")
    side = round(tokens**0.5)
    return VisionSpec(
        num_layers=_whole(name, vision, "num_hidden_layers"),
        hidden_size=_whole(name, vision, "hidden_size"),
        intermediate_size=_whole(name, vision, "intermediate_size"),
        num_heads=_whole(name, vision, "num_attention_heads"),
        patch_size=patch,
        out_size=_whole(name, text if isinstance(text, dict) else config, "hidden_size"),
        merge=size // patch // side,
        mergers=0,
        image_size=size,
    )


def _bounds(kind: str, folder: Path | None) -> tuple[int, int]:
    """Least and most pixels of an image: the processor's file if it is there and says."""
    low, high = _PIXELS[kind]
    if folder is None:
        return low, high
    try:
        said = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return low, high
    if not isinstance(said, dict):
        return low, high
    given = said.get("size")
    size = given if isinstance(given, dict) else {}
    least = said.get("min_pixels") or size.get("shortest_edge") or low
    most = said.get("max_pixels") or size.get("longest_edge") or high
    if isinstance(least, int) and isinstance(most, int) and 0 < least <= most:
        return least, most
    return low, high


def _whole(name: str, keys: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = keys.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(
            f"model: {name!r} key vision_config.{key} is {value!r}; allowed: a whole number"
        )
    return value
