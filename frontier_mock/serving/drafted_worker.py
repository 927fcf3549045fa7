"""A worker whose decodes verify drafts: what that changes is how long steps take.

How many tokens a step computes, and over which context, its scheduler has worked out for many steps
ahead (`schedulers.drafted_set`); they are priced in one call. A step's duration depends on nothing
but that step, so a run that is cut, or made step by step, comes to the same nanoseconds.
"""

from typing import Final, cast

import numpy as np

from frontier_mock.core.events import EventLog
from frontier_mock.cost.protocol import DraftedCost, RankBatch, StepCost
from frontier_mock.serving.drafted_timeline import DraftedTimeline
from frontier_mock.serving.schedulers.protocol import Step
from frontier_mock.serving.specs import AnySchedulerSpec
from frontier_mock.serving.step_log import StepRun
from frontier_mock.serving.worker import Worker
from frontier_mock.simtime import SimTime

_LEAST_AHEAD: Final = 16
_MOST_AHEAD: Final = 1024
"""Steps priced at a time. What is priced ahead of an interruption is lost, so that a batch that has
just come about is priced for few steps, and for twice as many each time it lasts."""


class DraftedWorker(Worker):
    """See the text at the top of this module."""

    def __init__(
        self,
        index: int,
        spec: AnySchedulerSpec,
        cost: StepCost,
        log: EventLog,
        single_step: bool = False,
    ) -> None:
        """Raises TypeError for a cost model that cannot price drafts."""
        if not isinstance(cost, DraftedCost):
            raise TypeError(f"{type(cost).__name__} does not price steps with drafts")
        super().__init__(index, spec, cost, log, single_step)
        self.timeline = self._ends = DraftedTimeline()
        self._ahead = _LEAST_AHEAD

    def _open_decodes(self, current: Step, step: int, t_ns: SimTime) -> int:
        """Price steps like `current` from `step` on; returns the last one it holds for."""
        cost = cast(DraftedCost, self._cost)
        lasts = self._segment[:2] == (current.num_decodes, current.kv_offset)
        self._ahead = min(2 * self._ahead, _MOST_AHEAD) if lasts else _LEAST_AHEAD
        finish = self.scheduler.next_finish()
        last = step if finish is None else max(step, min(finish, step + self._ahead - 1))
        durations_ns = cost.drafted_run(*self.scheduler.loads(step, last))
        self._ends.begin_run(step, t_ns + np.cumsum(durations_ns))
        if self.step_log is not None:
            self.step_log.append(StepRun(step, t_ns, self.batch()))
        return last

    def _mixed_ns(self, current: Step, step: int) -> float:
        """The price of a step with chunks in it."""
        return float(cast(DraftedCost, self._cost).drafted(self.batch()))

    def drafts_at(self, t_ns: SimTime) -> list[tuple[tuple[int, ...], int]]:
        """(accepted steps, draft tokens) at `t_ns`, the present, of each running sequence."""
        self.settle(t_ns)
        step = self.step_ended_by(t_ns)
        made = []
        for seq in self.scheduler.running.values():
            if seq.progress is not None:
                steps = max(min(step, seq.finish_step) - seq.first_step + 1, 0)
                made.append(seq.progress.so_far(steps))
        return made

    def batch(self) -> RankBatch:
        """What `executing` is, as its price needs it."""
        current = self.executing
        if current is None:
            return RankBatch(0, 0)
        if not current.num_decodes or not current.ticks:
            return RankBatch(0, 0, current.chunks)
        step = self._step + 1
        seqs, tokens, kv_tokens = (int(row[0]) for row in self.scheduler.loads(step, step))
        return RankBatch(seqs, kv_tokens, current.chunks, tokens - seqs)
