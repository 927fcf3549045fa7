"""When each step of a worker with speculative decoding ended: a table, for want of a closed form.

The context of a batch does not grow evenly there, so every step has an end of its own. One integer
a step is kept, whatever the batch; ends worked out ahead of time are overwritten when a run is cut.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from frontier_mock.serving.steps import PREFILL_STEP
from frontier_mock.serving.timeline import Timeline
from frontier_mock.simtime import SimTime

_LEAST: Final = 1024
"""Steps that there is room for at first."""


class DraftedTimeline(Timeline):
    """As `Timeline`; `_ends` are those of steps `_origin` and on, known up to step `_known`."""

    __slots__ = ("_ends", "_known", "_origin", "_tail")

    def __init__(self) -> None:
        super().__init__()
        self._ends = np.zeros(_LEAST, dtype=np.int64)
        self._origin = 1
        self._known = 0
        self._tail = 1

    def begin(self, first_step: int, t0_ns: SimTime, a_ns: float, d_ns: float) -> None:
        """Open a segment of one step that starts at `t0_ns`."""
        self.begin_run(first_step, np.array([t0_ns + round(a_ns)], dtype=np.int64))

    def begin_run(self, first_step: int, ends_ns: NDArray[np.int64]) -> None:
        """Open a segment of steps with these ends."""
        at = first_step - self._origin
        size = len(self._ends)
        if at + len(ends_ns) > size:
            more = max(size, at + len(ends_ns) - size)
            self._ends = np.pad(self._ends, (0, more))
        self._ends[at : at + len(ends_ns)] = ends_ns
        self._known = first_step + len(ends_ns) - 1
        self._tail = self.last_step = first_step

    def pause(self, first_step: int, t0_ns: SimTime, duration_ns: SimTime) -> SimTime:
        """A prefill-only step from `t0_ns` on puts off `first_step`; returns when it ends."""
        self._tail = first_step
        self._known = self.last_step = first_step - 1
        end_ns = t0_ns + duration_ns
        self._pause_ends.append(end_ns)
        return end_ns

    def tail_boundary_ns(self, step: int) -> SimTime:
        """End of `step`, which lies in the last segment."""
        return int(self._ends[step - self._origin])

    def boundary_ns(self, step: int) -> SimTime:
        """End of `step`. Raises LookupError for a step before the first one kept."""
        if step >= PREFILL_STEP:
            return self._pause_ends[self._pause_index(step)]
        if step < self._origin:
            raise LookupError(f"step {step} is no longer on the timeline")
        return self.tail_boundary_ns(step)

    def first_tail_step_ending_at_or_after(self, t_ns: SimTime) -> int:
        """Smallest step of the last segment that ends at or after `t_ns`."""
        first = self._tail - self._origin
        tail = self._ends[first : self._known - self._origin + 1]
        return self._tail + int(np.searchsorted(tail, t_ns, side="left"))

    def last_step_ended_by(self, t_ns: SimTime) -> int:
        """Number of the last step that ended at or before `t_ns`; 0 if none did."""
        known = self._ends[: self._known - self._origin + 1]
        return self._origin - 1 + int(np.searchsorted(known, t_ns, side="right"))

    def _decode_ends_ns(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        if len(steps) and int(steps.min()) < self._origin:
            raise LookupError(f"step {int(steps.min())} is no longer on the timeline")
        ends: NDArray[np.int64] = self._ends[steps - self._origin]
        return ends

    def drop_before(self, step: int) -> None:
        """Forget steps before `step`, for servers that run for days."""
        gone = min(step, self._tail) - self._origin
        if gone >= len(self._ends) // 2:
            last_ns = int(self._ends[gone - 1])
            self._ends = np.concatenate((self._ends[gone:], np.zeros(gone, dtype=np.int64)))
            self._origin += gone
            self.dropped_steps = self._origin - 1
            self._drop_pauses(last_ns)
