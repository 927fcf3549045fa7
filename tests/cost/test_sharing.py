"""Shared context, adapters and replicas of experts: what they cost and what they save."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.profiles import load_engine, load_hardware, load_kernels, load_model
from frontier_mock.config.resolve import ResolvedWorker, resolve_scenario, resolve_worker
from frontier_mock.config.scenario import ScenarioSpec, parse_scenario
from frontier_mock.config.vllm_flags import VllmArgs, parse_engine_args
from frontier_mock.config.workloads import TraceSearch
from frontier_mock.cost.experts import drifted, placed, popularity
from frontier_mock.cost.protocol import Chunk
from frontier_mock.cost.specs import (
    ExpertsSpec,
    LoraSpec,
    ParallelSpec,
    PrecisionSpec,
    RoutingSpec,
    SamplingSpec,
    StepSpec,
)
from frontier_mock.cost.step import TabledStepCost, build_step_cost

QWEN = "Qwen/Qwen3-235B-A22B-FP8"
DEEPSEEK = "deepseek-ai/DeepSeek-V3"
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def make(model: str, parallel: ParallelSpec, lora: LoraSpec | None = None) -> TabledStepCost:
    hw, card = load_hardware("h800"), load_model(model)
    precision = PrecisionSpec(card.checkpoint_weights)
    engine, sizes = load_engine("vllm-0.33"), tuple(range(8, 513, 8))
    spec = StepSpec(hw, card, parallel, precision, engine, True, sizes, RoutingSpec(), lora)
    return build_step_cost(spec, load_kernels("h800"))


def decode_ns(cost: TabledStepCost, num_seqs: int, kv_tokens: int) -> float:
    line = cost.decode(num_seqs, kv_tokens)
    return line.base_ns + line.slope_ns * kv_tokens


def worker(*argv: str) -> ResolvedWorker:
    args, idle = parse_engine_args(argv)
    assert idle == ()
    return resolve_worker(args, "h800", "vllm-0.33", "w", 8000)


@pytest.mark.parametrize(("model", "dcp"), [(QWEN, 2), (DEEPSEEK, 8)])
def test_sharing_the_context_pays_for_long_ones_only(model: str, dcp: int) -> None:
    alone = make(model, ParallelSpec(tp=8))
    shared = make(model, ParallelSpec(tp=8, dcp=dcp))
    assert decode_ns(shared, 16, 16 * 60_000) < 0.95 * decode_ns(alone, 16, 16 * 60_000)
    assert decode_ns(shared, 16, 16 * 100) > decode_ns(alone, 16, 16 * 100)
    for context in (1_000, 20_000, 90_000):
        assert decode_ns(shared, 17, 17 * context) >= decode_ns(shared, 16, 16 * context)
    past, fresh = [Chunk(1024, 30_000)], [Chunk(1024, 0)]
    gathering = shared.mixed(0, 0, past) - alone.mixed(0, 0, past)
    assert gathering > shared.mixed(0, 0, fresh) - alone.mixed(0, 0, fresh)


def test_shared_context_multiplies_what_fits_and_the_blocks_of_the_scheduler() -> None:
    flags = ("--model", QWEN, "--tensor-parallel-size", "8", "--max-model-len", "32768")
    alone = worker(*flags)
    shared = worker(*flags, "--decode-context-parallel-size", "2")
    assert shared.memory.num_blocks == alone.memory.num_blocks
    assert shared.spec.scheduler.block_size == 2 * alone.spec.scheduler.block_size


@pytest.mark.parametrize(
    ("tp", "dcp", "message"),
    [
        (8, 3, "tp_size=8 must be divisible by dcp_size=3"),
        (4, 2, "to be greater than the model's total number of KV heads"),
        (8, 4, r"exceeds the maximum supported value \(2\)"),
    ],
)
def test_a_context_that_cannot_be_shared_is_refused_as_vllm_does(
    tp: int, dcp: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(QWEN, ParallelSpec(tp=tp, dcp=dcp))


def test_adapters_cost_time_by_rank_and_memory_by_number() -> None:
    plain = make(LLAMA, ParallelSpec())
    small, large = (make(LLAMA, ParallelSpec(), LoraSpec(rank, 4)) for rank in (16, 128))
    times = [decode_ns(cost, 16, 16_000) for cost in (plain, small, large)]
    assert times == sorted(times)
    assert 1.05 * times[0] < times[1] < 1.5 * times[0]
    prompt = [Chunk(4096, 0)]
    assert plain.mixed(0, 0, prompt) < small.mixed(0, 0, prompt) < large.mixed(0, 0, prompt)
    flags = ("--model", LLAMA, "--max-model-len", "8192")
    bare = worker(*flags).memory
    with_two, with_eight = (
        worker(*flags, "--enable-lora", "--max-loras", count, "--max-lora-rank", "64").memory
        for count in ("2", "8")
    )
    assert bare.num_blocks > with_two.num_blocks > with_eight.num_blocks
    added = [plan.weights_bytes - bare.weights_bytes for plan in (with_two, with_eight)]
    assert added[1] == 4 * added[0]


def test_replicas_are_placed_by_what_was_popular_and_loaded_by_what_is() -> None:
    model, routing = ExpertsSpec(64, 8, 1024), RoutingSpec("zipf", 0.8, seed=1, drift=0.5)
    known = popularity(model, routing, 4)
    now = drifted(model, routing, known)
    assert now.sum(axis=1) == pytest.approx(1.0)
    assert (drifted(model, replace(routing, drift=0.0), known) == known).all()
    fresh = placed(known, 8, 16).sum(axis=2).max(axis=1)
    stale = placed(known, 8, 16, now).sum(axis=2)
    assert stale.sum(axis=1) == pytest.approx(1.0)
    assert stale.max(axis=1).mean() > fresh.mean()
    assert np.allclose(placed(now, 8, 16).sum(axis=(1, 2)), 1.0)


def test_eplb_needs_whole_experts_and_memory_for_its_replicas() -> None:
    flags = ("--model", QWEN, "--tensor-parallel-size", "8", "--max-model-len", "8192")
    config = ("--enable-eplb", "--eplb-config", '{"num_redundant_experts": 16}')
    spread = worker(*flags, "--enable-expert-parallel")
    balanced = worker(*flags, "--enable-expert-parallel", *config)
    assert balanced.spec.step.routing.redundant_experts == 16
    assert balanced.memory.num_blocks < spread.memory.num_blocks
    with pytest.raises(ConfigError, match="needs --enable-expert-parallel"):
        worker(*flags, *config)
    with pytest.raises(ConfigError, match="EPLB is not enabled"):
        worker(*flags, *config[1:])
    odd = config[2].replace("16", "3")
    with pytest.raises(ConfigError, match="not divisible by ep=8"):
        worker(*flags, "--enable-expert-parallel", "--enable-eplb", "--eplb-config", odd)


def test_flags_that_change_nothing_leave_the_step_as_it_was() -> None:
    args = VllmArgs(model=LLAMA, max_model_len=8192)
    step = resolve_worker(args, "h800", "vllm-0.33", "w", 8000).spec.step
    assert (step.lora, step.routing, step.parallel) == (None, RoutingSpec(), ParallelSpec())


SCENARIO = """
name: moe
cluster:
  workers:
    - model: {model}
      parallel: {{tp: 8}}
      engine_args: {{enable-expert-parallel: true, max-model-len: 8192}}
      experts: {experts}
"""


def scenario_of(model: str, experts: str) -> ScenarioSpec:
    text = SCENARIO.format(model=model, experts=experts)
    return parse_scenario(text, "s.yaml", TraceSearch((Path(),)))


def test_a_scenario_says_how_popular_experts_are() -> None:
    experts = "{popularity: zipf, exponent: 0.9, drift: 0.25, seed: 3}"
    scenario = scenario_of(QWEN, experts)
    (cost,) = resolve_scenario(scenario).costs
    assert isinstance(cost, TabledStepCost)
    assert cost.spec.routing == RoutingSpec("zipf", 0.9, 3, 0, 0.25)
    even = scenario_of(QWEN, "{popularity: uniform}")
    (plain,) = resolve_scenario(even).costs
    prompt = [Chunk(4096, 0)]
    assert cost.mixed(0, 0, prompt) > plain.mixed(0, 0, prompt)
    with pytest.raises(ConfigError, match=r"experts: meta-llama/Llama-3\.1-8B-Instruct has none"):
        resolve_scenario(scenario_of(LLAMA, "{}"))


def test_sorting_and_penalties_cost_the_gpu_and_grammars_the_cpu() -> None:
    plain = make(LLAMA, ParallelSpec())
    kinds = {
        name: build_step_cost(replace(plain.spec, sampling=sampling), load_kernels("h800"))
        for name, sampling in (
            ("sorted", SamplingSpec(top_p=1.0)),
            ("half", SamplingSpec(top_p=0.5)),
            ("penalised", SamplingSpec(penalties=0.1)),
            ("masked", SamplingSpec(grammar=1.0)),
        )
    }
    base = decode_ns(plain, 64, 64_000)
    more = {name: decode_ns(cost, 64, 64_000) - base for name, cost in kinds.items()}
    assert more["sorted"] == pytest.approx(2 * more["half"], rel=0.01)
    assert more["penalised"] == pytest.approx(30_000, rel=0.01)
    assert 0 < more["masked"] < more["sorted"]  # the CPU still hides behind the GPU
    crowd = decode_ns(kinds["masked"], 512, 512 * 100) - decode_ns(plain, 512, 512 * 100)
    assert crowd > 10e6


def test_a_scenario_says_how_requests_sample() -> None:
    text = SCENARIO.format(model=QWEN, experts="{}\n      sampling: {top_p: 0.5, grammar: 0.2}")
    (cost,) = resolve_scenario(parse_scenario(text, "s.yaml", TraceSearch((Path(),)))).costs
    assert isinstance(cost, TabledStepCost)
    assert cost.spec.sampling == SamplingSpec(0.5, 0.0, 0.2)
