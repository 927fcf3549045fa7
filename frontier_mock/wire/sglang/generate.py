"""POST /generate: from bytes to a request, with the checks of SGLang 0.5.23 in its order.

First the types (FastAPI reads a dataclass), then the schema's gate, then `GenerateReqInput`'s own
normalisation and the tokenizer manager's checks. What is found after the gate is a ValueError in
SGLang: a 400, or in a stream, which has begun by then, an event.
"""

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import NamedTuple, cast

import numpy as np

from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.fields import (
    INT64_MAX,
    INT64_MIN,
    Check,
    Fields,
    boolean,
    check_fields,
    flag_field,
    int_field,
    integer,
    list_of,
    mapping,
    mapping_of,
    nullable,
    number,
    optional_int_field,
    string,
    text_field,
    union,
)
from frontier_mock.wire.generation import PromptText
from frontier_mock.wire.plan import Headers, actor_of
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.bodies import load_object
from frontier_mock.wire.sglang.errors import http_error, validation_error
from frontier_mock.wire.sglang.late import LateError
from frontier_mock.wire.sglang.media import images_of, prompt_with
from frontier_mock.wire.sglang.native import GenerateStream
from frontier_mock.wire.sglang.plan import check_length, front_of, plan_prompt
from frontier_mock.wire.sglang.request import (
    GENERATE,
    Bootstrap,
    Ended,
    LogprobWish,
    Routing,
    SglangRequest,
    SglangSequence,
    Wishes,
)
from frontier_mock.wire.sglang.sampling import (
    GRAMMARS,
    check_gate,
    check_samples,
    check_watermark_gate,
    read_sampling,
)
from frontier_mock.wire.structured import ConstraintError
from frontier_mock.wire.tokenizer import Json, TokenIds

_INT = integer(INT64_MIN, INT64_MAX)
_OPT_INT = nullable(_INT)
_OPT_TEXT = nullable(string)
_OPT_FLAG = nullable(boolean)


def _one_or_many(check: Check, *, gaps: bool = False) -> Check:
    return nullable(union(list_of(nullable(check) if gaps else check), check))


def _ids(value: Json, loc: object, problems: object) -> Json:
    """`input_ids` are looked at when they are read, all at once."""
    return value


_IDS: Check = cast(Check, _ids)
_OBJECT = nullable(mapping)
_TEXTS = _one_or_many(string)
_OPT_TEXTS = _one_or_many(string, gaps=True)
_OPT_INTS = _one_or_many(_INT, gaps=True)
_FLAGS = _one_or_many(boolean)

FIELDS: Mapping[str, Check] = {
    "rid": _TEXTS,
    "session_id": _OPT_TEXT,
    "text": _TEXTS,
    "input_ids": _IDS,
    "input_embeds": _IDS,
    "image_data": _IDS,
    "video_data": _IDS,
    "audio_data": _IDS,
    "sampling_params": nullable(union(list_of(mapping), mapping)),
    "watermark": _IDS,
    "return_logprob": _FLAGS,
    "logprob_start_len": _one_or_many(_INT),
    "top_logprobs_num": _one_or_many(_INT),
    "token_ids_logprob": nullable(union(list_of(_INT), list_of(list_of(_INT)))),
    "return_sampling_mask": _FLAGS,
    "return_text_in_logprobs": boolean,
    "return_flat_raw_top_logprobs": boolean,
    "return_flat_raw_output_top_logprobs": boolean,
    "return_flat_raw_top_logprobs_b64": boolean,
    "stream": boolean,
    "log_metrics": boolean,
    "return_hidden_states": _IDS,
    "return_routed_experts": boolean,
    "routed_experts_start_len": _INT,
    "return_indexer_topk": boolean,
    "modalities": _IDS,
    "session_params": _OBJECT,
    "lora_path": _OPT_TEXTS,
    "lora_id": _OPT_TEXTS,
    "custom_logit_processor": _OPT_TEXTS,
    "bootstrap_host": _OPT_TEXTS,
    "bootstrap_port": _OPT_INTS,
    "bootstrap_room": _OPT_INTS,
    "bootstrap_pair_key": _OPT_TEXTS,
    "decode_tp_size": _OPT_INTS,
    "routed_dp_rank": _OPT_INT,
    "data_parallel_rank": _OPT_INT,
    "disagg_prefill_dp_rank": _OPT_INT,
    "routing_key": _OPT_TEXT,
    "conversation_id": _OPT_TEXT,
    "background": boolean,
    "require_reasoning": boolean,
    "max_thinking_tokens": _OPT_INT,
    "priority": _OPT_INT,
    "extra_key": _TEXTS,
    "cache_salt": _TEXTS,
    "no_logs": boolean,
    "custom_labels": nullable(mapping_of(string)),
    "return_bytes": boolean,
    "return_entropy": boolean,
    "return_prompt_token_ids": boolean,
    "external_trace_header": _OBJECT,
    "received_time": nullable(number),
}
"""Every field of the body that anything here looks at; the others are ignored, as SGLang does."""

_MAX_ID = 2**32 - 1


class Prompts(NamedTuple):
    """The prompts of one body: texts or ids, and whether there is just one."""

    texts: tuple[str, ...] = ()
    ids: tuple[TokenIds, ...] = ()
    single: bool = True

    def __len__(self) -> int:
        """How many there are."""
        return len(self.texts) or len(self.ids)


def parse_generate(body: bytes, headers: Headers, served: ServedModel) -> SglangRequest:
    """The request that a body of /generate asks for.

    Raises SglangError for what is refused before an answer begins, and LateError for the rest.
    """
    try:
        raw = load_object(body)
    except ApiError as error:
        raise validation_error(error) from None
    return request_of(raw, headers, served)


def request_of(raw: dict[str, Json], headers: Headers, served: ServedModel) -> SglangRequest:
    """`parse_generate` of a body that has been read as JSON."""
    try:
        fields = check_fields(raw, FIELDS)
    except ApiError as error:
        raise validation_error(error) from None
    params = raw.get("sampling_params")
    if params is not None:
        check_gate(params)
    if raw.get("watermark") is not None:
        check_watermark_gate(raw["watermark"])
    stream = flag_field(fields, "stream")
    try:
        return _plan(raw, fields, headers, served)
    except ConstraintError as error:
        message = str(error)
        frames = partial(_aborted, raw, headers, served, message) if stream else None
        raise LateError(message, stream, frames) from None
    except ValueError as error:
        raise LateError(str(error), stream) from None


def _aborted(
    raw: dict[str, Json], headers: Headers, served: ServedModel, message: str, created_s: int
) -> bytes:
    """The stream of a request whose grammar fails, which the scheduler finds out.

    It makes a prompt of one token of it, computes that, and its only chunk says why it is aborted
    (`set_finish_with_abort`). Here it does not take the engine's time, and all prompts of a body
    share the fate of one.
    """
    given = raw.get("sampling_params")
    free: list[Json] = [
        {name: value for name, value in one.items() if name not in GRAMMARS}
        for one in (given if isinstance(given, list) else [given])
        if isinstance(one, dict)
    ]
    told = raw | {"sampling_params": free if isinstance(given, list) else free[0]}
    request = request_of(told | {"return_logprob": False}, headers, served)
    request = replace(
        request,
        sequences=tuple(
            [replace(sequence, prompt_tokens=1, cap=1) for sequence in request.sequences]
        ),
    )
    stream = GenerateStream(request, created_s)
    endings = [
        Ended(
            index,
            output_tokens=1,
            reason="abort",
            message=message,
            status=HTTPStatus.BAD_REQUEST,
            fault="BadRequestError",
            now_s=float(created_s),
        )
        for index in range(len(request.sequences))
    ]
    chunks = [stream.finish(index, 0, ended) for index, ended in enumerate(endings)]
    return b"".join(chunks) + stream.tail(endings)


def read_abort(body: bytes) -> tuple[str, bool]:
    """(rid, everything) of a body of /abort_request. Raises SglangError if it is no such body."""
    try:
        fields = check_fields(load_object(body), _ABORT)
    except ApiError as error:
        raise validation_error(error) from None
    return text_field(fields, "rid") or "", flag_field(fields, "abort_all")


_ABORT: Mapping[str, Check] = {"rid": string, "abort_all": boolean}


def read_prompts(fields: Fields) -> Prompts:
    """The prompts of a body. Raises ValueError as `GenerateReqInput` does."""
    text, ids = fields.get("text"), fields.get("input_ids")
    if text is None and ids is None:
        if fields.get("input_embeds") is not None:
            raise ValueError(
                "input_embeds is provided while disable_radix_cache is False. Please add "
                "`--disable-radix-cache` when you launch the server if you want to use "
                "input_embeds as inputs."
            )
        raise ValueError("Either text, input_ids or input_embeds should be provided.")
    if text is not None and ids is not None and fields.get("input_embeds") is not None:
        raise ValueError("Either text, input_ids or input_embeds should be provided.")
    if isinstance(text, str):
        return Prompts(texts=(text,))
    if isinstance(text, list):
        if not text:
            raise ValueError("text cannot be empty.")
        return Prompts(texts=tuple(str(item) for item in text), single=False)
    if not isinstance(ids, list):
        raise ValueError("input_ids should be a list of lists for batch processing.")
    if not ids:
        raise ValueError("input_ids cannot be empty.")
    if isinstance(ids[0], int):
        return Prompts(ids=(read_ids(ids),))
    return Prompts(ids=tuple(read_ids(item) for item in ids), single=False)


def read_ids(values: Json) -> TokenIds:
    """Token ids from a JSON list. Raises ValueError for what cannot be one."""
    try:
        ids = np.frombuffer(array("q", cast("list[int]", values)), np.int64)
    except (TypeError, OverflowError):
        raise ValueError("input_ids must be a list of integers or a list of them.") from None
    if len(ids) == 0:
        raise ValueError("input_ids cannot be empty.")
    if int(ids.min()) < 0 or int(ids.max()) > _MAX_ID:
        raise ValueError("input_ids contains token ids that are out of vocabulary.")
    return ids.astype(np.uint32)


def make_rids(given: Json, count: int, single: bool, served: ServedModel) -> list[str]:
    """Request ids: the client's, numbered where one string names a batch, else fresh ones.

    Raises ValueError as `_normalize_rid` does.
    """
    if given is None:
        return [served.new_id() for _ in range(count)]
    if isinstance(given, str):
        return [given] if single else [f"{given}_{i}" for i in range(count)]
    rids = [str(item) for item in given] if isinstance(given, list) else []
    if len(rids) != count:
        raise ValueError(
            "The specified rids length mismatch with the batch_size for batch processing."
        )
    twice = [rid for rid, times in Counter(rids).items() if times > 1]
    if twice:
        raise ValueError(f"Duplicate request IDs detected within the request: {twice}")
    return rids


def read_dp_rank(fields: Fields, headers: Headers, served: ServedModel) -> int | None:
    """The rank asked for by header or body. Raises SglangError, or ValueError beyond the last."""
    rank = optional_int_field(fields, "routed_dp_rank")
    if rank is None:
        rank = optional_int_field(fields, "data_parallel_rank")
    header = headers.get("x-data-parallel-rank")
    if header is not None:
        try:
            rank = int(header)
        except ValueError:
            raise http_error(
                f"Invalid X-Data-Parallel-Rank header: must be an integer, got '{header}'",
                400,
            ) from None
    ranks = front_of(served).num_dp_ranks
    if rank is not None and not 0 <= rank < ranks:
        raise ValueError(f"routed_dp_rank={rank} out of range [0, {ranks})")
    return rank


def namespace_of(fields: Fields, index: int) -> str:
    """What keeps a prompt's cache entries apart from equal ones: extra key, salt, adapter."""
    parts = [_item(fields.get(name), index) for name in ("extra_key", "cache_salt", "lora_path")]
    return "\0".join(str(part or "") for part in parts) if any(parts) else ""


def read_bootstrap(fields: Fields, index: int, batch: bool) -> Bootstrap | None:
    """Where sequence `index` meets its other half; one room for a batch means consecutive ones."""
    if fields.get("bootstrap_room") is None and fields.get("bootstrap_host") is None:
        return None
    room = fields.get("bootstrap_room")
    if batch and isinstance(room, int):
        room += index
    host = _item(fields.get("bootstrap_host"), index)
    port = _item(fields.get("bootstrap_port"), index)
    pair = _item(fields.get("bootstrap_pair_key"), index)
    chosen = _item(room, index)
    return Bootstrap(
        host if isinstance(host, str) else None,
        port if isinstance(port, int) else None,
        chosen if isinstance(chosen, int) else None,
        pair if isinstance(pair, str) else None,
    )


def _plan(
    raw: dict[str, Json], fields: Fields, headers: Headers, served: ServedModel
) -> SglangRequest:
    front = front_of(served)
    prompts = read_prompts(fields)
    given = _sampling_dicts(fields, len(prompts), front.preferred_sampling_params)
    n = _parallel(given)
    check_samples(len(prompts), n)
    count = len(prompts) * n
    single = prompts.single and n == 1
    _check_support(fields, served)
    # With n above 1 every sample gets a fresh id of its own.
    rids = make_rids(fields.get("rid"), len(prompts) if n > 1 else count, single, served)
    rank = read_dp_rank(fields, headers, served)
    vocab = served.model_vocab_size
    samplings = [read_sampling(one, vocab) for one in given]
    priority = int_field(fields, "priority", 0)
    keep = flag_field(fields, "return_prompt_token_ids")
    sequences: list[SglangSequence] = []
    kept: list[PromptText] = []
    for i in range(len(prompts)):
        urls = images_of(fields.get("image_data"), i, prompts.single)
        ids, media = prompt_with(prompts.ids[i] if prompts.ids else prompts.texts[i], urls, served)
        if len(ids) == 0:
            raise ValueError("texts cannot be empty and tokenizer must be initialized")
        ids = check_length(ids, served)
        media = tuple([item for item in media if item.start + item.tokens <= len(ids)])
        plans, cap = plan_prompt(
            ids,
            i,
            n,
            samplings[i],
            served,
            namespace=namespace_of(fields, i),
            priority=priority,
            rank=rank,
            resumable=bool(prompts.ids),
            media=media,
        )
        wish = _logprob_wish(fields, i, len(ids), prompts.single, vocab)
        kept.append(PromptText(len(ids), ids if keep or (wish and wish.start >= 0) else None, None))
        for plan in plans:
            rid = served.new_id() if n > 1 else rids[i]
            where = read_bootstrap(fields, plan.index, not single)
            sequences.append(SglangSequence(rid, plan, cap, len(ids), wish, where))
    return SglangRequest(
        kind=GENERATE,
        sequences=tuple(sequences),
        prompts=tuple(kept),
        tokenizer=served.tokenizer,
        stream=flag_field(fields, "stream"),
        stream_interval=samplings[0].stream_interval or front.stream_interval,
        n=n,
        single=single,
        incremental=front.incremental_streaming_output,
        metrics=front.enable_metrics,
        wishes=Wishes(return_prompt_token_ids=keep, frontier=raw.get("frontier") is True),
        routing=Routing(
            routed_dp_rank=rank,
            disagg_prefill_dp_rank=optional_int_field(fields, "disagg_prefill_dp_rank"),
            routing_key=text_field(fields, "routing_key") or headers.get("x-smg-routing-key"),
            session_id=text_field(fields, "session_id"),
            session_params=fields.get("session_params"),
            lora_path=fields.get("lora_path"),
            actor=actor_of(raw.get("metadata")),
            log_metrics=flag_field(fields, "log_metrics", True),
        ),
    )


def _sampling_dicts(
    fields: Fields, count: int, preferred: Mapping[str, Json] | None
) -> list[Mapping[str, Json]]:
    """One `sampling_params` per prompt, the server's preferred ones beneath them."""
    given = fields.get("sampling_params")
    many: list[Json] = [given] * count
    if isinstance(given, list):
        if len(given) != count:
            raise ValueError("The length of sampling_params should be equal to the batch size.")
        many = given
    base = preferred or {}
    return [{**base, **one} if isinstance(one, dict) else base for one in many]


def _parallel(given: list[Mapping[str, Json]]) -> int:
    """`n`, which must be one for all. Raises ValueError."""
    counts = [one.get("n") for one in given]
    numbers = [count if isinstance(count, int) else 1 for count in counts]
    if len(set(numbers)) > 1:
        raise ValueError(
            "The parallel_sample_num should be the same for all samples in sample params."
        )
    if (given[0].get("beam_width") or 1) != 1:
        # A beam search returns n sequences of one request; its answers are not simulated.
        raise ValueError("frontier_mock does not simulate beam search (beam_width).")
    return max(1, numbers[0])


def _check_support(fields: Fields, served: ServedModel) -> None:
    """What this server was not started for, in SGLang's words. Raises ValueError."""
    front = front_of(served)
    if fields.get("session_id") is not None and fields.get("session_params") is not None:
        raise ValueError("session_id and session_params cannot both be set.")
    budget = optional_int_field(fields, "max_thinking_tokens")
    if budget is not None and not front.enable_strict_thinking:
        raise ValueError(
            "max_thinking_tokens requires the server to be launched with --enable-strict-thinking"
        )
    if flag_field(fields, "return_flat_raw_output_top_logprobs") and flag_field(fields, "stream"):
        raise ValueError(
            "return_flat_raw_output_top_logprobs is only set on the finished response and does "
            "not support stream=True."
        )
    if flag_field(fields, "return_flat_raw_top_logprobs_b64") and not (
        flag_field(fields, "return_flat_raw_top_logprobs")
        or flag_field(fields, "return_flat_raw_output_top_logprobs")
    ):
        raise ValueError(
            "return_flat_raw_top_logprobs_b64 requires return_flat_raw_top_logprobs or "
            "return_flat_raw_output_top_logprobs."
        )
    if fields.get("return_hidden_states") and not front.enable_return_hidden_states:
        raise ValueError(
            "The server is not configured to return hidden states. Please set "
            "`--return-hidden-states-mode last`, `--return-hidden-states-mode full`, or the legacy "
            "`--enable-return-hidden-states` flag."
        )
    if fields.get("custom_logit_processor") and not front.enable_custom_logit_processor:
        raise ValueError(
            "The server is not configured to enable custom logit processor. Please set "
            "`--enable-custom-logit-processor` to enable this feature."
        )
    for name in ("image_data", "video_data", "audio_data"):
        if fields.get(name) and (name != "image_data" or served.media is None):
            raise ValueError(f"{name} is given, but the model served here takes text only.")


def _logprob_wish(
    fields: Fields, index: int, prompt_tokens: int, single: bool, vocab_size: int
) -> LogprobWish | None:
    if _item(fields.get("return_logprob"), index) is not True:
        return None
    start = _item(fields.get("logprob_start_len"), index)
    first = start if isinstance(start, int) else -1
    if first > prompt_tokens:
        raise ValueError(
            f"req.logprob_start_len={first} is higher than the number of input tokens "
            f"len(req.origin_input_ids)={prompt_tokens}. "
            "Please use a smaller logprob_start_len."
        )
    top = _item(fields.get("top_logprobs_num"), index)
    chosen = fields.get("token_ids_logprob") or []
    if isinstance(chosen, list) and chosen and isinstance(chosen[0], list):
        if single:
            raise ValueError("token_ids_logprob must be a flat list of integers.")
        chosen = _item(chosen, index) or []
    ids = tuple(i for i in chosen if isinstance(i, int)) if isinstance(chosen, list) else ()
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise ValueError(
                f"token_ids_logprob contains out-of-vocabulary token id {token_id}; valid range "
                f"is [0, {vocab_size})."
            )
    return LogprobWish(
        first if first >= 0 else -1,
        top if isinstance(top, int) else 0,
        ids,
        flag_field(fields, "return_text_in_logprobs"),
    )


def _item(value: Json, index: int) -> Json:
    """The share of sequence `index` in a field that may be one value or one for each."""
    if not isinstance(value, list):
        return value
    return value[index] if index < len(value) else None
