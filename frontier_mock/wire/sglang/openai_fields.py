"""The fields of SGLang's chat and completion requests with their types (SGLang 0.5.23 protocol.py).

Unlike vLLM's these are few validators and many fields that pass; unknown keys are ignored.
"""

import json
from collections.abc import Mapping

from frontier_mock.wire.errors import Loc, Problem
from frontier_mock.wire.fields import (
    INT64_MAX,
    INT64_MIN,
    Check,
    Fields,
    boolean,
    flag_field,
    integer,
    list_of,
    literal,
    mapping,
    mapping_of,
    model,
    nullable,
    number,
    string,
    union,
)
from frontier_mock.wire.messages import message_list
from frontier_mock.wire.plan import Headers, actor_of
from frontier_mock.wire.sglang.request import Routing, Wishes
from frontier_mock.wire.sglang.served import SglangFront
from frontier_mock.wire.tokenizer import Json

_INT = integer(INT64_MIN, INT64_MAX)
_OPT_INT = nullable(_INT)
_OPT_NUMBER = nullable(number)
_OPT_TEXT = nullable(string)
_OBJECT = nullable(mapping)
_TEXTS = nullable(union(string, list_of(string)))


def anything(value: Json, loc: Loc, problems: list[Problem]) -> Json:
    """No opinion."""
    return value


_JSON_SCHEMA = model(
    {"name": string, "description": _OPT_TEXT, "schema": _OBJECT, "strict": nullable(boolean)},
    ("name",),
)
_RESPONSE_FORMAT = union(
    model(
        {
            "type": literal("text", "json_object", "json_schema"),
            "json_schema": nullable(_JSON_SCHEMA),
        },
        ("type",),
    ),
    model({"type": literal("structural_tag")}, ("type",)),
)
_FUNCTION = model(
    {"name": string, "description": _OPT_TEXT, "parameters": anything, "strict": boolean}
)
_TOOL = model({"type": string, "function": _FUNCTION}, ("function",))
_NAMED_TOOL = model(
    {"type": literal("function"), "function": model({"name": string}, ("name",))}, ("function",)
)

_SHARED: Mapping[str, Check] = {
    "model": string,
    "frequency_penalty": number,
    "logit_bias": nullable(mapping_of(number)),
    "n": _INT,
    "presence_penalty": number,
    "response_format": nullable(_RESPONSE_FORMAT),
    "seed": _OPT_INT,
    "stop": _TEXTS,
    "stream": boolean,
    "stream_options": nullable(
        model({"include_usage": nullable(boolean), "continuous_usage_stats": nullable(boolean)})
    ),
    "user": _OPT_TEXT,
    "return_hidden_states": anything,
    "return_routed_experts": boolean,
    "routed_experts_start_len": _INT,
    "return_cached_tokens_details": boolean,
    "return_spec_tokens_details": boolean,
    "return_token_ids": boolean,
    "min_tokens": _INT,
    "regex": _OPT_TEXT,
    "ebnf": _OPT_TEXT,
    "stop_token_ids": nullable(list_of(_INT)),
    "stop_regex": _TEXTS,
    "no_stop_trim": boolean,
    "ignore_eos": boolean,
    "skip_special_tokens": boolean,
    "lora_path": nullable(union(string, list_of(nullable(string)))),
    "session_id": _OPT_TEXT,
    "session_params": _OBJECT,
    "custom_params": _OBJECT,
    "custom_logit_processor": anything,
    "watermark": _OBJECT,
    "bootstrap_host": nullable(union(string, list_of(string))),
    "bootstrap_port": nullable(union(_INT, list_of(_OPT_INT))),
    "bootstrap_room": nullable(union(_INT, list_of(_INT))),
    "routed_dp_rank": _OPT_INT,
    "data_parallel_rank": _OPT_INT,
    "disagg_prefill_dp_rank": _OPT_INT,
    "rid": _TEXTS,
    "extra_key": _TEXTS,
    "cache_salt": _TEXTS,
    "priority": _OPT_INT,
}

CHAT_FIELDS: Mapping[str, Check] = {
    "messages": message_list,
    **_SHARED,
    "logprobs": boolean,
    "top_logprobs": _OPT_INT,
    "max_tokens": _OPT_INT,
    "max_completion_tokens": _OPT_INT,
    "temperature": _OPT_NUMBER,
    "top_p": _OPT_NUMBER,
    "top_k": _OPT_INT,
    "min_p": _OPT_NUMBER,
    "repetition_penalty": _OPT_NUMBER,
    "tools": nullable(list_of(_TOOL)),
    "tool_choice": nullable(union(_NAMED_TOOL, literal("auto", "required", "none"))),
    "parallel_tool_calls": boolean,
    "return_prompt_token_ids": boolean,
    "return_meta_info": boolean,
    "return_input_ids_in_sglext": boolean,
    "return_output_ids_in_sglext": boolean,
    "return_sampling_mask": boolean,
    "return_flat_raw_output_top_logprobs": boolean,
    "reasoning_effort": anything,
    "thinking": anything,
    "continue_final_message": boolean,
    "separate_reasoning": boolean,
    "stream_reasoning": boolean,
    "chat_template_kwargs": _OBJECT,
    "input_ids": anything,
}
"""Every field of a chat request that is looked at."""

COMPLETION_FIELDS: Mapping[str, Check] = {
    "prompt": anything,
    **_SHARED,
    "best_of": _OPT_INT,
    "echo": boolean,
    "logprobs": _OPT_INT,
    "max_tokens": _INT,
    "suffix": _OPT_TEXT,
    "temperature": number,
    "top_p": number,
    "top_k": _INT,
    "min_p": number,
    "repetition_penalty": number,
    "json_schema": _OPT_TEXT,
}
"""Every field of a completion request that is looked at."""

_SAME = (
    *("presence_penalty", "frequency_penalty", "stop_token_ids", "stop_regex", "regex", "ebnf"),
    *("no_stop_trim", "ignore_eos", "skip_special_tokens", "logit_bias", "custom_params", "stop"),
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "n"),
)
_DEFAULTED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def sampling_dict(fields: Fields, front: SglangFront, cap: int | None) -> dict[str, Json]:
    """`sampling_params` of an OpenAI request (`to_sampling_params`). Raises ValueError.

    What the client leaves out comes from the model's generation configuration.
    """
    params: dict[str, Json] = dict(front.preferred_sampling_params or {})
    params |= {name: fields[name] for name in _SAME if fields.get(name) is not None}
    for name in _DEFAULTED:
        if name not in params and front.default_sampling_params.get(name) is not None:
            params[name] = front.default_sampling_params[name]
    params["max_new_tokens"] = cap
    params["min_new_tokens"] = fields.get("min_tokens")
    params["sampling_seed"] = fields.get("seed")
    wanted = fields.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if isinstance(wanted, dict) and kind == "json_schema":
        inner = wanted.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else None
        params["json_schema"] = json.dumps({} if schema is None else schema)
    elif kind == "json_object":
        params["json_schema"] = '{"type": "object"}'
    elif kind == "structural_tag":
        params["structural_tag"] = json.dumps(wanted)
    return params


def lacks_schema(fields: Fields) -> bool:
    """Whether a json_schema is asked for and not given."""
    wanted = fields.get("response_format")
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        return False
    inner = wanted.get("json_schema")
    return not isinstance(inner, dict) or inner.get("schema") is None


def usage_wishes(fields: Fields, front: SglangFront) -> tuple[bool, bool]:
    """(final usage chunk, usage in every chunk) of a stream (`should_include_usage`)."""
    default = front.stream_response_default_include_usage
    options = fields.get("stream_options")
    if not isinstance(options, dict) or not options:
        return default, False
    return (
        flag_field(options, "include_usage") or default,
        flag_field(options, "continuous_usage_stats"),
    )


def routing_of(raw: dict[str, Json], fields: Fields, headers: Headers, rank: int | None) -> Routing:
    """Whom the request is for; the adapter may hide in the model's name."""
    prefill = fields.get("disagg_prefill_dp_rank")
    session = fields.get("session_id")
    return Routing(
        routed_dp_rank=rank,
        disagg_prefill_dp_rank=prefill if isinstance(prefill, int) else None,
        routing_key=headers.get("x-smg-routing-key"),
        session_id=session if isinstance(session, str) else None,
        session_params=fields.get("session_params"),
        lora_path=fields.get("lora_path"),
        actor=actor_of(raw.get("metadata")),
    )


def common_wishes(raw: dict[str, Json], fields: Fields, front: SglangFront) -> Wishes:
    """What both routes may be asked to add to their answer."""
    include, continuous = usage_wishes(fields, front)
    start = fields.get("routed_experts_start_len")
    return Wishes(
        include_usage=include,
        continuous_usage=continuous,
        return_token_ids=flag_field(fields, "return_token_ids"),
        return_cached_tokens_details=flag_field(fields, "return_cached_tokens_details"),
        return_routed_experts=flag_field(fields, "return_routed_experts"),
        routed_experts_start_len=start if isinstance(start, int) else 0,
        frontier=raw.get("frontier") is True,
    )


def adapter_in(name: str, served_name: str) -> str | None:
    """The adapter in `base:adapter`, None where the name is just a model's."""
    if ":" not in name or name == served_name:
        return None
    if name.startswith(f"{served_name}:"):
        return name[len(served_name) + 1 :].strip() or None
    return name.split(":", 1)[1].strip() or None
