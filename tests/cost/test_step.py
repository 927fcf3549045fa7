"""The price of a step: laws that hold whatever the tables say."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_mock.config.profiles import load_engine, load_hardware, load_kernels, load_model
from frontier_mock.cost.cuda_graphs import default_capture_sizes
from frontier_mock.cost.protocol import Chunk
from frontier_mock.cost.specs import ParallelSpec, PrecisionSpec, StepSpec
from frontier_mock.cost.step import TabledStepCost, build_step_cost

LLAMA_70B = "meta-llama/Llama-3.1-70B-Instruct"


def make(
    hardware: str = "h800",
    model: str = LLAMA_70B,
    tp: int = 4,
    weights: str = "fp8",
    kv: str = "bf16",
    asynchronous: bool = True,
    graphs: bool = True,
) -> TabledStepCost:
    hw = load_hardware(hardware)
    sizes = default_capture_sizes(1024, 8192) if graphs else ()
    spec = StepSpec(
        hardware=hw,
        model=load_model(model),
        parallel=ParallelSpec(tp=tp),
        precision=PrecisionSpec(weights=weights, kv=kv),
        engine=load_engine("vllm-0.33"),
        async_scheduling=asynchronous,
        cudagraph_sizes=sizes,
    )
    return build_step_cost(spec, load_kernels(hw.kernels))


def decode_ns(cost: TabledStepCost, num_seqs: int, kv_tokens: int) -> float:
    line = cost.decode(num_seqs, kv_tokens)
    return line.base_ns + line.slope_ns * kv_tokens


SMALL = make(model="Qwen/Qwen3-8B", tp=1, weights="bf16")
LARGE = make()
NEVER_ENDS = 1 << 62
"""`kv_max` of the last line of a batch."""

EITHER = st.sampled_from([SMALL, LARGE])


@given(EITHER, st.integers(1, 1024), st.integers(0, 4_000_000))
def test_consecutive_lines_meet(cost: TabledStepCost, num_seqs: int, more: int) -> None:
    kv = num_seqs + more
    line = cost.decode(num_seqs, kv)
    assert line.kv_max >= kv
    if line.kv_max >= NEVER_ENDS:
        return
    after = cost.decode(num_seqs, line.kv_max + 1)
    here = line.base_ns + line.slope_ns * line.kv_max
    there = after.base_ns + after.slope_ns * line.kv_max
    # A line ends at the last whole token before its knot, so the next may be one slope away.
    assert abs(here - there) <= 1.0 + abs(after.slope_ns - line.slope_ns)


@given(EITHER, st.integers(1, 512), st.integers(0, 2_000_000), st.integers(1, 500_000))
def test_more_context_is_never_faster(
    cost: TabledStepCost, num_seqs: int, more: int, extra: int
) -> None:
    kv = num_seqs + more
    assert decode_ns(cost, num_seqs, kv + extra) >= decode_ns(cost, num_seqs, kv) - 1e-3


@given(EITHER, st.integers(1, 1023), st.integers(1, 4000))
def test_more_sequences_of_one_length_are_never_faster(
    cost: TabledStepCost, num_seqs: int, context: int
) -> None:
    more = decode_ns(cost, num_seqs + 1, (num_seqs + 1) * context)
    assert more >= decode_ns(cost, num_seqs, num_seqs * context) - 1e-3


@given(EITHER, st.integers(1, 256), st.integers(0, 300_000))
def test_a_step_without_chunks_is_a_decode_step(
    cost: TabledStepCost, num_seqs: int, more: int
) -> None:
    kv = num_seqs + more
    assert abs(cost.mixed(num_seqs, kv, ()) - decode_ns(cost, num_seqs, kv)) <= 0.5


CHUNKS = st.lists(
    st.builds(Chunk, st.integers(1, 4096), st.integers(0, 30_000)), min_size=1, max_size=8
)


@given(EITHER, st.integers(0, 128), CHUNKS, st.integers(1, 2000), st.integers(1, 2000))
@settings(deadline=None)
def test_longer_chunks_are_never_faster(
    cost: TabledStepCost, decodes: int, chunks: list[Chunk], new: int, past: int
) -> None:
    before = cost.mixed(decodes, decodes * 500, chunks)
    head, *rest = chunks
    assert cost.mixed(decodes, decodes * 500, [Chunk(head.new + new, head.past), *rest]) >= before
    assert cost.mixed(decodes, decodes * 500, [Chunk(head.new, head.past + past), *rest]) >= before


@given(EITHER, st.integers(1, 512), st.integers(0, 2_000_000))
def test_no_decode_beats_the_roofline(cost: TabledStepCost, num_seqs: int, more: int) -> None:
    kv = num_seqs + more
    spec = cost.spec
    model, hw, tp = spec.model, spec.hardware, spec.parallel.tp
    layer = model.hidden_size * model.head_dim * 2 * (model.num_heads + model.num_kv_heads)
    layer += 3 * model.hidden_size * model.intermediate_size
    width = 1 if spec.precision.weights == "fp8" else 2
    weights = model.num_layers * layer * width / tp
    cache = 2 * model.num_layers * model.num_kv_heads * model.head_dim * 2 * kv / tp
    peak = hw.peak_fp8_flops if width == 1 else hw.peak_bf16_flops
    flops = 2.0 * num_seqs * model.num_layers * layer / tp
    bound_s = max((weights + cache) / hw.hbm_bytes_per_s, flops / peak)
    assert decode_ns(cost, num_seqs, kv) >= bound_s * 1e9 * 0.999


def test_padding_to_the_captured_graph_makes_neighbours_equal_in_linear_cost() -> None:
    kv = 100_000
    step = decode_ns(LARGE, 10, kv) - decode_ns(LARGE, 9, kv)
    assert step < decode_ns(LARGE, 9, kv) - decode_ns(LARGE, 8, kv)


def test_without_graphs_the_host_launches_every_kernel() -> None:
    eager = make(model="Qwen/Qwen3-8B", tp=1, weights="bf16", graphs=False)
    assert decode_ns(eager, 1, 100) > decode_ns(SMALL, 1, 100)


def test_prompts_are_launched_by_the_host_where_only_decodes_are_captured() -> None:
    """SGLang before 0.5.23 captures decodes alone, and compiles nothing."""
    both = SMALL
    decodes, prompts = replace(SMALL.spec, prompt_graph_sizes=()), (64, 512)
    apart = build_step_cost(decodes, load_kernels("h800"))
    own = build_step_cost(replace(decodes, prompt_graph_sizes=prompts), load_kernels("h800"))
    short, beyond = [Chunk(60, 0)], [Chunk(513, 0)]
    assert decode_ns(apart, 8, 900) == decode_ns(both, 8, 900)
    assert apart.mixed(0, 0, short) > both.mixed(0, 0, short)
    assert own.mixed(0, 0, short) == both.mixed(0, 0, short)
    assert own.mixed(0, 0, beyond) == apart.mixed(0, 0, beyond)


def test_synchronous_scheduling_adds_what_asynchronous_hides() -> None:
    sync, hidden = make(asynchronous=False), make()
    engine = load_engine("vllm-0.33")
    cpu_ns = (engine.cpu_step_s + 64 * engine.cpu_request_s) * 1e9
    gap_ns = engine.async_gap_s * 1e9
    difference = decode_ns(sync, 64, 64_000) - decode_ns(hidden, 64, 64_000)
    assert difference == pytest.approx(cpu_ns - gap_ns)


def test_a_cpu_bound_step_is_flat_until_the_gpu_catches_up() -> None:
    cost = make(model="Qwen/Qwen3-0.6B", tp=1, weights="bf16")
    line = cost.decode(512, 512)
    assert line.slope_ns == 0.0
    beyond = cost.decode(512, line.kv_max + 1)
    assert beyond.slope_ns > 0.0


def test_h800_differs_from_h100_only_in_collectives() -> None:
    one, other = make("h800", tp=1), make("h100", tp=1)
    assert decode_ns(one, 32, 50_000) == decode_ns(other, 32, 50_000)
    chunk = [Chunk(8000, 0)]
    assert make("h800", tp=8).mixed(0, 0, chunk) > make("h100", tp=8).mixed(0, 0, chunk)


@pytest.mark.parametrize(
    ("tp", "weights", "kv", "message"),
    [
        (3, "fp8", "bf16", "no all-reduce over tp=3 for h800: tp is 1, 2, 4, 8"),
        (4, "int3", "bf16", "no int3 kernels for h800; it has bf16, fp8, fp8_block, int4, mxfp4"),
        (4, "fp8", "int8", "no int8 KV cache for h800; it has bf16, fp8"),
    ],
)
def test_what_cannot_be_priced_is_named(tp: int, weights: str, kv: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tp=tp, weights=weights, kv=kv)


def test_a_degree_that_does_not_divide_the_heads_is_refused_as_vllm_does() -> None:
    with pytest.raises(ValueError, match=r"attention heads \(14\) must be divisible"):
        make(model="Qwen/Qwen2.5-0.5B-Instruct", tp=4)


def parallel_cost(model: str, parallel: ParallelSpec, weights: str) -> TabledStepCost:
    hw = load_hardware("h800")
    engine = load_engine("vllm-0.33")
    sizes = default_capture_sizes(1024, 8192)
    precision = PrecisionSpec(weights, "bf16")
    spec = StepSpec(hw, load_model(model), parallel, precision, engine, True, sizes)
    return build_step_cost(spec, load_kernels(hw.kernels))


def test_replicas_of_a_dense_model_are_no_data_parallel_worker() -> None:
    with pytest.raises(ValueError, match=r"dp=2: .* has no experts to share"):
        parallel_cost(LLAMA_70B, ParallelSpec(dp=2), "fp8")
