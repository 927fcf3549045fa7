"""POST /v1/responses: OpenAI's Responses API as SGLang 0.5.23 serves it.

A store is what --enable-response-store adds: without it previous_response_id, background and
looking up a response are refused (`openai/serving_responses.py`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.fields import (
    INT64_MAX,
    INT64_MIN,
    Check,
    Fields,
    boolean,
    check_fields,
    flag_field,
    int_field,
    integer,
    list_of,
    literal,
    mapping,
    nullable,
    number,
    optional_int_field,
    string,
    text_field,
    union,
)
from frontier_mock.wire.generation import PromptText
from frontier_mock.wire.plan import Headers, actor_of
from frontier_mock.wire.response_store import Record, Response, ResponseStore
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.bodies import load_object
from frontier_mock.wire.sglang.calls import forced_call
from frontier_mock.wire.sglang.chat import chat_prompt
from frontier_mock.wire.sglang.errors import SglangError, nested_error, responses_error
from frontier_mock.wire.sglang.generate import (
    namespace_of,
    read_bootstrap,
    read_dp_rank,
)
from frontier_mock.wire.sglang.late import LateError
from frontier_mock.wire.sglang.openai_fields import adapter_in
from frontier_mock.wire.sglang.plan import check_length, front_of, plan_prompt
from frontier_mock.wire.sglang.request import (
    RESPONSES,
    Routing,
    SglangRequest,
    SglangSequence,
    Wishes,
)
from frontier_mock.wire.sglang.responses_answer import failed_frames
from frontier_mock.wire.sglang.sampling import read_sampling
from frontier_mock.wire.tokenizer import Json

_INT = integer(INT64_MIN, INT64_MAX)
_OPT_INT = nullable(_INT)
_OPT_TEXT = nullable(string)
_FIELDS: Mapping[str, Check] = {
    "background": nullable(boolean),
    "include": nullable(list_of(string)),
    "input": union(string, list_of(mapping)),
    "instructions": _OPT_TEXT,
    "max_output_tokens": _OPT_INT,
    "metadata": nullable(mapping),
    "model": _OPT_TEXT,
    "parallel_tool_calls": nullable(boolean),
    "previous_response_id": _OPT_TEXT,
    "reasoning": nullable(mapping),
    "service_tier": literal("auto", "default", "flex", "scale", "priority"),
    "store": nullable(boolean),
    "stream": nullable(boolean),
    "temperature": nullable(number),
    "text": nullable(mapping),
    "tool_choice": union(literal("auto", "required", "none"), mapping),
    "tools": list_of(mapping),
    "top_p": nullable(number),
    "truncation": nullable(literal("auto", "disabled")),
    "user": _OPT_TEXT,
    "chat_template_kwargs": nullable(mapping),
    "request_id": string,
    "priority": _INT,
    "extra_key": _OPT_TEXT,
    "cache_salt": _OPT_TEXT,
    "frequency_penalty": number,
    "presence_penalty": number,
    "stop": nullable(union(string, list_of(string))),
    "top_k": _OPT_INT,
    "min_p": nullable(number),
    "repetition_penalty": nullable(number),
    "bootstrap_host": nullable(string),
    "bootstrap_port": _OPT_INT,
    "bootstrap_room": _OPT_INT,
    "routed_dp_rank": _OPT_INT,
    "data_parallel_rank": _OPT_INT,
    "disagg_prefill_dp_rank": _OPT_INT,
}
_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty"),
    *("presence_penalty", "stop"),
)
_HEADROOM_TOKENS = 2
"""What SGLang takes off `max_output_tokens` for tokens that frame the output."""

_NO_STORE = (
    "Response store is disabled. Stateful Responses require --enable-response-store on a "
    "standalone server; response storage is unavailable in PD mode."
)
_REFUSED = "invalid_request_error"
_DEVELOPER = "Developer instructions:"
"""What SGLang puts before what a developer says, since templates know only a system."""


def store_disabled(parameter: str = "response_id") -> SglangError:
    """400 for whatever would need a store."""
    return nested_error(_NO_STORE, _REFUSED, 400, parameter)


def invalid_id(name: str) -> SglangError:
    """400 for what cannot be the id of a response."""
    message = f"Invalid 'response_id': '{name}'. Expected an ID that begins with 'resp'."
    return nested_error(message, _REFUSED, 400, "response_id")


def unknown_response(name: str) -> SglangError:
    """404 for a response that nobody keeps."""
    message = f"Response with id '{name}' not found."
    return nested_error(message, _REFUSED, 404, "response_id")


def kept_response(name: str, store: ResponseStore | None) -> Response:
    """A response that is kept. Raises SglangError."""
    if store is None:
        raise store_disabled()
    if not name.startswith("resp_"):
        raise invalid_id(name)
    response = store.get(name)
    if response is None:
        raise unknown_response(name)
    return response


def parse_responses(
    body: bytes, headers: Headers, served: ServedModel, store: ResponseStore | None = None
) -> SglangRequest:
    """The request that a Responses body asks for; with a `store` it says what is to be kept.

    Raises SglangError, and LateError for what SGLang finds when a stream has begun.
    """
    try:
        raw = load_object(body)
        fields = check_fields(raw, _FIELDS, ("input",))
    except ApiError as error:
        raise responses_error(error.message, 400) from None
    _refuse(fields, served, store)
    history = _history(fields, store)
    try:
        chat = _as_chat(fields, history)
        prompt = chat_prompt(chat, served)
    except ValueError as error:
        # The handler shows an exception's cause, of which there is none.
        raise nested_error(f"{error} None", _REFUSED, 400) from None
    except SglangError as error:
        raise nested_error(f"{error.message} None", _REFUSED, 400) from None
    stream = flag_field(fields, "stream")
    name = text_field(fields, "request_id") or f"resp_{served.new_id()}"
    echo = _echo(fields, name, served)
    try:
        sampling = read_sampling(_sampling(fields, served), served.model_vocab_size)
        ids = check_length(prompt, served)
        rank = read_dp_rank(fields, headers, served)
    except ValueError as error:
        if stream:
            frames = partial(failed_frames, echo, str(error))
            raise LateError(str(error), True, frames) from None
        raise nested_error(str(error), _REFUSED, 400) from None
    forced = forced_call(chat)
    plans, cap = plan_prompt(
        ids,
        0,
        1,
        sampling,
        served,
        namespace=namespace_of(fields, 0),
        priority=int_field(fields, "priority", 0),
        rank=rank,
        write=None if forced is None else forced.writer(served),
    )
    plan = plans[0] if forced is None else replace(plans[0], call=forced.call(served))
    front = front_of(served)
    bootstrap = read_bootstrap(fields, 0, False)
    return SglangRequest(
        kind=RESPONSES,
        sequences=(SglangSequence(name, plan, cap, len(ids), bootstrap=bootstrap),),
        prompts=(PromptText(len(ids), None, None),),
        tokenizer=served.tokenizer,
        stream=stream,
        stream_interval=front.stream_interval,
        single=True,
        model=str(echo["model"]),
        cache_report=front.enable_cache_report,
        wishes=Wishes(frontier=raw.get("frontier") is True),
        routing=Routing(
            routed_dp_rank=rank,
            disagg_prefill_dp_rank=optional_int_field(fields, "disagg_prefill_dp_rank"),
            actor=actor_of(raw.get("metadata")),
        ),
        echo=echo,
        record=_record(fields, name, history, store),
    )


def _history(fields: Fields, store: ResponseStore | None) -> list[Json]:
    """The conversation up to and with the input. Raises SglangError."""
    previous = text_field(fields, "previous_response_id")
    history: list[Json] = []
    if previous is not None and store is not None:
        kept_response(previous, store)
        history += store.history(previous)
    given = fields["input"]
    if isinstance(given, str):
        return [*history, {"role": "user", "content": given}]
    return [*history, *(given if isinstance(given, list) else ())]


def _record(
    fields: Fields, name: str, history: list[Json], store: ResponseStore | None
) -> Record | None:
    if store is None or not flag_field(fields, "store", True):
        return None
    # A background response that is streamed stays on its connection.
    background = flag_field(fields, "background") and not flag_field(fields, "stream")
    return Record(name, tuple(history), background)


def _refuse(fields: Fields, served: ServedModel, store: ResponseStore | None) -> None:
    """What the handler refuses before it looks at the input. Raises SglangError."""
    kind = _REFUSED
    if store is None and fields.get("previous_response_id") is not None:
        raise store_disabled("previous_response_id")
    if flag_field(fields, "background"):
        if store is None:
            raise store_disabled("background")
        if not flag_field(fields, "store", True):
            raise nested_error("background=true requires store=true.", kind, 400, "store")
    model = text_field(fields, "model")
    if model is not None and model not in served.names:
        adapter = adapter_in(model, served.names[0])
        if adapter is None or model.removesuffix(f":{adapter}") not in served.names:
            message = f"The model '{model}' does not exist"
            raise nested_error(message, kind, 404, "model")
    tools = _functions(fields)
    choice = fields.get("tool_choice")
    if choice == "required" and not tools:
        message = (
            'tool_choice="required" requires at least one tool with type="function" or '
            'type="custom"; other built-in tool types cannot be forced.'
        )
        raise nested_error(message, kind, 400)
    named = _named(choice)
    if named is not None and named not in [tool.get("name") for tool in tools]:
        raise nested_error(f"Tool {named!r} is not declared in tools", kind, 400, "tool_choice")
    wanted = fields.get("include")
    if isinstance(wanted, list) and "message.output_text.logprobs" in wanted:
        if flag_field(fields, "stream"):
            message = "logprobs are not supported in streaming mode"
        else:
            message = "log-probabilities of responses are not simulated"
        raise nested_error(message, kind, 400, "logprobs")


def _named(choice: Json) -> Json:
    """The one tool that must be called, None if there is no such."""
    if not isinstance(choice, dict) or choice.get("type") not in ("function", "custom"):
        return None
    function = choice.get("function")
    inner = function.get("name") if isinstance(function, dict) else None
    return choice.get("name") or inner


def _functions(fields: Fields) -> list[dict[str, Json]]:
    tools = fields.get("tools")
    return [
        tool
        for tool in (tools if isinstance(tools, list) else ())
        if isinstance(tool, dict) and tool.get("type") in ("function", "custom")
    ]


def _sampling(fields: Fields, served: ServedModel) -> dict[str, Json]:
    front = front_of(served)
    params: dict[str, Json] = dict(front.preferred_sampling_params or {})
    params |= {name: fields[name] for name in _SAMPLING if fields.get(name) is not None}
    cap = optional_int_field(fields, "max_output_tokens")
    params["max_new_tokens"] = None if cap is None else cap - _HEADROOM_TOKENS
    text = fields.get("text")
    shape = text.get("format") if isinstance(text, dict) else None
    if isinstance(shape, dict) and shape.get("type") == "json_schema":
        params["json_schema"] = json.dumps(shape.get("schema") or {})
    elif isinstance(shape, dict) and shape.get("type") == "json_object":
        params["json_schema"] = '{"type": "object"}'
    return params


def _as_chat(fields: Fields, history: Sequence[Json]) -> dict[str, Json]:
    """What makes the prompt, in the terms of a chat. Raises ValueError for an unknown item."""
    turns: list[dict[str, Json]] = []
    system: list[str] = []
    instructions = text_field(fields, "instructions")
    if instructions:
        system.append(instructions)
    for item in history:
        assert isinstance(item, dict)
        turn = _turn(item)
        if turn is None:
            continue
        if turn.get("role") == "system":
            system += _texts(turn.get("content"))
        elif turn.get("role") == "assistant" and turns and turns[-1].get("role") == "assistant":
            _merge(turns[-1], turn)
        else:
            turns.append(turn)
    messages: list[Json] = [*turns]
    if system:
        messages.insert(0, {"role": "system", "content": "\n\n".join(system)})
    chat: dict[str, Json] = {"messages": messages}
    if fields.get("chat_template_kwargs") is not None:
        chat["chat_template_kwargs"] = fields["chat_template_kwargs"]
    choice = fields.get("tool_choice")
    named = _named(choice)
    if named is not None:
        chat["tool_choice"] = {"type": "function", "function": {"name": named}}
    elif isinstance(choice, str):
        chat["tool_choice"] = choice
    if choice != "none":
        chat["tools"] = [
            {
                "type": "function",
                "function": {name: tool.get(name) for name in ("name", "description", "parameters")}
                | {"name": str(tool.get("name") or "")},
            }
            for tool in _functions(fields)
        ] or None
    return chat


def _merge(into: dict[str, Json], turn: Mapping[str, Json]) -> None:
    """Items of one assistant turn are one message of a chat."""
    texts = [*_texts(into.get("content")), *_texts(turn.get("content"))]
    if texts:
        into["content"] = "\n\n".join(text for text in texts if text)
    calls = [_list(into.get("tool_calls")), _list(turn.get("tool_calls"))]
    if any(calls):
        into["tool_calls"] = [*calls[0], *calls[1]]


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def _turn(item: dict[str, Json]) -> dict[str, Json] | None:
    """One item of the input as a message of a chat; reasoning of earlier turns is left out."""
    kind = item.get("type")
    if kind in ("function_call", "custom_tool_call"):
        arguments = item.get("arguments")
        if kind == "custom_tool_call":
            arguments = json.dumps({"input": item.get("input") or ""})
        function: Json = {"name": item.get("name"), "arguments": _arguments(arguments)}
        name = item.get("call_id") or item.get("id")
        call: Json = {"id": name, "type": "function", "function": function}
        return {"role": "assistant", "tool_calls": [call]}
    if kind in ("function_call_output", "custom_tool_call_output"):
        said = "".join(_texts(item.get("output", "")))
        return {"role": "tool", "tool_call_id": item.get("call_id") or "", "content": said}
    if kind == "reasoning":
        return None
    if kind not in (None, "message"):
        raise ValueError(f"Unsupported Responses API input item type: {kind!r}")
    content = item.get("content")
    if isinstance(content, list):
        content = [_part(part) for part in content]
    if item.get("role") == "developer":
        texts = _texts(content)
        first = f"{_DEVELOPER}\n{texts[0]}" if texts else _DEVELOPER
        return {"role": "system", "content": "\n\n".join([first, *texts[1:]])}
    return {"role": item.get("role") or "", "content": content or ""}


def _part(part: Json) -> Json:
    if isinstance(part, dict) and part.get("type") in ("input_text", "output_text"):
        return {"type": "text", "text": part.get("text") or ""}
    if isinstance(part, dict) and part.get("type") == "input_image":
        return {"type": "image_url", "image_url": {"url": part.get("image_url")}}
    return part


def _texts(content: Json) -> list[str]:
    if isinstance(content, str):
        return [content]
    parts: Sequence[Json] = content if isinstance(content, list) else ()
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return [text for text in texts if isinstance(text, str)]


def _arguments(given: Json) -> str:
    """Arguments as the JSON text of an object, which templates rely on."""
    if isinstance(given, dict):
        return json.dumps(given)
    try:
        parsed = json.loads(given) if isinstance(given, str) else None
    except ValueError:
        parsed = None
    return given if isinstance(given, str) and isinstance(parsed, dict) else "{}"


def _echo(fields: Fields, name: str, served: ServedModel) -> dict[str, Json]:
    """What the response repeats of its request (`ResponsesResponse.from_request`)."""
    reasoning = fields.get("reasoning")
    effort = reasoning.get("effort") if isinstance(reasoning, dict) else None
    named = _named(fields.get("tool_choice"))
    choice = fields.get("tool_choice", "auto")
    if isinstance(choice, dict):
        choice = "auto" if named is None else {"type": choice["type"], "name": named}
    return {
        "id": name,
        "model": text_field(fields, "model") or served.names[0],
        "parallel_tool_calls": flag_field(fields, "parallel_tool_calls", True),
        "tool_choice": choice,
        "tools": fields.get("tools", []),
        "instructions": fields.get("instructions"),
        "max_output_tokens": fields.get("max_output_tokens"),
        "previous_response_id": fields.get("previous_response_id"),
        "reasoning": {"effort": effort, "summary": None},
        "store": fields.get("store", True),
        "temperature": fields.get("temperature"),
        "text": fields.get("text"),
        "top_p": fields.get("top_p"),
        "truncation": fields.get("truncation", "disabled"),
        "user": fields.get("user"),
        "metadata": fields.get("metadata") or {},
    }
