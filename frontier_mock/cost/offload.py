"""Moving KV between a GPU and the tiers below it, and when that beats computing it again. PURE.

Bandwidths are per GPU. A transfer is latency plus bytes over bandwidth; several at once share a
tier's bandwidth, which is the caller's to divide.
"""

from dataclasses import dataclass
from typing import Final

from frontier_mock.cost.protocol import Chunk, StepCost
from frontier_mock.cost.specs import HardwareSpec

_DMA_SHARE: Final = 50e9 / 64e9
"""What DMA reaches of PCIe 5.0's 64 GB/s in one direction (cost_model.md row B83, on H100)."""

_SSD_READ_BYTES_PER_S: Final = 12e9
_SSD_WRITE_BYTES_PER_S: Final = 6e9
_SSD_LATENCY_S: Final = 100e-6
"""A PCIe 5.0 NVMe drive's data sheet, one drive a GPU: an assumption."""

_POOL_SHARE: Final = 0.71
"""What a transfer engine reaches of the NIC (cost_model.md row B64)."""

_POOL_LATENCY_S: Final = 0.45e-3
"""Its fixed cost (section 1.8)."""

_DMA_LATENCY_S: Final = 20e-6


@dataclass(frozen=True, slots=True)
class TierSpec:
    """One place to keep KV in, as one GPU sees it."""

    name: str
    read_bytes_per_s: float
    write_bytes_per_s: float
    latency_s: float


def tiers(hw: HardwareSpec) -> tuple[TierSpec, ...]:
    """Host memory, local SSD and a pool behind the NIC, fastest first; no pool without a NIC."""
    dma = hw.pcie_bytes_per_s * _DMA_SHARE
    made = [TierSpec("cpu", dma, dma, _DMA_LATENCY_S)]
    if hw.nic_bytes_per_s:
        pool = min(hw.nic_bytes_per_s * _POOL_SHARE, dma)
        made.append(TierSpec("pool", pool, pool, _POOL_LATENCY_S))
    made.append(
        TierSpec(
            "ssd",
            min(_SSD_READ_BYTES_PER_S, dma),
            min(_SSD_WRITE_BYTES_PER_S, dma),
            _SSD_LATENCY_S,
        )
    )
    return tuple(sorted(made, key=lambda tier: -tier.read_bytes_per_s))


def load_ns(tier: TierSpec, size_bytes: int) -> int:
    """Nanoseconds to bring so many bytes of one GPU's cache back."""
    return round((tier.latency_s + size_bytes / tier.read_bytes_per_s) * 1e9)


def store_ns(tier: TierSpec, size_bytes: int) -> int:
    """Nanoseconds to put so many bytes of one GPU's cache away."""
    return round((tier.latency_s + size_bytes / tier.write_bytes_per_s) * 1e9)


def saved_ns(cost: StepCost, tier: TierSpec, tokens: int, bytes_per_token: int) -> int:
    """By how much loading the KV of a prompt's first `tokens` beats computing it alone.

    Negative where computing is faster. `bytes_per_token` is one GPU's, over all its layers.
    """
    return cost.mixed(0, 0, [Chunk(tokens, 0)]) - load_ns(tier, tokens * bytes_per_token)
