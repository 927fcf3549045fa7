"""vLLM's waiting queue: first come first served, or by priority.

Source: vLLM 0.33.0, v1/core/sched/request_queue.py.
"""

from collections import deque
from collections.abc import Sized
from heapq import heapify, heappop, heappush

from frontier_mock.serving.sequence import WAITING, Sequence


class WaitingQueue:
    """Sequences that wait for admission, preempted ones included: `entries`, in whatever form."""

    __slots__ = ("_arrivals", "_by_priority", "_heap", "entries")

    def __init__(self, by_priority: bool) -> None:
        self._by_priority = by_priority
        self._arrivals: deque[Sequence] = deque()
        self._heap: list[tuple[int, int, Sequence]] = []
        self.entries: Sized = self._heap if by_priority else self._arrivals

    def append(self, seq: Sequence) -> None:
        """Put a new arrival where it belongs: by its priority, or at the end."""
        seq.state = WAITING
        if self._by_priority:
            heappush(self._heap, (seq.priority, seq.rid, seq))
        else:
            self._arrivals.append(seq)

    def put_back(self, seq: Sequence) -> None:
        """Put a sequence that had its turn where it belongs: by its priority, or in front."""
        seq.state = WAITING
        if self._by_priority:
            heappush(self._heap, (seq.priority, seq.rid, seq))
        else:
            self._arrivals.appendleft(seq)

    def head(self) -> Sequence | None:
        """Whose turn it is, if anybody's."""
        if self._by_priority:
            return self._heap[0][2] if self._heap else None
        return self._arrivals[0] if self._arrivals else None

    def pop(self) -> None:
        """Take the head out."""
        if self._by_priority:
            heappop(self._heap)
        else:
            self._arrivals.popleft()

    def remove(self, seq: Sequence) -> None:
        """Take `seq` out, wherever it is."""
        if self._by_priority:
            self._heap[:] = [entry for entry in self._heap if entry[2] is not seq]
            heapify(self._heap)
        else:
            self._arrivals.remove(seq)
