"""Host time of forward passes that no CUDA graph holds, against two that were measured."""

from dataclasses import replace

import pytest

from frontier_mock.config.profiles import load_engine, load_hardware, load_kernels, load_model
from frontier_mock.cost.launches import eager_launch_us
from frontier_mock.cost.protocol import Chunk, RankBatch
from frontier_mock.cost.specs import ParallelSpec, PrecisionSpec, StepSpec
from frontier_mock.cost.step import build_step_cost


def spec(gpu: str, model: str, parallel: ParallelSpec | None = None) -> StepSpec:
    """vLLM 0.10.2 with `--enforce-eager`."""
    card, engine = load_model(model), load_engine("vllm-0.10.2")
    shared = parallel or ParallelSpec()
    return StepSpec(load_hardware(gpu), card, shared, PrecisionSpec(), engine, False, ())


def test_a_dense_7b_decodes_as_fast_as_the_host_launches_it() -> None:
    """Row B81: 22 ms a token without graphs, 13 with, on A800; the 40 calls a layer are from it."""
    eager = spec("a800", "Qwen/Qwen2.5-7B-Instruct")
    captured = replace(eager, cudagraph_sizes=(1, 2, 4, 8))
    lines = [build_step_cost(s, load_kernels("a800")).decode(1, 200) for s in (eager, captured)]
    without_ms, with_ms = (line.base_ns / 1e6 for line in lines)
    assert without_ms == pytest.approx(22.0, rel=0.08)
    assert with_ms < 0.75 * without_ms


@pytest.mark.parametrize(("gpu", "measured_ms"), [("h800", 77.5), ("h200", 78.7)])
def test_a_first_forward_of_experts_waits_for_the_host(gpu: str, measured_ms: float) -> None:
    """first_prefill_forward_4096.csv: no constant comes from it, the row above and nsys' count of
    kernels of a layer with experts are enough."""
    whole = spec(gpu, "Qwen/Qwen3-30B-A3B", ParallelSpec(tp=4, dp=2, ep=8))
    cost = build_step_cost(whole, load_kernels(gpu))
    step_ns = cost.lockstep([RankBatch(0, 0, [Chunk(4096, 0)]), RankBatch(0, 0)])
    assert step_ns / 1e6 == pytest.approx(measured_ms, rel=0.06)


def test_compiled_layers_take_fewer_calls() -> None:
    eager = spec("h100", "Qwen/Qwen3-8B", ParallelSpec(tp=8))
    compiled = replace(eager, cudagraph_sizes=(1, 2, 4))
    decodes_only = replace(compiled, prompt_graph_sizes=())
    assert eager_launch_us(compiled) < 0.5 * eager_launch_us(eager)
    assert eager_launch_us(decodes_only) == eager_launch_us(eager)
