"""POST /tokenize and /detokenize: what a router calls to count or to hash a prompt."""

from collections.abc import Mapping

from frontier_mock.wire.errors import Problem, invalid, schema_error
from frontier_mock.wire.fields import (
    INT64_MAX,
    Check,
    Fields,
    boolean,
    check_fields,
    flag_field,
    integer,
    list_of,
    load_object,
    mapping,
    nullable,
    string,
)
from frontier_mock.wire.media import Album, encode_with
from frontier_mock.wire.messages import message_list, render_prompt
from frontier_mock.wire.plan import check_model
from frontier_mock.wire.render import dumps
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.tokenizer import Json, TokenIds

_SHARED: Mapping[str, Check] = {
    "model": nullable(string),
    "add_special_tokens": boolean,
    "return_token_strs": nullable(boolean),
}
_COMPLETION: Mapping[str, Check] = {"prompt": string, **_SHARED}
_CHAT: Mapping[str, Check] = {
    "messages": message_list,
    **_SHARED,
    "add_generation_prompt": boolean,
    "continue_final_message": boolean,
    "chat_template": nullable(string),
    "chat_template_kwargs": nullable(mapping),
    "tools": nullable(list_of(mapping)),
}
_DETOKENIZE: Mapping[str, Check] = {
    "model": nullable(string),
    "tokens": list_of(integer(0, INT64_MAX)),
}


def tokenize_body(body: bytes, served: ServedModel) -> bytes:
    """Ids of a prompt or of a conversation; there is no check against the context length.

    Raises ApiError for what vLLM refuses.
    """
    raw = load_object(body)
    if "prompt" not in raw and "messages" not in raw:
        missing = [
            Problem("missing", ("body", name), "Field required", raw)
            for name in ("prompt", "messages")
        ]
        raise schema_error(missing)
    if raw.get("continue_final_message") and raw.get("add_generation_prompt"):
        raise invalid(
            "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
        )
    completion = "prompt" in raw
    fields = check_fields(raw, _COMPLETION if completion else _CHAT)
    check_model(fields, served)
    ids = _completion_ids(fields, served) if completion else _chat_ids(fields, served)
    strs: Json = None
    if flag_field(fields, "return_token_strs"):
        strs = [served.tokenizer.vocab_entry(token_id) for token_id in ids.tolist()]
    return dumps(
        {
            "count": len(ids),
            "max_model_len": served.max_model_len,
            "tokens": ids.tolist(),
            "token_strs": strs,
        }
    ).encode()


def detokenize_body(body: bytes, served: ServedModel) -> bytes:
    """Text of token ids, special tokens spelled out. Raises ApiError for what vLLM refuses."""
    fields = check_fields(load_object(body), _DETOKENIZE, ("tokens",))
    check_model(fields, served)
    tokens = fields["tokens"]
    ids = [v for v in tokens if isinstance(v, int)] if isinstance(tokens, list) else []
    text = served.tokenizer.decode(ids, skip_special_tokens=False)
    return dumps({"prompt": text}).encode()


def _completion_ids(fields: Fields, served: ServedModel) -> TokenIds:
    return _encode(str(fields["prompt"]), flag_field(fields, "add_special_tokens", True), served)


def _chat_ids(fields: Fields, served: ServedModel) -> TokenIds:
    own = fields.get("chat_template_kwargs")
    own_template = isinstance(own, dict) and own.get("chat_template")
    if not served.trust_request_chat_template and (fields.get("chat_template") or own_template):
        raise invalid(
            "Chat template is passed with request, but --trust-request-chat-template is not set. "
            "Refused request with untrusted chat template."
        )
    album = Album(served.media)
    _, text = render_prompt(fields, served.tokenizer, album)
    special = flag_field(fields, "add_special_tokens")
    try:
        ids, _ = encode_with(
            album, text, lambda piece: _encode(piece, special, served), served.tokenizer.vocab_size
        )
    except ValueError as error:
        raise invalid(str(error)) from None
    return ids


def _encode(text: str, add_special_tokens: bool, served: ServedModel) -> TokenIds:
    try:
        return served.tokenizer.encode(text, add_special_tokens)
    except UnicodeEncodeError as error:
        raise invalid(str(error)) from None
