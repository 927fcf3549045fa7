"""What a cluster is made of."""

from dataclasses import dataclass

from frontier_mock.cost.specs import StepSpec
from frontier_mock.serving.specs import AnySchedulerSpec


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One engine, fully resolved (no defaults left to fill).

    A server with data parallelism is `dp_size` of these in a row, alike but for `dp_rank`; routers
    see the first one's name and port. They step together if `step.parallel.dp` says so, and
    `rank_policy` is how the server spreads requests over them (`cluster.ranks`).
    """

    name: str
    port: int
    role: str
    served_model_name: str
    step: StepSpec
    scheduler: AnySchedulerSpec
    dp_rank: int = 0
    dp_size: int = 1
    rank_policy: str = "vllm"


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """Engines in order, and the routing policy used when no real router stands in front."""

    workers: tuple[WorkerSpec, ...]
    router_policy: str
    seed: int
    single_step: bool = False
