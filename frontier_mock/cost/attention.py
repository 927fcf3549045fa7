"""Attention over a paged grouped-query cache, one layer on one GPU. PURE.

Two kernels: one-token decodes, bound by the bytes of keys and values they read, and prompt chunks,
bound by causal work. Both are priced on the batch as it is: decode by the sum of all contexts,
prefill chunk by chunk.

Decode comes from a measured table over (sequences x KV heads, context). Prefill is an equation of
tiles (cost_model.md section 1.4, with the query heads of one KV head packed into a tile as
FlashAttention 3 does) times a measured correction; a ragged batch takes the correction of the
batch of equal prompts that has as many tiles of the same mean depth.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Final

import numpy as np

from frontier_mock.cost.protocol import Chunk
from frontier_mock.cost.specs import HardwareSpec
from frontier_mock.cost.tables import (
    DecodeAttentionTable,
    Floats,
    PrefillAttentionFit,
    PrefillAttentionTable,
)

_TILE: Final = 128
"""Rows of packed queries, and keys, that the prefill kernel works on at a time."""

_COLD_STREAM: Final = 0.95
"""Fraction of bandwidth that bounds a decode whose cache is not in L2 (see `decode_us`)."""


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention heads of one layer on one rank, and the bytes of one cached element."""

    query: int
    kv: int
    size: int
    kv_bytes: int

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values that one context token adds to a decode."""
        return 2 * self.kv * self.size * self.kv_bytes


def decode_row(
    table: DecodeAttentionTable, hw: HardwareSpec, heads: Heads, num_seqs: int
) -> tuple[Floats, Floats]:
    """Total contexts and microseconds of `num_seqs` decodes, straight lines between them.

    The kernel as measured, so a cache small enough for L2 comes from L2. The last segment has the
    slope of a long context and holds beyond.
    """
    tiles = num_seqs * heads.kv
    row = _between(table, float(tiles))
    launch = table.time_us[0, 0]
    row = launch + (row - launch) * (table.bandwidth / hw.hbm_bytes_per_s)
    contexts = table.contexts
    width = 2 * heads.size * heads.kv_bytes
    per_context = tiles * width / (table.stream * hw.hbm_bytes_per_s) * 1e6
    far = contexts[-1] * 2.0
    row = np.append(row, row[-1] + per_context * (far - contexts[-1]))
    return np.append(contexts, far) * num_seqs, row


def decode_us(
    table: DecodeAttentionTable, hw: HardwareSpec, heads: Heads, num_seqs: int
) -> tuple[Floats, Floats]:
    """As `decode_row`, inside a forward pass.

    There the weights of a whole layer pass through L2 between two attentions, so no part of the
    cache is still in it, and reading it takes at least its bytes over the bandwidth.
    """
    kv_tokens, row = decode_row(table, hw, heads, num_seqs)
    cold = kv_tokens * heads.bytes_per_token / (_COLD_STREAM * hw.hbm_bytes_per_s) * 1e6
    return kv_tokens, np.maximum(row, table.time_us[0, 0] + cold)


def _between(table: DecodeAttentionTable, tiles: float) -> Floats:
    """The table's row at `tiles`, linear between rows and proportional beyond the last."""
    rows = table.tiles
    index = int(np.clip(np.searchsorted(rows, tiles, side="right") - 1, 0, len(rows) - 2))
    share = max(0.0, (tiles - rows[index]) / (rows[index + 1] - rows[index]))
    row: Floats = (1.0 - share) * table.time_us[index] + share * table.time_us[index + 1]
    return row


class PrefillPrice:
    """The prefill equation for one model on one GPU, folded for speed."""

    __slots__ = (
        "_axis_heads",
        "_axis_length",
        "_blend",
        "_block_us",
        "_group",
        "_kv_heads",
        "_launch_us",
        "_path_start_us",
        "_path_us",
        "_residual",
        "_tile_us",
    )

    def __init__(self, table: PrefillAttentionTable, hw: HardwareSpec, heads: Heads) -> None:
        fit = table.fit
        slower = fit.sm_flops / (hw.peak_bf16_flops / hw.sm_count)
        self._group = max(1, heads.query // heads.kv)
        self._kv_heads = heads.kv
        self._launch_us = fit.launch_us
        self._tile_us = fit.tile_us * slower / hw.sm_count
        self._block_us = fit.block_us * slower / hw.sm_count
        self._path_us = fit.path_us * slower
        self._path_start_us = fit.path_start_us * slower
        self._blend = fit.blend
        self._axis_heads: list[float] = table.log_heads.tolist()
        self._axis_length: list[float] = table.log_length.tolist()
        self._residual: list[list[float]] = []
        if len(table.log_group):
            nearest = int(np.argmin(np.abs(table.log_group - log(self._group))))
            self._residual = table.residual[nearest].tolist()

    def chunks_us(self, chunks: Sequence[Chunk]) -> float:
        """Microseconds for all chunks of a step, launched as one ragged kernel."""
        group, per_row = self._group, _TILE / self._group
        tiles = 0
        depth = 0.0
        lengths = 0.0
        longest = 1.0
        for new, past in chunks:
            rows = -(-new * group // _TILE)
            end = past + new
            if rows > 1:
                mean = past + 0.5 * (rows + 1) * per_row
                if mean > end:
                    mean = end
                lengths += rows * (2.0 * mean - per_row)
            else:
                mean = end
                lengths += end
            tiles += rows
            depth += rows * (mean if mean > _TILE else _TILE)
            if end > longest:
                longest = end
        work = self._kv_heads * (tiles * self._tile_us + depth / _TILE * self._block_us)
        path = self._path_start_us + max(longest / _TILE, 1.0) * self._path_us
        bound: float = (work**self._blend + path**self._blend) ** (1.0 / self._blend)
        time_us = self._launch_us + bound
        if self._residual:
            length = lengths / tiles
            alike = tiles * self._kv_heads * group / max(1.0, length * group / _TILE)
            time_us *= exp(self._correction(log(alike), log(length)))
        return time_us

    def _correction(self, log_heads: float, log_length: float) -> float:
        i, u = _cell(self._axis_heads, log_heads)
        j, v = _cell(self._axis_length, log_length)
        low, high = self._residual[i], self._residual[i + 1]
        below = low[j] + v * (low[j + 1] - low[j])
        above = high[j] + v * (high[j + 1] - high[j])
        return below + u * (above - below)


def prefill_equation_us(
    fit: PrefillAttentionFit,
    sm_count: int,
    group: Floats,
    kv_heads: Floats,
    prompts: Floats,
    length: Floats,
) -> Floats:
    """The equation alone for equal prompts without past, on the GPU it was measured on."""
    per_row = _TILE / group
    rows = np.ceil(length / per_row)
    mean = np.where(rows > 1, np.minimum(0.5 * (rows + 1) * per_row, length), length)
    tiles = prompts * kv_heads * rows
    blocks = tiles * np.maximum(mean / _TILE, 1.0)
    work = (tiles * fit.tile_us + blocks * fit.block_us) / sm_count
    path = fit.path_start_us + np.maximum(length / _TILE, 1.0) * fit.path_us
    time_us: Floats = fit.launch_us + (work**fit.blend + path**fit.blend) ** (1.0 / fit.blend)
    return time_us


def _cell(axis: list[float], x: float) -> tuple[int, float]:
    """Cell of `x` on an ascending axis and how far into it, clipped to the grid."""
    index = bisect_right(axis, x) - 1
    if index < 0:
        return 0, 0.0
    if index > len(axis) - 2:
        return len(axis) - 2, 1.0
    return index, (x - axis[index]) / (axis[index + 1] - axis[index])
