"""The offline driver: a source and a cluster, no clock but the calendar.

The same three verbs as every live driver uses, so there is no second code path (design rule 1).
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.core.events import Finished, Rejected
from frontier_mock.core.journal import Journal
from frontier_mock.simtime import SimTime
from frontier_mock.workload.loops import OpenLoop
from frontier_mock.workload.source import Item, Source, Timed


@dataclass(frozen=True, slots=True)
class OfflineRun:
    """What an offline run leaves behind: the cluster's log, and which request each rid was."""

    cluster: Cluster
    items: list[Item]
    """Indexed by rid."""


def run(cluster: Cluster, source: Source, journal: Journal | None = None) -> OfflineRun:
    """Play `source` on `cluster` until nothing is left to happen.

    Arrivals of one instant are fed in the source's own order. Every end, be it a finish or a
    rejection, goes back to the source at the time it happened, and what it releases is fed before
    the calendar moves on.
    """
    items: list[Item] = []
    with _collector_paused():
        if isinstance(source, OpenLoop):
            _play_open(cluster, source, items, journal)
        else:
            _play(cluster, source, items, journal)
    return OfflineRun(cluster, items)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """The engine makes millions of objects and no cycles: looking for some costs a quarter."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _play(cluster: Cluster, source: Source, items: list[Item], journal: Journal | None) -> None:
    pending = [(timed.t_ns, timed.item.seq, timed) for timed in source.initial()]
    heapify(pending)
    seen = 0
    events = cluster.log.events
    while True:
        next_ns = cluster.next_time()
        if pending and (next_ns is None or pending[0][0] < next_ns):
            timed = heappop(pending)[2]
            if journal is not None:
                journal.record(timed.t_ns, timed.submit)
            cluster.feed(timed.t_ns, timed.submit)
            items.append(timed.item)
        elif next_ns is not None:
            cluster.advance_to(next_ns)
        else:
            return
        if len(events) > seen:
            for timed in _releases(cluster, source, items, seen):
                heappush(pending, (timed.t_ns, timed.item.seq, timed))
            seen = len(events)


def _play_open(
    cluster: Cluster, source: OpenLoop, items: list[Item], journal: Journal | None
) -> None:
    """Nothing an open loop sends depends on what ended, so nobody needs to look."""
    for timed in source.initial():
        if journal is not None:
            journal.record(timed.t_ns, timed.submit)
        cluster.feed(timed.t_ns, timed.submit)
        items.append(timed.item)
    while (next_ns := cluster.next_time()) is not None:
        cluster.advance_to(next_ns)


def _releases(cluster: Cluster, source: Source, items: list[Item], seen: int) -> list[Timed]:
    """Tell the source what ended since event number `seen`; returns what that releases."""
    ended: list[tuple[SimTime, int, Item]] = []
    for event in cluster.log.events[seen:]:
        # Legs that the cluster's own router made are numbered below 0; the request ends with rid's.
        if isinstance(event, Finished | Rejected) and event.rid >= 0:
            item = items[event.rid]
            ended.append((event.t_ns, item.seq, item))
    released: list[Timed] = []
    for t_ns, _, item in sorted(ended):
        released.extend(source.on_finish(item, t_ns))
    return released


def replay(cluster: Cluster, journal: Journal) -> str:
    """Feed a journal to a fresh cluster and return the digest of its event log."""
    for stamp_ns, command in journal.entries:
        cluster.feed(stamp_ns, command)
    while (next_ns := cluster.next_time()) is not None:
        cluster.advance_to(next_ns)
    return cluster.log.digest()
