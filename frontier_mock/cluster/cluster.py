"""The cluster: workers on one calendar, behind the three verbs of the pure core.

`next_time()`, `advance_to(t)`, `feed(t, command)`: every driver, live or offline, is a loop around
these (design.md section 1). Internal events due at t always precede a command stamped t, and
deliveries from front ends precede wake-ups of the same nanosecond.
"""

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as SequenceABC
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from frontier_mock.cluster.admission import limited, refusal
from frontier_mock.cluster.encoding import Encoder, read_stored
from frontier_mock.cluster.pairing import Pairing
from frontier_mock.cluster.ranks import Ranks
from frontier_mock.cluster.routing import Router
from frontier_mock.cluster.specs import ClusterSpec
from frontier_mock.cluster.tiers import Tiers, change_storage
from frontier_mock.core.calendar import RANK_DELIVER, RANK_EXCHANGE, Calendar
from frontier_mock.core.commands import (
    AUTO_WORKER,
    Abort,
    Change,
    Command,
    Control,
    Flush,
    Resume,
    Slow,
    Storage,
    Submit,
    Transfer,
)
from frontier_mock.core.events import Controlled, EventLog, Rejected, Submitted, prefill_leg
from frontier_mock.core.words import Over, Ready, Sent
from frontier_mock.cost.protocol import EncodingCost, LockstepCost, StepCost
from frontier_mock.serving.build import build_worker
from frontier_mock.serving.lockstep import Lockstep
from frontier_mock.serving.sequence import DONE, FRONTEND, Sequence
from frontier_mock.serving.worker import Worker
from frontier_mock.simtime import SimTime, from_seconds


class Cluster:
    """A deterministic state machine over integer nanoseconds; build it with `build_cluster`."""

    def __init__(self, spec: ClusterSpec, costs: SequenceABC[StepCost]) -> None:
        self.spec = spec
        self.log = EventLog()
        self.now_ns: SimTime = 0
        self.workers = [
            build_worker(i, worker.scheduler, cost, self.log, spec.single_step)
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
        self.pairing = self._build_pairing(costs)
        self._movers: list[Pairing | Tiers] = [] if self.pairing is None else [self.pairing]
        if any(worker.scheduler.offload is not None for worker in self.workers):
            self._movers.append(Tiers(self.workers))
        self._roles = {server.start: spec.workers[server.start].role for server in self.servers}
        self._away: dict[int, None] = {}
        self._timeline = deque(spec.timeline)
        self._pairs = {"prefill", "decode"} <= {*self._roles.values()}
        self._entrance = self._pool("prefill") if self._pairs else self._generating()
        self._decode = self._pool("decode")
        self._router = self._build_router(spec.router_policy, self._entrance)
        self._decode_router = self._build_router(spec.decode_policy, self._decode)
        self._limited = [limited(worker.scheduler) for worker in spec.workers]
        self._live: dict[int, Sequence] = {}
        self._failed: set[int] = set()
        self._expected: dict[int, Sequence] = {}
        self._sweep_at = 1024
        self._next_rid = 0
        if self._timeline:
            self._calendar.exchange_at(self._timeline[0][0])
        self._frontend_ns = [
            (from_seconds(w.step.engine.frontend_s), w.step.engine.frontend_token_s * 1e9)
            for w in spec.workers
        ]

    def _engines(self, server: range) -> list[Worker]:
        return self.workers[server.start : server.stop]

    def _pool(self, role: str) -> list[range]:
        """Servers of a role that the router may use: all of them if none has stayed."""
        pool = [server for server in self.servers if self._roles[server.start] == role]
        return [server for server in pool if server.start not in self._away] or pool

    def _generating(self) -> list[range]:
        """Servers that generate, or all of them if none does."""
        made = [server for server in self.servers if self._roles[server.start] != "encoder"]
        return made or self.servers

    def _build_router(self, policy: str, servers: SequenceABC[range]) -> Router:
        return Router(policy, self.spec.seed, [self._engines(server) for server in servers])

    def _encoders(self, costs: SequenceABC[StepCost]) -> list[Encoder]:
        """The engines that encode images for the others."""
        made = []
        for number, (spec, cost) in enumerate(zip(self.spec.workers, costs, strict=True)):
            vision = spec.step.model.vision
            if spec.role == "encoder" and vision is not None and isinstance(cost, EncodingCost):
                made.append(Encoder(number, cost, 2 * vision.out_size))
        return made

    def _build_pairing(self, costs: SequenceABC[StepCost]) -> Pairing | None:
        """What moves KV and embeddings, if any engine has a connector or encodes for others."""
        specs = self.spec.workers
        encoders = self._encoders(costs)
        if all(worker.connector is None for worker in specs) and not encoders:
            return None
        names, steps = [worker.name for worker in specs], [worker.step for worker in specs]
        pairing = Pairing(self.spec.fabric, self.workers, names, steps, self.log, encoders)
        pairing.handed_on = self._hand_on
        pairing.failed_leg = self._fail_leg
        return pairing

    def _join_ranks(self, server: range, cost: StepCost) -> None:
        """Make one server of data-parallel ranks; with experts they wait for each other."""
        spec = self.spec.workers[server.start]
        if len(server) == 1:
            return
        ranks = self._engines(server)
        self._ranks[server.start] = Ranks(spec.rank_policy, ranks)
        if spec.step.parallel.dp > 1:
            drafts = spec.scheduler.speculation is not None
            Lockstep(ranks, _joint(cost), self.spec.single_step, drafts)

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
                if seq.submit.media and self._encodes_first(seq, at_ns):
                    continue
                worker.deliver(seq, at_ns, self._frontend_ns[seq.worker] == (0, 0))
                waker = worker.waker
            elif rank == RANK_EXCHANGE:
                self._exchange(at_ns)
                continue
            else:
                waker = workers[key].waker
                waker.wake(at_ns)
            calendar.wake_at(waker.index, waker.wake_ns)
            if self._movers:
                self._look_at_movers()
        self.now_ns = t_ns

    def _encodes_first(self, seq: Sequence, t_ns: SimTime) -> bool:
        """Whether a sequence waits for encoders elsewhere, or for embeddings in a store."""
        if any(item.stored for item in seq.submit.media):
            took_ns = read_stored(seq, self.spec.workers[seq.worker])
            self._calendar.deliver_at(t_ns + took_ns, seq.rid)
            return True
        pairing = self.pairing
        if pairing is None or pairing.encoders is None or not pairing.encoders.takes(seq, t_ns):
            return False
        self._look_at_movers()
        return True

    def _exchange(self, t_ns: SimTime) -> None:
        """What happens to servers, then what happens between them."""
        while self._timeline and self._timeline[0][0] <= t_ns:
            self._change(self._timeline.popleft()[1])
        for mover in self._movers:
            mover.advance(t_ns)
        self._look_at_movers()

    def _look_at_movers(self) -> None:
        """Bring the calendar up to date with what those who move KV have done, and want."""
        due = self._timeline[0][0] if self._timeline else None
        for mover in self._movers:
            for index in mover.touched:
                waker = self.workers[index].waker
                self._calendar.wake_at(waker.index, waker.wake_ns)
            mover.touched.clear()
            moves = mover.next_time()
            due = moves if due is None or (moves is not None and moves < due) else due
        self._calendar.exchange_at(due)

    def feed(self, t_ns: SimTime, command: Command) -> int:
        """Advance to `t_ns`, then apply `command`.

        Returns the rid of a Submit, whether a Flush was done (1 or 0), and -1 for other commands.
        """
        self.advance_to(t_ns)
        result = -1
        if isinstance(command, Submit):
            result = self._submit(command)
        elif isinstance(command, Abort):
            self._abort(command.rid)
            if self._pairs:
                self._abort(prefill_leg(command.rid))
        elif isinstance(command, Change):
            self._change(command)
        elif isinstance(command, Ready | Sent | Over):
            if self.pairing is not None:
                self.pairing.hear(command, t_ns)
        else:
            result = self._control(command)
        if self._movers:
            self._look_at_movers()
        return result

    def tokens(self, rid: int) -> int:
        """Output tokens that sequence `rid` has produced by now. Raises KeyError once it ended."""
        seq = self._live[rid]
        return seq.produced_by(self.workers[seq.worker].steps_by(self.now_ns)(seq))

    def token_counter(self, worker: int) -> Callable[[int], int]:
        """`tokens` for sequences of one worker, whose last step is looked up but once.

        Valid until the engine moves.
        """
        live = self._live
        last_of = self.workers[worker].steps_by(self.now_ns)

        def tokens(rid: int) -> int:
            seq = live[rid]
            return seq.produced_by(last_of(seq))

        return tokens

    def token_times_ns(self, rid: int) -> NDArray[np.int64]:
        """When each token produced so far ended its step. Raises KeyError once it ended."""
        seq = self._live[rid]
        worker = self.workers[seq.worker]
        spans = list(seq.spans)
        progress = seq.progress
        bursts = b"" if progress is None else bytes(progress.bursts)
        step = min(worker.steps_by(self.now_ns)(seq), seq.finish_step)
        if 0 < seq.first_step <= step:
            steps = step - seq.first_step + 1
            spans.append((seq.first_step, steps))
            if progress is not None:
                bursts += progress.bursts_by(steps)
        return worker.timeline.token_times_ns(spans, bursts)

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
            worker.timeline.drop_ended_by(since_ns - 1)

    def _submit(self, command: Submit) -> int:
        rid = self._next_rid
        self._next_rid = rid + 1
        index = command.worker
        if index == AUTO_WORKER:
            index = self._entrance[self._router.choose(command.prompt, self.now_ns)].start
            if self._pairs:
                self._submit_legs(command, rid, index)
                return rid
        index = self._rank(index, command)
        seq = self._accept(command, rid, index, self._refusal(command, index))
        if seq is not None:
            self._deliver(seq)
        elif command.transfer is not None and self.pairing is not None:
            self.pairing.gone(Sequence(rid, command, index), self.now_ns)
        return rid

    def _rank(self, index: int, command: Submit) -> int:
        """The engine of a server that gets `command`."""
        if self._ranks and (ranks := self._ranks.get(index)) is not None:
            return index + ranks.choose(command, self.now_ns)
        return index

    def _refusal(self, command: Submit, index: int) -> str:
        """Why an engine does not take a sequence, "" if it does."""
        worker = self.workers[index]
        if index in self._failed:
            return "failed"
        if worker.hold.refuses:
            return "paused"
        if command.prompt.num_tokens + command.output_tokens > worker.spec.max_model_len:
            return "prompt_too_long"
        if self._limited[index]:
            ranks = self._engines(self.ranks(index - self.spec.workers[index].dp_rank))
            return refusal(worker, ranks, self._live.values(), self.now_ns)
        return ""

    def _accept(self, command: Submit, rid: int, index: int, reason: str) -> Sequence | None:
        """Note a sequence's arrival, and why it is refused if it is."""
        now = self.now_ns
        prompt_tokens = command.prompt.num_tokens
        self.log.append(Submitted(now, index, rid, prompt_tokens, command.max_tokens))
        if reason:
            self.log.append(Rejected(now, index, rid, reason))
            return None
        seq = Sequence(rid, command, index)
        seq.arrived_ns = now
        self._live[rid] = seq
        if len(self._live) >= self._sweep_at:
            self._sweep()
        return seq

    def _deliver(self, seq: Sequence, earliest_ns: SimTime = 0) -> None:
        """Let a sequence pass its engine's front end from now on."""
        self.workers[seq.worker].in_frontend += 1
        base_ns, token_ns = self._frontend_ns[seq.worker]
        due_ns = self.now_ns + base_ns + round(token_ns * seq.prompt_tokens)
        self._calendar.deliver_at(max(due_ns, earliest_ns), seq.rid)

    # Two legs --------------------------------------------------------------------------------

    def _submit_legs(self, command: Submit, rid: int, server: int) -> None:
        """What a router in front of prefill and decode engines makes of one request."""
        pool = self._decode
        target = pool[self._decode_router.choose(command.prompt, self.now_ns)].start
        first, second = self._rank(server, command), self._rank(target, command)
        connector = self.spec.workers[first].connector
        assert connector is not None
        transfer = Transfer(
            f"rid {rid}",
            True,
            connector.style,
            from_seconds(connector.patience_s),
            connector.recompute,
            connector.streams,
        )
        prefill = replace(
            command, output_tokens=1, max_tokens=1, finish_reason="length", transfer=transfer
        )
        decode = replace(command, transfer=replace(transfer, sends=False))
        reason = self._refusal(prefill, first) or self._refusal(decode, second)
        sender = self._accept(prefill, prefill_leg(rid), first, reason)
        receiver = self._accept(decode, rid, second, reason)
        if sender is not None and receiver is not None:
            self._deliver(sender)
            if transfer.style != "pull":
                self._deliver(receiver)
            else:
                self.workers[second].expected += 1
                self._expected[rid] = receiver

    def _hand_on(self, leg: int, t_ns: SimTime) -> None:
        """A prefill leg has finished: its decode leg is sent on."""
        seq = self._no_longer_expected(leg)
        if seq is not None:
            self._deliver(seq, t_ns + 1)

    def _no_longer_expected(self, leg: int) -> Sequence | None:
        """The decode leg that waited for a prefill leg, if it still does."""
        seq = self._expected.pop(prefill_leg(leg), None)
        if seq is None:
            return None
        self.workers[seq.worker].expected -= 1
        return seq if seq.state == FRONTEND else None

    def _fail_leg(self, leg: int, t_ns: SimTime) -> None:
        """A prefill leg has ended otherwise: so does its decode leg, if that is still to come."""
        seq = self._no_longer_expected(leg)
        if seq is not None:
            seq.verdict = "error"
            self.workers[seq.worker].abort(seq, t_ns)

    def _abort(self, rid: int) -> None:
        seq = self._live.get(rid)
        if seq is not None:
            worker = self.workers[seq.worker]
            worker.abort(seq, self.now_ns)
            self._calendar.wake_at(worker.waker.index, worker.waker.wake_ns)

    def _change(self, change: Change) -> None:
        """Something happens to a server."""
        now, pairing, what = self.now_ns, self.pairing, change.what
        for index in self.ranks(change.worker):
            worker = self.workers[index]
            self.log.append(Controlled(now, index, -1, what))
            if what == "recover":
                self._failed.discard(index)
            elif what == "fail":
                self._failed.add(index)
                self._fail(index)
            elif change.factor is not None and pairing is not None:
                pairing.set_speed(index, change.factor, now)
            elif what == "cut" and pairing is not None:
                pairing.cut_worker(index, now)
            self._calendar.wake_at(worker.waker.index, worker.waker.wake_ns)
        if what in ("fail", "leave"):
            self._away[change.worker] = None
        elif what in ("recover", "join"):
            self._away.pop(change.worker, None)
        elif what in ("prefill", "decode"):
            self._roles[change.worker] = what
        self._reroute()

    def _fail(self, index: int) -> None:
        """Everything on an engine is lost."""
        if self.pairing is not None:
            self.pairing.break_worker(index, self.now_ns)
        for seq in list(self._live.values()):
            if seq.worker == index and seq.state != DONE:
                seq.verdict = "error"
                self.workers[index].abort(seq, self.now_ns)

    def _reroute(self) -> None:
        """The router goes by what servers are now; the last of a role keeps it."""
        if self._pairs:
            self._entrance = self._pool("prefill") or self._entrance
            self._decode = self._pool("decode") or self._decode
        else:
            servers = self._generating()
            here = [server for server in servers if server.start not in self._away]
            self._entrance = here or servers
        self._router.use([self._engines(server) for server in self._entrance])
        self._decode_router.use([self._engines(server) for server in self._decode])

    def _control(self, command: Control) -> int:
        """What is asked of a server is asked of all its ranks; it is done if all have done it."""
        results = [self._control_one(command, index) for index in self.ranks(command.worker)]
        return min(results)

    def _control_one(self, command: Control, index: int) -> int:
        now = self.now_ns
        worker = self.workers[index]
        result = -1
        if isinstance(command, Flush):
            if command.below:
                worker.flush_below(now)
            result = int(worker.flush(command.retract, now))
        elif isinstance(command, Resume):
            worker.hold.resume(now)
        elif isinstance(command, Slow):
            worker.slow(command.extra_ns, now)
        elif isinstance(command, Storage):
            result = int(change_storage(worker, command, now))
        else:
            if command.mode == "abort":
                for seq in self._live.values():
                    if seq.worker == index:
                        worker.abort(seq, now)
            worker.hold.pause(command, now, self._next_rid)
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
