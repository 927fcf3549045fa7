"""The Ollama routes: /api/chat, /api/generate, /api/tags, /api/show (SGLang 0.5.23 ollama/).

What the handlers do not catch is not caught here either: a prompt that is too long, a bad sampling
value or the option `seed`, which SGLang passes on under a name that its sampling does not know, are
a 500, or a stream that breaks off.
"""

from collections.abc import Mapping

from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.fields import (
    INT64_MAX,
    INT64_MIN,
    Check,
    Fields,
    boolean,
    check_fields,
    flag_field,
    integer,
    list_of,
    literal,
    mapping,
    model,
    nullable,
    number,
    string,
    text_field,
    union,
)
from frontier_mock.wire.generation import PromptText
from frontier_mock.wire.plan import Headers, actor_of
from frontier_mock.wire.render import dumps
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.bodies import load_object
from frontier_mock.wire.sglang.chat import chat_prompt
from frontier_mock.wire.sglang.errors import (
    CrashError,
    SettledError,
    SglangError,
    validation_error,
)
from frontier_mock.wire.sglang.ollama_answer import NDJSON, timestamp, whole_answer
from frontier_mock.wire.sglang.plan import check_length, encode, front_of, plan_prompt
from frontier_mock.wire.sglang.request import (
    OLLAMA_CHAT,
    OLLAMA_GENERATE,
    Routing,
    SglangRequest,
    SglangSequence,
    Wishes,
)
from frontier_mock.wire.sglang.sampling import check_gate, read_sampling
from frontier_mock.wire.tokenizer import Json, TokenIds

_OPT_TEXT = nullable(string)
_SHARED: Mapping[str, Check] = {
    "stream": boolean,
    "format": nullable(union(literal("json"), mapping)),
    "options": nullable(mapping),
    "keep_alive": nullable(union(number, string)),
}
_MESSAGE = model(
    {"role": string, "content": string, "images": nullable(list_of(string))}, ("role", "content")
)
_CHAT: Mapping[str, Check] = {
    "model": string,
    "messages": list_of(_MESSAGE),
    **_SHARED,
    "think": nullable(union(boolean, literal("low", "medium", "high"))),
}
_GENERATE: Mapping[str, Check] = {
    "model": string,
    "prompt": string,
    "suffix": _OPT_TEXT,
    "system": _OPT_TEXT,
    "template": _OPT_TEXT,
    "context": nullable(list_of(integer(INT64_MIN, INT64_MAX))),
    "raw": boolean,
    **_SHARED,
    "images": nullable(list_of(string)),
    "think": nullable(boolean),
}
_OPTIONS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "num_predict": "max_new_tokens",
    "stop": "stop",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
}
"""SGLang's name of each option it passes on; the others are ignored."""

_MAX_NEW_TOKENS = 2048
"""What a request gets that does not say `num_predict`."""

_DIGEST = f"sha256:sglang{'0' * 58}"
_FAMILY_SUFFIXES = ("-Instruct", "-Chat", "-Base")


def parse_ollama_chat(body: bytes, headers: Headers, served: ServedModel) -> SglangRequest:
    """The request that a body of /api/chat asks for. Raises SglangError and CrashError."""
    raw, fields = _read(body, _CHAT, ("model", "messages"))
    stream = flag_field(fields, "stream", True)
    messages = fields["messages"]
    turns: list[Json] = [
        {"role": turn["role"], "content": turn["content"]}
        for turn in (messages if isinstance(messages, list) else ())
        if isinstance(turn, dict)
    ]
    try:
        ids = chat_prompt({"messages": turns}, served)
    except SglangError as error:
        raise CrashError(error.message, NDJSON if stream else "") from None
    return _request(OLLAMA_CHAT, raw, fields, ids, served)


def parse_ollama_generate(body: bytes, headers: Headers, served: ServedModel) -> SglangRequest:
    """The request that a body of /api/generate asks for.

    Raises SglangError, CrashError, and SettledError for an empty prompt.
    """
    raw, fields = _read(body, _GENERATE, ("model", "prompt"))
    stream = flag_field(fields, "stream", True)
    prompt = text_field(fields, "prompt") or ""
    system = text_field(fields, "system")
    if system:
        prompt = f"{system}\n\n{prompt}"
    if not prompt.strip():

        def empty(now_s: float) -> bytes:
            answer = whole_answer(OLLAMA_GENERATE, served.names[0], now_s, "", None)
            return (dumps(answer) + ("\n" if stream else "")).encode()

        raise SettledError(empty, NDJSON if stream else "application/json")
    try:
        ids = encode(prompt, served)
    except ValueError as error:
        raise CrashError(str(error), NDJSON if stream else "") from None
    return _request(OLLAMA_GENERATE, raw, fields, ids, served)


def _read(
    body: bytes, table: Mapping[str, Check], required: tuple[str, ...]
) -> tuple[dict[str, Json], Fields]:
    try:
        raw = load_object(body)
        return raw, check_fields(raw, table, required)
    except ApiError as error:
        raise validation_error(error) from None


def _request(
    kind: str, raw: dict[str, Json], fields: Fields, ids: TokenIds, served: ServedModel
) -> SglangRequest:
    front = front_of(served)
    stream = flag_field(fields, "stream", True)
    given = fields.get("options")
    options = given if isinstance(given, dict) else {}
    params = {name: options[key] for key, name in _OPTIONS.items() if key in options}
    try:
        check_gate(params)
        params = {"max_new_tokens": _MAX_NEW_TOKENS, **params}
        params = {**(front.preferred_sampling_params or {}), **params}
        sampling = read_sampling(params, served.model_vocab_size)
        ids = check_length(ids, served)
    except (ValueError, SglangError) as error:
        raise CrashError(str(error), NDJSON if stream else "") from None
    plans, cap = plan_prompt(ids, 0, 1, sampling, served)
    return SglangRequest(
        kind=kind,
        sequences=(SglangSequence(served.new_id(), plans[0], cap, len(ids)),),
        prompts=(PromptText(len(ids), None, None),),
        tokenizer=served.tokenizer,
        stream=stream,
        stream_interval=front.stream_interval,
        model=served.names[0],
        incremental=front.incremental_streaming_output,
        wishes=Wishes(frontier=raw.get("frontier") is True),
        routing=Routing(actor=actor_of(raw.get("metadata"))),
    )


def tags_body(name: str, now_s: float) -> bytes:
    """GET /api/tags of a server that answers to `name`."""
    details: Json = {
        "format": "sglang",
        "family": name.rsplit("/", 1)[-1],
        "parameter_size": "unknown",
    }
    card: Json = {
        "name": name,
        "model": name,
        "modified_at": timestamp(now_s),
        "size": 0,
        "digest": _DIGEST,
        "details": details,
    }
    return dumps({"models": [card]}).encode("utf-8", "surrogatepass")


def show_body(body: bytes, served: ServedModel, now_s: float) -> bytes:
    """POST /api/show: whatever model is asked for, the server describes its own."""
    _, fields = _read(body, {"model": string}, ("model",))
    name = text_field(fields, "model") or ""
    family = name.rsplit("/", 1)[-1]
    for suffix in _FAMILY_SUFFIXES:
        if family.endswith(suffix):
            family = family.removesuffix(suffix)
            break
    length = front_of(served).context_len
    details: Json = {
        "parent_model": "",
        "format": "sglang",
        "family": family,
        "families": [family],
        "parameter_size": "unknown",
        "quantization_level": "",
    }
    figures: Json = {
        "general.architecture": family,
        "general.name": name,
        "general.parameter_count": 0,
        f"{family}.context_length": length,
        f"{family}.block_count": 0,
        f"{family}.embedding_length": 0,
        f"{family}.attention.head_count": 0,
    }
    shown: Json = {
        "license": "",
        "modelfile": f"FROM {name}\nPARAMETER num_ctx {length}\n",
        "parameters": f"num_ctx {length}",
        "template": "",
        "modified_at": timestamp(now_s),
        "details": details,
        "model_info": figures,
        "capabilities": ["completion"],
    }
    return dumps(shown).encode("utf-8", "surrogatepass")
