"""Which handler answers a request: fixed paths in a dictionary, a few that end in a variable."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol
from urllib.parse import quote

from frontier_mock.serve.answers import Answer
from frontier_mock.serve.connection import Exchange
from frontier_mock.serve.http1 import Request

Handler = Callable[[Exchange], Answer | None]
"""Returns the answer, or None if it comes later through the exchange."""

Table = Mapping[tuple[str, str], Handler]
"""Handlers by (method, path). A path that ends in `/*` stands for all that begin as it does."""


class Routes(Protocol):
    """A set of routes that another module contributes."""

    def table(self) -> Table:
        """Handlers by (method, path)."""
        ...


class RouteTable:
    """The routes of one port."""

    __slots__ = ("_by_path", "_open")

    def __init__(self, tables: Sequence[Table]) -> None:
        """What several tables have to say about a path is put together; the last one wins."""
        self._by_path: dict[str, dict[str, Handler]] = {}
        self._open: dict[str, dict[str, Handler]] = {}
        for table in tables:
            for (method, path), handler in table.items():
                if path.endswith("/*"):
                    self._open.setdefault(path[:-1], {})[method] = handler
                else:
                    self._by_path.setdefault(path, {})[method] = handler

    def __contains__(self, path: str) -> bool:
        """Whether there is a route for `path`, whatever the method."""
        return self._methods(path) is not None

    def find(self, path: str, method: str) -> Handler | Answer:
        """The handler, or FastAPI's answer where there is none."""
        by_method = self._methods(path)
        if by_method is None:
            return Answer(404, b'{"detail":"Not Found"}')
        handler = by_method.get(method)
        if handler is None:
            allow = f"allow: {', '.join(by_method)}\r\n"
            return Answer(405, b'{"detail":"Method Not Allowed"}', extra=allow)
        return handler

    def redirection(self, request: Request, path: str) -> Answer | None:
        """Where `path` is, of which there is one with a slash more, or none, at its end.

        Starlette sends clients there (`Router.redirect_slashes`); None if there is no such route.
        """
        other = path.rstrip("/") if path.endswith("/") else f"{path}/"
        if path == "/" or not other or other not in self:
            return None
        query = f"?{request.query_string}" if request.query_string else ""
        asked = request.path
        there = asked.rstrip("/") if asked.endswith("/") else f"{asked}/"
        where = f"http://{request.headers.get('host', '')}{quote(there)}{query}"
        return Answer(307, b"", "", f"location: {where}\r\n")

    def _methods(self, path: str) -> dict[str, Handler] | None:
        found = self._by_path.get(path)
        if found is None:
            for prefix, by_method in self._open.items():
                if path.startswith(prefix):
                    return by_method
        return found
