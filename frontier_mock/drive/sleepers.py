"""Who waits for a time. PURE."""

from heapq import heappop, heappush
from typing import Generic

from frontier_mock.drive.leases import Actor, State, TokenT
from frontier_mock.simtime import SimTime


class Sleepers(Generic[TokenT]):
    """Actors, and others without a lease, by the time that each waits for.

    An actor that has been woken otherwise stays in the heap until its time, and is passed over.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[SimTime, str, int, Actor | None, TokenT]] = []

    def add(self, until_ns: SimTime, serial: int, actor: Actor | None, token: TokenT) -> None:
        """`serial` is the actor's, and grows with every call."""
        name = "" if actor is None else actor.name
        heappush(self._heap, (until_ns, name, serial, actor, token))

    def next_ns(self) -> SimTime | None:
        """The earliest time that anybody waits for."""
        heap = self._heap
        while heap:
            until_ns, _, serial, actor, _ = heap[0]
            if actor is None or _sleeps(actor, serial):
                return until_ns
            heappop(heap)
        return None

    def pop_due(self, now_ns: SimTime) -> list[tuple[Actor | None, TokenT]]:
        """Those whose time has come, in order."""
        heap = self._heap
        due = []
        while heap and heap[0][0] <= now_ns:
            _, _, serial, actor, token = heappop(heap)
            if actor is None or _sleeps(actor, serial):
                due.append((actor, token))
        return due

    def tokens_of(self, actor: Actor | None) -> list[TokenT]:
        """What an actor sleeps with; of None, what those without a lease do."""
        return [
            token
            for _, _, serial, sleeper, token in self._heap
            if sleeper is actor and (actor is None or _sleeps(actor, serial))
        ]

    def clear(self) -> None:
        """Forget everybody."""
        self._heap.clear()


def _sleeps(actor: Actor, serial: int) -> bool:
    return actor.serial == serial and actor.state is State.SLEEPING
