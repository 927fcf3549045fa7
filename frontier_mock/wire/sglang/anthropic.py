"""POST /v1/messages and its count_tokens: Anthropic's requests, turned into chat requests.

SGLang 0.5.23 (`entrypoints/anthropic/serving.py`) hands them to its chat handler: a system prompt
becomes the first message, tool results become messages of their own, and thinking of earlier turns
is dropped where no reasoning parser could put it back.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from frontier_mock.wire.errors import ApiError, Loc, Problem
from frontier_mock.wire.fields import (
    INT64_MAX,
    INT64_MIN,
    Check,
    boolean,
    integer,
    list_of,
    literal,
    mapping,
    model,
    nullable,
    number,
    string,
    union,
)
from frontier_mock.wire.images import source_url
from frontier_mock.wire.plan import Headers
from frontier_mock.wire.render import dumps
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.anthropic_answer import error_frames
from frontier_mock.wire.sglang.bodies import load_object
from frontier_mock.wire.sglang.chat import chat_prompt, chat_request
from frontier_mock.wire.sglang.errors import SglangError, anthropic_error
from frontier_mock.wire.sglang.late import LateError
from frontier_mock.wire.sglang.openai_fields import anything
from frontier_mock.wire.sglang.plan import front_of
from frontier_mock.wire.sglang.request import MESSAGES, SglangRequest
from frontier_mock.wire.tokenizer import Json

_INT = integer(INT64_MIN, INT64_MAX)
_OPT_TEXT = nullable(string)
_MAX_MESSAGE_CHARS = 500
_LEAST_BUDGET = 1024

_BLOCKS: Mapping[str, Check] = {
    "text": model({"text": string}, ("text",)),
    "image": mapping,
    "tool_use": model({"id": string, "name": string, "input": mapping}, ("id", "name")),
    "tool_result": model({"tool_use_id": _OPT_TEXT, "id": _OPT_TEXT, "content": anything}),
    "tool_reference": model({"name": _OPT_TEXT, "tool_name": _OPT_TEXT}),
    "search_result": mapping,
    "thinking": model({"thinking": string}, ("thinking",)),
    "redacted_thinking": mapping,
}
_TOO_LONG = ("The input (", "Input length (")
"""How complaints begin that SGLang has only when the prompt is tokenized, in a begun stream."""

NOT_JSON = "header.content-type: Unsupported Media Type: Only 'application/json' is allowed"
"""What is wrong with any other content type."""

_SERVER_TOOLS = ("web_search_", "computer_", "bash_", "text_editor_")
"""Tools that Anthropic's servers implement: they are left out of the prompt."""

_PASSED = (
    *("model", "temperature", "top_p", "top_k", "metadata", "frontier", "bootstrap_host"),
    *("bootstrap_port", "bootstrap_room", "routed_dp_rank", "disagg_prefill_dp_rank"),
)
"""Fields that a chat request has under the same name."""


def _block(value: Json, loc: Loc, problems: list[Problem]) -> Json:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str):
        message = "Unable to extract tag using discriminator 'type'"
        problems.append(Problem("union_tag_not_found", loc, message, value))
        return value
    check = _BLOCKS.get(kind)
    if check is None:
        tags = ", ".join(f"'{tag}'" for tag in _BLOCKS)
        message = (
            f"Input tag '{kind}' found using 'type' does not match any of the expected tags: {tags}"
        )
        problems.append(Problem("union_tag_invalid", loc, message, value))
        return value
    return check(value, loc, problems)


def _thinking(value: Json, loc: Loc, problems: list[Problem]) -> Json:
    found = len(problems)
    checked = _THINKING(value, loc, problems)
    if len(problems) > found or not isinstance(checked, dict):
        return checked
    kind, budget = checked["type"], checked.get("budget_tokens")
    refused = ""
    if kind == "enabled" and budget is None:
        refused = "thinking.budget_tokens is required when thinking.type is 'enabled'"
    elif kind == "enabled" and isinstance(budget, int) and budget < _LEAST_BUDGET:
        refused = f"thinking.budget_tokens must be >= {_LEAST_BUDGET} (got {budget})"
    elif kind != "enabled" and budget is not None:
        refused = f"thinking.budget_tokens is not allowed when thinking.type is '{kind}'"
    elif kind == "disabled" and checked.get("display") is not None:
        refused = "thinking.display is not allowed when thinking.type is 'disabled'"
    if refused:
        problems.append(Problem("value_error", loc, f"Value error, {refused}", value))
    return checked


def _positive(value: Json, loc: Loc, problems: list[Problem]) -> Json:
    checked = _INT(value, loc, problems)
    if isinstance(checked, int) and checked <= 0:
        message = "Value error, max_tokens must be positive"
        problems.append(Problem("value_error", loc, message, value))
    return checked


def _named(value: Json, loc: Loc, problems: list[Problem]) -> Json:
    if value == "":
        problems.append(Problem("value_error", loc, "Value error, Model is required", value))
    return string(value, loc, problems)


_THINKING = model(
    {
        "type": literal("enabled", "disabled", "adaptive"),
        "budget_tokens": nullable(_INT),
        "display": nullable(literal("summarized", "omitted")),
    },
    ("type",),
)
_CONTENT = union(string, list_of(_block))
_MESSAGE = model(
    {"role": literal("user", "assistant", "system"), "content": _CONTENT}, ("role", "content")
)
_TOOL = model({"name": string, "description": _OPT_TEXT, "strict": boolean}, ("name",))
_CHOICE = model(
    {
        "type": literal("auto", "any", "tool", "none"),
        "name": _OPT_TEXT,
        "disable_parallel_tool_use": boolean,
    },
    ("type",),
)
_COUNTED: Mapping[str, Check] = {
    "model": string,
    "messages": list_of(_MESSAGE),
    "system": nullable(_CONTENT),
    "thinking": nullable(_thinking),
    "tool_choice": nullable(_CHOICE),
    "tools": nullable(list_of(_TOOL)),
    "output_config": nullable(mapping),
    "betas": nullable(list_of(string)),
}
_FIELDS: Mapping[str, Check] = {
    **_COUNTED,
    "model": _named,
    "max_tokens": _positive,
    "metadata": nullable(mapping),
    "stop_sequences": nullable(list_of(string)),
    "stream": nullable(boolean),
    "temperature": nullable(number),
    "top_k": nullable(_INT),
    "top_p": nullable(number),
}


def parse_messages(body: bytes, headers: Headers, served: ServedModel) -> SglangRequest:
    """The request that a body of /v1/messages asks for.

    Raises SglangError, and LateError for what SGLang finds when a stream has begun.
    """
    fields = _checked(body, _FIELDS, ("model", "messages", "max_tokens"))
    stream = fields.get("stream") is True
    try:
        chat = _as_chat(fields, served) | {"max_tokens": fields["max_tokens"], "stream": stream}
        if fields.get("stop_sequences") is not None:
            chat["stop"] = fields["stop_sequences"]
        return replace(chat_request(chat, headers, served), kind=MESSAGES)
    except ValueError as error:
        raise anthropic_error(str(error), 400) from None
    except SglangError as error:
        if stream and error.message.startswith(_TOO_LONG):
            name = str(fields["model"])
            frames = error_frames(served.new_id(), name, error.message, error.status)
            raise LateError(error.message, True, lambda _: frames) from None
        raise anthropic_error(error.message, error.status) from None


def count_tokens_body(body: bytes, served: ServedModel) -> bytes:
    """The answer of /v1/messages/count_tokens. Raises SglangError."""
    fields = _checked(body, _COUNTED, ("model", "messages"))
    try:
        ids = chat_prompt(_as_chat(fields, served), served)
    except ValueError as error:
        raise anthropic_error(str(error), 400) from None
    except SglangError as error:
        raise anthropic_error(error.message, error.status) from None
    return dumps({"input_tokens": len(ids)}).encode()


def _checked(body: bytes, table: Mapping[str, Check], required: tuple[str, ...]) -> dict[str, Json]:
    """The body's fields, converted. Raises SglangError with SGLang's digest of what is wrong."""
    try:
        raw = load_object(body)
    except ApiError:
        raise anthropic_error(_json_fault(body), 400) from None
    problems: list[Problem] = []
    checked = model(table, required)(raw, (), problems)
    if problems:
        text = "; ".join(
            f"{'.'.join(str(part) for part in problem.loc)}: {problem.message}"
            for problem in problems
        )
        short = text if len(text) <= _MAX_MESSAGE_CHARS else f"{text[:_MAX_MESSAGE_CHARS]}…"
        raise anthropic_error(short, 400)
    assert isinstance(checked, dict)
    return checked


def _json_fault(body: bytes) -> str:
    try:
        json.loads(body)
    except json.JSONDecodeError as error:
        return f"{error.pos}: JSON decode error"
    except (ValueError, RecursionError):
        return "There was an error parsing the body"
    return "Input should be a valid dictionary or object to extract fields from"


def _as_chat(fields: Mapping[str, Json], served: ServedModel) -> dict[str, Json]:
    """The chat request without its output limits. Raises ValueError in SGLang's words."""
    chat: dict[str, Json] = {name: fields[name] for name in _PASSED if fields.get(name) is not None}
    chat["messages"] = _turns(fields)
    thinking = fields.get("thinking")
    if isinstance(thinking, dict):
        enabled = thinking["type"] != "disabled"
        if enabled and not front_of(served).reasoning_parser:
            raise ValueError(
                "Anthropic thinking is not supported for models without a reasoning parser"
            )
        chat["chat_template_kwargs"] = {"thinking": enabled, "enable_thinking": enabled}
    output = fields.get("output_config")
    shape = output.get("format") if isinstance(output, dict) else None
    if isinstance(shape, dict):
        described: Json = {"name": "response", "schema": shape.get("schema") or {}}
        chat["response_format"] = {"type": "json_schema", "json_schema": described}
    tools = _tools(fields.get("tools"))
    if tools:
        chat["tools"] = tools
    choice = fields.get("tool_choice")
    if isinstance(choice, dict):
        _choose(choice, tools, chat)
    return chat


def _tools(given: Json) -> list[Json]:
    tools: list[Json] = []
    for tool in given if isinstance(given, list) else ():
        assert isinstance(tool, dict)
        if str(tool.get("type") or "").startswith(_SERVER_TOOLS):
            continue
        schema = tool.get("input_schema")
        if not isinstance(schema, dict):
            raise ValueError("input_schema must be a dictionary")
        function: Json = {
            "name": tool["name"],
            "description": tool.get("description") or "",
            "parameters": {**schema, "type": schema.get("type", "object")},
            "strict": tool.get("strict", False),
        }
        tools.append({"type": "function", "function": function})
    return tools


def _choose(choice: Mapping[str, Json], tools: Sequence[Json], chat: dict[str, Json]) -> None:
    kind, name = choice["type"], choice.get("name")
    if kind == "none":
        chat["tool_choice"] = "none"
    elif not tools:
        if kind != "auto":
            raise ValueError(
                f"tool_choice={kind!r} requires at least one custom tool; all supplied tools were "
                "server-side Anthropic built-ins which the OpenAI-compatible backend cannot invoke"
            )
    elif kind == "tool":
        names = [_name_of(tool) for tool in tools]
        if name not in names:
            raise ValueError(
                f"tool_choice references tool {name!r} but it is not in the forwarded tools list "
                "(server-side Anthropic tools cannot be selected)"
            )
        chat["tool_choice"] = {"type": "function", "function": {"name": name}}
    else:
        chat["tool_choice"] = "required" if kind == "any" else "auto"


def _name_of(tool: Json) -> Json:
    function = tool["function"] if isinstance(tool, dict) else None
    return function["name"] if isinstance(function, dict) else None


def _turns(fields: Mapping[str, Json]) -> list[Json]:
    messages = fields["messages"]
    assert isinstance(messages, list)
    system = _texts(fields.get("system"))
    turns: list[Json] = []
    for message in messages:
        assert isinstance(message, dict)
        role, content = message["role"], message["content"]
        if role == "system":
            system += [text.strip() for text in _texts(content)]
        elif isinstance(content, list):
            turns += _blocks(str(role), content)
        else:
            turns.append({"role": role, "content": content})
    said = "\n".join(text for text in system if text.strip())
    return [{"role": "system", "content": said}, *turns] if said else turns


def _texts(content: Json) -> list[str]:
    if isinstance(content, str):
        return [content]
    blocks = content if isinstance(content, list) else ()
    return [
        str(block["text"])
        for block in blocks
        if isinstance(block, dict) and block.get("type") == "text"
    ]


def _blocks(role: str, blocks: Sequence[Json]) -> list[Json]:
    """What one message of several blocks becomes."""
    turns: list[Json] = []
    parts: list[Json] = []
    calls: list[Json] = []
    for block in blocks:
        assert isinstance(block, dict)
        kind = block["type"]
        if kind == "redacted_thinking" and role == "assistant":
            raise ValueError("Anthropic redacted_thinking history is not supported")
        if kind == "tool_use":
            arguments = json.dumps(block.get("input") or {})
            function: Json = {"name": block["name"], "arguments": arguments}
            calls.append({"id": block["id"], "type": "function", "function": function})
        elif kind == "tool_result":
            result = _result(block.get("content"))
            if role != "user":
                told = "\n".join(result)
                parts.append({"type": "text", "text": f"Tool result: {told}"})
                continue
            turns += _said("user", parts)
            parts = []
            name = block.get("tool_use_id") or block.get("id") or ""
            texts: list[Json] = [{"type": "text", "text": text} for text in result or [""]]
            for said in _said("tool", texts):
                assert isinstance(said, dict)
                turns.append(said | {"tool_call_id": name})
        else:
            parts += _part(block)
    if role == "user":
        return turns + _said(role, parts)
    turn: dict[str, Json] = {"role": role}
    for said in _said(role, parts):
        assert isinstance(said, dict)
        turn = said
    if calls:
        turn["tool_calls"] = calls
    elif not parts:
        turn["content"] = ""
    return [turn]


def _said(role: str, parts: Sequence[Json]) -> list[Json]:
    if not parts:
        return []
    if len(parts) == 1:
        (part,) = parts
        if isinstance(part, dict) and part["type"] == "text":
            return [{"role": role, "content": part["text"]}]
    return [{"role": role, "content": [*parts]}]


def _part(block: Mapping[str, Json]) -> list[Json]:
    kind = block["type"]
    if kind == "text":
        return [{"type": "text", "text": block["text"]}]
    if kind == "image" and block.get("source"):
        return [{"type": "image_url", "image_url": {"url": source_url(block["source"])}}]
    if kind == "search_result":
        found = _search_text(block)
        return [{"type": "text", "text": found}] if found else []
    return []


def _search_text(block: Mapping[str, Json]) -> str:
    """A search result as text: its title, its source, and what it says."""
    lines = [f"Title: {block['title']}"] if block.get("title") else []
    source = block.get("source")
    if isinstance(source, dict):
        source = source.get("url") or source.get("text")
    if source:
        lines.append(f"Source: {source}")
    content = "\n".join(text for text in _texts(block.get("content")) if text)
    return "\n".join([*lines, f"Content: {content}"] if content else lines)


def _result(content: Json) -> list[str]:
    """What a tool said: a text for each block."""
    if not isinstance(content, list):
        return [str(content)] if content else []
    said = []
    for item in content:
        if isinstance(item, dict) and item.get("type") == "search_result":
            said.append(_search_text(item))
        elif isinstance(item, dict) and item.get("type") == "text":
            said.append(str(item.get("text") or ""))
    return [text for text in said if text]
