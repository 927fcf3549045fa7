"""The tiers under engines' GPUs (`serving.tiers`) on the cluster's clock. PURE."""

from collections.abc import Sequence
from heapq import heappop

from frontier_mock.core.commands import Storage
from frontier_mock.serving.sequence import RECEIVING
from frontier_mock.serving.tiers.storage import StoragePool
from frontier_mock.serving.tiers.stored_radix import StoredRadixCache
from frontier_mock.serving.worker import Worker
from frontier_mock.simtime import SimTime


class Tiers:
    """Tells engines of what has come from their tiers, and lets them share storage.

    `touched` collects the engines whose next wake-up may have moved, for the cluster to look at.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.touched: list[int] = []
        self._workers = workers
        self._due: list[tuple[SimTime, int]] = []
        for worker in workers:
            tier = worker.scheduler.offload
            if tier is not None:
                tier.alarms, tier.owner = self._due, worker.index
        self._share_storage()

    def _share_storage(self) -> None:
        """Give one pool to the engines that name the same."""
        pools: dict[str, StoragePool] = {}
        for worker in self._workers:
            tier = worker.scheduler.offload
            if isinstance(tier, StoredRadixCache):
                tier.pool = pools.setdefault(tier.storage.pool, tier.pool)
                tier.pool.capacity += tier.storage.contributed_pages

    def next_time(self) -> SimTime | None:
        """When something ends that a sequence waits for."""
        return self._due[0][0] if self._due else None

    def advance(self, t_ns: SimTime) -> None:
        """Let what is due by `t_ns` happen, engine by engine."""
        due: dict[int, None] = {}
        while self._due and self._due[0][0] <= t_ns:
            due[heappop(self._due)[1]] = None
        for index in due:
            worker = self._workers[index]
            tier = worker.scheduler.offload
            assert tier is not None
            loaded, again = tier.advance(t_ns)
            for seq in loaded:
                # It may have been aborted since.
                if seq.state == RECEIVING:
                    worker.received(seq, t_ns)
            worker.ask_again(again, t_ns)
            self.touched.append(index)


def change_storage(worker: Worker, command: Storage, t_ns: SimTime) -> bool:
    """Do what `command` says at `t_ns`; False if `worker` has nothing behind a host tier."""
    worker.settle(t_ns)
    tier = worker.scheduler.offload
    if not isinstance(tier, StoredRadixCache):
        return False
    tier.change(command.verb, command.policy)
    return True
