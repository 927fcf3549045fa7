"""Which kind of worker an engine is."""

from frontier_mock.core.events import EventLog
from frontier_mock.cost.protocol import StagedCost, StepCost
from frontier_mock.serving.drafted_worker import DraftedWorker
from frontier_mock.serving.pipelined import PipelinedWorker
from frontier_mock.serving.specs import AnySchedulerSpec, SchedulerSpec
from frontier_mock.serving.worker import Worker


def build_worker(
    index: int, spec: AnySchedulerSpec, cost: StepCost, log: EventLog, single_step: bool = False
) -> Worker:
    """A worker, with drafts if `spec` has them, with pipeline stages if `cost` has.

    Raises ValueError for an impossible spec, and for one that knows of another number of stages
    than `cost`; TypeError for a cost that cannot price drafts.
    """
    stages = len(cost.stages) if isinstance(cost, StagedCost) else 1
    if stages != spec.pipeline_stages:
        raise ValueError(f"{spec.pipeline_stages} stages to schedule for, {stages} to pay for")
    if isinstance(cost, StagedCost):
        tier = spec.offload if isinstance(spec, SchedulerSpec) else spec.host_tier
        if spec.speculation is not None or tier is not None:
            raise ValueError("neither drafts nor tiers are simulated with pipeline stages")
        return PipelinedWorker(index, spec, cost, log, single_step)
    if spec.speculation is not None:
        return DraftedWorker(index, spec, cost, log, single_step)
    return Worker(index, spec, cost, log, single_step)
