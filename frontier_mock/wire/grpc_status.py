"""Why a gRPC call ends without an answer: codes by number, messages and trailers.

Which code stands for which HTTP status is one table behind every engine, that of the servicers
that smg starts (smg-grpc-servicer 0.14.1 `engine_status`).
"""

from collections.abc import Mapping

INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
RESOURCE_EXHAUSTED = 8
FAILED_PRECONDITION = 9
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14

_BY_HTTP_STATUS: Mapping[int, int] = {
    400: INVALID_ARGUMENT,
    404: NOT_FOUND,
    408: DEADLINE_EXCEEDED,
    429: RESOURCE_EXHAUSTED,
    503: UNAVAILABLE,
    504: DEADLINE_EXCEEDED,
}


class GrpcError(Exception):
    """A call that ends with a status other than OK: its `code`, `message` and trailing metadata."""

    def __init__(self, code: int, message: str, trailer: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.trailer = trailer


def code_of_http(status: int) -> int:
    """The gRPC code for an HTTP status; INTERNAL for any that the table does not have."""
    return _BY_HTTP_STATUS.get(status, INTERNAL)


def constraint_failed(message: str) -> GrpcError:
    """A grammar the engine cannot compile; the trailer tells smg not to try again."""
    return GrpcError(FAILED_PRECONDITION, message, (("smg-constraint-failed", "engine"),))


def invalid_argument(message: str) -> GrpcError:
    """What the caller has to change."""
    return GrpcError(INVALID_ARGUMENT, message)
