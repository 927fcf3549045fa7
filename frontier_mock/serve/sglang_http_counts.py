"""Requests and answers of one SGLang port, counted as its HTTP middleware counts them."""

from frontier_mock.serve.http1 import Request
from frontier_mock.wire.sglang.metrics import http_families


class HttpCounts:
    """By endpoint and method; `active` are those that have not been answered."""

    __slots__ = ("_active", "_keys", "_requests", "_responses")

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str], int] = {}
        self._responses: dict[tuple[str, int, str], int] = {}
        self._active: dict[tuple[str, str], int] = {}
        self._keys: dict[str, int] = {}

    def began(self, request: Request) -> None:
        """A request has come as far as a route."""
        key = (request.path, request.method)
        self._requests[key] = self._requests.get(key, 0) + 1
        self._active[key] = self._active.get(key, 0) + 1
        routing_key = request.headers.get("x-smg-routing-key")
        if routing_key:
            self._keys[routing_key] = self._keys.get(routing_key, 0) + 1

    def ended(self, request: Request, status: int) -> None:
        """It is answered."""
        key = (request.path, request.method)
        self._active[key] = self._active.get(key, 1) - 1
        told = (request.path, status, request.method)
        self._responses[told] = self._responses.get(told, 0) + 1
        routing_key = request.headers.get("x-smg-routing-key")
        if routing_key and routing_key in self._keys:
            self._keys[routing_key] -= 1
            if not self._keys[routing_key]:
                del self._keys[routing_key]

    def render(self) -> str:
        """The families in Prometheus text."""
        return http_families(self._requests, self._responses, self._active, len(self._keys))
