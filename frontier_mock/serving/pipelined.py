"""An engine with pipeline stages: a worker with several steps in flight.

Theory of operation. Steps are counted in *slots*, empty ones among them; slot `s` is of lane `s`
modulo the number of lanes, whose steps have numbers of their own (`serving.steps`).

Rule 1. A step is decided as soon as fewer than `depth` are in flight, which is when the oldest one
        has left the pipeline: that is a boundary. What is decided with nothing in it, because
        everybody has a token in flight, is an empty step, over when the one before it is.
Rule 2. When a step leaves the pipeline follows from when it was decided and from the steps before
        it (`serving.pipeline`), so it is known at once.
Rule 3. While nothing changes in any lane the worker sleeps until something can: the ends of all the
        steps until then are one `pipeline_run.Run`. Whatever arrives earlier cuts it at the first
        boundary that has not passed, and what would have been decided by then is booked at once.
Rule 4. The rest is as for any worker.

An engine that publishes what its cache does looks at every boundary.

Source: vLLM 0.33.0, v1/engine/core.py (`step_with_batch_queue`); SGLang 0.5.23,
managers/scheduler_pp_mixin.py.
"""

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, cast

from frontier_mock.core.events import Controlled, EventLog
from frontier_mock.cost.protocol import EncodingCost, RankBatch, StagedCost
from frontier_mock.serving.lane_timeline import LaneTimeline
from frontier_mock.serving.pipeline import SHIFT, Pipeline, State, Work, to_ns, units
from frontier_mock.serving.pipeline_run import Run
from frontier_mock.serving.schedulers.lanes import LanedScheduler
from frontier_mock.serving.schedulers.protocol import Step
from frontier_mock.serving.sequence import DONE, Sequence
from frontier_mock.serving.specs import AnySchedulerSpec, SchedulerSpec
from frontier_mock.serving.step_log import StageStep
from frontier_mock.serving.steps import lane_of
from frontier_mock.serving.worker import Worker
from frontier_mock.simtime import SimTime

_LOGGED: Final = 100_000
"""Steps logged one by one, for those who draw them."""


class Flight(NamedTuple):
    """A step in flight, None if empty: its slot, its lane's step by then, and its end in units."""

    slot: int
    number: int
    step: Step | None
    end: int


class PipelinedWorker(Worker):
    """See the theory of operation at the top of this module."""

    def __init__(
        self,
        index: int,
        spec: AnySchedulerSpec,
        cost: StagedCost,
        log: EventLog,
        single_step: bool = False,
    ) -> None:
        super().__init__(index, spec, cost, log, single_step or spec.enable_kv_cache_events)
        self._lanes = cast(LanedScheduler, self.scheduler)
        self._size = self._lanes.num_lanes
        self._depth = self._lanes.depth
        self._staged = cost
        rendezvous = isinstance(spec, SchedulerSpec)
        stages, gap = len(cost.stages), units(cost.gap_ns)
        self.pipeline = Pipeline(stages, self._size, self._depth, gap, rendezvous)
        self._lane_timeline = LaneTimeline(self._size)
        self.timeline = self._lane_timeline
        self._state = self.pipeline.idle(0)
        self._flights: deque[Flight] = deque()
        self._slot = 0
        self._decided = 0
        self._ended_steps = 0
        self._extra = 0
        self._run: Run | None = None
        self._run_works: list[Work | None] = []
        self._stage_busy = [0] * stages
        self.stage_log: list[StageStep] = []
        """The first steps, if `step_log` is a list."""

    # Boundaries ------------------------------------------------------------------------------

    def wake(self, t_ns: SimTime) -> None:
        """Cross the boundary at `t_ns` and go on to the next one."""
        self.cross(t_ns)
        if self._executing is not None:
            self._plan()

    def cross(self, t_ns: SimTime) -> None:
        """Take what the oldest step produced, and decide what follows."""
        at = t_ns << SHIFT
        was_busy = bool(self._flights)
        if was_busy:
            self._end_run()
            flight = self._flights.popleft()
            at = flight.end
            self._take(flight, t_ns)
        else:
            self._busy_since = t_ns
        self._refill(t_ns, at)
        if self._flights:
            self._executing = self._flights[0].step
            return
        if was_busy:
            self._busy_ns += t_ns - self._busy_since
        self._executing = None
        self.wake_ns = None
        if not self.hold.frozen:
            self.scheduler.went_idle()
        self.hold.come_to_rest(t_ns)

    def _take(self, flight: Flight, t_ns: SimTime) -> None:
        """The oldest step has left the pipeline."""
        self._slot = flight.slot
        step = flight.step
        assert step is not None, "boundaries are those of steps with something in them"
        # vLLM drains its aborts before it looks at what the step produced.
        for seq in self._aborts:
            if seq.state != DONE:
                self._drop(seq, 0, t_ns)
        self._aborts.clear()
        self._lanes.seen[lane_of(flight.number)] = flight.number
        self._ended_steps += 1
        self._complete(step, flight.number, t_ns)

    def _refill(self, t_ns: SimTime, at: int) -> None:
        """Decide steps for as long as the engine would, before it waits for an output."""
        flights, depth = self._flights, self._depth
        empty = 0
        while not self.hold.frozen and self.scheduler.num_live:
            if len(flights) < depth:
                self._decide(t_ns, at)
                empty = 0 if flights[-1].step is not None else empty + 1
                if len(flights) < depth:
                    continue
            if flights[0].step is not None:
                return
            self._pass_empty()
            if empty > depth + self._size:
                break
        while flights and flights[0].step is None:
            self._pass_empty()

    def _pass_empty(self) -> None:
        flight = self._flights.popleft()
        self._slot = flight.slot
        self._lanes.seen[lane_of(flight.number)] = flight.number

    def _decide(self, t_ns: SimTime, at: int) -> None:
        """One more step, which may turn out empty."""
        slot = self._decided = self._decided + 1
        lane = slot % self._size
        number = self._lanes.next_step(lane)
        step = self.scheduler.schedule(number, t_ns)
        work = None if step is None else self._work(step)
        before = self._state
        state = self._state = self.pipeline.after(before, work, at)
        end = state.ends[-1]
        number = self._lanes.next_step(lane) - 1
        self._flights.append(Flight(slot, number, step, end))
        if step is None:
            return
        self._lane_timeline.end(step.number, end)
        if work is not None:
            self._count_busy(work, 1)
            self._log_step(step, state)
            if self.exchange is not None and step.chunks:
                for seq, tokens in self.scheduler.layerwise(step.number):
                    self.exchange.computing(seq, tokens, t_ns, to_ns(end))

    def _log_step(self, step: Step, state: State) -> None:
        if self.step_log is None or len(self.stage_log) >= _LOGGED:
            return
        batch = RankBatch(step.num_decodes, step.kv_tokens if step.num_decodes else 0, step.chunks)
        starts, ends = (tuple(map(to_ns, times)) for times in (state.starts, state.computed))
        self.stage_log.append(StageStep(step.number, batch, starts, ends))

    def _count_busy(self, work: Work, rounds: int) -> None:
        more = rounds * (rounds - 1) // 2
        for stage, takes in enumerate(work.stages):
            self._stage_busy[stage] += rounds * takes + more * work.growth[stage]

    def _work(self, step: Step) -> Work | None:
        """What the stages have to do for one step; None if it only takes prompts in."""
        n, chunks = step.num_decodes, step.chunks
        if not n and not chunks:
            return None
        cost, rows = self._staged, n + len(chunks)
        tokens, kv = n, step.kv_tokens if n else 0
        slope = n
        if chunks:
            tokens += sum(chunk.new for chunk in chunks)
        times: list[int] = []
        growth: list[int] = []
        if tokens > rows:
            for stage in cost.stages:
                times.append(units(stage.mixed(n, kv, chunks)) + self._extra)
                growth.append(0)
        else:
            # A chunk of one token is a decode to the GPU.
            kv += sum(chunk.past + 1 for chunk in chunks)
            for stage in cost.stages:
                line = stage.decode(rows, kv)
                per_token = units(line.slope_ns)
                times.append(units(line.base_ns) + per_token * kv + self._extra)
                growth.append(per_token * slope)
        encoder = cost.stages[0]
        if step.images and isinstance(encoder, EncodingCost):
            times[0] += units(encoder.encode_ns(step.images))
        hops = tuple(units(cost.hop_ns(i, tokens)) for i in range(len(cost.stages) - 1))
        cpu = units(cost.cpu_ns(rows))
        return Work(cpu, tuple(times), hops, n > 0, tuple(growth))

    # Many steps ------------------------------------------------------------------------------

    def _plan(self) -> None:
        """Sleep until the oldest step leaves, or for as long as nothing can change."""
        head = self._flights[0]
        self._run_end = head.slot
        self.wake_ns = to_ns(head.end)
        calm = self.scheduler.blocked and not self.hold.frozen
        if calm and len(self._flights) == self._depth and not self._single_step:
            self._begin_run(head.slot)

    def _begin_run(self, head: int) -> None:
        """The steps to be decided before the next change, if they are worth it."""
        first, size = self._decided + 1, self._size
        last = self._last_alike(first)
        works: list[Work | None] = []
        for place in range(size):
            number = (first + place) % size
            lane = self._lanes.lane(number)
            works.append(None)
            if lane.num_decodes:
                step_number = self._lanes.next_step(number)
                step = Step(step_number, lane.num_decodes, lane.kv_offset, (), ())
                works[-1] = self._work(step)
                last = min(last, first + place + size * (self._line_left(step) + 1) - 1)
        last = first - 1 + self._lanes.room_for(last - first + 1, first % size, self.kv.num_free)
        end = last + 1 - self._depth
        while end > head and not self._lanes.lane(end % size).num_decodes:
            end -= 1
        if end - head < size:
            return
        last = end - 1 + self._depth
        self._run_end, self._run_works = end, works
        run = self._run = Run(self.pipeline, self._state, works, first, last)
        self._tell(run)
        self.wake_ns = to_ns(self._end_of(end))

    def _last_alike(self, first: int) -> int:
        """The last slot that is decided before anything is known to change: before somebody's last
        step has left, or, foreseen, before what comes after it is decided."""
        size = self._size
        last = first + (1 << 40)
        for place in range(size):
            number = (first + place) % size
            finish = self._lanes.lane(number).next_finish()
            if finish is not None:
                slot = first + place + (finish - self._lanes.next_step(number)) * size
                last = min(last, slot + size - 1)
        return last

    def _line_left(self, step: Step) -> int:
        """For how many more steps of its lane the prices of all stages stay on their lines."""
        n, kv = step.num_decodes, step.kv_tokens
        return min((stage.decode(n, kv).kv_max - kv) // n for stage in self._staged.stages)

    def _tell(self, run: Run) -> None:
        """Put the ends of a run on the timeline."""
        size, timeline = self._size, self._lane_timeline
        last_stage = self.pipeline.stages - 1
        for piece in run.pieces:
            if piece.lanes:
                for place, lane in enumerate(piece.lanes):
                    if lane is not None:
                        number = self._number_of(piece.first + place)
                        timeline.rounds(number, lane.computed(last_stage))
                continue
            for slot, state in enumerate(piece.states, piece.first):
                if self._run_works[(slot - run.first) % size] is not None:
                    timeline.end(self._number_of(slot), state.ends[-1])

    def _end_run(self) -> None:
        """The run is over, as far as it was executed."""
        if self._run_end > self._slot + 1:
            self._catch_up(self._run_end)
        if self._run is not None:
            for lane in range(self._size):
                self._lane_timeline.forget_after(self._lanes.next_step(lane) - 1)
            self._run = None

    def _catch_up(self, step: int) -> None:
        """Let the scheduler decide all it would have decided before the boundary of slot `step`."""
        run, size, flights = self._run, self._size, self._flights
        assert run is not None
        upto = step - 1 + self._depth
        for slot in range(max(self._slot + 1, step - size), step):
            self._lanes.seen[slot % size] = self._number_of(slot)
        self._ended_steps = self._steps_before(step)
        self._slot = step - 1
        while flights and flights[0].slot < step:
            flights.popleft()
        first = self._decided + 1
        for place in range(min(upto - first + 1, size)):
            at = first + place
            work = self._run_works[(at - run.first) % size]
            if work is not None:
                done, rounds = (at - run.first) // size, (upto - at) // size + 1
                self._count_busy(work.later(done), rounds)
        if self.step_log is not None:
            for slot in range(first, min(upto, first + _LOGGED) + 1):
                decided = self._step_in(slot)
                if decided is not None:
                    self._log_step(decided, run.state(slot))
        told = [
            Flight(slot, self._number_of(slot), self._step_in(slot), run.end(slot))
            for slot in range(max(first, step), upto + 1)
        ]
        self._lanes.coast_slots(upto - first + 1, first % size)
        self._state = run.state(upto)
        self._decided = upto
        flights.extend(told)
        self._executing = flights[0].step

    def _number_of(self, slot: int) -> int:
        """The lane's step by the end of a slot, in flight or in the present run."""
        if slot <= self._decided:
            return self._flights[slot - self._slot - 1].number
        if not self._lanes.lane(slot % self._size).num_decodes:
            return self._lanes.next_step(slot % self._size) - 1
        place = (slot - self._decided - 1) % self._size
        return self._lanes.next_step(slot % self._size) + (slot - self._decided - 1 - place) // (
            self._size
        )

    def _step_in(self, slot: int) -> Step | None:
        """The step of a slot of the present run that is not decided yet."""
        lane = self._lanes.lane(slot % self._size)
        if not lane.num_decodes:
            return None
        return Step(self._number_of(slot), lane.num_decodes, lane.kv_offset, (), ())

    def _end_of(self, slot: int) -> int:
        if slot <= self._decided:
            return self._flights[slot - self._slot - 1].end
        assert self._run is not None
        return self._run.end(slot)

    def _first_ending(self, t_ns: SimTime) -> int:
        """The first slot of the present run, its last one at most, to end at `t_ns` or later."""
        low, high = self._slot + 1, self._run_end
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if to_ns(self._end_of(middle)) >= t_ns else (middle + 1, high)
        return low

    def _steps_before(self, slot: int) -> int:
        """Steps with something in them that end before that of `slot` does."""
        steps, size = self._ended_steps, self._size
        begun = min(slot, self._decided + 1)
        for flight in self._flights:
            steps += flight.slot < begun and flight.step is not None
        first = self._decided + 1
        for place in range(min(max(slot - first, 0), size)):
            if self._lanes.lane((first + place) % size).num_decodes:
                steps += (slot - 1 - first - place) // size + 1
        return steps

    # What others ask for ---------------------------------------------------------------------

    def _reach(self, t_ns: SimTime) -> int:
        """The slot of the present run that `t_ns` falls into; crosses the boundaries before it."""
        slot = self._slot + 1
        if self._run_end > slot:
            slot = self._first_ending(t_ns)
            if slot > self._slot + 1:
                self._catch_up(slot)
        return slot

    def _cut(self, step: int) -> None:
        if step < self._run_end:
            self._run_end = step
            self.wake_ns = to_ns(self._end_of(step))

    @property
    def run_steps(self) -> int:
        """Length of the present run in slots."""
        return max(self._run_end - self._slot, 1)

    def _last_ended(self, t_ns: SimTime) -> int:
        """The last slot to end at or before `t_ns`."""
        if self._executing is None:
            return self._slot
        slot = self._first_ending(t_ns + 1)
        return slot if to_ns(self._end_of(slot)) <= t_ns else slot - 1

    def step_ended_by(self, t_ns: SimTime) -> int:
        """How many steps had ended at `t_ns`, the present."""
        return self._steps_before(self._last_ended(t_ns) + 1)

    def steps_by(self, t_ns: SimTime) -> Callable[[Sequence], int]:
        """See `Worker`: lanes have numbers of their own."""
        seen = self._lanes.seen.copy()
        last = self._last_ended(t_ns)
        for slot in range(max(self._slot + 1, last - self._size + 1), last + 1):
            seen[slot % self._size] = self._number_of(slot)
        return lambda seq: seen[lane_of(seq.first_step or seq.finish_step)]

    def stages_busy_ns(self, t_ns: SimTime) -> list[SimTime]:
        """How long each stage has computed by `t_ns`, the present; steps that have not left the
        pipeline yet count as far as they have been decided."""
        self.settle(t_ns)
        return [busy >> SHIFT for busy in self._stage_busy]

    def next_boundary(self, t_ns: SimTime) -> SimTime | None:
        """End of the step that leaves the pipeline next after `t_ns`; None when idle."""
        if self._executing is None:
            return None
        return to_ns(self._end_of(self._first_ending(t_ns + 1)))

    def slow(self, extra_ns: SimTime, t_ns: SimTime) -> None:
        """Every stage takes so much longer for each step decided from now on."""
        self._extra = units(extra_ns)
        self._log.append(Controlled(t_ns, self.index, -1, "slow"))
        if self._executing is not None:
            self.interrupt(t_ns)

    def _drop(self, seq: Sequence, step: int, t_ns: SimTime) -> None:
        """Its last token is the last one of its own lane that has come."""
        super()._drop(seq, self._lanes.seen_of(seq), t_ns)
