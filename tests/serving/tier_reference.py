"""A CPU tier chunk by chunk, as plain as can be, to keep the tier of runs honest.

A dictionary from path to chunk; who goes is found by sorting everything. Ranks as in vLLM 0.33: the
last request to use a chunk, and within it the deepest chunk first.
"""

from dataclasses import dataclass, field

from frontier_mock.core.prompt import KEY_BYTES


@dataclass
class Chunk:
    rank: tuple[int, int]
    ready: bool = False
    readers: int = 0


@dataclass
class Request:
    """One request's path, its rank, and the chunks it has used or wanted."""

    keys: bytes
    rank: int = 0
    seen: dict[int, None] = field(default_factory=dict)

    def name(self, at: int) -> bytes:
        return self.keys[: (at + 1) * KEY_BYTES]


class ChunkPool:
    """`capacity` chunks by path."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.chunks: dict[bytes, Chunk] = {}
        self.ranks = 0

    def reach(self, request: Request, first: int, last: int) -> int:
        at = first
        while at < last and request.name(at) in self.chunks:
            at += 1
        return at - first

    def _use(self, request: Request, places: list[int]) -> None:
        if places and not request.rank:
            self.ranks += 1
            request.rank = self.ranks
        for at in places:
            request.seen[at] = None
            chunk = self.chunks.get(request.name(at))
            if chunk is not None:
                chunk.rank = max(chunk.rank, (request.rank, -at))

    def offer(self, request: Request, first: int, last: int) -> list[int] | None:
        places = range(first, last)
        missing = [at for at in places if request.name(at) not in self.chunks]
        ready = [at for at in places if at not in missing and self.chunks[request.name(at)].ready]
        self._use(request, sorted(missing + ready))
        offered = {request.name(at) for at in places}
        short = len(missing) - (self.capacity - len(self.chunks))
        idle = [
            name
            for name, chunk in self.chunks.items()
            if chunk.ready and not chunk.readers and name not in offered
        ]
        if short > len(idle):
            return None
        for name in sorted(idle, key=lambda name: self.chunks[name].rank)[: max(0, short)]:
            del self.chunks[name]
        for at in missing:
            self.chunks[request.name(at)] = Chunk((request.rank, -at))
        return missing

    def stored(self, request: Request, places: list[int]) -> None:
        for at in places:
            self.chunks[request.name(at)].ready = True

    def pin(self, request: Request, first: int, last: int) -> None:
        self._use(request, list(range(first, last)))
        for at in range(first, last):
            self.chunks[request.name(at)].readers += 1

    def unpin(self, request: Request, first: int, last: int) -> None:
        for at in range(first, last):
            self.chunks[request.name(at)].readers -= 1

    def finish(self, request: Request) -> None:
        if not request.seen:
            return
        self.ranks += 1
        for at in request.seen:
            chunk = self.chunks.get(request.name(at))
            if chunk is not None:
                chunk.rank = (self.ranks, -at)
