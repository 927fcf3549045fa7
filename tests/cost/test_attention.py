"""Attention on ragged batches: bounds, monotony, and the measured anchors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontier_mock.config.profiles import load_hardware, load_kernels
from frontier_mock.cost.attention import (
    Heads,
    PrefillPrice,
    decode_row,
    decode_us,
    empty_tiles_us,
    ragged_us,
)
from frontier_mock.cost.protocol import Chunk

LLAMA_8B = Heads(query=32, kv=8, size=128, kv_bytes=2)
CHUNKS = st.lists(
    st.builds(Chunk, st.integers(1, 8192), st.integers(0, 60_000)), min_size=1, max_size=6
)


def prefill(gpu: str, heads: Heads) -> PrefillPrice:
    hw = load_hardware(gpu)
    cache = "fp8" if heads.kv_bytes == 1 else "bf16"
    return PrefillPrice(load_kernels(hw.kernels).prefill[cache][heads.size], hw, heads)


@pytest.mark.parametrize("gpu", ["h800", "h200", "a100", "h20", "rtx-pro-6000", "l40s"])
@given(num_seqs=st.integers(1, 2048), context=st.integers(1, 200_000))
def test_decode_reads_its_cache_no_faster_than_memory(
    gpu: str, num_seqs: int, context: int
) -> None:
    hw = load_hardware(gpu)
    table = load_kernels(hw.kernels).decode["bf16"][128]
    kv_tokens, row_us = decode_us(table, hw, LLAMA_8B, num_seqs)
    total = min(float(num_seqs * context), float(kv_tokens[-1]))
    time_s = float(np.interp(total, kv_tokens, row_us)) * 1e-6
    if total >= kv_tokens[0]:
        assert time_s >= total * LLAMA_8B.bytes_per_token / hw.hbm_bytes_per_s
    assert (np.diff(row_us) >= 0.0).all()


@pytest.mark.parametrize("gpu", ["a100", "rtx-pro-6000", "l40s", "rtx-4090"])
@given(num_seqs=st.integers(1, 1024), context=st.integers(16, 60_000))
def test_decodes_beside_a_chunk_read_no_faster_than_memory_and_rise(
    gpu: str, num_seqs: int, context: int
) -> None:
    hw = load_hardware(gpu)
    fit = load_kernels(hw.kernels).ragged
    assert fit is not None
    kv = num_seqs * np.array([context, 2.0 * context])
    one, two = ragged_us(fit, hw, LLAMA_8B, num_seqs, kv)
    assert one * 1e-6 >= kv[0] * LLAMA_8B.bytes_per_token / hw.hbm_bytes_per_s
    assert two > one
    assert ragged_us(fit, hw, LLAMA_8B, num_seqs + 1, kv)[0] >= one
    assert empty_tiles_us(fit, hw, LLAMA_8B, num_seqs, 2048) > empty_tiles_us(
        fit, hw, LLAMA_8B, num_seqs, 512
    )


DECODES = [(1, 65536, 117.1), (16, 4096, 113.4), (64, 2048, 186.7), (256, 1024, 364.4)]
"""Sequences, context, us: 32 query and 8 KV heads on H100, aiconfigurator vLLM 0.24."""

PREFILLS = [(1, 4096, 264.3), (1, 16384, 3310.4), (8, 2048, 608.2), (64, 512, 642.8)]
"""Prompts, length, us: likewise."""


def test_attention_is_close_to_what_was_measured() -> None:
    """The tables pool head counts of one ratio, which costs some percent at any one of them."""
    hw = load_hardware("h100")
    table = load_kernels("h100").decode["bf16"][128]
    errors = []
    for num_seqs, context, measured_us in DECODES:
        kv_tokens, row_us = decode_row(table, hw, LLAMA_8B, num_seqs)
        errors.append(float(np.interp(num_seqs * context, kv_tokens, row_us)) / measured_us - 1)
    price = prefill("h100", LLAMA_8B)
    for prompts, length, measured_us in PREFILLS:
        errors.append(price.chunks_us([Chunk(length, 0)] * prompts) / measured_us - 1)
    assert max(np.abs(errors)) < 0.16
    assert np.mean(np.abs(errors)) < 0.08


SHORT = [
    ("h100", 4, 1, 256, 23.9),
    ("h100", 8, 1, 256, 31.6),
    ("h100", 4, 8, 64, 29.7),
    ("h100", 4, 8, 1, 12.5),
    ("h100", 8, 8, 1, 16.9),
]
"""GPU, query heads per KV head, KV heads, prompts of 16 tokens over an fp8 cache, us: likewise."""


@pytest.mark.parametrize(("gpu", "group", "kv", "prompts", "measured_us"), SHORT)
def test_few_rows_run_a_narrower_tile(
    gpu: str, group: int, kv: int, prompts: int, measured_us: float
) -> None:
    price = prefill(gpu, Heads(group * kv, kv, 128, 1))
    assert price.chunks_us([Chunk(16, 0)] * prompts) == pytest.approx(measured_us, rel=0.25)


@pytest.mark.parametrize("gpu", ["h800", "a100"])
@given(new=st.integers(1, 200), past=st.integers(0, 20_000), others=st.integers(0, 40))
def test_one_more_token_is_never_faster(gpu: str, new: int, past: int, others: int) -> None:
    price = prefill(gpu, LLAMA_8B)
    beside = [Chunk(16, 500)] * others
    shorter = price.chunks_us([Chunk(new, past), *beside])
    assert price.chunks_us([Chunk(new + 1, past), *beside]) >= shorter - 1e-9


@given(chunks=CHUNKS)
def test_prefill_computes_no_faster_than_peak(chunks: list[Chunk]) -> None:
    hw = load_hardware("h800")
    pairs = sum(c.new * c.past + c.new * (c.new + 1) / 2 for c in chunks)
    flops = 4.0 * pairs * LLAMA_8B.query * LLAMA_8B.size
    time_us = prefill("h800", LLAMA_8B).chunks_us(chunks)
    assert time_us * 1e-6 >= flops / hw.peak_bf16_flops


def test_a_ragged_batch_is_not_priced_at_its_mean() -> None:
    price = prefill("h800", LLAMA_8B)
    ragged = price.chunks_us([Chunk(7936, 0), *[Chunk(128, 0)] * 2])
    even = price.chunks_us([Chunk(2730, 0)] * 3)
    assert ragged > 1.8 * even


def test_past_costs_what_its_keys_cost() -> None:
    price = prefill("h800", LLAMA_8B)
    whole = price.chunks_us([Chunk(8192, 0)])
    halves = price.chunks_us([Chunk(4096, 0)]) + price.chunks_us([Chunk(4096, 4096)])
    assert halves == pytest.approx(whole, rel=0.15)
