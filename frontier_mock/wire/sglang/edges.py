"""What SGLang says about features that are off, or that no model here has. Pure.

Words and shapes are those of SGLang 0.5.23 (entrypoints/http_server.py, entrypoints/elastic_ep.py,
managers/tokenizer_control_mixin.py, managers/scheduler_components/internal_state.py).
"""

from collections.abc import Mapping, Sequence

from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.fields import (
    INT64_MAX,
    INT64_MIN,
    Check,
    Fields,
    boolean,
    check_fields,
    integer,
    list_of,
    literal,
    mapping_of,
    nullable,
    number,
    string,
    text_field,
)
from frontier_mock.wire.sglang.bodies import load_json, load_object
from frontier_mock.wire.sglang.errors import (
    SglangError,
    detail_error,
    openai_error,
    validation_error,
)
from frontier_mock.wire.tokenizer import Json

NOT_ELASTIC: Mapping[str, Json] = {
    "error": "elastic EP is not enabled (set --elastic-ep-backend)",
}
_NO_NGRAM = "Ngram speculative decoding is not enabled."
_NO_SWITCH = "--enable-pd-role-switch is not set on this server"
_NO_SPEECH = "The model served here takes text only: there is no audio to transcribe."
_INT = integer(INT64_MIN, INT64_MAX)

_STATE: Mapping[str, Check] = {"server_args": mapping_of(number)}
_ROLE: Mapping[str, Check] = {
    "new_role": literal("prefill", "decode", ""),
    "decode_cuda_graph_bs": nullable(list_of(_INT)),
    "decode_cuda_graph_memory_gb": nullable(number),
    "prepare_only": boolean,
}
_REMOTE: Mapping[str, Check] = {
    "master_address": string,
    "ports": string,
    "group_rank": _INT,
    "world_size": _INT,
    "group_name": string,
    "backend": string,
}
_CORPUS: Mapping[str, Check] = {"corpus_id": nullable(string)}
_THRESHOLDS = ("speculative_accept_threshold_single", "speculative_accept_threshold_acc")
_EMPTY: Mapping[str, Json] = {
    "corpus_id": "",
    "loaded_token_count": 0,
    "corpus_token_counts": {},
}


def set_state(body: bytes, max_running_requests: int) -> bool:
    """Whether /set_internal_state would change what `body` asks for. Raises SglangError."""
    wanted = _read(body, _STATE, "server_args")["server_args"]
    for name, value in wanted.items() if isinstance(wanted, dict) else ():
        if name == "pp_max_micro_batch_size":
            if not isinstance(value, int | float) or not 1 <= value <= max_running_requests:
                return False
        elif name not in _THRESHOLDS:
            return False
    return True


def read_role(body: bytes) -> str:
    """The role that a body of /pd_role_switch wants. Raises SglangError."""
    return text_field(_read(body, _ROLE), "new_role") or ""


def role_refused(mode: str, role: str) -> dict[str, Json]:
    """What a server of `mode` says that may not change its role."""
    return {
        "rid": None,
        "http_worker_ipc": None,
        "success": False,
        "message": _NO_SWITCH,
        "old_role": mode,
        "new_role": role,
        "safe_to_restore": True,
    }


def scale_refused(body: bytes) -> tuple[dict[str, Json], int]:
    """(answer, status) of /scale_elastic_ep on a server that cannot scale."""
    try:
        wanted = load_json(body)
    except ApiError as error:
        return {"error": f"Invalid JSON: {error.message}"}, 400
    if not isinstance(wanted, dict):
        return {"error": "request body must be a JSON object"}, 400
    size = wanted.get("new_ep_size")
    if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
        return {"error": "new_ep_size must be a positive integer"}, 400
    return dict(NOT_ELASTIC), 404


def corpus_refused(path: str, body: bytes, more: Sequence[str]) -> dict[str, Json]:
    """What a route of external corpora says; `more` are the keys its answer has besides."""
    message = _NO_NGRAM
    if path == "/remove_external_corpus" and not _read(body, _CORPUS).get("corpus_id"):
        message = "corpus_id is required."
    answer: dict[str, Json] = {"success": False}
    for name in more:
        answer[name] = _EMPTY[name]
    return answer | {"message": message}


def read_remote(body: bytes, path: str) -> None:
    """Check a body that would send weights to another instance. Raises SglangError."""
    required = ["master_address", "ports"]
    if path.startswith("/init"):
        required += ["group_rank", "world_size"]
    _read(body, _REMOTE, *required)


def no_speech() -> SglangError:
    """400 for audio."""
    return openai_error(_NO_SPEECH)


def no_decisions(path: str) -> SglangError:
    """501 for /v1/decisions and /v1/systemone, each in its own envelope."""
    message = f"frontier_mock does not simulate {path}."
    if path == "/v1/systemone":
        return detail_error(message, 501)
    return openai_error(message, "NotImplementedError", 501)


def _read(body: bytes, table: Mapping[str, Check], *required: str) -> Fields:
    try:
        return check_fields(load_object(body), table, required)
    except ApiError as error:
        raise validation_error(error) from None
