"""`sampling_params` of SGLang: the gate for its keys and types, then the checks on its values.

Keys, order and wording are those of SGLang 0.5.23: the gate is the schema `sglang.api.v1`, whose
texts are serde's; the checks are `SamplingParams.verify` and `normalize`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from frontier_mock.wire.fields import INT64_MAX, INT64_MIN
from frontier_mock.wire.sglang.errors import gate_error
from frontier_mock.wire.tokenizer import Json

GREEDY_BELOW = 1e-6
"""Temperatures below this mean greedy sampling (`_SAMPLING_EPS`)."""

TOP_K_ALL = 1 << 30
DEFAULT_MAX_NEW_TOKENS = 128
MAX_STOPS = 32
MAX_STOP_REGEX_BYTES = 256

_Gate = Callable[[Json], None]


def _shown(value: Json) -> str:
    """serde's words for a value it did not expect."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"boolean `{str(value).lower()}`"
    if isinstance(value, int):
        return f"integer `{value}`"
    if isinstance(value, float):
        return f"floating point `{value}`"
    if isinstance(value, str):
        return f'string "{value}"'
    return "sequence" if isinstance(value, list) else "map"


def _gate(expected: str, fits: Callable[[Json], bool]) -> _Gate:
    def check(value: Json) -> None:
        if not fits(value):
            raise gate_error(f"invalid type: {_shown(value)}, expected {expected}")

    return check


def _is_int(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_int = _gate("i64", _is_int)
_number = _gate("f64", lambda value: _is_int(value) or isinstance(value, float))
_flag = _gate("a boolean", lambda value: isinstance(value, bool))
_text = _gate("a string", lambda value: isinstance(value, str))
_list = _gate("a sequence", lambda value: isinstance(value, list))
_map = _gate("a map", lambda value: isinstance(value, dict))
_text_or_list = _gate(
    "a value or an array of values for StringOrList", lambda value: isinstance(value, str)
)


def _texts(value: Json) -> None:
    if isinstance(value, list):
        for item in value:
            _text(item)
    else:
        _text_or_list(value)


def _ints(value: Json) -> None:
    _list(value)
    for item in value if isinstance(value, list) else ():
        _int(item)


def _choices(value: Json) -> None:
    _list(value)
    for item in value if isinstance(value, list) else ():
        _text(item)


def _biases(value: Json) -> None:
    _map(value)
    for item in value.values() if isinstance(value, dict) else ():
        _number(item)


def _anything(value: Json) -> None:
    """The schema has no opinion."""


_WATERMARK: Mapping[str, _Gate] = {"enabled": _flag, "key": _int, "context_window": _int}


def _watermark(value: Json) -> None:
    _gate("struct WatermarkRequestConfig", lambda one: isinstance(one, dict))(value)
    _members(value, _WATERMARK)


_KEYS: Mapping[str, _Gate] = {
    "max_new_tokens": _int,
    "stop": _texts,
    "stop_token_ids": _ints,
    "stop_regex": _texts,
    "temperature": _number,
    "top_p": _number,
    "top_k": _int,
    "min_p": _number,
    "frequency_penalty": _number,
    "presence_penalty": _number,
    "repetition_penalty": _number,
    "min_new_tokens": _int,
    "n": _int,
    "json_schema": _text,
    "regex": _text,
    "ebnf": _text,
    "structural_tag": _text,
    "ignore_eos": _flag,
    "skip_special_tokens": _flag,
    "spaces_between_special_tokens": _flag,
    "no_stop_trim": _flag,
    "stream_interval": _int,
    "logit_bias": _biases,
    "sampling_seed": _int,
    "custom_params": _anything,
    "beam_width": _int,
    "watermark": _watermark,
    "choice": _choices,
}
"""Every key of `sampling_params`, in the schema's order, which its error text follows."""

GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag")
"""Kinds of constraint, of which a request may have one."""


def check_gate(value: Json) -> None:
    """Raise SglangError unless `value` is an object, or a list of them, that the schema knows."""
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        if not isinstance(entry, dict):
            wanted = "struct SamplingParams"
            if not isinstance(value, list):
                wanted = "a value or an array of values for SamplingParamsOrList"
            raise gate_error(f"invalid type: {_shown(entry)}, expected {wanted}")
        _members(entry, _KEYS)


def check_watermark_gate(value: Json) -> None:
    """The same for the request's own `watermark`."""
    for entry in value if isinstance(value, list) else [value]:
        if entry is not None:
            _watermark(entry)


def _members(value: Json, table: Mapping[str, _Gate]) -> None:
    for name, item in value.items() if isinstance(value, dict) else ():
        check = table.get(name)
        if check is None:
            listed = ", ".join(f"`{known}`" for known in table)
            raise gate_error(f"unknown field `{name}`, expected one of {listed}")
        if item is not None:
            check(item)


MAX_SEQUENCES = 16384
"""Most sequences of one request with n above 1: SGLang has no limit, and no such memory either."""


def check_samples(prompts: int, n: int) -> None:
    """Raise ValueError if n samples of each prompt are more than a server could hold."""
    if n > 1 and prompts * n > MAX_SEQUENCES:
        raise ValueError(f"n must be at most {max(1, MAX_SEQUENCES // prompts)}, got {n}.")


@dataclass(frozen=True, slots=True)
class Sampling:
    """What of `sampling_params` decides anything here. `max_new_tokens` None asks for all there is.

    `stream_interval` 0 leaves it to the server.
    """

    max_new_tokens: int | None = DEFAULT_MAX_NEW_TOKENS
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    no_stop_trim: bool = False
    n: int = 1
    seed: int | None = None
    stream_interval: int = 0
    shape: Mapping[str, Json] | None = None
    """What the output must look like, as `wire.structured` takes it."""


DEFAULT_SAMPLING = Sampling()


def _shape(given: Mapping[str, Json]) -> Mapping[str, Json] | None:
    """The constraint that is set, if any."""
    for name in (*GRAMMARS, "choice"):
        if given.get(name):
            return {name: given[name]}
    return None


def read_sampling(given: Mapping[str, Json], vocab_size: int) -> Sampling:
    """Check the values of gated `sampling_params` in SGLang's order; null means the default.

    Raises ValueError with SGLang's message for the first that it refuses.
    """
    if not given:
        return DEFAULT_SAMPLING
    stops = _strings(given.get("stop"))
    if len(stops) > MAX_STOPS:
        raise ValueError(f"at most {MAX_STOPS} stop strings are allowed, got {len(stops)}")
    _check_regexes(_strings(given.get("stop_regex")))
    _check_ranges(given)
    cap = given.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)
    least = _whole(given, "min_new_tokens", 0)
    if least < 0:
        raise ValueError(f"min_new_tokens must be in [0, max_new_tokens], got {least}.")
    if isinstance(cap, int):
        if cap < 0:
            raise ValueError(f"max_new_tokens must be at least 0, got {cap}.")
        if least > cap:
            raise ValueError(f"min_new_tokens must be in [0, max_new_tokens({cap})], got {least}.")
    _check_biases(given.get("logit_bias"), vocab_size)
    seed = given.get("sampling_seed")
    if isinstance(seed, int) and not INT64_MIN <= seed <= INT64_MAX:
        raise ValueError(f"sampling_seed must be in [-2**63, 2**63 - 1], got {seed}.")
    constraints = sum(bool(given.get(kind)) for kind in GRAMMARS)
    if constraints > 1:
        raise ValueError("Only one of json_schema, regex, ebnf, or structural_tag can be set.")
    ids = given.get("stop_token_ids")
    return Sampling(
        max_new_tokens=cap if isinstance(cap, int) else None,
        min_new_tokens=least,
        stop=tuple(stop for stop in stops if stop),
        stop_token_ids=tuple(i for i in ids if isinstance(i, int)) if isinstance(ids, list) else (),
        ignore_eos=given.get("ignore_eos") is True,
        no_stop_trim=given.get("no_stop_trim") is True,
        n=_whole(given, "n", 1),
        seed=seed if isinstance(seed, int) else None,
        stream_interval=max(0, _whole(given, "stream_interval", 0)),
        shape=_shape(given),
    )


def _check_ranges(given: Mapping[str, Json]) -> None:
    width = given.get("beam_width")
    if isinstance(width, int) and width < 1:
        raise ValueError(f"beam_width must be at least 1, got {width}.")
    temperature = _real(given, "temperature", 1.0)
    if not math.isfinite(temperature) or temperature < 0.0:
        raise ValueError(f"temperature must be a non-negative finite number, got {temperature}.")
    greedy = temperature < GREEDY_BELOW
    top_p = _real(given, "top_p", 1.0)
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}.")
    min_p = _real(given, "min_p", 0.0)
    if not 0.0 <= min_p <= 1.0:
        raise ValueError(f"min_p must be in [0, 1], got {min_p}.")
    top_k = 1 if greedy else _whole(given, "top_k", TOP_K_ALL)
    if top_k < 1 and top_k != -1:
        raise ValueError(f"top_k must be -1 (disable) or at least 1, got {top_k}.")
    for name in ("frequency_penalty", "presence_penalty"):
        penalty = _real(given, name, 0.0)
        if not -2.0 <= penalty <= 2.0:
            raise ValueError(f"{name} must be in [-2, 2], got {penalty}.")
    repetition = _real(given, "repetition_penalty", 1.0)
    if not 0.0 < repetition <= 2.0:
        raise ValueError(
            f"repetition_penalty must be in (0, 2] (1.0 = no penalty), got {repetition}."
        )


def _check_regexes(patterns: list[str]) -> None:
    if len(patterns) > MAX_STOPS:
        raise ValueError(
            f"at most {MAX_STOPS} stop_regex patterns are allowed, got {len(patterns)}"
        )
    for pattern in patterns:
        size = len(pattern.encode("utf-8", "surrogatepass"))
        if size > MAX_STOP_REGEX_BYTES:
            raise ValueError(
                f"stop_regex is {size} bytes, over the {MAX_STOP_REGEX_BYTES}-byte limit"
            )


def _check_biases(biases: Json, vocab_size: int) -> None:
    for key in biases if isinstance(biases, dict) else ():
        # int() refuses what is no number in the words SGLang passes on.
        if not 0 <= int(key) < vocab_size:
            raise ValueError(f"logit_bias must has keys in [0, {vocab_size - 1}], got {key}.")


def _strings(value: Json) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _real(given: Mapping[str, Json], name: str, default: float) -> float:
    value = given.get(name)
    return value if isinstance(value, int | float) else default


def _whole(given: Mapping[str, Json], name: str, default: int) -> int:
    value = given.get(name)
    return value if isinstance(value, int) else default
