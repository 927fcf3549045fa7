"""Listening sockets, and what they are called."""

import socket
from pathlib import Path

from frontier_mock.config.errors import ConfigError

_PROBES = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4))
"""Seconds until the first, seconds between two, how many without an answer."""


def bind(host: str | None, port: int) -> socket.socket:
    """A listening address; `host` None is all interfaces, port 0 any free one.

    Raises ConfigError.
    """
    address = host or "0.0.0.0"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # With the protocol spelt out, or asyncio would leave Nagle's algorithm on and hold back chunks.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.setblocking(False)
    except (OSError, OverflowError) as error:
        sock.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"port: cannot listen on {address}:{port}: {reason}") from None
    return sock


def bind_file(path: str) -> socket.socket:
    """A listening socket file, in place of one that nobody listens on any more.

    Raises ConfigError.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if Path(path).is_socket() and not _answers(path):
            Path(path).unlink()
        sock.bind(path)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        reason = error.strerror or str(error)
        raise ConfigError(f"uds: cannot listen on {path}: {reason}") from None
    return sock


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == 0


def url_of(sock: socket.socket, host: str | None) -> str:
    """Base URL of what `bind(host, ...)` bound; `unix:PATH` of a socket file."""
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    address = host or "0.0.0.0"
    shown = f"[{address}]" if ":" in address else address
    return f"http://{shown}:{sock.getsockname()[1]}"


def notice_silence(sock: socket.socket | None) -> None:
    """Let the kernel find out, within half a minute, that the other end's host is gone."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES:
        # Each platform has some of these.
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
