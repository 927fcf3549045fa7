"""Storage that several engines share: which pages are there, and what is fetched from it.

Theory of operation
1. A page is there from the end of the write that brings it on, whoever wrote it. A lookup goes page
   by page and ends with the first that is not there.
2. What one engine fetches comes one request after the other, in batches of `BATCH_PAGES` pages.
   A fetch that is given up ends with the batch that is under way; those behind it move up.
3. A pool of limited size gives up what was written or found longest ago.

Source: SGLang 0.5.23, managers/cache_controller.py and mem_cache/hicache_storage.py.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from frontier_mock.serving.radix_cache import RadixNode
from frontier_mock.serving.tiers.specs import LaneSpec
from frontier_mock.simtime import SimTime, from_seconds

BATCH_PAGES: Final = 128
"""Pages of one read (hicache_storage.py)."""


class StoragePool:
    """Pages by name, each with the time from which on it is there. `capacity` 0: without limit."""

    __slots__ = ("_pages", "capacity")

    def __init__(self) -> None:
        self.capacity = 0
        self._pages: OrderedDict[bytes, SimTime] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pages)

    def reach(self, names: Iterable[bytes], t_ns: SimTime) -> int:
        """How many of `names`, from the first on, are there at `t_ns`."""
        pages = self._pages
        count = 0
        for name in names:
            ready_ns = pages.get(name)
            if ready_ns is None or ready_ns > t_ns:
                break
            if self.capacity:
                pages.move_to_end(name)
            count += 1
        return count

    def missing(self, names: Iterable[bytes]) -> list[bytes]:
        """Those of `names` that are not there, nor on their way."""
        return [name for name in names if name not in self._pages]

    def put(self, names: Iterable[bytes], ready_ns: SimTime) -> None:
        """Take in what is there from `ready_ns` on."""
        for name in names:
            self._pages[name] = ready_ns
            if self.capacity and len(self._pages) > self.capacity:
                self._pages.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._pages.clear()


class Prefetch:
    """`keys` below `anchor`, pages `first` and on of a prompt, on their way to the host.

    `requested` pages were asked for, of which the pool had these. `deadline_ns` is -1 until
    somebody waits for it.
    """

    __slots__ = (
        "anchor",
        "deadline_ns",
        "end_ns",
        "first",
        "issued_ns",
        "keys",
        "pages",
        "requested",
        "start_ns",
    )

    def __init__(
        self, anchor: RadixNode, first: int, keys: bytes, pages: int, requested: int, t_ns: SimTime
    ) -> None:
        self.anchor = anchor
        self.first = first
        self.keys = keys
        self.pages = pages
        self.requested = requested
        self.issued_ns = self.start_ns = self.end_ns = t_ns
        self.deadline_ns: SimTime = -1


class ReadLane:
    """What one engine fetches from storage, in order; see rule 2 at the top of this module."""

    __slots__ = ("_free_ns", "_line", "_page_bytes", "_spec", "busy_ns", "num_bytes")

    def __init__(self, spec: LaneSpec, page_bytes: int) -> None:
        self._spec = spec
        self._page_bytes = page_bytes
        self._line: list[Prefetch] = []
        self._free_ns: SimTime = 0
        self.num_bytes = 0
        self.busy_ns: SimTime = 0

    def _moved_ns(self, pages: int) -> SimTime:
        seconds = self._spec.latency_s + pages * self._page_bytes / self._spec.bytes_per_s
        return max(1, from_seconds(seconds))

    def book(self, fetch: Prefetch, t_ns: SimTime) -> None:
        """Let `fetch` follow what was booked before; says when it starts and ends."""
        self._retire(t_ns)
        fetch.start_ns = max(t_ns, self._line[-1].end_ns if self._line else self._free_ns)
        fetch.end_ns = fetch.start_ns + self._moved_ns(fetch.pages)
        self._line.append(fetch)

    def _retire(self, t_ns: SimTime) -> None:
        line = self._line
        while line and line[0].end_ns <= t_ns:
            self._count(line.pop(0), -1)

    def _count(self, fetch: Prefetch, pages: int) -> None:
        """`fetch` is over, with so many pages moved, all of them if -1."""
        self._free_ns = fetch.end_ns
        self.num_bytes += (fetch.pages if pages < 0 else pages) * self._page_bytes
        self.busy_ns += fetch.end_ns - fetch.start_ns

    def done_pages(self, fetch: Prefetch, t_ns: SimTime) -> int:
        """How many pages of `fetch` are on the host by `t_ns`."""
        if t_ns >= fetch.end_ns:
            return fetch.pages
        done = 0
        for pages in range(BATCH_PAGES, fetch.pages, BATCH_PAGES):
            if fetch.start_ns + self._moved_ns(pages) > t_ns:
                break
            done = pages
        return done

    def give_up(self, fetch: Prefetch, t_ns: SimTime) -> list[SimTime]:
        """End `fetch` with the batch under way; the times at which what follows ends now."""
        self._retire(t_ns)
        if fetch not in self._line:
            return []
        at = self._line.index(fetch)
        del self._line[at]
        if fetch.start_ns >= t_ns:
            free_ns = self._line[at - 1].end_ns if at else self._free_ns
        else:
            pages = min(fetch.pages, self.done_pages(fetch, t_ns) + BATCH_PAGES)
            fetch.end_ns = fetch.start_ns + self._moved_ns(pages)
            self._count(fetch, pages)
            free_ns = fetch.end_ns
        ends: list[SimTime] = []
        for later in self._line[at:]:
            later.start_ns = max(later.issued_ns, free_ns)
            later.end_ns = free_ns = later.start_ns + self._moved_ns(later.pages)
            ends.append(free_ns)
        return ends

    def settle(self, t_ns: SimTime) -> None:
        """Count what has ended by `t_ns`."""
        self._retire(t_ns)
