"""From a prompt's token ids and checked fields to the sequences an engine is given."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from frontier_mock.core.commands import Media, Submit
from frontier_mock.core.prompt import KeyedPrompt
from frontier_mock.wire.block_keys import content_key, hash_blocks, salt_hash
from frontier_mock.wire.continuation import Resumed, find_resumed
from frontier_mock.wire.errors import (
    data_parallel_rank_out_of_range,
    invalid,
    media_too_long,
    prompt_too_long,
    text_too_long,
    too_many_output_tokens,
    unknown_model,
)
from frontier_mock.wire.fields import (
    Fields,
    flag_field,
    int_field,
    ints_field,
    optional_int_field,
    strings_field,
    text_field,
)
from frontier_mock.wire.fitting import dictated_ending, fitted_ending
from frontier_mock.wire.generation import SequencePlan
from frontier_mock.wire.kv_hashes import Namespace
from frontier_mock.wire.kv_tokens import TokenPrompt
from frontier_mock.wire.media import Album, content_ids, encode_with
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.stops import Ending, StopRules, find_ending
from frontier_mock.wire.structured import Write
from frontier_mock.wire.text import keys_after
from frontier_mock.wire.tokenizer import TokenIds

Headers = Mapping[str, str]
"""Request headers. Keys are looked up in lower case: pass a case-insensitive mapping, or lower."""


class PromptLimits(NamedTuple):
    """vLLM's `TokenizeParams`: how long a prompt may be, and what to cut if it is longer."""

    max_model_len: int
    truncate: int | None = None
    truncate_left: bool = False


class _Wishes(NamedTuple):
    """What of a request decides what its choices say and where they end, beside the cap."""

    salt: int = 0
    seed: int | None = None
    ignore_eos: bool = False
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False


# Most requests have few of these fields, and cost no look at the others.
_WISHES = frozenset(
    (
        "cache_salt",
        "seed",
        "ignore_eos",
        "min_tokens",
        "stop",
        "stop_token_ids",
        "include_stop_str_in_output",
    )
)
_NO_WISHES = _Wishes()


def check_model(fields: Fields, served: ServedModel) -> None:
    """Raise ApiError 404 unless the request names a served model, or none."""
    name = text_field(fields, "model")
    if name and name not in served.names and name not in served.adapters:
        raise unknown_model(name, served.names)


def model_name(fields: Fields, served: ServedModel) -> str:
    """What the response calls the model: the adapter asked for, else the first served name."""
    name = text_field(fields, "model")
    return name if name and name in served.adapters else served.names[0]


def prompt_limits(
    fields: Fields, cap_field: str, max_output_tokens: int | None, served: ServedModel
) -> PromptLimits:
    """Limits for the prompts of a request; `cap_field` names the field that capped its output.

    Raises ApiError for a cap or a truncation beyond the context length.
    """
    limit = served.max_model_len
    if max_output_tokens is not None and max_output_tokens > limit:
        raise too_many_output_tokens(cap_field, max_output_tokens, limit)
    if "truncate_prompt_tokens" not in fields:
        return PromptLimits(limit)
    truncate = optional_int_field(fields, "truncate_prompt_tokens")
    if truncate is not None and truncate > limit:
        raise invalid(
            f"truncate_prompt_tokens={truncate} cannot be greater than max_model_len = {limit}. "
            "Please request a smaller truncation size.",
            "truncate_prompt_tokens",
            truncate,
        )
    if truncate == -1:
        truncate = limit if max_output_tokens == 0 else max(0, limit - 1)
    return PromptLimits(limit, truncate, text_field(fields, "truncation_side") == "left")


def encode_prompt(
    text: str, add_special_tokens: bool, limits: PromptLimits, served: ServedModel
) -> TokenIds:
    """Token ids of a prompt text, truncated if asked. Raises ApiError if it is too long."""
    tokenizer = served.tokenizer
    max_chars = limits.max_model_len * tokenizer.max_chars_per_token
    if limits.truncate is None and len(text) > max_chars:
        raise text_too_long(limits.max_model_len, len(text), max_chars)
    try:
        ids = tokenizer.encode(text, add_special_tokens)
    except UnicodeEncodeError as error:
        raise invalid(str(error)) from None
    if limits.truncate is None and len(ids) > limits.max_model_len:
        # vLLM stops tokenising a text one token past the limit, and reports that many.
        raise prompt_too_long(limits.max_model_len, limits.max_model_len + 1)
    return truncate_prompt(ids, limits)


def encode_media(
    album: Album, text: str, add_special_tokens: bool, limits: PromptLimits, served: ServedModel
) -> tuple[TokenIds, tuple[Media, ...]]:
    """As `encode_prompt`, for a text with images, which is not cut. Raises ApiError."""

    def encode(piece: str) -> TokenIds:
        return encode_prompt(piece, add_special_tokens, PromptLimits(limits.max_model_len), served)

    try:
        ids, media = encode_with(album, text, encode, served.tokenizer.vocab_size)
    except ValueError as error:
        raise invalid(str(error)) from None
    if len(ids) > limits.max_model_len:
        raise media_too_long(limits.max_model_len, len(ids))
    return ids, media


def truncate_prompt(ids: TokenIds, limits: PromptLimits) -> TokenIds:
    """Ids cut to the limits' truncation. Raises ApiError if they exceed the context after that."""
    if limits.truncate is not None and limits.truncate < len(ids):
        keep = limits.truncate
        ids = ids[len(ids) - keep :] if limits.truncate_left else ids[:keep]
    if len(ids) > limits.max_model_len:
        raise prompt_too_long(limits.max_model_len, len(ids))
    return ids


def effective_max_tokens(asked: int | None, prompt_tokens: int, served: ServedModel) -> int:
    """The room left in the context, or what the client or the model's configuration asks if less.

    0 or less where nothing can be generated; `check_sampling` refuses that.
    """
    wanted = asked if asked is not None else served.max_new_tokens
    room = served.max_model_len - prompt_tokens
    return room if wanted is None else min(room, wanted)


def check_prompt_ids(ids: TokenIds, served: ServedModel, *, encoded: bool) -> None:
    """Raise a late ApiError for an empty prompt or ids beyond the vocabulary.

    `encoded` ids come from the tokenizer, which knows its vocabulary.
    """
    if len(ids) == 0:
        raise invalid("The decoder prompt cannot be empty", late=True)
    if encoded:
        return
    highest = int(ids.max())
    if highest >= served.num_token_ids:
        raise invalid(f"Token id {highest} is out of vocabulary", late=True)


def request_priority(fields: Fields, headers: Headers) -> int:
    """The X-Vllm-Priority header if it is a number, else the body's priority."""
    text = headers.get("x-vllm-priority")
    if text is not None:
        try:
            return int(text)
        except ValueError:
            pass
    return int_field(fields, "priority", 0)


def data_parallel_rank(headers: Headers, served: ServedModel) -> int:
    """The rank pinned by header, -1 if none or not a number. Raises ApiError beyond the last."""
    text = headers.get("x-data-parallel-rank")
    if text is None:
        return -1
    try:
        rank = int(text)
    except ValueError:
        return -1
    if not 0 <= rank < served.data_parallel_size:
        raise data_parallel_rank_out_of_range(rank, served.data_parallel_size)
    return rank


def base_request_id(fields: Fields, headers: Headers, served: ServedModel) -> str:
    """X-Request-Id header, else the body's request_id, else a fresh one."""
    header = headers.get("x-request-id")
    if header is not None:
        return header
    own = text_field(fields, "request_id")
    return served.new_id() if own is None else own


def session_of(fields: Fields, headers: Headers) -> str | None:
    """The session a request belongs to: the body's, the X-Session-ID header's, the extra one."""
    own = text_field(fields, "session_id") or headers.get("x-session-id")
    if own:
        return own
    extra = fields.get("vllm_xargs")
    found = extra.get("session_id") if isinstance(extra, dict) else None
    return found if isinstance(found, str) and found else None


def stream_interval(fields: Fields, served: ServedModel) -> int:
    """Tokens per streamed chunk: the request may raise the server's setting, not lower it."""
    return max(served.stream_interval, int_field(fields, "stream_interval", 1))


def actor_of(metadata: object) -> str | None:
    """The lease holder a request's `metadata` names under "fmock", if any."""
    actor = metadata.get("fmock") if isinstance(metadata, dict) else None
    return actor if isinstance(actor, str) else None


def plan_sequences(
    ids: TokenIds,
    prompt_index: int,
    n: int,
    max_tokens: int,
    fields: Fields,
    priority: int,
    served: ServedModel,
    *,
    resumable: int = 0,
    write: Write | None = None,
    dictated: Sequence[int] = (),
    reads_cache: bool = True,
    session_id: str | None = None,
    media: tuple[Media, ...] = (),
) -> list[SequencePlan]:
    """The n choices of one prompt: their text, their end, and the command that submits each.

    A prompt that ends with at least `resumable` tokens of output is taken for one, and its first
    choice goes on with that output (`wire.continuation`); 0 takes none. `write` says what the text
    is where the request prescribes its shape (`wire.structured`), `dictated` are the very tokens
    where it prescribes those. A prompt whose own logprobs are
    wanted must be computed whole, and so does not read the cache. `media` are images among `ids`.
    """
    ring = served.ring
    size = ring.block_tokens
    content = content_ids(ids, media)
    keys = hash_blocks(content, size)
    tail = content[len(keys) * size :]
    wishes = _NO_WISHES if _WISHES.isdisjoint(fields) else _wishes(fields)
    salt = wishes.salt
    if served.adapters and (adapter := model_name(fields, served)) in served.adapters:
        # An adapter's keys and values are its own, and so is what it says.
        salt = salt_hash(text_field(fields, "cache_salt"), adapter)
    if salt and len(keys):
        keys[0] ^= np.uint64(salt)
    identity = content_key(keys, tail, salt)
    prompt = KeyedPrompt(len(ids), size, keys.tobytes())
    seed = served.seed
    if wishes.seed is not None and wishes.seed != -1:
        seed = seed * 0x1_0001 + wishes.seed + 1
    resumed = None
    if resumable and write is None and not dictated:
        resumed = find_resumed(ids, keys, salt, seed, ring, resumable)
    plans = []
    for choice in range(n):
        if dictated:
            ending = dictated_ending(ring, served.tokenizer, dictated, max_tokens)
        elif write is not None:
            ending = _shaped(write, seed, identity, choice, max_tokens, wishes, served)
        else:
            mine = resumed if choice == 0 else None
            ending = _ending(seed, identity, choice, max_tokens, wishes, mine, served)
        text = ending.text
        after = keys_after(text, tail, 0 if len(keys) else salt)
        if served.keeps_tokens:
            prompt = TokenPrompt(
                len(ids), size, prompt.keys, ids, text, _namespace(fields, served), session_id
            )
        submit = Submit(
            prompt,
            text.num_tokens,
            max_tokens,
            ending.finish_reason,
            served.worker,
            priority,
            after,
            reads_cache=reads_cache,
            media=media,
        )
        index = prompt_index * n + choice
        plans.append(SequencePlan(index, prompt_index, submit, text, ending.stop_reason))
    return plans


def _ending(
    seed: int,
    identity: int,
    choice: int,
    max_tokens: int,
    wishes: _Wishes,
    resumed: Resumed | None,
    served: ServedModel,
) -> Ending:
    """What a choice says freely, and where it stops."""
    ring = served.ring
    eos = served.eos
    if wishes.ignore_eos and ring.end_id not in wishes.stop_token_ids:
        eos = None
    start, until_eos = -1, 0
    if resumed is not None:
        start = resumed.start
        if eos is not None:
            length = eos.length(seed, resumed.identity, resumed.choice)
            until_eos = max(1, length - resumed.done)
    else:
        start = ring.start_for(seed, identity, choice)
        until_eos = 0 if eos is None else eos.length(seed, identity, choice)
    rules = StopRules(
        max_tokens,
        wishes.min_tokens,
        until_eos,
        wishes.ignore_eos,
        wishes.stop,
        wishes.stop_token_ids,
        wishes.include_stop,
    )
    return find_ending(ring, start, rules)


def _shaped(
    write: Write,
    seed: int,
    identity: int,
    choice: int,
    max_tokens: int,
    wishes: _Wishes,
    served: ServedModel,
) -> Ending:
    """What a choice of a prescribed shape says, as long as a free answer would have been."""
    eos = None if wishes.ignore_eos else served.eos
    length = 0 if eos is None else eos.length(seed, identity, choice)
    rules = StopRules(
        max_tokens,
        wishes.min_tokens,
        length,
        wishes.ignore_eos,
        wishes.stop,
        wishes.stop_token_ids,
        wishes.include_stop,
    )
    return fitted_ending(write, served.ring, served.tokenizer, seed, identity, choice, rules)


def _namespace(fields: Fields, served: ServedModel) -> Namespace:
    """What the keys of a request's blocks are salted with, in words."""
    name = model_name(fields, served)
    path = served.adapters.get(name)
    adapter = None if path is None else (name, path)
    return Namespace(text_field(fields, "cache_salt") or None, adapter)


def _wishes(fields: Fields) -> _Wishes:
    return _Wishes(
        salt_hash(text_field(fields, "cache_salt")),
        optional_int_field(fields, "seed"),
        flag_field(fields, "ignore_eos"),
        int_field(fields, "min_tokens", 0),
        strings_field(fields, "stop"),
        ints_field(fields, "stop_token_ids"),
        flag_field(fields, "include_stop_str_in_output"),
    )
