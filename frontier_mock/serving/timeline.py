"""When each step of a worker ended: the closed form that replaces a list of token times.

Steps are numbered from 1. A segment is a run of steps whose durations grow by a constant
(design.md section 3): step `first + j - 1` of it ends at

    t0 + round(j * a + d * j * (j - 1) / 2)

with `a` the duration of its first step and `d` the growth per step, in float nanoseconds. Every
reader, scalar or vectorised, evaluates that expression, so rounding cannot tell them apart.

Steps without decodes are numbered apart (`PREFILL_STEP` and up, see `schedulers.protocol`): their
ends are a list of their own, and in the line of decode steps they are a pause, a segment whose
first step never ends.
"""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from frontier_mock.serving.steps import PREFILL_STEP
from frontier_mock.simtime import SimTime

_NEVER_NS = 1e18
"""Duration of the step that a pause puts off."""


class Timeline:
    """Segments of one worker in time order; appended by the worker, read by everyone else."""

    __slots__ = (
        "_a",
        "_d",
        "_first",
        "_pause_ends",
        "_pauses_dropped",
        "_t0",
        "dropped_steps",
        "last_step",
    )

    def __init__(self) -> None:
        self._first: list[int] = []
        self._t0: list[SimTime] = []
        self._a: list[float] = []
        self._d: list[float] = []
        self._pause_ends: list[SimTime] = []
        self._pauses_dropped = 0
        self.last_step = 0
        self.dropped_steps = 0

    def begin(self, first_step: int, t0_ns: SimTime, a_ns: float, d_ns: float) -> None:
        """Open a segment whose first step starts at `t0_ns`."""
        self._first.append(first_step)
        self._t0.append(t0_ns)
        self._a.append(a_ns)
        self._d.append(d_ns)
        self.last_step = first_step

    def pause(self, first_step: int, t0_ns: SimTime, duration_ns: SimTime) -> SimTime:
        """A prefill-only step from `t0_ns` on puts off `first_step`; returns when it ends."""
        self.begin(first_step, t0_ns, _NEVER_NS, 0.0)
        self.last_step = first_step - 1
        end_ns = t0_ns + duration_ns
        self._pause_ends.append(end_ns)
        return end_ns

    def tail_boundary_ns(self, step: int) -> SimTime:
        """End of `step`, which lies in the last segment."""
        j = step - self._first[-1] + 1
        return self._t0[-1] + round(j * self._a[-1] + self._d[-1] * (j * (j - 1) / 2))

    def boundary_ns(self, step: int) -> SimTime:
        """End of `step`. Raises LookupError for a step before the first one kept."""
        if step >= PREFILL_STEP:
            return self._pause_ends[self._pause_index(step)]
        i = bisect_right(self._first, step) - 1
        if i < 0:
            raise LookupError(f"step {step} is no longer on the timeline")
        j = step - self._first[i] + 1
        return self._t0[i] + round(j * self._a[i] + self._d[i] * (j * (j - 1) / 2))

    def _pause_index(self, step: int) -> int:
        index = step - PREFILL_STEP - self._pauses_dropped
        if index < 0:
            raise LookupError(f"prefill step {step - PREFILL_STEP} is no longer on the timeline")
        return index

    def first_tail_step_ending_at_or_after(self, t_ns: SimTime) -> int:
        """Smallest step of the last segment that ends at or after `t_ns`."""
        first = self._first[-1]
        t0, a, d = self._t0[-1], self._a[-1], self._d[-1]
        gap = t_ns - t0
        if gap <= 0:
            return first
        if d > 0.0:
            b = a - d / 2
            guess = ((b * b + 2 * d * gap) ** 0.5 - b) / d
        else:
            guess = gap / a
        j = max(1, int(guess))
        while j > 1 and round((j - 1) * a + d * ((j - 1) * (j - 2) / 2)) >= gap:
            j -= 1
        while round(j * a + d * (j * (j - 1) / 2)) < gap:
            j += 1
        return first + j - 1

    def last_step_ended_by(self, t_ns: SimTime) -> int:
        """Number of the last step that ended at or before `t_ns`; 0 if none did.

        Steps of the last segment are taken to go on for ever; the worker knows where it stops.
        """
        i = bisect_right(self._t0, t_ns) - 1
        if i < 0:
            return 0
        first, t0, a, d = self._first[i], self._t0[i], self._a[i], self._d[i]
        gap = t_ns - t0
        if d > 0.0:
            b = a - d / 2
            j = int(((b * b + 2 * d * gap) ** 0.5 - b) / d)
        else:
            j = int(gap / a)
        while j > 0 and round(j * a + d * (j * (j - 1) / 2)) > gap:
            j -= 1
        while round((j + 1) * a + d * ((j + 1) * j / 2)) <= gap:
            j += 1
        if i + 1 < len(self._first):
            j = min(j, self._first[i + 1] - first)
        return first + j - 1

    def boundaries_ns(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """End of each of `steps`, vectorised."""
        if self._pause_ends and len(steps) and int(steps.max()) >= PREFILL_STEP:
            return self._mixed_boundaries_ns(steps)
        return self._decode_ends_ns(steps)

    def _decode_ends_ns(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """As `boundaries_ns`, of decode steps."""
        first = np.asarray(self._first, dtype=np.int64)
        i = np.searchsorted(first, steps, side="right") - 1
        if len(i) and int(i.min()) < 0:
            raise LookupError(f"step {int(steps.min())} is no longer on the timeline")
        j = (steps - first[i] + 1).astype(np.float64)
        a = np.asarray(self._a)[i]
        d = np.asarray(self._d)[i]
        elapsed = np.rint(j * a + d * (j * (j - 1) / 2)).astype(np.int64)
        ends: NDArray[np.int64] = np.asarray(self._t0, dtype=np.int64)[i] + elapsed
        return ends

    def _mixed_boundaries_ns(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """As `boundaries_ns`, when some of the steps are pauses."""
        pauses = steps >= PREFILL_STEP
        ends = np.empty(len(steps), dtype=np.int64)
        ends[~pauses] = self._decode_ends_ns(steps[~pauses])
        self._pause_index(int(steps[pauses].min()))
        index = steps[pauses] - (PREFILL_STEP + self._pauses_dropped)
        ends[pauses] = np.asarray(self._pause_ends, dtype=np.int64)[index]
        return ends

    def token_times_ns(
        self, spans: Sequence[tuple[int, int]], bursts: bytes = b""
    ) -> NDArray[np.int64]:
        """Time of each token of the spans (first step, steps), in order.

        `bursts` are the tokens of each step, if that is not one each.
        """
        if not spans:
            return np.empty(0, dtype=np.int64)
        times = self.boundaries_ns(
            np.concatenate([np.arange(s, s + n, dtype=np.int64) for s, n in spans])
        )
        return np.repeat(times, np.frombuffer(bursts, dtype=np.uint8)) if bursts else times

    def drop_ended_by(self, t_ns: SimTime) -> None:
        """Forget whole segments that ended by `t_ns`."""
        self.drop_before(self.last_step_ended_by(t_ns))

    def drop_before(self, step: int) -> None:
        """Forget whole segments that end before `step`, for servers that run for days."""
        keep = bisect_right(self._first, step) - 1
        if keep > 0:
            for column in (self._first, self._t0, self._a, self._d):
                del column[:keep]
            self.dropped_steps = self._first[0] - 1
            self._drop_pauses(self._t0[0] - 1)

    def _drop_pauses(self, last_ns: SimTime) -> None:
        """Forget the prefill-only steps that ended by then."""
        gone = bisect_right(self._pause_ends, last_ns)
        del self._pause_ends[:gone]
        self._pauses_dropped += gone
