"""The fields of chat and completion requests with their types, in vLLM's order.

Order matters: it is the order in which several violations are reported. All of it is from the
`protocol.py` of both routes in vLLM 0.33.
"""

from collections.abc import Mapping

from frontier_mock.wire.errors import Loc, Problem, invalid
from frontier_mock.wire.fields import (
    INT64_MAX,
    INT64_MIN,
    Check,
    boolean,
    integer,
    list_of,
    literal,
    mapping,
    mapping_of,
    model,
    nullable,
    number,
    string,
    typed_dict,
    union,
)
from frontier_mock.wire.messages import message_list
from frontier_mock.wire.tokenizer import Json

CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
"""The kinds of structured output, of which a request may have one."""

MAX_STOP_STRINGS = 4
"""`VLLM_MAX_STOP_STRINGS` unless the server's environment sets it."""

_INT = integer()
_TOKEN_ID = integer(0)
_OPTIONAL_INT = nullable(_INT)
_OPTIONAL_NUMBER = nullable(number)
_OPTIONAL_STRING = nullable(string)
_OPTIONAL_INTS = nullable(list_of(_INT))
_OPTIONAL_FLAG = nullable(boolean)


def _stop(max_strings: int) -> Check:
    return nullable(union(string, list_of(string, max_strings)))


def _encoded(value: Json, loc: Loc, problems: list[Problem]) -> Json:
    """Base64 in a string, which pydantic calls bytes."""
    if not isinstance(value, str):
        problems.append(Problem("bytes_type", loc, "Input should be a valid bytes", value))
    return value


def _thinking_token_budget(value: Json, loc: Loc, problems: list[Problem]) -> Json:
    if value is None or (type(value) is int and value >= -1):
        return value
    raise invalid(
        "`thinking_token_budget` must be a non-negative integer or -1 for unlimited.",
        "thinking_token_budget",
        value,
    )


_REPETITION = typed_dict(
    {"max_pattern_size": _INT, "min_pattern_size": _INT, "min_count": _INT},
    (),
    "RepetitionDetectionParams",
)


def _repetition_detection(value: Json, loc: Loc, problems: list[Problem]) -> Json:
    known = len(problems)
    checked = _REPETITION(value, loc, problems)
    if len(problems) > known or not isinstance(checked, dict):
        return checked
    sizes = [checked.get(name, 0) for name in ("max_pattern_size", "min_pattern_size")]
    largest, smallest = (size if isinstance(size, int) else 0 for size in sizes)
    count = checked.get("min_count", 0)
    if largest < 0 or smallest < 0 or smallest > largest:
        raise invalid(
            "max_pattern_size, min_pattern_size must be >=0, with min_pattern_size <= "
            "max_pattern_size. Set both to 0 to disable repetitive pattern detection."
        )
    if largest > 0 and isinstance(count, int) and count < 2:
        raise invalid(
            "min_count must be >= 2 to detect repetitive patterns in engine output. If you do not "
            "wish to detect repetitive patterns, set max_pattern_size to 0."
        )
    return checked


_STRUCTURED = typed_dict(
    {
        "json": nullable(union(string, mapping)),
        "regex": _OPTIONAL_STRING,
        "choice": nullable(list_of(string)),
        "grammar": _OPTIONAL_STRING,
        "json_object": _OPTIONAL_FLAG,
        "disable_any_whitespace": boolean,
        "disable_additional_properties": boolean,
        "whitespace_pattern": _OPTIONAL_STRING,
        "structural_tag": _OPTIONAL_STRING,
    },
    (),
    "StructuredOutputsParams",
)


def _structured_outputs(value: Json, loc: Loc, problems: list[Problem]) -> Json:
    known = len(problems)
    checked = _STRUCTURED(value, loc, problems)
    if len(problems) > known or not isinstance(checked, dict):
        return checked
    total = sum(checked.get(kind) is not None for kind in CONSTRAINTS)
    if total == 1:
        return checked
    state: dict[str, Json] = {kind: checked.get(kind) for kind in CONSTRAINTS[:5]}
    for name in ("disable_any_whitespace", "disable_additional_properties"):
        state[name] = checked.get(name, False)
    for name in ("whitespace_pattern", "structural_tag"):
        state[name] = checked.get(name)
    state["_backend"] = None
    state["_backend_was_auto"] = False
    rule, found = ("can only", "multiple") if total else ("must", "none")
    raise invalid(
        f"You {rule} use one kind of structured outputs constraint but {found} are specified: "
        f"{state}"
    )


_JSON_SCHEMA = model(
    {
        "name": string,
        "description": _OPTIONAL_STRING,
        "schema": nullable(mapping),
        "strict": _OPTIONAL_FLAG,
    },
    ("name",),
)
_STRUCTURE = model({"begin": string, "schema": nullable(mapping), "end": string}, ("begin", "end"))
_RESPONSE_FORMAT = union(
    model(
        {
            "type": literal("text", "json_object", "json_schema"),
            "json_schema": nullable(_JSON_SCHEMA),
        },
        ("type",),
    ),
    model(
        {"type": literal("structural_tag"), "format": lambda value, _l, _p: value},
        ("type", "format"),
    ),
    model(
        {
            "type": literal("structural_tag"),
            "structures": list_of(_STRUCTURE),
            "triggers": list_of(string),
        },
        ("type", "structures", "triggers"),
    ),
)
_FUNCTION = model(
    {
        "name": string,
        "description": _OPTIONAL_STRING,
        "parameters": nullable(mapping),
        "strict": _OPTIONAL_FLAG,
        "defer_loading": _OPTIONAL_FLAG,
    },
    ("name",),
)
_TOOL = model(
    {"type": literal("function"), "function": _FUNCTION, "defer_loading": _OPTIONAL_FLAG},
    ("function",),
)
_NAMED_TOOL = model(
    {"function": model({"name": string}, ("name",)), "type": literal("function")}, ("function",)
)

SHARED_FIELDS: Mapping[str, Check] = {
    "model": _OPTIONAL_STRING,
    "frequency_penalty": _OPTIONAL_NUMBER,
    "logit_bias": nullable(mapping_of(number)),
    "max_tokens": _OPTIONAL_INT,
    "presence_penalty": _OPTIONAL_NUMBER,
    "response_format": nullable(_RESPONSE_FORMAT),
    "seed": nullable(integer(INT64_MIN, INT64_MAX)),
    "stop": _stop(MAX_STOP_STRINGS),
    "stream": _OPTIONAL_FLAG,
    "stream_options": nullable(
        model({"include_usage": _OPTIONAL_FLAG, "continuous_usage_stats": _OPTIONAL_FLAG})
    ),
    "temperature": _OPTIONAL_NUMBER,
    "top_p": _OPTIONAL_NUMBER,
    "thinking_token_budget": _thinking_token_budget,
    "user": _OPTIONAL_STRING,
    "use_beam_search": boolean,
    "top_k": _OPTIONAL_INT,
    "min_p": _OPTIONAL_NUMBER,
    "repetition_penalty": _OPTIONAL_NUMBER,
    "watermarking": _OPTIONAL_FLAG,
    "length_penalty": number,
    "stop_token_ids": _OPTIONAL_INTS,
    "include_stop_str_in_output": boolean,
    "ignore_eos": boolean,
    "min_tokens": _INT,
    "skip_special_tokens": _OPTIONAL_FLAG,
    "spaces_between_special_tokens": boolean,
    "truncate_prompt_tokens": nullable(integer(-1, INT64_MAX)),
    "truncation_side": nullable(literal("left", "right")),
    "prompt_logprobs": _OPTIONAL_INT,
    "logprob_token_ids": _OPTIONAL_INTS,
    "allowed_token_ids": _OPTIONAL_INTS,
    "bad_words": list_of(string),
    "add_special_tokens": boolean,
    "structured_outputs": nullable(_structured_outputs),
    "priority": integer(INT64_MIN, INT64_MAX),
    "request_id": string,
    "session_id": _OPTIONAL_STRING,
    "return_tokens_as_token_ids": _OPTIONAL_FLAG,
    "return_token_ids": _OPTIONAL_FLAG,
    "return_weight_versions": boolean,
    "routed_experts_prompt_start": integer(0),
    "return_token_offsets": _OPTIONAL_FLAG,
    "mm_payload": literal("tensors", "none"),
    "return_mm_kwargs": _OPTIONAL_FLAG,
    "cache_salt": _OPTIONAL_STRING,
    "kv_transfer_params": nullable(mapping),
    "ec_transfer_params": nullable(mapping),
    "vllm_xargs": nullable(mapping),
    "repetition_detection": nullable(_repetition_detection),
    "stream_interval": nullable(integer(1)),
}
"""The fields that both routes have."""

_CHAT_ONLY: Mapping[str, Check] = {
    "messages": message_list,
    "logprobs": _OPTIONAL_FLAG,
    "top_logprobs": nullable(_INT),
    "max_completion_tokens": _OPTIONAL_INT,
    "n": _OPTIONAL_INT,
    "tools": nullable(list_of(_TOOL)),
    "tool_choice": nullable(
        union(literal("none"), literal("auto"), literal("required"), _NAMED_TOOL)
    ),
    "reasoning_effort": nullable(
        literal("none", "minimal", "low", "medium", "high", "xhigh", "max")
    ),
    "include_reasoning": boolean,
    "parallel_tool_calls": _OPTIONAL_FLAG,
    "echo": boolean,
    "add_generation_prompt": boolean,
    "continue_final_message": boolean,
    "documents": nullable(list_of(mapping_of(string))),
    "chat_template": _OPTIONAL_STRING,
    "chat_template_kwargs": nullable(mapping),
    "media_io_kwargs": nullable(mapping_of(mapping)),
    "mm_processor_kwargs": nullable(mapping),
    "return_prompt_text": _OPTIONAL_FLAG,
}
_COMPLETION_ONLY: Mapping[str, Check] = {
    "prompt": nullable(
        union(list_of(_TOKEN_ID), list_of(list_of(_TOKEN_ID)), string, list_of(string))
    ),
    "echo": _OPTIONAL_FLAG,
    "logprobs": _OPTIONAL_INT,
    "n": _INT,
    "suffix": _OPTIONAL_STRING,
    "prompt_embeds": nullable(union(_encoded, list_of(_encoded))),
}

_CHAT_ORDER = """
messages model frequency_penalty logit_bias logprobs top_logprobs max_tokens max_completion_tokens n
presence_penalty response_format seed stop stream stream_options temperature top_p tools tool_choice
reasoning_effort thinking_token_budget include_reasoning parallel_tool_calls user use_beam_search
top_k min_p repetition_penalty watermarking length_penalty stop_token_ids include_stop_str_in_output
ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens
truncation_side prompt_logprobs logprob_token_ids allowed_token_ids bad_words echo
add_generation_prompt continue_final_message add_special_tokens documents chat_template
chat_template_kwargs media_io_kwargs mm_processor_kwargs structured_outputs priority request_id
session_id return_tokens_as_token_ids return_token_ids return_weight_versions
routed_experts_prompt_start return_token_offsets return_prompt_text mm_payload return_mm_kwargs
cache_salt kv_transfer_params ec_transfer_params vllm_xargs repetition_detection stream_interval
"""
_COMPLETION_ORDER = """
model prompt echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop
stream stream_options suffix temperature top_p user use_beam_search top_k min_p repetition_penalty
watermarking length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens
skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens truncation_side
allowed_token_ids prompt_logprobs logprob_token_ids bad_words prompt_embeds add_special_tokens
response_format structured_outputs priority request_id session_id return_tokens_as_token_ids
return_token_ids return_weight_versions routed_experts_prompt_start return_token_offsets mm_payload
return_mm_kwargs cache_salt kv_transfer_params ec_transfer_params vllm_xargs repetition_detection
thinking_token_budget stream_interval
"""

CHAT_FIELDS: Mapping[str, Check] = {
    name: {**SHARED_FIELDS, **_CHAT_ONLY}[name] for name in _CHAT_ORDER.split()
}
"""Every field of a chat request."""

COMPLETION_FIELDS: Mapping[str, Check] = {
    name: {**SHARED_FIELDS, **_COMPLETION_ONLY}[name] for name in _COMPLETION_ORDER.split()
}
"""Every field of a completion request."""

COMPLETION_FIELDS_WITHOUT_PROMPT: Mapping[str, Check] = {
    name: check for name, check in COMPLETION_FIELDS.items() if name != "prompt"
}
"""The same for a request whose prompt has been checked on the fast path."""


def with_stop_limit(table: Mapping[str, Check], max_strings: int) -> Mapping[str, Check]:
    """The table for a server that takes up to `max_strings` stop strings."""
    if max_strings == MAX_STOP_STRINGS:
        return table
    return {**table, "stop": _stop(max_strings)}
