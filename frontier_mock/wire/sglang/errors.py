"""SGLang's errors: six envelopes, one per family of routes, and their bytes.

Shapes and types are those of SGLang 0.5.23 (`entrypoints/http_server.py` and
`openai/serving_base.py`); specs/sglang_and_routers.md section 1.0 lists them.
"""

import json
from collections.abc import Callable
from http import HTTPStatus

from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.tokenizer import Json

QUEUE_FULL = "The request queue is full."
"""Why `--max-queued-requests` refuses a request."""

_ANTHROPIC_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class SglangError(Exception):
    """An answer other than 200: its status and the body's JSON value, `payload`."""

    def __init__(self, status: int, message: str, payload: Json) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.payload = payload

    def body(self) -> bytes:
        """The body as compact UTF-8 JSON, as orjson writes it."""
        text = json.dumps(self.payload, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "surrogatepass")


class CrashError(Exception):
    """What nobody catches in SGLang: a bare 500, or a stream that breaks off as soon as it began.

    `media_type` is that of the stream, empty if a whole answer was asked for.
    """

    def __init__(self, message: str, media_type: str = "") -> None:
        super().__init__(message)
        self.media_type = media_type


class SettledError(Exception):
    """There is an answer already, which the engine has no part in: `body`, given unix time."""

    def __init__(self, body: Callable[[float], bytes], media_type: str) -> None:
        super().__init__()
        self.body = body
        self.media_type = media_type


def error_object(message: str, kind: str, status: int) -> Json:
    """The flat object of the OpenAI routes (`ErrorResponse`)."""
    return {"object": "error", "message": message, "type": kind, "param": None, "code": status}


def openai_error(message: str, kind: str = "BadRequestError", status: int = 400) -> SglangError:
    """What an OpenAI handler answers: BadRequestError by default, BadRequest for a ValueError."""
    return SglangError(status, message, error_object(message, kind, status))


def http_error(message: str, status: int) -> SglangError:
    """An HTTPException: the same object, with the status as its type."""
    return openai_error(message, str(status), status)


def native_error(message: str, status: int = 400) -> SglangError:
    """A ValueError on a native route."""
    return SglangError(status, message, {"error": {"message": message}})


def gate_error(text: str) -> SglangError:
    """What the schema of /generate refuses after the body has been parsed."""
    return SglangError(400, text, {"error": text})


def validation_error(error: ApiError) -> SglangError:
    """A body that does not fit the route's schema, found by the checks of `wire.fields`."""
    return openai_error(error.message, "Bad Request", 400)


def responses_error(message: str, status: int) -> SglangError:
    """The nested envelope of /v1/responses."""
    return nested_error(message, HTTPStatus(status).phrase, status)


def nested_error(message: str, kind: str, status: int, parameter: str | None = None) -> SglangError:
    """The same, with a type and a parameter of its own, as the handler of the route makes it."""
    nested: Json = {"message": message, "type": kind, "param": parameter, "code": status}
    return SglangError(status, message, {"error": nested})


def anthropic_kind(status: int) -> str:
    """Anthropic's word for a status."""
    return _ANTHROPIC_KINDS.get(status, "api_error")


def anthropic_error(message: str, status: int) -> SglangError:
    """The envelope of /v1/messages; what went wrong inside is nobody's business there."""
    kind = anthropic_kind(status)
    shown = "Internal server error" if status >= 500 else message or "Request failed"
    return SglangError(status, shown, {"type": "error", "error": {"type": kind, "message": shown}})


def detail_error(detail: Json, status: int) -> SglangError:
    """FastAPI's own envelope, which /v1/systemone and unknown paths keep."""
    return SglangError(status, str(detail), {"detail": detail})


def bad_query(name: str, value: str | None) -> SglangError:
    """400 for a query parameter that is not the whole number it should be, or is not there."""
    problem = (
        {"type": "missing", "loc": f"query.{name}", "msg": "Field required", "input": "None"}
        if value is None
        else {
            "type": "int_parsing",
            "loc": f"query.{name}",
            "msg": "Input should be a valid integer, unable to parse string as an integer",
            "input": value,
        }
    )
    return openai_error(f"1 validation error:\n  {problem}", "Bad Request", 400)


def unsupported_media_type() -> SglangError:
    """400 for anything but application/json on an OpenAI route."""
    problem: Json = {
        "loc": ["header", "content-type"],
        "msg": "Unsupported Media Type: Only 'application/json' is allowed",
        "type": "value_error",
    }
    return openai_error(f"1 validation error:\n  {problem} [{problem}]", "Bad Request", 400)


def unknown_model(name: str) -> SglangError:
    """404 of GET /v1/models/{model}; the code is a word here."""
    message = f"The model '{name}' does not exist"
    body: Json = {
        "message": message,
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    return SglangError(404, message, {"error": body})


def denied(status: int) -> SglangError:
    """401 or 403 of the API keys."""
    word = "Unauthorized" if status == 401 else "Forbidden"
    return SglangError(status, word, {"error": word})


def stream_error_frame(message: str, status: int = 400) -> bytes:
    """An error in the event stream of /generate, which has begun before anything is checked."""
    payload: Json = {
        "error": {
            "message": message,
            "type": "invalid_request_error",
            "code": status,
            "retryable": False,
        }
    }
    return _frame(json.dumps(payload, ensure_ascii=False, separators=(",", ":")))


def openai_stream_error_frame(message: str, kind: str, status: int) -> bytes:
    """An error in the event stream of an OpenAI route, in the standard library's spacing."""
    return _frame(json.dumps({"error": error_object(message, kind, status)}))


def _frame(text: str) -> bytes:
    return f"data: {text}\n\n".encode("utf-8", "surrogatepass")
