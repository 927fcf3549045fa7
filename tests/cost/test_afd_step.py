"""The price of a disaggregated step: equal to its pipeline played event by event."""

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_mock.config.profiles import load_engine, load_hardware, load_kernels, load_model
from frontier_mock.cost.afd.pipeline import pipeline_ns, simulate
from frontier_mock.cost.afd.spec import AfdSpec
from frontier_mock.cost.afd.step import AfdStepCost, build_afd_cost
from frontier_mock.cost.cuda_graphs import default_capture_sizes
from frontier_mock.cost.protocol import Chunk, RankBatch
from frontier_mock.cost.specs import ParallelSpec, PrecisionSpec, StepSpec

STEP3 = "stepfun-ai/step3"
DEEPSEEK = "deepseek-ai/DeepSeek-V3"


@cache
def make(
    attention: int = 1,
    ffn: int = 1,
    *,
    model: str = STEP3,
    ranks: int = 8,
    hardware: str = "h800",
    ffn_hardware: str = "h800",
    connector: str = "m2n",
    micro_batches: int = 3,
    graphs: bool = True,
    least: int = 1,
) -> AfdStepCost:
    hw, other = load_hardware(hardware), load_hardware(ffn_hardware)
    step = StepSpec(
        hardware=hw,
        model=load_model(model),
        parallel=ParallelSpec(dp=ranks * attention),
        precision=PrecisionSpec("fp8_block"),
        engine=load_engine("vllm-0.33"),
        async_scheduling=True,
        cudagraph_sizes=default_capture_sizes(1024, 8192) if graphs else (),
    )
    afd = AfdSpec(attention, ffn, 8 * ffn, other, "fp8_block", micro_batches, connector)
    afd = replace(afd, least_decodes=least, least_prompt_tokens=10 * least)
    return build_afd_cost(step, afd, load_kernels(hw.kernels), load_kernels(other.kernels))


def simulated_ns(cost: AfdStepCost, batches: list[RankBatch]) -> int:
    """The step's GPU time, its pipeline played with every rank."""
    rows = max(batch.num_decodes + len(batch.chunks) for batch in batches)
    tokens = max(b.num_decodes + sum(chunk.new for chunk in b.chunks) for b in batches)
    played = max(span.end_ns for span in simulate(cost.layer_runs(batches)))
    return played + round(cost.around_ns(tokens, rows))


GAP_NS = load_engine("vllm-0.33").async_gap_s * 1e9
"""Between two steps under asynchronous scheduling."""

COSTS = st.sampled_from(
    [
        make(),
        make(model=DEEPSEEK),
        make(connector="broadcast", micro_batches=2),
        make(connector="p2p", micro_batches=1),
        make(ranks=2, graphs=False, ffn_hardware="h20"),
    ]
)


@st.composite
def batches_of(draw: st.DrawFn, cost: AfdStepCost, chunks: bool) -> list[RankBatch]:
    made = []
    for rank in range(cost.spec.parallel.dp):
        decodes = draw(st.integers(0 if rank else 1, 400))
        prompts = draw(st.lists(st.integers(1, 3000), max_size=2)) if chunks else []
        made.append(
            RankBatch(
                decodes,
                decodes * draw(st.integers(1, 9000)),
                [Chunk(new, draw(st.integers(0, 4000))) for new in prompts],
            )
        )
    return made


@settings(max_examples=25, deadline=None)
@given(COSTS.flatmap(lambda cost: st.tuples(st.just(cost), batches_of(cost, chunks=False))))
def test_decode_step_equals_the_pipeline(drawn: tuple[AfdStepCost, list[RankBatch]]) -> None:
    """But for what remains of a nanosecond in each attention on the critical path."""
    cost, batches = drawn
    run = cost.lockstep_run(batches)
    rest = cost.spec.model.num_layers * cost.afd.micro_batches
    gpu_ns = simulated_ns(cost, batches)
    rows = max(batch.num_decodes for batch in batches)
    cpu_ns = (cost.spec.engine.cpu_step_s + rows * cost.spec.engine.cpu_request_s) * 1e9
    expected = max(gpu_ns, cpu_ns) + GAP_NS
    assert -1 <= run.first_ns - expected <= rest + 1


@settings(max_examples=15, deadline=None)
@given(COSTS.flatmap(lambda cost: st.tuples(st.just(cost), batches_of(cost, chunks=True))))
def test_mixed_step_equals_the_pipeline(drawn: tuple[AfdStepCost, list[RankBatch]]) -> None:
    cost, batches = drawn
    if any(batch.chunks for batch in batches):
        rows = max(batch.num_decodes + len(batch.chunks) for batch in batches)
        cpu_ns = (cost.spec.engine.cpu_step_s + rows * cost.spec.engine.cpu_request_s) * 1e9
        expected = max(simulated_ns(cost, batches), cpu_ns) + GAP_NS
        assert abs(cost.lockstep(batches) - expected) <= 1


@settings(max_examples=25, deadline=None)
@given(
    COSTS.flatmap(lambda cost: st.tuples(st.just(cost), batches_of(cost, chunks=False))),
    st.floats(0, 1),
)
def test_a_run_is_straight_to_its_end(
    drawn: tuple[AfdStepCost, list[RankBatch]], share: float
) -> None:
    cost, batches = drawn
    run = cost.lockstep_run(batches)
    ahead = int(share * (run.steps - 1))
    later = [
        RankBatch(batch.num_decodes, batch.kv_tokens + ahead * batch.num_decodes)
        for batch in batches
    ]
    there = cost.lockstep_run(later).first_ns
    assert there == pytest.approx(run.first_ns + ahead * run.growth_ns, abs=1200)


def test_one_rank_is_a_step_cost() -> None:
    cost = make(ranks=1)
    line = cost.decode(96, 96 * 5000)
    assert line.kv_max >= 96 * 5000
    alone = cost.lockstep([RankBatch(96, 96 * 5000)])
    assert line.base_ns + line.slope_ns * 96 * 5000 == pytest.approx(alone, abs=1)
    chunks = [Chunk(512, 0)]
    assert cost.mixed(10, 10_000, chunks) == cost.lockstep([RankBatch(10, 10_000, chunks)])


def test_the_last_token_of_a_cached_prompt_is_a_decode() -> None:
    cost = make()
    others = [RankBatch(40, 40 * 3000)] * 7
    arriving = RankBatch(39, 39 * 3000, [Chunk(1, 2999)])
    assert cost.lockstep([arriving, *others]) == cost.lockstep([RankBatch(40, 40 * 3000), *others])
    assert cost.occupied([arriving, *others]) == cost.occupied([RankBatch(40, 120_000), *others])


def test_one_slow_rank_holds_up_all() -> None:
    cost = make()
    even = [RankBatch(250, 250 * 8192)] * 8
    uneven = [*even[:7], RankBatch(250, 250 * 20_000)]
    alone = cost.lockstep([RankBatch(250, 250 * 20_000)] * 8)
    assert cost.lockstep(uneven) == alone > cost.lockstep(even)


def test_padding_has_three_levels() -> None:
    """Micro-batches to their number, ranks to the fullest, tokens to the captured size."""
    cost = make()
    empty = cost.layer_runs([RankBatch(1, 100)] + [RankBatch(0, 0)] * 7)[-1].micro_batches
    assert len(empty) == 3
    assert empty[0].ffn_ns == empty[2].ffn_ns
    fullest = cost.layer_runs([RankBatch(240, 100)] + [RankBatch(3, 300)] * 7)
    everybody = cost.layer_runs([RankBatch(240, 100)] * 8)
    assert fullest[-1].micro_batches[0].ffn_ns == everybody[-1].micro_batches[0].ffn_ns
    below = cost.layer_runs([RankBatch(3 * 73, 100)] * 8)
    assert below[-1].micro_batches[0].ffn_ns == everybody[-1].micro_batches[0].ffn_ns


def test_more_micro_batches_hide_the_way() -> None:
    """Up to a point: each reads all weights again, so a small batch is better not cut."""
    large, small = ([RankBatch(n, n * 16_384)] * 8 for n in (240, 12))
    alone, cut = make(micro_batches=1), make(micro_batches=3)
    assert cut.lockstep(large) < alone.lockstep(large)
    assert cut.lockstep(small) > alone.lockstep(small)


def test_small_steps_are_not_cut() -> None:
    """As vLLM's DBO: all ranks have enough tokens, or none is cut."""
    cut, alone, choosy = make(), make(micro_batches=1), make(least=32)
    large, small = RankBatch(64, 64 * 4000), RankBatch(31, 31 * 4000)
    assert choosy.lockstep([large] * 8) == cut.lockstep([large] * 8)
    for batches in ([small] * 8, [large] * 7 + [small], [large] * 7 + [RankBatch(0, 0)]):
        assert choosy.lockstep(batches) == alone.lockstep(batches)
    short, long = RankBatch(0, 0, [Chunk(319, 0)]), RankBatch(0, 0, [Chunk(320, 0)])
    assert choosy.lockstep([short] + [large] * 7) == alone.lockstep([short] + [large] * 7)
    assert choosy.lockstep([long] + [large] * 7) == cut.lockstep([long] + [large] * 7)


def test_attention_is_what_grows_with_context() -> None:
    cost = make()
    near, far = (cost.layer_runs([RankBatch(90, 90 * ctx)] * 8)[-1] for ctx in (2048, 32_768))
    assert far.micro_batches[0].attention_ns > near.micro_batches[0].attention_ns
    assert far.micro_batches[0].ffn_ns == near.micro_batches[0].ffn_ns


def test_each_side_has_its_own_hardware() -> None:
    batch = [RankBatch(120, 120 * 8192)] * 8
    home = make().layer_runs(batch)[-1].micro_batches[0]
    slow_ffn = make(ffn_hardware="h20").layer_runs(batch)[-1].micro_batches[0]
    slow_attention = make(hardware="h20").layer_runs(batch)[-1].micro_batches[0]
    assert slow_ffn.attention_ns == home.attention_ns
    assert slow_ffn.ffn_ns > home.ffn_ns
    assert slow_attention.ffn_ns == home.ffn_ns
    assert slow_attention.attention_ns != home.attention_ns


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="has no experts"):
        make(model="meta-llama/Llama-3.1-70B-Instruct")
    with pytest.raises(ValueError, match="do not divide into 32 FFN GPUs"):
        make(ffn=4)
    with pytest.raises(ValueError, match="one of m2n, broadcast, p2p"):
        make(connector="pigeon")


def test_ranks_left_out_never_matter() -> None:
    cost = make(model=DEEPSEEK)
    batches = [RankBatch(30 * rank, 3000 * rank, [Chunk(100 * rank, 7)]) for rank in range(1, 9)]
    runs = cost.layer_runs(batches)
    gap = load_engine("vllm-0.33").async_gap_s * 1e9
    around = cost.around_ns(240 + 800, 241)
    assert cost.lockstep(batches) == round(pipeline_ns(runs) + around + gap)
