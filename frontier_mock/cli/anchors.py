"""Published figures of latent attention, expert parallelism and its communication, beside ours.

Rows of cost_model.md sections 2 and 3, named as there. They need no data files, and come with
`frontier-mock accuracy`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from frontier_mock.config.profiles import load_engine, load_hardware, load_kernels, load_model
from frontier_mock.cost.attention import Heads
from frontier_mock.cost.dispatch import low_latency_us, normal_us
from frontier_mock.cost.latent import LatentPrice
from frontier_mock.cost.protocol import Chunk
from frontier_mock.cost.specs import (
    ExpertsSpec,
    LatentSpec,
    ParallelSpec,
    PrecisionSpec,
    RoutingSpec,
    StepSpec,
)
from frontier_mock.cost.step import TabledStepCost, build_step_cost

DEEPSEEK = "deepseek-ai/DeepSeek-V3"


@dataclass(frozen=True, slots=True)
class Anchor:
    """One published figure in `unit`, and the price of the same thing."""

    row: str
    what: str
    unit: str
    measured: float
    simulated: float

    @property
    def error(self) -> float:
        """Percent by which ours is larger."""
        return 100.0 * (self.simulated / self.measured - 1.0)


def anchors() -> list[Anchor]:
    """All of them, in the order of the tables."""
    return [*_prefill_pool(), *_latent(), *_low_latency(), *_normal(), *_step3()]


def deepseek_prefill(parallel: ParallelSpec, redundant: int) -> TabledStepCost:
    """DeepSeek-V3 on H800 with `redundant` replicas of experts."""
    hw, card = load_hardware("h800"), load_model(DEEPSEEK)
    routing = RoutingSpec(redundant_experts=redundant)
    engine, precision = load_engine("vllm"), PrecisionSpec("fp8_block")
    spec = StepSpec(hw, card, parallel, precision, engine, True, (), routing)
    return build_step_cost(spec, load_kernels(hw.kernels))


def _prefill_pool() -> Iterator[Anchor]:
    """A65: prompts of 4k, 16k tokens per GPU, 32 redundant experts, two batches overlapped."""
    parallel = ParallelSpec(dp=32, ep=32, dispatch="deepep_normal", overlap=True)
    step_ns = deepseek_prefill(parallel, 32).mixed(0, 0, [Chunk(4096, 0)] * 4)
    rate = 4 * 4096 / step_ns * 1e9
    yield Anchor("A65", "DeepSeek-V3 prefill, EP32 on H800", "tokens/s/GPU", 7839.0, rate)


def _latent() -> Iterator[Anchor]:
    hw, latent = load_hardware("h800"), load_model(DEEPSEEK).latent
    assert isinstance(latent, LatentSpec)
    price = LatentPrice(latent, hw, Heads(128, 1, 192, 2, latent.kv_rank + latent.rope_size))
    for row, seqs, context, us in (
        ("B41", 64, 4096, 155.0),
        ("B41", 128, 4096, 292.0),
        ("B41", 128, 8192, 550.0),
        ("B42", 64, 4096, 140.0),
        ("B42", 128, 4096, 272.0),
        ("B42", 128, 8192, 515.0),
        ("B42", 128, 16384, 995.0),
    ):
        ours = float(np.interp(seqs * context, *price.decode_us(seqs)))
        yield Anchor(row, f"MLA decode, {seqs} x {context}", "us", us, ours)
    for length, us in ((4096, 1105.0), (8192, 4539.0), (16384, 17774.0)):
        ours = price.chunks_us([Chunk(length, 0)])
        yield Anchor("B43", f"MLA prefill, {length}", "us", us, ours)


def _experts() -> ExpertsSpec:
    experts = load_model(DEEPSEEK).experts
    assert isinstance(experts, ExpertsSpec)
    return experts


def _low_latency() -> Iterator[Anchor]:
    experts = _experts()
    for row, gpu, ranks, tokens, there, back in (
        ("B31", "h800", 8, 128, 77.0, 114.0),
        ("B31", "h800", 32, 128, 155.0, 273.0),
        ("B31", "h800", 128, 128, 192.0, 369.0),
        ("B35", "h100", 8, 64, 28.0, 41.0),
        ("B35", "h100", 8, 256, 67.0, 136.0),
        ("B36", "h100", 16, 128, 102.0, 186.0),
        ("B36", "h100", 32, 64, 83.0, 152.0),
        ("B36", "h100", 64, 128, 167.0, 305.0),
    ):
        hw = load_hardware(gpu)
        pair = low_latency_us(hw, experts, 7168, ranks, np.array([float(tokens)]))
        what = f"DeepEP low latency, EP{ranks} on {gpu}, {tokens} tokens"
        yield Anchor(row, f"{what}: dispatch", "us", there, float(pair[0][0]))
        yield Anchor(row, f"{what}: combine", "us", back, float(pair[1][0]))


def _normal() -> Iterator[Anchor]:
    hw, experts = load_hardware("h100"), replace(_experts(), token_groups=0)
    for row, ranks, tokens, there, back in (
        ("B37", 8, 1024, 154.0, 296.0),
        ("B37", 8, 4096, 498.0, 961.0),
        ("B37", 8, 8192, 972.0, 1839.0),
        ("B38", 16, 4096, 796.0, 1938.0),
        ("B38", 32, 4096, 1796.0, 3525.0),
    ):
        pair = normal_us(hw, experts, 7168, ranks, np.array([float(tokens)]))
        what = f"DeepEP normal, EP{ranks} on h100, {tokens} tokens"
        yield Anchor(row, f"{what}: dispatch", "us", there, float(pair[0][0]))
        yield Anchor(row, f"{what}: combine", "us", back, float(pair[1][0]))


def _step3() -> Iterator[Anchor]:
    """B46 to B48: the attention half of a layer, 256 sequences on four GPUs."""
    seqs = 256 // 4
    for row, gpu, model, context, us in (
        ("B46", "h800", "stepfun-ai/step3", 8192, 281.0),
        ("B46", "h800", DEEPSEEK, 8192, 372.0),
        ("B46", "h800", "Qwen/Qwen3-235B-A22B", 8192, 382.0),
        ("B47", "h20", "stepfun-ai/step3", 8192, 438.0),
        ("B47", "h20", DEEPSEEK, 8192, 1252.0),
        ("B47", "h20", "Qwen/Qwen3-235B-A22B", 8192, 812.0),
        ("B47", "a800", "stepfun-ai/step3", 8192, 531.0),
        ("B47", "a800", "Qwen/Qwen3-235B-A22B", 8192, 791.0),
        ("B48", "h800", "stepfun-ai/step3", 32768, 791.0),
        ("B48", "h800", DEEPSEEK, 32768, 1125.0),
        ("B48", "h800", "Qwen/Qwen3-235B-A22B", 32768, 1391.0),
        ("B48", "h20", "stepfun-ai/step3", 32768, 1452.0),
        ("B48", "h20", DEEPSEEK, 32768, 4817.0),
        ("B48", "h20", "Qwen/Qwen3-235B-A22B", 32768, 3042.0),
        ("B48", "a800", "stepfun-ai/step3", 32768, 1484.0),
        ("B48", "a800", "Qwen/Qwen3-235B-A22B", 32768, 3010.0),
    ):
        hw, card = load_hardware(gpu), load_model(model)
        engine = load_engine("vllm")
        spec = StepSpec(hw, card, ParallelSpec(), PrecisionSpec(), engine, True, ())
        cost = build_step_cost(spec, load_kernels(hw.kernels))
        ours = cost.attention_half_us(seqs, seqs * context)
        name = card.name.partition("/")[2]
        yield Anchor(row, f"attention half of {name} on {gpu}, {context}", "us", us, ours)
