"""A selector that knows which of its descriptors lead out of the process.

On Linux, what one end of a loopback connection has sent is readable at the other end when `send`
returns. So if both ends are registered here, a poll that finds nothing has found everything, and
such a connection never gives a reason to wait (measured: shared/specs/virtual_time.md 3.4).
"""

import os
import selectors
import socket
import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

Ready = list[tuple[selectors.SelectorKey, int]]
"""What `select` returns."""

Select = Callable[[selectors.BaseSelector, float | None], Ready]
"""Decides about one `select`, given the real selector and the timeout asked for."""


class WatchedSelector(selectors.BaseSelector):
    """The platform's selector, with somebody else in charge of waiting."""

    def __init__(self, select: Select) -> None:
        self._inner = selectors.DefaultSelector()
        self._decide = select
        self._new: set[int] = set()
        self._peers: dict[int, object] = {}
        self._names: set[object] = set()
        self._outside: list[int] | None = []

    def register(
        self, fileobj: "FileDescriptorLike", events: int, data: object = None
    ) -> selectors.SelectorKey:
        """As any selector's."""
        key = self._inner.register(fileobj, events, data)
        self._new.add(key.fd)
        self._outside = None
        return key

    def unregister(self, fileobj: "FileDescriptorLike") -> selectors.SelectorKey:
        """As any selector's."""
        key = self._inner.unregister(fileobj)
        self._new.discard(key.fd)
        self._peers.pop(key.fd, None)
        self._outside = None
        return key

    def modify(
        self, fileobj: "FileDescriptorLike", events: int, data: object = None
    ) -> selectors.SelectorKey:
        """As any selector's."""
        return self._inner.modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> Ready:
        """Whatever the one in charge decides."""
        return self._decide(self._inner, timeout)

    def poll(self) -> Ready:
        """What is ready now."""
        return self._inner.select(0)

    def close(self) -> None:
        """As any selector's."""
        self._inner.close()

    def get_map(self) -> Mapping["FileDescriptorLike", selectors.SelectorKey]:
        """As any selector's."""
        return self._inner.get_map()

    def outside(self) -> list[int]:
        """Descriptors whose other end is not registered here."""
        if self._outside is None:
            for fd in self._new:
                self._look_at(fd)
            self._new.clear()
            inside = self._names
            self._outside = [fd for fd, peer in self._peers.items() if peer not in inside]
        return self._outside

    def _look_at(self, fd: int) -> None:
        """Note the name of a socket and, if it has a partner, that one's."""
        try:
            sock = socket.socket(fileno=fd)
        except OSError:
            self._peers[fd] = ("not a socket", fd)
            return
        try:
            if sock.family == socket.AF_UNIX:
                if _peer_process(sock) != os.getpid():
                    self._peers[fd] = ("another process", fd)
                return
            # Names stay known when reading pauses: the partner has not moved away.
            self._names.add(sock.getsockname())
            if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                self._peers[fd] = sock.getpeername()
        except OSError:
            self._peers[fd] = ("not connected yet", fd)
        finally:
            sock.detach()


def _peer_process(sock: socket.socket) -> int:
    """Who created the other end of a Unix socket; our own id where there is no way to tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return os.getpid()
    size = struct.calcsize("3i")
    pid: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]
    return pid or os.getpid()
