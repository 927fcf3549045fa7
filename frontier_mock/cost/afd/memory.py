"""What each side of a disaggregated instance has to hold. PURE.

Attention GPUs hold attention, embeddings, head and the KV cache, and are planned as any engine with
a model that has nothing else. FFN GPUs hold whole experts, and copies of what every token passes:
shared experts, dense MLPs and, unless it is on attention, the router. Every micro-batch in flight
has buffers of its own.
"""

from dataclasses import dataclass, replace
from typing import Final

from frontier_mock.cost.afd.spec import AfdSpec
from frontier_mock.cost.gemm import WEIGHT_BYTES
from frontier_mock.cost.layers import ACTIVATION_BYTES, linear_weights
from frontier_mock.cost.memory import OutOfMemory
from frontier_mock.cost.specs import ModelSpec, PrecisionSpec, StepSpec

_GIB: Final = 1 << 30

_OUTSIDE_BYTES: Final = 570 << 20
"""CUDA's own and NCCL's, as in `cost.memory`."""


@dataclass(frozen=True, slots=True)
class FfnMemory:
    """Bytes on one FFN GPU by use, and how many there are to use."""

    weights_bytes: int
    activation_bytes: int
    outside_bytes: int
    usable_bytes: int


def attention_only(model: ModelSpec) -> ModelSpec:
    """The model as attention GPUs hold it."""
    return replace(model, experts=None, intermediate_size=0)


def attention_precision(model: ModelSpec, precision: PrecisionSpec) -> PrecisionSpec:
    """The types of what they hold: a four-bit type is that of experts alone."""
    return PrecisionSpec(linear_weights(model, precision), precision.kv)


def plan_ffn(step: StepSpec, afd: AfdSpec, rank_tokens: int, utilization: float) -> FfnMemory:
    """What one FFN GPU holds when an attention rank has at most `rank_tokens` in a micro-batch.

    Raises OutOfMemory, with the numbers, if that is more than `utilization` of it.
    """
    model, experts = step.model, step.model.experts
    assert experts is not None
    hidden, bytes_each = model.hidden_size, WEIGHT_BYTES[afd.ffn_weights]
    held = (experts.num_experts + afd.redundant_experts) // afd.ffn_gpus
    routed = 3 * hidden * experts.intermediate_size * held
    shared = 3 * hidden * experts.shared_size
    weights = int(model.expert_layers * (routed + shared) * bytes_each)
    dense_layers = model.num_layers - model.expert_layers
    weights += int(dense_layers * 3 * hidden * model.intermediate_size * bytes_each)
    if not afd.gate_on_attention:
        weights += model.expert_layers * hidden * experts.num_experts * ACTIVATION_BYTES
    tokens = rank_tokens * step.parallel.dp
    wide = max(3 * experts.intermediate_size, hidden + experts.intermediate_size)
    rows = -(-tokens * experts.top_k // afd.ffn_gpus)
    # Rows of the micro-batch being computed, and the tokens of all in flight, there and back.
    activation = rows * wide * ACTIVATION_BYTES
    in_flight = afd.micro_batches * rows * hidden * (afd.a2f_bytes + ACTIVATION_BYTES)
    usable = int(afd.ffn_hardware.hbm_bytes * utilization)
    plan = FfnMemory(weights, activation + in_flight, _OUTSIDE_BYTES, usable)
    needed = plan.weights_bytes + plan.activation_bytes + plan.outside_bytes
    if needed > usable:
        raise OutOfMemory(
            f"an FFN GPU needs {needed / _GIB:.1f} GiB ({held} of {experts.num_experts} experts "
            f"and all else {weights / _GIB:.1f}, activations {plan.activation_bytes / _GIB:.1f}), "
            f"{afd.ffn_hardware.name} has {usable / _GIB:.1f} GiB to use; allowed: more FFN GPUs, "
            f"smaller weights, or fewer tokens in a step"
        )
    return plan
