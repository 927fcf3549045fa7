"""/tokenize and /detokenize in SGLang's shapes."""

from collections.abc import Mapping

from frontier_mock.wire.errors import ApiError, Problem, schema_error
from frontier_mock.wire.fields import (
    Check,
    Fields,
    boolean,
    check_fields,
    flag_field,
    integer,
    list_of,
    mapping,
    nullable,
    string,
    union,
)
from frontier_mock.wire.messages import message_list, render_prompt
from frontier_mock.wire.render import dumps
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.bodies import load_object
from frontier_mock.wire.sglang.errors import openai_error, validation_error
from frontier_mock.wire.sglang.plan import encode, front_of
from frontier_mock.wire.tokenizer import Json

_TOKENIZE: Mapping[str, Check] = {
    "model": string,
    "prompt": nullable(union(string, list_of(string))),
    "messages": nullable(message_list),
    "tools": nullable(list_of(mapping)),
    "continue_final_message": boolean,
    "chat_template_kwargs": nullable(mapping),
    "add_special_tokens": boolean,
    "add_generation_prompt": nullable(boolean),
}
_IDS = list_of(integer())
_DETOKENIZE: Mapping[str, Check] = {
    "model": string,
    "tokens": union(_IDS, list_of(_IDS)),
    "skip_special_tokens": boolean,
}


def tokenize_body(body: bytes, served: ServedModel) -> bytes:
    """Ids and their number: of one prompt, of each of several, or of a conversation.

    Raises SglangError for what SGLang refuses.
    """
    try:
        raw = load_object(body)
        fields = check_fields(raw, _TOKENIZE)
        if (fields.get("prompt") is None) == (fields.get("messages") is None):
            message = "Exactly one of 'prompt' or 'messages' must be provided."
            problem = Problem(
                "value_error", ("body",), f"Value error, {message}", raw, {"error": message}
            )
            raise schema_error([problem])
    except ApiError as error:
        raise validation_error(error) from None
    try:
        tokens, count = _tokens(fields, served)
    except ValueError as error:
        raise openai_error(str(error)) from None
    except ApiError as error:
        raise openai_error(error.message) from None
    answer: Json = {
        "tokens": tokens,
        "count": count,
        "max_model_len": front_of(served).context_len,
    }
    return dumps(answer).encode("utf-8", "surrogatepass")


def _tokens(fields: Fields, served: ServedModel) -> tuple[Json, Json]:
    prompt = fields.get("prompt")
    special = flag_field(fields, "add_special_tokens", True)
    if isinstance(prompt, str):
        ids = encode(prompt, served, special).tolist()
        return [*ids], len(ids)
    if isinstance(prompt, list):
        many = [encode(str(text), served, special).tolist() for text in prompt]
        return [[*ids] for ids in many], [len(ids) for ids in many]
    if not fields.get("messages"):
        raise ValueError("Messages cannot be empty.")
    asked: Fields = {"messages": fields["messages"]}
    for name in ("tools", "chat_template_kwargs", "add_generation_prompt"):
        if fields.get(name) is not None:
            asked[name] = fields[name]
    if flag_field(fields, "continue_final_message"):
        asked |= {"continue_final_message": True, "add_generation_prompt": False}
    _, text = render_prompt(asked, served.tokenizer)
    ids = encode(text, served, add_special_tokens=False).tolist()
    return [*ids], len(ids)


def detokenize_body(body: bytes, served: ServedModel) -> bytes:
    """Text of one list of ids, or of each of several. Raises SglangError for what is refused."""
    try:
        fields = check_fields(load_object(body), _DETOKENIZE, ("tokens",))
    except ApiError as error:
        raise validation_error(error) from None
    tokens = fields["tokens"]
    skip = flag_field(fields, "skip_special_tokens", True)
    decode = served.tokenizer.decode
    text: Json = ""
    if isinstance(tokens, list) and tokens:
        if isinstance(tokens[0], list):
            text = [decode(_ints(row), skip) for row in tokens]
        else:
            text = decode(_ints(tokens), skip)
    return dumps({"text": text}).encode("utf-8", "surrogatepass")


def _ints(values: Json) -> list[int]:
    return [v for v in values if isinstance(v, int)] if isinstance(values, list) else []
