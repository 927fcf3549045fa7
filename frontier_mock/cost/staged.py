"""What a micro-batch takes on each stage of a pipeline, and on the way to the next. PURE.

A stage is an engine of fewer layers: the first one has the embedding, the last one LM head and
sampler. Hidden states and residual go from each to the next, over NVLink within a node and over the
NIC from the last GPU of a node to the next one. The engine's own CPU time belongs to no stage.
"""

from collections.abc import Sequence
from dataclasses import replace

from frontier_mock.cost.dispatch import hop_us
from frontier_mock.cost.protocol import Chunk, DecodeLine, EncodingCost, StepCost
from frontier_mock.cost.sampling import GRAMMAR_S
from frontier_mock.cost.specs import StepSpec
from frontier_mock.cost.stages import stage_models
from frontier_mock.cost.step import build_step_cost
from frontier_mock.cost.tables import KernelTables
from frontier_mock.simtime import SimTime


def stage_specs(spec: StepSpec) -> tuple[StepSpec, ...]:
    """What the price of a step depends on, stage by stage."""
    bare = replace(spec.engine, cpu_step_s=0.0, cpu_request_s=0.0, async_gap_s=0.0)
    alone = replace(spec.parallel, pp=1, stage_layers=())
    return tuple(
        replace(
            spec,
            model=model,
            parallel=alone,
            engine=bare,
            async_scheduling=False,
            sampling=replace(spec.sampling, grammar=0.0),
        )
        for model in stage_models(spec.model, spec.parallel)
    )


def build_staged_cost(spec: StepSpec, tables: KernelTables) -> "StagedStepCost":
    """Price steps of a pipeline. Raises ValueError as `build_step_cost` does, and for ranks of
    attention that would have to wait for each other stage by stage."""
    parallel = spec.parallel
    if parallel.dp > 1:
        raise ValueError(f"pp={parallel.pp} with dp={parallel.dp}: only one of them may be above 1")
    last = parallel.pp - 1
    made: dict[tuple[StepSpec, bool, bool], StepCost] = {}
    stages = []
    for number, stage in enumerate(stage_specs(spec)):
        key = (stage, number == 0, number == last)
        if key not in made:
            made[key] = build_step_cost(stage, tables, key[1:])
        stages.append(made[key])
    return StagedStepCost(spec, stages)


class StagedStepCost:
    """`StagedCost` of stages that are priced one by one; as a `StepCost`, one step alone."""

    def __init__(self, spec: StepSpec, stages: Sequence[StepCost]) -> None:
        self.spec = spec
        self.stages = tuple(stages)
        self.gap_ns = spec.engine.async_gap_s * 1e9 if spec.async_scheduling else 0.0
        self._cpu_step_ns = spec.engine.cpu_step_s * 1e9
        masks_s = spec.sampling.grammar * GRAMMAR_S
        self._cpu_request_ns = (spec.engine.cpu_request_s + masks_s) * 1e9
        self._hops: list[tuple[float, float]] = []
        for stage in range(spec.parallel.pp - 1):
            start_us, token_us = hop_us(spec, stage)
            self._hops.append((start_us * 1e3, token_us * 1e3))

    def cpu_ns(self, rows: int) -> float:
        """The engine core's own work on a step with so many sequences in it."""
        return self._cpu_step_ns + self._cpu_request_ns * rows

    def hop_ns(self, stage: int, tokens: int) -> float:
        """The way from `stage` to the next one of what so many tokens are by then."""
        start_ns, token_ns = self._hops[stage]
        return start_ns + token_ns * tokens

    def decode(self, num_seqs: int, kv_tokens: int) -> DecodeLine:
        """One micro-batch from the engine core through all stages, with nothing else in flight."""
        lines = [stage.decode(num_seqs, kv_tokens) for stage in self.stages]
        return DecodeLine(
            sum(line.base_ns for line in lines) + self._beside_ns(num_seqs, num_seqs),
            sum(line.slope_ns for line in lines),
            min(line.kv_max for line in lines),
        )

    def mixed(self, num_decodes: int, decode_kv_tokens: int, chunks: Sequence[Chunk]) -> SimTime:
        """As `decode`, with prompts in it."""
        tokens = num_decodes + sum(chunk.new for chunk in chunks)
        stages_ns = sum(stage.mixed(num_decodes, decode_kv_tokens, chunks) for stage in self.stages)
        return stages_ns + round(self._beside_ns(tokens, num_decodes + len(chunks)))

    def encode_ns(self, images: Sequence[int]) -> SimTime:
        """Nanoseconds of encoding images, which the first stage does."""
        first = self.stages[0]
        return first.encode_ns(images) if isinstance(first, EncodingCost) else 0

    def _beside_ns(self, tokens: int, rows: int) -> float:
        hops = sum(self.hop_ns(stage, tokens) for stage in range(len(self.stages) - 1))
        return hops + self.cpu_ns(rows) + self.gap_ns
