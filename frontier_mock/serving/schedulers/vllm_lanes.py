"""vLLM's scheduler with several batches in flight, for pipeline parallelism.

Theory of operation. With `p` stages vLLM keeps up to `p` batches in flight (one more when it
schedules ahead) and fills that queue before it waits for an output. A request whose token is in
flight is not scheduled again: synchronously because nothing is known of its next token before the
output is back, ahead because it has to wait `p` steps (`next_decode_eligible_step`). Either way a
decode comes back every `p`-th step, so the decodes fall into `p` *lanes* that take turns, each a
set of its own (`vllm_decodes`) with step numbers of its own (`serving.steps`).

Rule 1. Prompts belong to no lane: chunks of one prompt may follow each other step by step. A
        sequence decodes in the lane of the step that computes its last prompt token.
Rule 2. One that gets nothing in its turn for want of budget is next in line in the next step, and
        so changes lanes.
Rule 3. Waiting, running, blocks and budgets are as without stages. Who is preempted may be in any
        lane, with its token in flight: that is still delivered, and until it is, whoever waits for
        it is passed over by admission.
Rule 4. Nothing changes by itself (`blocked`) once so many steps as may be in flight have been
        scheduled without a prompt in them and without anybody joining or leaving a lane.

Source: vLLM 0.33.0, v1/engine/core.py (`step_with_batch_queue`), config/vllm.py
(`max_concurrent_batches`), v1/core/sched/{scheduler,async_scheduler}.py.
"""

from collections.abc import Callable

from frontier_mock.core.events import EventLog
from frontier_mock.serving.kv_cache import KvCache
from frontier_mock.serving.schedulers.lanes import Lanes
from frontier_mock.serving.schedulers.protocol import Step
from frontier_mock.serving.schedulers.vllm import VllmScheduler
from frontier_mock.serving.schedulers.vllm_decodes import Decodes
from frontier_mock.serving.sequence import WAITING, Sequence
from frontier_mock.serving.specs import SchedulerSpec
from frontier_mock.serving.steps import LANE_BITS, lane_of
from frontier_mock.simtime import SimTime


class LanedVllmScheduler(Lanes, VllmScheduler):
    """See the theory of operation at the top of this module, and `schedulers.lanes`."""

    def __init__(self, spec: SchedulerSpec, kv: KvCache, log: EventLog, worker: int) -> None:
        super().__init__(spec, kv, log, worker)
        self.num_lanes = spec.pipeline_stages
        self.depth = self.num_lanes + self._lag
        self._lanes = [
            Decodes(spec.block_size, spec.async_scheduling) for _ in range(self.num_lanes)
        ]
        self.decode_sets = self._lanes
        for number, lane in enumerate(self._lanes):
            lane.decided = number << LANE_BITS
        self._decodes = self._lanes[0]
        self.seen = [lane.decided for lane in self._lanes]
        self._skipped: list[Sequence] = []
        self._deferred: dict[int, Sequence] = {}
        self._slots = 0
        self._executed = 0

    def seen_of(self, seq: Sequence) -> int:
        """`seen` of the lane of `seq`."""
        return self.seen[lane_of(seq.finish_step)]

    def lane(self, number: int) -> Decodes:
        """The decodes of one lane."""
        return self._lanes[number]

    # Hooks of the scheduler without lanes -----------------------------------------------------

    def _lane_of(self, seq: Sequence) -> Decodes:
        return self._lanes[lane_of(seq.finish_step)]

    def _decode_wants(self) -> Callable[[Sequence, int], tuple[int, int]]:
        return self._lane_wants

    def _lane_wants(self, seq: Sequence, step: int) -> tuple[int, int]:
        lane = self._lane_of(seq)
        return lane.wants(seq, step) if lane is self._decodes else (0, 0)

    def _count_to(self, step: int) -> int:
        return self._executed + 1

    def _turn_of(self, step: int) -> int:
        return self._slots

    def _is_idle(self) -> bool:
        return not self._prefilling and not any(
            lane.num_decodes or lane.joining for lane in self._lanes
        )

    def _hold_back(self, seq: Sequence, step: int) -> None:
        self._decodes.uncount(seq)
        seq.close_span(step - 1)
        lane = self._lanes[(lane_of(step) + 1) % self.num_lanes]
        lane.take_over(seq, lane.decided + 1)

    def _forget_unseen(self, seq: Sequence, step: int) -> None:
        """Only the last stretch of output can reach beyond what has been seen."""
        if self._awaits_token(seq):
            first, count = seq.spans.pop()
            kept = max(self.seen[lane_of(first)] - first + 1, 0)
            seq.base -= count - kept
            if kept:
                seq.spans.append((first, kept))

    def _in_flight(self, seq: Sequence) -> bool:
        """Whether a step in which `seq`, which waits, took part has still to come back."""
        return self._unseen(seq.prefill) or self._awaits_token(seq)

    def _awaits_token(self, seq: Sequence) -> bool:
        return bool(seq.spans) and self._unseen(sum(seq.spans[-1]) - 1)

    def _unseen(self, step: int) -> bool:
        return step > self.seen[lane_of(step)]

    def _next_waiting(self) -> Sequence | None:
        while (seq := self._queue.head()) is not None and self._in_flight(seq):
            self._queue.pop()
            self._skipped.append(seq)
            self._deferred[seq.rid] = seq
        return seq

    def _num_pressing(self) -> int:
        """Who was passed over does not press any more, until admitted."""
        passed = sum(1 for seq in self._deferred.values() if seq.state == WAITING)
        return self.num_waiting + len(self._skipped) - passed

    def _join_running(self, seq: Sequence, t_ns: SimTime, hit: int, resumed: bool) -> None:
        self._deferred.pop(seq.rid, None)
        super()._join_running(seq, t_ns, hit, resumed)

    # One step --------------------------------------------------------------------------------

    def schedule(self, step: int, t_ns: SimTime) -> Step | None:
        """Decide what `step`, of whatever lane, computes; None if there is nothing to compute."""
        lane = self._decodes = self._lanes[lane_of(step)]
        self._slots += 1
        before = (lane.num_decodes, lane.kv_offset)
        decided = super().schedule(step, t_ns)
        self.note(before == (lane.num_decodes, lane.kv_offset) and not self._skipped)
        while self._skipped:
            self._queue.put_back(self._skipped.pop())
        self._executed += decided is not None
        for seq, _ in self._grants:
            seq.prefill = step
        return decided

    def complete(self, executed: Step, step: int, t_ns: SimTime) -> list[Sequence]:
        """As without lanes."""
        lane = self._decodes = self._lanes[lane_of(step)]
        # An outdated end in an empty step of the lane would otherwise stay in front for ever.
        lane.next_finish()
        return super().complete(executed, step, t_ns)

    def retract_all(self, t_ns: SimTime) -> None:
        """As without lanes."""
        for lane in self._lanes:
            lane.roll(lane.decided + 1)
        for seq in reversed(list(self.running.values())):
            self._decodes = self._lane_of(seq)
            self._preempt(seq, self._decodes.decided + 1, t_ns, had_turn=False)
        self.blocked = False

    # Many steps ------------------------------------------------------------------------------

    def coast_slots(self, slots: int, next_lane: int) -> None:
        """Schedule the next `slots` steps, none of which changes any lane."""
        need = self.need(slots, next_lane)
        if need:
            self.kv.take(need)
        size = self.num_lanes
        for place in range(min(slots, size)):
            lane, turns = self._lanes[(next_lane + place) % size], 1 + (slots - 1 - place) // size
            lane.decided += turns
            self._executed += turns if lane.num_decodes else 0
        self._slots += slots
