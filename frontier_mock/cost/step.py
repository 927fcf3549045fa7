"""The price of a step: layers, attention, head and CPU, put together. PURE.

Theory of operation
1. A step's GPU time is `layers * (linear(T) + attention(batch)) + embed(T) + head(rows)`. T is the
   number of tokens after padding to the captured CUDA graph; attention sees the real ragged batch.
2. T and rows are small integers, so those parts are tabulated in blocks on first use. What remains
   per step is attention, a handful of multiplications.
3. For a fixed batch, decode attention is measured at fixed contexts and straight in total context
   between them, so a decode step is a polyline and its segments are the lines handed out.
4. CPU time is added when scheduling is synchronous. When asynchronous it hides behind the GPU: the
   step takes the longer of the two, and the crossing is one more knot.
5. Beyond the largest graph the host launches every kernel itself, and the GPU waits for the host
   if that is slower.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import numpy as np

from frontier_mock.cost.attention import (
    PrefillPrice,
    decode_us,
    empty_tiles_us,
    ragged_us,
)
from frontier_mock.cost.collectives import straggling
from frontier_mock.cost.context_parallel import (
    check_context_parallel,
    exchanged_us,
    gathered_us,
)
from frontier_mock.cost.cuda_graphs import padded_size
from frontier_mock.cost.dispatch import COMMUNICATION_SMS, DISPATCHES, moved_us
from frontier_mock.cost.gemm import PACKED
from frontier_mock.cost.latent import LatentPrice
from frontier_mock.cost.launches import eager_launch_us
from frontier_mock.cost.layers import (
    attention_layer_us,
    embed_us,
    head_us,
    linear_weights,
    mlp_layer_us,
    shard_model,
)
from frontier_mock.cost.lora import lora_us
from frontier_mock.cost.moe import ExpertPrice, expert_layer_us, expert_table
from frontier_mock.cost.polylines import lines_of, raised_to
from frontier_mock.cost.protocol import Chunk, DecodeLine, LockstepRun, RankBatch
from frontier_mock.cost.sampling import GRAMMAR_S
from frontier_mock.cost.slowest_rank import slowest_rank
from frontier_mock.cost.specs import StepSpec
from frontier_mock.cost.tables import Floats, KernelTables, RaggedFit
from frontier_mock.cost.vision import EncoderPrice

_Table = TypeVar("_Table")

_BLOCK: Final = 512
"""Token counts tabulated at a time."""

_JOINT_KEPT: Final = 65536
"""Joint token counts whose price is remembered."""

_GRAPH_REPLAY_US: Final = 10.0
"""Launching a captured graph (cost_model.md section 1.9)."""


def build_step_cost(
    spec: StepSpec,
    tables: KernelTables,
    ends: tuple[bool, bool] = (True, True),
    queries: int = 1,
) -> "TabledStepCost":
    """Price steps by `tables`. One stage of several (`cost.stages`) says which `ends` it has.
    Decodes are of `queries` tokens each.

    Raises ValueError for parallelism that does not divide the model, or for a weight type, cache
    type or degree the tables lack.
    """
    parallel, precision, model = spec.parallel, spec.precision, spec.model
    if parallel.pp > 1:
        raise ValueError(f"pp is {parallel.pp}: stages are priced one by one")
    if parallel.dp > 1 and model.experts is None:
        raise ValueError(
            f"dp={parallel.dp}: {model.name} has no experts to share; "
            "data parallel replicas of a dense model are workers of their own"
        )
    if parallel.dispatch not in DISPATCHES:
        allowed = ", ".join(DISPATCHES)
        raise ValueError(f"dispatch {parallel.dispatch!r} is not known; allowed: {allowed}")
    weights = linear_weights(model, precision)
    packed = {*PACKED, *(() if "fp8" in tables.gemm else ("fp8",))}
    if not {weights, weights.partition("_")[0]} & {*tables.gemm, *packed}:
        allowed = ", ".join(sorted({*tables.gemm, *packed}))
        raise ValueError(f"no {weights} kernels for {tables.name}; it has {allowed}")
    if model.experts is not None:
        expert_table(spec, tables)
    if precision.kv not in tables.decode:
        allowed = ", ".join(sorted(tables.decode))
        raise ValueError(f"no {precision.kv} KV cache for {tables.name}; it has {allowed}")
    check_context_parallel(model, parallel)
    if parallel.dcp > 1 and parallel.dcp not in tables.all_gather:
        allowed = ", ".join(str(n) for n in (1, *sorted(tables.all_gather)))
        raise ValueError(
            f"no all-gather over dcp={parallel.dcp} for {tables.name}: dcp is {allowed}"
        )
    if parallel.tp > 1 and parallel.tp not in tables.all_reduce:
        allowed = ", ".join(str(n) for n in (1, *sorted(tables.all_reduce)))
        raise ValueError(f"no all-reduce over tp={parallel.tp} for {tables.name}: tp is {allowed}")
    return TabledStepCost(spec, tables, ends, queries)


class TabledStepCost:
    """`StepCost` from kernel tables; a pure function of its arguments, memoised.

    Workers with the same `spec` may share one. With `dp` ranks the price is that of one rank's
    batch while the others have as many tokens (see `lockstep`). `ends` says whether the layers have
    the embedding before them, and the LM head behind.
    """

    __slots__ = (
        "_beside",
        "_cpu_request_ns",
        "_cpu_step_ns",
        "_decode_heads",
        "_decode_table",
        "_eager_ns",
        "_experts",
        "_first",
        "_full_layers",
        "_head_ns",
        "_joint_ns",
        "_last",
        "_latent",
        "_lines",
        "_moved_ns",
        "_prefill",
        "_prompt_graphs",
        "_rank_lines",
        "_shard",
        "_sliding_layers",
        "_tables",
        "_token_ns",
        "_vision",
        "spec",
    )

    def __init__(
        self,
        spec: StepSpec,
        tables: KernelTables,
        ends: tuple[bool, bool] = (True, True),
        queries: int = 1,
    ) -> None:
        self.spec = spec
        model, hw, precision = spec.model, spec.hardware, spec.precision
        self._tables = tables
        self._shard = shard_model(model, spec.parallel, precision)
        self._first, self._last = ends
        wait = straggling(spec.parallel.tp)
        self._full_layers = (model.num_layers - model.sliding_layers) * wait
        self._sliding_layers = model.sliding_layers * wait
        read_as = "bf16" if spec.engine.fp8_decode_as_bf16 else precision.kv
        self._decode_table = _of_size(tables.decode[read_as], model.head_dim)
        heads = self._shard.heads
        dcp = spec.parallel.dcp
        # All queries of a sequence read its cache together, as so many heads more would.
        decode_heads = replace(heads, query=heads.query * dcp * queries)
        self._decode_heads = (
            replace(decode_heads, kv_bytes=2) if read_as == "bf16" else decode_heads
        )
        self._prefill: PrefillPrice | LatentPrice
        self._latent: LatentPrice | None = None
        if model.latent is None:
            prefill = _of_size(tables.prefill[precision.kv], model.head_dim)
            self._prefill = PrefillPrice(prefill, hw, heads)
        else:
            self._prefill = LatentPrice(model.latent, hw, heads)
            self._latent = LatentPrice(model.latent, hw, decode_heads)
        self._vision: EncoderPrice | None = None
        if model.vision is not None and self._first:
            size = model.vision.hidden_size // model.vision.num_heads
            self._vision = EncoderPrice(spec, tables, _of_size(tables.prefill["bf16"], size))
        self._experts = ExpertPrice(spec, tables, self._shard) if model.experts else None
        self._cpu_step_ns = spec.engine.cpu_step_s * 1e9
        masks_s = spec.sampling.grammar * GRAMMAR_S
        self._cpu_request_ns = (spec.engine.cpu_request_s + masks_s) * 1e9
        self._eager_ns = eager_launch_us(spec) * 1e3
        prompts = spec.prompt_graph_sizes
        self._prompt_graphs = spec.cudagraph_sizes if prompts is None else prompts
        self._token_ns: list[float] = []
        self._moved_ns: list[float] = []
        self._head_ns: list[float] = []
        self._lines: dict[int, tuple[list[int], list[DecodeLine]]] = {}
        self._rank_lines: dict[int, tuple[list[int], list[DecodeLine]]] = {}
        self._joint_ns: dict[tuple[int, int, bool], float] = {}
        self._beside: dict[int, tuple[list[int], list[DecodeLine]]] = {}

    def decode(self, num_seqs: int, kv_tokens: int) -> DecodeLine:
        """The line that holds at `kv_tokens` for a batch of `num_seqs` one-token decodes."""
        cut = self._lines.get(num_seqs)
        if cut is None:
            cut = self._lines[num_seqs] = self._cut(num_seqs)
        ends, lines = cut
        return lines[bisect_left(ends, kv_tokens)]

    def mixed(self, num_decodes: int, decode_kv_tokens: int, chunks: Sequence[Chunk]) -> int:
        """Nanoseconds for a step with prefill chunks in it, beside `num_decodes` decodes."""
        if not chunks:
            line = self.decode(num_decodes, decode_kv_tokens)
            return round(line.base_ns + line.slope_ns * decode_kv_tokens)
        rows = num_decodes + len(chunks)
        gpu_ns = self._chunked_ns(num_decodes, decode_kv_tokens, chunks, 0, rows)
        return round(self.with_cpu(gpu_ns, rows))

    def chunked_ns(self, batch: RankBatch, rows: int) -> float:
        """GPU time of a forward pass with prompt chunks in it, and `rows` rows of logits."""
        return self._chunked_ns(*batch[:4], rows)

    def _chunked_ns(
        self,
        num_decodes: int,
        decode_kv_tokens: int,
        chunks: Sequence[Chunk],
        drafts: int,
        rows: int,
    ) -> float:
        tokens = num_decodes + drafts
        for chunk in chunks:
            tokens += chunk[0]
        attention_ns = self.prefill_ns(chunks)
        if num_decodes:
            attention_ns += self.decode_beside_ns(num_decodes, decode_kv_tokens)
            if self._tables.ragged is not None:
                attention_ns += self._empty_ns(num_decodes, chunks)
        graphs = self._prompt_graphs
        gpu_ns = self._fixed_ns(tokens, rows, graphs) + attention_ns
        if self.spec.parallel.overlap:
            halves_ns = self._overlapped_ns(tokens, attention_ns, graphs)
            gpu_ns = min(gpu_ns, halves_ns + self.rows_ns(rows))
        return gpu_ns

    def encode_ns(self, images: Sequence[int]) -> int:
        """Nanoseconds of encoding images of so many patches each; 0 without an encoder."""
        return 0 if self._vision is None else round(self._vision.images_ns(images))

    def lockstep(self, batches: Sequence[RankBatch]) -> int:
        """Nanoseconds of one step of all `dp` ranks of attention, idle ones among them.

        Ranks wait for each other at every expert layer: attention counts for the slowest, linear
        layers for the rank with most tokens (vLLM pads the others to it when it replays a graph),
        and experts see everybody's tokens. An idle rank takes part with a batch of one.
        """
        rows = max(max(batch.num_decodes + len(batch.chunks) for batch in batches), 1)
        return round(self.with_cpu(self.lockstep_ns(batches), rows))

    def lockstep_ns(self, batches: Sequence[RankBatch]) -> float:
        """GPU time of the same."""
        attention_ns, most, rows, total = 0.0, 1, 1, 0
        graphs = self.spec.cudagraph_sizes
        for batch in batches:
            logits = batch.num_decodes + batch.drafts
            tokens = logits + sum(chunk[0] for chunk in batch.chunks)
            own_ns = self.prefill_ns(batch.chunks) if batch.chunks else 0.0
            if batch.images:
                own_ns += self.encode_ns(batch.images)
            if batch.num_decodes and batch.chunks:
                own_ns += self.decode_beside_ns(batch.num_decodes, batch.kv_tokens)
            elif batch.num_decodes:
                line = self.rank_line(batch)
                own_ns = line.base_ns + line.slope_ns * batch.kv_tokens
            attention_ns = max(attention_ns, own_ns)
            most = max(most, tokens)
            rows = max(rows, logits + len(batch.chunks))
            total += max(tokens, 1)
            if batch.chunks:
                graphs = self._prompt_graphs
        fixed_ns = self._lockstep_fixed_ns(most, total, len(batches), graphs)
        return fixed_ns + attention_ns + self.rows_ns(rows)

    def lockstep_run(self, batches: Sequence[RankBatch]) -> LockstepRun:
        """The steps from this one on while every rank goes on decoding what it decodes now.

        A straight line for as long as the same rank has the slowest attention, no rank comes to a
        knot of its own price, and the CPU stays hidden or does not.
        """
        rows = max(max(batch.num_decodes for batch in batches), 1)
        total = sum(max(batch.num_decodes, 1) for batch in batches)
        graphs = self.spec.cudagraph_sizes
        gpu_ns = self._lockstep_fixed_ns(rows, total, len(batches), graphs) + self.rows_ns(rows)
        slowest, growth_ns, steps = slowest_rank(
            [(batch, self.rank_line(batch)) for batch in batches if batch.num_decodes]
        )
        gpu_ns += slowest
        cpu_ns = self.cpu_ns(rows)
        if not self.spec.async_scheduling:
            return LockstepRun(gpu_ns + cpu_ns, growth_ns, steps)
        if gpu_ns < cpu_ns:
            if growth_ns > 0:
                steps = min(steps, int((cpu_ns - gpu_ns) / growth_ns) + 1)
            gpu_ns, growth_ns = cpu_ns, 0.0
        return LockstepRun(gpu_ns + self.spec.engine.async_gap_s * 1e9, growth_ns, steps)

    def _lockstep_fixed_ns(
        self, most: int, total: int, ranks: int, graphs: tuple[int, ...]
    ) -> float:
        """Everything but attention, when `most` tokens are on one rank and `total` on all."""
        padded = padded_size(graphs, most)
        if padded:
            most, total = padded, padded * ranks
        key = (most, total, bool(padded))
        known = self._joint_ns.get(key)
        if known is None:
            one = np.array([float(most)]), np.array([float(total)])
            known = float((self._forward_us(*one) + self._moved_us(*one))[0]) * 1e3
            known = known + _GRAPH_REPLAY_US * 1e3 if padded else max(known, self._eager_ns)
            if len(self._joint_ns) >= _JOINT_KEPT:
                self._joint_ns.clear()
            self._joint_ns[key] = known
        return known

    def rank_line(self, batch: RankBatch) -> DecodeLine:
        """All layers' decode attention of one rank."""
        cut = self._rank_lines.get(batch.num_decodes)
        if cut is None:
            cut = self._rank_lines[batch.num_decodes] = lines_of(
                *self._attention_ns(batch.num_decodes)
            )
        ends, lines = cut
        return lines[bisect_left(ends, batch.kv_tokens)]

    def prefill_ns(self, chunks: Sequence[Chunk]) -> float:
        """All layers' attention over prompt chunks; under a window a past is cut to it."""
        total = self._full_layers * self._prefill.chunks_us(chunks)
        if self._sliding_layers:
            window = self.spec.model.sliding_window
            total += self._sliding_layers * self._prefill.chunks_us(_windowed(chunks, window))
        dcp = self.spec.parallel.dcp
        if dcp > 1:
            past = sum(chunk[1] for chunk in chunks)
            gathered = gathered_us(self._tables, self._shard.heads, dcp, past)
            total += self.spec.model.num_layers * gathered
        return total * 1e3

    def decode_beside_ns(self, num_seqs: int, kv_tokens: int) -> float:
        """All layers' decode attention in a mixed step, whose launch is the chunks' launch."""
        cut = self._beside.get(num_seqs)
        if cut is None:
            xs, ys = self._attention_ns(num_seqs)
            launch = min(ys[0], self._launch_ns())
            ys = [y - launch for y in ys]
            if self._tables.ragged is not None and self._latent is None:
                xs, ys = self._ragged_ns(self._tables.ragged, num_seqs, xs, ys)
            cut = self._beside[num_seqs] = lines_of(xs, ys)
        ends, lines = cut
        line = lines[bisect_left(ends, kv_tokens)]
        return line.base_ns + line.slope_ns * kv_tokens

    def _ragged_ns(
        self, fit: RaggedFit, num_seqs: int, xs: list[float], ys: list[float]
    ) -> tuple[list[float], list[float]]:
        """Decodes beside chunks where one kernel takes both: never faster than on their own."""
        knots = np.union1d(xs, num_seqs * 2.0 ** np.arange(6.0, 19.0))
        knots = knots[knots <= xs[-1]]
        hw, heads = self.spec.hardware, self._decode_heads
        near = np.minimum(knots, float(self.spec.model.sliding_window * num_seqs))
        dcp = self.spec.parallel.dcp
        us = self._full_layers * ragged_us(fit, hw, heads, num_seqs, knots / dcp)
        us += self._sliding_layers * ragged_us(fit, hw, heads, num_seqs, near / dcp)
        return knots.tolist(), np.maximum(us * 1e3, np.interp(knots, xs, ys)).tolist()

    def _empty_ns(self, num_decodes: int, chunks: Sequence[Chunk]) -> float:
        """Tiles that decodes have no use for, in a launch as deep as the longest chunk."""
        fit = self._tables.ragged
        if fit is None or self._latent is not None:
            return 0.0
        longest = max(chunk[0] for chunk in chunks)
        each = empty_tiles_us(fit, self.spec.hardware, self._decode_heads, num_decodes, longest)
        return (self._full_layers + self._sliding_layers) * each * 1e3

    def _attention_ns(self, num_seqs: int) -> tuple[list[float], list[float]]:
        """All layers' decode attention at the knots of total context, each rank's share of it."""
        xs, ys = self._rank_attention_ns(num_seqs)
        model, dcp = self.spec.model, self.spec.parallel.dcp
        if dcp == 1:
            return xs, ys
        value_size = model.latent.kv_rank if model.latent else model.head_dim
        each = exchanged_us(self._tables, self._shard.heads, value_size, dcp, num_seqs)
        exchanged_ns = model.num_layers * each * 1e3
        return [x * dcp for x in xs], [y + exchanged_ns for y in ys]

    def _rank_attention_ns(self, num_seqs: int) -> tuple[list[float], list[float]]:
        """The same of one rank, by the context that it holds."""
        if self._latent is not None:
            contexts, us = self._latent.decode_us(num_seqs)
            return contexts, [y * (self._full_layers * 1e3) for y in us]
        table, hw, heads = self._decode_table, self.spec.hardware, self._decode_heads
        kv, row_us = decode_us(table, hw, heads, num_seqs, self._tables.ragged)
        if not self._sliding_layers:
            return kv.tolist(), (row_us * (self._full_layers * 1e3)).tolist()
        knee = float(self.spec.model.sliding_window * num_seqs)
        knots = np.union1d(kv, knee)
        near = np.interp(np.minimum(knots, knee), kv, row_us)
        total = self._full_layers * np.interp(knots, kv, row_us) + self._sliding_layers * near
        return knots.tolist(), (total * 1e3).tolist()

    def _launch_ns(self) -> float:
        """What one attention kernel a layer takes at least."""
        layers = self._full_layers + self._sliding_layers
        return layers * float(self._decode_table.time_us[0, 0]) * 1e3

    def pass_ns(self, num_seqs: int, tokens: int, rows: int) -> tuple[list[float], list[float]]:
        """GPU time of a pass of `num_seqs` decodes over total context, as knots of a polyline.

        They compute `tokens` tokens together, and `rows` rows of logits.
        """
        graphs = self.spec.cudagraph_sizes
        fixed_ns = self._fixed_ns(tokens, rows, graphs)
        xs, attention = self._attention_ns(num_seqs)
        ys = [y + fixed_ns for y in attention]
        if self.spec.parallel.overlap:
            head_ns = self.rows_ns(rows) + _GRAPH_REPLAY_US * 1e3
            halves = [self._overlapped_ns(tokens, y, graphs) + head_ns for y in attention]
            ys = [min(pair) for pair in zip(ys, halves, strict=True)]
        return xs, ys

    def _cut(self, num_seqs: int) -> tuple[list[int], list[DecodeLine]]:
        """Lines for a decode batch of `num_seqs`, and the context at which each ends."""
        xs, ys = self.pass_ns(num_seqs, num_seqs, num_seqs)
        cpu_ns = self.cpu_ns(num_seqs)
        if not self.spec.async_scheduling:
            return lines_of(xs, [y + cpu_ns for y in ys])
        xs, ys = raised_to(xs, ys, cpu_ns)
        return lines_of(xs, [y + self.spec.engine.async_gap_s * 1e9 for y in ys])

    def attention_half_us(self, num_seqs: int, kv_tokens: int) -> float:
        """The attention half of one layer while decoding, projections and norm included."""
        tokens = np.array([float(num_seqs)])
        linear = attention_layer_us(self.spec, self._tables, self._shard, tokens)
        xs, ys = self._attention_ns(num_seqs)
        last = (ys[-1] - ys[-2]) / (xs[-1] - xs[-2])
        beyond = max(0.0, kv_tokens - xs[-1]) * last
        layers = self.spec.model.num_layers * 1e3
        return float(linear[0]) + (float(np.interp(kv_tokens, xs, ys)) + beyond) / layers

    def _overlapped_ns(self, tokens: int, attention_ns: float, graphs: tuple[int, ...]) -> float:
        """A step in two halves, each computing while the other's tokens move (section 1.11).

        Either computing hides all moving, or one half's computing and moving follow each other.
        Kernels that move tokens take SMs from the others, but not the low-latency ones. Without a
        captured graph the host launches everything twice.
        """
        while tokens >= len(self._token_ns):
            self._extend_tokens()
        half = (tokens + 1) // 2
        slower = 1.0
        if self.spec.parallel.dispatch != "deepep_low_latency":
            sms = self.spec.hardware.sm_count
            slower = sms / (sms - COMMUNICATION_SMS)
        moved_ns = self._moved_ns[half]
        computed_ns = 2.0 * (self._token_ns[half] - moved_ns) * slower + attention_ns
        launched_ns = 0.0
        if not padded_size(graphs, tokens):
            launched_ns = 2.0 * self._eager_ns
        return max(computed_ns, 0.5 * computed_ns + moved_ns, launched_ns)

    def _fixed_ns(self, tokens: int, rows: int, graphs: tuple[int, ...]) -> float:
        """GPU time that depends on token and row counts alone, launch limits included."""
        padded = padded_size(graphs, tokens)
        token_ns = self._tokens_ns(padded or tokens)
        if padded:
            token_ns += _GRAPH_REPLAY_US * 1e3
        elif token_ns < self._eager_ns:
            token_ns = self._eager_ns
        return token_ns + self.rows_ns(rows)

    def _tokens_ns(self, tokens: int) -> float:
        table = self._token_ns
        while tokens >= len(table):
            self._extend_tokens()
        return table[tokens]

    def rows_ns(self, rows: int) -> float:
        table = self._head_ns
        while rows >= len(table):
            self._extend_rows()
        return table[rows]

    def _extend_tokens(self) -> None:
        """Tabulate the next block; a running maximum keeps measured noise monotone."""
        start = len(self._token_ns)
        tokens = np.maximum(np.arange(start, start + _BLOCK, dtype=np.float64), 1.0)
        everybody = tokens * self.spec.parallel.dp
        moved = self._moved_us(tokens, everybody) * 1e3
        self._moved_ns += moved.tolist()
        total = self._forward_us(tokens, everybody) * 1e3 + moved
        if start:
            total[0] = max(total[0], self._token_ns[-1])
        self._token_ns += np.maximum.accumulate(total).tolist()

    def _forward_us(self, tokens: Floats, global_tokens: Floats) -> Floats:
        """All layers without attention, and the embedding."""
        spec, tables, shard = self.spec, self._tables, self._shard
        model = spec.model
        layers = model.num_layers * attention_layer_us(spec, tables, shard, tokens)
        dense = model.num_layers - model.expert_layers
        if dense:
            layers += dense * mlp_layer_us(spec, tables, shard, tokens)
        if self._experts is not None:
            expert = expert_layer_us(spec, tables, shard, self._experts, tokens, global_tokens)
            layers += model.expert_layers * expert
        if spec.lora is not None:
            layers += lora_us(spec, tables, shard, spec.lora, tokens)
        if self._first:
            layers = layers + embed_us(spec, tables, tokens)
        return np.asarray(layers, dtype=np.float64)

    def _moved_us(self, tokens: Floats, global_tokens: Floats) -> Floats:
        """All layers' dispatch and combine between ranks of attention."""
        spec = self.spec
        if spec.parallel.dp == 1:
            return np.zeros_like(tokens)
        layers = spec.model.expert_layers
        made: Floats = layers * moved_us(spec, self._tables, tokens, global_tokens)
        return made

    def _extend_rows(self) -> None:
        start = len(self._head_ns)
        rows = np.maximum(np.arange(start, start + _BLOCK, dtype=np.float64), 1.0)
        total = np.zeros_like(rows)
        if self._last:
            total = head_us(self.spec, self._tables, self._shard, rows) * 1e3
        if start:
            total[0] = max(total[0], self._head_ns[-1])
        self._head_ns += np.maximum.accumulate(total).tolist()

    def cpu_ns(self, running: int) -> float:
        """The engine's CPU time for a step with so many sequences in it."""
        return self._cpu_step_ns + self._cpu_request_ns * running

    def with_cpu(self, gpu_ns: float, running: int) -> float:
        """Add or hide the engine's CPU time."""
        cpu_ns = self.cpu_ns(running)
        if not self.spec.async_scheduling:
            return gpu_ns + cpu_ns
        return max(gpu_ns, cpu_ns) + self.spec.engine.async_gap_s * 1e9


def _windowed(chunks: Sequence[Chunk], window: int) -> list[Chunk]:
    """Chunks that cause about the work of `chunks` when no query sees more than `window` keys.

    A long chunk is cut into pieces of a window: the first sees what past there is, the others one
    window of it.
    """
    made = []
    for new, past in chunks:
        before = min(past, window)
        while new > 0:
            piece = min(new, window)
            made.append(Chunk(piece, before))
            new -= piece
            before = min(before + piece, window)
    return made


def _of_size(by_size: Mapping[int, _Table], size: int) -> _Table:
    """The table of the head size closest to `size`."""
    return by_size[min(by_size, key=lambda known: (abs(known - size), known))]
