"""A tier that weighs recency against frequency (ARC), as vLLM's CPU tier does with `arc`.

Chunk by chunk: every eviction moves one chunk to a ghost list whose length decides the next one.

Theory of operation
1. `recent` has chunks used by one request, `frequent` those that another one has used again.
   `recent_ghosts` and `frequent_ghosts` remember what went last from each.
2. Storing what is among the ghosts of one list makes that list's share, `target`, larger.
3. Room comes from `recent` while that is at least as long as `target`, else from `frequent`.
4. When a request ends, what it stored is the latest used of its list, and what it reused moves to
   `frequent`; the head of the prompt is the latest of all.

Source: vLLM 0.33.0, v1/kv_offload/cpu/manager.py and cpu/policies/arc.py.
"""

from collections import OrderedDict
from collections.abc import Iterator

from frontier_mock.serving.tiers.chunks import path_names
from frontier_mock.serving.tiers.lane import Transfer
from frontier_mock.serving.tiers.pool import Access, Reach


class _Chunk:
    __slots__ = ("readers", "reading", "writing")

    def __init__(self, writing: Transfer) -> None:
        self.writing: Transfer | None = writing
        self.reading: Transfer | None = None
        self.readers = 0


_Chunks = OrderedDict[bytes, _Chunk]


class _Marks:
    """What one request stored, reused, and found missing, by name."""

    __slots__ = ("missed", "reused", "stored")

    def __init__(self) -> None:
        self.stored: set[bytes] = set()
        self.reused: set[bytes] = set()
        self.missed: set[bytes] = set()


class ArcPool:
    """`capacity` chunks; see the theory of operation at the top of this module."""

    __slots__ = (
        "_marks",
        "capacity",
        "frequent",
        "frequent_ghosts",
        "num_held",
        "recent",
        "recent_ghosts",
        "target",
    )

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.num_held = 0
        self.target = 0.0
        self.recent: _Chunks = OrderedDict()
        self.frequent: _Chunks = OrderedDict()
        self.recent_ghosts: OrderedDict[bytes, None] = OrderedDict()
        self.frequent_ghosts: OrderedDict[bytes, None] = OrderedDict()
        self._marks: dict[Access, _Marks] = {}

    def _get(self, name: bytes) -> _Chunk | None:
        return self.recent.get(name) or self.frequent.get(name)

    def _marks_of(self, access: Access) -> _Marks:
        marks = self._marks.get(access)
        if marks is None:
            marks = self._marks[access] = _Marks()
        return marks

    def reach(self, keys: bytes, first: int, last: int) -> Reach:
        """As `LruPool.reach`."""
        chunks = 0
        pending = []
        for name in path_names(keys, last)[first:]:
            chunk = self._get(name)
            if chunk is None:
                break
            chunks += 1
            if chunk.writing is not None:
                pending.append(chunk.writing)
            if chunk.readers and chunk.reading is not None:
                pending.append(chunk.reading)
        return Reach(chunks, pending)

    def offer(
        self, keys: bytes, first: int, last: int, access: Access, transfer: Transfer
    ) -> list[tuple[int, int]] | None:
        """As `LruPool.offer`."""
        names = path_names(keys, last)
        places = [at for at in range(first, last) if self._get(names[at]) is None]
        marks = self._marks_of(access)
        for at in range(first, last):
            chunk = self._get(names[at])
            if chunk is not None and chunk.writing is None:
                access.saw(at, at + 1)
                if names[at] not in marks.stored:
                    marks.reused.add(names[at])
        missed = [names[at] for at in places if names[at] not in marks.missed]
        for name in reversed(missed):
            self._adapt(name)
        marks.missed.update(missed)
        for at in places:
            access.saw(at, at + 1)
        if not places:
            return []
        if not self._make_room(len(places), frozenset(names[first:])):
            return None
        ranges: list[tuple[int, int]] = []
        for at in places:
            name = names[at]
            self.recent[name] = _Chunk(transfer)
            self.recent_ghosts.pop(name, None)
            self.frequent_ghosts.pop(name, None)
            marks.stored.add(name)
            if ranges and ranges[-1][1] == at:
                ranges[-1] = (ranges[-1][0], at + 1)
            else:
                ranges.append((at, at + 1))
        self.num_held += len(places)
        return ranges

    def _adapt(self, name: bytes) -> None:
        """A chunk is stored again soon after it went: its list was too short."""
        recent, frequent = self.recent_ghosts, self.frequent_ghosts
        if name in recent:
            self.target = min(self.target + max(1, len(frequent) / len(recent)), self.capacity)
            recent.move_to_end(name)
        elif name in frequent:
            self.target = max(self.target - max(1, len(recent) / len(frequent)), 0)
            frequent.move_to_end(name)

    def _make_room(self, chunks: int, offered: frozenset[bytes]) -> bool:
        """As `LruPool` does."""
        short = chunks - (self.capacity - self.num_held)
        going: list[tuple[bytes, bool]] = []
        left = len(self.recent)
        recent, frequent = _idle(self.recent, offered), _idle(self.frequent, offered)
        for _ in range(short):
            name = next(recent, None) if left >= int(self.target) else None
            from_recent = name is not None
            if name is None:
                name = next(frequent, None)
            if name is None:
                name = next(recent, None)
                from_recent = True
            if name is None:
                return False
            left -= from_recent
            going.append((name, from_recent))
        for name, from_recent in going:
            chunks_of = self.recent if from_recent else self.frequent
            ghosts = self.recent_ghosts if from_recent else self.frequent_ghosts
            del chunks_of[name]
            ghosts[name] = None
        self.num_held -= len(going)
        if going:
            for ghosts in (self.recent_ghosts, self.frequent_ghosts):
                while len(ghosts) > self.capacity:
                    ghosts.popitem(last=False)
        return True

    def stored(self, transfer: Transfer) -> None:
        """As `LruPool.stored`."""
        for name in _names(transfer):
            chunk = self._get(name)
            if chunk is not None and chunk.writing is transfer:
                chunk.writing = None

    def pin(self, access: Access, transfer: Transfer) -> None:
        """As `LruPool.pin`."""
        marks = self._marks_of(access)
        for name in _names(transfer):
            chunk = self._get(name)
            assert chunk is not None
            chunk.readers += 1
            chunk.reading = transfer
            if name not in marks.stored:
                marks.reused.add(name)
        for first, last in transfer.ranges:
            access.saw(first, last)

    def unpin(self, transfer: Transfer) -> None:
        """As `LruPool.unpin`."""
        for name in _names(transfer):
            chunk = self._get(name)
            if chunk is not None and chunk.readers:
                chunk.readers -= 1

    def finish(self, keys: bytes, access: Access) -> None:
        """As `LruPool.finish`."""
        marks = self._marks.pop(access, None)
        if marks is None:
            return
        places = {at for first, last in access.seen for at in range(first, last)}
        names = path_names(keys, max(places, default=-1) + 1)
        for at in sorted(places, reverse=True):
            name = names[at]
            if name in marks.reused:
                if name in self.recent:
                    self.frequent[name] = self.recent.pop(name)
                elif name in self.frequent:
                    self.frequent.move_to_end(name)
            elif name in marks.stored:
                if name in self.recent:
                    self.recent.move_to_end(name)
                elif name in self.frequent:
                    self.frequent.move_to_end(name)

    def clear(self) -> None:
        """Forget everything, ghosts too."""
        self.recent.clear()
        self.frequent.clear()
        self.recent_ghosts.clear()
        self.frequent_ghosts.clear()
        self._marks.clear()
        self.num_held = 0
        self.target = 0.0

    def check(self) -> None:
        """Assert the pool's laws; for tests."""
        assert not self.recent.keys() & self.frequent.keys()
        assert self.num_held == len(self.recent) + len(self.frequent) <= self.capacity
        assert 0 <= self.target <= self.capacity
        ghosts = self.recent_ghosts.keys() | self.frequent_ghosts.keys()
        assert not ghosts & (self.recent.keys() | self.frequent.keys())


def _names(transfer: Transfer) -> list[bytes]:
    names = path_names(transfer.keys, max(last for _, last in transfer.ranges))
    return [name for first, last in transfer.ranges for name in names[first:last]]


def _idle(chunks: _Chunks, offered: frozenset[bytes]) -> Iterator[bytes]:
    """Those that may go, the one used longest ago first."""
    for name, chunk in chunks.items():
        if chunk.writing is None and not chunk.readers and name not in offered:
            yield name
