"""The render routes: what an OpenAI request is as a request of /inference/v1/generate.

A renderer knows tokenizer and chat template but no engine; a router hashes what it gets, or sends
it on. Keys and their order are those of `GenerateRequest` in vLLM 0.33; of the sampling parameters
only what differs from the defaults is there, as msgspec writes them.
"""

from collections.abc import Callable

from frontier_mock.wire import sampling
from frontier_mock.wire.anthropic import messages_as_chat
from frontier_mock.wire.chat import parse_chat
from frontier_mock.wire.completions import parse_completion
from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.fields import (
    Fields,
    check_fields,
    flag_field,
    float_field,
    int_field,
    ints_field,
    load_object,
    optional_int_field,
    strings_field,
    text_field,
)
from frontier_mock.wire.generation import Generation, SequencePlan
from frontier_mock.wire.plan import Headers, request_priority
from frontier_mock.wire.render import dumps
from frontier_mock.wire.responses import responses_as_chat
from frontier_mock.wire.schema import CHAT_FIELDS, COMPLETION_FIELDS
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.tokenizer import Json

Parse = Callable[[bytes, Headers, ServedModel], Generation]

_DEFAULT_MAX_TOKENS = 16
_DELTA, _FINAL_ONLY = 1, 2
_GREEDY = 1e-5


def render_chat(body: bytes, headers: Headers, served: ServedModel) -> bytes:
    """A chat request as one GenerateRequest. Raises ApiError as the chat route does."""
    raw, generation = _parsed(parse_chat, body, headers, served)
    fields = check_fields(raw, CHAT_FIELDS)
    top = int_field(fields, "top_logprobs", 0) if flag_field(fields, "logprobs") else None
    chosen = ints_field(fields, "logprob_token_ids")
    plan = generation.sequences[0]
    params = _sampling(fields, plan, None if chosen else top)
    tools = fields.get("tools")
    context: dict[str, Json] = {
        "tools": tools,
        "tool_choice": fields.get("tool_choice") or ("auto" if tools else "none"),
        "parallel_tool_calls": flag_field(fields, "parallel_tool_calls", True),
        "include_reasoning": flag_field(fields, "include_reasoning", True),
        "chat_template_kwargs": fields.get("chat_template_kwargs") or {},
        "history_tool_call_cnt": _calls_so_far(fields.get("messages")),
    }
    request = _request(generation.id, _ids(generation, plan), params, fields, headers, context)
    return dumps(request).encode()


def render_messages(body: bytes, headers: Headers, served: ServedModel) -> bytes:
    """A messages request, likewise. Raises ApiError."""
    return render_chat(messages_as_chat(body), headers, served)


def render_responses(body: bytes, headers: Headers, served: ServedModel) -> bytes:
    """A Responses request, likewise; its output is not for a chat parser. Raises ApiError."""
    name, chat = responses_as_chat(body)
    rendered = load_object(render_chat(chat, headers, served))
    fresh = str(rendered["request_id"]).removeprefix("chatcmpl-")
    rendered["request_id"] = f"resp_{fresh}" if name is None else name
    rendered["parse_context"] = None
    return dumps(rendered).encode()


def render_completion(body: bytes, headers: Headers, served: ServedModel) -> bytes:
    """A completion request as a list with one GenerateRequest for each prompt. Raises ApiError."""
    raw, generation = _parsed(parse_completion, body, headers, served)
    fields = check_fields(raw, COMPLETION_FIELDS)
    firsts = generation.sequences[:: generation.n]
    requests: list[Json] = []
    for i, plan in enumerate(firsts):
        name = generation.id if len(firsts) == 1 else f"{generation.id}-{i}"
        params = _sampling(fields, plan, optional_int_field(fields, "logprobs"))
        requests.append(_request(name, _ids(generation, plan), params, fields, headers, None))
    return dumps(requests).encode()


def _parsed(
    parse: Parse, body: bytes, headers: Headers, served: ServedModel
) -> tuple[dict[str, Json], Generation]:
    """The request as it came, and as the route itself understands it."""
    raw = load_object(body)
    sampling.check_stream_options(raw)
    if raw.get("use_beam_search"):
        raise ApiError(400, "Beam search is not supported by the render endpoint")
    whole = {name: value for name, value in raw.items() if name not in ("stream", "stream_options")}
    whole["return_token_ids"] = True
    return raw, parse(dumps(whole).encode("utf-8", "surrogatepass"), headers, served)


def _ids(generation: Generation, plan: SequencePlan) -> list[Json]:
    ids = generation.prompts[plan.prompt_index].ids
    assert ids is not None
    return list(ids.tolist())


def _calls_so_far(messages: Json) -> int:
    calls = 0
    for message in messages if isinstance(messages, list) else ():
        made = message.get("tool_calls") if isinstance(message, dict) else None
        calls += len(made) if isinstance(made, list) else 0
    return calls


def _request(
    name: str,
    ids: list[Json],
    params: dict[str, Json],
    fields: Fields,
    headers: Headers,
    context: dict[str, Json] | None,
) -> dict[str, Json]:
    stream = flag_field(fields, "stream")
    options = fields.get("stream_options") if stream else None
    if isinstance(options, dict):
        options = {
            "include_usage": flag_field(options, "include_usage"),
            "continuous_usage_stats": flag_field(options, "continuous_usage_stats"),
        }
    return {
        "request_id": name,
        "token_ids": ids,
        "token_offsets": None,
        "features": None,
        "content_parts": None,
        "sampling_params": params,
        "model": text_field(fields, "model"),
        "reasoning_ended": None,
        "reasoning_parser_kwargs": None,
        "return_token_ids": fields.get("return_token_ids"),
        "output_mode": "tokens",
        "parse_context": context,
        "stream": stream,
        "stream_options": options,
        "cache_salt": text_field(fields, "cache_salt"),
        "priority": request_priority(fields, headers),
        "kv_transfer_params": fields.get("kv_transfer_params"),
        "ec_transfer_params": fields.get("ec_transfer_params"),
    }


def _sampling(fields: Fields, plan: SequencePlan, logprobs: int | None) -> dict[str, Json]:
    """The sampling parameters that differ from vLLM's defaults, in the order of its struct."""
    temperature = float_field(fields, "temperature", 1.0)
    greedy = temperature < _GREEDY
    stop = [*strings_field(fields, "stop")]
    held = 0
    if stop and not flag_field(fields, "include_stop_str_in_output"):
        held = max(len(one) for one in stop) - 1
    prompt_logprobs = optional_int_field(fields, "prompt_logprobs")
    seed = optional_int_field(fields, "seed")
    values: list[tuple[str, Json, Json]] = [
        ("n", int_field(fields, "n", 1), 1),
        ("presence_penalty", float_field(fields, "presence_penalty", 0.0), 0.0),
        ("frequency_penalty", float_field(fields, "frequency_penalty", 0.0), 0.0),
        ("repetition_penalty", float_field(fields, "repetition_penalty", 1.0), 1.0),
        ("temperature", temperature, 1.0),
        ("watermarking", fields.get("watermarking"), None),
        ("top_p", 1.0 if greedy else float_field(fields, "top_p", 1.0), 1.0),
        ("top_k", 0 if greedy else int_field(fields, "top_k", 0), 0),
        ("min_p", 0.0 if greedy else float_field(fields, "min_p", 0.0), 0.0),
        ("seed", None if seed == -1 else seed, None),
        ("stop", [*stop], None),
        ("stop_token_ids", [*dict.fromkeys(ints_field(fields, "stop_token_ids"))], None),
        ("ignore_eos", flag_field(fields, "ignore_eos"), False),
        ("max_tokens", plan.submit.max_tokens, _DEFAULT_MAX_TOKENS),
        ("min_tokens", int_field(fields, "min_tokens", 0), 0),
        ("logprobs", logprobs, None),
        ("prompt_logprobs", prompt_logprobs, None),
        ("logprob_token_ids", fields.get("logprob_token_ids") or None, None),
        ("skip_special_tokens", flag_field(fields, "skip_special_tokens", True), True),
        (
            "spaces_between_special_tokens",
            flag_field(fields, "spaces_between_special_tokens", True),
            True,
        ),
        (
            "include_stop_str_in_output",
            flag_field(fields, "include_stop_str_in_output"),
            False,
        ),
        ("output_kind", _DELTA if flag_field(fields, "stream") else _FINAL_ONLY, 0),
        ("stream_interval", fields.get("stream_interval"), None),
        ("skip_clone", True, False),
        ("output_text_buffer_length", held, 0),
        ("structured_outputs", _structured(fields), None),
        ("logit_bias", fields.get("logit_bias"), None),
        ("allowed_token_ids", fields.get("allowed_token_ids"), None),
        ("extra_args", fields.get("vllm_xargs") or None, None),
        ("bad_words", [*dict.fromkeys(strings_field(fields, "bad_words"))], None),
        ("skip_reading_prefix_cache", prompt_logprobs is not None, None),
        ("repetition_detection", fields.get("repetition_detection"), None),
    ]
    return {name: value for name, value, default in values if value != default}


def _structured(fields: Fields) -> Json:
    """The constraint on the output, from `structured_outputs` or else `response_format`."""
    own = fields.get("structured_outputs")
    if isinstance(own, dict):
        return {name: value for name, value in own.items() if value is not None}
    wanted = fields.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_object":
        return {"json_object": True}
    if isinstance(wanted, dict) and kind == "json_schema":
        described = wanted.get("json_schema")
        return {"json": described.get("schema") if isinstance(described, dict) else None}
    return None
