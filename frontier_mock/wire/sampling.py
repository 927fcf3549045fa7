"""The request fields that chat and completions share, and vLLM's checks on their values.

Order and wording are those of `SamplingParams` in vLLM 0.33: the first violated rule answers.
"""

import math

from frontier_mock.wire.errors import ApiError, invalid
from frontier_mock.wire.fields import (
    Fields,
    flag_field,
    float_field,
    int_field,
    ints_field,
    optional_int_field,
    strings_field,
)
from frontier_mock.wire.schema import CONSTRAINTS
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
_BOUNDED = frozenset(("min_tokens", "stop", "bad_words"))
_VOCABULARY_BOUND = ("logprob_token_ids", "logit_bias", "stop_token_ids", "allowed_token_ids")
_MODEL_BOUND = frozenset((*_VOCABULARY_BOUND, "prompt_logprobs"))


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
    if constraints is None:
        return 0
    if not isinstance(constraints, dict):
        # vLLM 0.33 asks it for its members before it knows that it has any, and fails.
        message = f"'{type(constraints).__name__}' object has no attribute 'get'"
        raise ApiError(500, message, "InternalServerError")
    count = sum(constraints.get(kind) is not None for kind in CONSTRAINTS[:3])
    if count > 1:
        raise invalid(
            "You can only use one kind of constraints for structured outputs "
            "('json', 'regex' or 'choice').",
            "structured_outputs" if with_parameter else None,
        )
    return count


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
    if not _BOUNDED.isdisjoint(fields):
        _check_bounds(fields, max_tokens)
    if n > 1 and float_field(fields, "temperature", 1.0) < GREEDY_BELOW:
        raise invalid(f"n must be 1 when using greedy sampling, got {n}.")


def _check_bounds(fields: Fields, max_tokens: int) -> None:
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
