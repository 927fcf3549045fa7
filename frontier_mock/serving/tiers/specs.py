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


PREFETCH_POLICIES = ("best_effort", "wait_complete", "timeout")
"""Until when SGLang waits for what it fetches from storage to host memory."""


@dataclass(frozen=True, slots=True)
class StorageSpec:
    """Storage behind an SGLang engine's host tier (`--hicache-storage-backend`).

    Engines whose `pool` is the same share what is there. `contributed_pages` is how much of it this
    engine lends, 0 where it is as large as need be. Fewer tokens than `threshold_tokens` are not
    fetched. A request waits for `timeout_base_s`, and `timeout_per_page_s` for each page it asks
    for, under the policy `timeout`.
    """

    backend: str
    pool: str
    load: LaneSpec
    store: LaneSpec
    policy: str = "timeout"
    threshold_tokens: int = 256
    timeout_base_s: float = 1.0
    timeout_per_page_s: float = 0.25 / 1024
    contributed_pages: int = 0


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
    storage: StorageSpec | None = None
    """What lies behind the host, if anything does."""
