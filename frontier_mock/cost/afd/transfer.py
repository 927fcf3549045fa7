"""Moving a micro-batch from attention GPUs to FFN GPUs and back, one layer. PURE.

Every GPU has a NIC of its own. A transfer takes as long as the slower end's: the attention GPU that
sends its tokens once per copy, or the FFN GPU on which they meet. Results come back in bf16, one
partial sum per copy. The anchors are rows B67 of cost_model.md section 3 and StepMesh's two copies
of 128 tokens (sglang_and_routers.md section 5.1), which both are bytes over line rate.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from frontier_mock.cost.afd.spec import AfdSpec
from frontier_mock.cost.dispatch import GPUS_PER_NODE
from frontier_mock.cost.experts import placed, popularity
from frontier_mock.cost.specs import ExpertsSpec, RoutingSpec, StepSpec

_START_US: Final = 1.5
"""An RDMA write to another node, an inference; B67's figures leave no room for more."""

_LINE_RATE: Final = 0.98
"""Of the NIC's rate: RoCE headers on packets of 4096 bytes."""

_FP8_SCALES: Final = 1.0 + 4.0 / 128.0
"""Bytes per fp8 element, one fp32 scale for each 128."""

_RESULT_BYTES: Final = 2.0

_GATHER_START_US: Final = 8.0
_GATHER_RATE: Final = 0.8
"""NCCL's all-gather within a node (cost_model.md row B60: 32 MiB in 122 us on H100). It runs under
the computing of another micro-batch, so it is part of the transfer."""


@dataclass(frozen=True, slots=True)
class Fanout:
    """To how many FFN GPUs a token goes, and what share of all copies meets on the busiest one."""

    copies: float
    busiest: float


def dense_fanout(spec: AfdSpec) -> Fanout:
    """Layers without experts: every token to one GPU, evenly."""
    return Fanout(1.0, 1.0 / spec.ffn_gpus)


def expert_fanout(spec: AfdSpec, experts: ExpertsSpec, routing: RoutingSpec) -> Fanout:
    """Layers with experts, averaged over layers that differ in which experts are popular."""
    if spec.connector == "p2p":
        return Fanout(1.0, 1.0 / spec.ffn_gpus)
    if spec.connector == "broadcast":
        return Fanout(float(spec.ffn_instances), 1.0 / spec.ffn_gpus)
    shares = popularity(experts, routing, 16)
    picked = np.minimum(placed(shares, spec.ffn_gpus, spec.redundant_experts) * experts.top_k, 1.0)
    reached = 1.0 - np.prod(1.0 - picked, axis=-1)
    copies = reached.sum(axis=-1)
    return Fanout(float(copies.mean()), float((reached.max(axis=-1) / copies).mean()))


def transfer_us(
    step: StepSpec, spec: AfdSpec, fanout: Fanout, most_tokens: int, all_tokens: int
) -> tuple[float, float]:
    """Microseconds there and back, with `most_tokens` on the fullest rank of attention."""
    hidden = step.model.hidden_size
    width = _FP8_SCALES if spec.a2f_bytes == 1 else float(spec.a2f_bytes)
    out = most_tokens / step.parallel.tp * fanout.copies * hidden
    into = all_tokens * fanout.copies * fanout.busiest * hidden
    slowest = max(out / step.hardware.nic_bytes_per_s, into / spec.ffn_hardware.nic_bytes_per_s)
    per_byte_us = slowest / _LINE_RATE * 1e6
    start_us = _START_US
    if spec.connector == "broadcast" and spec.ffn_gpus > spec.ffn_instances:
        start_us += _GATHER_START_US
        per_byte_us += _gathered_us_per_byte(spec, float(all_tokens) * hidden)
    return start_us + width * per_byte_us, start_us + _RESULT_BYTES * per_byte_us


def _gathered_us_per_byte(spec: AfdSpec, elements: float) -> float:
    """The GPUs of an FFN instance gather all tokens over NVLink, or reduce and scatter results."""
    inside = min(spec.ffn_gpus // spec.ffn_instances, GPUS_PER_NODE)
    rate = _GATHER_RATE * spec.ffn_hardware.nvlink_bytes_per_s
    return elements * (inside - 1) / inside / rate * 1e6
