"""Everything in a forward pass that depends on the number of tokens alone. PURE.

Per layer: two norms with residual, QKV, rope, the write into the KV cache, O, gate-and-up,
activation, down, and two all-reduces under tensor parallelism. Once per step: the embedding, the
final norm, the LM head on the rows that need logits, the gather of the logits, and sampling.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from frontier_mock.cost.attention import Heads
from frontier_mock.cost.collectives import curve_us, straggling
from frontier_mock.cost.gemm import gemm_us
from frontier_mock.cost.specs import ModelSpec, ParallelSpec, PrecisionSpec, StepSpec
from frontier_mock.cost.tables import Floats, KernelTables

ACTIVATION_BYTES: Final = 2

_QUANT_BYTES: Final = 3
"""Bytes moved to turn one bf16 activation into fp8. Only attention's output needs a kernel of its
own for that; the other three are fused by the compiler into the norm or activation before."""

_SAMPLER_US: Final = 60.0
"""Fixed GPU time of the sampler (cost_model.md section 1.6)."""

_SAMPLER_BYTES_PER_LOGIT: Final = 16


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's share of one layer."""

    heads: Heads
    qkv_columns: int
    attention_columns: int
    gate_up_columns: int
    mlp_columns: int
    vocab_columns: int


def shard_model(model: ModelSpec, parallel: ParallelSpec, precision: PrecisionSpec) -> Shard:
    """Split a model as vLLM's tensor parallelism does; KV heads are replicated beyond their number.

    Raises ValueError when the degree does not divide the heads or the MLP.
    """
    tp = parallel.tp
    if model.num_heads % tp:
        raise ValueError(
            f"Total number of attention heads ({model.num_heads}) must be divisible by tensor "
            f"parallel size ({tp})."
        )
    if model.intermediate_size % tp:
        raise ValueError(f"{model.intermediate_size} is not divisible by {tp}")
    query = model.num_heads // tp
    kv = max(1, model.num_kv_heads // tp)
    kv_bytes = 1 if precision.kv == "fp8" else 2
    return Shard(
        heads=Heads(query=query, kv=kv, size=model.head_dim, kv_bytes=kv_bytes),
        qkv_columns=(query + 2 * kv) * model.head_dim,
        attention_columns=query * model.head_dim,
        gate_up_columns=2 * model.intermediate_size // tp,
        mlp_columns=model.intermediate_size // tp,
        vocab_columns=-(-model.vocab_size // tp),
    )


def layer_us(spec: StepSpec, tables: KernelTables, shard: Shard, tokens: Floats) -> Floats:
    """Microseconds of one decoder layer, attention aside, for each number of tokens.

    Every rank waits for the slowest at each all-reduce.
    """
    model, weights, hidden = spec.model, spec.precision.weights, spec.model.hidden_size
    shapes = (
        (shard.qkv_columns, hidden),
        (hidden, shard.attention_columns),
        (shard.gate_up_columns, hidden),
        (hidden, shard.mlp_columns),
    )
    total = np.zeros_like(tokens)
    for n, k in shapes:
        total += _sustained_us(spec, tables, weights, tokens, n, k)
    if weights == "fp8":
        total += elementwise_us(spec, tables, tokens * (shard.attention_columns * _QUANT_BYTES))
    for columns in _elementwise_columns(model, shard):
        total += elementwise_us(spec, tables, tokens * (columns * ACTIVATION_BYTES))
    if spec.parallel.tp > 1:
        curve = tables.all_reduce[spec.parallel.tp]
        total *= straggling(spec.parallel.tp)
        total += 2.0 * curve_us(curve, tokens * (hidden * ACTIVATION_BYTES))
    return total


def _sustained_us(
    spec: StepSpec, tables: KernelTables, weights: str, tokens: Floats, n: int, k: int
) -> Floats:
    """One linear layer in the middle of a forward pass, no faster than power allows."""
    hw = spec.hardware
    peak = hw.peak_fp8_flops if weights == "fp8" else hw.peak_bf16_flops
    alone = gemm_us(tables.gemm[weights], hw, weights, tokens, n, k)
    return np.maximum(alone, tokens * (2e6 * n * k / (peak * tables.sustained[weights])))


def head_us(spec: StepSpec, tables: KernelTables, shard: Shard, rows: Floats) -> Floats:
    """Microseconds of LM head, gathering and sampling for each number of logit rows."""
    hw, model = spec.hardware, spec.model
    bf16 = tables.gemm["bf16"]
    total = gemm_us(bf16, hw, "bf16", rows, shard.vocab_columns, model.hidden_size)
    if spec.parallel.tp > 1:
        curve = tables.all_gather[spec.parallel.tp]
        total = total + curve_us(curve, rows * (model.vocab_size * ACTIVATION_BYTES))
    logits = rows * (model.vocab_size * _SAMPLER_BYTES_PER_LOGIT)
    sampled: Floats = total + (_SAMPLER_US + logits / hw.hbm_bytes_per_s * 1e6)
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


def _elementwise_columns(model: ModelSpec, shard: Shard) -> tuple[int, ...]:
    """Elements read and written per token by each fused kernel of a layer."""
    norm = 4 * model.hidden_size
    rope = 2 * (shard.heads.query + shard.heads.kv) * shard.heads.size
    cache_write = 4 * shard.heads.kv * shard.heads.size
    activation = 3 * shard.mlp_columns
    columns: tuple[int, ...] = (norm, norm, rope, cache_write, activation)
    if model.qk_norm:
        columns = (*columns, rope)
    return columns
