"""What any way of keeping chunks in a tier has in common."""

from typing import NamedTuple, Protocol

from frontier_mock.serving.tiers.lane import Transfer


class Access:
    """What one request has used of a tier: chunks `seen` of its path, and its `rank` so far."""

    __slots__ = ("rank", "seen")

    def __init__(self) -> None:
        self.rank = 0
        self.seen: list[tuple[int, int]] = []

    def saw(self, first: int, last: int) -> None:
        """It has used chunks `first` to `last`."""
        if self.seen and self.seen[-1][0] <= first <= self.seen[-1][1]:
            first, last = self.seen[-1][0], max(last, self.seen.pop()[1])
        self.seen.append((first, last))


class Reach(NamedTuple):
    """So many chunks are in a tier, or will be when the transfers `pending` have ended."""

    chunks: int
    pending: list[Transfer]


class Pool(Protocol):
    """A tier's chunks; see `lru.LruPool` for what the verbs mean."""

    capacity: int
    num_held: int

    def reach(self, keys: bytes, first: int, last: int) -> Reach:
        """How many chunks of `keys` from `first` on are here, to `last` at most."""
        ...

    def offer(
        self, keys: bytes, first: int, last: int, access: Access, transfer: Transfer
    ) -> list[tuple[int, int]] | None:
        """Take in chunks; those that were not here, or None if there is no room for them."""
        ...

    def stored(self, transfer: Transfer) -> None:
        """What `transfer` was to bring is here."""
        ...

    def pin(self, access: Access, transfer: Transfer) -> None:
        """Keep what `transfer` fetches until `unpin`."""
        ...

    def unpin(self, transfer: Transfer) -> None:
        """What `transfer` was to fetch is fetched."""
        ...

    def finish(self, keys: bytes, access: Access) -> None:
        """The request is over."""
        ...

    def clear(self) -> None:
        """Forget everything."""
        ...

    def check(self) -> None:
        """Assert the pool's own laws; for tests, not speed."""
        ...
