"""Attention over a latent cache (MLA), one layer on one GPU. PURE.

Decodes absorb the projections, so that all heads read one row of `kv_rank + rope_size` per token:
bound by computing with many heads and by memory with few. Prompts expand the latent into keys and
values first. With sparse attention an indexer reads the whole context and attention the tokens it
picked. Constants: cost_model.md sections 1.3 and 1.4.
"""

from collections.abc import Sequence
from typing import Final

from frontier_mock.cost.attention import Heads
from frontier_mock.cost.protocol import Chunk
from frontier_mock.cost.specs import HardwareSpec, LatentSpec

_DECODE_LAUNCH_US: Final = 12.5
_DECODE_COMPUTE: Final = 0.55
"""Of H100's bf16 peak with 128 heads: 0.52 to 0.57 (SGLang's FA3)."""

_REFERENCE_SM_FLOPS: Final = 989e12 / 132
_TENSOR_PEAK: Final = 0.9
"""What tensor cores reach alone. The rest of the time is the softmax between them, which an SM does
at the same rate on a GPU with slower tensor cores (H20)."""

_DECODE_MEMORY: Final = 0.9
_HEADS_PER_TILE: Final = 64
"""Query rows are padded to so many; fewer heads do not compute faster."""

_PREFILL_LAUNCH_US: Final = 12.0
_PREFILL_COMPUTE: Final = 0.63
"""Of H800's bf16 peak at 192 query and 128 value columns, 4k to 16k tokens (row B43)."""

_EXPAND_COMPUTE: Final = 0.7
_TILE: Final = 128
_INDEX_COMPUTE: Final = 0.4


class LatentPrice:
    """Latent attention of one model on one GPU."""

    __slots__ = (
        "_expand_us",
        "_heads",
        "_index_us",
        "_limit",
        "_pair_us",
        "_score_us",
        "_token_us",
    )

    def __init__(self, latent: LatentSpec, hw: HardwareSpec, heads: Heads) -> None:
        peak, bandwidth = hw.peak_bf16_flops, hw.hbm_bytes_per_s
        rows = -(-heads.query // _HEADS_PER_TILE) * _HEADS_PER_TILE
        flops = 2.0 * rows * (2 * latent.kv_rank + latent.rope_size)
        computed = flops / _sustained_flops(hw, _DECODE_COMPUTE)
        read = heads.bytes_per_token / (_DECODE_MEMORY * bandwidth)
        self._token_us = max(computed, read) * 1e6
        self._heads = heads.query
        wide = latent.nope_size + latent.rope_size + latent.value_size
        self._pair_us = 2e6 * heads.query * wide / _sustained_flops(hw, _PREFILL_COMPUTE)
        expanded = 2.0 * heads.query * latent.kv_rank * (latent.nope_size + latent.value_size)
        self._expand_us = expanded / (_EXPAND_COMPUTE * peak) * 1e6
        self._limit = latent.index_top_k
        self._index_us = latent.index_size / (_DECODE_MEMORY * bandwidth) * 1e6
        scored = 2.0 * latent.index_heads * latent.index_size
        self._score_us = scored / (_INDEX_COMPUTE * (hw.peak_fp8_flops or peak)) * 1e6

    def decode_us(self, num_seqs: int) -> tuple[list[float], list[float]]:
        """Total contexts and microseconds of `num_seqs` decodes; the last segment goes on."""
        far = 1e9
        if not self._limit:
            return [0.0, far], [_DECODE_LAUNCH_US, _DECODE_LAUNCH_US + far * self._token_us]
        knee = float(self._limit * num_seqs)
        index = max(self._index_us, self._score_us)
        start = 2.0 * _DECODE_LAUNCH_US
        full = start + knee * (self._token_us + index)
        return [0.0, knee, far], [start, full, full + (far - knee) * index]

    def chunks_us(self, chunks: Sequence[Chunk]) -> float:
        """Microseconds for all chunks of a step, keys and values of their pasts expanded again."""
        total = _PREFILL_LAUNCH_US
        for new, past in chunks:
            rows = -(-new // _TILE) * _TILE
            pairs = rows * (past + 0.5 * (rows + _TILE))
            if self._limit and past + new > self._limit:
                total += pairs * self._score_us
                pairs = min(pairs, rows * float(self._limit))
            total += pairs * self._pair_us + past * self._expand_us
        return total


def _sustained_flops(hw: HardwareSpec, fraction: float) -> float:
    """FLOP/s of a kernel that reaches `fraction` of H100's peak, on this GPU."""
    softmax = (1.0 / fraction - 1.0 / _TENSOR_PEAK) / _REFERENCE_SM_FLOPS
    per_sm = hw.peak_bf16_flops / hw.sm_count
    return hw.sm_count / (1.0 / (_TENSOR_PEAK * per_sm) + softmax)
