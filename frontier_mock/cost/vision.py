"""Image encoders: how many tokens an image becomes, and what computing them takes. PURE.

An encoder is a transformer over patches without a causal mask, then a merger that makes one token
of the language model out of `merge` x `merge` patches. Its layers are priced by the same tables as
the language model's. Attention over all patches of an image is as much work as causal attention of
as many queries over half as many earlier keys and themselves, and is priced as that; so is
attention within windows. Encoders run without CUDA graphs, so the host's launches are a floor.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from frontier_mock.cost.attention import Heads, PrefillPrice
from frontier_mock.cost.collectives import curve_us
from frontier_mock.cost.gemm import gemm_us
from frontier_mock.cost.protocol import Chunk
from frontier_mock.cost.specs import StepSpec, VisionSpec
from frontier_mock.cost.tables import Floats, KernelTables, PrefillAttentionTable

_MAX_RATIO: Final = 200
"""Qwen's processors refuse images more elongated than that."""

_LAYER_KERNELS: Final = 14
_LAUNCH_US: Final = 18.0
"""Kernels of one layer (four or five linear ones, their biases, two norms, rope, activation,
attention, two residuals), each reached through Python (cost_model.md section 1.9)."""

_COLORS: Final = 3
_FRAMES: Final = 2
"""A still image is doubled to fill a patch of two frames (Qwen2-VL and later)."""


@dataclass(frozen=True, slots=True)
class ImageShape:
    """What an image is to a model: patches for its encoder, tokens for its language model."""

    patches: int
    tokens: int


def image_shape(vision: VisionSpec, width: int, height: int) -> ImageShape:
    """The shape of an image of so many pixels.

    Raises ValueError, in the words of Qwen's processor, for an image that is too elongated.
    """
    merged = vision.merge * vision.merge
    if vision.image_size:
        side = vision.image_size // vision.patch_size
        return ImageShape(side * side, side * side // merged)
    ratio = max(width, height) / min(width, height)
    if ratio > _MAX_RATIO:
        raise ValueError(f"absolute aspect ratio must be smaller than {_MAX_RATIO}, got {ratio}")
    high, wide = image_grid(vision, width, height)
    return ImageShape(high * wide, high * wide // merged)


def image_grid(vision: VisionSpec, width: int, height: int) -> tuple[int, int]:
    """Patches in a column and in a row of an image of so many pixels, to Qwen's processor."""
    high, wide = _resized(vision, height, width)
    return high // vision.patch_size, wide // vision.patch_size


def _resized(vision: VisionSpec, height: int, width: int) -> tuple[int, int]:
    """Pixels after Qwen's `smart_resize`: multiples of a merged patch, within bounds."""
    step = vision.patch_size * vision.merge
    high, wide = (max(step, round(side / step) * step) for side in (height, width))
    pixels = height * width
    if high * wide > vision.max_pixels:
        shrink = math.sqrt(pixels / vision.max_pixels)
        return (
            max(step, math.floor(height / shrink / step) * step),
            max(step, math.floor(width / shrink / step) * step),
        )
    if high * wide < vision.min_pixels:
        grow = math.sqrt(vision.min_pixels / pixels)
        return math.ceil(height * grow / step) * step, math.ceil(width * grow / step) * step
    return high, wide


def vision_weights(vision: VisionSpec) -> int:
    """Parameters of an encoder and its mergers."""
    hidden, inner = vision.hidden_size, vision.intermediate_size
    layer = 4 * hidden * hidden + (3 if vision.gated else 2) * hidden * inner
    wide = hidden * vision.merge * vision.merge
    merger = wide * wide + wide * vision.out_size
    embed = _COLORS * _FRAMES * vision.patch_size**2 * hidden
    return vision.num_layers * layer + vision.mergers * merger + embed


class EncoderPrice:
    """Nanoseconds of encoding images on one engine, for a model that has an encoder."""

    __slots__ = ("_attention", "_launch_us", "_linears", "_merger", "_reduce", "_spec", "_tables")

    def __init__(
        self, spec: StepSpec, tables: KernelTables, prefill: PrefillAttentionTable
    ) -> None:
        vision = spec.model.vision
        assert vision is not None
        self._spec, self._tables = spec, tables
        tp = spec.parallel.tp
        # Engines copy the encoder to every rank where its heads do not divide.
        cut = tp if vision.num_heads % tp == 0 else 1
        self._reduce = tables.all_reduce[tp] if cut > 1 else None
        hidden, inner = vision.hidden_size, vision.intermediate_size // cut
        heads = vision.num_heads // cut
        size = hidden // vision.num_heads
        self._attention = PrefillPrice(
            prefill, spec.hardware, Heads(query=heads, kv=heads, size=size, kv_bytes=2)
        )
        self._linears = (
            (3 * hidden // cut, hidden),
            (hidden, hidden // cut),
            ((2 if vision.gated else 1) * inner, hidden),
            (hidden, inner),
        )
        wide = hidden * vision.merge * vision.merge
        self._merger = ((wide // cut, wide), (vision.out_size, wide // cut))
        self._launch_us = vision.num_layers * _LAYER_KERNELS * _LAUNCH_US

    def images_ns(self, images: Sequence[int]) -> float:
        """One call with images of so many patches each; none take nothing."""
        if not images:
            return 0.0
        vision = self._spec.model.vision
        assert vision is not None
        total = float(sum(images))
        layer_us = self._linears_us(self._linears, total)
        layer_us += self._moved_us(total * vision.hidden_size * 12.0)
        if self._reduce is not None:
            layer_us += 2 * float(
                curve_us(self._reduce, np.array([total * vision.hidden_size * 2]))[0]
            )
        whole_us = self._attention_us(images)
        windowed = vision.num_layers - vision.full_layers if vision.window else 0
        time_us = vision.num_layers * layer_us + (vision.num_layers - windowed) * whole_us
        if windowed:
            time_us += windowed * self._attention_us(
                [vision.window for patches in images for _ in range(-(-patches // vision.window))]
            )
        embed = _COLORS * _FRAMES * vision.patch_size**2
        time_us += self._linears_us(((vision.hidden_size, embed),), total)
        merged = total / (vision.merge * vision.merge)
        time_us += vision.mergers * self._linears_us(self._merger, merged)
        return max(time_us, self._launch_us) * 1e3

    def _attention_us(self, lengths: Sequence[int]) -> float:
        return self._attention.chunks_us([Chunk(length, length // 2) for length in lengths])

    def _linears_us(self, shapes: Sequence[tuple[int, int]], rows: float) -> float:
        table = self._tables.gemm["bf16"]
        m: Floats = np.array([max(rows, 1.0)])
        hw = self._spec.hardware
        return sum(float(gemm_us(table, hw, "bf16", m, n, k)[0]) for n, k in shapes)

    def _moved_us(self, num_bytes: float) -> float:
        """Norms, rope, activation and residuals: bound by memory."""
        return num_bytes / self._spec.hardware.hbm_bytes_per_s * 1e6
