"""What a cluster is made of."""

from dataclasses import dataclass, replace

from frontier_mock.cost.afd.spec import AfdSpec
from frontier_mock.cost.specs import StepSpec
from frontier_mock.serving.specs import AnySchedulerSpec


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One engine, fully resolved (no defaults left to fill).

    A server with data parallelism is `dp_size` of these in a row, alike but for `dp_rank`; routers
    see the first one's name and port. They step together if `step.parallel.dp` says so, and
    `rank_policy` is how the server spreads requests over them (`cluster.ranks`). With `afd` they
    are ranks of attention only, and share FFN GPUs.
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
    afd: AfdSpec | None = None

    @property
    def server(self) -> str:
        """Name of the server it belongs to."""
        return self.name.removesuffix(f".dp{self.dp_rank}") if self.dp_size > 1 else self.name

    @property
    def gpus(self) -> int:
        """GPUs of this engine alone: of ranks that step together, `step.parallel` counts all."""
        parallel = self.step.parallel
        return parallel.gpus // parallel.dp


def ranks_of(server: WorkerSpec) -> tuple[WorkerSpec, ...]:
    """The engines of a server, whose names say which rank each of them is."""
    if server.dp_size == 1:
        return (server,)
    return tuple(
        replace(server, name=f"{server.name}.dp{rank}", dp_rank=rank)
        for rank in range(server.dp_size)
    )


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """Engines in order, and the routing policy used when no real router stands in front."""

    workers: tuple[WorkerSpec, ...]
    router_policy: str
    seed: int
    single_step: bool = False
