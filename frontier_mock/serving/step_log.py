"""What a worker executed, run by run: kept only for those who draw it or add it up."""

from typing import NamedTuple

from frontier_mock.cost.protocol import RankBatch
from frontier_mock.simtime import SimTime


class StepRun(NamedTuple):
    """Equal steps from `first_step` on, begun at `t_ns`; the worker's timeline knows their ends.

    `batch` is that of the first; each decode has one token more of context in every further step.
    They go on to the next entry, or until the worker had nothing to do. A step that computes only
    prompts while decodes wait has no number of its own: it ends at `pause_end_ns`, else 0.
    """

    first_step: int
    t_ns: SimTime
    batch: RankBatch
    pause_end_ns: SimTime = 0


class StageStep(NamedTuple):
    """One step of an engine with pipeline stages: `number` of its lane, and when each stage began
    and ended it, in nanoseconds."""

    number: int
    batch: RankBatch
    starts_ns: tuple[SimTime, ...]
    ends_ns: tuple[SimTime, ...]
