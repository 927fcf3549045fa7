"""vLLM's routes for features that are off, and for what no model here does."""

from collections.abc import Callable

from frontier_mock.serve.answers import Answer, json_answer
from frontier_mock.serve.connection import Exchange
from frontier_mock.serve.http1 import Request
from frontier_mock.serve.routing import Handler, Table
from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.fields import load_object

_IDLE = {
    "is_scaling_elastic_ep": False,
    "phase": "idle",
    "epoch": None,
    "error": None,
    "requested_data_parallel_size": None,
}
_NOT_SIMULATED = ("/generative_scoring", "/v1/decisions", "/v1/systemone")


class EdgeRoutes:
    """Routes that answer without the engine."""

    def __init__(self, check_json: Callable[[Request], None]) -> None:
        """`check_json` refuses a request whose body is not said to be JSON."""
        self._check_json = check_json

    def table(self) -> Table:
        """Handlers by (method, path)."""
        table: dict[tuple[str, str], Handler] = {
            ("POST", "/is_scaling_elastic_ep"): lambda _: json_answer(_IDLE),
            ("POST", "/scale_elastic_ep"): self._scale,
        }
        for path in _NOT_SIMULATED:
            table["POST", path] = self._refuse
        return table

    def _scale(self, exchange: Exchange) -> Answer:
        """Checked as vLLM checks it; an engine that is not elastic then fails."""
        self._check_json(exchange.request)
        body = load_object(exchange.request.body)
        size, timeout_s = body.get("new_data_parallel_size"), body.get("drain_timeout", 120)
        if size is None:
            raise _bad("new_data_parallel_size is required")
        if not isinstance(size, int) or size <= 0:
            raise _bad("new_data_parallel_size must be a positive integer")
        if not isinstance(timeout_s, int) or timeout_s <= 0:
            raise _bad("drain_timeout must be a positive integer")
        raise ApiError(500, "Scale failed", "Internal Server Error")

    def _refuse(self, exchange: Exchange) -> Answer:
        self._check_json(exchange.request)
        path = exchange.request.path
        raise ApiError(501, f"frontier_mock does not simulate {path}", "NotImplementedError")


def _bad(message: str) -> ApiError:
    return ApiError(400, message, "Bad Request")
