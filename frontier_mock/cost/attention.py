"""Attention over a paged grouped-query cache, one layer on one GPU. PURE.

Two kernels: one-token decodes, bound by the bytes of keys and values they read, and prompt chunks,
bound by causal work. Both are priced on the batch as it is: decode by the sum of all contexts,
prefill chunk by chunk.

Decode comes from a measured table over (sequences x KV heads, context). Prefill is an equation of
tiles (cost_model.md section 1.4, with the query heads of one KV head packed into a tile as
FlashAttention 3 does, and tiles of 64 rows for each head under FlashAttention 2); each chunk's work
is scaled by what was measured for a prompt whose tiles are as deep, so that a ragged batch is the
sum of its parts and more work never takes less time.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Final

import numpy as np

from frontier_mock.cost.protocol import Chunk
from frontier_mock.cost.specs import HardwareSpec
from frontier_mock.cost.tables import (
    DecodeAttentionTable,
    Floats,
    PrefillAttentionFit,
    PrefillAttentionTable,
    RaggedFit,
)

_TILE: Final = 128
"""Rows of packed queries, and keys, that the prefill kernel works on at a time."""

NARROW_ROWS: Final = 64
"""Rows of packed queries up to which the prefill kernel has a narrower tile: on H100 prompts of 16
tokens take 17 us with 8 query heads a KV head and 13 us with 4, and half as long per tile."""

_SM_BYTES_PER_S: Final = {2: 35.7e9, 1: 26.0e9}
"""Cache bytes that one SM works off, by bytes per element. H200's tables end at 4.71 and 3.43 TB/s
over 132 SMs (cost_model.md section 1.3); a GPU with much bandwidth and few SMs (H20) is bound by
it."""

_DECODE_COMPUTE: Final = 0.45
"""Of bf16 peak with 64 and 128 query heads per KV head on H20 (InferSim)."""

_COLD_STREAM: Final = 0.95
"""Fraction of bandwidth that bounds a decode whose cache is not in L2 (see `decode_us`)."""


_RAGGED_ROWS: Final = 64
"""Query rows of one tile of FlashAttention 2's varlen kernel."""


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention heads of one layer on one rank, and the bytes of one cached element.

    `latent` is the width of the row that all heads share under latent attention, else 0.
    """

    query: int
    kv: int
    size: int
    kv_bytes: int
    latent: int = 0

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one context token occupies, and that a decode reads for it."""
        if self.latent:
            return self.latent * self.kv_bytes
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
    through_sms = tiles * _through_sms_us(hw, heads)
    row = np.maximum(row, launch + contexts * through_sms)
    per_context = tiles * width / (table.stream * hw.hbm_bytes_per_s) * 1e6
    per_context = max(per_context, through_sms)
    far = contexts[-1] * 2.0
    row = np.append(row, row[-1] + per_context * (far - contexts[-1]))
    return np.append(contexts, far) * num_seqs, row


def _through_sms_us(hw: HardwareSpec, heads: Heads) -> float:
    """Microseconds that all SMs together spend on one context token of one KV head, however fast
    it arrives: moving it through, or computing it for each of many query heads."""
    width = 2 * heads.size * heads.kv_bytes
    moved = width / (hw.sm_count * _SM_BYTES_PER_S[heads.kv_bytes])
    flops = 4.0 * heads.query / heads.kv * heads.size
    return max(moved, flops / (_DECODE_COMPUTE * hw.peak_bf16_flops)) * 1e6


def decode_us(
    table: DecodeAttentionTable,
    hw: HardwareSpec,
    heads: Heads,
    num_seqs: int,
    ragged: RaggedFit | None = None,
) -> tuple[Floats, Floats]:
    """As `decode_row`, inside a forward pass.

    There the weights of a whole layer pass through L2 between two attentions, so no part of the
    cache is still in it, and reading it takes at least its bytes over the bandwidth. With
    FlashAttention 2 that is known better, from profiles of engines: a tile's start, and bytes at
    the rate of long contexts.
    """
    kv_tokens, row = decode_row(table, hw, heads, num_seqs)
    stream = _COLD_STREAM if ragged is None else min(_COLD_STREAM, table.stream)
    cold = kv_tokens * heads.bytes_per_token / (stream * hw.hbm_bytes_per_s) * 1e6
    if ragged is not None:
        cold += num_seqs * heads.kv / hw.sm_count * ragged.cold_us
    return kv_tokens, np.maximum(row, table.time_us[0, 0] + cold)


def ragged_us(
    fit: RaggedFit, hw: HardwareSpec, heads: Heads, num_seqs: int, kv_tokens: Floats
) -> Floats:
    """Microseconds that decodes add to a launch of prompt chunks under FlashAttention 2.

    Alone, the query heads of one KV head are folded into one tile; beside a chunk they are not, and
    each reads the cache for itself, through L2. Tiles run head by head, so heads that are not in
    flight together find it in L2 only if one head's cache of all sequences fits.
    """
    group = heads.query / heads.kv
    moved = kv_tokens * float(heads.bytes_per_token)
    through = moved * group / (hw.sm_count * fit.sm_bytes_per_s)
    together = max(1.0, hw.sm_count / num_seqs)
    of_one_head = moved / heads.kv / (0.5 * fit.l2_bytes)
    lost = np.clip(np.log2(np.maximum(of_one_head, 1.0)) / 2.0, 0.0, 1.0)
    again = 1.0 + (max(1.0, group / together) - 1.0) * lost
    read = moved * again / (_COLD_STREAM * hw.hbm_bytes_per_s)
    tiles_us = num_seqs * heads.query / hw.sm_count * fit.tile_us
    made: Floats = np.maximum(through, read) * 1e6 + tiles_us
    return made


def empty_tiles_us(
    fit: RaggedFit, hw: HardwareSpec, heads: Heads, num_seqs: int, chunk: int
) -> float:
    """Microseconds of the tiles that a launch as deep as its longest chunk has for decodes too."""
    tiles = num_seqs * heads.query * (-(-chunk // _RAGGED_ROWS) - 1)
    return tiles / hw.sm_count * fit.empty_us


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
        "_axis",
        "_blend",
        "_block_us",
        "_columns",
        "_group",
        "_launch_us",
        "_narrow_launch_us",
        "_narrow_work",
        "_path_start_us",
        "_path_us",
        "_ratios",
        "_rows",
        "_tile_us",
    )

    def __init__(self, table: PrefillAttentionTable, hw: HardwareSpec, heads: Heads) -> None:
        fit = table.fit
        slower = fit.sm_flops / (hw.peak_bf16_flops / hw.sm_count)
        group = max(1, heads.query // heads.kv)
        self._group = group if fit.packed else 1
        self._columns = heads.kv if fit.packed else heads.kv * group
        self._rows = fit.tile_rows
        self._launch_us = fit.launch_us
        self._narrow_launch_us = fit.narrow_launch_us
        self._narrow_work = fit.narrow_work if fit.packed else 0.0
        self._tile_us = fit.tile_us * slower / hw.sm_count
        self._block_us = fit.block_us * slower / hw.sm_count
        self._path_us = fit.path_us * slower
        self._path_start_us = fit.path_start_us * slower
        self._blend = fit.blend
        self._axis: list[float] = table.log_length.tolist()
        nearest = int(np.argmin(np.abs(table.log_group - log(group))))
        of_heads = table.head_ratio[min(group - 1, 1)]
        heads_ratio = float(np.interp(log(heads.kv), table.log_heads, of_heads))
        self._ratios: list[float] = (table.work_ratio[nearest] * heads_ratio).tolist()

    def chunks_us(self, chunks: Sequence[Chunk]) -> float:
        """Microseconds for all chunks of a step, launched as one ragged kernel."""
        group, tile_rows = self._group, self._rows
        per_row = tile_rows / group
        open_us, block_us, launch_us = self._tile_us, self._block_us, self._launch_us
        if self._narrow_work:
            for chunk in chunks:
                if chunk[0] * group > NARROW_ROWS:
                    break
            else:
                # Half the rows, so half of what a block costs once the tile is open.
                open_us = self._narrow_work * (open_us + block_us) - 0.5 * block_us
                block_us, launch_us = 0.5 * block_us, self._narrow_launch_us
        work = 0.0
        longest = float(_TILE)
        for new, past in chunks:
            rows = -(-new * group // tile_rows)
            end = past + new
            if rows > 1:
                depth = past + 0.5 * (rows + 1) * per_row
                if depth > end:
                    depth = end
                length = 2.0 * past + rows * per_row
            else:
                depth = length = end
            if depth < _TILE:
                depth = _TILE
            tile_us = open_us + depth / _TILE * block_us
            work += rows * tile_us * self._ratio(length)
            if end > longest:
                longest = end
        work *= self._columns
        path = self._path_start_us + longest / _TILE * self._path_us
        bound: float = (work**self._blend + path**self._blend) ** (1.0 / self._blend)
        return launch_us + bound

    def _ratio(self, length: float) -> float:
        """The measured ratio at this length, linear in its logarithm, edges held."""
        axis, ratios = self._axis, self._ratios
        x = log(length)
        index = bisect_right(axis, x)
        if index == 0:
            return ratios[0]
        if index == len(axis):
            return ratios[-1]
        share = (x - axis[index - 1]) / (axis[index] - axis[index - 1])
        return ratios[index - 1] + share * (ratios[index] - ratios[index - 1])


def prefill_launch_us(fit: PrefillAttentionFit, group: Floats, length: Floats) -> Floats:
    """Microseconds before the first tile of equal prompts starts."""
    narrow = fit.packed & (length * group <= NARROW_ROWS)
    return np.where(narrow, fit.narrow_launch_us, fit.launch_us)


def prefill_bounds_us(
    fit: PrefillAttentionFit,
    sm_count: int,
    group: Floats,
    kv_heads: Floats,
    prompts: Floats,
    length: Floats,
) -> tuple[Floats, Floats]:
    """Work and longest path of equal prompts without past, on the GPU it was measured on."""
    together = group if fit.packed else np.ones_like(group)
    per_row = fit.tile_rows / together
    rows = np.ceil(length / per_row)
    depth = np.where(rows > 1, np.minimum(0.5 * (rows + 1) * per_row, length), length)
    tiles = prompts * kv_heads * (group / together) * rows
    blocks = tiles * np.maximum(depth / _TILE, 1.0)
    narrow = fit.packed & (length * group <= NARROW_ROWS)
    scale = np.where(narrow, fit.narrow_work, 1.0) / sm_count
    work: Floats = (tiles * fit.tile_us + blocks * fit.block_us) * scale
    path: Floats = fit.path_start_us + np.maximum(length / _TILE, 1.0) * fit.path_us
    return work, path
