"""What the four stations of the pipeline take for one micro-batch in one layer. PURE.

Padding has three levels (frontier.md section 1.4). There are always as many micro-batches as are
configured, empty ones carry a token. A part that fits a captured CUDA graph is filled up to its
size, and every attention rank's to that of the rank with most tokens; a larger one stays as it is.
Linear layers and transfers take on every rank what they take on the fullest, so only attention
itself, over real contexts, tells ranks apart.
"""

from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from frontier_mock.cost.afd.memory import attention_precision
from frontier_mock.cost.afd.spec import CONNECTORS, AfdSpec
from frontier_mock.cost.afd.transfer import (
    dense_fanout,
    expert_fanout,
    transfer_us,
)
from frontier_mock.cost.collectives import straggling
from frontier_mock.cost.cuda_graphs import padded_size
from frontier_mock.cost.dispatch import moved_us
from frontier_mock.cost.layers import (
    attention_layer_us,
    mlp_layer_us,
    shard_model,
)
from frontier_mock.cost.moe import ExpertPrice, expert_layer_us, expert_table, router_us
from frontier_mock.cost.specs import ParallelSpec, PrecisionSpec, StepSpec
from frontier_mock.cost.tables import KernelTables

_EAGER_ATTENTION_US: Final = 9 * 5.0 + 2 * 18.0
"""Host time to launch the attention half of a layer without a graph: nine bare kernels and two
behind Python (cost_model.md section 1.9)."""

_KEPT: Final = 4096
"""Token counts remembered at a time."""

_EAGER_FFN_US: Final = 8 * 5.0
"""As above for experts: router, top-k, sorting, two GEMMs, quantisation between, the sum."""


class Stage(NamedTuple):
    """Nanoseconds of one micro-batch in one layer; attention is without the attention kernel."""

    linear_ns: int
    to_ffn_ns: int
    ffn_ns: int
    to_attention_ns: int


class Stages(NamedTuple):
    """A layer with a dense MLP and one with experts."""

    dense: Stage
    expert: Stage


class StagePrice:
    """Stations of one instance by tokens of an attention rank; memoised."""

    __slots__ = (
        "_attention",
        "_attention_tables",
        "_experts",
        "_fan_dense",
        "_fan_expert",
        "_ffn",
        "_ffn_shard",
        "_ffn_tables",
        "_known",
        "_shard",
        "_spec",
        "waiting",
    )

    def __init__(
        self, step: StepSpec, spec: AfdSpec, tables: KernelTables, ffn_tables: KernelTables
    ) -> None:
        check(step, spec)
        self._spec = spec
        self._attention, self._ffn = attention_side(step), ffn_side(step, spec)
        self._attention_tables, self._ffn_tables = tables, ffn_tables
        self._shard = shard_model(step.model, ParallelSpec(tp=step.parallel.tp), step.precision)
        self._ffn_shard = shard_model(self._ffn.model, self._ffn.parallel, self._ffn.precision)
        expert_table(self._ffn, ffn_tables)
        self._experts = ExpertPrice(self._ffn, ffn_tables, self._ffn_shard)
        experts = step.model.experts
        assert experts is not None
        self._fan_dense = dense_fanout(spec)
        self._fan_expert = expert_fanout(spec, experts, self._ffn.routing)
        tp = step.parallel.tp
        # The FFN side waits for the slowest of all attention GPUs, not of one rank's only.
        self.waiting = straggling(tp * step.parallel.dp) / straggling(tp)
        self._known: dict[tuple[int, int], Stages] = {}

    def stages(self, most_tokens: int, all_tokens: int) -> Stages:
        """Stations of a micro-batch of `all_tokens`; the fullest rank has `most_tokens` of them."""
        padded = padded_size(self._attention.cudagraph_sizes, most_tokens)
        if padded:
            most_tokens, all_tokens = padded, padded * self._attention.parallel.dp
        key = (most_tokens, all_tokens)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _KEPT:
                self._known.clear()
            known = self._known[key] = self._stages(most_tokens, all_tokens, eager=not padded)
        return known

    def _stages(self, most_tokens: int, all_tokens: int, *, eager: bool) -> Stages:
        step, spec = self._attention, self._spec
        own, total = np.array([float(most_tokens)]), np.array([float(all_tokens)])
        each = np.maximum(np.ceil(total / spec.ffn_gpus), 1.0)
        linear = attention_layer_us(step, self._attention_tables, self._shard, own)[0]
        dense = mlp_layer_us(self._ffn, self._ffn_tables, self._ffn_shard, each)[0]
        dense *= straggling(spec.ffn_gpus)
        expert = expert_layer_us(
            self._ffn, self._ffn_tables, self._ffn_shard, self._experts, each, total
        )[0]
        gate = 0.0
        if spec.gate_on_attention:
            experts = step.model.experts
            assert experts is not None
            gate = router_us(step, self._attention_tables, experts, own)[0]
            expert -= router_us(self._ffn, self._ffn_tables, experts, each)[0]
        if spec.connector == "p2p" and spec.ffn_gpus > 1:
            # From where a token arrives to its experts, as vLLM's own expert layer does it.
            expert += moved_us(self._ffn, self._ffn_tables, each, total)[0]
        if eager:
            linear = max(linear, _EAGER_ATTENTION_US)
            dense, expert = max(dense, _EAGER_FFN_US), max(expert, _EAGER_FFN_US)
        made = []
        for fanout, before, ffn in (
            (self._fan_dense, linear, dense),
            (self._fan_expert, linear + gate, expert),
        ):
            there, back = transfer_us(step, spec, fanout, most_tokens, all_tokens)
            us = (before * self.waiting, there, ffn, back)
            made.append(Stage(*(round(one * 1e3) for one in us)))
        return Stages(*made)


def check(step: StepSpec, spec: AfdSpec) -> None:
    """Raise ValueError for what cannot be disaggregated this way, naming what is allowed."""
    model, experts = step.model, step.model.experts
    if experts is None:
        raise ValueError(f"afd: {model.name} has no experts; attention and FFN stay together")
    if spec.connector not in CONNECTORS:
        raise ValueError(f"afd connector {spec.connector!r}: one of {', '.join(CONNECTORS)}")
    if step.parallel.pp > 1:
        raise ValueError(f"afd with pipeline stages: pp is {step.parallel.pp}; allowed: 1")
    if (experts.num_experts + spec.redundant_experts) % spec.ffn_gpus:
        raise ValueError(
            f"afd: {experts.num_experts} experts and {spec.redundant_experts} replicas do not "
            f"divide into {spec.ffn_gpus} FFN GPUs"
        )
    if spec.connector == "m2n" and not spec.gate_on_attention:
        raise ValueError(
            "afd connector m2n sends tokens to their experts: the gate is on attention"
        )


def attention_side(step: StepSpec) -> StepSpec:
    """The step without its routed experts' weight type, as attention GPUs compute it."""
    return replace(step, precision=attention_precision(step.model, step.precision))


def ffn_side(step: StepSpec, spec: AfdSpec) -> StepSpec:
    """The step as the FFN GPUs compute it: every GPU a rank with whole experts.

    Kernels that have tokens sorted by expert as they arrive are those of DeepEP's low-latency mode.
    """
    dispatch = "allgather" if spec.connector == "p2p" else "deepep_low_latency"
    gpus = spec.ffn_gpus
    return replace(
        step,
        hardware=spec.ffn_hardware,
        parallel=ParallelSpec(dp=gpus, ep=gpus, dispatch=dispatch),
        precision=PrecisionSpec(spec.ffn_weights, step.precision.kv),
        routing=replace(step.routing, redundant_experts=spec.redundant_experts),
    )
