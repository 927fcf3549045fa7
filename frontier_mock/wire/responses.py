"""POST /v1/responses: OpenAI's Responses API as vLLM 0.33 serves it.

A request becomes a chat request and is treated as one. Reasoning and built-in tools do not exist
here. Conversations are kept under VLLM_ENABLE_RESPONSES_API_STORE=1 alone; without it background
and previous_response_id are refused as vLLM does.
"""

import json
from collections.abc import Mapping, Sequence
from math import isfinite

from frontier_mock.wire.chat import parse_chat
from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.fields import (
    Check,
    Fields,
    boolean,
    check_fields,
    flag_field,
    float_field,
    integer,
    list_of,
    literal,
    load_object,
    mapping,
    mapping_of,
    model,
    nullable,
    number,
    string,
    text_field,
    union,
)
from frontier_mock.wire.generation import RESPONSES, Generation
from frontier_mock.wire.plan import Headers
from frontier_mock.wire.render import dumps
from frontier_mock.wire.response_store import Record, Response, ResponseStore
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.tokenizer import Json

_PASSED = (
    *("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "logit_bias", "seed", "stop", "stop_token_ids", "ignore_eos"),
    *("include_stop_str_in_output", "skip_special_tokens", "watermarking", "priority"),
    *("cache_salt", "structured_outputs", "kv_transfer_params", "ec_transfer_params"),
    *("vllm_xargs", "chat_template_kwargs", "session_id", "parallel_tool_calls"),
)
_FIELDS: Mapping[str, Check] = {
    "background": nullable(boolean),
    "input": union(string, list_of(mapping)),
    "instructions": nullable(string),
    "max_output_tokens": nullable(integer()),
    "max_tool_calls": nullable(integer()),
    "metadata": nullable(mapping_of(string)),
    "model": nullable(string),
    "parallel_tool_calls": nullable(boolean),
    "previous_response_id": nullable(string),
    "prompt_cache_key": nullable(string),
    "reasoning": nullable(model({"effort": nullable(string), "summary": nullable(string)})),
    "safety_identifier": nullable(string),
    "service_tier": literal("auto", "default", "flex", "scale", "priority"),
    "store": nullable(boolean),
    "stream": nullable(boolean),
    "temperature": nullable(number),
    "text": nullable(mapping),
    "tool_choice": union(literal("none", "auto", "required"), mapping),
    "tools": list_of(mapping),
    "top_logprobs": nullable(integer()),
    "top_p": nullable(number),
    "truncation": nullable(literal("auto", "disabled")),
    "user": nullable(string),
    "request_id": string,
}
_NO_STORE = (
    "This vLLM engine does not support `store=True` and therefore does not support the background "
    "mode. To enable these features, set the environment variable "
    "`VLLM_ENABLE_RESPONSES_API_STORE=1` when launching the vLLM server."
)
_REFUSED = "invalid_request_error"


def unknown_response(name: str) -> ApiError:
    """404 for a response that nobody keeps."""
    message = f"Response with id '{name}' not found."
    return ApiError(404, message, _REFUSED, "response_id")


def not_cancellable() -> ApiError:
    """400 for a response that is complete, or that somebody waits for."""
    message = "Cannot cancel a synchronous response."
    return ApiError(400, message, _REFUSED, "response_id")


def parse_responses(
    body: bytes, headers: Headers, served: ServedModel, store: ResponseStore | None = None
) -> Generation:
    """The generation that a Responses request asks for. Raises ApiError as vLLM refuses it.

    With a `store` it says what is to be kept.
    """
    raw = load_object(body)
    if raw.get("background") and not raw.get("store", True):
        message = "background can only be used when `store` is true"
        raise ApiError(400, message, param="background")
    if raw.get("prompt") is not None:
        raise ApiError(400, "prompt template is not supported", param="prompt")
    fields = check_fields(raw, _FIELDS, ("input",))
    previous = text_field(fields, "previous_response_id")
    before = None if store is None or previous is None else store.get(previous)
    earlier = _earlier(before, store) if before is not None and store is not None else []
    chat = _chat_request(raw, fields, earlier)
    try:
        generation = parse_chat(_bytes(chat), headers, served)
    except ApiError as error:
        if error.stream_kind:
            error.stream_kind = RESPONSES
        error.message = error.message.replace("max_completion_tokens", "max_output_tokens")
        if error.param == "max_completion_tokens":
            error.param = "max_output_tokens"
        raise
    background, keep = flag_field(fields, "background"), flag_field(fields, "store", True)
    if background and keep and store is None:
        raise ApiError(400, _NO_STORE, _REFUSED, "background")
    if previous is not None and before is None:
        raise unknown_response(previous)
    base = generation.id.removeprefix("chatcmpl-")
    own = text_field(fields, "request_id")
    name = own if own is not None else f"resp_{base}"
    record = None
    if store is not None and keep:
        messages = chat["messages"]
        assert isinstance(messages, list)
        record = Record(name, tuple(messages), background)
    return generation._replace(
        id=name,
        kind=RESPONSES,
        detail=_echoed(raw, fields, generation, name),
        record=record,
    )


def _earlier(before: Response, store: ResponseStore) -> list[Json]:
    """Messages of the conversation that a response ends; who instructed it does so no more."""
    messages: list[Json] = [
        message
        for message in store.history(str(before["id"]))
        if isinstance(message, dict) and message.get("role") != "system"
    ]
    output = before["output"]
    for item in output if isinstance(output, list) else ():
        content = item.get("content") if isinstance(item, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict):
                messages.append({"role": "assistant", "content": part.get("text") or ""})
    return messages


def responses_as_chat(body: bytes) -> tuple[str | None, bytes]:
    """(own request id, the chat request that a Responses request is), for renderers.

    Raises ApiError for what its schema refuses, and for conversations that a server would keep.
    """
    raw = load_object(body)
    fields = check_fields(raw, _FIELDS, ("input",))
    if fields.get("previous_response_id") is not None:
        message = "previous_response_id is not supported by the stateless render endpoint."
        raise ApiError(400, message, _REFUSED, "previous_response_id")
    return text_field(fields, "request_id"), _bytes(_chat_request(raw, fields, []))


def _bytes(chat: dict[str, Json]) -> bytes:
    return dumps(chat).encode("utf-8", "surrogatepass")


def _chat_request(raw: dict[str, Json], fields: Fields, earlier: Sequence[Json]) -> dict[str, Json]:
    """Input, tools and format in the terms of a chat request; `earlier` was said before."""
    messages: list[Json] = []
    instructions = text_field(fields, "instructions")
    if instructions:
        messages.append({"role": "system", "content": instructions})
    messages += earlier
    given = fields["input"]
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    for item in given if isinstance(given, list) else ():
        if isinstance(item, dict):
            messages.append(_turn(item))
    chat: dict[str, Json] = {"messages": messages, "model": fields.get("model")}
    for name in _PASSED:
        if raw.get(name) is not None:
            chat[name] = raw[name]
    chat["max_completion_tokens"] = fields.get("max_output_tokens")
    chat["metadata"] = raw.get("metadata")
    chat["frontier"] = raw.get("frontier")
    chat["stream"] = flag_field(fields, "stream")
    if fields.get("truncation") == "auto":
        chat["truncate_prompt_tokens"] = -1
    shape = fields.get("text")
    wanted = shape.get("format") if isinstance(shape, dict) else None
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        described: Json = {"name": wanted.get("name") or "schema", "schema": wanted.get("schema")}
        chat["response_format"] = {"type": "json_schema", "json_schema": described}
    elif isinstance(wanted, dict) and wanted.get("type") == "json_object":
        chat["response_format"] = {"type": "json_object"}
    _add_tools(fields, chat)
    return chat


def _add_tools(fields: Fields, chat: dict[str, Json]) -> None:
    functions: list[Json] = []
    tools = fields.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, dict) and tool.get("type") == "function":
            names = ("name", "description", "parameters")
            function: Json = {name: tool.get(name) for name in names}
            functions.append({"type": "function", "function": function})
    if not functions:
        return
    chat["tools"] = functions
    choice = fields.get("tool_choice")
    if isinstance(choice, dict):
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    else:
        # A model that may call a tool does not here, so nothing has to be parsed.
        chat["tool_choice"] = "required" if choice == "required" else "none"


def _turn(item: dict[str, Json]) -> Json:
    """One item of the input as a message."""
    kind = item.get("type", "message")
    if kind == "function_call":
        function: Json = {"name": item.get("name"), "arguments": item.get("arguments") or ""}
        call: Json = {"id": item.get("call_id"), "type": "function", "function": function}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if kind == "function_call_output":
        output = item.get("output")
        text = output if isinstance(output, str) else json.dumps(output)
        return {"role": "tool", "tool_call_id": item.get("call_id") or "", "content": text}
    content = item.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "\n".join(part for part in parts if isinstance(part, str))
    role = item.get("role") or "user"
    return {"role": "system" if role == "developer" else role, "content": content or ""}


def _echoed(
    raw: dict[str, Json], fields: Fields, generation: Generation, name: str
) -> dict[str, Json]:
    """What the response object repeats, by its own keys; the renderer adds how it went."""
    shown = [
        *("metadata", "max_tool_calls", "previous_response_id", "prompt_cache_key"),
        *("reasoning", "safety_identifier", "text", "user"),
    ]
    echoed: dict[str, Json] = {key: raw.get(key) for key in shown}
    fixed: dict[str, Json] = {
        "id": name,
        "instructions": fields.get("instructions"),
        "parallel_tool_calls": flag_field(fields, "parallel_tool_calls", True),
        "temperature": float_field(fields, "temperature", 1.0),
        "tool_choice": fields.get("tool_choice", "auto" if fields.get("tools") else "none"),
        "tools": fields.get("tools", []),
        "top_p": float_field(fields, "top_p", 1.0),
        "background": flag_field(fields, "background"),
        "max_output_tokens": generation.sequences[0].submit.max_tokens,
        "service_tier": text_field(fields, "service_tier") or "auto",
        "truncation": text_field(fields, "truncation") or "disabled",
        "presence_penalty": raw.get("presence_penalty") or 0.0,
        "frequency_penalty": raw.get("frequency_penalty") or 0.0,
    }
    return {name: _finite(value) for name, value in {**echoed, **fixed}.items()}


def _finite(value: Json) -> Json:
    """Pydantic writes null for what is no number in JSON."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list) else value
