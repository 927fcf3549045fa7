"""Low-rank adapters beside the linear layers of attention and dense MLP. PURE.

Every group of linear layers gets two kernels: one that shrinks the input to the rank, and one that
expands it and adds. Both read the adapters in use, taken to be all that may be loaded, and the
activations. Adapters on routed experts are not priced.
"""

from typing import Final

import numpy as np

from frontier_mock.cost.layers import ACTIVATION_BYTES, Shard, elementwise_us
from frontier_mock.cost.specs import LoraSpec, StepSpec
from frontier_mock.cost.tables import Floats, KernelTables

_REACHED: Final = 0.2
"""Fraction of bf16 peak of products with so narrow a side (an inference: a rank of 16 fills an
eighth of a tile)."""

_RANK_BYTES: Final = 4
"""The shrunk activation is kept in fp32."""


def adapted(shard: Shard, hidden: int, dense_mlp: bool) -> tuple[tuple[int, int], ...]:
    """(N, K) of the adapted linear layers of one rank."""
    if not dense_mlp:
        return shard.projections
    mlp = ((shard.gate_up_columns, hidden), (hidden, shard.mlp_columns))
    return (*shard.projections, *mlp)


def lora_us(
    spec: StepSpec, tables: KernelTables, shard: Shard, lora: LoraSpec, tokens: Floats
) -> Floats:
    """Microseconds that adapters add to all layers."""
    model = spec.model
    total = np.zeros_like(tokens)
    for n, k in adapted(shard, model.hidden_size, dense_mlp=model.experts is None):
        weights = lora.max_loras * lora.rank * ACTIVATION_BYTES
        shrink = tokens * (k * ACTIVATION_BYTES + lora.rank * _RANK_BYTES) + weights * k
        expand = tokens * (2 * n * ACTIVATION_BYTES + lora.rank * _RANK_BYTES) + weights * n
        total += elementwise_us(spec, tables, shrink) + elementwise_us(spec, tables, expand)
        flops = 2.0 * lora.rank * (n + k)
        total += tokens * (flops / (_REACHED * spec.hardware.peak_bf16_flops) * 1e6)
    made: Floats = model.num_layers * total
    return made


def adapter_bytes(shard: Shard, hidden: int, layers: int, dense_mlp: bool, lora: LoraSpec) -> int:
    """Bytes that vLLM sets aside on one rank for all adapters that may be loaded."""
    columns = sum(n + k for n, k in adapted(shard, hidden, dense_mlp))
    return lora.max_loras * lora.rank * columns * ACTIVATION_BYTES * layers
