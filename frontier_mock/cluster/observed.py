"""A cluster that tells what its KV caches do, and what they could have done.

Theory of operation
1. Engines publish the changes of their cache when they take in a step's output: what was decided at
   the step's beginning, and what its end set free (vLLM 0.33 `update_from_output`; SGLang 0.5.23
   likewise, and when idle). A batch goes out before anybody can hear of that step's tokens.
2. A run of decode steps books the blocks it takes when somebody looks. While an allocation may
   evict cached blocks, the cluster therefore looks at every boundary: batches, their order and
   their stamps are those of single steps, however the cluster is driven.
3. An idle vLLM publishes nothing; what a flush cleared goes out with its next step.
4. Looking changes nothing but when a run's blocks are booked, which no event depends on.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from frontier_mock.cluster.cluster import Cluster
from frontier_mock.cluster.oracle import CacheOracle
from frontier_mock.cluster.specs import ClusterSpec
from frontier_mock.core.commands import Command, Submit
from frontier_mock.core.events import Submitted
from frontier_mock.cost.protocol import StepCost
from frontier_mock.serving.kv_recording import Change, RecordingKvCache, RecordingRadixCache
from frontier_mock.serving.worker import Worker
from frontier_mock.simtime import SimTime


class KvBatch(NamedTuple):
    """Changes that engine `worker` published at `t_ns`."""

    t_ns: SimTime
    worker: int
    changes: tuple[Change, ...]


class ObservedCluster(Cluster):
    """See the theory of operation at the top of this module.

    `on_kv` is called with every batch, in order of time. `oracle` is there if it was asked for.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        costs: Sequence[StepCost],
        *,
        on_kv: Callable[[KvBatch], None] | None,
        with_oracle: bool,
    ) -> None:
        super().__init__(spec, costs)
        self._recorded: list[_Recorded] = []
        if on_kv is not None:
            self._recorded = [
                _Recorded(worker, worker.kv, on_kv)
                for worker in self.workers
                if isinstance(worker.kv, RecordingKvCache | RecordingRadixCache)
            ]
        self.oracle: CacheOracle | None = None
        if with_oracle:
            # Where prompts are computed: decode workers get theirs from somebody else.
            servers = [
                [self.workers[i] for i in self.ranks(index)]
                for index, worker in enumerate(spec.workers)
                if worker.dp_rank == 0 and worker.role != "decode"
            ]
            self.oracle = CacheOracle(servers)

    def next_time(self) -> SimTime | None:
        """Time of the next internal event, a look at a cache among them."""
        due = super().next_time()
        for recorded in self._recorded:
            look = recorded.next_look(self.now_ns)
            if look is not None and (due is None or look < due):
                due = look
        return due

    def advance_to(self, t_ns: SimTime) -> None:
        """As `Cluster.advance_to`, looking at each cache that needs it on the way."""
        recorded = self._recorded
        if not recorded:
            super().advance_to(t_ns)
            return
        while True:
            now_ns = self.now_ns
            looks = [one.next_look(now_ns) for one in recorded]
            due = super().next_time()
            for look in looks:
                if look is not None and (due is None or look < due):
                    due = look
            if due is None or due > t_ns:
                break
            super().advance_to(due)
            if due in looks:
                for one, look in zip(recorded, looks, strict=True):
                    if look == due:
                        one.look(due)
        super().advance_to(t_ns)
        for one in recorded:
            one.rest(t_ns)

    def feed(self, t_ns: SimTime, command: Command) -> int:
        """As `Cluster.feed`, asking the oracle first."""
        oracle = self.oracle
        if oracle is None or not isinstance(command, Submit):
            result = super().feed(t_ns, command)
        else:
            self.advance_to(t_ns)
            hits = oracle.look(command, t_ns)
            before = len(self.log.events)
            result = super().feed(t_ns, command)
            for event in self.log.events[before:]:
                if isinstance(event, Submitted):
                    oracle.note(event.rid, command, hits, event.worker)
                    break
        for recorded in self._recorded:
            recorded.forget()
            recorded.rest(t_ns)
        return result


class _Recorded:
    """One engine whose cache records its changes."""

    __slots__ = ("_is_radix", "_known", "_kv", "_look_ns", "_on_kv", "_published_ns", "_worker")

    def __init__(
        self,
        worker: Worker,
        kv: RecordingKvCache | RecordingRadixCache,
        on_kv: Callable[[KvBatch], None],
    ) -> None:
        self._worker = worker
        self._kv = kv
        self._on_kv = on_kv
        self._is_radix = isinstance(kv, RecordingRadixCache)
        self._published_ns: SimTime = -1
        self._known = False
        self._look_ns: SimTime | None = None
        worker.on_output = self.publish

    def publish(self, t_ns: SimTime) -> None:
        """Hand over the changes so far: a step's output was taken in."""
        self._known = False
        self._published_ns = t_ns
        changes = self._kv.changes
        if changes:
            batch = KvBatch(t_ns, self._worker.index, tuple(changes))
            changes.clear()
            self._on_kv(batch)

    def rest(self, t_ns: SimTime) -> None:
        """Publish if the engine is one that does so when it has nothing to do, and has not."""
        if self._is_radix and self._kv.changes and self._worker.executing is None:
            self.publish(t_ns)

    def forget(self) -> None:
        """A command may have changed what the engine will do."""
        self._known = False

    def next_look(self, now_ns: SimTime) -> SimTime | None:
        """The next boundary within a run of steps at which there may be something to publish.

        It stays what it is until the engine takes in a step's output or gets a command: others who
        look into the engine before can only book blocks that evict nothing.
        """
        if not self._known:
            if self._worker.executing is None:
                return None
            self._look_ns = self._find_look(now_ns)
            self._known = True
        return self._look_ns

    def _find_look(self, now_ns: SimTime) -> SimTime | None:
        worker = self._worker
        executing = worker.executing
        if executing is None or worker.run_steps == 1:
            return None
        boundary: SimTime | None
        kv, decodes = self._kv, executing.num_decodes
        # A decode takes one block in as many steps as a block has tokens.
        most = decodes * (worker.run_steps // kv.block_tokens + 2)
        # SGLang makes room for a page per decode before it takes what the step needs.
        margin = decodes if self._is_radix else 0
        if not kv.changes and kv.blocks_before_eviction >= most + margin:
            return None
        worker.settle(now_ns)
        steps = (kv.blocks_before_eviction - margin) // decodes * kv.block_tokens
        if kv.changes or steps <= 1:
            boundary = worker.next_boundary(now_ns)
        else:
            boundary = worker.timeline.tail_boundary_ns(worker.step_ended_by(now_ns) + steps)
        wake_ns = worker.waker.wake_ns
        return boundary if boundary is not None and wake_ns and boundary < wake_ns else None

    def look(self, t_ns: SimTime) -> None:
        """The boundary at `t_ns` has passed: publish, then book what the next step takes."""
        if self._published_ns != t_ns and self._worker.executing is not None:
            self.publish(t_ns)
            self._worker.settle(t_ns)
