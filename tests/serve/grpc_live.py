"""What tests of the gRPC services share: a server with a port of one kind, and calls on it."""

from dataclasses import replace
from typing import Any

import grpc
import pytest

from frontier_mock.serve.grpc_settings import GrpcSpec
from frontier_mock.serve.up import ClusterServer, ServeSpec

LEASE = [("tracestate", "fmock=agent")]


def with_grpc(spec: ServeSpec, *services: str) -> ServeSpec:
    """The same servers, each with a gRPC port."""
    return replace(spec, grpc=[GrpcSpec(0, services) for _ in spec.served])


def target(server: ClusterServer) -> str:
    """Where the only worker's gRPC port is."""
    (port,) = server.grpc_ports
    assert port is not None
    return port.url.removeprefix("grpc://")


async def answers(call: Any) -> list[Any]:
    """All messages of a call."""
    return [message async for message in call]


async def refused(call: Any) -> tuple[str, str]:
    """Code and message that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answers(call) if hasattr(call, "__aiter__") else await call
    return caught.value.code().name, caught.value.details()
