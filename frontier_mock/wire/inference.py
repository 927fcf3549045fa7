"""POST /inference/v1/generate: token ids in, token ids out, with vLLM 0.33's checks in its order.

What `sampling_params` holds is vLLM's SamplingParams under its own names, most of which the OpenAI
routes have too; unlike there a missing `max_tokens` means the room left in the context.
"""

from collections.abc import Mapping

import numpy as np

from frontier_mock.wire import sampling
from frontier_mock.wire.errors import ApiError, Loc, Problem, invalid, schema_error
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
    ints_field,
    list_of,
    literal,
    load_object,
    mapping,
    mapping_of,
    model,
    nullable,
    number,
    optional_int_field,
    string,
    text_field,
    union,
)
from frontier_mock.wire.generation import INFERENCE, Generation, LogprobsPlan, PromptText
from frontier_mock.wire.kv_transfer import with_transfer
from frontier_mock.wire.plan import (
    Headers,
    actor_of,
    base_request_id,
    check_model,
    check_prompt_ids,
    data_parallel_rank,
    effective_max_tokens,
    model_name,
    plan_sequences,
    stream_interval,
)
from frontier_mock.wire.schema import SHARED_FIELDS
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.structured_vllm import vllm_writer
from frontier_mock.wire.tokenizer import Json, TokenIds

_MAX_ID = 2**32 - 1
_MAX_SALT_CHARS = 1024
_INT = integer()
_SAMPLING: Mapping[str, Check] = {
    "n": _INT,
    "presence_penalty": number,
    "frequency_penalty": number,
    "repetition_penalty": number,
    "temperature": number,
    "watermarking": nullable(boolean),
    "top_p": number,
    "top_k": _INT,
    "min_p": number,
    "seed": nullable(_INT),
    "stop": nullable(union(string, list_of(string))),
    "stop_token_ids": nullable(list_of(_INT)),
    "ignore_eos": boolean,
    "max_tokens": nullable(_INT),
    "min_tokens": _INT,
    "logprobs": nullable(_INT),
    "prompt_logprobs": nullable(_INT),
    "logprob_token_ids": nullable(list_of(_INT)),
    "flat_logprobs": boolean,
    "detokenize": boolean,
    "skip_special_tokens": boolean,
    "spaces_between_special_tokens": boolean,
    "include_stop_str_in_output": boolean,
    "stream_interval": nullable(_INT),
    "structured_outputs": SHARED_FIELDS["structured_outputs"],
    "logit_bias": nullable(mapping_of(number)),
    "allowed_token_ids": nullable(list_of(_INT)),
    "extra_args": nullable(mapping),
    "bad_words": nullable(list_of(string)),
    "skip_reading_prefix_cache": nullable(boolean),
    "trace_decode_token_ids": nullable(list_of(integer(None, _MAX_ID))),
}


def _token_ids(value: Json, loc: Loc, problems: list[Problem]) -> Json:
    """At least one id, none negative."""
    known = len(problems)
    checked = list_of(_INT)(value, loc, problems)
    if len(problems) > known or not isinstance(checked, list):
        return checked
    if not checked:
        message = "List should have at least 1 item after validation, not 0"
        context: dict[str, Json] = {"field_type": "List", "min_length": 1, "actual_length": 0}
        problems.append(Problem("too_short", loc, message, value, context))
    elif any(isinstance(item, int) and item < 0 for item in checked):
        message = "Value error, token_ids must not contain negative values"
        context = {"error": {}}
        problems.append(Problem("value_error", loc, message, value, context))
    return checked


_FIELDS: Mapping[str, Check] = {
    "request_id": string,
    "token_ids": _token_ids,
    "sampling_params": model(_SAMPLING),
    "model": nullable(string),
    "reasoning_ended": nullable(boolean),
    "reasoning_parser_kwargs": nullable(mapping),
    "return_token_ids": nullable(boolean),
    "output_mode": literal("tokens", "text", "derender"),
    "parse_context": nullable(mapping),
    "stream": nullable(boolean),
    "stream_options": SHARED_FIELDS["stream_options"],
    "cache_salt": nullable(string),
    "priority": integer(INT64_MIN, INT64_MAX),
    "kv_transfer_params": nullable(mapping),
    "ec_transfer_params": nullable(mapping),
}


def parse_inference(body: bytes, headers: Headers, served: ServedModel) -> Generation:
    """The generation a token-in request asks for. Raises ApiError with vLLM's answer if bad."""
    raw = load_object(body)
    sampling.check_cache_salt(raw)
    fields = check_fields(raw, _FIELDS, ("token_ids", "sampling_params"))
    params = fields["sampling_params"]
    wishes: Fields = dict(params) if isinstance(params, dict) else {}
    n = int_field(wishes, "n", 1)
    mode = text_field(fields, "output_mode") or "tokens"
    _check_mode(mode, fields, wishes)
    asked = optional_int_field(wishes, "max_tokens")
    sampling.check_sampling(wishes, n, 1 if asked is None else asked, served)
    check_model(fields, served)
    _check_support(mode, n, fields, wishes, served)
    ids = _ids(fields["token_ids"])
    _check_trace(wishes, n)
    try:
        return _plan(raw, fields, wishes, ids, headers, served)
    except ApiError as error:
        if error.late and flag_field(fields, "stream"):
            error.stream_kind = INFERENCE
        raise


def _check_trace(wishes: Fields, n: int) -> None:
    """A dictated output stands alone (`SamplingParams.verify`)."""
    dictated = wishes.get("trace_decode_token_ids")
    if dictated is None:
        return
    ids = ints_field(wishes, "trace_decode_token_ids")
    if not ids:
        raise ApiError(400, "trace_decode_token_ids must be a non-empty list.")
    if n != 1:
        raise ApiError(400, "trace_decode_token_ids requires n=1.")
    if min(ids) < 0:
        raise ApiError(400, "trace_decode_token_ids must contain non-negative integers.")
    for name in ("prompt_logprobs", "structured_outputs"):
        if wishes.get(name) is not None:
            raise ApiError(400, f"trace_decode_token_ids is not supported with {name}.")


def _check_mode(mode: str, fields: Fields, wishes: Fields) -> None:
    if mode != "tokens" and not flag_field(wishes, "detokenize", True):
        message = (
            f"Value error, output_mode='{mode}' requires sampling_params.detokenize to be true"
        )
        raise schema_error([Problem("value_error", ("body",), message, fields, {"error": {}})])


def _check_support(mode: str, n: int, fields: Fields, wishes: Fields, served: ServedModel) -> None:
    most = served.deployment.max_num_seqs
    if n > most:
        raise ApiError(
            400,
            f"sampling_params.n must be at most the server's max_num_seqs ({most}), got {n}.",
        )
    if wishes.get("trace_decode_token_ids") and not served.deployment.trace_replay:
        raise invalid(
            "trace_decode_token_ids is set but trace replay is not enabled. Start the engine with "
            "--enable-trace-replay to use it.",
            late=True,
        )
    if served.deployment.tokens_only:
        if wishes.get("stop"):
            raise ApiError(
                400,
                "stop strings are not supported on a --tokens-only server because detokenization "
                "is disabled. Check stop strings on the coordinator, or use stop_token_ids.",
            )
        if mode != "tokens":
            raise ApiError(
                400,
                f"output_mode='{mode}' requires a tokenizer, but this server does not load one "
                "(--tokens-only or --skip-tokenizer-init). Send the request to a server that "
                "loads a tokenizer, or use output_mode='tokens'.",
            )
    if mode == "derender" and flag_field(fields, "stream"):
        raise ApiError(400, "output_mode='derender' does not support stream=true.")


def _ids(values: Json) -> TokenIds:
    ids = [value for value in values if isinstance(value, int)] if isinstance(values, list) else []
    if max(ids) > _MAX_ID:
        raise invalid(f"Token id {max(ids)} is out of vocabulary", late=True)
    return np.array(ids, np.uint32)


def _check_length(num_tokens: int, limit: int) -> None:
    """The engine's own words for a prompt that leaves no room (`_validate_prompt_len`)."""
    advice = "Make sure that `max_model_len` is no smaller than the number of text tokens"
    if num_tokens > limit:
        raise invalid(
            f"The decoder prompt (length {num_tokens}) is longer than the maximum model length of "
            f"{limit}. {advice}.",
            late=True,
        )
    if num_tokens == limit:
        raise invalid(
            f"The decoder prompt (length {num_tokens}) plus the number of requested output tokens "
            f"(at least 1) is longer than the maximum model length of {limit}. {advice} "
            "(prompt + requested output tokens).",
            late=True,
        )


def _plan(
    raw: dict[str, Json],
    fields: Fields,
    wishes: Fields,
    ids: TokenIds,
    headers: Headers,
    served: ServedModel,
) -> Generation:
    _check_length(len(ids), served.max_model_len)
    asked = optional_int_field(wishes, "max_tokens")
    room = served.max_model_len - len(ids)
    max_tokens = effective_max_tokens(None, len(ids), served) if asked is None else min(asked, room)
    logprobs = _logprobs(wishes)
    rank = data_parallel_rank(headers, served)
    sampling.check_against_model(wishes, logprobs.top if logprobs else None, served)
    check_prompt_ids(ids, served, encoded=False)
    for name in ("cache_salt", "model"):
        if name in fields:
            wishes[name] = fields[name]
    priority = int_field(fields, "priority", 0)
    n = int_field(wishes, "n", 1)
    write = vllm_writer(wishes, served) if wishes.get("structured_outputs") else None
    dictated = ints_field(wishes, "trace_decode_token_ids")
    if dictated:
        check_prompt_ids(np.array(dictated, np.uint32), served, encoded=False)
        max_tokens = min(max_tokens, len(dictated))
    plans = plan_sequences(
        ids,
        0,
        n,
        max_tokens,
        wishes,
        priority,
        served,
        resumable=True,
        write=write,
        dictated=dictated,
        reads_cache=not flag_field(
            wishes, "skip_reading_prefix_cache", bool(logprobs and logprobs.prompt is not None)
        ),
    )
    include_usage, continuous = sampling.wants_usage(fields, served)
    return_ids = flag_field(fields, "return_token_ids")
    keep_ids = return_ids or bool(logprobs and logprobs.prompt is not None)
    generation = Generation(
        id=f"generate-tokens-{base_request_id(fields, headers, served)}",
        kind=INFERENCE,
        model=model_name(fields, served),
        stream=flag_field(fields, "stream"),
        include_usage=include_usage,
        continuous_usage=continuous,
        stream_interval=stream_interval(wishes, served),
        prompt_tokens=len(ids),
        sequences=tuple(plans),
        prompts=(PromptText(len(ids), ids if keep_ids else None, None),),
        tokenizer=served.tokenizer,
        system_fingerprint=None,
        n=n,
        logprobs=logprobs,
        return_token_ids=return_ids,
        prompt_tokens_details=served.enable_prompt_tokens_details,
        frontier=raw.get("frontier") is True,
        actor=actor_of(raw.get("metadata")),
        data_parallel_rank=rank,
        weight_versions=True,
        output_mode=text_field(fields, "output_mode") or "tokens",
    )
    return with_transfer(generation, fields, headers, served.kv, served.new_id)


def _logprobs(wishes: Fields) -> LogprobsPlan | None:
    top = optional_int_field(wishes, "logprobs")
    prompt = optional_int_field(wishes, "prompt_logprobs")
    if top is None and prompt is None:
        return None
    return LogprobsPlan(top, ints_field(wishes, "logprob_token_ids"), prompt)
