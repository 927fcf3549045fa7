"""POST /v1/chat/completions: from bytes to a request, with SGLang 0.5.23's checks in its order."""

from dataclasses import replace

from frontier_mock.core.commands import Media
from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.fields import (
    Fields,
    check_fields,
    flag_field,
    int_field,
    optional_int_field,
    text_field,
)
from frontier_mock.wire.generation import PromptText
from frontier_mock.wire.media import Album, encode_with
from frontier_mock.wire.messages import render_prompt
from frontier_mock.wire.plan import Headers
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.bodies import load_object
from frontier_mock.wire.sglang.calls import forced_call, named_tools
from frontier_mock.wire.sglang.errors import SglangError, openai_error, validation_error
from frontier_mock.wire.sglang.generate import (
    make_rids,
    namespace_of,
    read_bootstrap,
    read_dp_rank,
    read_ids,
)
from frontier_mock.wire.sglang.late import refused_constraint
from frontier_mock.wire.sglang.openai_fields import (
    CHAT_FIELDS,
    adapter_in,
    common_wishes,
    lacks_schema,
    routing_of,
    sampling_dict,
)
from frontier_mock.wire.sglang.plan import check_length, encode, front_of, plan_prompt
from frontier_mock.wire.sglang.request import CHAT, LogprobWish, SglangRequest, SglangSequence
from frontier_mock.wire.sglang.sampling import check_samples, read_sampling
from frontier_mock.wire.structured import ConstraintError
from frontier_mock.wire.tokenizer import Json, TokenIds

_MEDIA_PARTS = ("image_url", "video_url", "audio_url", "input_audio", "image", "video", "audio")


def parse_chat(body: bytes, headers: Headers, served: ServedModel) -> SglangRequest:
    """The request that a chat body asks for. Raises SglangError with SGLang's answer if it is bad.

    Everything is found before an answer begins, as SGLang takes the first chunk before it sends,
    but for a grammar that fails: the first chunk of a stream says so, and that is a LateError.
    """
    try:
        raw = load_object(body)
    except ApiError as error:
        raise validation_error(error) from None
    try:
        return chat_request(raw, headers, served)
    except SglangError as error:
        if isinstance(error.__cause__, ConstraintError):
            raise refused_constraint(error.__cause__, raw.get("stream") is True) from None
        raise


def chat_prompt(raw: dict[str, Json], served: ServedModel) -> TokenIds:
    """The ids of the prompt that a chat body makes. Raises SglangError."""
    try:
        return _prompt(_fields(raw), {}, served)[0]
    except ValueError as error:
        raise openai_error(str(error), "BadRequest") from None
    except ApiError as error:
        raise openai_error(error.message, "BadRequest") from None


def _fields(raw: dict[str, Json]) -> Fields:
    try:
        return check_fields(raw, CHAT_FIELDS, ("messages",))
    except ApiError as error:
        raise validation_error(error) from None


def chat_request(raw: dict[str, Json], headers: Headers, served: ServedModel) -> SglangRequest:
    """`parse_chat` of a body that has been read as JSON."""
    fields = _fields(raw)
    refused = _refusal(fields, served)
    if refused:
        raise openai_error(refused)
    try:
        ids, media = _prompt(fields, headers, served)
    except ValueError as error:
        raise openai_error(str(error), "BadRequest") from None
    except ApiError as error:
        raise openai_error(error.message, "BadRequest") from None
    try:
        return _plan(raw, fields, headers, (ids, media), served)
    except ConstraintError as error:
        raise openai_error(str(error)) from error
    except ValueError as error:
        raise openai_error(str(error)) from None


def _refusal(fields: Fields, served: ServedModel) -> str:
    """The message of the handler's own validation (`_validate_request`), empty if it is content."""
    front = served.sglang
    assert front is not None
    messages = fields["messages"]
    if not messages:
        return "Messages cannot be empty."
    own = fields.get("chat_template_kwargs")
    if isinstance(own, dict) and "chat_template" in own and not front.trust_request_chat_template:
        return (
            "Request-supplied chat_template is not allowed. Start the server with "
            "--trust-request-chat-template to permit it."
        )
    for name in ("return_sampling_mask", "return_flat_raw_output_top_logprobs"):
        if flag_field(fields, name) and not flag_field(fields, "return_meta_info"):
            return f"{name} requires return_meta_info=true."
    media = _media_in(messages, served)
    if media:
        return f"Model only supports text input; received unsupported content type '{media}'."
    refused = _tool_refusal(fields)
    if refused:
        return refused
    cap = _cap(fields)
    if cap and cap > front.context_len and not front.allow_auto_truncate:
        return (
            f"max_completion_tokens is too large: {cap}.This model supports at most "
            f"{front.context_len} completion tokens."
        )
    if lacks_schema(fields):
        return "schema_ is required for json_schema response format request."
    return ""


def _tool_refusal(fields: Fields) -> str:
    tools = fields.get("tools")
    functions = [
        tool.get("function") if isinstance(tool, dict) else None
        for tool in (tools if isinstance(tools, list) else [])
    ]
    names = [function.get("name") for function in functions if isinstance(function, dict)]
    choice = fields.get("tool_choice")
    if choice == "required" and not names:
        return "Tools cannot be empty if tool choice is set to required."
    if isinstance(choice, dict):
        if not names:
            return "Tools cannot be empty if tool choice is set to a specific tool."
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if name not in names:
            return f"Tool '{name}' not found in tools list."
    for i, function in enumerate(functions):
        parameters = function.get("parameters") if isinstance(function, dict) else None
        if parameters is not None and not isinstance(parameters, dict | bool):
            return (
                f"Tool {i} function has invalid 'parameters' schema: {parameters!r} is not of "
                "type 'object', 'boolean'"
            )
    return ""


def _media_in(messages: Json, served: ServedModel) -> str:
    """The type of the first part that the model does not take, "" if there is none."""
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if kind in _MEDIA_PARTS and (served.media is None or kind != "image_url"):
                return str(kind)
    return ""


def _cap(fields: Fields) -> int | None:
    """`max_completion_tokens or max_tokens`: zero counts as absent, and absent is all there is."""
    return (
        optional_int_field(fields, "max_completion_tokens")
        or optional_int_field(fields, "max_tokens")
        or None
    )


def _prompt(
    fields: Fields, headers: Headers, served: ServedModel
) -> tuple[TokenIds, tuple[Media, ...]]:
    """The prompt's ids, and the images among them. Raises ValueError and ApiError."""
    if flag_field(fields, "stream"):
        for name, where in (
            ("return_prompt_token_ids", ""),
            ("return_token_ids", " on /v1/chat/completions"),
            ("return_meta_info", ""),
        ):
            if flag_field(fields, name):
                raise ValueError(
                    f"{name} is not supported with streaming{where}. Please set stream=false when "
                    f"using {name}=true."
                )
    ids = fields.get("input_ids")
    if ids is not None:
        return read_ids(ids), ()
    asked: Fields = {"messages": fields["messages"]}
    for name in ("tools", "chat_template_kwargs"):
        if fields.get(name) is not None:
            asked[name] = fields[name]
    choice = fields.get("tool_choice")
    if choice == "none":
        asked.pop("tools", None)
    elif isinstance(choice, dict):
        asked["tools"] = named_tools(fields)
    if flag_field(fields, "continue_final_message"):
        asked |= {"continue_final_message": True, "add_generation_prompt": False}
    album = Album(served.media)
    _, text = render_prompt(asked, served.tokenizer, album)
    return encode_with(
        album,
        text,
        lambda piece: encode(piece, served, add_special_tokens=False),
        served.tokenizer.vocab_size,
    )


def _plan(
    raw: dict[str, Json],
    fields: Fields,
    headers: Headers,
    prompt: tuple[TokenIds, tuple[Media, ...]],
    served: ServedModel,
) -> SglangRequest:
    ids, media = prompt
    front = front_of(served)
    sampling = read_sampling(sampling_dict(fields, front, _cap(fields)), served.model_vocab_size)
    n = max(1, int_field(fields, "n", 1))
    check_samples(1, n)
    name = text_field(fields, "model") or "default"
    adapter = adapter_in(name, served.names[0])
    if adapter is not None:
        fields["lora_path"] = adapter
    rank = read_dp_rank(fields, headers, served)
    ids = check_length(ids, served)
    media = tuple([item for item in media if item.start + item.tokens <= len(ids)])
    namespace = namespace_of(fields, 0)
    priority = int_field(fields, "priority", 0)
    forced = forced_call(fields)
    plans, cap = plan_prompt(
        ids,
        0,
        n,
        sampling,
        served,
        namespace=namespace,
        priority=priority,
        rank=rank,
        write=None if forced is None else forced.writer(served),
        resumable="input_ids" in fields or flag_field(fields, "continue_final_message"),
        media=media,
    )
    if forced is not None and front.tool_call_parser:
        plans = [replace(plan, call=forced.call(served)) for plan in plans]
    wish = None
    if flag_field(fields, "logprobs"):
        wish = LogprobWish(-1, int_field(fields, "top_logprobs", 0), (), True)
    rids = make_rids(fields.get("rid"), 1, True, served)
    sequences = tuple(
        SglangSequence(
            served.new_id() if n > 1 else rids[0],
            plan,
            cap,
            len(ids),
            wish,
            read_bootstrap(fields, plan.index, n > 1),
        )
        for plan in plans
    )
    wishes = replace(
        common_wishes(raw, fields, front),
        return_prompt_token_ids=flag_field(fields, "return_prompt_token_ids"),
        return_meta_info=flag_field(fields, "return_meta_info"),
        return_input_ids_in_sglext=flag_field(fields, "return_input_ids_in_sglext")
        or headers.get("x-sglext-return-input-ids") == "1",
        return_output_ids_in_sglext=flag_field(fields, "return_output_ids_in_sglext")
        or headers.get("x-sglext-return-output-ids") == "1",
        ids_framed=headers.get("x-sglext-ids-framed") == "1",
    )
    keep = (
        wishes.return_prompt_token_ids
        or wishes.return_token_ids
        or wishes.return_input_ids_in_sglext
    )
    return SglangRequest(
        kind=CHAT,
        sequences=sequences,
        prompts=(PromptText(len(ids), ids if keep else None, None),),
        tokenizer=served.tokenizer,
        stream=flag_field(fields, "stream"),
        stream_interval=sampling.stream_interval or front.stream_interval,
        n=n,
        single=n == 1,
        model=name,
        incremental=front.incremental_streaming_output,
        cache_report=front.enable_cache_report,
        metrics=front.enable_metrics,
        wishes=wishes,
        routing=routing_of(raw, fields, headers, rank),
    )
