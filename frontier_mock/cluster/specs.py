"""What a cluster is made of."""

from dataclasses import dataclass

from frontier_mock.cost.specs import StepSpec
from frontier_mock.serving.specs import AnySchedulerSpec


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One engine process as a router sees it, fully resolved (no defaults left to fill)."""

    name: str
    port: int
    role: str
    served_model_name: str
    step: StepSpec
    scheduler: AnySchedulerSpec


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """Workers in order, and the routing policy used when no real router stands in front."""

    workers: tuple[WorkerSpec, ...]
    router_policy: str
    seed: int
    single_step: bool = False
