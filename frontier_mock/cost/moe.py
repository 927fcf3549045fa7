"""The expert half of a layer: router, shared experts, routed experts, and moving tokens. PURE."""

from typing import Final

import numpy as np

from frontier_mock.cost.collectives import straggling
from frontier_mock.cost.contiguous import contiguous_us
from frontier_mock.cost.experts import (
    ExpertLoad,
    ExpertShape,
    balanced_load,
    block_rows,
    drifted,
    expected_load,
    experts_us,
    placed,
    popularity,
)
from frontier_mock.cost.gemm import WEIGHT_BYTES
from frontier_mock.cost.layers import (
    ACTIVATION_BYTES,
    Shard,
    elementwise_us,
    linear_us,
    mlp_us,
    reduced_us,
)
from frontier_mock.cost.specs import ExpertsSpec, StepSpec
from frontier_mock.cost.tables import ContiguousFit, ExpertTable, Floats, KernelTables

_GRID_PER_OCTAVE = 4
_LARGEST_TOKENS = 1 << 20

_NO_DEEPGEMM_TP: Final = 8
"""Cut over so many ranks, block-fp8 experts go to Triton instead (vllm-project/vllm#29346)."""


_FP32_GEMM_US: Final = 9.0
"""A small fp32 product, split in K and summed by a second kernel: cuBLAS takes 6.9 to 13.6 us for
one or two tokens of a like shape (vllm-project/vllm#44343, #38445)."""

_TOP_K_US: Final = 0.0245 * 132 / (128 * 8)
"""Microseconds that one SM takes for one candidate of one of a token's choices: the top-k kernel of
vLLM 0.10 takes 102 us on H200 for 4095 tokens, 128 experts and 8 choices
(h200_moe_eager_4095tok_ep8.csv). Tables of experts are measured with choices already made."""

_FP32_SM_FLOPS: Final = 128 * 2 * 1.755e9
_FP32_REACHED: Final = 0.7
"""Fused multiply-adds an SM makes in a second, and how much of that a large product is taken to
reach."""


class ExpertPrice:
    """Microseconds of the routed experts of an average layer by tokens of all ranks.

    Layers differ in which experts are popular and a layer takes as long as its slowest rank, so the
    mean over layers of the maximum over ranks is tabulated once.
    """

    __slots__ = ("_log_tokens", "_log_us")

    def __init__(self, spec: StepSpec, tables: KernelTables, shard: Shard) -> None:
        octaves = np.arange(0.0, np.log2(_LARGEST_TOKENS) + 1e-9, 1.0 / _GRID_PER_OCTAVE)
        tokens = np.maximum(np.rint(2.0**octaves), 1.0)
        tokens = np.unique(tokens)
        time_us = np.maximum.accumulate(_average_us(spec, tables, shard, tokens))
        self._log_tokens = np.log(tokens)
        self._log_us = np.log(time_us)

    def us(self, tokens: Floats) -> Floats:
        """Straight lines in the logarithms, the last slope beyond."""
        x = np.log(np.maximum(tokens, 1.0))
        known_x, known_y = self._log_tokens, self._log_us
        slope = (known_y[-1] - known_y[-2]) / (known_x[-1] - known_x[-2])
        beyond = np.maximum(x - known_x[-1], 0.0) * slope
        made: Floats = np.exp(np.interp(x, known_x, known_y) + beyond)
        return made


def expert_table(spec: StepSpec, tables: KernelTables) -> ExpertTable:
    """The kernel that runs these experts. Raises ValueError when nothing like it was measured.

    Where only bf16 was (A100), weights of fewer bits are unpacked on the way to the same tensor
    cores (Marlin): fewer bytes, the same multiplication.
    """
    engine, weights, parallel = spec.engine, spec.precision.weights, spec.parallel
    collection = engine.expert_kernels
    if weights == "fp8_block" and engine.block_expert_kernels in tables.experts:
        collection = engine.block_expert_kernels
    elif weights == "mxfp4" and engine.mxfp4_expert_kernels in tables.experts:
        collection = engine.mxfp4_expert_kernels
    measured = tables.experts.get(collection) or tables.experts["vllm-0.24"]
    if parallel.dp > 1 and weights in tables.experts.get(parallel.dispatch, {}):
        return tables.experts[parallel.dispatch][weights]
    if parallel.ep > 1 and f"{weights}_ep" in measured:
        return measured[f"{weights}_ep"]
    for name in (weights, weights.partition("_")[0], f"{weights}_block"):
        if name in measured:
            return measured[name]
    if set(measured) <= {"bf16", "bf16_ep"} and weights in WEIGHT_BYTES:
        return measured["bf16_ep" if parallel.ep > 1 and "bf16_ep" in measured else "bf16"]
    allowed = ", ".join(sorted(name for name in measured if not name.endswith("_ep")))
    raise ValueError(f"no {weights} expert kernels for {tables.name}; it has {allowed}")


def _contiguous(spec: StepSpec, tables: KernelTables) -> ContiguousFit | None:
    """DeepGEMM's constants if this engine runs these experts through it."""
    parallel = spec.parallel
    if spec.precision.weights != "fp8_block" or spec.engine.block_expert_kernels != "deepgemm":
        return None
    if parallel.ep == 1 and parallel.tp == _NO_DEEPGEMM_TP:
        return None
    return tables.contiguous


def _average_us(spec: StepSpec, tables: KernelTables, shard: Shard, tokens: Floats) -> Floats:
    """Mean over layers of the slowest rank's time."""
    table = expert_table(spec, tables)
    experts = spec.model.experts
    assert experts is not None
    ep = spec.parallel.ep
    shape = ExpertShape(
        spec.model.hidden_size,
        shard.expert_columns,
        experts.top_k,
        experts.num_experts,
        ep,
    )
    weights, hw = spec.precision.weights, spec.hardware
    block = block_rows(table.fit, shape, tokens)
    contiguous = _contiguous(spec, tables)
    uniform = spec.routing.kind == "uniform" and not spec.routing.redundant_experts
    # Without expert parallelism a layer's time does not depend on which experts are popular.
    layers = 1 if ep == 1 or uniform else spec.model.expert_layers
    shares = popularity(experts, spec.routing, layers)
    redundant = spec.routing.redundant_experts if ep > 1 else 0
    total = np.zeros_like(tokens)
    for layer in placed(shares, ep, redundant, drifted(experts, spec.routing, shares)):
        load = expected_load(layer, experts.top_k, block, tokens)
        if contiguous is not None:
            total += contiguous_us(contiguous, hw, weights, shape, load).max(axis=0)
        else:
            total += experts_us(table, hw, weights, shape, load).max(axis=0)
    made: Floats = total / layers
    return made


def router_us(spec: StepSpec, tables: KernelTables, experts: ExpertsSpec, tokens: Floats) -> Floats:
    """The router's linear layer. In fp32 it has no tensor cores, and its input is converted."""
    hidden = spec.model.hidden_size
    if not experts.fp32_router:
        return linear_us(spec, tables, "bf16", tokens, experts.num_experts, hidden)
    flops = 2.0 * experts.num_experts * hidden
    reached = spec.hardware.sm_count * (_FP32_SM_FLOPS * _FP32_REACHED)
    converted = elementwise_us(spec, tables, tokens * (hidden * 6.0))
    multiplied: Floats = converted + _FP32_GEMM_US + tokens * (flops / reached * 1e6)
    return multiplied


def choosing_us(
    spec: StepSpec, tables: KernelTables, experts: ExpertsSpec, tokens: Floats
) -> Floats:
    """The best experts of each token: reading the logits, and a pass over them for each choice."""
    read = elementwise_us(spec, tables, tokens * (experts.num_experts * ACTIVATION_BYTES))
    passes = experts.num_experts * experts.top_k
    made: Floats = read + tokens * (passes * _TOP_K_US / spec.hardware.sm_count)
    return made


def balanced_us(spec: StepSpec, tables: KernelTables, shard: Shard, tokens: Floats) -> Floats:
    """The routed experts as tables measure them: every expert gets the same."""
    experts = spec.model.experts
    assert experts is not None
    table = expert_table(spec, tables)
    shape = ExpertShape(
        spec.model.hidden_size,
        shard.expert_columns,
        experts.top_k,
        experts.num_experts,
        spec.parallel.ep,
    )
    load: ExpertLoad = balanced_load(shape, block_rows(table.fit, shape, tokens), tokens)
    return experts_us(table, spec.hardware, spec.precision.weights, shape, load)


def expert_layer_us(
    spec: StepSpec,
    tables: KernelTables,
    shard: Shard,
    price: ExpertPrice,
    tokens: Floats,
    global_tokens: Floats,
) -> Floats:
    """Microseconds of the expert half of a layer; moving tokens between ranks is not in it.

    `tokens` are those of one rank of attention, `global_tokens` those of all `dp` of them.
    """
    model, hidden = spec.model, spec.model.hidden_size
    experts = model.experts
    assert experts is not None
    total = elementwise_us(spec, tables, tokens * (4 * hidden * ACTIVATION_BYTES))
    total = total + router_us(spec, tables, experts, tokens)
    if spec.precision.weights != "mxfp4":
        # Kernels of mxfp4 experts were measured with choosing them (vLLM's monolithic).
        total += choosing_us(spec, tables, experts, tokens)
    if shard.shared_columns:
        total += mlp_us(spec, tables, shard.shared_columns, tokens)
    routed = price.us(global_tokens)
    parallel = spec.parallel
    if parallel.dp == 1:
        return reduced_us(spec, tables, tokens, total + routed)
    waited: Floats = (total + routed) * straggling(parallel.tp * parallel.dp)
    return waited
