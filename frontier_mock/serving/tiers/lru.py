"""A tier that gives up what was used longest ago, as vLLM's CPU tier does; by runs of chunks.

Theory of operation
1. A chunk's rank is that of the request that used it last, and within a request the tail of the
   prompt goes first. A request has a provisional rank from its first access on; when it ends, all
   that it saw gets a new one. So the order is (rank, depth downwards), and runs are enough.
2. What is being written or read never goes, nor what is offered in the same breath. Room is made
   for all that is to be stored, or for nothing.
3. The heap has an entry for every run that may go; one whose run has changed since is out of date
   and is dropped when it comes up.

Source: vLLM 0.33.0, v1/kv_offload/cpu/manager.py and cpu/policies/lru.py.
"""

from heapq import heapify, heappop, heappush

from frontier_mock.serving.tiers.lane import Transfer
from frontier_mock.serving.tiers.pool import Access, Reach
from frontier_mock.serving.tiers.runs import Run, RunTree


class LruPool(RunTree):
    """`capacity` chunks. `num_held` of them hold something, `num_idle` of those may go."""

    __slots__ = ("_guard", "_heap", "_rank", "_serial", "capacity", "num_held", "num_idle")

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.num_held = 0
        self.num_idle = 0
        self._rank = 0
        self._guard = 0
        self._serial = 0
        self._heap: list[tuple[int, int, int, Run]] = []

    def reach(self, keys: bytes, first: int, last: int) -> Reach:
        """How many chunks of `keys` from `first` on are here, to `last` at most."""
        chunks = 0
        pending: list[Transfer] = []
        for run, at in self.walk(keys, last):
            if at <= first:
                continue
            if not run.held:
                break
            if run.writing is not None:
                pending.append(run.writing)
            if run.readers and run.reading is not None:
                pending.append(run.reading)
            chunks = at - first
        return Reach(chunks, pending)

    def offer(
        self, keys: bytes, first: int, last: int, access: Access, transfer: Transfer
    ) -> list[tuple[int, int]] | None:
        """Take in chunks `first` to `last` of `keys`, which `transfer` will bring.

        Returns those that were not here yet, as ranges; None if no room can be made for them.
        """
        runs = self.between(keys, first, last)
        present = sum(run.count for run in runs if run.held)
        missing = last - first - present
        ready = [run for run in runs if run.held and run.writing is None]
        if missing or ready:
            self._begin(access)
        for run in ready:
            self._touch(run, access.rank)
            access.saw(run.end - run.count, run.end)
        if not missing:
            return []
        # Seen is what it wanted to store, whether or not there is room.
        at = first
        for run in runs:
            if not run.held:
                access.saw(run.end - run.count, run.end)
            at = run.end
        if at < last:
            access.saw(at, last)
        if not self._make_room(missing, runs):
            return None
        return self._fill(keys, first, last, access, transfer)

    def _fill(
        self, keys: bytes, first: int, last: int, access: Access, transfer: Transfer
    ) -> list[tuple[int, int]]:
        """Hold what of the range is not held yet."""
        runs = self.between(keys, first, last)
        end = runs[-1].end if runs else first
        if end < last:
            runs.append(self.extend(keys, end, last))
        new: list[tuple[int, int]] = []
        for run in runs:
            if run.held:
                continue
            run.held = True
            run.writing = transfer
            run.rank = access.rank
            self.num_held += run.count
            new.append((run.end - run.count, run.end))
        return new

    def stored(self, transfer: Transfer) -> None:
        """What `transfer` was to bring is here."""
        for first, last in transfer.ranges:
            for run in self.between(transfer.keys, first, last):
                if run.writing is transfer:
                    run.writing = None
                    self._settle(run)

    def pin(self, access: Access, transfer: Transfer) -> None:
        """Keep what `transfer` fetches, all of which is here, until `unpin`."""
        self._begin(access)
        for first, last in transfer.ranges:
            for run in self.between(transfer.keys, first, last):
                if run.idle:
                    self.num_idle -= run.count
                run.readers += 1
                run.reading = transfer
                self._touch(run, access.rank)
            access.saw(first, last)

    def unpin(self, transfer: Transfer) -> None:
        """What `transfer` was to fetch is fetched."""
        for first, last in transfer.ranges:
            for run in self.between(transfer.keys, first, last):
                # After `clear` something else may be here.
                if run.readers:
                    run.readers -= 1
                    self._settle(run)

    def finish(self, keys: bytes, access: Access) -> None:
        """The request is over: all that it saw is the latest used, the head of it latest."""
        if not access.seen:
            return
        self._rank += 1
        for first, last in access.seen:
            for run in self.between(keys, first, last):
                if run.held:
                    self._touch(run, self._rank)

    def clear(self) -> None:
        """Forget everything, whatever is on its way."""
        super().clear()
        self._heap.clear()
        self.num_held = self.num_idle = 0

    def split(self, run: Run, chunks: int) -> Run:
        """As `RunTree.split`; the new run may go when the old one may."""
        top = super().split(run, chunks)
        if top.idle:
            self._push(top)
        return top

    def check(self) -> None:
        """Assert the laws of tree and heap; for tests, not speed."""
        held = idle = runs = 0
        listed = {(entry[3], entry[0], entry[1]) for entry in self._heap}
        walk = list(self.root.children.values())
        while walk:
            run = walk.pop()
            runs += 1
            assert run.end - run.count == run.parent.end
            assert run.count * 8 == len(run.keys) > 0
            assert run.held or run.children
            assert run.held or not (run.readers or run.writing)
            held += run.count * run.held
            if run.idle:
                idle += run.count
                assert (run, run.rank, -run.end) in listed
            walk.extend(run.children.values())
        assert (held, idle, runs) == (self.num_held, self.num_idle, self.num_runs)
        assert held <= self.capacity

    def _begin(self, access: Access) -> None:
        """Give a request its provisional rank, if it has none."""
        if not access.rank:
            self._rank += 1
            access.rank = self._rank

    def _touch(self, run: Run, rank: int) -> None:
        if run.rank < rank:
            run.rank = rank
            if run.idle:
                self._push(run)

    def _settle(self, run: Run) -> None:
        """`run` may go from now on, unless something else moves it."""
        if run.idle:
            self.num_idle += run.count
            self._push(run)

    def _push(self, run: Run) -> None:
        self._serial += 1
        heap = self._heap
        heappush(heap, (run.rank, -run.end, self._serial, run))
        if len(heap) > 64 + 4 * self.num_runs:
            heap[:] = [entry for entry in heap if _current(entry)]
            heapify(heap)

    def _make_room(self, chunks: int, offered: list[Run]) -> bool:
        """Give up so many chunks, none of them `offered`, that `chunks` are free; or nothing."""
        short = chunks - (self.capacity - self.num_held)
        if short <= 0:
            return True
        if short > self.num_idle - sum(run.count for run in offered if run.idle):
            return False
        self._guard += 1
        for run in offered:
            run.guard = self._guard
        kept = []
        heap = self._heap
        while short:
            entry = heappop(heap)
            if not _current(entry):
                continue
            run = entry[3]
            if run.guard == self._guard:
                kept.append(entry)
                continue
            if run.count > short:
                self.split(run, run.count - short)
            short -= run.count
            run.held = False
            self.num_held -= run.count
            self.num_idle -= run.count
            self.prune(run)
        for entry in kept:
            heappush(heap, entry)
        return True


def _current(entry: tuple[int, int, int, Run]) -> bool:
    rank, end, _, run = entry
    return run.idle and run.rank == rank and run.end == -end
