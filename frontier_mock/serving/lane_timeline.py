"""When each step of a worker with pipeline stages ended: as `timeline`, lane by lane.

A segment of a lane is a line of its steps, the first of which ends at `t0`, in nanoseconds, plus
`rest`; the next one `slope` later, that after it `slope + bend` later than that, and so on, in
units of `serving.pipeline`. Ends are rounded up to whole nanoseconds. Steps without decodes that do
not advance their lane (SGLang) have ends of their own, as on any timeline.
"""

from bisect import bisect_left, bisect_right

import numpy as np
from numpy.typing import NDArray

from frontier_mock.serving.pipeline import SHIFT, Curve, to_ns
from frontier_mock.serving.steps import LANE_BITS, PREFILL_STEP, lane_of
from frontier_mock.serving.timeline import Timeline
from frontier_mock.simtime import SimTime

_MASK = (1 << SHIFT) - 1


class _Lane:
    """Segments of one lane in order; `first` has the number of the first step of each."""

    __slots__ = ("bend", "first", "rest", "slope", "t0")

    def __init__(self) -> None:
        self.first: list[int] = []
        self.t0: list[SimTime] = []
        self.rest: list[int] = []
        self.slope: list[int] = []
        self.bend: list[int] = []

    @property
    def columns(self) -> tuple[list[int], ...]:
        """All columns, to be cut alike."""
        return self.first, self.t0, self.rest, self.slope, self.bend

    def add(self, step: int, end: int, slope: int, bend: int) -> None:
        """From `step`, which ends at `end`, on."""
        self.first.append(step)
        self.t0.append(end >> SHIFT)
        self.rest.append(end & _MASK)
        self.slope.append(slope)
        self.bend.append(bend)

    def forget_after(self, step: int) -> None:
        """Steps after `step` will be told anew."""
        keep = bisect_right(self.first, step)
        for column in self.columns:
            del column[keep:]

    def drop_segments(self, index: int) -> None:
        """Forget the segments before this one."""
        for column in self.columns:
            del column[:index]

    def boundary_ns(self, step: int) -> SimTime:
        """End of one step."""
        i = bisect_right(self.first, step) - 1
        if i < 0:
            raise LookupError(f"step {step} is no longer on the timeline")
        j = step - self.first[i]
        return self.t0[i] + to_ns(
            self.rest[i] + self.slope[i] * j + self.bend[i] * (j * (j - 1) // 2)
        )

    def boundaries_ns(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """End of each of `steps`."""
        first = np.asarray(self.first, dtype=np.int64)
        i = np.searchsorted(first, steps, side="right") - 1
        if len(i) and int(i.min()) < 0:
            raise LookupError(f"step {int(steps.min())} is no longer on the timeline")
        j = steps - first[i]
        rest, slope, bend = (
            np.asarray(column, dtype=np.int64)[i] for column in (self.rest, self.slope, self.bend)
        )
        units = rest + slope * j + bend * (j * (j - 1) // 2)
        ends: NDArray[np.int64] = np.asarray(self.t0, dtype=np.int64)[i] - (-units >> SHIFT)
        return ends


class LaneTimeline(Timeline):
    """Segments of every lane; appended by the worker, read by everyone else."""

    __slots__ = ("_ends_of_others", "_lanes", "_others")

    def __init__(self, lanes: int) -> None:
        super().__init__()
        self._lanes = [_Lane() for _ in range(lanes)]
        self._others: list[int] = []
        self._ends_of_others: list[SimTime] = []

    def end(self, step: int, end: int) -> None:
        """One step ends at `end`, in units."""
        if step >= PREFILL_STEP:
            self._others.append(step)
            self._ends_of_others.append(to_ns(end))
        else:
            self._lanes[lane_of(step)].add(step, end, 0, 0)

    def rounds(self, step: int, curve: Curve) -> None:
        """From `step` on the steps of its lane end as `curve` says from its round 1 on."""
        slope = curve.slope + 2 * curve.bend
        self._lanes[lane_of(step)].add(step, curve.at(1), slope, curve.bend)

    def forget_after(self, step: int) -> None:
        """Steps of its lane after `step` will be told anew."""
        self._lanes[lane_of(step)].forget_after(step)

    def boundary_ns(self, step: int) -> SimTime:
        """End of `step`. Raises LookupError for a step before the first one kept."""
        if step < PREFILL_STEP:
            return self._lanes[lane_of(step)].boundary_ns(step)
        i = bisect_left(self._others, step)
        if i == len(self._others) or self._others[i] != step:
            raise LookupError(f"prefill step {step - PREFILL_STEP} is no longer on the timeline")
        return self._ends_of_others[i]

    def boundaries_ns(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """End of each of `steps`, vectorised."""
        ends = np.empty(len(steps), dtype=np.int64)
        numbers = steps >> LANE_BITS
        for number in np.unique(numbers).tolist():
            mine = numbers == number
            if number < len(self._lanes):
                ends[mine] = self._lanes[number].boundaries_ns(steps[mine])
            else:
                ends[mine] = [self.boundary_ns(step) for step in steps[mine].tolist()]
        return ends

    def steps_ended_by(self, t_ns: SimTime) -> list[int]:
        """Number of the last step of each lane that ended at or before `t_ns`.

        Lanes are taken to go on for ever; the worker knows where they stop.
        """
        return [_last_by(lane, number, t_ns) for number, lane in enumerate(self._lanes)]

    def drop_ended_by(self, t_ns: SimTime) -> None:
        """Forget whole segments that end before `t_ns`, for servers that run for days."""
        for number, lane in enumerate(self._lanes):
            last = _last_by(lane, number, t_ns)
            keep = bisect_right(lane.first, last) - 1
            if keep > 0:
                lane.drop_segments(keep)
        gone = bisect_right(self._ends_of_others, t_ns)
        del self._others[:gone], self._ends_of_others[:gone]


def _last_by(lane: _Lane, number: int, t_ns: SimTime) -> int:
    """The last step of a lane that ended by `t_ns`; its number's base if there is none."""
    low = (number << LANE_BITS) if not lane.first else lane.first[0] - 1
    if not lane.first or lane.boundary_ns(low + 1) > t_ns:
        return low
    i = bisect_right(lane.first, t_ns, key=lambda step: lane.boundary_ns(step)) - 1
    low = lane.first[i]
    if not lane.slope[i] and not lane.bend[i]:
        return low
    last = i + 1 == len(lane.first)
    high = low + 1
    while lane.boundary_ns(high) <= t_ns:
        if not last and high >= lane.first[i + 1]:
            break
        high = low + 2 * (high - low)
    if not last:
        high = min(high, lane.first[i + 1])
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if lane.boundary_ns(middle) <= t_ns else (low, middle)
    return low
