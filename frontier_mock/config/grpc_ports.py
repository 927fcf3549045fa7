"""Which of a worker's ports speaks HTTP and which gRPC, by the engines' own flags.

vLLM's --grpc and SGLang's --smg-grpc-mode put gRPC on --port, where HTTP would be. vLLM has no HTTP
then; ours stays, on a port of its own, because the clock's verbs and /sim are there.
"""

from typing import NamedTuple

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.sglang_flags import SglangArgs
from frontier_mock.config.vllm_flags import VllmArgs


class Ports(NamedTuple):
    """Port numbers, 0 for any free one; `grpc` is None where there is none."""

    http: int
    grpc: int | None


def ports_of(args: VllmArgs, sglang: SglangArgs | None, port: int, grpc_port: int | None) -> Ports:
    """The ports of a worker with `port`, and a `grpc_port` beside it if a scenario gives it one.

    Raises ConfigError for a side-car port beyond 65535.
    """
    if sglang is not None:
        if not sglang.smg_grpc_mode:
            return Ports(port, grpc_port)
        sidecar = sglang.smg_http_sidecar_port
        http = (port + 1 if port else 0) if sidecar is None else sidecar
        if http > 65535:
            raise ConfigError(f"argument --smg-http-sidecar-port: {http} is beyond 65535")
        return Ports(http, port)
    if args.grpc:
        return Ports(0, port)
    return Ports(port, args.grpc_port if grpc_port is None else grpc_port)
