"""What a worker's gRPC port is told, and how it is opened. grpc is imported when it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from frontier_mock.config.errors import ConfigError
from frontier_mock.wire.served import ServedModel

if TYPE_CHECKING:
    from frontier_mock.serve.grpc_server import GrpcServer
    from frontier_mock.serve.sglang_app import SglangApp
    from frontier_mock.serve.up import ClusterServer
    from frontier_mock.serve.vllm_app import VllmApp

VLLM_ENGINE = "vllm.grpc.engine.VllmEngine"
VLLM_INFERENCE = "vllm.Inference"
VLLM_CONTROL = "vllm.Control"
SGLANG_SCHEDULER = "sglang.grpc.scheduler.SglangScheduler"


@dataclass(frozen=True, slots=True)
class GrpcSpec:
    """A worker's gRPC port: its number, 0 for any free one, and the services on it.

    `tokenizer_dir` is the tokenizer that GetTokenizer sends, None for our own.
    """

    port: int
    services: tuple[str, ...]
    tokenizer_dir: str | None = None


def open_ports(
    specs: Sequence[GrpcSpec | None],
    server: "ClusterServer",
    served: Sequence[ServedModel],
    apps: "Sequence[VllmApp | SglangApp]",
    host: str | None,
) -> "list[GrpcServer | None]":
    """The gRPC port of each worker that has one, not listening yet.

    `specs`, `served` and `apps` are by worker. Raises ConfigError if grpc is not installed.
    """
    workers = server.cluster.servers
    if not any(specs):
        return [None] * len(workers)
    try:
        from frontier_mock.serve.grpc_server import open_port
    except ImportError as error:
        raise ConfigError(f"grpc: {error}; needs pip install 'frontier-mock[grpc]'") from None
    return [
        None if spec is None else open_port(spec, server, engines.start, model, app, host)
        for spec, engines, model, app in zip(specs, workers, served, apps, strict=True)
    ]
