"""The cluster: workers on one calendar, behind the three verbs of the pure core.

`next_time()`, `advance_to(t)`, `feed(t, command)`: every driver, live or offline, is a loop around
these (design.md section 1). Internal events due at t always precede a command stamped t, and
deliveries from front ends precede wake-ups of the same nanosecond.
"""

from collections.abc import Callable
from collections.abc import Sequence as SequenceABC

import numpy as np
from numpy.typing import NDArray

from frontier_mock.cluster.admission import limited, refusal
from frontier_mock.cluster.ranks import Ranks
from frontier_mock.cluster.routing import Router
from frontier_mock.cluster.specs import ClusterSpec
from frontier_mock.core.calendar import RANK_DELIVER, Calendar
from frontier_mock.core.commands import (
    AUTO_WORKER,
    Abort,
    Command,
    Flush,
    Pause,
    Resume,
    Submit,
)
from frontier_mock.core.events import EventLog, Rejected, Submitted
from frontier_mock.cost.protocol import LockstepCost, StepCost
from frontier_mock.serving.lockstep import Lockstep
from frontier_mock.serving.sequence import DONE, Sequence
from frontier_mock.serving.worker import Worker
from frontier_mock.simtime import SimTime, from_seconds


class Cluster:
    """A deterministic state machine over integer nanoseconds; build it with `build_cluster`."""

    def __init__(self, spec: ClusterSpec, costs: SequenceABC[StepCost]) -> None:
        self.spec = spec
        self.log = EventLog()
        self.now_ns: SimTime = 0
        self.workers = [
            Worker(i, worker.scheduler, cost, self.log, spec.single_step)
            for i, (worker, cost) in enumerate(zip(spec.workers, costs, strict=True))
        ]
        self._calendar = Calendar(len(self.workers))
        self.servers = [
            range(i, i + worker.dp_size)
            for i, worker in enumerate(spec.workers)
            if worker.dp_rank == 0
        ]
        self._ranks: dict[int, Ranks] = {}
        for server in self.servers:
            self._join_ranks(server, costs[server.start])
        self._router = Router(
            spec.router_policy, spec.seed, [self._engines(server) for server in self.servers]
        )
        self._limited = [limited(worker.scheduler) for worker in spec.workers]
        self._live: dict[int, Sequence] = {}
        self._sweep_at = 1024
        self._next_rid = 0
        self._frontend_ns = [
            (from_seconds(w.step.engine.frontend_s), w.step.engine.frontend_token_s * 1e9)
            for w in spec.workers
        ]

    def _engines(self, server: range) -> list[Worker]:
        return self.workers[server.start : server.stop]

    def _join_ranks(self, server: range, cost: StepCost) -> None:
        """Make one server of data-parallel ranks; with experts they wait for each other."""
        spec = self.spec.workers[server.start]
        if len(server) == 1:
            return
        ranks = self._engines(server)
        self._ranks[server.start] = Ranks(spec.rank_policy, ranks)
        if spec.step.parallel.dp > 1:
            Lockstep(ranks, _joint(cost), self.spec.single_step)

    def ranks(self, worker: int) -> range:
        """The engines of the server whose first engine is `worker`, itself among them."""
        return range(worker, worker + self.spec.workers[worker].dp_size)

    def next_time(self) -> SimTime | None:
        """Time of the next internal event, or None when nothing is left to happen."""
        return self._calendar.next_time()

    def next_boundary(self, worker: int) -> SimTime | None:
        """End of the step that `worker` executes now, strictly later than now; None if idle."""
        return self.workers[worker].next_boundary(self.now_ns)

    def advance_to(self, t_ns: SimTime) -> None:
        """Process every internal event due at or before `t_ns`. Raises ValueError for the past."""
        if t_ns < self.now_ns:
            raise ValueError(f"cannot go back from {self.now_ns} ns to {t_ns} ns")
        calendar = self._calendar
        workers = self.workers
        live = self._live
        while (entry := calendar.pop_until(t_ns)) is not None:
            at_ns, rank, key = entry
            self.now_ns = at_ns
            if rank == RANK_DELIVER:
                seq = live[key]
                worker = workers[seq.worker]
                worker.deliver(seq, at_ns, self._frontend_ns[seq.worker] == (0, 0))
                waker = worker.waker
            else:
                waker = workers[key].waker
                waker.wake(at_ns)
            calendar.wake_at(waker.index, waker.wake_ns)
        self.now_ns = t_ns

    def feed(self, t_ns: SimTime, command: Command) -> int:
        """Advance to `t_ns`, then apply `command`.

        Returns the rid of a Submit, whether a Flush was done (1 or 0), and -1 for other commands.
        """
        self.advance_to(t_ns)
        if isinstance(command, Submit):
            return self._submit(command)
        if isinstance(command, Abort):
            self._abort(command.rid)
            return -1
        return self._control(command)

    def tokens(self, rid: int) -> int:
        """Output tokens that sequence `rid` has produced by now. Raises KeyError once it ended."""
        seq = self._live[rid]
        return seq.produced_by(self.workers[seq.worker].step_ended_by(self.now_ns))

    def token_counter(self, worker: int) -> Callable[[int], int]:
        """`tokens` for sequences of one worker, whose last step is looked up but once.

        Valid until the engine moves.
        """
        live = self._live
        step = self.workers[worker].step_ended_by(self.now_ns)
        return lambda rid: live[rid].produced_by(step)

    def token_times_ns(self, rid: int) -> NDArray[np.int64]:
        """When each token produced so far ended its step. Raises KeyError once it ended."""
        seq = self._live[rid]
        worker = self.workers[seq.worker]
        spans = list(seq.spans)
        step = min(worker.step_ended_by(self.now_ns), seq.finish_step)
        if 0 < seq.first_step <= step:
            spans.append((seq.first_step, step - seq.first_step + 1))
        return worker.timeline.token_times_ns(spans)

    def trim(self) -> None:
        """Forget the step boundaries that no unfinished sequence needs, for servers that run long.

        After this `token_times_ns` and reports know nothing of sequences that have finished.
        """
        needed_ns = [self.now_ns] * len(self.workers)
        for seq in self._live.values():
            first = seq.spans[0][0] if seq.spans else seq.first_step
            if first and seq.state != DONE:
                first_ns = self.workers[seq.worker].timeline.boundary_ns(first)
                needed_ns[seq.worker] = min(needed_ns[seq.worker], first_ns)
        for worker, since_ns in zip(self.workers, needed_ns, strict=True):
            worker.timeline.drop_before(worker.timeline.last_step_ended_by(since_ns - 1))

    def _submit(self, command: Submit) -> int:
        rid = self._next_rid
        self._next_rid = rid + 1
        index = command.worker
        if index == AUTO_WORKER:
            index = self.servers[self._router.choose(command.prompt, self.now_ns)].start
        if self._ranks and (ranks := self._ranks.get(index)) is not None:
            index += ranks.choose(command, self.now_ns)
        worker = self.workers[index]
        spec = worker.spec
        now = self.now_ns
        prompt_tokens = command.prompt.num_tokens
        self.log.append(Submitted(now, index, rid, prompt_tokens, command.max_tokens))
        if worker.refuses:
            self.log.append(Rejected(now, index, rid, "paused"))
            return rid
        if prompt_tokens + command.output_tokens > spec.max_model_len:
            self.log.append(Rejected(now, index, rid, "prompt_too_long"))
            return rid
        if self._limited[index]:
            engines = self._engines(self.ranks(index - self.spec.workers[index].dp_rank))
            reason = refusal(worker, engines, self._live.values(), now)
            if reason:
                self.log.append(Rejected(now, index, rid, reason))
                return rid
        seq = Sequence(rid, command, index)
        self._live[rid] = seq
        worker.in_frontend += 1
        base_ns, token_ns = self._frontend_ns[index]
        self._calendar.deliver_at(now + base_ns + round(token_ns * prompt_tokens), rid)
        if len(self._live) >= self._sweep_at:
            self._sweep()
        return rid

    def _abort(self, rid: int) -> None:
        seq = self._live.get(rid)
        if seq is not None:
            worker = self.workers[seq.worker]
            worker.abort(seq, self.now_ns)
            self._calendar.wake_at(worker.waker.index, worker.waker.wake_ns)

    def _control(self, command: Pause | Resume | Flush) -> int:
        """What is asked of a server is asked of all its ranks; it is done if all have done it."""
        results = [self._control_one(command, index) for index in self.ranks(command.worker)]
        return min(results)

    def _control_one(self, command: Pause | Resume | Flush, index: int) -> int:
        now = self.now_ns
        worker = self.workers[index]
        result = -1
        if isinstance(command, Flush):
            result = int(worker.flush(command.retract, now))
        elif isinstance(command, Resume):
            worker.resume(now)
        else:
            if command.mode == "abort":
                for seq in self._live.values():
                    if seq.worker == index:
                        worker.abort(seq, now)
            worker.pause(command, now, self._next_rid)
        self._calendar.wake_at(worker.waker.index, worker.waker.wake_ns)
        return result

    def _sweep(self) -> None:
        """Forget ended sequences, at a cost that is constant per submission."""
        done = [rid for rid, seq in self._live.items() if seq.state == DONE]
        for rid in done:
            del self._live[rid]
        self._sweep_at = max(1024, 2 * len(self._live))


def _joint(cost: StepCost) -> LockstepCost:
    """`cost`, which must price joint steps. Raises ValueError if it does not."""
    if not isinstance(cost, LockstepCost):
        raise ValueError("these ranks step together, and their cost model prices single ranks only")
    return cost
