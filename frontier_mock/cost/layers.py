"""Everything in a forward pass that depends on the number of tokens alone. PURE.

Per layer: two norms with residual, the projections around attention, rope, the write into the KV
cache, the MLP (or the experts, see `moe`), and two all-reduces under tensor parallelism. Once per
step: the embedding, the final norm, the LM head on the rows that need logits, the gather of the
logits, and sampling.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from frontier_mock.cost.attention import Heads
from frontier_mock.cost.collectives import curve_us, straggling
from frontier_mock.cost.gemm import PACKED, gemm_us, packed_table
from frontier_mock.cost.sampling import sampled_us
from frontier_mock.cost.specs import ModelSpec, ParallelSpec, PrecisionSpec, StepSpec
from frontier_mock.cost.tables import Floats, KernelTables

ACTIVATION_BYTES: Final = 2

_QUANT_BYTES: Final = 3
"""Bytes moved to turn one bf16 activation into fp8. Only attention's output needs a kernel of its
own for that; the other three are fused by the compiler into the norm or activation before. Tables
of block-fp8 layers include theirs."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's share of one layer.

    `projections` are the (N, K) of the linear layers around attention; `qkv_columns` is what they
    hand to attention and `attention_columns` what attention hands back. `shared_columns` is the
    inner size of the shared experts, `expert_columns` that of one routed expert and
    `local_experts` how many of those the rank holds.
    """

    heads: Heads
    projections: tuple[tuple[int, int], ...]
    qkv_columns: int
    attention_columns: int
    gate_up_columns: int
    mlp_columns: int
    vocab_columns: int
    shared_columns: int = 0
    expert_columns: int = 0
    local_experts: int = 0


def linear_weights(model: ModelSpec, precision: PrecisionSpec) -> str:
    """The weight type of everything that is not a routed expert.

    Four-bit checkpoints of models with experts keep all but the experts in bf16.
    """
    if model.experts is not None and precision.weights in PACKED:
        return "bf16"
    return precision.weights


def shard_model(model: ModelSpec, parallel: ParallelSpec, precision: PrecisionSpec) -> Shard:
    """Split a model as vLLM's parallelism does; KV heads are replicated beyond their number.

    Raises ValueError when a degree does not divide the heads, the MLP or the experts.
    """
    tp = parallel.tp
    if model.num_heads % tp:
        raise ValueError(
            f"Total number of attention heads ({model.num_heads}) must be divisible by tensor "
            f"parallel size ({tp})."
        )
    if model.intermediate_size % tp:
        raise ValueError(f"{model.intermediate_size} is not divisible by {tp}")
    kv_bytes = 1 if precision.kv == "fp8" else 2
    query = model.num_heads // tp
    latent = model.latent
    if latent is None:
        kv = max(1, model.num_kv_heads // tp)
        heads = Heads(query=query, kv=kv, size=model.head_dim, kv_bytes=kv_bytes)
        qkv, out = (query + 2 * kv) * model.head_dim, query * model.head_dim
        projections = _grouped_projections(model, query, kv)
    else:
        width = latent.kv_rank + latent.rope_size
        size = latent.nope_size + latent.rope_size
        heads = Heads(query=query, kv=1, size=size, kv_bytes=kv_bytes, latent=width)
        qkv, out = query * size + width, query * latent.value_size
        projections = _latent_projections(model, query)
    shared, inner, local = _expert_shares(model, parallel)
    return Shard(
        heads=heads,
        projections=(*projections, (model.hidden_size, out)),
        qkv_columns=qkv,
        attention_columns=out,
        gate_up_columns=2 * model.intermediate_size // tp,
        mlp_columns=model.intermediate_size // tp,
        vocab_columns=-(-model.vocab_size // tp),
        shared_columns=shared,
        expert_columns=inner,
        local_experts=local,
    )


def _grouped_projections(model: ModelSpec, query: int, kv: int) -> tuple[tuple[int, int], ...]:
    """QKV in one; with MFA the narrow query is projected beside keys and values, then widened."""
    size, hidden = model.head_dim, model.hidden_size
    if not model.q_rank:
        return (((query + 2 * kv) * size, hidden),)
    return ((model.q_rank + 2 * kv * size, hidden), (query * size, model.q_rank))


def _latent_projections(model: ModelSpec, query: int) -> tuple[tuple[int, int], ...]:
    """MLA as absorbed: narrow projections, wide queries, and the latent to and from heads.

    Expanding the latent into keys and values, as prompts do, takes the same work per token.
    """
    latent, hidden = model.latent, model.hidden_size
    assert latent is not None
    narrow = latent.kv_rank + latent.rope_size
    wide = query * (latent.nope_size + latent.rope_size)
    absorbed = (query * (latent.nope_size + latent.value_size), latent.kv_rank)
    indexer: tuple[tuple[int, int], ...] = ()
    if latent.index_top_k:
        indexer = (
            (latent.index_heads * latent.index_size, model.q_rank),
            (latent.index_size + latent.index_heads, hidden),
        )
    if not model.q_rank:
        return ((narrow + wide, hidden), absorbed, *indexer)
    return ((model.q_rank + narrow, hidden), (wide, model.q_rank), absorbed, *indexer)


def _expert_shares(model: ModelSpec, parallel: ParallelSpec) -> tuple[int, int, int]:
    """Shared columns, columns of one routed expert, and experts, on one rank."""
    experts = model.experts
    if experts is None:
        if parallel.ep > 1:
            raise ValueError(f"{model.name} has no experts to spread over ep={parallel.ep}")
        return 0, 0, 0
    ranks = parallel.tp * parallel.dp
    if parallel.ep not in (1, ranks):
        raise ValueError(f"ep is {parallel.ep}; allowed: 1 or tp x dp ({ranks})")
    shared = experts.shared_size // parallel.tp
    if parallel.ep > 1:
        if experts.num_experts % ranks:
            raise ValueError(f"{experts.num_experts} experts are not divisible by ep={ranks}")
        return shared, experts.intermediate_size, experts.num_experts // ranks
    if experts.intermediate_size % ranks:
        raise ValueError(f"{experts.intermediate_size} is not divisible by {ranks}")
    return shared, experts.intermediate_size // ranks, experts.num_experts


def attention_layer_us(
    spec: StepSpec, tables: KernelTables, shard: Shard, tokens: Floats
) -> Floats:
    """Microseconds of the attention half of a layer, attention itself aside.

    Every rank waits for the slowest at the all-reduce.
    """
    weights = linear_weights(spec.model, spec.precision)
    total = np.zeros_like(tokens)
    for n, k in shard.projections:
        total += linear_us(spec, tables, weights, tokens, n, k)
    if weights == "fp8":
        total += elementwise_us(spec, tables, tokens * (shard.attention_columns * _QUANT_BYTES))
    for columns in _attention_columns(spec.model, shard):
        total += elementwise_us(spec, tables, tokens * (columns * ACTIVATION_BYTES))
    if spec.model.qk_norm_wide and spec.parallel.tp > 1:
        # Its variance is a sum over all heads, so over all ranks: in fp32, queries' and keys'.
        variance = curve_us(tables.all_reduce[spec.parallel.tp], tokens * 8.0)
        total = total + variance + 2.0 * tables.elementwise_us
    return reduced_us(spec, tables, tokens, total)


def mlp_layer_us(spec: StepSpec, tables: KernelTables, shard: Shard, tokens: Floats) -> Floats:
    """Microseconds of the MLP half of a dense layer."""
    hidden = spec.model.hidden_size
    total = mlp_us(spec, tables, shard.mlp_columns, tokens)
    total += elementwise_us(spec, tables, tokens * (4 * hidden * ACTIVATION_BYTES))
    return reduced_us(spec, tables, tokens, total)


def mlp_us(spec: StepSpec, tables: KernelTables, inner: int, tokens: Floats) -> Floats:
    """Microseconds of gate-and-up, activation and down with `inner` columns on this rank."""
    weights, hidden = linear_weights(spec.model, spec.precision), spec.model.hidden_size
    total = linear_us(spec, tables, weights, tokens, 2 * inner, hidden)
    total = total + linear_us(spec, tables, weights, tokens, hidden, inner)
    made: Floats = total + elementwise_us(spec, tables, tokens * (3 * inner * ACTIVATION_BYTES))
    return made


def reduced_us(spec: StepSpec, tables: KernelTables, tokens: Floats, half_us: Floats) -> Floats:
    """Half a layer, waited for and all-reduced."""
    tp = spec.parallel.tp
    if tp == 1:
        return half_us
    size = tokens * (spec.model.hidden_size * ACTIVATION_BYTES)
    made: Floats = half_us * straggling(tp) + curve_us(tables.all_reduce[tp], size)
    return made


def linear_us(
    spec: StepSpec, tables: KernelTables, weights: str, tokens: Floats, n: int, k: int
) -> Floats:
    """One linear layer in the middle of a forward pass, no faster than power allows."""
    hw = spec.hardware
    kernel = weights if weights in tables.gemm else weights.partition("_")[0]
    native = kernel.startswith("fp8") and kernel in tables.gemm
    peak = hw.peak_fp8_flops if native else hw.peak_bf16_flops
    table = tables.gemm[kernel] if kernel in tables.gemm else packed_table(tables.gemm["bf16"])
    alone = gemm_us(table, hw, kernel, tokens, n, k)
    sustained = tables.sustained["fp8" if native else "bf16"]
    return np.maximum(alone, tokens * (2e6 * n * k / (peak * sustained)))


def head_us(spec: StepSpec, tables: KernelTables, shard: Shard, rows: Floats) -> Floats:
    """Microseconds of LM head, gathering and sampling for each number of logit rows."""
    hw, model = spec.hardware, spec.model
    bf16 = tables.gemm["bf16"]
    total = gemm_us(bf16, hw, "bf16", rows, shard.vocab_columns, model.hidden_size)
    if spec.parallel.tp > 1:
        curve = tables.all_gather[spec.parallel.tp]
        total = total + curve_us(curve, rows * (model.vocab_size * ACTIVATION_BYTES))
    sampled: Floats = total + sampled_us(hw, model.vocab_size, spec.sampling, rows)
    return sampled


def embed_us(spec: StepSpec, tables: KernelTables, tokens: Floats) -> Floats:
    """Microseconds of the embedding lookup and the final norm, and the all-reduce between."""
    moved = tokens * (2 * spec.model.hidden_size * ACTIVATION_BYTES)
    total = 2.0 * elementwise_us(spec, tables, moved)
    if spec.parallel.tp > 1:
        total = total + curve_us(tables.all_reduce[spec.parallel.tp], 0.5 * moved)
    return np.asarray(total, dtype=np.float64)


def elementwise_us(spec: StepSpec, tables: KernelTables, moved_bytes: Floats) -> Floats:
    """Microseconds of one fused elementwise kernel that moves this many bytes."""
    bandwidth = tables.elementwise_memory * spec.hardware.hbm_bytes_per_s
    time_us: Floats = tables.elementwise_us + moved_bytes / bandwidth * 1e6
    return time_us


def _attention_columns(model: ModelSpec, shard: Shard) -> tuple[int, ...]:
    """Elements read and written per token by each fused kernel of a layer's attention half."""
    norm = 4 * model.hidden_size
    heads = shard.heads
    if model.latent is not None:
        narrow_norm = 2 * (model.q_rank + model.latent.kv_rank)
        rope = 2 * (heads.query + 1) * model.latent.rope_size
        return (norm, narrow_norm, rope, 2 * heads.latent)
    rope = 2 * (heads.query + heads.kv) * heads.size
    cache_write = 4 * heads.kv * heads.size
    columns: tuple[int, ...] = (norm, rope, cache_write)
    if model.qk_norm:
        columns = (*columns, rope)
    if model.q_rank:
        columns = (*columns, 2 * model.q_rank)
    return columns
