"""vLLM's errors: status, message, type, param and code, and their bytes as body or stream frame.

Messages and types are those of vLLM 0.33 (`entrypoints/serve/exception_handling`, `exceptions`).
"""

import json
import re
from typing import NamedTuple

from frontier_mock.wire.tokenizer import Json

Loc = tuple[str | int, ...]
"""Path to an offending value, as pydantic spells it: ("body", "messages", 0, "role")."""

_MAX_REPORTED = 10
_MAX_INPUT_CHARS = 200
_MAX_ERROR_CHARS = 1000
# vLLM hides what looks like a path of the server before it answers (utils.sanitize_message).
_ROOTED_PATH = re.compile(r"/(?:home|usr|opt|var|tmp|root|lib|mnt|srv)(?:/[\w.\-]+)+")
_FILE_PATH = re.compile(r"(?:/[\w\-]+)+/[\w\-]+\.\w+")


class ApiError(Exception):
    """An answer other than 200. `status` is both the HTTP status and the body's `code`.

    `late` errors are those vLLM finds after a streamed response has begun: a client that asked for
    a stream gets status 200 and an error frame (`frontier_mock.wire.sse.error_frames`). The parser
    sets `stream_kind` to "chat" or "completion" on a late error of a streamed request.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "BadRequestError",
        param: str | None = None,
        late: bool = False,
    ) -> None:
        """`kind` is the body's `type`; see the class for the others."""
        super().__init__(message)
        self.status = status
        self.message = _FILE_PATH.sub("<path>", _ROOTED_PATH.sub("<path>", message)).strip()
        self.kind = kind
        self.param = param
        self.late = late
        self.stream_kind = ""

    def payload(self) -> dict[str, Json]:
        """The body as a value, keys in vLLM's order."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.status,
            }
        }

    def body(self) -> bytes:
        """The body as compact UTF-8 JSON. Raises UnicodeEncodeError, as starlette does."""
        text = json.dumps(self.payload(), ensure_ascii=False, separators=(",", ":"))
        return text.encode()


class Problem(NamedTuple):
    """One violation of the request schema, in pydantic's terms."""

    kind: str
    loc: Loc
    message: str
    value: Json
    context: dict[str, Json] | None = None


def invalid(
    message: str, parameter: str | None = None, value: object = None, late: bool = False
) -> ApiError:
    """400 BadRequestError with vLLM's suffix that names the parameter and its value."""
    extras = [] if parameter is None else [f"parameter={parameter}"]
    if value is not None:
        extras.append(f"value={value}")
    suffix = f" ({', '.join(extras)})" if extras else ""
    return ApiError(400, message + suffix, "BadRequestError", parameter, late)


def schema_error(problems: list[Problem]) -> ApiError:
    """400 "N validation errors" envelope, at most ten entries, each bounded in size."""
    count = len(problems)
    label = "error" if count == 1 else "errors"
    lines = [f"{count} validation {label}:"]
    lines += [f"  {_describe(problem)}" for problem in problems[:_MAX_REPORTED]]
    if count > _MAX_REPORTED:
        lines.append(f"  ...and {count - _MAX_REPORTED} more {label}")
    return ApiError(400, "\n".join(lines), "Bad Request", _dotted(problems[0].loc))


def malformed_json(position: int, reason: str) -> ApiError:
    """400 for a body that is not JSON; `position` is the offending character."""
    return schema_error(
        [Problem("json_invalid", ("body", position), "JSON decode error", {}, {"error": reason})]
    )


def unreadable_body() -> ApiError:
    """400 for a body that cannot even be decoded as text."""
    return ApiError(400, "There was an error parsing the body", "Bad Request")


def wrong_content_type() -> ApiError:
    """400 for anything but application/json on a JSON route."""
    text = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
    return ApiError(400, text, "Bad Request")


def unknown_model(model: str, served_names: tuple[str, ...]) -> ApiError:
    """404 for a model that is not served here."""
    aliases = ", ".join(served_names)
    message = f"The model `{model}` does not exist. Valid aliases: {aliases}."
    return ApiError(404, message, "NotFoundError", "model")


def bad_adapter(message: str) -> ApiError:
    """400 for an adapter that cannot be loaded, or unloaded, as asked."""
    return ApiError(400, message, "InvalidUserInput")


def unknown_adapter(name: str) -> ApiError:
    """404 for an adapter that is not loaded."""
    return ApiError(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")


def prompt_too_long(max_model_len: int, prompt_tokens: int) -> ApiError:
    """400 for a prompt of more tokens than the context has.

    `prompt_tokens` is what vLLM counted: of a text it tokenises no more than the limit plus one,
    and says "at least" then.
    """
    qualifier = "at least " if prompt_tokens == max_model_len + 1 else ""
    return invalid(
        f"This model's maximum context length is {max_model_len} tokens. However, your prompt "
        f"contains {qualifier}{prompt_tokens} input tokens, which exceeds this limit even without "
        "any output tokens. Please reduce the length of the input prompt.",
        "input_tokens",
        prompt_tokens,
    )


def text_too_long(max_model_len: int, text_chars: int, max_chars: int) -> ApiError:
    """400 for a text that could not fit however it were tokenised."""
    return invalid(
        f"This model's maximum context length is {max_model_len} tokens. However, your prompt "
        f"contains {text_chars} characters (more than {max_chars} characters, which is the upper "
        f"bound for {max_model_len} input tokens). Please reduce the length of the input prompt.",
        "input_text",
        text_chars,
    )


def too_many_output_tokens(name: str, asked: int, max_model_len: int) -> ApiError:
    """400 for a cap above the context length; `name` is the field that carried it."""
    return invalid(
        f"{name}={asked} cannot be greater than max_model_len={max_model_len}. "
        "Please request fewer output tokens.",
        name,
        asked,
    )


def queue_full() -> ApiError:
    """503 of `--max-num-queued-reqs`."""
    return ApiError(
        503,
        "The engine is currently busy and cannot accept new requests. "
        "Please try again later or on a different instance.",
        "Service Unavailable",
    )


def backlog_full() -> ApiError:
    """503 of `--max-num-queued-tokens`."""
    return ApiError(
        503,
        "The engine has reached its prefill token backlog limit. "
        "Please try again later or on a different instance.",
        "Service Unavailable",
    )


def paused() -> ApiError:
    """503 while generation is paused."""
    message = "Generation is paused. Please retry after it resumes."
    return ApiError(503, message, "ServiceUnavailableError", late=True)


def scale_out_disabled() -> ApiError:
    """403 of the scale-out routes without `--enable-scale-out`."""
    message = (
        "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable "
        "them."
    )
    return ApiError(403, message, "PermissionDeniedError")


def engine_dead() -> ApiError:
    """500 once the engine is gone."""
    message = "The server had an error while processing your request."
    return ApiError(500, message, "InternalServerError")


def media_too_long(max_model_len: int, prompt_tokens: int) -> ApiError:
    """400 for a prompt that its images make longer than the context."""
    return invalid(
        f"The decoder prompt (length {prompt_tokens}) is longer than the maximum model length of "
        f"{max_model_len}. Make sure that `max_model_len` is no smaller than the number of text "
        "tokens plus multimodal tokens. For image inputs, the number of image tokens depends on "
        "the number of images, and possibly their aspect ratios as well.",
        late=True,
    )


def internal_error() -> ApiError:
    """500 for a request that failed inside the engine."""
    return ApiError(500, "Internal server error", "InternalServerError", late=True)


def not_implemented(message: str) -> ApiError:
    """501 for what vLLM can do and the mock cannot."""
    return ApiError(501, message, "NotImplementedError")


def data_parallel_rank_out_of_range(rank: int, size: int) -> ApiError:
    """400 for an X-data-parallel-rank header beyond the ranks served."""
    return invalid(f"data_parallel_rank {rank} is out of range [0, {size}).", late=True)


def unauthorized_body() -> bytes:
    """Body of the 401 of the API key check, which has a shape of its own."""
    return b'{"error":"Unauthorized"}'


def _dotted(loc: Loc) -> str:
    return ".".join(str(part) for part in loc)


def _summary(value: Json) -> str:
    """What of an offending value is echoed: never a whole container, never more than 200 chars."""
    if isinstance(value, list | dict):
        return f"<{type(value).__name__} of {len(value)} items>"
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= _MAX_INPUT_CHARS else text[:_MAX_INPUT_CHARS] + "...[truncated]"


def _describe(problem: Problem) -> str:
    entry: dict[str, Json] = {
        "type": problem.kind,
        "loc": _dotted(problem.loc),
        "msg": problem.message,
        "input": _summary(problem.value),
    }
    if problem.context is not None:
        entry["ctx"] = problem.context
    text = str(entry)
    return text if len(text) <= _MAX_ERROR_CHARS else text[:_MAX_ERROR_CHARS] + "...[truncated]"
