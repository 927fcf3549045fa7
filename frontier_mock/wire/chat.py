"""POST /v1/chat/completions: from bytes to a Generation, with vLLM 0.33's checks in its order."""

from dataclasses import replace
from typing import NamedTuple

from frontier_mock.core.commands import Media
from frontier_mock.wire import sampling
from frontier_mock.wire.embeddings import Encoded, encoded
from frontier_mock.wire.errors import ApiError, invalid, not_implemented
from frontier_mock.wire.fields import (
    Fields,
    check_fields,
    flag_field,
    int_field,
    ints_field,
    load_object,
    optional_int_field,
    text_field,
)
from frontier_mock.wire.generation import (
    CALL_PARAMETERS,
    CHAT,
    Generation,
    LogprobsPlan,
    PromptText,
    ToolCall,
)
from frontier_mock.wire.kv_transfer import with_transfer
from frontier_mock.wire.media import Album
from frontier_mock.wire.messages import render_prompt
from frontier_mock.wire.plan import (
    Headers,
    actor_of,
    base_request_id,
    check_model,
    check_prompt_ids,
    data_parallel_rank,
    effective_max_tokens,
    encode_media,
    encode_prompt,
    model_name,
    plan_sequences,
    prompt_limits,
    request_priority,
    session_of,
    stream_interval,
)
from frontier_mock.wire.render import dumps
from frontier_mock.wire.schema import CHAT_FIELDS, with_stop_limit
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.structured import call_writer
from frontier_mock.wire.structured_vllm import vllm_writer
from frontier_mock.wire.tokenizer import Json

# Most requests have none of these, and skip the checks that look at them.
_WHOLE_REQUEST = frozenset(
    (
        "continue_final_message",
        "tools",
        "tool_choice",
        "structured_outputs",
        "logprob_token_ids",
        "prompt_logprobs",
        "top_logprobs",
        "stream_options",
        "response_format",
        "cache_salt",
    )
)
_NEEDS_SUPPORT = frozenset(
    (
        "tools",
        "tool_choice",
        "use_beam_search",
        "chat_template",
        "chat_template_kwargs",
        "mm_processor_kwargs",
        "media_io_kwargs",
    )
)


_SHAPED = frozenset(("structured_outputs", "response_format"))


class _Extras(NamedTuple):
    """What few requests ask for."""

    n: int = 1
    add_prompt: bool = True
    add_special_tokens: bool = False
    logprobs: LogprobsPlan | None = None
    return_ids: bool = False
    return_text: bool = False
    echo: bool = False


_EXTRAS = frozenset(
    (
        "n",
        "add_generation_prompt",
        "add_special_tokens",
        "logprobs",
        "prompt_logprobs",
        "return_token_ids",
        "return_prompt_text",
        "echo",
    )
)
_NO_EXTRAS = _Extras()


def parse_chat(body: bytes, headers: Headers, served: ServedModel) -> Generation:
    """The generation a chat request asks for. Raises ApiError with vLLM's answer if it is bad."""
    raw = load_object(body)
    _require_iterable(raw.get("messages", ()))
    if not _WHOLE_REQUEST.isdisjoint(raw):
        _check_request(raw)
    fields = check_fields(raw, with_stop_limit(CHAT_FIELDS, served.max_stop_strings), ("messages",))
    check_model(fields, served)
    try:
        return _plan(raw, fields, headers, served)
    except ApiError as error:
        if error.late and flag_field(fields, "stream"):
            error.stream_kind = CHAT
        raise


def _require_iterable(messages: object) -> None:
    """vLLM walks over the messages before it checks what they are, and stumbles over a scalar."""
    if not isinstance(messages, list | dict | str | tuple):
        raise invalid(f"'{type(messages).__name__}' object is not iterable")


def _check_request(raw: dict[str, Json]) -> None:
    """The validators that look at the whole request, which come before those of its fields."""
    if raw.get("continue_final_message") and raw.get("add_generation_prompt"):
        raise invalid(
            "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
        )
    _check_tools(raw)
    constraints = sampling.check_structured_outputs(raw, with_parameter=False)
    choice = raw.get("tool_choice", "none")
    if constraints and choice not in ("none", "auto", "required"):
        raise invalid(
            "You can only either use constraints for structured outputs or tools, not both."
        )
    _check_logprobs(raw)
    sampling.check_stream_options(raw)
    sampling.check_response_format(raw)
    sampling.check_cache_salt(raw)


def _check_tools(raw: dict[str, Json]) -> None:
    tools = raw.get("tools")
    if tools == []:
        raise invalid(
            "`tools` must not be an empty array. "
            "Either provide at least one tool or omit the field entirely.",
            "tools",
        )
    if "tool_choice" not in raw and tools:
        raw["tool_choice"] = "auto"
    choice = raw.get("tool_choice")
    if choice is None or choice == "none":
        return
    if tools is None:
        raise invalid("When using `tool_choice`, `tools` must be set.", "tool_choice")
    if isinstance(choice, dict):
        _check_named_tool(choice.get("function"), tools)
    elif choice not in ("auto", "required"):
        raise invalid(
            f"Invalid value for `tool_choice`: {choice}! "
            'Only named tools, "none", "auto" or "required" are supported.',
            "tool_choice",
        )


def _check_named_tool(function: Json, tools: Json) -> None:
    usage = 'Correct usage: `{"type": "function", "function": {"name": "my_function"}}`'
    if not isinstance(function, dict):
        raise invalid(
            f"Invalid value for `function`: `{function}` in `tool_choice`! {usage}",
            "tool_choice.function",
        )
    if "name" not in function:
        raise invalid(
            f"Expected field `name` in `function` in `tool_choice`! {usage}",
            "tool_choice.function.name",
        )
    name = function["name"]
    if not isinstance(name, str) or not name:
        raise invalid(
            f"Invalid `name` in `function`: `{name}` in `tool_choice`! {usage}",
            "tool_choice.function.name",
        )
    if name not in _tool_names(tools):
        raise invalid(
            "The tool specified in `tool_choice` does not match any of the specified `tools`",
            "tool_choice",
        )


def _tool_names(tools: Json) -> list[Json]:
    names: list[Json] = []
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict):
            names.append(function.get("name"))
    return names


def _check_logprobs(raw: dict[str, Json]) -> None:
    if raw.get("logprob_token_ids") and raw.get("use_beam_search"):
        message = "`logprob_token_ids` is not supported with beam search."
        raise invalid(message, "logprob_token_ids")
    if raw.get("logprob_token_ids") and not raw.get("logprobs"):
        message = "when using `logprob_token_ids`, `logprobs` must be set to true."
        raise invalid(message, "logprob_token_ids")
    sampling.check_prompt_logprobs(raw, "top_logprobs")
    top = raw.get("top_logprobs")
    if not isinstance(top, int | float):
        return
    if top < 0 and top != -1:
        raise invalid("`top_logprobs` must be a positive value or -1.", "top_logprobs", top)
    if (top == -1 or top > 0) and not raw.get("logprobs"):
        message = "when using `top_logprobs`, `logprobs` must be set to true."
        raise invalid(message, "top_logprobs")


def _check_support(raw: dict[str, Json], fields: Fields, served: ServedModel) -> None:
    """What this server was not started for, and what the mock does not simulate."""
    choice = fields.get("tool_choice")
    if served.tool_call_parser is None and choice not in (None, "none"):
        if choice == "auto":
            if not served.enable_auto_tool_choice:
                raise invalid(
                    '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser '
                    "to be set"
                )
        else:
            names = _tool_names([choice])
            what = f'function "{names[0]}"' if names else f'"{choice}"'
            raise invalid(f"tool_choice={what} requires --tool-call-parser to be set")
    if flag_field(fields, "use_beam_search"):
        raise not_implemented("frontier_mock does not simulate beam search")
    template_kwargs = fields.get("chat_template_kwargs")
    own_template = (
        isinstance(template_kwargs, dict) and template_kwargs.get("chat_template") is not None
    )
    if not served.trust_request_chat_template and (fields.get("chat_template") or own_template):
        raise invalid(
            "Chat template is passed with request, but --trust-request-chat-template is not set. "
            "Refused request with untrusted chat template."
        )
    for name, effect in (
        ("mm_processor_kwargs", "multimodal preprocessing"),
        ("media_io_kwargs", "multimodal media loading"),
    ):
        if raw.get(name):
            raise invalid(
                f"Per-request {name} are disabled by default because they can change {effect} "
                "resource usage. Start the server with --trust-request-mm-kwargs only when "
                "clients are trusted.",
                name,
            )


def _plan(
    raw: dict[str, Json], fields: Fields, headers: Headers, served: ServedModel
) -> Generation:
    if not _NEEDS_SUPPORT.isdisjoint(fields):
        _check_support(raw, fields, served)
    extras = _NO_EXTRAS if _EXTRAS.isdisjoint(fields) else _extras(fields, served)
    album = Album(served.media)
    turns, text = render_prompt(fields, served.tokenizer, album)
    cap_field = "max_completion_tokens"
    asked = optional_int_field(fields, cap_field)
    if asked is None:
        cap_field = "max_tokens"
        asked = optional_int_field(fields, cap_field)
    limits = prompt_limits(fields, cap_field, asked, served)
    media: tuple[Media, ...] = ()
    if album.images:
        ids, media = encode_media(album, text, extras.add_special_tokens, limits, served)
    else:
        ids = encode_prompt(text, extras.add_special_tokens, limits, served)
    max_tokens = effective_max_tokens(asked, len(ids), served)
    if album.encodes_only:
        max_tokens = min(max_tokens, 1)
    n = extras.n
    sampling.check_sampling(fields, n, max_tokens, served)
    rank = data_parallel_rank(headers, served)
    logprobs = extras.logprobs
    sampling.check_against_model(fields, logprobs.top if logprobs else None, served)
    check_prompt_ids(ids, served, encoded=True)
    priority = request_priority(fields, headers)
    resumable = flag_field(fields, "continue_final_message")
    write = None if _SHAPED.isdisjoint(fields) else vllm_writer(fields, served)
    forced = None if "tool_choice" not in fields else _forced_function(fields)
    if forced is not None:
        frame = (
            f'[{{"name": {dumps(forced.name)}, {CALL_PARAMETERS}%s}}]' if forced.listed else "%s"
        )
        write = call_writer(forced.parameters, served.ring, frame)
    plans = plan_sequences(
        ids,
        0,
        n,
        max_tokens,
        fields,
        priority,
        served,
        resumable=resumable,
        write=write,
        reads_cache=logprobs is None or logprobs.prompt is None,
        media=media,
        session_id=session_of(fields, headers) if served.keeps_tokens else None,
    )
    if forced is not None:
        plans = [replace(plan, call=forced.call(served)) for plan in plans]
    role = "assistant" if extras.add_prompt or not turns else str(turns[-1]["role"])
    include_usage, continuous = sampling.wants_usage(fields, served)
    keep_ids = extras.return_ids or bool(logprobs and logprobs.prompt is not None)
    generation = Generation(
        id=f"chatcmpl-{base_request_id(fields, headers, served)}",
        kind=CHAT,
        model=model_name(fields, served),
        stream=flag_field(fields, "stream"),
        include_usage=include_usage,
        continuous_usage=continuous,
        stream_interval=stream_interval(fields, served),
        prompt_tokens=len(ids),
        sequences=tuple(plans),
        prompts=(
            PromptText(len(ids), ids if keep_ids else None, text if extras.return_text else None),
        ),
        tokenizer=served.tokenizer,
        system_fingerprint=served.system_fingerprint,
        role=role,
        n=n,
        logprobs=logprobs,
        return_token_ids=extras.return_ids,
        return_prompt_text=extras.return_text,
        echo_text=_echo_text(turns, role) if extras.echo else "",
        prompt_tokens_details=served.enable_prompt_tokens_details,
        frontier=raw.get("frontier") is True,
        actor=actor_of(raw.get("metadata")),
        data_parallel_rank=rank,
        weight_versions=flag_field(fields, "return_weight_versions"),
        encoded=_encoded(album),
    )
    return with_transfer(generation, fields, headers, served.kv, served.new_id)


def _encoded(album: Album) -> Encoded | None:
    """What the answer says of images that other servers may want."""
    port = album.port
    if port is None or port.embeddings is None or not port.embeddings.produces:
        return None
    return encoded(album.images, port.vision, port.embeddings)


class _Forced(NamedTuple):
    """The function that the model has to call; `listed` if it was free to choose among several."""

    name: str
    parameters: Json
    listed: bool

    def call(self, served: ServedModel) -> ToolCall:
        """One call of it."""
        return ToolCall(f"chatcmpl-tool-{served.new_id()}", self.name, self.listed)


def _forced_function(fields: Fields) -> _Forced | None:
    """The named function, or the first one if some call is required; None if none is."""
    choice = fields.get("tool_choice")
    listed = choice == "required"
    if not listed and not isinstance(choice, dict):
        return None
    named = choice.get("function") if isinstance(choice, dict) else None
    wanted = named.get("name") if isinstance(named, dict) else None
    tools = fields.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict) and (listed or function.get("name") == wanted):
            schema = function.get("parameters")
            return _Forced(str(function.get("name")), schema or {"type": "object"}, listed)
    return None


def _extras(fields: Fields, served: ServedModel) -> _Extras:
    return _Extras(
        int_field(fields, "n", 1),
        flag_field(fields, "add_generation_prompt", True),
        flag_field(fields, "add_special_tokens"),
        _logprobs_plan(fields, served),
        flag_field(fields, "return_token_ids"),
        flag_field(fields, "return_prompt_text"),
        flag_field(fields, "echo"),
    )


def _echo_text(turns: list[dict[str, Json]], role: str) -> str:
    if not turns or turns[-1]["role"] != role:
        return ""
    return text_field(turns[-1], "content") or ""


def _logprobs_plan(fields: Fields, served: ServedModel) -> LogprobsPlan | None:
    prompt = optional_int_field(fields, "prompt_logprobs")
    if prompt is None and flag_field(fields, "echo"):
        prompt = int_field(fields, "top_logprobs", 0)
    asked = flag_field(fields, "logprobs")
    if not asked and prompt is None:
        return None
    chosen = ints_field(fields, "logprob_token_ids") if asked else ()
    top = int_field(fields, "top_logprobs", 0) if asked else None
    as_ids = flag_field(fields, "return_tokens_as_token_ids", served.return_tokens_as_token_ids)
    return LogprobsPlan(top, chosen, prompt, as_ids)
