"""One engine instance: a scheduler, its KV cache, the price of its steps, and its step clock.

Theory of operation.

Rule 1. The worker only ever acts at step boundaries, and at arrivals while idle. `wake` is called
        at `wake_ns`; everything else just records a wish for the next boundary.
Rule 2. The pipeline holds the executing step and, with async scheduling, the one already decided
        behind it (depth 2). At the boundary after step k the scheduler decides step k + depth.
Rule 3. If the executing step and all those behind it are the same pure decode, and the scheduler
        says nothing can change before step K, the worker sleeps until K: a macro-step. Whatever
        arrives earlier cuts the run at the first boundary that has not passed.
Rule 4. A step that only computes prompts while the decodes wait (SGLang) is a pause in the line of
        decode steps: it is executed like any other but does not advance the step number.
Rule 5. Step ends come from the timeline's closed form. A segment goes on while the decode batch and
        the cost line stay the same, however the run was cut, so stepping one by one and stepping by
        thousands give the same nanoseconds (the macro-step law of design.md section 3).
Rule 6. Ranks of attention data parallelism step together (`serving.lockstep`): whoever of them is
        cut or woken, all are, at the boundary they share.
Rule 7. What keeps the worker from deciding, or from letting arrivals in, is its `Hold`; it is told
        whenever nothing is executed any more.
Rule 8. Of a prompt that is computed on one engine and decoded on another, the worker tells the
        exchange (`serving.remote_kv`), whose answers come like arrivals, between boundaries.
"""

from collections.abc import Callable

from frontier_mock.core.events import Controlled, EventLog, Finished, Queued
from frontier_mock.cost.protocol import EncodingCost, RankBatch, StepCost
from frontier_mock.cost.slowed import slowed
from frontier_mock.serving.gauges import Gauges
from frontier_mock.serving.hold import Hold
from frontier_mock.serving.remote_kv import Exchange
from frontier_mock.serving.schedulers.build import build_scheduler
from frontier_mock.serving.schedulers.protocol import Step
from frontier_mock.serving.sequence import DONE, FRONTEND, SENDING, Sequence
from frontier_mock.serving.specs import AnySchedulerSpec
from frontier_mock.serving.speculation import drafted
from frontier_mock.serving.step_log import StepRun
from frontier_mock.serving.timeline import Timeline
from frontier_mock.serving.wakers import Group, Waker
from frontier_mock.simtime import SimTime


class Worker:
    """See the theory of operation at the top of this module."""

    def __init__(
        self,
        index: int,
        spec: AnySchedulerSpec,
        cost: StepCost,
        log: EventLog,
        single_step: bool = False,
    ) -> None:
        self.index = index
        self.spec = spec
        self.scheduler, self.kv = build_scheduler(spec, log, index)
        self.timeline = Timeline()
        self.wake_ns: SimTime | None = None
        self.group: Group | None = None
        self.waker: Waker = self
        """Who has to be woken at the next boundary: the group, if there is one."""
        self.step_log: list[StepRun] | None = None
        """Give it a list before the first step, and it gets every run of steps."""
        self.in_frontend = 0
        self.expected = 0
        """Sequences whose prompt is being computed elsewhere, and that will come then."""
        self.on_output: Callable[[SimTime], None] | None = None
        self._true_cost = self._cost = cost
        self._log = log
        self._single_step = single_step
        self._async = spec.async_scheduling
        self._step = 0
        self._run_end = 0
        self._run_finish = 0
        self._executing: Step | None = None
        self._queued: Step | None = None
        self._queued_for = 0
        self._aborts: list[Sequence] = []
        self._segment: tuple[int, int, int] = (0, 0, 0)
        self._busy_since: SimTime = 0
        self._busy_ns: SimTime = 0
        self.hold = Hold(self, log)

    # What others ask for ---------------------------------------------------------------------

    def deliver(self, seq: Sequence, t_ns: SimTime, at_once: bool = False) -> None:
        """The front end hands over a sequence; a boundary at `t_ns` may still follow.

        `at_once`: the front end takes no time, so the command itself was fed at `t_ns`, after every
        boundary of that instant.
        """
        self.in_frontend -= 1
        if self.hold.draining and self.hold.keeps_out(seq, t_ns):
            return
        if seq.state == DONE:
            return
        self.enter(seq, t_ns, at_once)

    def enter(self, seq: Sequence, t_ns: SimTime, at_once: bool) -> None:
        """Take a sequence from the front end into the scheduler's queue."""
        self._log.append(Queued(t_ns, self.index, seq.rid))
        if seq.transfer is not None:
            if self.exchange is None:
                seq.transfer = None
            elif not self.exchange.arrives(seq, t_ns):
                return
        self.admit(seq, t_ns, at_once)

    def admit(self, seq: Sequence, t_ns: SimTime, at_once: bool = False) -> None:
        """Put a sequence into the scheduler's queue."""
        scheduler = self.scheduler
        if self._executing is None:
            scheduler.enqueue(seq, t_ns)
            if not self.hold.frozen:
                self.wake_idle(t_ns + at_once if self.group is not None else t_ns)
            return
        step = self._reach(t_ns + at_once)
        scheduler.enqueue(seq, t_ns)
        if not scheduler.blocked:
            self._cut(step)

    def abort(self, seq: Sequence, t_ns: SimTime) -> None:
        """Stop a sequence at the first boundary after `t_ns`; at once if no step can hold it."""
        if seq.state == DONE:
            return
        if seq.state == SENDING:
            self._tell_gone(seq, t_ns)
            seq.verdict = seq.verdict or "abort"
            self.release(seq, t_ns, failed=True)
            return
        if seq.state == FRONTEND or self._executing is None:
            self._drop(seq, self._step, t_ns)
            if self._executing is None and self.scheduler.num_waiting and not self.hold.frozen:
                # Others may have waited for the blocks of one that was waiting for its KV.
                self.wake_idle(t_ns)
            return
        step = self._reach(t_ns + 1)
        self._aborts.append(seq)
        self._cut(step)

    # What comes of a transfer ------------------------------------------------------------------

    @property
    def exchange(self) -> Exchange | None:
        """Who moves KV between this engine and others."""
        return self.scheduler.exchange

    @exchange.setter
    def exchange(self, exchange: Exchange) -> None:
        self.scheduler.exchange = exchange

    def received(self, seq: Sequence, t_ns: SimTime) -> None:
        """The KV of a waiting sequence's prompt is here."""
        if self._executing is None:
            self.scheduler.received(seq, self._step)
            if not self.hold.frozen:
                self.wake_idle(t_ns)
            return
        step = self._reach(t_ns)
        self.scheduler.received(seq, step)
        self._cut(step)

    def ask_again(self, seqs: list[Sequence], t_ns: SimTime) -> None:
        """What waiting sequences stood aside for, by name or not, has ended."""
        executing = self._executing is not None
        step = self._reach(t_ns) if executing else 0
        self.scheduler.ask_again(seqs, t_ns)
        if executing:
            self._cut(step)
        elif self.scheduler.num_live and not self.hold.frozen:
            self.wake_idle(t_ns)

    def release(self, seq: Sequence, t_ns: SimTime, failed: bool = False) -> None:
        """Nobody needs the blocks any more that `seq` has kept."""
        scheduler = self.scheduler
        executing = self._executing is not None
        step = self._reach(t_ns) if executing else 0
        scheduler.unpin(seq)
        if seq.state == SENDING:
            seq.state = DONE
            if failed and not seq.verdict:
                seq.verdict = "error"
            self._finish(seq, seq.submit.finish_reason, t_ns)
        if executing:
            if scheduler.num_waiting:
                self._cut(step)
        elif scheduler.num_waiting and not self.hold.frozen:
            self.wake_idle(t_ns)

    def lost(self, seq: Sequence, t_ns: SimTime) -> None:
        """What `seq` waited for on the other side of its transfer will not come."""
        transfer = seq.transfer
        if seq.state == DONE or transfer is None:
            return
        if transfer.recompute and not transfer.sends:
            self._recompute(seq, t_ns)
        else:
            seq.verdict = "error"
            self.abort(seq, t_ns)

    def _recompute(self, seq: Sequence, t_ns: SimTime) -> None:
        """Let the engine compute a prompt that did not come."""
        if seq.state == FRONTEND:
            seq.transfer = seq.submit.onward
            return
        executing = self._executing is not None
        step = self._reach(t_ns) if executing else 0
        self.scheduler.lost(seq, t_ns)
        if executing:
            self._cut(step)
        elif not self.hold.frozen:
            self.wake_idle(t_ns)

    def _tell_gone(self, seq: Sequence, t_ns: SimTime) -> None:
        if seq.transfer is not None and self.exchange is not None:
            self.exchange.gone(seq, t_ns)

    def _reach(self, t_ns: SimTime) -> int:
        """The step of the present run that `t_ns` falls into: the first to end then or later.

        Crosses, for the scheduler, the boundaries before it.
        """
        step = self._run_end
        if step > self._step + 1:
            step = min(step, self.timeline.first_tail_step_ending_at_or_after(t_ns))
            if step > self._step + 1:
                self._catch_up(step)
            else:
                step = self._step + 1
        return step

    def _cut(self, step: int) -> None:
        """Shorten the present run so that it ends with `step`."""
        if step >= self._run_end:
            return
        if self.group is None:
            self.shorten(step - self._step)
        else:
            self.group.shorten(step - self._step)

    def wake_idle(self, t_ns: SimTime) -> None:
        """There is something to do from `t_ns` on, and no step is executing."""
        if self.group is None:
            self.wake_ns = t_ns
        else:
            self.group.wake_idle(t_ns)

    def step_ended_by(self, t_ns: SimTime) -> int:
        """Number of the last step that ended at or before `t_ns`."""
        if self._executing is None or t_ns >= (self.wake_ns or 0):
            return self._step if self._executing is None else self._run_end
        return max(self._step, self.timeline.last_step_ended_by(t_ns))

    def steps_by(self, t_ns: SimTime) -> Callable[[Sequence], int]:
        """What a sequence would call the last step that ended at or before `t_ns`."""
        step = self.step_ended_by(t_ns)
        return lambda seq: step

    def next_boundary(self, t_ns: SimTime) -> SimTime | None:
        """End of the step executing at `t_ns`, strictly later than it; None when idle."""
        if self._executing is None:
            return None
        if self._run_end == self._step:
            return self.wake_ns
        step = self.timeline.first_tail_step_ending_at_or_after(t_ns + 1)
        return self.timeline.tail_boundary_ns(max(step, self._step + 1))

    def settle(self, t_ns: SimTime) -> None:
        """Bring scheduler and cache to where they stand at `t_ns`, the present, mid-run too.

        Whoever looks into them from outside must call this first: a run of steps books the blocks
        it takes only when somebody needs to know.
        """
        self._reach(t_ns + 1)

    def gauges(self, t_ns: SimTime) -> Gauges:
        """State at `t_ns`, the present."""
        self.settle(t_ns)
        step = self.step_ended_by(t_ns)
        scheduler = self.scheduler
        free, total = self.kv.num_free, self.kv.num_blocks
        busy = self._busy_ns + (t_ns - self._busy_since if self._executing is not None else 0)
        return Gauges(
            running=len(scheduler.running),
            waiting=scheduler.num_waiting,
            kv_usage=1 - free / total,
            num_blocks=total,
            free_blocks=free,
            query_tokens=scheduler.query_tokens,
            hit_tokens=scheduler.hit_tokens,
            preemptions=scheduler.preemptions,
            steps=step,
            busy_ns=busy,
            tiers=() if scheduler.offload is None else scheduler.offload.stats(),
        )

    # Control ---------------------------------------------------------------------------------

    def interrupt(self, t_ns: SimTime) -> None:
        """Let the present run end with the step that is executed at `t_ns`."""
        self._cut(self._reach(t_ns + 1))

    def flush(self, retract: bool, t_ns: SimTime) -> bool:
        """As `Hold.flush`, whatever the worker is in the middle of."""
        self.settle(t_ns)
        return self.hold.flush(retract, t_ns)

    def flush_below(self, t_ns: SimTime) -> None:
        """Let the tiers under the GPU forget what they have."""
        self.settle(t_ns)
        if self.scheduler.offload is not None:
            self.scheduler.offload.forget_all(t_ns)

    def slow(self, extra_ns: SimTime, t_ns: SimTime) -> None:
        """Let every step from the next boundary on take `extra_ns` longer than it should."""
        self._cost = slowed(self._true_cost, extra_ns)
        self._segment = (0, 0, 0)
        if self.group is not None:
            self.group.slow(extra_ns)
        self._log.append(Controlled(t_ns, self.index, -1, "slow"))
        if self._executing is not None:
            self.interrupt(t_ns)

    # Boundaries ------------------------------------------------------------------------------

    def wake(self, t_ns: SimTime) -> None:
        """Cross the boundary at `t_ns` and go on to the next one."""
        self.cross(t_ns)
        if self._executing is not None:
            self._start(self._executing, self._step + 1, t_ns)

    def cross(self, t_ns: SimTime) -> None:
        """Take what the step ending at `t_ns` produced, and decide what executes next."""
        scheduler = self.scheduler
        executing = self._executing
        if executing is None:
            self._busy_since = t_ns
            self._segment = (0, 0, 0)
        else:
            k = self._run_end
            if k > self._step + 1:
                self._catch_up(k)
            self._step = scheduler.seen_step = k
            if self._aborts:
                # vLLM drains its aborts before it looks at what the step produced.
                for seq in self._aborts:
                    if seq.state != DONE:
                        self._drop(seq, k - 1, t_ns)
                self._aborts.clear()
            self._complete(executing, k, t_ns)
        step = self._step + 1
        current = self._queued
        self._queued = None
        frozen = self.hold.frozen
        if current is None and not frozen:
            current = scheduler.schedule(step, t_ns)
        if current is None and scheduler.num_waiting and not frozen:
            # Everything running was preempted; vLLM's empty step costs no time, the next admits.
            current = scheduler.schedule(step, t_ns)
        if current is None:
            if executing is not None:
                self._busy_ns += t_ns - self._busy_since
            self._executing = None
            self.wake_ns = None
            if not frozen:
                scheduler.went_idle()
            self.hold.come_to_rest(t_ns)
            return
        if self._async and not frozen:
            ahead = step + current.ticks
            self._queued = scheduler.schedule(ahead, t_ns)
            self._queued_for = ahead
        self._executing = current

    def _complete(self, executing: Step, k: int, t_ns: SimTime) -> None:
        """Hand out what step `k` produced: first tokens, then finishes."""
        for seq in self.scheduler.complete(executing, k, t_ns):
            if seq.state != SENDING:
                self._finish(seq, "abort" if seq.aborted else seq.submit.finish_reason, t_ns)
            if seq.pinned:
                assert self.exchange is not None
                self.exchange.finished(seq, t_ns)
            elif seq.transfer is not None:
                # Aborted, or preempted with its only token in flight: there is nothing to send.
                self._tell_gone(seq, t_ns)
        if self.on_output is not None:
            self.on_output(t_ns)

    def _finish(self, seq: Sequence, reason: str, t_ns: SimTime) -> None:
        spans = tuple(seq.spans)
        end = seq.verdict or reason
        if seq.progress is not None:
            self._log.append(drafted(t_ns, self.index, seq.rid, seq.progress))
        self._log.append(Finished(t_ns, self.index, seq.rid, end, seq.base, spans))

    def _drop(self, seq: Sequence, step: int, t_ns: SimTime) -> None:
        if self.scheduler.abort(seq, step):
            self._finish(seq, "abort", t_ns)
            self._tell_gone(seq, t_ns)

    def _start(self, current: Step, step: int, t_ns: SimTime) -> None:
        """Price `step` and decide how long nothing will happen."""
        n = current.num_decodes
        if not current.ticks:
            self._segment = (0, 0, 0)
            # Without chunks it only takes in prompts that another engine has computed.
            price_ns = self._cost.mixed(0, 0, current.chunks) if current.chunks else 0
            price_ns += self._encode_ns(current)
            if current.load is not None:
                price_ns = round(current.load.stretched(price_ns))
            self.put_off(t_ns, price_ns)
            return
        if current.chunks:
            self._segment = (0, 0, 0)
            mixed_ns = self._mixed_ns(current, step)
            if current.images:
                mixed_ns += self._encode_ns(current)
            if current.load is not None:
                mixed_ns = current.load.stretched(mixed_ns)
            self.open(t_ns, mixed_ns, 0.0)
            self.run(1)
            if self.exchange is not None and self.wake_ns is not None:
                for seq, tokens in self.scheduler.layerwise(step):
                    self.exchange.computing(seq, tokens, t_ns, self.wake_ns)
            return
        segment_n, segment_offset, last = self._segment
        if segment_n != n or segment_offset != current.kv_offset or step > last:
            last = self._open_decodes(current, step, t_ns)
            self._segment = (n, current.kv_offset, last)
        self.timeline.last_step = step
        self._run_end = step if self._single_step else self._quiet_until(current, step, last)
        self.wake_ns = self.timeline.tail_boundary_ns(self._run_end)

    def _open_decodes(self, current: Step, step: int, t_ns: SimTime) -> int:
        """Price steps like `current` from `step` on; returns the last one it holds for."""
        n = current.num_decodes
        kv = current.kv_offset + n * step
        line = self._cost.decode(n, kv)
        self.open(t_ns, line.base_ns + line.slope_ns * kv, line.slope_ns * n)
        return max(step, (line.kv_max - current.kv_offset) // n)

    def _encode_ns(self, current: Step) -> SimTime:
        """The price of the images that go with a step, before the rest of it."""
        if not current.images or not isinstance(self._true_cost, EncodingCost):
            return 0
        return self._true_cost.encode_ns(current.images)

    def _mixed_ns(self, current: Step, step: int) -> float:
        """The price of a step with chunks in it; a chunk of one token is a decode to the GPU."""
        n = current.num_decodes
        kv = current.kv_offset + n * step
        if any(chunk.new > 1 for chunk in current.chunks):
            return float(self._cost.mixed(n, kv, current.chunks))
        kv += sum(chunk.past + 1 for chunk in current.chunks)
        line = self._cost.decode(n + len(current.chunks), kv)
        return line.base_ns + line.slope_ns * kv

    # One step or many, for oneself or together with others ------------------------------------

    @property
    def executing(self) -> Step | None:
        """The step being executed, the first one of a run; None if there is none."""
        return self._executing

    def batch(self) -> RankBatch:
        """What `executing` is, as its price needs it."""
        step = self._executing
        if step is None:
            return RankBatch(0, 0)
        n = step.num_decodes
        kv_tokens = step.kv_offset + n * (self._step + 1) if n else 0
        return RankBatch(n, kv_tokens, step.chunks, images=step.images)

    def open(self, t_ns: SimTime, first_ns: float, growth_ns: float) -> None:
        """From `t_ns` on a step takes `first_ns`, and each one `growth_ns` more than the last."""
        self.timeline.begin(self._step + 1, t_ns, first_ns, growth_ns)
        if self.step_log is not None:
            self.step_log.append(StepRun(self._step + 1, t_ns, self.batch()))

    def put_off(self, t_ns: SimTime, duration_ns: SimTime) -> None:
        """Execute a step that is no decode tick."""
        self.wake_ns = self.timeline.pause(self._step + 1, t_ns, duration_ns)
        self._run_end = self._step
        if self.step_log is not None:
            self.step_log.append(StepRun(self._step + 1, t_ns, self.batch(), self.wake_ns))

    def run(self, steps: int) -> None:
        """Execute that many like `executing`, on the segment opened last."""
        self.timeline.last_step = self._step + 1
        self._run_end = self._step + steps
        self.wake_ns = self.timeline.tail_boundary_ns(self._run_end)

    def shorten(self, steps: int) -> None:
        """Let the present run end after `steps` of its steps."""
        self._run_end = self._step + steps
        self.wake_ns = self.timeline.tail_boundary_ns(self._run_end)

    def steps_until(self, t_ns: SimTime) -> int:
        """Steps of the present run up to the first that ends at `t_ns` or later; at least 1."""
        if self._run_end <= self._step + 1:
            return 1
        step = min(self._run_end, self.timeline.first_tail_step_ending_at_or_after(t_ns))
        return max(step - self._step, 1)

    @property
    def run_steps(self) -> int:
        """Length of the present run, as it stands."""
        return max(self._run_end - self._step, 1)

    def quiet_steps(self, limit: int) -> int:
        """How many decode steps from now on, at most `limit`, need nobody to look at them."""
        assert self._executing is not None
        step = self._step + 1
        return self._quiet_until(self._executing, step, self._step + limit) - self._step

    def _quiet_until(self, current: Step, step: int, last: int) -> int:
        """Last step of the run of identical decode steps that starts with `step`."""
        scheduler = self.scheduler
        if not scheduler.blocked:
            return step
        if self._async:
            queued = self._queued
            if (
                queued is None
                or queued.chunks
                or queued.num_decodes != current.num_decodes
                or queued.kv_offset != current.kv_offset
            ):
                return step
        finish = scheduler.next_finish()
        assert finish is not None
        self._run_finish = finish
        # With somebody waiting, the boundary before a finish may already admit: stop there too.
        limit = min(finish - 1 if scheduler.num_waiting else finish, last)
        if limit <= step:
            return step
        ahead = 1 if self._async else 0
        return max(step, scheduler.coast_limit(limit + ahead) - ahead)

    def _catch_up(self, step: int) -> None:
        """Let the scheduler decide all it would have decided before the boundary after `step`."""
        scheduler = self.scheduler
        finish = self._run_finish
        if not self._async:
            scheduler.coast(step)
            return
        scheduler.coast(min(step + 1, finish))
        executing = self._executing
        assert executing is not None
        if step + 1 <= finish:
            if self._queued_for < step + 1:
                n, offset = executing.num_decodes, executing.kv_offset
                self._queued = Step(step + 1, n, offset, (), ())
                self._queued_for = step + 1
        elif self._queued_for < finish + 1:
            # The step after a foreseen finish has one decode less: a decision of its own.
            decided_ns = self.timeline.tail_boundary_ns(finish - 1)
            scheduler.seen_step = finish - 1
            self._queued = scheduler.schedule(finish + 1, decided_ns)
            self._queued_for = finish + 1
