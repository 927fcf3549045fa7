"""Pipeline stages: who has which layers, what they take, and what they hold."""

from dataclasses import replace

import pytest

from frontier_mock.config.profiles import load_engine, load_hardware, load_kernels, load_model
from frontier_mock.cost.cuda_graphs import default_capture_sizes
from frontier_mock.cost.memory import MemoryPlan, plan_kv_cache
from frontier_mock.cost.protocol import Chunk, StepCost
from frontier_mock.cost.sglang_memory import plan_sglang_kv_cache
from frontier_mock.cost.specs import ParallelSpec, PrecisionSpec, StepSpec
from frontier_mock.cost.staged import StagedStepCost, build_staged_cost
from frontier_mock.cost.stages import sglang_split, stage_layers, stage_models, vllm_split
from frontier_mock.cost.step import TabledStepCost, build_step_cost

LLAMA_70B = "meta-llama/Llama-3.1-70B-Instruct"
DEEPSEEK = "deepseek-ai/DeepSeek-V3"
SIZES = default_capture_sizes(1024, 8192)


def spec_of(model: str, parallel: ParallelSpec, *, bare: bool = True) -> StepSpec:
    """With `bare`, the engine's own CPU takes no time and nothing is scheduled ahead."""
    engine = load_engine("vllm-0.33")
    if bare:
        engine = replace(engine, cpu_step_s=0.0, cpu_request_s=0.0, async_gap_s=0.0)
    card = load_model(model)
    precision = PrecisionSpec("fp8_block" if model == DEEPSEEK else "fp8")
    return StepSpec(load_hardware("h800"), card, parallel, precision, engine, not bare, SIZES)


def staged(model: str, parallel: ParallelSpec) -> StagedStepCost:
    return build_staged_cost(spec_of(model, parallel), load_kernels("h800"))


def whole(model: str, parallel: ParallelSpec) -> TabledStepCost:
    return build_step_cost(spec_of(model, parallel), load_kernels("h800"))


def decode_ns(cost: StepCost, num_seqs: int, kv_tokens: int) -> float:
    line = cost.decode(num_seqs, kv_tokens)
    return line.base_ns + line.slope_ns * kv_tokens


@pytest.mark.parametrize(
    ("layers", "stages", "expected"),
    [
        (80, 4, (20, 20, 20, 20)),
        (61, 2, (31, 30)),
        (61, 4, (15, 15, 16, 15)),
        (62, 4, (15, 16, 16, 15)),
        (63, 4, (16, 16, 16, 15)),
        (5, 3, (2, 2, 1)),
    ],
)
def test_vllm_spares_the_last_stage(layers: int, stages: int, expected: tuple[int, ...]) -> None:
    assert vllm_split(layers, stages) == expected


def test_sglang_gives_the_last_stages_one_layer_more() -> None:
    assert sglang_split(61, 4) == (15, 15, 15, 16)
    assert sglang_split(63, 4) == (15, 16, 16, 16)


def test_a_split_of_ones_own_has_to_be_one_of_the_model() -> None:
    card = load_model(LLAMA_70B)
    assert stage_layers(card, ParallelSpec(pp=2, stage_layers=(41, 39))) == (41, 39)
    for wrong in ((40, 39), (40, 40, 0), (80,)):
        with pytest.raises(ValueError, match="of the 80 layers of"):
            stage_layers(card, ParallelSpec(pp=2, stage_layers=wrong))
    with pytest.raises(ValueError, match=r"pp is 81; .* has 80 layers"):
        stage_layers(card, ParallelSpec(pp=81))


def test_dense_layers_come_first_and_windows_are_everywhere() -> None:
    first, second = stage_models(load_model(DEEPSEEK), ParallelSpec(pp=2))
    assert (first.num_layers, first.expert_layers) == (31, 28)
    assert (second.num_layers, second.expert_layers) == (30, 30)
    parts = stage_models(load_model("openai/gpt-oss-120b"), ParallelSpec(pp=4))
    assert [part.sliding_layers for part in parts] == [4, 5, 4, 5]
    assert sum(part.num_layers for part in parts) == 36


@pytest.mark.parametrize("model", [LLAMA_70B, DEEPSEEK])
def test_stages_add_up_to_the_whole_and_the_way_between_them(model: str) -> None:
    tp = 8 if model == DEEPSEEK else 4
    alone, cost = whole(model, ParallelSpec(tp=tp)), staged(model, ParallelSpec(tp=tp, pp=2))
    chunks = [Chunk(2048, 0), Chunk(512, 4096)]
    hop = cost.hop_ns(0, 16)
    graph_ns = 10_000
    more = decode_ns(cost, 16, 32_000) - decode_ns(alone, 16, 32_000)
    assert more == pytest.approx(hop + graph_ns, abs=1000)
    more = cost.mixed(0, 0, chunks) - alone.mixed(0, 0, chunks)
    assert more == pytest.approx(cost.hop_ns(0, 2560), abs=0.002 * alone.mixed(0, 0, chunks))


def test_only_the_last_stage_samples() -> None:
    cost = staged(LLAMA_70B, ParallelSpec(tp=4, pp=4))
    first, second, third, last = (decode_ns(stage, 256, 256_000) for stage in cost.stages)
    assert second == third
    assert cost.stages[1] is cost.stages[2]
    assert first - second < 100_000
    assert last - second > 500_000


def test_the_way_between_nodes_is_longer_than_within_one() -> None:
    hw = load_hardware("h800")
    cost = staged(LLAMA_70B, ParallelSpec(tp=2, pp=8))
    hops = [cost.hop_ns(stage, 8192) for stage in range(7)]
    assert hops[:3] == hops[4:]
    assert hops[3] / hops[0] == pytest.approx(hw.nvlink_bytes_per_s / hw.nic_bytes_per_s, rel=0.05)


def test_ranks_of_attention_and_stages_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="pp=2 with dp=2: only one of them may be above 1"):
        staged(DEEPSEEK, ParallelSpec(tp=4, pp=2, dp=2, ep=8))


def plan(parallel: ParallelSpec, max_num_seqs: int = 1024) -> MemoryPlan:
    return plan_kv_cache(
        load_hardware("h800"),
        load_model(LLAMA_70B),
        parallel,
        PrecisionSpec("fp8"),
        gpu_memory_utilization=0.9,
        max_num_batched_tokens=8192,
        max_num_seqs=max_num_seqs,
        block_size=16,
        max_model_len=8192,
        cudagraph_sizes=SIZES,
    )


def test_the_stage_with_fewest_blocks_decides() -> None:
    """The last one has as many layers as the first, but samples; give it fewer, and it does not."""
    even = plan(ParallelSpec(tp=2, pp=2))
    small = plan(ParallelSpec(tp=2, pp=2), max_num_seqs=1)
    spared = plan(ParallelSpec(tp=2, pp=2, stage_layers=(43, 37)))
    assert even.num_blocks < small.num_blocks
    assert even.bytes_per_block == 40 * 16 * 2 * 4 * 128 * 2
    assert spared.bytes_per_block == even.bytes_per_block // 40 * 43
    assert spared.num_blocks < small.num_blocks


def test_two_stages_hold_more_than_twice_what_one_does() -> None:
    assert plan(ParallelSpec(tp=2, pp=2)).num_blocks > 2 * plan(ParallelSpec(tp=2)).num_blocks


def test_sglangs_pool_is_that_of_the_stage_with_fewest_pages() -> None:
    model = load_model(LLAMA_70B)
    layers = sglang_split(79, 2)
    parallel = ParallelSpec(tp=2, pp=2, stage_layers=layers)
    made = plan_sglang_kv_cache(
        load_hardware("h800"),
        replace(model, num_layers=79),
        parallel,
        PrecisionSpec("fp8"),
        mem_fraction_static=0.85,
        page_size=1,
    )
    assert layers == (39, 40)
    assert made.bytes_per_block == 40 * 2 * 4 * 128 * 2
