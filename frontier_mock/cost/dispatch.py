"""Moving tokens to the GPUs of their experts and back, and between pipeline stages. PURE.

Within a node by NVLink, between nodes by one NIC per GPU. DeepEP's constants are its README's H800
measurements and NVIDIA's H100 tables (cost_model.md sections 1.8 and 3, rows B30 to B38).
"""

from typing import Final

import numpy as np

from frontier_mock.cost.collectives import curve_us
from frontier_mock.cost.specs import ExpertsSpec, HardwareSpec, StepSpec
from frontier_mock.cost.tables import Floats, KernelTables

GPUS_PER_NODE: Final = 8

DISPATCHES: Final = ("allgather", "alltoall", "deepep_normal", "deepep_low_latency")

_ACTIVATION_BYTES: Final = 2.0

_REFERENCE_BYTES: Final = 7168 * 8
"""Hidden size times top-k of every DeepEP measurement."""

_SLOW_NVLINK: Final = 300e9
"""H800's NVLink (200 GB/s each way) is below this, H100's (450 GB/s) above."""

_LOW_LATENCY_START_US: Final = {1: (13.5, 12.0), 2: (20.0, 25.0), 4: (25.0, 26.0), 8: (28.0, 28.0)}
_LOW_LATENCY_TOKEN_US: Final = {
    "fast": {1: (0.20, 0.48), 2: (0.64, 1.26), 4: (0.93, 1.87), 8: (1.09, 2.16)},
    "slow": {1: (0.496, 0.797), 2: (0.766, 1.328), 4: (1.016, 1.930), 8: (1.133, 2.234)},
}
_LOW_LATENCY_WIDE_US: Final = {16: (1.281, 2.664), 32: (1.297, 2.594)}
"""Dispatch and combine, microseconds per token of a rank, by nodes. The wide ones are H800's; at
that width the NICs are the limit, which are the same."""

_NORMAL_BYTES_PER_S: Final = {
    "fast": {1: (310e9, 320e9), 2: (74e9, 61e9), 4: (59e9, 60e9), 8: (51e9, 50e9)},
    "slow": {1: (153e9, 158e9), 2: (43e9, 43e9), 4: (58e9, 57e9), 8: (51e9, 50e9)},
}
"""Dispatch and combine by nodes: NVLink bytes to distinct ranks on one node, RDMA bytes to distinct
nodes beyond."""

_NORMAL_NOTIFY_US: Final = 25.0
"""Counting tokens before they move: 15 to 40 us (cost_model.md section 1.8, an inference)."""

COMMUNICATION_SMS: Final = 20
"""SMs that DeepEP's normal kernels and NCCL keep busy (cost_model.md section 1.8: 20 to 24)."""

_NIC_EFFICIENCY: Final = 0.9
_NVLINK_ALLTOALL: Final = 0.75
_COLLECTIVE_START_US: Final = 15.0
_P2P_START_US: Final = 10.0


def moved_us(spec: StepSpec, tables: KernelTables, tokens: Floats, global_tokens: Floats) -> Floats:
    """Microseconds to bring tokens to their experts and results back, one layer.

    `tokens` are those of one rank of attention. Raises ValueError for an unknown dispatch.
    """
    parallel, hw = spec.parallel, spec.hardware
    experts, hidden = spec.model.experts, spec.model.hidden_size
    assert experts is not None
    ranks = parallel.tp * parallel.dp
    if parallel.dispatch == "allgather":
        return _gathered_us(hw, tables, ranks, global_tokens * (hidden * _ACTIVATION_BYTES))
    own = tokens / parallel.tp
    if parallel.dispatch == "alltoall":
        moved = own * (experts.top_k * hidden * _ACTIVATION_BYTES)
        return 2.0 * alltoall_us(hw, ranks, moved)
    if parallel.dispatch == "deepep_normal":
        return sum_of(normal_us(hw, experts, hidden, ranks, own))
    if parallel.dispatch == "deepep_low_latency":
        return sum_of(low_latency_us(hw, experts, hidden, ranks, own))
    allowed = ", ".join(DISPATCHES)
    raise ValueError(f"dispatch {parallel.dispatch!r} is not known; allowed: {allowed}")


def sum_of(pair: tuple[Floats, Floats]) -> Floats:
    """Dispatch and combine together."""
    made: Floats = pair[0] + pair[1]
    return made


def low_latency_us(
    hw: HardwareSpec, experts: ExpertsSpec, hidden: int, ranks: int, tokens: Floats
) -> tuple[Floats, Floats]:
    """DeepEP's low-latency dispatch (fp8) and combine (bf16) for `tokens` on each of `ranks`."""
    nodes = _nodes(ranks)
    start = _LOW_LATENCY_START_US[min(nodes, 8)]
    if nodes > 8:
        each = _LOW_LATENCY_WIDE_US[min(nodes, 32)]
    else:
        each = _LOW_LATENCY_TOKEN_US[_link(hw)][nodes]
    scale = hidden * experts.top_k / _REFERENCE_BYTES
    return start[0] + tokens * (each[0] * scale), start[1] + tokens * (each[1] * scale)


def normal_us(
    hw: HardwareSpec, experts: ExpertsSpec, hidden: int, ranks: int, tokens: Floats
) -> tuple[Floats, Floats]:
    """DeepEP's normal dispatch (fp8) and combine (bf16); a token goes to each place once."""
    nodes = _nodes(ranks)
    places = ranks if nodes == 1 else nodes
    reached = places * (1.0 - (1.0 - 1.0 / places) ** experts.top_k)
    if experts.token_groups and nodes > 1:
        reached = min(reached, experts.token_groups)
    rates = _NORMAL_BYTES_PER_S[_link(hw)][min(nodes, 8)]
    sent = tokens * (reached * hidden) * 1e6
    return _NORMAL_NOTIFY_US + sent / rates[0], _NORMAL_NOTIFY_US + 2.0 * sent / rates[1]


def alltoall_us(hw: HardwareSpec, ranks: int, moved_bytes: Floats) -> Floats:
    """NCCL's all-to-all of `moved_bytes` from each rank (cost_model.md section 1.7)."""
    nodes = _nodes(ranks)
    inside = moved_bytes * ((min(ranks, GPUS_PER_NODE) - 1) / ranks)
    time_s = inside / (_NVLINK_ALLTOALL * hw.nvlink_bytes_per_s)
    outside = moved_bytes * ((nodes - 1) / nodes)
    slowest: Floats = np.maximum(time_s, outside / (_NIC_EFFICIENCY * hw.nic_bytes_per_s))
    return _COLLECTIVE_START_US + slowest * 1e6


def _gathered_us(hw: HardwareSpec, tables: KernelTables, ranks: int, size: Floats) -> Floats:
    """All-gather of all tokens and reduce-scatter of all results."""
    if ranks in tables.all_gather:
        return 2.0 * curve_us(tables.all_gather[ranks], size)
    nodes = _nodes(ranks)
    bus = min(0.8 * hw.nvlink_bytes_per_s, GPUS_PER_NODE * _NIC_EFFICIENCY * hw.nic_bytes_per_s)
    once = _COLLECTIVE_START_US * nodes + size * ((ranks - 1) / ranks / bus * 1e6)
    made: Floats = 2.0 * once
    return made


def hop_us(spec: StepSpec, stage: int) -> tuple[float, float]:
    """Microseconds to hand hidden states and residual from `stage` to the next: at all, per token.

    Each rank sends its share of them. Stages are in line over the GPUs: from the last one of a node
    the way is over the NIC, else over NVLink (cost_model.md section 1.9).
    """
    hw, parallel = spec.hardware, spec.parallel
    ranks = parallel.tp * parallel.dp
    across = (stage + 1) * ranks // GPUS_PER_NODE > (stage * ranks) // GPUS_PER_NODE
    rate = hw.nic_bytes_per_s if across else hw.nvlink_bytes_per_s
    size = 2.0 * spec.model.hidden_size * _ACTIVATION_BYTES / parallel.tp
    return _P2P_START_US, size / rate * 1e6


def _nodes(ranks: int) -> int:
    """Nodes that `ranks` fill: 1, or the power of two that holds them."""
    nodes = 1
    while nodes * GPUS_PER_NODE < ranks:
        nodes *= 2
    return nodes


def _link(hw: HardwareSpec) -> str:
    return "slow" if hw.nvlink_bytes_per_s < _SLOW_NVLINK else "fast"
