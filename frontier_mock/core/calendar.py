"""The calendar: what happens next, in a total order that nothing accidental can change.

Entries are ordered by (time, rank, key): rank separates kinds of event that fall on the same
nanosecond (deliveries before wake-ups, so that a scheduler sees what arrived at that instant), key
is the caller's own number within a rank (a worker's index, a request's number). Two entries that
agree on all three are the same event, so no tie is left to chance.
"""

from heapq import heappop, heappush

from frontier_mock.simtime import SimTime

RANK_DELIVER = 0
"""A request leaves a worker's front end and reaches its scheduler."""

RANK_EXCHANGE = 1
"""KV moves, somebody has waited long enough for it, or something happens to a server."""

RANK_WAKE = 2
"""A worker reaches the step boundary it asked to be woken at."""


class Calendar:
    """A priority queue of deliveries and of at most one pending wake-up per worker.

    The exchange between workers, if there is one, has one pending wake-up of its own.
    """

    __slots__ = ("_exchange", "_heap", "_wakes")

    def __init__(self, num_workers: int) -> None:
        self._heap: list[tuple[SimTime, int, int]] = []
        self._wakes: list[SimTime | None] = [None] * num_workers
        self._exchange: SimTime | None = None

    def deliver_at(self, t_ns: SimTime, rid: int) -> None:
        """Enter a delivery of sequence `rid`."""
        heappush(self._heap, (t_ns, RANK_DELIVER, rid))

    def wake_at(self, worker: int, t_ns: SimTime | None) -> None:
        """Replace the worker's pending wake-up; None cancels it."""
        if self._wakes[worker] != t_ns:
            self._wakes[worker] = t_ns
            if t_ns is not None:
                heappush(self._heap, (t_ns, RANK_WAKE, worker))

    def exchange_at(self, t_ns: SimTime | None) -> None:
        """Replace the exchange's pending wake-up; None cancels it."""
        if self._exchange != t_ns:
            self._exchange = t_ns
            if t_ns is not None:
                heappush(self._heap, (t_ns, RANK_EXCHANGE, 0))

    def next_time(self) -> SimTime | None:
        """Time of the earliest entry, or None."""
        heap = self._heap
        wakes = self._wakes
        while heap:
            t_ns, rank, key = heap[0]
            if rank == RANK_DELIVER:
                return t_ns
            if (self._exchange if rank == RANK_EXCHANGE else wakes[key]) == t_ns:
                return t_ns
            heappop(heap)
        return None

    def pop_until(self, t_ns: SimTime) -> tuple[SimTime, int, int] | None:
        """Remove and return the earliest entry due at or before `t_ns`, or None."""
        heap = self._heap
        wakes = self._wakes
        while heap and heap[0][0] <= t_ns:
            entry = heappop(heap)
            if entry[1] == RANK_DELIVER:
                return entry
            if entry[1] == RANK_EXCHANGE:
                if self._exchange == entry[0]:
                    self._exchange = None
                    return entry
            elif wakes[entry[2]] == entry[0]:
                wakes[entry[2]] = None
                return entry
        return None
