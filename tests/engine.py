"""Small clusters for the engine's tests: a cost model one can compute by hand."""

from collections.abc import Sequence

from frontier_mock.cluster.build import build_cluster
from frontier_mock.cluster.cluster import Cluster
from frontier_mock.cluster.specs import ClusterSpec, WorkerSpec
from frontier_mock.core.prompt import KeyedPrompt
from frontier_mock.cost.protocol import Chunk, DecodeLine
from frontier_mock.cost.specs import (
    EnginePreset,
    HardwareSpec,
    ModelSpec,
    ParallelSpec,
    PrecisionSpec,
    StepSpec,
)
from frontier_mock.serving.specs import AnySchedulerSpec


class LinearCost:
    """1 ms per step, 1 us per sequence, 0.3 ns per context token, with a knot every 997 tokens."""

    def decode(self, num_seqs: int, kv_tokens: int) -> DecodeLine:
        knot = (kv_tokens // 997 + 1) * 997
        return DecodeLine(1e6 + 1000.0 * num_seqs + knot / 7, 0.3, knot - 1)

    def mixed(self, num_decodes: int, decode_kv_tokens: int, chunks: Sequence[Chunk]) -> int:
        work = sum(chunk.new * (100 + chunk.past // 64) for chunk in chunks)
        return 1_000_000 + 1000 * num_decodes + decode_kv_tokens // 3 + work


def step_spec(frontend_s: float = 0.0) -> StepSpec:
    hardware = HardwareSpec(
        "toy", "toy", 1, 1e12, 2e12, 1 << 30, 1e12, 1e11, 1e10, 1e10, 1.0, "made up"
    )
    model = ModelSpec("toy", 1, 64, 128, 4, 4, 16, 1000, 4096, True, 2, "made up")
    engine = EnginePreset(
        "toy", "vllm", "0", True, 0, 0, 0, frontend_s, frontend_s / 1000, 0.9, 8, 64, "made up"
    )
    return StepSpec(hardware, model, ParallelSpec(), PrecisionSpec(), engine, True, ())


def toy_cluster(
    scheduler: AnySchedulerSpec,
    *,
    workers: int = 1,
    single_step: bool = False,
    frontend_s: float = 0.0,
    policy: str = "round_robin",
) -> Cluster:
    specs = tuple(
        WorkerSpec(f"w{i}", 8000 + i, "colocated", "toy", step_spec(frontend_s), scheduler)
        for i in range(workers)
    )
    return build_cluster(
        ClusterSpec(specs, policy, 0, single_step), [LinearCost() for _ in range(workers)]
    )


def prompt(num_tokens: int, content: int, block: int, shared_blocks: int = 0) -> KeyedPrompt:
    """A prompt whose first `shared_blocks` blocks equal those of every other such prompt."""
    blocks = num_tokens // block
    keys = [
        (i + 1 if i < shared_blocks else ((content + 1) << 32) + i).to_bytes(8, "little")
        for i in range(blocks)
    ]
    return KeyedPrompt(num_tokens, block, b"".join(keys))
