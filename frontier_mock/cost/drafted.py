"""The price of steps that verify drafts and make new ones. PURE.

Theory of operation
1. A verification is a forward pass in which every sequence has several tokens: linear layers and LM
   head see all of them, attention reads each sequence's cache once for all its queries
   (cost_model.md section 1.10). A step's tokens are padded to captured graphs as ever.
2. Then the drafter runs: first over the tokens that were verified, for their keys and values, then
   one token (or one for each branch of a tree) at a time. It is a model of its own, or one layer on
   top of the target's hidden states, which a linear layer fuses with the embedding.
3. An n-gram look-up is CPU time between two passes, which nothing hides.
4. What a step takes is straight in its total context between knots, as in `cost.step`, for given
   numbers of sequences and tokens: the lines are worked out once for each pair.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from frontier_mock.cost.gemm import gemm_us
from frontier_mock.cost.polylines import along, lines_of, raised_to
from frontier_mock.cost.protocol import Chunk, DecodeLine, LockstepRun, RankBatch
from frontier_mock.cost.specs import DraftSpec, StepSpec
from frontier_mock.cost.step import TabledStepCost, build_step_cost
from frontier_mock.cost.tables import KernelTables

Ints = NDArray[np.int64]


class _Lines(NamedTuple):
    """Lines of one batch shape: the whole context at which each ends, where it starts, its rise."""

    ends: Ints
    base_ns: NDArray[np.float64]
    slope_ns: NDArray[np.float64]


def drafter_spec(spec: StepSpec, draft: DraftSpec) -> StepSpec | None:
    """What the price of one pass of the drafter depends on; None if it has no model.

    It is cut over the same ranks as the target; one without experts does its work on each rank of
    attention by itself.
    """
    if draft.model is None:
        return None
    parallel = replace(spec.parallel, pp=1, stage_layers=(), overlap=False)
    if draft.model.experts is None:
        parallel = replace(parallel, dp=1, ep=1)
    bare = replace(spec.engine, cpu_step_s=0.0, cpu_request_s=0.0, async_gap_s=0.0)
    precision = replace(spec.precision, weights=draft.weights)
    return replace(
        spec,
        model=draft.model,
        parallel=parallel,
        precision=precision,
        engine=bare,
        async_scheduling=False,
        lora=None,
        draft=None,
    )


def build_drafted_cost(spec: StepSpec, tables: KernelTables) -> "DraftedStepCost":
    """Price steps of an engine with `spec.draft`. Raises ValueError as `build_step_cost` does."""
    draft = spec.draft
    assert draft is not None
    target = build_step_cost(spec, tables, queries=draft.verified)
    of_drafter = drafter_spec(spec, draft)
    if of_drafter is None:
        return DraftedStepCost(target, draft, None, None, tables)
    wide = build_step_cost(of_drafter, tables, queries=draft.verified)
    sizes = spec.cudagraph_sizes if draft.graph_sizes is None else draft.graph_sizes
    narrow = build_step_cost(
        replace(of_drafter, cudagraph_sizes=sizes), tables, queries=draft.branches
    )
    return DraftedStepCost(target, draft, wide, narrow, tables)


class DraftedStepCost:
    """`DraftedCost` and `LockstepCost` from the prices of the passes that make a step."""

    def __init__(
        self,
        target: TabledStepCost,
        draft: DraftSpec,
        wide: TabledStepCost | None,
        narrow: TabledStepCost | None,
        tables: KernelTables,
    ) -> None:
        self.spec = target.spec
        self._draft = draft
        self._target = target
        self._wide = wide
        self._narrow = narrow
        self._tables = tables
        self._shapes: dict[tuple[int, int], _Lines] = {}
        self._fused_ns: dict[int, float] = {}

    def drafted_run(self, seqs: Ints, tokens: Ints, kv_tokens: Ints) -> Ints:
        """See `DraftedCost`."""
        made = np.zeros(len(seqs), dtype=np.int64)
        shapes = sorted(set(zip(seqs.tolist(), tokens.tolist(), strict=True)))
        for shape in shapes:
            if not shape[1]:
                continue
            lines = self._of_shape(*shape)
            here = (seqs == shape[0]) & (tokens == shape[1])
            kv = kv_tokens[here]
            at = np.searchsorted(lines.ends, kv, side="left")
            made[here] = np.rint(lines.base_ns[at] + lines.slope_ns[at] * kv).astype(np.int64)
        return made

    def drafted(self, batch: RankBatch) -> int:
        """See `DraftedCost`."""
        seqs, kv, chunks, drafts = batch.num_decodes, batch.kv_tokens, batch.chunks, batch.drafts
        if not chunks:
            row = (np.array([figure]) for figure in (seqs, seqs + drafts, kv))
            return int(self.drafted_run(*row)[0])
        rows = seqs + drafts + len(chunks)
        gpu_ns = self._target.chunked_ns(batch, rows)
        if self._wide is not None and self._narrow is not None:
            going_on = seqs + len(chunks)
            gpu_ns += self._wide.chunked_ns(batch, going_on)
            gpu_ns += self._fuse_ns(seqs + drafts + sum(chunk.new for chunk in chunks))
            context = kv + sum(chunk.past + chunk.new for chunk in chunks)
            xs, ys = self._narrow.pass_ns(going_on, *(2 * (going_on * self._draft.branches,)))
            gpu_ns += (self._draft.passes - 1) * along(xs, ys, context)
        gpu_ns += self._draft.lookup_s * 1e9
        return round(self._target.with_cpu(gpu_ns, seqs + len(chunks)))

    def decode(self, num_seqs: int, kv_tokens: int) -> DecodeLine:
        """The line for verifying all drafts of `num_seqs` sequences."""
        lines = self._of_shape(num_seqs, num_seqs * self._draft.verified)
        at = bisect_left(lines.ends.tolist(), kv_tokens)
        return DecodeLine(float(lines.base_ns[at]), float(lines.slope_ns[at]), int(lines.ends[at]))

    def mixed(self, num_decodes: int, decode_kv_tokens: int, chunks: Sequence[Chunk]) -> int:
        """Nanoseconds of a step with all drafts of `num_decodes` sequences, and prompts."""
        drafts = num_decodes * (self._draft.verified - 1)
        return self.drafted(RankBatch(num_decodes, decode_kv_tokens, chunks, drafts))

    def lockstep(self, batches: Sequence[RankBatch]) -> int:
        """See `LockstepCost`. The drafter's passes are joint steps like the target's."""
        gpu_ns = self._target.lockstep_ns(batches)
        if self._wide is not None and self._narrow is not None:
            gpu_ns += self._wide.lockstep_ns(batches)
            most = max(b.num_decodes + b.drafts + sum(c.new for c in b.chunks) for b in batches)
            gpu_ns += self._fuse_ns(max(most, 1))
            alone = [
                RankBatch(
                    b.num_decodes + len(b.chunks),
                    b.kv_tokens + sum(chunk.past + chunk.new for chunk in b.chunks),
                )
                for b in batches
            ]
            gpu_ns += (self._draft.passes - 1) * self._narrow.lockstep_ns(alone)
        gpu_ns += self._draft.lookup_s * 1e9
        running = max(max(b.num_decodes + len(b.chunks) for b in batches), 1)
        return round(self._target.with_cpu(gpu_ns, running))

    def lockstep_run(self, batches: Sequence[RankBatch]) -> LockstepRun:
        """One step: with drafts there is no straight line."""
        return LockstepRun(float(self.lockstep(batches)), 0.0, 1)

    def _of_shape(self, seqs: int, tokens: int) -> _Lines:
        known = self._shapes.get((seqs, tokens))
        if known is None:
            known = self._shapes[seqs, tokens] = self._cut(seqs, tokens)
        return known

    def _cut(self, seqs: int, tokens: int) -> _Lines:
        """Lines for `seqs` sequences that verify `tokens` tokens together."""
        passes = [(1.0, *self._target.pass_ns(seqs, tokens, tokens))]
        fixed_ns = self._draft.lookup_s * 1e9
        if self._wide is not None and self._narrow is not None:
            branches = seqs * self._draft.branches
            passes.append((1.0, *self._wide.pass_ns(seqs, tokens, seqs)))
            narrow = self._narrow.pass_ns(seqs, branches, branches)
            passes.append((self._draft.passes - 1.0, *narrow))
            fixed_ns += self._fuse_ns(tokens)
        # The last knot of a polyline only says how it goes on: nobody's end is another's knot.
        far = 2.0 * max(xs[-1] for _, xs, _ in passes)
        knots = sorted({x for _, xs, _ in passes for x in xs} | {far})
        ys = [fixed_ns + sum(times * along(xs, ys, x) for times, xs, ys in passes) for x in knots]
        cpu_ns = self._target.cpu_ns(seqs)
        if self.spec.async_scheduling:
            knots, ys = raised_to(knots, ys, cpu_ns)
            cpu_ns = self.spec.engine.async_gap_s * 1e9
        ends, lines = lines_of(knots, [y + cpu_ns for y in ys])
        return _Lines(
            np.array(ends, dtype=np.int64),
            np.array([line.base_ns for line in lines]),
            np.array([line.slope_ns for line in lines]),
        )

    def _fuse_ns(self, tokens: int) -> float:
        """Fusing hidden states and embeddings of so many tokens into the drafter's input.

        Every rank does all of it. EAGLE-3 does so once, for the tokens that were verified, others
        before every pass; one token more or less costs nothing next to reading the weights.
        """
        draft = self._draft
        if draft.inputs < 2 or draft.model is None:
            return 0.0
        known = self._fused_ns.get(tokens)
        if known is None:
            hidden = draft.model.hidden_size
            column = np.array([float(tokens)])
            table = self._tables.gemm["bf16"]
            once = gemm_us(table, self.spec.hardware, "bf16", column, hidden, draft.inputs * hidden)
            times = 1 if draft.inputs > 2 else draft.passes
            known = self._fused_ns[tokens] = float(once[0]) * 1e3 * times
        return known
