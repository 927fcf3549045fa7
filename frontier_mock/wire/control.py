"""What vLLM's control plane reads from its requests, and what it refuses, word for word.

Query parameters and bodies are checked by FastAPI in vLLM 0.33 (`entrypoints/rl/online`,
`entrypoints/serve/dev`), with the same envelope as those of generating requests.
"""

import hashlib
import json
from collections.abc import Mapping

from frontier_mock.wire.errors import ApiError, Loc, Problem, schema_error
from frontier_mock.wire.fields import boolean, integer, literal, load_json, mapping, string
from frontier_mock.wire.tokenizer import Json

NO_WEIGHT_TRANSFER = (
    "Weight transfer not configured. Please set weight_transfer_config to enable weight transfer."
)
ALREADY_UPDATING = (
    "start_weight_update called while a weight update is already active. "
    "Call finish_weight_update first."
)
NOT_UPDATING = "start_weight_update must be called before update_weights."
NOT_STARTED = "finish_weight_update called without a matching start_weight_update."
TRAINER_BUSY = "Cannot release a trainer connection during a weight update"

_MAX_LEVEL = 2
_DTYPE_BYTES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2}


def pause_mode(value: str | None) -> str:
    """How /pause and /sleep treat what is in flight. Raises ApiError."""
    return str(_query("mode", value, "abort", literal("abort", "wait", "keep")))


def sleep_level(value: str | None) -> int:
    """0 to 2. Raises ApiError."""
    level = _query("level", value, "1", integer(0, _MAX_LEVEL))
    return level if isinstance(level, int) else 1


def flag(value: str | None, name: str, default: bool = False) -> bool:
    """A bool in a query. Raises ApiError."""
    return default if value is None else _query(name, value, "", boolean) is True


def _query(name: str, value: str | None, default: str, check: object) -> Json:
    problems: list[Problem] = []
    assert callable(check)
    checked: Json = check(default if value is None else value, ("query", name), problems)
    if problems:
        raise schema_error(problems)
    return checked


def _object(body: bytes) -> dict[str, Json]:
    """A body that is read without a schema. Raises ApiError in the words of those handlers."""
    try:
        value: Json = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"JSON decode error: {error}", "Bad Request") from None
    if not isinstance(value, dict):
        raise ApiError(400, "Request body must be a JSON object", "Bad Request")
    return value


def request_ids(body: bytes) -> list[str]:
    """The ids that the scale-out API is asked to abort. Raises ApiError."""
    ids = _object(body).get("request_ids")
    if ids is None:
        raise ApiError(400, "Missing 'request_ids' in request body", "Bad Request")
    return _strings(ids)


def optional_request_ids(body: bytes) -> list[str]:
    """The ids that the control plane is asked to abort, empty for all. Raises ApiError."""
    try:
        value: Json = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "Invalid JSON format", "Bad Request") from None
    if not isinstance(value, dict):
        raise ApiError(400, "Request body must be a JSON object", "Bad Request")
    return _strings(value.get("request_ids"))


def _strings(ids: Json) -> list[str]:
    if isinstance(ids, str):
        return [ids]
    return [item for item in ids if isinstance(item, str)] if isinstance(ids, list) else []


def _embedded(body: bytes, name: str) -> Json:
    """One member of the body, which FastAPI asks for as `Body(embed=True)`. Raises ApiError."""
    value = load_json(body)
    if not isinstance(value, dict) or name not in value:
        raise schema_error([Problem("missing", ("body", name), "Field required", value)])
    return value[name]


def _checked(value: Json, loc: Loc, check: object) -> Json:
    problems: list[Problem] = []
    assert callable(check)
    checked: Json = check(value, loc, problems)
    if problems:
        raise schema_error(problems)
    return checked


def init_info(body: bytes) -> None:
    """What a trainer says about itself; nothing of it matters here. Raises ApiError."""
    _checked(_embedded(body, "init_info"), ("body", "init_info"), mapping)


def update_info(body: bytes) -> Json:
    """An update: an object, or a list with one for each rank. Raises ApiError."""
    info = _embedded(body, "update_info")
    if isinstance(info, list):
        for i, item in enumerate(info):
            _checked(item, ("body", "update_info", "list[dict[str,any]]", i), mapping)
        return info
    return _checked(info, ("body", "update_info", "dict[str,any]"), mapping)


def optional_version(body: bytes) -> str | None:
    """The version an update ends with, None if it has none. Raises ApiError."""
    if not body:
        return None
    value = load_json(body)
    version = value.get("weight_version") if isinstance(value, dict) else None
    if version is None:
        return None
    return str(_checked(version, ("body", "weight_version"), string))


def required_version(body: bytes) -> str:
    """The version to go by from now on. Raises ApiError."""
    return str(_checked(_embedded(body, "new_version"), ("body", "new_version"), string))


def weight_check(body: bytes) -> tuple[str, Mapping[str, str] | None]:
    """(action, baseline to compare with). Raises ApiError."""
    loc: Loc = ("body", "action")
    action = _checked(_embedded(body, "action"), loc, literal("checksum", "reset", "compare"))
    value = load_json(body)
    baseline = value.get("baseline") if isinstance(value, dict) else None
    if action != "compare":
        return str(action), None
    if not isinstance(baseline, dict):
        message = "action='compare' requires a 'baseline' object"
        raise ApiError(400, message, "Bad Request")
    return str(action), {name: str(checksum) for name, checksum in baseline.items()}


def rpc_method(body: bytes) -> str:
    """The method that all workers are to run. Raises ApiError."""
    method = _object(body).get("method")
    if method is None:
        raise ApiError(400, "Missing 'method' in request body", "Bad Request")
    return str(method)


def checksums(version: str, num_gpus: int) -> dict[str, str]:
    """Made-up checksums, one for each GPU's weights: equal exactly where the version is."""
    return {
        f"rank{rank}": hashlib.sha256(f"{version}/{rank}".encode()).hexdigest()[:16]
        for rank in range(num_gpus)
    }


def tensor_bytes(info: Json) -> int:
    """Bytes of the tensors an update names by shape and dtype, -1 if it names none."""
    first = info[0] if isinstance(info, list) and info else info
    if not isinstance(first, dict):
        return -1
    shapes, dtypes = first.get("shapes"), first.get("dtype_names")
    if not isinstance(shapes, list) or not isinstance(dtypes, list) or not shapes:
        return -1
    return sum(_size(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=False))


def _size(shape: Json, dtype: Json) -> int:
    size = _DTYPE_BYTES.get(str(dtype).removeprefix("torch."), 1)
    for length in shape if isinstance(shape, list) else ():
        size *= length if isinstance(length, int) and length >= 0 else 1
    return size
