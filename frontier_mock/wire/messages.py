"""Chat messages: the schema of the list, and their reduction to what a text template takes."""

from frontier_mock.wire.errors import Loc, Problem, invalid
from frontier_mock.wire.fields import string
from frontier_mock.wire.tokenizer import Json

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
_MODALITIES = ("image", "audio", "video")


def message_list(value: Json, loc: Loc, problems: list[Problem]) -> Json:
    """A list of messages: objects with a role, and text, parts or null for content."""
    if not isinstance(value, list):
        problems.append(Problem("list_type", loc, "Input should be a valid list", value))
        return value
    for i, message in enumerate(value):
        if not isinstance(message, dict):
            text = "Input should be a valid dictionary"
            problems.append(Problem("dict_type", (*loc, i), text, message))
            continue
        if "role" not in message:
            problems.append(Problem("missing", (*loc, i, "role"), "Field required", message))
        else:
            string(message["role"], (*loc, i, "role"), problems)
        content = message.get("content")
        if content is not None and not isinstance(content, str | list):
            string(content, (*loc, i, "content"), problems)
    return value


def conversation(messages: Json) -> Turns:
    """Messages with their content flattened to text, for a template that knows only text.

    Raises ApiError for parts that are not text: the models served here have no other modality.
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
        parts = content if isinstance(content, list) else []
        turn["content"] = "\n".join(text for part in parts if (text := _part_text(part)))
        turns.append(turn)
    return turns


def _part_text(part: Json) -> str | None:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or (kind is None and "text" not in part):
        raise invalid("Missing 'type' field in multimodal part.", "type")
    if kind is not None and not isinstance(kind, str):
        raise invalid("Invalid 'type' field in multimodal part.", "type")
    key = _TEXT_KEYS.get(kind or "text")
    if key is None:
        modality = next((m for m in _MODALITIES if m in str(kind)), str(kind))
        raise invalid(f"At most 0 {modality}(s) may be provided in one prompt.")
    text = part.get(key)
    return text if isinstance(text, str) else None
