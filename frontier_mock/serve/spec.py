"""What is to be served: a resolved cluster, its front ends and its clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from frontier_mock.cluster.specs import ClusterSpec
from frontier_mock.config.kv_events import KvSource
from frontier_mock.cost.protocol import StepCost
from frontier_mock.drive.pace import ClockSpec
from frontier_mock.serve.grpc_settings import GrpcSpec
from frontier_mock.serve.settings import HttpSettings, LogSettings
from frontier_mock.wire.served import ServedModel


@dataclass(frozen=True, slots=True)
class ServeSpec:
    """Everything that is served, resolved. `served[i]` is what the cluster's i-th server serves.

    `host` None listens on all interfaces; a worker's port 0 takes any free one. `ready_file` gets
    the URLs of all workers once all of them listen. `journal_head` is the journal's first line,
    which says what it was recorded on (`config.journals`). `clock_server` is the URL of the process
    that keeps the clock, None if this one does. `clock_grpc_port` serves it over gRPC as well.
    `kv_sources` are the publishers of KV events by engine, and `kv_settle_s` the real time their
    subscribers get before a response ends. `oracle` scores routing (`cluster.oracle`).
    `grpc` are the gRPC ports of the servers that have one, in the order of `served`. `keep_events`
    is how many events GET /sim/report can look back on; beyond them it has digests only. `logs` say
    what each server logs as its engine would, in the order of `served`.
    """

    cluster: ClusterSpec
    costs: Sequence[StepCost]
    served: Sequence[ServedModel]
    clock: ClockSpec
    http: HttpSettings = field(default_factory=HttpSettings)
    scenario: str = "live"
    host: str | None = None
    ready_file: str | None = None
    journal_path: str | None = None
    journal_head: str = ""
    clock_server: str | None = None
    clock_grpc_port: int | None = None
    grpc: Sequence[GrpcSpec | None] = ()
    kv_sources: Mapping[int, KvSource] = field(default_factory=dict)
    kv_settle_s: float = 0.0
    oracle: bool = False
    keep_events: int = 500_000
    logs: Sequence[LogSettings | None] = ()

    @property
    def names(self) -> list[str]:
        """Name of each server, in order."""
        return [worker.server for worker in self.cluster.workers if worker.dp_rank == 0]
