"""Chat messages: the schema of the list, and their reduction to what a text template takes."""

from collections.abc import Mapping

from frontier_mock.wire.errors import Loc, Problem, invalid, not_implemented
from frontier_mock.wire.fields import (
    Check,
    Fields,
    flag_field,
    literal,
    mapping,
    model,
    nullable,
    string,
    typed_dict,
    union,
)
from frontier_mock.wire.media import Album
from frontier_mock.wire.tokenizer import Json, Tokenizer

Turns = list[dict[str, Json]]
"""Messages whose content is a string (or whatever else the template is given)."""

# Content parts that carry text, and the key it is under (vLLM 0.33 chat_utils TEXT_PART_TYPES).
_TEXT_KEYS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
# transformers' apply_chat_template says this; the request schema only minds an explicit conflict.
_INCOMPATIBLE = (
    "continue_final_message and add_generation_prompt are not compatible. Use "
    "continue_final_message when you want the model to continue the final message, and "
    "add_generation_prompt when you want to add a header that will prompt it to start a new "
    "assistant message instead."
)
_TEMPLATE_FIELDS = frozenset(
    ("add_generation_prompt", "continue_final_message", "tools", "chat_template_kwargs")
)
_IMAGE_KINDS = ("image_url", "input_image")
_MODALITIES = ("image", "audio", "video")


def _iterable(value: Json, loc: Loc, problems: list[Problem]) -> Json:
    """What pydantic takes for a lazily checked sequence of content parts."""
    if not isinstance(value, list | dict | str):
        problems.append(Problem("iterable_type", loc, "Input should be iterable", value))
    return value


def _any_list(value: Json, loc: Loc, problems: list[Problem]) -> Json:
    if not isinstance(value, list):
        problems.append(Problem("list_type", loc, "Input should be a valid list", value))
    return value


def _refused(value: Json, loc: Loc, problems: list[Problem]) -> Json:
    """openai_harmony's Message, which no HTTP client sends."""
    return model({"author": mapping, "content": _any_list}, ("author",))(value, loc, problems)


_CONTENT = union(string, _iterable)
_BRANCHES: Mapping[str, Check] = {
    "ChatCompletionDeveloperMessageParam": typed_dict(
        {"content": _CONTENT, "role": literal("developer"), "name": string}, ("content", "role")
    ),
    "ChatCompletionSystemMessageParam": typed_dict(
        {"content": _CONTENT, "role": literal("system"), "name": string}, ("content", "role")
    ),
    "ChatCompletionUserMessageParam": typed_dict(
        {"content": _CONTENT, "role": literal("user"), "name": string}, ("content", "role")
    ),
    "ChatCompletionAssistantMessageParam": typed_dict(
        {
            "role": literal("assistant"),
            "content": nullable(_CONTENT),
            "name": string,
            "refusal": nullable(string),
            "tool_calls": _iterable,
        },
        ("role",),
    ),
    "ChatCompletionToolMessageParam": typed_dict(
        {"content": _CONTENT, "role": literal("tool"), "tool_call_id": string},
        ("content", "role", "tool_call_id"),
    ),
    "ChatCompletionFunctionMessageParam": typed_dict(
        {"content": nullable(string), "name": string, "role": literal("function")},
        ("content", "name", "role"),
    ),
    "CustomChatCompletionMessageParam": typed_dict(
        {
            "role": string,
            "content": union(string, _any_list),
            "name": string,
            "tool_call_id": nullable(string),
            "tool_calls": nullable(_any_list),
        },
        ("role",),
    ),
    "Message": _refused,
}
"""The kinds of message vLLM accepts, under the class names that its error messages show."""


def message_list(value: Json, loc: Loc, problems: list[Problem]) -> Json:
    """A list of messages: objects with a role, and text, parts or null for content."""
    if not isinstance(value, list):
        return _any_list(value, loc, problems)
    for i, message in enumerate(value):
        if not _is_plain(message):
            _check_message(message, (*loc, i), problems)
    return value


def _is_plain(message: Json) -> bool:
    """Whether a message is certainly fine; nearly all are, and cost one look."""
    return (
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        and message.keys() <= _PLAIN_KEYS
    )


_PLAIN_KEYS = frozenset(("role", "content"))


def _check_message(message: Json, loc: Loc, problems: list[Problem]) -> None:
    collected: list[Problem] = []
    for name, branch in _BRANCHES.items():
        found: list[Problem] = []
        branch(message, (*loc, name), found)
        if not found:
            return
        collected += found
    problems += collected


def render_prompt(
    fields: Fields, tokenizer: Tokenizer, album: Album | None = None
) -> tuple[Turns, str]:
    """The turns and the prompt text of checked chat fields, with a mark for each image.

    Images are put into `album`. Raises ApiError if a part is neither text nor such an image, or the
    chat template refuses the conversation.
    """
    turns = conversation(fields["messages"], album)
    if _TEMPLATE_FIELDS.isdisjoint(fields):
        try:
            return turns, tokenizer.render_chat(turns)
        except ValueError as error:
            raise invalid(str(error)) from None
    return turns, _render_as_asked(turns, fields, tokenizer)


def _render_as_asked(turns: Turns, fields: Fields, tokenizer: Tokenizer) -> str:
    add_prompt = flag_field(fields, "add_generation_prompt", True)
    continued = flag_field(fields, "continue_final_message")
    if add_prompt and continued:
        raise invalid(_INCOMPATIBLE)
    tools = fields.get("tools")
    own = fields.get("chat_template_kwargs")
    try:
        return tokenizer.render_chat(
            turns,
            add_prompt,
            continued,
            tools if isinstance(tools, list) else (),
            own if isinstance(own, dict) else {},
        )
    except ValueError as error:
        raise invalid(str(error)) from None


def conversation(messages: Json, album: Album | None = None) -> Turns:
    """Messages with their content flattened to text, for a template that knows only text.

    Raises ApiError for parts that are neither text nor an image that `album` takes.
    """
    turns: Turns = []
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict):
            continue
        content = message.get("content")
        if isinstance(content, str):
            turns.append(message)
            continue
        turn = dict(message)
        parts = content if isinstance(content, list | dict) else []
        turn["content"] = "\n".join(text for part in parts if (text := _part_text(part, album)))
        turns.append(turn)
    return turns


def _part_text(part: Json, album: Album | None) -> str | None:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or (kind is None and "text" not in part):
        raise invalid("Missing 'type' field in multimodal part.", "type")
    if kind is not None and not isinstance(kind, str):
        raise invalid("Invalid 'type' field in multimodal part.", "type")
    key = _TEXT_KEYS.get(kind or "text")
    if kind in _IMAGE_KINDS and album is not None:
        try:
            return album.add(part, "image_url")
        except NotImplementedError as error:
            raise not_implemented(str(error)) from None
        except ValueError as error:
            raise invalid(str(error)) from None
    if key is None:
        modality = next((m for m in _MODALITIES if m in str(kind)), str(kind))
        raise invalid(f"At most 0 {modality}(s) may be provided in one prompt.")
    text = part.get(key)
    return text if isinstance(text, str) else None
