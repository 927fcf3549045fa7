"""What a cluster is made of."""

from dataclasses import dataclass, field, replace

from frontier_mock.cluster.links import FabricSpec
from frontier_mock.core.commands import Change
from frontier_mock.cost.afd.spec import AfdSpec
from frontier_mock.cost.specs import StepSpec
from frontier_mock.serving.specs import AnySchedulerSpec
from frontier_mock.simtime import SimTime


@dataclass(frozen=True, slots=True)
class ConnectorSpec:
    """How an engine's KV gets to others: vLLM's connector, SGLang's transfer backend.

    `name` is the engine's own word for it; the rest is as in `core.commands.Transfer`.
    """

    name: str
    style: str = "pull"
    patience_s: float = 30.0
    recompute: bool = False
    streams: bool = False


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One engine, fully resolved (no defaults left to fill).

    A server with data parallelism is `dp_size` of these in a row, alike but for `dp_rank`; routers
    see the first one's name and port. They step together if `step.parallel.dp` says so, and
    `rank_policy` is how the server spreads requests over them (`cluster.ranks`). With `afd` they
    are ranks of attention only, and share FFN GPUs. An engine of `role` "prefill" or "decode" has
    a `connector`; others may have one.
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
    connector: ConnectorSpec | None = None

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
    """Engines in order, and the routing policy used when no real router stands in front.

    With prefill and decode engines that router makes two legs of each request: `router_policy`
    chooses among the former and `decode_policy` among the latter, and KV moves over `fabric`.
    `timeline` is what happens to servers, and when, in order of time.
    """

    workers: tuple[WorkerSpec, ...]
    router_policy: str
    seed: int
    single_step: bool = False
    decode_policy: str = "round_robin"
    fabric: FabricSpec = field(default_factory=FabricSpec)
    timeline: tuple[tuple[SimTime, Change], ...] = ()
