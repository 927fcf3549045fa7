"""POST /v1/completions: from bytes to a Generation, with vLLM 0.33's checks in its order."""

from array import array
from typing import NamedTuple, cast

import numpy as np

from frontier_mock.wire import sampling
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
from frontier_mock.wire.generation import COMPLETION, Generation, LogprobsPlan, PromptText
from frontier_mock.wire.kv_transfer import with_transfer
from frontier_mock.wire.plan import (
    Headers,
    PromptLimits,
    actor_of,
    base_request_id,
    check_model,
    check_prompt_ids,
    data_parallel_rank,
    effective_max_tokens,
    encode_prompt,
    model_name,
    plan_sequences,
    prompt_limits,
    request_priority,
    session_of,
    stream_interval,
    truncate_prompt,
)
from frontier_mock.wire.schema import (
    COMPLETION_FIELDS,
    COMPLETION_FIELDS_WITHOUT_PROMPT,
    with_stop_limit,
)
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.structured_vllm import vllm_writer
from frontier_mock.wire.tokenizer import Json, TokenIds

DEFAULT_MAX_TOKENS = 16
"""What `max_tokens` is when absent or null (vLLM 0.33 CompletionRequest)."""

Prompts = list[str | TokenIds]
"""The prompts of one request, as text or as token ids."""

_MAX_ID = 2**32 - 1


class _Extras(NamedTuple):
    """What few requests ask for."""

    n: int = 1
    add_special_tokens: bool = True
    logprobs: LogprobsPlan | None = None
    return_ids: bool = False
    echo: bool = False


_EXTRAS = frozenset(
    ("n", "add_special_tokens", "logprobs", "prompt_logprobs", "return_token_ids", "echo")
)
_NO_EXTRAS = _Extras()
# Most requests have none of these, and skip the checks that look at them.
_WHOLE_REQUEST = frozenset(
    (
        "logprob_token_ids",
        "logprobs",
        "prompt_logprobs",
        "use_beam_search",
        "stream_options",
        "structured_outputs",
        "response_format",
        "cache_salt",
    )
)
_SHAPED = frozenset(("structured_outputs", "response_format"))
_NEEDS_SUPPORT = frozenset(("suffix", "prompt_embeds", "use_beam_search"))


def parse_completion(body: bytes, headers: Headers, served: ServedModel) -> Generation:
    """The generation a completion request asks for. Raises ApiError with vLLM's answer if bad."""
    raw = load_object(body)
    _check_request(raw, served)
    prompts = _fast_prompts(raw.get("prompt"))
    limit = served.max_stop_strings
    if prompts is None:
        fields = check_fields(raw, with_stop_limit(COMPLETION_FIELDS, limit))
        prompts = _slow_prompts(fields.get("prompt"))
    else:
        fields = check_fields(raw, with_stop_limit(COMPLETION_FIELDS_WITHOUT_PROMPT, limit))
    if flag_field(fields, "stream") and flag_field(fields, "use_beam_search"):
        raise invalid("Streaming is not currently supported with beam search")
    check_model(fields, served)
    try:
        return _plan(raw, fields, prompts, headers, served)
    except ApiError as error:
        if error.late and flag_field(fields, "stream"):
            error.stream_kind = COMPLETION
        raise


def _check_request(raw: dict[str, Json], served: ServedModel) -> None:
    """The validators that look at the whole request, which come before those of its fields."""
    prompt = raw.get("prompt")
    limit = served.max_completion_prompts
    if isinstance(prompt, list) and len(prompt) > limit and not isinstance(prompt[0], int):
        raise invalid(
            f"prompt list length {len(prompt)} exceeds the maximum allowed count of {limit}. "
            "To increase this limit, set the VLLM_MAX_COMPLETION_PROMPTS environment variable.",
            "prompt",
        )
    if (prompt is None or prompt in ("", [])) and not raw.get("prompt_embeds"):
        message = "Either prompt or prompt_embeds must be provided and non-empty."
        raise invalid(message, "prompt")
    if _WHOLE_REQUEST.isdisjoint(raw):
        return
    sampling.check_stream_options(raw)
    _check_logprobs(raw)
    sampling.check_structured_outputs(raw, with_parameter=True)
    sampling.check_response_format(raw)
    sampling.check_cache_salt(raw)


def _check_logprobs(raw: dict[str, Json]) -> None:
    chosen = raw.get("logprob_token_ids")
    if chosen and raw.get("use_beam_search"):
        message = "`logprob_token_ids` is not supported with beam search."
        raise invalid(message, "logprob_token_ids")
    if raw.get("use_beam_search") and raw.get("echo") and raw.get("logprobs") is not None:
        raise invalid(
            "`echo` with `logprobs` is not supported with beam search because beam search does "
            "not compute prompt logprobs.",
            "echo",
        )
    if chosen and raw.get("echo") and raw.get("max_tokens") == 0:
        raise invalid(
            "`logprob_token_ids` is not supported when `echo=True` and `max_tokens=0` because no "
            "output tokens are generated.",
            "logprob_token_ids",
        )
    if chosen and raw.get("logprobs") is None:
        message = "when using `logprob_token_ids`, `logprobs` must be set."
        raise invalid(message, "logprob_token_ids")
    sampling.check_prompt_logprobs(raw, "logprobs")
    count = raw.get("logprobs")
    if isinstance(count, int | float) and count < 0 and count != -1:
        raise invalid("`logprobs` must be a positive value or -1.", "logprobs", count)


def _fast_prompts(prompt: Json) -> Prompts | None:
    """Prompts of the four usual forms, or None to have them checked item by item."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        return None
    first = prompt[0]
    if isinstance(first, int):
        ids = _fast_ids(prompt)
        return None if ids is None else [ids]
    if isinstance(first, str):
        texts = [item for item in prompt if isinstance(item, str)]
        return list(texts) if len(texts) == len(prompt) else None
    many = [_fast_ids(item) for item in prompt if isinstance(item, list)]
    found = [ids for ids in many if ids is not None]
    return list(found) if len(found) == len(prompt) else None


def _fast_ids(values: list[Json]) -> TokenIds | None:
    try:
        ids = np.frombuffer(array("q", cast("list[int]", values)), np.int64)
    except (TypeError, OverflowError):
        return None
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) > _MAX_ID):
        return None
    return ids.astype(np.uint32)


def _slow_prompts(prompt: Json) -> Prompts:
    """Prompts that passed the schema after conversion of some items."""
    if isinstance(prompt, str):
        return [prompt]
    items = prompt if isinstance(prompt, list) else []
    if not items or isinstance(items[0], int):
        return [_checked_ids(items)] if items else []
    return [item if isinstance(item, str) else _checked_ids(item) for item in items]


def _checked_ids(values: Json) -> TokenIds:
    ids = [value for value in values if isinstance(value, int)] if isinstance(values, list) else []
    if ids and max(ids) > _MAX_ID:
        raise invalid(f"Token id {max(ids)} is out of vocabulary")
    return np.array(ids, np.uint32)


def _plan(
    raw: dict[str, Json], fields: Fields, prompts: Prompts, headers: Headers, served: ServedModel
) -> Generation:
    if not _NEEDS_SUPPORT.isdisjoint(raw):
        _check_support(raw, fields)
    extras = _NO_EXTRAS if _EXTRAS.isdisjoint(fields) else _extras(fields, served)
    asked = optional_int_field(fields, "max_tokens")
    asked = DEFAULT_MAX_TOKENS if asked is None else asked
    echo = extras.echo
    prompt_only = echo and asked == 0
    limits = prompt_limits(fields, "max_tokens", asked, served)
    all_ids = [_ids(prompt, extras.add_special_tokens, limits, served) for prompt in prompts]
    n = extras.n
    rank = data_parallel_rank(headers, served)
    logprobs = extras.logprobs
    priority = request_priority(fields, headers)
    write = None if _SHAPED.isdisjoint(fields) else vllm_writer(fields, served)
    plans = []
    for i, (prompt, ids) in enumerate(zip(prompts, all_ids, strict=True)):
        max_tokens = 1 if prompt_only else effective_max_tokens(asked, len(ids), served)
        sampling.check_sampling(fields, n, max_tokens, served)
        sampling.check_against_model(fields, logprobs.top if logprobs else None, served)
        check_prompt_ids(ids, served, encoded=isinstance(prompt, str))
        resumable = not isinstance(prompt, str)
        plans += plan_sequences(
            ids,
            i,
            n,
            max_tokens,
            fields,
            priority,
            served,
            resumable=resumable,
            write=write,
            reads_cache=logprobs is None or logprobs.prompt is None,
            session_id=session_of(fields, headers) if served.keeps_tokens else None,
        )
    include_usage, continuous = sampling.wants_usage(fields, served)
    return_ids = extras.return_ids
    keep_ids = return_ids or echo or bool(logprobs and logprobs.prompt is not None)
    generation = Generation(
        id=f"cmpl-{base_request_id(fields, headers, served)}",
        kind=COMPLETION,
        model=model_name(fields, served),
        stream=flag_field(fields, "stream"),
        include_usage=include_usage,
        continuous_usage=continuous,
        stream_interval=stream_interval(fields, served),
        prompt_tokens=sum(len(ids) for ids in all_ids),
        sequences=tuple(plans),
        prompts=tuple(
            PromptText(
                len(ids),
                ids if keep_ids else None,
                _echo_text(prompt, ids, served) if echo and not return_ids else None,
            )
            for prompt, ids in zip(prompts, all_ids, strict=True)
        ),
        tokenizer=served.tokenizer,
        system_fingerprint=served.system_fingerprint,
        n=n,
        logprobs=logprobs,
        return_token_ids=return_ids,
        echo=echo,
        prompt_only=prompt_only,
        prompt_tokens_details=served.enable_prompt_tokens_details,
        frontier=raw.get("frontier") is True,
        actor=actor_of(raw.get("metadata")),
        data_parallel_rank=rank,
        weight_versions=flag_field(fields, "return_weight_versions"),
    )
    return with_transfer(generation, fields, headers, served.kv, served.new_id)


def _extras(fields: Fields, served: ServedModel) -> _Extras:
    return _Extras(
        int_field(fields, "n", 1),
        flag_field(fields, "add_special_tokens", True),
        _logprobs_plan(fields, served),
        flag_field(fields, "return_token_ids"),
        flag_field(fields, "echo"),
    )


def _check_support(raw: dict[str, Json], fields: Fields) -> None:
    if text_field(fields, "suffix"):
        raise ApiError(
            400,
            "suffix is only supported for models with FIM completion rendering",
            param="suffix",
        )
    if raw.get("prompt_embeds"):
        message = "You must set `--enable-prompt-embeds` to input `prompt_embeds`."
        raise invalid(message, "prompt_embeds")
    if flag_field(fields, "use_beam_search"):
        raise not_implemented("frontier_mock does not simulate beam search")


def _ids(
    prompt: str | TokenIds, add_special: bool, limits: PromptLimits, served: ServedModel
) -> TokenIds:
    if isinstance(prompt, str):
        return encode_prompt(prompt, add_special, limits, served)
    return truncate_prompt(prompt, limits)


def _echo_text(prompt: str | TokenIds, ids: TokenIds, served: ServedModel) -> str:
    return prompt if isinstance(prompt, str) else served.tokenizer.decode(ids)


def _logprobs_plan(fields: Fields, served: ServedModel) -> LogprobsPlan | None:
    top = optional_int_field(fields, "logprobs")
    prompt = optional_int_field(fields, "prompt_logprobs")
    if prompt is None and flag_field(fields, "echo"):
        prompt = top
    if top is None and prompt is None:
        return None
    as_ids = flag_field(fields, "return_tokens_as_token_ids", served.return_tokens_as_token_ids)
    return LogprobsPlan(top, ints_field(fields, "logprob_token_ids"), prompt, as_ids)
