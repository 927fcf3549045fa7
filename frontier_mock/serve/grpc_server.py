"""One worker's gRPC port: the services of its engine, health and reflection.

Imported only when asked for: grpc costs 20 MB of memory and a tenth of a second to import.
"""

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from smg_grpc_proto.generated import sglang_scheduler_pb2_grpc, vllm_engine_pb2_grpc

from frontier_mock.config.errors import ConfigError
from frontier_mock.serve import grpc_inference, grpc_sglang, grpc_vllm
from frontier_mock.serve.grpc_calls import Context
from frontier_mock.serve.grpc_part import GrpcPart
from frontier_mock.serve.grpc_settings import (
    SGLANG_SCHEDULER,
    VLLM_CONTROL,
    VLLM_ENGINE,
    VLLM_INFERENCE,
    GrpcSpec,
)
from frontier_mock.serve.sglang_app import SglangApp
from frontier_mock.serve.vllm_app import VllmApp
from frontier_mock.stubs import vllm_control_pb2_grpc, vllm_inference_pb2_grpc
from frontier_mock.wire.served import ServedModel

if TYPE_CHECKING:
    from frontier_mock.serve.up import ClusterServer

logger = logging.getLogger("frontier_mock")

_GRACE_S = 0.5
_HEALTH = "grpc.health.v1.Health"

_OPTIONS = (
    # Without this a second server on the same port would take every other connection.
    ("grpc.so_reuseport", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", 256 << 20),
    # Routers ping while a long answer is silent, and must not be told off for it.
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10000),
    ("grpc.keepalive_permit_without_calls", 1),
)


class _OneLine(logging.Filter):
    """Tells of a failed call in one line, and of a caller that hung up in none.

    grpc itself logs a traceback for every message that cannot be parsed.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log, and without the traceback."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return True
        if type(error).__name__ == "ExecuteBatchError":
            return False
        record.msg, record.args = f"{record.getMessage()}: {error}", ()
        record.exc_info = record.exc_text = None
        return True


_ONE_LINE = _OneLine()

Register = Callable[[GrpcPart, Any], None]
"""Adds a service to a server."""


def _add_vllm_engine(part: GrpcPart, server: Any) -> None:
    servicer = grpc_vllm.VllmEngine(part)
    vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server(servicer, server)


def _add_vllm_inference(part: GrpcPart, server: Any) -> None:
    servicer = grpc_inference.Inference(part)
    vllm_inference_pb2_grpc.add_InferenceServicer_to_server(servicer, server)


def _add_vllm_control(part: GrpcPart, server: Any) -> None:
    vllm_control_pb2_grpc.add_ControlServicer_to_server(grpc_inference.Control(part), server)


def _add_sglang_scheduler(part: GrpcPart, server: Any) -> None:
    servicer = grpc_sglang.SglangScheduler(part)
    sglang_scheduler_pb2_grpc.add_SglangSchedulerServicer_to_server(servicer, server)


_SERVICES: Mapping[str, Register] = {
    VLLM_ENGINE: _add_vllm_engine,
    VLLM_INFERENCE: _add_vllm_inference,
    VLLM_CONTROL: _add_vllm_control,
    SGLANG_SCHEDULER: _add_sglang_scheduler,
}


class GrpcServer:
    """`start` and `stop` must run in the Driver's event loop."""

    def __init__(
        self, part: GrpcPart, services: Sequence[str], host: str | None, port: int
    ) -> None:
        self._part = part
        self._services = services
        self._host = host
        self.port = port
        self._server: Any = None
        self._health: Health | None = None

    @property
    def url(self) -> str:
        """What routers call this worker."""
        address = self._host or "0.0.0.0"
        shown = f"[{address}]" if ":" in address else address
        return f"grpc://{shown}:{self.port}"

    async def start(self) -> None:
        """Listen. Raises ConfigError for a port in use."""
        logging.getLogger("grpc._cython.cygrpc").addFilter(_ONE_LINE)
        server = grpc.aio.server(options=_OPTIONS)
        names = self._services
        for name in names:
            _SERVICES[name](self._part, server)
        self._health = Health(self._part, names)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*names, _HEALTH, reflection.SERVICE_NAME), server)
        address = self.url.removeprefix("grpc://")
        try:
            self.port = server.add_insecure_port(address)
        except RuntimeError:
            raise ConfigError(f"grpc-port: cannot listen on {address}") from None
        await server.start()
        self._server = server
        engine = "vLLM" if self._part.served.sglang is None else "SGLang"
        logger.info("%s gRPC server started on %s", engine, self.url.removeprefix("grpc://"))

    def begin_stop(self) -> None:
        """Health says so from now on."""
        if self._health is not None:
            self._health.stopping = True

    async def stop(self) -> None:
        """End all calls."""
        if self._server is not None:
            await self._server.stop(_GRACE_S)


def open_port(
    spec: GrpcSpec,
    server: "ClusterServer",
    number: int,
    served: ServedModel,
    app: VllmApp | SglangApp,
    host: str | None,
) -> GrpcServer:
    """The gRPC port of the worker whose first engine is `number`, not listening yet."""
    cluster = server.cluster
    ranks = cluster.ranks(number)
    published = {} if server.kv_events is None else server.kv_events.publishers
    part = GrpcPart(
        server.driver,
        cluster.spec.workers[number],
        [cluster.workers[index] for index in ranks],
        replace(served, worker=number),
        app,
        [server.metrics[index] for index in ranks],
        {rank: published[index] for rank, index in enumerate(ranks) if index in published},
        spec.tokenizer_dir,
    )
    return GrpcServer(part, spec.services, host, spec.port)


class Health:
    """grpc.health.v1: the server as a whole, and each of its services by name."""

    def __init__(self, part: GrpcPart, names: Sequence[str]) -> None:
        self._part = part
        self._known = frozenset(("", *names))
        self.stopping = False

    async def Check(self, request: Any, context: Context) -> Any:
        """The status now; NOT_FOUND for a service that is not here."""
        status = self._status(request.service)
        if status is None:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            context.set_details(f"Unknown service: {request.service}")
            status = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Context) -> AsyncIterator[Any]:
        """The status now, once, as the engines' servicers answer it."""
        status = self._status(request.service)
        if status is None:
            status = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        yield health_pb2.HealthCheckResponse(status=status)

    async def List(self, request: Any, context: Context) -> None:
        """The engines' servicers do not have it."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not implemented!")

    def _status(self, service: str) -> int | None:
        if self.stopping or not self._part.alive:
            return int(health_pb2.HealthCheckResponse.NOT_SERVING)
        if service in self._known:
            return int(health_pb2.HealthCheckResponse.SERVING)
        return None
