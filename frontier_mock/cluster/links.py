"""Which links lie between two engines: nodes, NVLink, PCIe and NICs. PURE.

Engines are packed into nodes in their order, `gpus_per_node` GPUs each; an engine that does not fit
what is left of a node begins the next one, and a large one takes whole nodes. Every GPU has its own
NIC, PCIe slot and NVLink ports, and the ranks of an engine move equal shares, so an engine's GPUs
together are one link of their summed speed in each direction. Between nodes KV goes through the
slower of PCIe and NIC on either side, and through the spine if that is limited; within a node by
NVLink, or by PCIe where there is none or the scenario says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from frontier_mock.cluster.fabric import LinkSpec
from frontier_mock.cost.specs import StepSpec

SAME_NODE = ("nvlink", "pcie", "nic")
"""By what engines of one node reach each other."""


@dataclass(frozen=True, slots=True)
class FabricSpec:
    """What moves KV between engines; data of the scenario key `cluster.fabric`.

    `nic_bytes_per_s` and its like, None for the hardware profile's, are one GPU's and one
    direction's nominal speed. `efficiency` of it is reached; every transfer takes `latency_s`
    before its first byte arrives. Both defaults are fits to Mooncake's published sizes and times
    on H800 with eight RoCE NICs (cost_model.md B64: 0.40 ms + bytes / 144 GB/s, 72 % of nominal).
    `control_s` is what a notification between engines takes (an inference: one round trip of a
    side channel). `spine_bytes_per_s` bounds all traffic between nodes together, 0 for a
    non-blocking one.
    """

    gpus_per_node: int = 8
    same_node: str = "nvlink"
    nic_bytes_per_s: float | None = None
    nvlink_bytes_per_s: float | None = None
    pcie_bytes_per_s: float | None = None
    spine_bytes_per_s: float = 0.0
    efficiency: float = 0.72
    latency_s: float = 400e-6
    control_s: float = 50e-6


class Topology:
    """The links of a cluster, and the path between any two of its engines."""

    __slots__ = ("_nodes", "_ports", "_same_node", "_spine", "links")

    def __init__(self, spec: FabricSpec, names: Sequence[str], steps: Sequence[StepSpec]) -> None:
        if spec.same_node not in SAME_NODE:
            allowed = ", ".join(SAME_NODE)
            raise ValueError(f"unknown same_node {spec.same_node!r}: one of {allowed}")
        self._same_node = spec.same_node
        self._nodes = _place([_gpus(step) for step in steps], spec.gpus_per_node)
        links: list[LinkSpec] = []
        self._ports: list[dict[str, int]] = []
        for name, step in zip(names, steps, strict=True):
            ports: dict[str, int] = {}
            for kind, rate in _rates(spec, step).items():
                for direction in ("out", "in"):
                    ports[f"{kind} {direction}"] = len(links)
                    links.append(LinkSpec(f"{name} {kind} {direction}", rate))
            self._ports.append(ports)
        self._spine = -1
        if spec.spine_bytes_per_s > 0:
            self._spine = len(links)
            links.append(LinkSpec("spine", spec.spine_bytes_per_s * spec.efficiency))
        self.links = tuple(links)

    def path(self, source: int, target: int) -> tuple[int, ...]:
        """Links from one engine to another, by index into `links`."""
        ports, others = self._ports[source], self._ports[target]
        kind = self._same_node if self._nodes[source] == self._nodes[target] else "nic"
        if kind == "nvlink" and not ("nvlink out" in ports and "nvlink in" in others):
            kind = "pcie"
        path = [ports[f"{kind} out"], others[f"{kind} in"]]
        if self._nodes[source] != self._nodes[target] and self._spine >= 0:
            path.append(self._spine)
        return tuple(path)

    def way_in(self, target: int) -> tuple[int, ...]:
        """Links of an engine for what comes from outside of the cluster."""
        return (self._ports[target]["nic in"],)

    def way_out(self, source: int) -> tuple[int, ...]:
        """Links of an engine for what goes to another process."""
        return (self._ports[source]["nic out"],)

    def links_of(self, worker: int) -> tuple[int, ...]:
        """All links of one engine."""
        return tuple(self._ports[worker].values())


def _rates(spec: FabricSpec, step: StepSpec) -> dict[str, float]:
    """Real bytes per second of all GPUs of an engine, by kind of link."""
    hardware = step.hardware
    scale = spec.efficiency * _gpus(step)
    nic = spec.nic_bytes_per_s or hardware.nic_bytes_per_s
    pcie = spec.pcie_bytes_per_s or hardware.pcie_bytes_per_s
    nvlink = spec.nvlink_bytes_per_s or hardware.nvlink_bytes_per_s
    # What has no NIC of its own shares the host's, through PCIe.
    rates = {"nic": min(nic, pcie) if nic > 0 else pcie, "pcie": pcie, "nvlink": nvlink}
    return {kind: rate * scale for kind, rate in rates.items() if rate > 0}


def _gpus(step: StepSpec) -> int:
    """Of one engine; data-parallel ranks are engines of their own."""
    return step.parallel.tp * step.parallel.pp


def _place(gpus: Sequence[int], per_node: int) -> list[int]:
    """The first node of each engine."""
    nodes: list[int] = []
    node, used = 0, 0
    for count in gpus:
        if used and used + count > per_node:
            node, used = node + 1, 0
        nodes.append(node)
        used += count
        node, used = node + used // per_node, used % per_node
    return nodes
