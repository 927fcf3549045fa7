"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API as vLLM 0.33 serves it.

A request becomes a chat request and is treated as one; what comes back is said in other words
(`entrypoints/anthropic` in vLLM 0.33). Thinking is accepted and never done.
"""

from collections.abc import Mapping

from frontier_mock.wire.chat import parse_chat
from frontier_mock.wire.errors import ApiError, Loc, Problem
from frontier_mock.wire.fields import (
    Check,
    Fields,
    boolean,
    check_fields,
    flag_field,
    integer,
    list_of,
    literal,
    load_object,
    mapping,
    model,
    nullable,
    number,
    string,
    text_field,
    union,
)
from frontier_mock.wire.generation import MESSAGES, Generation
from frontier_mock.wire.images import source_url
from frontier_mock.wire.plan import Headers
from frontier_mock.wire.render import dumps
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.tokenizer import Json

_BILLING = "x-anthropic-billing-header"
"""Claude Code's header with a hash of its own for each request, which vLLM drops."""
_MIN_BUDGET_TOKENS = 1024
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_PASSED = (
    *("temperature", "top_p", "top_k", "watermarking", "cache_salt", "kv_transfer_params"),
    *("ec_transfer_params", "vllm_xargs", "chat_template_kwargs"),
)


def _value_error(message: str, loc: Loc, value: Json) -> Problem:
    return Problem("value_error", loc, f"Value error, {message}", value, {"error": {}})


def _name(value: Json, loc: Loc, problems: list[Problem]) -> Json:
    if value == "":
        problems.append(_value_error("Model is required", loc, value))
    return string(value, loc, problems)


def _max_tokens(value: Json, loc: Loc, problems: list[Problem]) -> Json:
    checked = integer()(value, loc, problems)
    if isinstance(checked, int) and checked <= 0:
        problems.append(_value_error("max_tokens must be positive", loc, value))
    return checked


def _tool_choice(value: Json, loc: Loc, problems: list[Problem]) -> Json:
    known = len(problems)
    kinds = literal("auto", "any", "tool", "none")
    checked = model({"type": kinds, "name": nullable(string)}, ("type",))(value, loc, problems)
    named = isinstance(checked, dict) and (checked.get("type") != "tool" or checked.get("name"))
    if len(problems) == known and not named:
        message = "tool_choice.name is required when type is 'tool'"
        problems.append(_value_error(message, loc, value))
    return checked


_BLOCK = model(
    {
        "type": literal(
            *("text", "image", "tool_use", "tool_result", "tool_reference", "thinking"),
            *("redacted_thinking", "tool_addition", "tool_removal"),
        ),
        "text": nullable(string),
        "id": nullable(string),
        "tool_use_id": nullable(string),
        "name": nullable(string),
        "input": nullable(mapping),
        "content": nullable(union(string, list_of(mapping))),
    },
    ("type",),
)
_CONTENT = union(string, list_of(_BLOCK))
_COUNTED: Mapping[str, Check] = {
    "model": _name,
    "messages": list_of(
        model(
            {"role": literal("user", "assistant", "system"), "content": _CONTENT},
            ("role", "content"),
        )
    ),
    "output_config": nullable(mapping),
    "thinking": nullable(
        model({"type": literal("enabled", "disabled", "adaptive")}, ("type",)),
    ),
    "system": nullable(_CONTENT),
    "tool_choice": nullable(_tool_choice),
    "tools": nullable(
        list_of(
            model(
                {"name": string, "description": nullable(string), "input_schema": mapping},
                ("name", "input_schema"),
            )
        )
    ),
    "chat_template_kwargs": nullable(mapping),
}
_FIELDS: Mapping[str, Check] = {
    **_COUNTED,
    "max_tokens": _max_tokens,
    "metadata": nullable(mapping),
    "stop_sequences": nullable(list_of(string, 4)),
    "stream": nullable(boolean),
    "temperature": nullable(number),
    "top_k": nullable(integer()),
    "top_p": nullable(number),
    "cache_salt": nullable(string),
    "watermarking": nullable(boolean),
    "kv_transfer_params": nullable(mapping),
    "ec_transfer_params": nullable(mapping),
    "vllm_xargs": nullable(mapping),
}


def messages_as_chat(body: bytes) -> bytes:
    """The chat request that a messages request is. Raises ApiError where its schema refuses it."""
    raw = load_object(body)
    fields = check_fields(raw, _FIELDS, ("model", "messages", "max_tokens"))
    chat = _chat_request(fields)
    for name in _PASSED:
        if fields.get(name) is not None:
            chat[name] = fields[name]
    chat["max_tokens"] = chat["max_completion_tokens"] = fields["max_tokens"]
    chat["metadata"] = raw.get("metadata")
    chat["frontier"] = raw.get("frontier")
    if fields.get("stop_sequences") is not None:
        chat["stop"] = fields["stop_sequences"]
    if flag_field(fields, "stream"):
        chat["stream"] = True
        chat["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    _think(fields, chat)
    return _bytes(chat)


def parse_messages(body: bytes, headers: Headers, served: ServedModel) -> Generation:
    """The generation that an Anthropic request asks for. Raises ApiError as vLLM refuses it."""
    chat = messages_as_chat(body)
    try:
        generation = parse_chat(chat, headers, served)
    except ApiError as error:
        if error.stream_kind:
            error.stream_kind = MESSAGES
        raise
    return generation._replace(kind=MESSAGES)


def count_tokens_body(body: bytes, headers: Headers, served: ServedModel) -> bytes:
    """How long the prompt of such a request is. Raises ApiError."""
    fields = check_fields(load_object(body), _COUNTED, ("model", "messages"))
    chat = _chat_request(fields)
    if fields.get("chat_template_kwargs") is not None:
        chat["chat_template_kwargs"] = fields["chat_template_kwargs"]
    count = parse_chat(_bytes(chat), headers, served).prompt_tokens
    return dumps(
        {"input_tokens": count, "context_management": {"original_input_tokens": count}}
    ).encode()


def _bytes(chat: dict[str, Json]) -> bytes:
    return dumps(chat).encode("utf-8", "surrogatepass")


def _think(fields: Fields, chat: dict[str, Json]) -> None:
    thinking = fields.get("thinking")
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    if isinstance(budget, int):
        if budget < _MIN_BUDGET_TOKENS:
            raise ApiError(400, f"thinking.budget_tokens must be >= {_MIN_BUDGET_TOKENS}")
        limit = fields["max_tokens"]
        if isinstance(limit, int) and budget >= limit:
            raise ApiError(400, "thinking.budget_tokens must be less than max_tokens")
        chat["thinking_token_budget"] = budget


def _chat_request(fields: Fields) -> dict[str, Json]:
    """Messages, tools and output format in the terms of a chat request."""
    messages: list[Json] = []
    system = _system_text(fields.get("system"))
    if system:
        messages.append({"role": "system", "content": system})
    given = fields["messages"]
    for message in given if isinstance(given, list) else ():
        if isinstance(message, dict):
            messages += _converted(message)
    chat: dict[str, Json] = {"model": fields["model"], "messages": messages}
    _add_tools(fields, chat)
    config = fields.get("output_config")
    wanted = config.get("format") if isinstance(config, dict) else None
    schema = wanted.get("schema") if isinstance(wanted, dict) else None
    if schema:
        described: Json = {"name": "json_schema", "schema": schema}
        chat["response_format"] = {"type": "json_schema", "json_schema": described}
    effort = config.get("effort") if isinstance(config, dict) else None
    if effort is not None:
        chat["reasoning_effort"] = effort
    return chat


def _add_tools(fields: Fields, chat: dict[str, Json]) -> None:
    choice = fields.get("tool_choice")
    if isinstance(choice, dict):
        chat["parallel_tool_calls"] = not choice.get("disable_parallel_tool_use")
        kind = text_field(choice, "type") or "auto"
        named: Json = {"type": "function", "function": {"name": choice.get("name")}}
        chat["tool_choice"] = named if kind == "tool" else _CHOICES[kind]
    tools = fields.get("tools")
    if not isinstance(tools, list) or not tools:
        return
    functions: list[Json] = []
    for tool in tools:
        if isinstance(tool, dict):
            schema = tool.get("input_schema")
            parameters: Json = {"type": "object", **schema} if isinstance(schema, dict) else {}
            function: Json = {
                "name": tool.get("name"),
                "description": tool.get("description"),
                "parameters": parameters,
            }
            functions.append({"type": "function", "function": function})
    chat["tools"] = functions
    # Here, unlike for chat, "auto" needs no parser that would never be asked.
    chat.setdefault("tool_choice", "none")


def _system_text(content: Json) -> str:
    if isinstance(content, str):
        return "" if content.startswith(_BILLING) else content
    texts = []
    for block in content if isinstance(content, list) else ():
        text = block.get("text") if isinstance(block, dict) else None
        if isinstance(text, str) and not text.startswith(_BILLING):
            texts.append(text)
    return "".join(texts)


def _converted(message: dict[str, Json]) -> list[Json]:
    """One message as those of a chat: results of tools become messages of their own."""
    role, content = message.get("role"), message.get("content")
    if role == "system":
        text = _system_text(content)
        return [{"role": "system", "content": text}] if text else []
    if not isinstance(content, list):
        return [{"role": role, "content": content}]
    results: list[Json] = []
    parts: list[Json] = []
    calls: list[Json] = []
    for block in content:
        if not isinstance(block, dict):
            continue
        kind = block.get("type")
        if kind == "text" and block.get("text"):
            parts.append({"type": "text", "text": block["text"]})
        elif kind == "image":
            url = source_url(block.get("source"))
            parts.append({"type": "image_url", "image_url": {"url": url}})
        elif kind == "tool_use":
            arguments = dumps(block.get("input") or {})
            function: Json = {"name": block.get("name") or "", "arguments": arguments}
            calls.append({"id": block.get("id") or "", "type": "function", "function": function})
        elif kind == "tool_result":
            results.append(
                {
                    "role": "tool",
                    "tool_call_id": block.get("tool_use_id") or "",
                    "content": _result_text(block.get("content")),
                }
            )
    if not parts and not calls and role == "user":
        return results
    turn: dict[str, Json] = {"role": role, "content": parts}
    if calls:
        turn["tool_calls"] = calls
    return [*results, turn]


def _result_text(content: Json) -> str:
    if isinstance(content, str):
        return content
    items = content if isinstance(content, list) else []
    texts = [item.get("text") for item in items if isinstance(item, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))
