"""Attention over a paged grouped-query cache, one layer on one GPU. PURE.

Two kernels (cost_model.md sections 1.3 and 1.4): one-token decodes, bound by the bytes of keys and
values they read, and prompt chunks, bound by causal work. Both are priced on the batch as it is:
decode by the sum of all contexts, prefill chunk by chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from frontier_mock.cost.protocol import Chunk
from frontier_mock.cost.specs import HardwareSpec
from frontier_mock.cost.tables import DecodeAttentionFit, Floats, PrefillAttentionFit

_TILE: Final = 128
"""Rows of queries and of keys that the prefill kernel works on at a time."""


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


def decode_us(
    fit: DecodeAttentionFit, hw: HardwareSpec, heads: Heads, num_seqs: int, kv_tokens: Floats
) -> Floats:
    """Microseconds for `num_seqs` decodes whose contexts sum to each of `kv_tokens`."""
    moved = kv_tokens * heads.bytes_per_token
    ramp = fit.ramp_us * moved / (moved + fit.ramp_bytes)
    stream = moved / (fit.memory * hw.hbm_bytes_per_s) * 1e6
    fixed = fit.launch_us + fit.tile_us * num_seqs * heads.kv / hw.sm_count
    time_us: Floats = fixed + ramp + stream
    return np.maximum(time_us, moved / hw.hbm_bytes_per_s * 1e6)


class PrefillPrice:
    """Constants of the prefill equation for one model on one GPU, folded for speed."""

    __slots__ = ("_flops_us", "_launch_us", "_path_us", "_tile_us")

    def __init__(self, fit: PrefillAttentionFit, hw: HardwareSpec, heads: Heads) -> None:
        pair_flops = 4.0 * _TILE * _TILE * heads.size
        self._launch_us = fit.launch_us
        self._flops_us = heads.query * pair_flops / (hw.peak_bf16_flops * fit.compute) * 1e6
        self._tile_us = heads.query * fit.tile_us / hw.sm_count
        self._path_us = fit.path_us

    def chunks_us(self, chunks: Sequence[Chunk]) -> float:
        """Microseconds for all chunks of a step, launched as one ragged kernel."""
        pairs = 0.0
        tiles = 0
        longest = 0.0
        for new, past in chunks:
            rows = -(-new // _TILE)
            columns = past / _TILE
            pairs += rows * (0.5 * (rows + 1) + columns)
            tiles += rows
            if rows + columns > longest:
                longest = rows + columns
        work_us = pairs * self._flops_us + tiles * self._tile_us
        return self._launch_us + max(work_us, longest * self._path_us)
