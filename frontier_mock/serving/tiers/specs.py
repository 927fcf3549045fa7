"""What an engine is told about the tiers under its GPU cache."""

from dataclasses import dataclass

POLICIES = ("lru", "arc")
"""How vLLM's CPU tier chooses what goes (`eviction_policy`)."""


@dataclass(frozen=True, slots=True)
class LaneSpec:
    """One direction of the way to a tier, as one GPU sees it."""

    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class OffloadSpec:
    """A CPU tier under a vLLM engine (vLLM 0.33's OffloadingConnector, LMCache), in vLLM's words.

    A *chunk* is `blocks_per_chunk` blocks, what is stored and found as one. `block_bytes` is one
    GPU's share of a block; the ranks of an engine move equal shares at the same time. A chunk is
    stored when it has been offered `store_threshold` times; below 2, at once.
    """

    name: str
    num_chunks: int
    block_bytes: int
    load: LaneSpec
    store: LaneSpec
    blocks_per_chunk: int = 1
    eviction_policy: str = "lru"
    store_threshold: int = 0
    max_tracker_size: int = 64_000
    offload_prompt_only: bool = True
    whole_prefix: bool = False
    """Whether only prompts count that are there from their first token on (LMCache)."""
    blocking: bool = False
    """Whether loads are part of the step that admits (LMCacheConnectorV1)."""
    stores: bool = True
    """Whether the engine stores what it computes; else others deposit here (LMCache's receiver)."""


@dataclass(frozen=True, slots=True)
class HostTierSpec:
    """A host tier under an SGLang engine (HiCache, SGLang 0.5.23), written through.

    `page_bytes` is one GPU's share of a page, `layers` in how many parts a load comes. A node goes
    to the host when it has been inserted `threshold` times.
    """

    num_pages: int
    page_bytes: int
    load: LaneSpec
    store: LaneSpec
    layers: int
    threshold: int = 1
