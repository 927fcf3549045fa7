"""What a tier under a GPU has done, for reports and metrics."""

from collections.abc import Mapping
from typing import NamedTuple

from frontier_mock.simtime import SimTime


class TierStats(NamedTuple):
    """One tier since the start. Bytes are one GPU's; times are those its links were busy.

    `query_tokens` were asked for at first admissions, and `hit_tokens` of them came from here.
    `loads` went up and `stores` came down; `dropped_tokens` had no room, or were not worth storing.
    """

    tier: str
    query_tokens: int
    hit_tokens: int
    loads: int
    load_bytes: int
    load_ns: SimTime
    stores: int
    store_bytes: int
    store_ns: SimTime
    dropped_tokens: int
    held_tokens: int
    capacity_tokens: int
    found_tokens: int = 0
    """Of a storage: what lookups found there, fetched or not."""
    fetched_tokens: int = 0
    """And what of that came to the host."""
    written_tokens: int = 0
    """And what this engine has written there."""
    lost_tokens: Mapping[str, int] | None = None
    """Of what lookups found, what did not come to the host, by SGLang's word for the reason."""
