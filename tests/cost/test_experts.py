"""Routed experts: laws of the grouped GEMM, of the load on ranks, and of the layer around it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_mock.config.profiles import load_engine, load_hardware, load_kernels, load_model
from frontier_mock.cost.contiguous import contiguous_us
from frontier_mock.cost.experts import (
    ExpertShape,
    balanced_load,
    block_rows,
    expected_load,
    experts_us,
    floor_us,
    placed,
    popularity,
)
from frontier_mock.cost.moe import choosing_us, expert_table
from frontier_mock.cost.protocol import Chunk
from frontier_mock.cost.specs import (
    ExpertsSpec,
    ParallelSpec,
    PrecisionSpec,
    RoutingSpec,
    StepSpec,
)
from frontier_mock.cost.step import TabledStepCost, build_step_cost

DEEPSEEK = "deepseek-ai/DeepSeek-V3"
QWEN = "Qwen/Qwen3-30B-A3B"
MODEL = ExpertsSpec(256, 8, 2048)
TOKENS = np.unique(np.rint(2.0 ** np.arange(0.0, 16.0, 0.5)))


def make(
    model: str,
    hardware: str = "h800",
    parallel: ParallelSpec | None = None,
    weights: str | None = None,
    routing: RoutingSpec | None = None,
    engine: str = "vllm-0.33",
) -> TabledStepCost:
    hw, card = load_hardware(hardware), load_model(model)
    spec = StepSpec(
        hardware=hw,
        model=card,
        parallel=parallel or ParallelSpec(),
        precision=PrecisionSpec(weights or card.checkpoint_weights),
        engine=load_engine(engine),
        async_scheduling=True,
        cudagraph_sizes=tuple(range(8, 513, 8)),
        routing=routing or RoutingSpec(),
    )
    return build_step_cost(spec, load_kernels(hw.kernels))


def decode_ns(cost: TabledStepCost, num_seqs: int, kv_tokens: int) -> float:
    line = cost.decode(num_seqs, kv_tokens)
    return line.base_ns + line.slope_ns * kv_tokens


SHAPES = st.builds(
    ExpertShape,
    hidden=st.sampled_from([1024, 2048, 2880, 4096, 7168, 12288]),
    inner=st.integers(64, 16384),
    top_k=st.integers(1, 16),
    num_experts=st.sampled_from([16, 64, 128, 256, 512]),
    ep=st.sampled_from([1, 2, 8, 16]),
)


@pytest.mark.parametrize("gpu", ["h800", "h20", "h200", "a100", "l20", "rtx-pro-6000"])
@given(shape=SHAPES)
@settings(max_examples=30, deadline=None)
def test_no_expert_kernel_beats_the_machine(gpu: str, shape: ExpertShape) -> None:
    hw = load_hardware(gpu)
    for kernels in load_kernels(hw.kernels).experts.values():
        for name, table in kernels.items():
            weights = name.removesuffix("_ep")
            load = balanced_load(shape, table.fit.block_rows, TOKENS)
            time_us = experts_us(table, hw, weights, shape, load)
            assert (time_us >= floor_us(hw, weights, shape, load)).all()
            assert np.isfinite(time_us).all()


@pytest.mark.parametrize("gpu", ["h800", "h20", "h200"])
@given(shape=SHAPES)
@settings(max_examples=30, deadline=None)
def test_contiguous_expert_gemms_rise_with_the_batch_and_never_beat_the_machine(
    gpu: str, shape: ExpertShape
) -> None:
    hw, fit = load_hardware(gpu), load_kernels(gpu).contiguous
    assert fit is not None
    load = balanced_load(shape, 128, TOKENS)
    time_us = contiguous_us(fit, hw, "fp8_block", shape, load)
    assert (time_us >= floor_us(hw, "fp8_block", shape, load)).all()
    assert (np.diff(time_us) >= 0).all()


def test_contiguous_expert_gemms_take_as_long_for_one_token_as_for_thirty() -> None:
    """Qwen3-235B's experts cut in two on H200: empty tiles are fed too (Theory, rule 2)."""
    fit, shape = load_kernels("h200").contiguous, ExpertShape(4096, 768, 8, 128, 1)
    assert fit is not None
    load = balanced_load(shape, 128, np.array([1.0, 32.0]))
    one, thirty = contiguous_us(fit, load_hardware("h200"), "fp8_block", shape, load)
    assert 250 < one < thirty < 1.6 * one


def test_the_engine_version_decides_which_kernel_runs_block_fp8_experts() -> None:
    """Qwen3-235B on two H200 (vllm-project/vllm#26197, #34249, #34260)."""
    model, halves = "Qwen/Qwen3-235B-A22B-FP8", ParallelSpec(tp=2)
    ns = {
        version: decode_ns(make(model, "h200", halves, engine=f"vllm-{version}"), 4, 4000)
        for version in ("0.11", "0.12", "0.16", "0.18")
    }
    assert ns["0.12"] > 1.8 * ns["0.18"]
    assert ns["0.16"] > ns["0.18"]
    whole = ParallelSpec(tp=8)
    cut = (make(model, "h200", whole, engine=f"vllm-{version}") for version in ("0.11", "0.12"))
    older, newer = (decode_ns(cost, 4, 4000) for cost in cut)
    assert newer == pytest.approx(older, rel=0.02)


def test_an_fp32_router_costs_more_than_one_on_tensor_cores() -> None:
    cost = make("MiniMaxAI/MiniMax-M2.5", "h200", ParallelSpec(tp=4))
    card = cost.spec.model
    assert card.experts is not None
    experts = replace(card.experts, fp32_router=False)
    spec = replace(cost.spec, model=replace(card, experts=experts))
    plain = build_step_cost(spec, load_kernels("h200"))
    a_layer_us = (decode_ns(cost, 8, 8000) - decode_ns(plain, 8, 8000)) / card.num_layers / 1e3
    assert 2 < a_layer_us < 15
    prompt = [Chunk(8000, 0)]
    assert cost.mixed(0, 0, prompt) > 1.03 * plain.mixed(0, 0, prompt)


def test_choosing_experts_takes_what_the_kernel_was_measured_to_take() -> None:
    """102 us for 4095 tokens, 8 of 128 experts, on H200 (h200_moe_eager_4095tok_ep8.csv)."""
    spec, tables = make(QWEN, "h200").spec, load_kernels("h200")
    experts = spec.model.experts
    assert experts is not None
    (chosen_us,) = choosing_us(spec, tables, experts, np.array([4095.0]))
    assert chosen_us == pytest.approx(102.0, rel=0.03)


@pytest.mark.parametrize(
    ("shape", "measured_us"),
    [
        (ExpertShape(2048, 768, 8, 128, 1), (228, 432, 461, 529, 836)),
        (ExpertShape(4096, 3584, 2, 8, 1), (261, 268, 296, 472, 1252)),
    ],
)
def test_measured_shapes_give_back_what_was_measured(
    shape: ExpertShape, measured_us: tuple[int, ...]
) -> None:
    """Qwen3-30B-A3B and Mixtral-8x7B (tp 4) in bf16 on H100, even load, from aiconfigurator."""
    table = load_kernels("h100").experts["vllm-0.24"]["bf16"]
    load = balanced_load(shape, table.fit.block_rows, np.array([8.0, 64.0, 256.0, 1024.0, 4096.0]))
    time_us = experts_us(table, load_hardware("h100"), "bf16", shape, load)
    assert time_us == pytest.approx(measured_us, rel=0.09)


@given(st.floats(0.0, 1.5), st.sampled_from([1, 8, 32]), st.sampled_from([0, 32, 64]))
@settings(max_examples=30, deadline=None)
def test_no_token_is_lost_between_ranks(exponent: float, ranks: int, redundant: int) -> None:
    shares = popularity(MODEL, RoutingSpec("zipf", exponent), 2)
    assert shares.sum(axis=1) == pytest.approx(1.0)
    on_ranks = placed(shares, ranks, redundant)
    assert on_ranks.sum(axis=(1, 2)) == pytest.approx(1.0)
    load = expected_load(on_ranks, MODEL.top_k, 64, TOKENS)
    assert (load.padded >= load.rows * (1 - 1e-9)).all()
    assert (load.active <= on_ranks.shape[2] + 1e-9).all()


def test_skew_hits_fewer_experts_and_loads_one_rank_more() -> None:
    even = placed(popularity(MODEL, RoutingSpec("uniform"), 1), 8, 0)
    skewed = placed(popularity(MODEL, RoutingSpec("zipf", 1.0), 1), 8, 0)
    few = np.array([16.0])
    on_even, on_skewed = (expected_load(s, 8, 64, few) for s in (even, skewed))
    assert on_skewed.active.sum() < 0.8 * on_even.active.sum()
    assert on_skewed.rows.max() > 1.2 * on_even.rows.max()


def test_redundant_experts_even_out_the_ranks() -> None:
    shares = popularity(MODEL, RoutingSpec("zipf", 1.0, seed=3), 4)
    plain = placed(shares, 32, 0).sum(axis=2).max(axis=1)
    evened = placed(shares, 32, 32).sum(axis=2).max(axis=1)
    assert (evened < plain).all()
    assert evened.mean() < 1.2 / 32


def test_layers_draw_their_own_popularity_from_the_seed() -> None:
    first = popularity(MODEL, RoutingSpec("zipf", 1.0, seed=1), 3)
    assert (first == popularity(MODEL, RoutingSpec("zipf", 1.0, seed=1), 3)).all()
    assert (first[0] != first[1]).any()
    assert (first != popularity(MODEL, RoutingSpec("zipf", 1.0, seed=2), 3)).any()


CARDS = [QWEN, DEEPSEEK, "openai/gpt-oss-120b", "stepfun-ai/step3", "zai-org/GLM-5-FP8"]


@pytest.mark.parametrize("model", CARDS)
def test_steps_of_models_with_experts_grow_with_batch_and_context(model: str) -> None:
    cost = make(model, parallel=ParallelSpec(tp=8))
    for seqs in (1, 7, 64, 300):
        assert decode_ns(cost, seqs + 1, (seqs + 1) * 900) >= decode_ns(cost, seqs, seqs * 900)
        assert decode_ns(cost, seqs, seqs * 5000) > decode_ns(cost, seqs, seqs * 900)
    short, longer = [Chunk(500, 0)], [Chunk(4000, 0)]
    assert cost.mixed(8, 8000, longer) > cost.mixed(8, 8000, short)
    assert cost.mixed(8, 8000, [Chunk(500, 9000)]) > cost.mixed(8, 8000, short)


def test_a_window_bounds_what_long_contexts_cost() -> None:
    windowed = make("openai/gpt-oss-120b", parallel=ParallelSpec(tp=4))
    card = replace(windowed.spec.model, sliding_layers=0)
    full = build_step_cost(replace(windowed.spec, model=card), load_kernels("h800"))
    for_windowed = decode_ns(windowed, 64, 64 * 9000) - decode_ns(windowed, 64, 64 * 3000)
    for_full = decode_ns(full, 64, 64 * 9000) - decode_ns(full, 64, 64 * 3000)
    assert for_windowed == pytest.approx(for_full / 2, rel=0.01)
    prompt = [Chunk(8000, 8000)]
    assert windowed.mixed(0, 0, prompt) < full.mixed(0, 0, prompt)


def test_sharing_experts_among_attention_ranks_costs_their_communication() -> None:
    wide = ParallelSpec(dp=32, ep=32, dispatch="deepep_low_latency")
    slow = ParallelSpec(dp=32, ep=32, dispatch="allgather")
    fast_ns = decode_ns(make(DEEPSEEK, parallel=wide), 64, 64 * 2000)
    slow_ns = decode_ns(make(DEEPSEEK, parallel=slow), 64, 64 * 2000)
    assert 0 < fast_ns < slow_ns


def test_experts_of_few_bits_are_unpacked_where_only_bf16_was_measured() -> None:
    """vLLM's Marlin kernels on Ampere."""
    eight = ParallelSpec(tp=8)
    packed = decode_ns(make("moonshotai/Kimi-K2.5", "a100", eight), 4, 4000)
    wide = decode_ns(make("moonshotai/Kimi-K2.5", "a100", eight, weights="bf16"), 4, 4000)
    assert 0.25 * wide < packed < 0.8 * wide


def test_experts_of_a_type_nobody_measured_are_named() -> None:
    with pytest.raises(ValueError, match="no int8 expert kernels for a100; it has bf16"):
        expert_table(
            replace(make(QWEN, "a100").spec, precision=PrecisionSpec("int8")), load_kernels("a100")
        )


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        (ParallelSpec(tp=2, dp=2, ep=2), r"ep is 2; allowed: 1 or tp x dp \(4\)"),
        (ParallelSpec(dp=3, ep=3), "128 experts are not divisible by ep=3"),
        (ParallelSpec(dp=2, ep=2, dispatch="carrier"), "dispatch 'carrier' is not known"),
    ],
)
def test_impossible_expert_parallelism_is_refused(parallel: ParallelSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(QWEN, parallel=parallel)


GPT_OSS = "openai/gpt-oss-120b"
HALF = ExpertShape(2880, 1440, 4, 128, 1)
"""Experts of gpt-oss-120b on one of two GPUs."""


def test_mxfp4_blocks_are_as_large_as_the_average_experts_rows() -> None:
    """128 experts, four per token: 8,192 tokens are 256 rows each (opt_flags.py of triton)."""
    fit = load_kernels("h200").experts["vllm-0.24"]["mxfp4"].fit
    tokens = np.array([1.0, 512.0, 600.0, 1024.0, 2048.0, 4096.0, 8192.0])
    assert block_rows(fit, HALF, tokens).tolist() == [16, 16, 32, 32, 64, 128, 128]
    fixed = load_kernels("h200").experts["vllm-0.24"]["bf16"].fit
    assert set(block_rows(fixed, HALF, tokens)) == {fixed.block_rows}


@given(st.integers(1, 16384), st.floats(0.0, 1.5), st.sampled_from(["h100", "h200", "h800"]))
@settings(max_examples=60, deadline=None)
def test_mxfp4_experts_cost_their_blocks(tokens: int, exponent: float, gpu: str) -> None:
    """Popular experts make more blocks of many tokens and hit fewer experts with few."""
    hw, table = load_hardware(gpu), load_kernels(gpu).experts["vllm-0.24"]["mxfp4"]
    count = np.array([float(tokens)])
    rows = block_rows(table.fit, HALF, count)
    model = ExpertsSpec(128, 4, 2880)
    shares = placed(popularity(model, RoutingSpec("zipf", exponent), 1), 1, 0)[0]
    load = expected_load(shares, 4, rows, count)
    even = balanced_load(HALF, rows, count)
    time_us, even_us = (experts_us(table, hw, "mxfp4", HALF, x)[0, ...] for x in (load, even))
    assert np.all(time_us >= floor_us(hw, "mxfp4", HALF, load))
    if (load.padded > 1.001 * even.padded).all():
        assert np.all(time_us > even_us)
    if (load.padded < 0.999 * even.padded).all():
        assert np.all(time_us < even_us * (1 + 1e-9))


def test_four_bit_experts_are_read_in_four_bits() -> None:
    """At decode experts are bytes: mxfp4 is faster than bf16, and slower than its bytes say."""
    halves = ParallelSpec(tp=2)
    packed, whole = make(GPT_OSS, "h200", halves), make(GPT_OSS, "h200", halves, weights="bf16")
    for seqs in (16, 32, 64):
        assert decode_ns(packed, seqs, seqs * 500) < 0.75 * decode_ns(whole, seqs, seqs * 500)
        assert decode_ns(packed, seqs, seqs * 500) > 0.3 * decode_ns(whole, seqs, seqs * 500)


def test_both_engines_run_mxfp4_experts_by_the_same_kernels() -> None:
    """SGLang's moe_runner_backend of gpt-oss on Hopper is "triton_kernel" (sglang#12696)."""
    halves = ParallelSpec(tp=2)
    sglang = make(GPT_OSS, "h200", halves, engine="sglang-0.5.5")
    vllm = make(GPT_OSS, "h200", halves, engine="vllm-0.24")
    assert decode_ns(sglang, 64, 64_000) == pytest.approx(decode_ns(vllm, 64, 64_000), rel=0.02)
