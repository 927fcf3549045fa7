"""What a cluster server opens before it serves: sockets, the journal, optional parts."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.journals import entry_line
from frontier_mock.core.commands import Command
from frontier_mock.drive.driver import Driver
from frontier_mock.serve.bootstrap import BootstrapServer, MooncakeRegistry, SglangRooms
from frontier_mock.serve.clock_routes import Clockwork
from frontier_mock.serve.halves import Halves
from frontier_mock.serve.sockets import bind, bind_file
from frontier_mock.serve.spec import ServeSpec
from frontier_mock.simtime import SimTime
from frontier_mock.wire.served import ServedModel

if TYPE_CHECKING:
    from frontier_mock.serve.clock_grpc import GrpcClock
    from frontier_mock.serve.kv_events import KvEvents
    from frontier_mock.serve.proxy_notices import ProxyNotices


def bootstrap_server(
    host: str | None, served: ServedModel, sock: socket.socket, halves: Halves
) -> BootstrapServer | None:
    """Where decode servers and routers look for the prefill server that listens on `sock`.

    None for servers that have no such port. Raises ConfigError if it is taken.
    """
    if sock.family == socket.AF_UNIX:
        return None
    part = None if served.sglang is None else served.sglang.disaggregation
    if part is not None and part.mode == "prefill":
        rooms = SglangRooms(part, sock.getsockname()[1], halves)
        server = BootstrapServer(rooms, bind(host, part.port))
        halves.at(server.port)
        return server
    if served.kv is not None and served.kv.bootstrap_port is not None:
        return BootstrapServer(MooncakeRegistry(served.kv), bind(host, served.kv.bootstrap_port))
    return None


def kv_publishers(spec: ServeSpec, created_s: float) -> "KvEvents":
    """The publishers of KV events. Raises ConfigError."""
    try:
        from frontier_mock.serve.kv_events import KvEvents
    except ImportError as error:
        raise ConfigError(
            f"kv-events-config: {error}; needs pip install 'frontier-mock[kv-events]'"
        ) from None
    return KvEvents(spec.kv_sources, created_s, spec.host, spec.kv_settle_s)


def proxy_notices(spec: ServeSpec, driver: Driver) -> "ProxyNotices | None":
    """Who tells LMCache's proxies what has come; None without any. Raises ConfigError."""
    ports = [served.kv for served in spec.served if served.kv is not None]
    if not any(port.lmcache is not None and port.lmcache.proxy for port in ports):
        return None
    try:
        from frontier_mock.serve.proxy_notices import ProxyNotices
    except ImportError as error:
        raise ConfigError(
            f"lmcache.pd_proxy_port: {error}; needs pip install 'frontier-mock[kv-events]'"
        ) from None
    firsts = [worker for worker in spec.cluster.workers if worker.dp_rank == 0]
    pairs = zip(firsts, spec.served, strict=True)
    return ProxyNotices(driver, [served for one, served in pairs for _ in range(one.dp_size)])


def grpc_clock(clockwork: Clockwork, host: str | None, port: int) -> "GrpcClock":
    """The clock's gRPC port. Raises ConfigError if grpc is not installed."""
    try:
        from frontier_mock.serve.clock_grpc import GrpcClock
    except ImportError as error:
        raise ConfigError(
            f"clock-grpc-port: {error}; needs pip install 'frontier-mock[grpc]'"
        ) from None
    return GrpcClock(clockwork, host, port)


def bind_all(spec: ServeSpec) -> Iterator[socket.socket]:
    """One listening socket per worker. Raises ConfigError."""
    if spec.http.uds is None:
        for worker in spec.cluster.workers:
            if worker.dp_rank == 0:
                yield bind(spec.host, worker.port)
    elif len(spec.served) == 1:
        yield bind_file(spec.http.uds)
    else:
        raise ConfigError(
            f"uds: {spec.http.uds} cannot serve {len(spec.served)} workers; allowed: one"
        )


@contextlib.contextmanager
def open_journal(spec: ServeSpec) -> Iterator[Callable[[SimTime, Command], None] | None]:
    """Where the driver writes what it feeds, None if nobody asked for a journal."""
    path = spec.journal_path
    if path is None:
        yield None
        return
    try:
        with Path(path).open("w", encoding="utf-8") as file:
            if spec.journal_head:
                file.write(spec.journal_head + "\n")

            def write(stamp: SimTime, command: Command) -> None:
                file.write(entry_line(spec.cluster, stamp, command) + "\n")

            yield write
    except OSError as error:
        raise ConfigError(f"journal: cannot write {path}: {error.strerror}") from None
