"""The request fields that chat and completions share, and vLLM's checks on their values.

Order and wording are those of `SamplingParams` in vLLM 0.33: the first violated rule answers.
"""

import math
from collections.abc import Mapping

from frontier_mock.wire.errors import invalid
from frontier_mock.wire.fields import (
    INT64_MAX,
    INT64_MIN,
    Check,
    Fields,
    boolean,
    flag_field,
    float_field,
    int_field,
    integer,
    ints_field,
    list_of,
    literal,
    mapping,
    mapping_of,
    model,
    nullable,
    number,
    optional_int_field,
    string,
    strings_field,
    union,
)
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.tokenizer import Json

GREEDY_BELOW = 1e-5
"""Temperatures below this mean greedy sampling (`_SAMPLING_EPS`)."""

MAX_LOGPROB_TOKEN_IDS = 128
_MAX_SALT_CHARS = 128
_SALT_FORBIDDEN = frozenset("@/\\\0")
# Most requests have none of these, and skip the checks that look at them.
_DISTRIBUTION = frozenset(
    (
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
    )
)
_VOCABULARY_BOUND = ("logprob_token_ids", "logit_bias", "stop_token_ids", "allowed_token_ids")
_MODEL_BOUND = frozenset((*_VOCABULARY_BOUND, "prompt_logprobs"))
_CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")

_INT = integer()
_OPTIONAL_INT = nullable(_INT)
_OPTIONAL_NUMBER = nullable(number)
_OPTIONAL_STRING = nullable(string)
_OPTIONAL_INTS = nullable(list_of(_INT))

STREAM_OPTIONS = nullable(
    model(
        {"include_usage": nullable(boolean), "continuous_usage_stats": nullable(boolean)},
        "StreamOptions",
    )
)
RESPONSE_FORMAT = nullable(
    model(
        {"type": literal("text", "json_object", "json_schema", "structural_tag")},
        "ResponseFormat",
        ("type",),
    )
)


def stop_field(max_stop_strings: int) -> Check:
    """`stop`: null, a string, or a list of at most `max_stop_strings`."""
    return nullable(union(string, list_of(string, max_stop_strings)))


COMMON_FIELDS: Mapping[str, Check] = {
    "model": _OPTIONAL_STRING,
    "frequency_penalty": _OPTIONAL_NUMBER,
    "logit_bias": nullable(mapping_of(number)),
    "presence_penalty": _OPTIONAL_NUMBER,
    "response_format": RESPONSE_FORMAT,
    "seed": nullable(integer(INT64_MIN, INT64_MAX)),
    "stop": stop_field(4),
    "stream": nullable(boolean),
    "stream_options": STREAM_OPTIONS,
    "temperature": _OPTIONAL_NUMBER,
    "top_p": _OPTIONAL_NUMBER,
    "user": _OPTIONAL_STRING,
    "use_beam_search": boolean,
    "top_k": _OPTIONAL_INT,
    "min_p": _OPTIONAL_NUMBER,
    "repetition_penalty": _OPTIONAL_NUMBER,
    "watermarking": nullable(boolean),
    "length_penalty": number,
    "stop_token_ids": _OPTIONAL_INTS,
    "include_stop_str_in_output": boolean,
    "ignore_eos": boolean,
    "min_tokens": _INT,
    "skip_special_tokens": nullable(boolean),
    "spaces_between_special_tokens": boolean,
    "truncate_prompt_tokens": nullable(integer(-1, INT64_MAX)),
    "truncation_side": nullable(literal("left", "right")),
    "prompt_logprobs": _OPTIONAL_INT,
    "logprob_token_ids": _OPTIONAL_INTS,
    "allowed_token_ids": _OPTIONAL_INTS,
    "bad_words": list_of(string),
    "structured_outputs": nullable(mapping),
    "priority": integer(INT64_MIN, INT64_MAX),
    "request_id": string,
    "session_id": _OPTIONAL_STRING,
    "return_tokens_as_token_ids": nullable(boolean),
    "return_token_ids": nullable(boolean),
    "return_weight_versions": boolean,
    "routed_experts_prompt_start": integer(0),
    "cache_salt": _OPTIONAL_STRING,
    "kv_transfer_params": nullable(mapping),
    "ec_transfer_params": nullable(mapping),
    "vllm_xargs": nullable(mapping),
    "repetition_detection": nullable(mapping),
    "stream_interval": nullable(integer(1)),
}
"""Checks of the fields both routes accept (vLLM 0.33 `protocol.py` of each)."""


def check_cache_salt(body: dict[str, Json]) -> None:
    """Raise ApiError unless the salt is absent or safe to hand to cache backends."""
    salt = body.get("cache_salt")
    if salt is None:
        return
    if not isinstance(salt, str) or not salt:
        message = "Parameter 'cache_salt' must be a non-empty string if provided."
        raise invalid(message, "cache_salt")
    if len(salt) > _MAX_SALT_CHARS or not _SALT_FORBIDDEN.isdisjoint(salt):
        raise invalid(
            "Parameter 'cache_salt' must be at most 128 characters and must "
            "not contain '@', '/', '\\\\', or NUL.",
            "cache_salt",
        )


def check_response_format(body: dict[str, Json]) -> None:
    """Raise ApiError for json_schema without a schema."""
    response_format = body.get("response_format")
    if (
        isinstance(response_format, dict)
        and response_format.get("type") == "json_schema"
        and response_format.get("json_schema") is None
    ):
        raise invalid(
            "When response_format type is 'json_schema', the 'json_schema' field must be provided.",
            "response_format",
        )


def check_stream_options(body: dict[str, Json]) -> None:
    """Raise ApiError for stream options without a stream."""
    if body.get("stream_options") and not body.get("stream"):
        message = "Stream options can only be defined when `stream=True`."
        raise invalid(message, "stream_options")


def check_prompt_logprobs(body: dict[str, Json], sample_field: str) -> None:
    """Raise ApiError for logprobs counts that are no numbers, or negative.

    `sample_field` is the route's own count: `logprobs` or `top_logprobs`.
    """
    for name in ("prompt_logprobs", sample_field):
        value = body.get(name)
        if value is not None and not isinstance(value, int | float):
            raise invalid(f"`{name}` must be an integer.", name, value)
    count = body.get("prompt_logprobs")
    if not isinstance(count, int | float):
        return
    if body.get("stream") and (count > 0 or count == -1):
        message = "`prompt_logprobs` are not available when `stream=True`."
        raise invalid(message, "prompt_logprobs")
    if count < 0 and count != -1:
        message = "`prompt_logprobs` must be a positive value or -1."
        raise invalid(message, "prompt_logprobs", count)


def check_structured_outputs(body: dict[str, Json], with_parameter: bool) -> int:
    """Raise ApiError for more than one constraint; returns how many of the first three are set."""
    constraints = body.get("structured_outputs")
    if not isinstance(constraints, dict):
        return 0
    count = sum(constraints.get(kind) is not None for kind in _CONSTRAINTS[:3])
    if count > 1:
        raise invalid(
            "You can only use one kind of constraints for structured outputs "
            "('json', 'regex' or 'choice').",
            "structured_outputs" if with_parameter else None,
        )
    _require_one_constraint(constraints)
    return count


def _require_one_constraint(constraints: dict[str, Json]) -> None:
    total = sum(constraints.get(kind) is not None for kind in _CONSTRAINTS)
    if total == 1:
        return
    state: dict[str, Json] = {kind: constraints.get(kind) for kind in _CONSTRAINTS[:5]}
    state["disable_any_whitespace"] = constraints.get("disable_any_whitespace", False)
    state["disable_additional_properties"] = constraints.get("disable_additional_properties", False)
    state["whitespace_pattern"] = constraints.get("whitespace_pattern")
    state["structural_tag"] = constraints.get("structural_tag")
    state["_backend"] = None
    state["_backend_was_auto"] = False
    rule, found = ("can only", "multiple") if total else ("must", "none")
    raise invalid(
        f"You {rule} use one kind of structured outputs constraint but {found} are specified: "
        f"{state}"
    )


def check_sampling(fields: Fields, n: int, max_tokens: int, served: ServedModel) -> None:
    """Raise ApiError for the first value that vLLM's `SamplingParams` would refuse.

    `max_tokens` is the effective cap, after clamping to the context.
    """
    if n < 1:
        raise invalid(f"n must be at least 1, got {n}.")
    if n > served.max_n_sequences:
        raise invalid(
            f"n must be at most {served.max_n_sequences}, got {n}. To increase this limit, set the "
            "VLLM_MAX_N_SEQUENCES environment variable."
        )
    if not _DISTRIBUTION.isdisjoint(fields):
        _check_distribution(fields)
    if max_tokens < 1:
        message = f"max_tokens must be at least 1, got {max_tokens}."
        raise invalid(message, "max_tokens", max_tokens)
    min_tokens = int_field(fields, "min_tokens", 0)
    if min_tokens < 0:
        raise invalid(f"min_tokens must be greater than or equal to 0, got {min_tokens}.")
    if min_tokens > max_tokens:
        raise invalid(
            f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {min_tokens}."
        )
    if "" in strings_field(fields, "stop"):
        raise invalid("stop cannot contain an empty string.")
    if "" in (bad_words := strings_field(fields, "bad_words")):
        raise invalid(f"bad_words cannot contain an empty string. Got bad_words={list(bad_words)}")
    if n > 1 and float_field(fields, "temperature", 1.0) < GREEDY_BELOW:
        raise invalid(f"n must be 1 when using greedy sampling, got {n}.")


def _check_distribution(fields: Fields) -> None:
    for name in ("presence_penalty", "frequency_penalty"):
        penalty = float_field(fields, name, 0.0)
        if not -2.0 <= penalty <= 2.0:
            raise invalid(f"{name} must be in [-2, 2], got {penalty}.")
    repetition = float_field(fields, "repetition_penalty", 1.0)
    if not math.isfinite(repetition):
        raise invalid(f"repetition_penalty must be a finite number, got {repetition}.")
    if repetition <= 0.0:
        raise invalid(f"repetition_penalty must be greater than zero, got {repetition}.")
    _check_temperature(float_field(fields, "temperature", 1.0))
    top_p = float_field(fields, "top_p", 1.0)
    if not 0.0 < top_p <= 1.0:
        raise invalid(f"top_p must be in (0, 1], got {top_p}.", "top_p", top_p)
    top_k = int_field(fields, "top_k", 0)
    if top_k < -1:
        raise invalid(f"top_k must be 0 (disable), or at least 1, got {top_k}.")
    min_p = float_field(fields, "min_p", 0.0)
    if not 0.0 <= min_p <= 1.0:
        raise invalid(f"min_p must be in [0, 1], got {min_p}.")


def _check_temperature(temperature: float) -> None:
    if not math.isfinite(temperature):
        rule = "a finite number"
    elif temperature < 0.0:
        rule = "non-negative"
    elif temperature > 2.0:
        rule = "in [0, 2]"
    else:
        return
    message = f"temperature must be {rule}, got {temperature}."
    raise invalid(message, "temperature", temperature)


def check_against_model(fields: Fields, logprobs: int | None, served: ServedModel) -> None:
    """Raise a late ApiError for what only the engine's own checks refuse: vocabulary, logprobs."""
    if logprobs is None and _MODEL_BOUND.isdisjoint(fields):
        return
    vocab_size = served.model_vocab_size
    limit = vocab_size if served.max_logprobs == -1 else served.max_logprobs
    _check_logprobs_count("sample", "logprobs", logprobs, limit, vocab_size)
    chosen = ints_field(fields, "logprob_token_ids")
    if len(chosen) > MAX_LOGPROB_TOKEN_IDS:
        raise invalid(
            f"Requested logprob_token_ids of length {len(chosen)}, "
            f"which is greater than max allowed: {MAX_LOGPROB_TOKEN_IDS}",
            "logprob_token_ids",
            len(chosen),
            late=True,
        )
    for name in _VOCABULARY_BOUND:
        _check_vocabulary(fields, name, vocab_size)
    prompt_count = optional_int_field(fields, "prompt_logprobs")
    _check_logprobs_count("prompt", "prompt_logprobs", prompt_count, limit, vocab_size)


def _check_logprobs_count(
    what: str, name: str, count: int | None, limit: int, vocab_size: int
) -> None:
    if count is None:
        return
    asked = vocab_size if count == -1 else count
    if asked > limit:
        raise invalid(
            f"Requested {what} logprobs of {asked}, which is greater than max allowed: {limit}",
            name,
            asked,
            late=True,
        )


def _check_vocabulary(fields: Fields, name: str, vocab_size: int) -> None:
    value = fields.get(name)
    if value is None:
        return
    if isinstance(value, dict):
        ids = bias_token_ids(value)
    else:
        ids = list(ints_field(fields, name))
        if name == "allowed_token_ids" and not ids:
            raise invalid("allowed_token_ids is not None and empty!", name, [], late=True)
    outside = [token_id for token_id in ids if not 0 <= token_id < vocab_size]
    if outside:
        raise invalid(
            f"token_id(s) {outside} in {name} contain out-of-vocab token ids. "
            f"Vocabulary size: {vocab_size}",
            name,
            outside,
            late=True,
        )


def bias_token_ids(biases: dict[str, Json]) -> list[int]:
    """Keys of `logit_bias` as token ids; raises ApiError naming those that are not integers."""
    ids, wrong = [], []
    for key in biases:
        try:
            ids.append(int(key))
        except ValueError:
            wrong.append(key)
    if wrong:
        raise invalid(
            f"logit_bias contains key(s) that cannot be converted to integer token IDs: {wrong!r}",
            "logit_bias",
            wrong,
        )
    return ids


def wants_usage(fields: Fields, served: ServedModel) -> tuple[bool, bool]:
    """(final usage chunk, usage in every chunk) of a stream."""
    if served.enable_force_include_usage:
        return True, True
    options = fields.get("stream_options")
    if not isinstance(options, dict):
        return False, False
    include = flag_field(options, "include_usage")
    return include, include and flag_field(options, "continuous_usage_stats")
