"""Ranks of attention data parallelism: engines of their own that step together.

Theory of operation. Behind every expert layer all ranks wait for each other, so a step of one is a
step of all: it begins for everybody at the same boundary and lasts as long as the joint price says
(vLLM 0.33 data parallel with experts, specs/vllm.md section 7; SGLang 0.5.23 DP attention). A rank
with nothing to do takes part with a dummy batch, which is in the price and nowhere else.

Rule 1. Every rank keeps its own scheduler, cache, step numbers and timeline; the group keeps none
        of these. At a boundary each rank crosses it by itself, then the group prices the batches.
Rule 2. While all ranks that execute anything decode, and none of them has anything else to do, the
        group runs many steps at once, on one straight line that all their timelines share.
        With drafts to verify (`stepwise`) no line is straight, and they step one by one.
Rule 3. Whatever cuts the run of one rank, or wakes an idle one, cuts the run of all.
"""

from collections.abc import Sequence

from frontier_mock.cost.protocol import LockstepCost
from frontier_mock.cost.slowed import slowed
from frontier_mock.serving.worker import Worker
from frontier_mock.simtime import SimTime

_Batch = tuple[int, int, int]


class Lockstep:
    """See the theory of operation at the top of this module."""

    def __init__(
        self,
        ranks: Sequence[Worker],
        cost: LockstepCost,
        single_step: bool,
        stepwise: bool = False,
    ) -> None:
        self.index = ranks[0].index
        self.wake_ns: SimTime | None = None
        self._ranks = tuple(ranks)
        self._true_cost = self._cost = cost
        self._single_step = single_step
        self._stepwise = stepwise
        self._active: list[Worker] = []
        self._segment: list[_Batch] = []
        self._left = 0
        for rank in ranks:
            rank.group = rank.waker = self

    def wake(self, t_ns: SimTime) -> None:
        """Cross the boundary at `t_ns` and go on to the next one."""
        done = self._active[0].run_steps if self._active else 0
        self._active = []
        self.wake_ns = None
        for rank in self._ranks:
            if rank.executing is not None or rank.scheduler.num_live:
                rank.cross(t_ns)
        if self.wake_ns is not None:
            # A rank came to rest, flushed its cache and goes on in the same instant.
            for rank in self._ranks:
                if rank.executing is None and rank.scheduler.num_live:
                    rank.cross(t_ns)
        active = self._active = [rank for rank in self._ranks if rank.executing is not None]
        if not active:
            self.wake_ns = None
            self._segment = []
            return
        if not self._stepwise and all(_decodes_only(rank) for rank in active):
            self._run_decodes(t_ns, done)
        else:
            self._step_once(t_ns)
        self.wake_ns = active[0].wake_ns

    def shorten(self, steps: int) -> None:
        """Let the present run of everybody end after `steps` steps from the last boundary."""
        for rank in self._active:
            rank.shorten(steps)
        self.wake_ns = self._active[0].wake_ns

    def slow(self, extra_ns: SimTime) -> None:
        """Every joint step from the next boundary on takes so much longer than it should."""
        self._cost = slowed(self._true_cost, extra_ns)
        self._segment = []

    def wake_idle(self, t_ns: SimTime) -> None:
        """A rank that executes nothing has something to do from `t_ns` on."""
        if not self._active:
            if self.wake_ns is None or self.wake_ns > t_ns:
                self.wake_ns = t_ns
            return
        steps = self._active[0].steps_until(t_ns)
        if steps < self._active[0].run_steps:
            self.shorten(steps)

    def _step_once(self, t_ns: SimTime) -> None:
        """One step with prompts in it, on some rank at least.

        If there is nothing to compute at all, prompts come in that other engines have computed.
        """
        batches = [rank.batch() for rank in self._ranks]
        computed = any(batch.num_decodes or batch.chunks for batch in batches)
        price_ns = self._cost.lockstep(batches) if computed else 0
        steps = [rank.executing for rank in self._active]
        loads = [step.load for step in steps if step is not None and step.load is not None]
        duration_ns = round(max([load.stretched(price_ns) for load in loads], default=price_ns))
        self._segment = []
        for rank in self._active:
            assert rank.executing is not None
            if rank.executing.ticks:
                rank.open(t_ns, float(duration_ns), 0.0)
                rank.run(1)
            else:
                rank.put_off(t_ns, duration_ns)

    def _run_decodes(self, t_ns: SimTime, done: int) -> None:
        """As many steps as nobody needs to look at."""
        active = self._active
        segment = [_identity(rank) for rank in active]
        self._left -= done
        if segment != self._segment or self._left < 1:
            run = self._cost.lockstep_run([rank.batch() for rank in self._ranks])
            for rank in active:
                rank.open(t_ns, run.first_ns, run.growth_ns)
            self._segment, self._left = segment, run.steps
        steps = self._left
        if self._single_step:
            steps = 1
        else:
            for rank in active:
                steps = min(steps, rank.quiet_steps(steps))
        for rank in active:
            rank.run(steps)


def _decodes_only(rank: Worker) -> bool:
    step = rank.executing
    return step is not None and step.ticks == 1 and not step.chunks


def _identity(rank: Worker) -> _Batch:
    """What stays the same for as long as a rank decodes the same sequences."""
    step = rank.executing
    assert step is not None
    return rank.index, step.num_decodes, step.kv_offset
