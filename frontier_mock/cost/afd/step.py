"""The price of a step that attention and FFN GPUs share: `StepCost` and `LockstepCost`. PURE.

Theory of operation
1. A worker with attention data parallelism is one engine per rank; they step together
   (`serving.lockstep`) and this prices what they do. FFN GPUs have no engine: they are stations of
   the pipeline.
2. Each rank's batch is cut into m micro-batches of equal size; the largest sets the time of all.
   Padding makes everything but attention equal on all ranks (`stages`), so in a pure decode step
   the rank with the slowest attention is behind the others at every station, and the pipeline of
   that rank alone ends when that of all of them does.
3. The pipeline's length is a convex polyline in the attention time, with the number of attentions
   on the critical path as slope. It is handed out as lines that end where the critical path
   changes. With prompt chunks, micro-batches differ and the pipeline is computed for each step.
4. Before the pipeline comes the embedding, after it the LM head and the sampler, on attention GPUs.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from frontier_mock.cost.afd.pipeline import LayerRun, MicroBatch, pipeline_ns
from frontier_mock.cost.afd.spec import AfdSpec
from frontier_mock.cost.afd.stages import Stage, StagePrice, Stages, attention_side
from frontier_mock.cost.layers import embed_us
from frontier_mock.cost.protocol import Chunk, DecodeLine, LockstepRun, RankBatch
from frontier_mock.cost.slowest_rank import slowest_rank
from frontier_mock.cost.specs import ParallelSpec, StepSpec
from frontier_mock.cost.step import TabledStepCost, build_step_cost
from frontier_mock.cost.tables import KernelTables

_GRAPH_REPLAY_US: Final = 10.0
"""Launching a captured graph (cost_model.md section 1.9)."""

_STEPS_AHEAD: Final = 4096
"""Longest run of steps for which a line is checked."""


class Occupied(NamedTuple):
    """Nanoseconds of work at each station, over all layers; attention is the mean of its ranks."""

    attention_ns: float
    to_ffn_ns: float
    ffn_ns: float
    to_attention_ns: float


def build_afd_cost(
    step: StepSpec, spec: AfdSpec, tables: KernelTables, ffn_tables: KernelTables
) -> "AfdStepCost":
    """Price steps of an instance; `ffn_tables` are those of the FFN GPUs.

    Raises ValueError for a model without experts, or parallelism or types the tables lack.
    """
    return AfdStepCost(step, spec, tables, ffn_tables)


class AfdStepCost:
    """See the theory of operation; a pure function of its arguments, memoised."""

    __slots__ = (
        "_attention",
        "_cpu_request_ns",
        "_cpu_step_ns",
        "_layers",
        "_stages",
        "_tables",
        "afd",
        "spec",
    )

    def __init__(
        self, step: StepSpec, spec: AfdSpec, tables: KernelTables, ffn_tables: KernelTables
    ) -> None:
        self.spec = step
        self.afd = spec
        self._tables = tables
        self._stages = StagePrice(step, spec, tables, ffn_tables)
        side = attention_side(step)
        alone = replace(side.model, experts=None)
        parallel = ParallelSpec(tp=step.parallel.tp)
        self._attention: TabledStepCost = build_step_cost(
            replace(side, model=alone, parallel=parallel), tables
        )
        self._layers = (step.model.num_layers - step.model.expert_layers, step.model.expert_layers)
        self._cpu_step_ns = step.engine.cpu_step_s * 1e9
        self._cpu_request_ns = step.engine.cpu_request_s * 1e9

    # StepCost, for an instance with one rank of attention ------------------------------------

    def decode(self, num_seqs: int, kv_tokens: int) -> DecodeLine:
        """The line that holds at `kv_tokens` for a batch of `num_seqs` one-token decodes."""
        run = self.lockstep_run([RankBatch(num_seqs, kv_tokens)])
        slope = run.growth_ns / num_seqs
        base = run.first_ns - slope * kv_tokens
        return DecodeLine(base, slope, kv_tokens + (run.steps - 1) * num_seqs)

    def mixed(self, num_decodes: int, decode_kv_tokens: int, chunks: Sequence[Chunk]) -> int:
        """Nanoseconds for a step with prefill chunks in it, beside `num_decodes` decodes."""
        return self.lockstep([RankBatch(num_decodes, decode_kv_tokens, chunks)])

    # LockstepCost ----------------------------------------------------------------------------

    def lockstep(self, batches: Sequence[RankBatch]) -> int:
        """Nanoseconds of one step of all ranks, idle ones among them."""
        batches = [_folded(batch) for batch in batches]
        if not any(batch.chunks for batch in batches):
            run = self.lockstep_run(batches)
            return round(run.first_ns)
        rows = max(batch.num_decodes + len(batch.chunks) for batch in batches)
        tokens = max(b.num_decodes + sum(chunk.new for chunk in b.chunks) for b in batches)
        gpu_ns = pipeline_ns(_slowest_ranks(self.layer_runs(batches)))
        return round(self._with_cpu(gpu_ns + self.around_ns(tokens, rows), rows))

    def lockstep_run(self, batches: Sequence[RankBatch]) -> LockstepRun:
        """The steps from this one on while every rank goes on decoding what it decodes now."""
        count = self._parts(batches)
        fullest = max(max(batch.num_decodes for batch in batches), 1)
        everybody = sum(max(_part(batch.num_decodes, count), 1) for batch in batches)
        stages = self._stages.stages(_part(fullest, count), everybody)
        parts = [_decodes_part(batch, count) for batch in batches if batch.num_decodes]
        slowest, growth, steps = slowest_rank(
            [(part, self._attention.rank_line(part)) for part in parts]
        )
        each_ns = self._stages.waiting / self.spec.model.num_layers
        attention, per_step = slowest * each_ns, growth * each_ns
        whole = int(attention)

        def length_ns(kernel_ns: int) -> int:
            return pipeline_ns(self._runs([(stages, [kernel_ns])] * count))

        now = length_ns(whole)
        slope = length_ns(whole + 1) - now
        steps = min(int(steps), _STEPS_AHEAD)
        if per_step > 0 and steps > 1:
            last = whole + int(steps * per_step) + 1
            reach = _straight_until(length_ns, whole, now, slope, last)
            steps = min(steps, max(int((reach - attention) / per_step) + 1, 1))
        gpu_ns = now + slope * (attention - whole) + self.around_ns(fullest, fullest)
        return self._run(gpu_ns, slope * per_step, steps, fullest)

    def layer_runs(self, batches: Sequence[RankBatch]) -> list[LayerRun]:
        """The pipeline of one step with every attention rank in it, for `pipeline.simulate`."""
        batches = [_folded(batch) for batch in batches]
        count = self._parts(batches)
        kernels: list[list[int]] = [[] for _ in range(count)]
        most, everybody = [1] * count, [0] * count
        for batch in batches:
            for j in range(count):
                tokens, kernel_ns = self._kernel(batch, j, count)
                most[j] = max(most[j], tokens)
                everybody[j] += tokens
                kernels[j].append(kernel_ns)
        stages = [self._stages.stages(*tokens) for tokens in zip(most, everybody, strict=True)]
        return self._runs(list(zip(stages, kernels, strict=True)))

    def occupied(self, batches: Sequence[RankBatch]) -> Occupied:
        """For how long each station works in one step; around the pipeline only attention does."""
        batches = [_folded(batch) for batch in batches]
        count = self._parts(batches)
        if any(batch.chunks for batch in batches):
            runs = self.layer_runs(batches)
        else:
            once = [self._kernel(batch, 0, count) for batch in batches]
            tokens = [one[0] for one in once]
            stages = self._stages.stages(max(tokens), sum(tokens))
            runs = self._runs([(stages, [kernel for _, kernel in once])] * count)
        attention = to_ffn = ffn = to_attention = 0.0
        for run in runs:
            for batch in run.micro_batches:
                ranks = len(batch.attention_ns)
                attention += run.num_layers * sum(batch.attention_ns) / ranks
                to_ffn += run.num_layers * max(batch.to_ffn_ns)
                ffn += run.num_layers * max(batch.ffn_ns)
                to_attention += run.num_layers * max(batch.to_attention_ns)
        tokens = [b.num_decodes + sum(chunk.new for chunk in b.chunks) for b in batches]
        rows = [b.num_decodes + len(b.chunks) for b in batches]
        attention += self.around_ns(max(*tokens, 1), max(*rows, 1))
        return Occupied(attention, to_ffn, ffn, to_attention)

    # Parts -----------------------------------------------------------------------------------

    def _parts(self, batches: Sequence[RankBatch]) -> int:
        """How many micro-batches: as configured, or one if some rank has too few tokens."""
        afd = self.afd
        if afd.least_decodes <= 1 and afd.least_prompt_tokens <= 1:
            return afd.micro_batches
        for batch in batches:
            tokens = batch.num_decodes + sum(chunk.new for chunk in batch.chunks)
            least = afd.least_prompt_tokens if batch.chunks else afd.least_decodes
            if max(tokens, 1) < least:
                return 1
        return afd.micro_batches

    def _kernel(self, batch: RankBatch, micro_batch: int, count: int) -> tuple[int, int]:
        """Tokens of one rank's micro-batch, and nanoseconds of its attention kernel in a layer.

        Prompt chunks are cut by tokens, so that a later micro-batch attends to what an earlier one
        has just written. An idle rank takes part with one token.
        """
        cost = self._attention
        pieces = [
            piece for chunk in batch.chunks if (piece := _piece(chunk, micro_batch, count)).new
        ]
        tokens = sum(piece.new for piece in pieces)
        total_ns = cost.prefill_ns(pieces) if pieces else 0.0
        if batch.num_decodes or not pieces:
            part = _decodes_part(batch, count) if batch.num_decodes else RankBatch(1, 1)
            tokens += part.num_decodes
            if pieces:
                total_ns += cost.decode_beside_ns(part.num_decodes, part.kv_tokens)
            else:
                line = cost.rank_line(part)
                total_ns = line.base_ns + line.slope_ns * part.kv_tokens
        each_ns = self._stages.waiting / self.spec.model.num_layers
        return tokens, int(total_ns * each_ns)

    def _runs(self, batches: Sequence[tuple[Stages, Sequence[int]]]) -> list[LayerRun]:
        """The layers, given each micro-batch's stations and attention kernels by rank."""
        dense, expert = self._layers
        runs = []
        if dense:
            runs.append(
                LayerRun(dense, tuple(_station(s.dense, kernels) for s, kernels in batches))
            )
        runs.append(LayerRun(expert, tuple(_station(s.expert, kernels) for s, kernels in batches)))
        return runs

    # Around the pipeline ---------------------------------------------------------------------

    def around_ns(self, tokens: int, rows: int) -> float:
        """Embedding, LM head and sampler of the rank with most, and launching the graphs."""
        embed = embed_us(self._attention.spec, self._tables, np.array([float(tokens)]))
        return self._attention.rows_ns(rows) + (float(embed[0]) + _GRAPH_REPLAY_US) * 1e3

    def _cpu_ns(self, rows: int) -> float:
        return self._cpu_step_ns + self._cpu_request_ns * rows

    def _with_cpu(self, gpu_ns: float, rows: int) -> float:
        """Add the engine's CPU time, or hide it behind the GPUs."""
        if not self.spec.async_scheduling:
            return gpu_ns + self._cpu_ns(rows)
        return max(gpu_ns, self._cpu_ns(rows)) + self.spec.engine.async_gap_s * 1e9

    def _run(self, gpu_ns: float, growth_ns: float, steps: int, rows: int) -> LockstepRun:
        """As `_with_cpu`, for a run: it ends where the CPU comes out of hiding or goes into it."""
        cpu_ns = self._cpu_ns(rows)
        if self.spec.async_scheduling and gpu_ns < cpu_ns:
            if growth_ns > 0:
                steps = min(steps, int((cpu_ns - gpu_ns) / growth_ns) + 1)
            growth_ns = 0.0
        return LockstepRun(self._with_cpu(gpu_ns, rows), growth_ns, steps)


def _part(count: int, parts: int) -> int:
    """The largest of so many parts."""
    return -(-count // parts)


def _decodes_part(batch: RankBatch, parts: int) -> RankBatch:
    """The decodes of a rank's largest micro-batch, with contexts of average length."""
    part = _part(batch.num_decodes, parts)
    return RankBatch(part, round(batch.kv_tokens * part / batch.num_decodes))


def _folded(batch: RankBatch) -> RankBatch:
    """A chunk of one token is a decode to the GPU: the last of a prompt that is all cached."""
    single = [chunk.past + 1 for chunk in batch.chunks if chunk.new == 1]
    if not single:
        return batch
    return RankBatch(
        batch.num_decodes + len(single),
        batch.kv_tokens + sum(single),
        [chunk for chunk in batch.chunks if chunk.new > 1],
    )


def _piece(chunk: Chunk, index: int, count: int) -> Chunk:
    """The `index`-th of `count` parts of a prompt chunk, sizes differing by one token at most."""
    size, more = divmod(chunk.new, count)
    before = index * size + min(index, more)
    return Chunk(size + (index < more), chunk.past + before)


def _station(stage: Stage, kernels: Sequence[int]) -> MicroBatch:
    ranks = len(kernels)
    return MicroBatch(
        tuple(stage.linear_ns + kernel for kernel in kernels),
        (stage.to_ffn_ns,) * ranks,
        (stage.ffn_ns,),
        (stage.to_attention_ns,) * ranks,
    )


def _slowest_ranks(runs: Sequence[LayerRun]) -> list[LayerRun]:
    """The same pipeline without ranks that are never slower than some other rank.

    They are alike but for attention, so the others are behind them at every station.
    """
    batches = runs[-1].micro_batches
    columns = sorted(
        set(zip(*(batch.attention_ns for batch in batches), strict=True)), reverse=True
    )
    kept: list[tuple[int, ...]] = []
    for column in columns:
        if not any(all(a >= b for a, b in zip(other, column, strict=True)) for other in kept):
            kept.append(column)
    made = []
    for run in runs:
        shift = [
            own.attention_ns[0] - last.attention_ns[0]
            for own, last in zip(run.micro_batches, batches, strict=True)
        ]
        made.append(
            LayerRun(
                run.num_layers,
                tuple(
                    MicroBatch(
                        tuple(column[j] + shift[j] for column in kept),
                        batch.to_ffn_ns[: len(kept)],
                        batch.ffn_ns,
                        batch.to_attention_ns[: len(kept)],
                    )
                    for j, batch in enumerate(run.micro_batches)
                ),
            )
        )
    return made


def _straight_until(
    length_ns: Callable[[int], int], start: int, now: int, slope: int, last: int
) -> int:
    """The largest attention time up to `last` that lies on the line through `start`.

    The length is convex: a point on the line has all before it on the line.
    """
    beyond = last + 1
    if length_ns(last) == now + slope * (last - start):
        return last
    low = start + 1
    while beyond - low > 1:
        middle = (low + beyond) // 2
        if length_ns(middle) == now + slope * (middle - start):
            low = middle
        else:
            beyond = middle
    return low
