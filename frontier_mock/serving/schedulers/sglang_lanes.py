"""SGLang's scheduler with pipeline stages: micro-batches that take turns.

Theory of operation. SGLang 0.5.23 loops over as many micro-batches as there are stages
(`pp_async_batch_depth` more, if told so), each with a running batch of its own. When its turn comes
its last result has just been processed; what it computes next, prompts or a tick of its decodes, is
decided as if it were alone, but for what is shared: the waiting queue, the pool of pages, the
new-token ratio, and the one request at most that is chunked. There is no overlap.

Rule 1. A micro-batch is a *lane*: its decode ticks have numbers of their own (`serving.steps`).
Rule 2. A chunked request goes on in whichever lane is next, so its chunks follow each other through
        the stages; it decodes in the lane of its last chunk.
Rule 3. A lane holds at most `pp_max_micro_batch_size` running requests, all of them together at
        most `max_running_requests`. Only a lane's own requests count as promised output, leave it
        or are retracted for it.
Rule 4. A lane that is short of pages while others hold some may lose all of its requests.

Source: SGLang 0.5.23, managers/scheduler_pp_mixin.py (`event_loop_pp`), managers/scheduler.py
(`get_num_allocatable_reqs`).
"""

from frontier_mock.core.events import EventLog
from frontier_mock.serving.radix_cache import RadixCache
from frontier_mock.serving.schedulers.lanes import Lanes
from frontier_mock.serving.schedulers.protocol import Step
from frontier_mock.serving.schedulers.sglang import SglangScheduler
from frontier_mock.serving.schedulers.sglang_batch import RunningBatch
from frontier_mock.serving.sequence import DECODE, Sequence
from frontier_mock.serving.specs import SglangSchedulerSpec
from frontier_mock.serving.steps import LANE_BITS, lane_of
from frontier_mock.simtime import SimTime


class _Lane:
    """What a micro-batch keeps from turn to turn."""

    __slots__ = ("batch", "full", "had_chunk", "marked")

    def __init__(self, number: int, page_size: int) -> None:
        self.batch = RunningBatch(page_size, foresees=False)
        self.full = False
        self.had_chunk = False
        self.batch.decided = number << LANE_BITS
        self.marked: list[Sequence] = []


class LanedSglangScheduler(Lanes, SglangScheduler):
    """See the theory of operation at the top of this module, and `schedulers.lanes`."""

    def __init__(
        self, spec: SglangSchedulerSpec, kv: RadixCache, log: EventLog, worker: int
    ) -> None:
        self.num_lanes = self.depth = spec.pipeline_stages + spec.pp_async_batch_depth
        self._micro_batches = [_Lane(number, spec.page_size) for number in range(self.num_lanes)]
        self.decode_sets = [lane.batch for lane in self._micro_batches]
        self._turn = self._micro_batches[0]
        self._stash_due = False
        super().__init__(spec, kv, log, worker)
        self._most = spec.pp_max_micro_batch_size
        if not self._most:
            self._most = max(spec.max_running_requests // spec.pipeline_stages, 1)
        self.seen = [lane.batch.decided for lane in self._micro_batches]
        self._take_turn(0)

    @property
    def num_live(self) -> int:
        """Waiting and running sequences, and those whose prompt is being computed."""
        joining = [seq for lane in self._micro_batches for seq in lane.batch.joining]
        computing = sum(seq.state == DECODE for seq in joining) + (self._chunked is not None)
        return self.num_waiting + self._num_running() + computing

    def _num_running(self) -> int:
        return sum(len(lane.batch.members) for lane in self._micro_batches)

    @property
    def running(self) -> dict[int, Sequence]:
        """All that run, lane by lane."""
        return {rid: seq for lane in self._micro_batches for rid, seq in lane.batch.members.items()}

    def lane(self, number: int) -> RunningBatch:
        """The decodes of one lane."""
        return self._micro_batches[number].batch

    def seen_of(self, seq: Sequence) -> int:
        """`seen` of the lane of `seq`."""
        return self.seen[lane_of(seq.first_step)]

    # Turns -----------------------------------------------------------------------------------

    def _take_turn(self, number: int) -> None:
        """What the scheduler without lanes calls its own is that of this lane from now on."""
        lane = self._turn = self._micro_batches[number]
        self._batch = lane.batch
        self._full = lane.full
        self._had_chunk = lane.had_chunk
        self._marked = lane.marked
        self.seen_step = self.seen[number]

    def _end_turn(self) -> None:
        lane = self._turn
        lane.full = self._full
        lane.had_chunk = self._had_chunk

    def schedule(self, step: int, t_ns: SimTime) -> Step | None:
        """Decide what the lane of `step` computes next; None if there is nothing to do."""
        self._take_turn(lane_of(step))
        batch = self._batch
        if self._stash_due:
            self._stash_due = False
            if self._chunked is not None:
                self._holdings.checkpoint(self._chunked, self._chunked.computed)
        before = (batch.num_decodes, batch.kv_offset)
        decided = super().schedule(step, t_ns)
        self._stash_due = self._had_chunk and decided is not None and bool(decided.chunks)
        self._end_turn()
        alike = before == (batch.num_decodes, batch.kv_offset)
        ticked = decided is None or not decided.chunks
        self.note(alike and ticked and (decided is None) == (not batch.num_decodes))
        return decided

    def complete(self, executed: Step, step: int, t_ns: SimTime) -> list[Sequence]:
        """As without lanes."""
        self._take_turn(lane_of(step))
        finished = super().complete(executed, step, t_ns)
        self._end_turn()
        return finished

    # Hooks of the scheduler without lanes -----------------------------------------------------

    def _seats(self) -> int:
        mine = len(self._batch.members)
        joining = sum(len(lane.batch.joining) for lane in self._micro_batches)
        left = self.spec.max_running_requests - self._num_running() - joining
        return min(self._most, mine + max(left, 0))

    def _others_hold(self) -> bool:
        return self._num_running() > len(self._batch.members)

    def _queue(self, seq: Sequence, t_ns: SimTime) -> None:
        super()._queue(seq, t_ns)
        self.blocked = False

    def abort(self, seq: Sequence, step: int) -> bool:
        """As without lanes."""
        if seq.state == DECODE:
            self._micro_batches[lane_of(seq.first_step)].marked.append(seq)
            self.blocked = False
            return False
        return super().abort(seq, step)

    def retract_all(self, t_ns: SimTime) -> None:
        """As without lanes, one lane after the other."""
        for number in range(self.num_lanes):
            self._take_turn(number)
            super().retract_all(t_ns)
            self._end_turn()

    # Many steps ------------------------------------------------------------------------------

    def coast_slots(self, slots: int, next_lane: int) -> None:
        """Schedule the next `slots` steps, none of which changes any lane."""
        size = self.num_lanes
        # Room is made step by step for a page per decode; the last steps' demand covers the others.
        room = 0
        for later in range(min(slots, size)):
            last = slots - later
            decodes = self._micro_batches[(next_lane + last - 1) % size].batch.num_decodes
            if decodes:
                room = max(room, self.need(last - 1, next_lane) + decodes)
        self.kv.make_room(room)
        need = self.need(slots, next_lane)
        if need:
            self.kv.take(need)
        for place in range(min(slots, size)):
            lane = self._micro_batches[(next_lane + place) % size]
            if lane.batch.num_decodes:
                turns = 1 + (slots - 1 - place) // size
                lane.batch.decided += turns
                self._ratio.decay(turns)
