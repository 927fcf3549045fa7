"""Bodies and answers of SGLang's control plane. Pure.

Fields, defaults and messages are those of SGLang 0.5.23 (managers/io_struct.py, entrypoints/
http_server.py, managers/scheduler_components/weight_updater.py); see also
specs/sglang_and_routers.md section 1.5.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import cast

from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.fields import (
    INT64_MAX,
    INT64_MIN,
    Check,
    Fields,
    boolean,
    check_fields,
    flag_field,
    float_field,
    integer,
    list_of,
    literal,
    mapping,
    mapping_of,
    nullable,
    number,
    optional_int_field,
    string,
    strings_field,
    text_field,
    union,
)
from frontier_mock.wire.sglang.bodies import load_object
from frontier_mock.wire.sglang.errors import native_error, openai_error, validation_error
from frontier_mock.wire.tokenizer import Json

MEMORY_TAGS = ("kv_cache", "weights", "cuda_graph")
"""GPU_MEMORY_ALL_TYPES: what can be released, and what no tags at all mean."""

FLUSHED = (
    "Cache flushed.\nPlease check backend logs for more details. "
    "(When there are running or waiting requests, the operation will not be performed.)\n"
)
NOT_FLUSHED = "Flush cache failed.\n"
UPDATED_NOT_FLUSHED = (
    "Weights were updated, but the cache was not flushed because requests are still running or "
    "queued. Retract or finish them, then call /flush_cache."
)
SESSION_OPEN = "a weight-update session is already open; call end_weight_update() first"
NO_SESSION = "no weight-update session is open; call begin_weight_update() first"
NOT_IDLE = "release_memory_occupation should be called only when server is idle."
NO_LORA = "LoRA is not enabled. Please set `--enable-lora` to enable LoRA."
SESSION_TAKEN = "Failed to open the session. Check if a session with the same id is still open."
NO_STREAMING_SESSIONS = (
    "Streaming sessions are disabled. Please relaunch with --enable-streaming-session."
)

EXPERT_RECORD = {
    "/start_expert_distribution_record": "Start recording the expert distribution.\n",
    "/stop_expert_distribution_record": "Stop recording the expert distribution.\n",
    "/dump_expert_distribution_record": "Dump expert distribution record.\n",
}

_DTYPE_BYTES = {"float32": 4, "float": 4, "int32": 4, "float64": 8, "int64": 8, "int8": 1}
_LONGEST_SLEEP_S = 86400.0
_INT = integer(INT64_MIN, INT64_MAX)
_OPT_TEXT = nullable(string)
_SELECTOR = literal("target", "draft", "all")

_PAUSE: Mapping[str, Check] = {"mode": literal("abort", "retract", "in_place")}
_CONTINUE: Mapping[str, Check] = {"torch_empty_cache": boolean}
_DISK: Mapping[str, Check] = {
    "model_path": string,
    "load_format": _OPT_TEXT,
    "abort_all_requests": boolean,
    "weight_version": _OPT_TEXT,
    "is_async": boolean,
    "torch_empty_cache": boolean,
    "keep_pause": boolean,
    "recapture_cuda_graph": boolean,
    "token_step": _INT,
    "flush_cache": boolean,
    "manifest": nullable(mapping),
}
_DISTRIBUTED: Mapping[str, Check] = {
    "names": list_of(string),
    "dtypes": list_of(string),
    "shapes": list_of(list_of(_INT)),
    "group_name": string,
    "flush_cache": boolean,
    "abort_all_requests": boolean,
    "weight_version": _OPT_TEXT,
    "load_format": _OPT_TEXT,
    "selector": _SELECTOR,
    "torch_empty_cache": boolean,
}
_TENSOR: Mapping[str, Check] = {
    "serialized_named_tensors": list_of(union(string, mapping)),
    "load_format": _OPT_TEXT,
    "flush_cache": boolean,
    "abort_all_requests": boolean,
    "weight_version": _OPT_TEXT,
    "selector": _SELECTOR,
    "torch_empty_cache": boolean,
}
_IPC: Mapping[str, Check] = {
    "zmq_handles": mapping_of(string),
    "flush_cache": boolean,
    "weight_version": _OPT_TEXT,
    "torch_empty_cache": boolean,
}
_VERSION: Mapping[str, Check] = {"new_version": string, "abort_all_requests": boolean}
_GROUP: Mapping[str, Check] = {
    "master_address": string,
    "master_port": _INT,
    "rank_offset": _INT,
    "world_size": _INT,
    "group_name": string,
    "backend": string,
}
_TAGS: Mapping[str, Check] = {"tags": nullable(list_of(string))}
_LORA: Mapping[str, Check] = {
    "lora_name": string,
    "lora_path": string,
    "pinned": boolean,
    "lora_id": _OPT_TEXT,
}
_OPEN: Mapping[str, Check] = {
    "capacity_of_str_len": _INT,
    "session_id": _OPT_TEXT,
    "streaming": nullable(boolean),
    "timeout": nullable(number),
}
_CLOSE: Mapping[str, Check] = {"session_id": string}
_SELECT: Mapping[str, Check] = {"selector": _SELECTOR}
_WEIGHT: Mapping[str, Check] = {"name": string, "truncate_size": _INT}
_SLOW: Mapping[str, Check] = {"forward_sleep_time": nullable(number)}
_CHECKER: Mapping[str, Check] = {"action": string}


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """One update of the weights, whatever way they come.

    `num_bytes` is what the body says it moves, -1 for all of the model. `model_path` and
    `load_format` are what the server is called afterwards, None to leave it.
    """

    flush_cache: bool
    abort_all_requests: bool = False
    weight_version: str | None = None
    keep_pause: bool = False
    num_bytes: int = -1
    model_path: str | None = None
    load_format: str | None = None
    group_name: str | None = None


@dataclass(frozen=True, slots=True)
class UpdateGroup:
    """A process group for weights; nothing is ever connected."""

    name: str
    world_size: int


def read_fields(
    body: bytes, table: Mapping[str, Check], *required: str, empty_ok: bool = False
) -> Fields:
    """The fields of a body. Raises SglangError as FastAPI's handler in SGLang answers."""
    try:
        if empty_ok and not body.strip():
            return {}
        return check_fields(load_object(body), table, required)
    except ApiError as error:
        raise validation_error(error) from None


def read_pause(body: bytes) -> str:
    """The mode of /pause_generation; a body is needed, if an empty object."""
    return text_field(read_fields(body, _PAUSE), "mode") or "abort"


def read_continue(body: bytes) -> None:
    """Check the body of /continue_generation."""
    read_fields(body, _CONTINUE)


def read_disk_update(body: bytes) -> WeightUpdate:
    """A body of /update_weights_from_disk."""
    fields = read_fields(body, _DISK, "model_path")
    return WeightUpdate(
        flush_cache=flag_field(fields, "flush_cache", True),
        abort_all_requests=flag_field(fields, "abort_all_requests"),
        weight_version=text_field(fields, "weight_version"),
        keep_pause=flag_field(fields, "keep_pause"),
        model_path=text_field(fields, "model_path"),
        load_format=text_field(fields, "load_format"),
    )


def read_distributed_update(body: bytes) -> WeightUpdate:
    """A body of /update_weights_from_distributed: the tensors that a trainer broadcasts."""
    fields = read_fields(body, _DISTRIBUTED, "names", "dtypes", "shapes")
    shapes = cast(list[list[int]], fields["shapes"])
    dtypes = strings_field(fields, "dtypes")
    widths = [_DTYPE_BYTES.get(name.rpartition(".")[2], 2) for name in dtypes]
    total = sum(prod(shape) * width for shape, width in zip(shapes, widths, strict=False))
    return WeightUpdate(
        flush_cache=flag_field(fields, "flush_cache", True),
        abort_all_requests=flag_field(fields, "abort_all_requests"),
        weight_version=text_field(fields, "weight_version"),
        num_bytes=max(0, total),
        group_name=text_field(fields, "group_name") or "weight_update_group",
    )


def read_tensor_update(body: bytes) -> WeightUpdate:
    """A body of /update_weights_from_tensor; what is pickled in it is never opened."""
    fields = read_fields(body, _TENSOR, "serialized_named_tensors")
    return WeightUpdate(
        flush_cache=flag_field(fields, "flush_cache", True),
        abort_all_requests=flag_field(fields, "abort_all_requests"),
        weight_version=text_field(fields, "weight_version"),
    )


def read_ipc_update(body: bytes) -> WeightUpdate:
    """A body of /update_weights_from_ipc."""
    fields = read_fields(body, _IPC, "zmq_handles")
    return WeightUpdate(
        flush_cache=flag_field(fields, "flush_cache", True),
        weight_version=text_field(fields, "weight_version"),
    )


def read_version(body: bytes) -> tuple[str, bool]:
    """(new version, whether everything is aborted first) of /update_weight_version."""
    fields = read_fields(body, _VERSION, "new_version")
    return text_field(fields, "new_version") or "", flag_field(fields, "abort_all_requests", True)


def read_group(body: bytes) -> UpdateGroup:
    """A body of /init_weights_update_group. Some trainers send the port as a string."""
    required = ("master_address", "master_port", "rank_offset", "world_size")
    fields = read_fields(body, _GROUP, *required)
    name = text_field(fields, "group_name")
    return UpdateGroup(
        "weight_update_group" if name is None else name,
        optional_int_field(fields, "world_size") or 0,
    )


def read_group_name(body: bytes) -> str:
    """The group of /destroy_weights_update_group."""
    return text_field(read_fields(body, _GROUP), "group_name") or "weight_update_group"


def read_selector(body: bytes) -> None:
    """Check the body of /begin_weight_update or /end_weight_update."""
    read_fields(body, _SELECT)


def read_tags(body: bytes) -> tuple[str, ...]:
    """Tags of memory to release or resume; none mean all."""
    tags = strings_field(read_fields(body, _TAGS), "tags")
    return tags or MEMORY_TAGS


def read_lora(body: bytes, *, loading: bool) -> tuple[str, str]:
    """(name, path) of an adapter to load, or to unload."""
    required = ("lora_name", "lora_path") if loading else ("lora_name",)
    fields = read_fields(body, _LORA, *required)
    return text_field(fields, "lora_name") or "", text_field(fields, "lora_path") or ""


def read_open_session(body: bytes) -> tuple[str | None, bool]:
    """(id asked for, whether it is a streaming one) of /open_session."""
    fields = read_fields(body, _OPEN, "capacity_of_str_len")
    return text_field(fields, "session_id"), flag_field(fields, "streaming")


def read_close_session(body: bytes) -> str:
    """The id of /close_session."""
    return text_field(read_fields(body, _CLOSE, "session_id"), "session_id") or ""


def read_weight(body: bytes) -> tuple[str, int]:
    """(name, values to show) of /get_weights_by_name."""
    fields = read_fields(body, _WEIGHT, "name")
    size = optional_int_field(fields, "truncate_size")
    return text_field(fields, "name") or "", 100 if size is None else size


def read_slow_down(body: bytes) -> float:
    """Seconds by which every forward is to be longer; 0 for none.

    A real one would sleep for as long as it is told to; more than a day is refused here.
    """
    name = "forward_sleep_time"
    extra_s = float_field(read_fields(body, _SLOW, name), name, 0.0)
    if extra_s > _LONGEST_SLEEP_S:
        raise native_error(f"{name}: {extra_s:g} is more than {_LONGEST_SLEEP_S:g} seconds")
    return max(0.0, extra_s)


def read_action(body: bytes) -> str:
    """What /weights_checker is to do; no body means the checksum."""
    return text_field(read_fields(body, _CHECKER, empty_ok=True), "action") or "checksum"


def outcome(success: bool, message: str, **more: Json) -> dict[str, Json]:
    """`{success, message}` and what a route adds to it."""
    return {"success": success, "message": message, **more}


def with_version(message: str, version: str | None) -> str:
    """SGLang's message of an update that also named the version."""
    return message if version is None else f"{message} Weight version updated to {version}."


def unknown_group(name: str | None, known: list[str]) -> str:
    """A broadcast over a group that /init_weights_update_group never made."""
    return (
        f"Failed to receive weights: Group {name} not in {known}. "
        "Please call `init_weights_update_group` first."
    )


def read_timeout(text: str | None) -> float:
    """Seconds of /flush_cache?timeout=. Raises SglangError for anything but a number from 0 on."""
    if text is None:
        return 0.0
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = -1.0
    if not 0.0 <= timeout_s < 1e9:
        raise openai_error(f"timeout: {text!r} is not a number of seconds", "Bad Request")
    return timeout_s


def parameter(name: str, version: str, size: int) -> list[Json]:
    """`size` made-up values of a parameter: the same for the same name and version of weights."""
    digest = hashlib.sha256(f"{version}/{name}".encode()).digest()
    return [(digest[i % 32] - 127.5) / 4096 for i in range(max(0, size))]


def checksum(model_path: str, version: str) -> str:
    """A checksum of weights nobody has: it changes when they do."""
    return hashlib.sha256(f"{model_path}/{version}".encode()).hexdigest()
