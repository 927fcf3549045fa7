"""When micro-batches get through the stages of a pipeline: a recurrence, and its closed form.

Theory of operation. The engine decides steps one after the other; each passes every stage, in that
order and no other. Nothing here is drawn: bubbles are what the recurrence leaves.

Rule 1. A step is decided when the step `depth` before it has ended (or when somebody says so: an
        engine wakes up). The engine core then works `cpu` on it, on one step at a time.
Rule 2. A stage computes one step at a time, and waits `gap` between two. A step with decodes in it
        needs, on the first stage, the tokens of the step `lanes` before it.
Rule 3. The way from stage to stage takes `hop`. With a `rendezvous` both sides are busy with it: it
        begins when the sender has computed and the receiver is free, and the sender goes on after
        it (vLLM receives into the stream in which it computes). Else what was sent waits.
Rule 4. A step without work takes no time, and is over when the step before it is.
Rule 5. All times are whole units of 2**-SHIFT ns, so that sums do not depend on their order. While
        every lane (steps of equal number modulo `lanes`) repeats itself, with times that grow by
        a constant from round to round, the ends are quadratic in the round: `foresee` takes what
        the last three rounds suggest, and answers for how many rounds it can prove, by comparing
        coefficients, that the recurrence would give the same.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from frontier_mock.simtime import SimTime

SHIFT: Final = 16
"""Times are in units of 2**-SHIFT ns."""


class Work(NamedTuple):
    """One step's: the engine core's time, each stage's, and that of the way behind each but the
    last. `growth` is what each stage takes more in the lane's next step, if that is alike."""

    cpu: int
    stages: tuple[int, ...]
    hops: tuple[int, ...]
    waits: bool
    growth: tuple[int, ...] = ()

    def later(self, rounds: int) -> "Work":
        """The lane's work so many rounds on."""
        grown = tuple(t + rounds * g for t, g in zip(self.stages, self.growth, strict=True))
        return self._replace(stages=grown)


class State(NamedTuple):
    """Where the pipeline stands after a step: all that later steps depend on.

    `starts` and `computed` are when each stage began and ended its latest step, `cpu` when the
    engine core was done with it, `ends` when the last steps left the pipeline, the latest last.
    """

    starts: tuple[int, ...]
    computed: tuple[int, ...]
    cpu: int
    ends: tuple[int, ...]


class Pipeline(NamedTuple):
    """The rules that hold for one engine: see the theory of operation at the top of this module."""

    stages: int
    lanes: int
    depth: int
    gap: int
    rendezvous: bool

    def idle(self, at: int) -> State:
        """With nothing in flight at `at`."""
        nothing = (at - self.gap,) * self.stages
        return State(nothing, nothing, at, (at,) * self.depth)

    def after(self, state: State, work: Work | None, decided: int) -> State:
        """With one more step, decided at `decided`."""
        if work is None:
            return state._replace(ends=(*state.ends[1:], max(state.ends[-1], decided)))
        cpu = max(state.cpu, decided) + work.cpu
        last = self.stages - 1
        starts: list[int] = []
        computed: list[int] = []
        arrives = max(cpu, state.ends[-self.lanes] + self.gap) if work.waits else cpu
        for stage, takes in enumerate(work.stages):
            free = state.computed[stage] + self.gap
            if self.rendezvous and stage < last:
                free = max(free, state.starts[stage + 1])
            start = max(arrives, free)
            if self.rendezvous and stage:
                start += work.hops[stage - 1]
            end = start + takes
            starts.append(start)
            computed.append(end)
            arrives = end
            if not self.rendezvous and stage < last:
                arrives += work.hops[stage]
        return State(tuple(starts), tuple(computed), cpu, (*state.ends[1:], computed[-1]))


class Curve(NamedTuple):
    """A time as a function of the round `m`: `base + slope * m + bend * m * (m + 1) / 2`."""

    base: int
    slope: int
    bend: int

    def at(self, m: int) -> int:
        """Its value."""
        return self.base + self.slope * m + self.bend * (m * (m + 1) // 2)

    def plus(self, base: int, slope: int = 0) -> "Curve":
        """The sum with `base + slope * m`."""
        return Curve(self.base + base, self.slope + slope, self.bend)

    def before(self, rounds: int) -> "Curve":
        """What it was so many rounds earlier, as a function of the present one."""
        base, slope, bend = self
        for _ in range(rounds):
            base, slope = base - slope, slope - bend
        return Curve(base, slope, bend)

    def stays_above(self, other: "Curve", limit: int) -> int:
        """The last round up to which it is nowhere below `other`, from round 1 on; `limit` at most.

        At round 0 it must not be.
        """
        gap = Curve(self.base - other.base, self.slope - other.slope, self.bend - other.bend)
        if gap.slope + gap.bend >= 0 and gap.bend >= 0:
            return limit
        high = limit
        if gap.bend > 0:
            # It falls and rises again; up to the bottom it only falls.
            bottom = min(max(-gap.slope // gap.bend, 0), limit)
            if gap.at(bottom) >= 0 and (bottom == limit or gap.at(bottom + 1) >= 0):
                return limit
            high = min(bottom + 1, limit)
        low = 0
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if gap.at(middle) >= 0 else (low, middle - 1)
        return low


def _through(first: int, second: int, third: int) -> Curve:
    """The curve through the values of three rounds, the last of which is round 0."""
    return Curve(third, third - second, third - 2 * second + first)


class Lane(NamedTuple):
    """What one lane does from round 1 on: its work in round 0, and the times that come of it."""

    work: Work
    cpu: Curve
    starts: tuple[Curve, ...]

    def computed(self, stage: int) -> Curve:
        """When a stage is through with it."""
        return self.starts[stage].plus(self.work.stages[stage], self.work.growth[stage])

    def state(self, m: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Starts, ends on each stage, and the engine core's part, in round `m`."""
        starts = tuple(curve.at(m) for curve in self.starts)
        computed = tuple(self.computed(stage).at(m) for stage in range(len(starts)))
        return starts, computed, self.cpu.at(m)


Round = Sequence[State]
"""The states after each of the slots of one round, empty ones among them."""


def foresee(
    pipeline: Pipeline, rounds: Sequence[Round], works: Sequence[Work | None], limit: int
) -> tuple[tuple[Lane | None, ...], int]:
    """The lanes after three like rounds, and for how many more rounds, at most `limit`, they hold.

    `works` are those of the last of `rounds`, None for empty slots, at least one is not empty; no
    rounds if it cannot be proved.
    """
    first, second, third = rounds[-3:]
    lanes: list[Lane | None] = []
    for slot, work in enumerate(works):
        if work is None:
            lanes.append(None)
            continue
        x, y, z = first[slot], second[slot], third[slot]
        starts = tuple(map(_through, x.starts, y.starts, z.starts))
        lanes.append(Lane(work, _through(x.cpu, y.cpu, z.cpu), starts))
    for slot, lane in enumerate(lanes):
        if lane is not None:
            limit = _proved(pipeline, lanes, slot, lane, limit)
            if limit < 1:
                break
    return tuple(lanes), limit


def _proved(
    pipeline: Pipeline, lanes: Sequence[Lane | None], slot: int, lane: Lane, limit: int
) -> int:
    """For how many rounds every time of `lane` is what the recurrence says."""
    gap, last = pipeline.gap, pipeline.stages - 1
    before, rounds = _latest(lanes, slot - 1)
    decided, ago = _latest(lanes, slot - pipeline.depth)
    work = lane.work
    core = work.cpu
    limit = _largest(
        lane.cpu,
        (before.cpu.before(rounds).plus(core), decided.computed(last).before(ago).plus(core)),
        limit,
    )
    arrives: tuple[Curve, ...] = (lane.cpu,)
    if work.waits:
        arrives = (lane.cpu, lane.computed(last).before(1).plus(gap))
    for stage, start in enumerate(lane.starts):
        causes = [*arrives, before.computed(stage).before(rounds).plus(gap)]
        if pipeline.rendezvous and stage < last:
            causes.append(before.starts[stage + 1].before(rounds))
        if pipeline.rendezvous and stage:
            causes = [cause.plus(work.hops[stage - 1]) for cause in causes]
        limit = _largest(start, causes, limit)
        hop = 0 if pipeline.rendezvous or stage == last else work.hops[stage]
        arrives = (lane.computed(stage).plus(hop),)
    return limit


def _latest(lanes: Sequence[Lane | None], slot: int) -> tuple[Lane, int]:
    """The last lane that works at or before a slot counted from this round's first one, and how
    many rounds ago that is."""
    while (lane := lanes[slot % len(lanes)]) is None:
        slot -= 1
    return lane, -(slot // len(lanes))


def _largest(curve: Curve, causes: Sequence[Curve], limit: int) -> int:
    """For how many rounds `curve` is the largest of `causes`, one of which it must be."""
    if curve not in causes:
        return 0
    for cause in causes:
        limit = curve.stays_above(cause, limit)
    return limit


def to_ns(units: int) -> SimTime:
    """The first whole nanosecond at or after a time in units."""
    return -(-units >> SHIFT)


def units(ns: float) -> int:
    """Nanoseconds as units."""
    return round(ns * (1 << SHIFT))
