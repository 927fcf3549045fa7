"""The expert half of a layer: router, shared experts, routed experts, and moving tokens. PURE."""

import numpy as np

from frontier_mock.cost.collectives import straggling
from frontier_mock.cost.experts import (
    ExpertLoad,
    ExpertShape,
    balanced_load,
    expected_load,
    experts_us,
    placed,
    popularity,
)
from frontier_mock.cost.layers import (
    ACTIVATION_BYTES,
    Shard,
    elementwise_us,
    linear_us,
    mlp_us,
    reduced_us,
)
from frontier_mock.cost.specs import StepSpec
from frontier_mock.cost.tables import ExpertTable, Floats, KernelTables

_GRID_PER_OCTAVE = 4
_LARGEST_TOKENS = 1 << 20


class ExpertPrice:
    """Microseconds of the routed experts of an average layer by tokens of all ranks.

    Layers differ in which experts are popular and a layer takes as long as its slowest rank, so the
    mean over layers of the maximum over ranks is tabulated once.
    """

    __slots__ = ("_log_tokens", "_log_us")

    def __init__(self, spec: StepSpec, tables: KernelTables, shard: Shard) -> None:
        table = expert_table(spec, tables)
        octaves = np.arange(0.0, np.log2(_LARGEST_TOKENS) + 1e-9, 1.0 / _GRID_PER_OCTAVE)
        tokens = np.maximum(np.rint(2.0**octaves), 1.0)
        tokens = np.unique(tokens)
        time_us = np.maximum.accumulate(_average_us(spec, table, shard, tokens))
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
    """The kernel that runs these experts. Raises ValueError when nothing like it was measured."""
    collection = spec.engine.expert_kernels
    measured = tables.experts.get(collection) or tables.experts["vllm-0.24"]
    weights, parallel = spec.precision.weights, spec.parallel
    if parallel.dp > 1 and weights in tables.experts.get(parallel.dispatch, {}):
        return tables.experts[parallel.dispatch][weights]
    if parallel.ep > 1 and f"{weights}_ep" in measured:
        return measured[f"{weights}_ep"]
    for name in (weights, weights.partition("_")[0], f"{weights}_block"):
        if name in measured:
            return measured[name]
    allowed = ", ".join(sorted(name for name in measured if not name.endswith("_ep")))
    raise ValueError(f"no {weights} expert kernels for {tables.name}; it has {allowed}")


def _average_us(spec: StepSpec, table: ExpertTable, shard: Shard, tokens: Floats) -> Floats:
    """Mean over layers of the slowest rank's time."""
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
    weights, hw, block = spec.precision.weights, spec.hardware, table.fit.block_rows
    uniform = spec.routing.kind == "uniform" and not spec.routing.redundant_experts
    # Without expert parallelism a layer's time does not depend on which experts are popular.
    layers = 1 if ep == 1 or uniform else spec.model.expert_layers
    shares = popularity(experts, spec.routing, layers)
    redundant = spec.routing.redundant_experts if ep > 1 else 0
    total = np.zeros_like(tokens)
    for layer in placed(shares, ep, redundant):
        load = expected_load(layer, experts.top_k, block, tokens)
        total += experts_us(table, hw, weights, shape, load).max(axis=0)
    made: Floats = total / layers
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
    load: ExpertLoad = balanced_load(shape, table.fit.block_rows, tokens)
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
    total = total + linear_us(spec, tables, "bf16", tokens, experts.num_experts, hidden)
    total += elementwise_us(spec, tables, tokens * (experts.num_experts * ACTIVATION_BYTES))
    if shard.shared_columns:
        total += mlp_us(spec, tables, shard.shared_columns, tokens)
    routed = price.us(global_tokens)
    parallel = spec.parallel
    if parallel.dp == 1:
        return reduced_us(spec, tables, tokens, total + routed)
    waited: Floats = (total + routed) * straggling(parallel.tp * parallel.dp)
    return waited
