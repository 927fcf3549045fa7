"""POST /parse_function_call and /separate_reasoning: a text taken apart, without the engine.

Only formats that many models share are here: calls as JSON between `<tool_call>` tags, reasoning
between `<think>` tags (SGLang 0.5.23 `function_call/qwen25_detector.py`,
`parser/reasoning_parser.py`). Other parsers that SGLang knows are refused; a name that nobody knows
is a bare 500, as there.
"""

import json
import re
from collections.abc import Mapping

from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.fields import (
    Check,
    Fields,
    boolean,
    check_fields,
    flag_field,
    list_of,
    mapping,
    nullable,
    string,
    text_field,
)
from frontier_mock.wire.render import dumps
from frontier_mock.wire.sglang.bodies import load_object
from frontier_mock.wire.sglang.errors import CrashError, http_error, validation_error
from frontier_mock.wire.tokenizer import Json

_CALLS: Mapping[str, Check] = {
    "text": string,
    "tools": list_of(mapping),
    "tool_call_parser": nullable(string),
}
_REASONING: Mapping[str, Check] = {
    "text": string,
    "reasoning_parser": string,
    "return_blocks": boolean,
}
_TAGGED_CALLS = {"qwen": "\n", "qwen25": "\n", "hermes": ""}
"""Parsers of JSON between tags, and what stands between a tag and the JSON."""

_OTHER_CALLS = frozenset(
    (
        *("apertus2509", "beam", "cohere_command4", "deepseekv3", "deepseekv31", "deepseekv32"),
        *("deepseekv4", "deepseekv41", "dots", "glm", "glm45", "glm47", "gpt-oss", "k2_horizon"),
        *("kimi_k2", "kimi_k3", "lfm2", "ling3", "llama3", "mimo", "minicpm5", "mistral", "muse"),
        *("poolside_v1", "pythonic", "qwen3_coder", "spark25", "step3", "step3p5", "minimax-m2"),
        *("minimax-m3", "nanbeige", "trinity", "interns1", "hunyuan", "gigachat3", "gigachat35"),
        *("gemma4", "inkling", "iquest_q1", "response_template"),
    )
)
_THINKING = {
    **dict.fromkeys(("qwen3", "glm45", "dots", "nanbeige", "interns1"), False),
    **dict.fromkeys(("qwen3-thinking", "minimax", "deepseek-r1", "step3", "step3p5"), True),
    "gigachat35": True,
}
"""Parsers of `<think>` tags; whether a text without the first tag has begun with reasoning."""

_OTHER_THINKING = frozenset(
    (
        *("apertus2509", "beam", "deepseek-v3", "deepseek-v4", "deepseek-v41", "ling3"),
        *("hunyuan", "gpt-oss", "k2_horizon", "kimi", "kimi_k2", "kimi_k3", "mimo", "muse"),
        *("poolside_v1", "minimax-append-think", "minimax-m3", "mistral", "nemotron_3"),
        *("granite_thinking_parser", "gemma4", "inkling", "iquest_q1", "cohere_command4"),
        "response_template",
    )
)
_OPEN, _CLOSE = "<think>", "</think>"


def parse_calls(body: bytes) -> bytes:
    """The answer of /parse_function_call. Raises SglangError and CrashError."""
    fields = _read(body, _CALLS, ("text",))
    text = text_field(fields, "text") or ""
    parser = text_field(fields, "tool_call_parser")
    gap = _TAGGED_CALLS.get(parser or "")
    if gap is None:
        _refuse("tool_call_parser", parser, parser in _OTHER_CALLS, sorted(_TAGGED_CALLS))
    tools = fields.get("tools")
    names = [
        function.get("name")
        for tool in (tools if isinstance(tools, list) else ())
        if isinstance(tool, dict) and isinstance(function := tool.get("function"), dict)
    ]
    opening, closing = f"<tool_call>{gap}", f"{gap}</tool_call>"
    calls: list[Json] = []
    normal = text
    if names and opening in text:
        normal = text[: text.find(opening)].strip()
        pattern = f"{re.escape(opening)}(.*?){re.escape(closing)}"
        for found in re.findall(pattern, text, re.DOTALL):
            calls += _calls_in(found, names)
    return dumps({"normal_text": normal, "calls": calls}).encode("utf-8", "surrogatepass")


def _calls_in(found: str, names: list[Json]) -> list[Json]:
    try:
        parsed = json.loads(found.strip())
    except (ValueError, RecursionError):
        return []
    calls: list[Json] = []
    for call in parsed if isinstance(parsed, list) else [parsed]:
        if isinstance(call, dict) and call.get("name") in names:
            given = call.get("parameters") or call.get("arguments", {})
            parameters = json.dumps(given, ensure_ascii=False)
            index = names.index(call["name"])
            calls.append({"tool_index": index, "name": call["name"], "parameters": parameters})
    return calls


def separate_reasoning(body: bytes) -> bytes:
    """The answer of /separate_reasoning. Raises SglangError and CrashError."""
    fields = _read(body, _REASONING, ("text", "reasoning_parser"))
    text = text_field(fields, "text") or ""
    parser = (text_field(fields, "reasoning_parser") or "").lower()
    forced = _THINKING.get(parser)
    if forced is None:
        _refuse("reasoning_parser", parser, parser in _OTHER_THINKING, sorted(_THINKING))
    reasoning, normal = "", text
    if forced or _OPEN in text:
        while text.startswith(_OPEN):
            text = text.removeprefix(_OPEN)
        reasoning, _, normal = text.partition(_CLOSE)
    answer: dict[str, Json] = {"reasoning_text": reasoning, "text": normal}
    if flag_field(fields, "return_blocks"):
        thought: list[Json] = [reasoning] if reasoning else []
        blocks: list[Json] = [{"type": "reasoning", "text": one} for one in thought]
        answer |= {
            "reasoning_blocks": thought,
            "text_blocks": [normal],
            "blocks": [*blocks, {"type": "text", "text": normal}],
        }
    return dumps(answer).encode("utf-8", "surrogatepass")


def _refuse(option: str, parser: str | None, known: bool, allowed: list[str]) -> None:
    if known:
        raise http_error(
            f"frontier_mock does not simulate {option} {parser!r}; allowed: {', '.join(allowed)}",
            400,
        )
    raise CrashError(f"Unsupported {option}: {parser}")


def _read(body: bytes, table: Mapping[str, Check], required: tuple[str, ...]) -> Fields:
    try:
        return check_fields(load_object(body), table, required)
    except ApiError as error:
        raise validation_error(error) from None
