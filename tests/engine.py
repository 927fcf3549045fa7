"""Small clusters for the engine's tests: a cost model one can compute by hand."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from frontier_mock.cluster.build import build_cluster
from frontier_mock.cluster.cluster import Cluster
from frontier_mock.cluster.specs import ClusterSpec, WorkerSpec
from frontier_mock.core.prompt import KeyedPrompt
from frontier_mock.cost.protocol import Chunk, DecodeLine, LockstepRun, RankBatch, StepCost
from frontier_mock.cost.slowest_rank import slowest_rank
from frontier_mock.cost.specs import (
    EnginePreset,
    HardwareSpec,
    ModelSpec,
    ParallelSpec,
    PrecisionSpec,
    StepSpec,
)
from frontier_mock.serving.specs import AnySchedulerSpec

Ints = NDArray[np.int64]


class LinearCost:
    """1 ms per step, 1 us per sequence, 0.3 ns per context token, with a knot every 997 tokens."""

    def decode(self, num_seqs: int, kv_tokens: int) -> DecodeLine:
        knot = (kv_tokens // 997 + 1) * 997
        return DecodeLine(1e6 + 1000.0 * num_seqs + knot / 7, 0.3, knot - 1)

    def mixed(self, num_decodes: int, decode_kv_tokens: int, chunks: Sequence[Chunk]) -> int:
        work = sum(chunk.new * (100 + chunk.past // 64) for chunk in chunks)
        return 1_000_000 + 1000 * num_decodes + decode_kv_tokens // 3 + work


class LinearRankCost(LinearCost):
    """Ranks wait for the slowest; experts see everybody's tokens."""

    def lockstep(self, batches: Sequence[RankBatch]) -> int:
        slowest = max(
            sum(chunk.new * (100 + chunk.past // 64) for chunk in batch.chunks)
            + batch.kv_tokens // 3
            for batch in batches
        )
        tokens = sum(max(1, batch.num_decodes) for batch in batches)
        return 1_000_000 + 1000 * tokens + slowest

    def lockstep_run(self, batches: Sequence[RankBatch]) -> LockstepRun:
        slowest = slowest_rank([(b, _attention(b)) for b in batches if b.num_decodes])
        tokens = sum(max(1, batch.num_decodes) for batch in batches)
        return LockstepRun(1e6 + 1000.0 * tokens + slowest[0], slowest[1], slowest[2])


class DraftedLinearCost(LinearRankCost):
    """The same with decodes that verify drafts: 3 us for each of their tokens."""

    def drafted(self, batch: RankBatch) -> int:
        own = self.mixed(batch.num_decodes, batch.kv_tokens, batch.chunks)
        return own + 3000 * (batch.num_decodes + batch.drafts)

    def drafted_run(self, seqs: Ints, tokens: Ints, kv_tokens: Ints) -> Ints:
        busy = tokens > 0
        return np.where(busy, 1_000_000 + 1000 * seqs + 3000 * tokens + kv_tokens // 3, 0)

    def lockstep(self, batches: Sequence[RankBatch]) -> int:
        return super().lockstep(batches) + sum(3000 * batch.drafts for batch in batches)


class LinearStage(LinearCost):
    """One stage of several: a share of it all, with knots of its own."""

    def __init__(self, share: float) -> None:
        self._share = share

    def decode(self, num_seqs: int, kv_tokens: int) -> DecodeLine:
        line = super().decode(num_seqs, round(kv_tokens * self._share))
        kv_max = max(round(line.kv_max / self._share), kv_tokens)
        return DecodeLine(line.base_ns * self._share, line.slope_ns * self._share, kv_max)

    def mixed(self, num_decodes: int, decode_kv_tokens: int, chunks: Sequence[Chunk]) -> int:
        return round(super().mixed(num_decodes, decode_kv_tokens, chunks) * self._share)


class LinearStages(LinearCost):
    """Stages, the second a third longer; 50 us between them, and 0.2 ms of the engine's own."""

    def __init__(self, stages: int, ahead: bool) -> None:
        shares = [1.0 + (stage == 1) / 3 for stage in range(stages)]
        self.stages = tuple(LinearStage(share / sum(shares)) for share in shares)
        self.gap_ns = 30_000.0 * ahead

    def cpu_ns(self, rows: int) -> float:
        return 200_000.0 + 1000.0 * rows

    def hop_ns(self, stage: int, tokens: int) -> float:
        return 50_000.0 + 10.0 * tokens + stage


def toy_cost(scheduler: AnySchedulerSpec) -> StepCost:
    """What an engine with this scheduler is priced by."""
    if scheduler.pipeline_stages > 1:
        return LinearStages(scheduler.pipeline_stages, scheduler.async_scheduling)
    return LinearCost() if scheduler.speculation is None else DraftedLinearCost()


def _attention(batch: RankBatch) -> DecodeLine:
    knot = (batch.kv_tokens // 997 + 1) * 997
    return DecodeLine(knot / 7, 0.3, knot - 1)


def step_spec(frontend_s: float = 0.0, lockstep: int = 1) -> StepSpec:
    hardware = HardwareSpec(
        "toy", "toy", 1, 1e12, 2e12, 1 << 30, 1e12, 1e11, 1e10, 1e10, 1.0, "made up"
    )
    model = ModelSpec("toy", 1, 64, 128, 4, 4, 16, 1000, 4096, True, 2, "made up")
    engine = EnginePreset(
        "toy", "vllm", "0", True, 0, 0, 0, frontend_s, frontend_s / 1000, 0.9, 8, 64, "made up"
    )
    return StepSpec(hardware, model, ParallelSpec(dp=lockstep), PrecisionSpec(), engine, True, ())


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
        ClusterSpec(specs, policy, 0, single_step), [toy_cost(scheduler) for _ in range(workers)]
    )


def ranked_cluster(
    scheduler: AnySchedulerSpec,
    *,
    servers: int = 1,
    ranks: int = 2,
    lockstep: bool = True,
    single_step: bool = False,
    frontend_s: float = 0.0,
    rank_policy: str = "vllm",
) -> Cluster:
    """Servers of data-parallel ranks, in lock-step or independent of each other."""
    step = step_spec(frontend_s, ranks if lockstep else 1)
    specs = tuple(
        WorkerSpec(f"w{i}", 8000 + i, "colocated", "toy", step, scheduler, rank, ranks, rank_policy)
        for i in range(servers)
        for rank in range(ranks)
    )
    spec = ClusterSpec(specs, "round_robin", 0, single_step)
    cost = LinearRankCost if scheduler.speculation is None else DraftedLinearCost
    return build_cluster(spec, [cost() for _ in specs])


def prompt(num_tokens: int, content: int, block: int, shared_blocks: int = 0) -> KeyedPrompt:
    """A prompt whose first `shared_blocks` blocks equal those of every other such prompt."""
    blocks = num_tokens // block
    keys = [
        (i + 1 if i < shared_blocks else ((content + 1) << 32) + i).to_bytes(8, "little")
        for i in range(blocks)
    ]
    return KeyedPrompt(num_tokens, block, b"".join(keys))
