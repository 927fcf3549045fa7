"""The `workload:` and `slo:` sections of a scenario, and where trace files are found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from frontier_mock.config.document import Value, type_word
from frontier_mock.config.errors import ConfigError, shown
from frontier_mock.config.keys import (
    REQUIRED,
    Key,
    Kind,
    Section,
    integer,
    number,
    one_of,
    open_section,
    optional,
    string,
    wrong,
)
from frontier_mock.report.specs import SloSpec
from frontier_mock.workload.readers import FORMATS
from frontier_mock.workload.specs import (
    BurstSpec,
    ClosedLoopSpec,
    Delay,
    ExponentialDelay,
    FixedDelay,
    FixedTokens,
    HistogramTokens,
    ImagesSpec,
    LognormalTokens,
    OpenLoopSpec,
    PromptSpec,
    SessionsSpec,
    TokenCount,
    TraceSpec,
    UniformTokens,
    WorkloadSpec,
)
from frontier_mock.workload.synth import CONVERSATION

T = TypeVar("T")

DATA_VARIABLE = "FRONTIER_MOCK_DATA"
"""Environment variable: a directory where traces are looked for last."""

MAX_TOKENS = 1 << 24
"""Longest prompt or output a scenario may name; ten times today's longest context."""

MAX_COUNT = 100_000_000
"""Most requests or sessions of one run."""


@dataclass(frozen=True, slots=True)
class TraceSearch:
    """Where relative trace paths start: the scenario's directory, the working one, the data one.

    With `must_exist` False a trace that is nowhere is no error: for commands that do not play it.
    """

    directories: tuple[Path, ...]
    must_exist: bool = True

    def find(self, value: Value, name: str) -> str:
        """The path of an existing file. Raises ConfigError naming every place looked at."""
        tried = []
        if name.startswith("synthetic:"):
            if name != CONVERSATION:
                raise value.error(f"got {shown(name)}; allowed: a file, or {CONVERSATION}")
            return name
        for directory in self.directories:
            path = directory / name
            try:
                if path.is_file():
                    return str(path)
            except (OSError, ValueError):
                continue
            tried.append(str(path))
        if not self.must_exist:
            return name
        places = ", ".join(dict.fromkeys(tried)) or name
        raise value.error(
            f"trace {shown(name)} not found; looked for {places} ({DATA_VARIABLE} names "
            "another directory)"
        )


def trace_search(
    directory: Path | None, environment: Mapping[str, str], must_exist: bool = True
) -> TraceSearch:
    """Search order for a scenario that lives in `directory` (None: in the library)."""
    places = [directory] if directory is not None else []
    places.append(Path())
    if environment.get(DATA_VARIABLE):
        places.append(Path(environment[DATA_VARIABLE]))
    return TraceSearch(tuple(places), must_exist)


def _checked(value: Value, make: Callable[..., T], *args: Any) -> T:
    """`make(*args)`, a ValueError of the spec told with the value's place."""
    try:
        return make(*args)
    except ValueError as error:
        raise value.error(str(error)) from None


def _tokens() -> Kind[TokenCount]:
    allowed = (
        "a whole number, {fixed: n}, {uniform: [low, high]}, "
        "{lognormal: {median, sigma, min, max}} or {histogram: [[low, high, weight], ...]}"
    )

    def read(value: Value) -> TokenCount:
        if not isinstance(value.data, dict):
            return FixedTokens(_plain_tokens(value, allowed))
        if len(value.data) != 1:
            raise wrong(value, allowed)
        ((name, entry),) = value.data.items()
        if name == "fixed":
            return FixedTokens(COUNT.read(entry))
        if name == "uniform":
            low, high = _row(entry, 2, "[low, high]")
            return _checked(entry, UniformTokens, COUNT.read(low), COUNT.read(high))
        if name == "lognormal":
            section = open_section(entry, LOGNORMAL_KEYS)
            figures = [section.get(key) for key in LOGNORMAL_KEYS]
            return _checked(entry, LognormalTokens, *figures)
        if name == "histogram":
            return _histogram(entry)
        raise value.error(f"unknown distribution {shown(name)}; allowed: {allowed}")

    return Kind(allowed, read)


def _plain_tokens(value: Value, allowed: str) -> int:
    data = value.data
    if isinstance(data, bool) or not isinstance(data, int) or not 1 <= data <= MAX_TOKENS:
        raise wrong(value, allowed)
    return data


def _histogram(value: Value) -> HistogramTokens:
    if not isinstance(value.data, list):
        raise wrong(value, "a list of [low, high, weight]")
    bins = []
    for item in value.data:
        low, high, weight = _row(item, 3, "[low, high, weight]")
        bins.append((COUNT.read(low), COUNT.read(high), number(0.0).read(weight)))
    return _checked(value, HistogramTokens, tuple(bins))


def _row(value: Value, length: int, form: str) -> Sequence[Value]:
    if not isinstance(value.data, list) or len(value.data) != length:
        raise wrong(value, form)
    return value.data


def _delay() -> Kind[Delay]:
    allowed = "seconds, or {exponential: mean seconds}"

    def read(value: Value) -> Delay:
        if not isinstance(value.data, dict):
            return FixedDelay(number(0.0).read(value))
        if list(value.data) != ["exponential"]:
            raise wrong(value, allowed)
        return ExponentialDelay(number(0.0, above=True).read(value.data["exponential"]))

    return Kind(allowed, read)


def _pacing() -> Kind[int | None]:
    allowed = "timestamps, sequential or {concurrency: N}"

    def read(value: Value) -> int | None:
        if value.data == "timestamps":
            return None
        if value.data == "sequential":
            return 1
        if isinstance(value.data, dict) and list(value.data) == ["concurrency"]:
            return integer(1, MAX_COUNT).read(value.data["concurrency"])
        raise wrong(value, allowed)

    return Kind(allowed, read)


COUNT = integer(1, MAX_TOKENS)
TOKENS = _tokens()
DELAY = _delay()

LOGNORMAL_KEYS: tuple[Key[Any], ...] = (
    Key("median", number(0.0, above=True), REQUIRED, "median, tokens"),
    Key("sigma", number(0.0, 20.0), REQUIRED, "standard deviation of the logarithm"),
    Key("min", COUNT, 1, "lower limit, tokens"),
    Key("max", COUNT, 1 << 20, "upper limit, tokens"),
)

INPUT_TOKENS = Key("input_tokens", TOKENS, REQUIRED, "prompt length, without the shared prefix")
OUTPUT_TOKENS = Key("output_tokens", TOKENS, REQUIRED, "tokens each request generates")
SHARED_PREFIX = Key(
    "shared_prefix_tokens", integer(0, MAX_TOKENS), 0, "a prefix common to all prompts, on top"
)
DISTINCT_PROMPTS = Key(
    "distinct_prompts",
    optional(integer(1, MAX_COUNT)),
    None,
    "prompts cycle through this many distinct ones; null: all distinct",
)
IMAGE_KEYS: tuple[Key[Any], ...] = (
    Key("count", integer(1, 999), 1, "images of a prompt"),
    Key("width", integer(1, 1 << 16), 1024, "pixels"),
    Key("height", integer(1, 1 << 16), 1024, "pixels"),
    Key("distinct", optional(integer(1, MAX_COUNT)), None, "different ones; null: all differ"),
)


def _images() -> Kind[ImagesSpec | None]:
    def read(value: Value) -> ImagesSpec | None:
        if value.data is None:
            return None
        section = open_section(value, IMAGE_KEYS)
        return ImagesSpec(*(section.get(key) for key in IMAGE_KEYS))

    return Kind("a mapping of count, width, height and distinct, or null", read)


IMAGES = Key("images", _images(), None, "at the beginning of each prompt, part of input_tokens")
PROMPT_KEYS = (INPUT_TOKENS, OUTPUT_TOKENS, SHARED_PREFIX, DISTINCT_PROMPTS, IMAGES)

KINDS = ("trace", "closed_loop", "poisson", "constant", "burst", "sessions")
KIND = Key("kind", one_of(*KINDS), REQUIRED, "what drives the requests")
NUM_REQUESTS = Key("num_requests", integer(1, MAX_COUNT), REQUIRED, "measured requests")
MAYBE_NUM_REQUESTS = Key(
    "num_requests", optional(integer(1, MAX_COUNT)), None, "end after this many requests"
)
WARMUP = Key(
    "warmup_requests", integer(0, MAX_COUNT), 0, "requests left out of the figures, run first"
)
CONCURRENCY = Key("concurrency", integer(1, MAX_COUNT), REQUIRED, "lanes: requests in flight")
THINK_TIME = Key("think_time_s", DELAY, FixedDelay(), "pause before a lane's next request")
RATE = Key("rate_per_s", number(0.0, above=True), REQUIRED, "arrivals per second")
DURATION = Key(
    "duration_s", optional(number(0.0, above=True)), None, "end with the last arrival before this"
)
MAYBE_CONCURRENCY = Key(
    "concurrency", optional(integer(1, MAX_COUNT)), None, "sessions alive at a time"
)
MAYBE_RATE = Key(
    "rate_per_s", optional(number(0.0, above=True)), None, "sessions begun per second (Poisson)"
)
NUM_SESSIONS = Key("num_sessions", integer(1, MAX_COUNT), REQUIRED, "conversations")
TURNS = Key("turns", TOKENS, REQUIRED, "turns of a conversation, a distribution like the lengths")
FIRST_INPUT = Key(
    "first_input_tokens", optional(TOKENS), None, "a session's first own input; null: input_tokens"
)
TOOL_TIME = Key("tool_time_s", DELAY, FixedDelay(), "pause of a turn that waits for a tool")
TOOL_FRACTION = Key("tool_fraction", number(0.0, 1.0), 0.0, "share of turns that wait for a tool")
TRACE = Key(
    "trace",
    string(),
    REQUIRED,
    "file; relative to the scenario, the working directory, then $FRONTIER_MOCK_DATA; "
    "or synthetic:conversation, made up from its statistics",
)
FORMAT = Key(
    "format", optional(one_of(*FORMATS)), None, "trace format; null: recognised from its contents"
)
START = Key("start_s", number(0.0), 0.0, "leave out what comes before this time of the trace")
TRACE_DURATION = Key(
    "duration_s", optional(number(0.0, above=True)), None, "play this much of the trace"
)
RATE_SCALE = Key("rate_scale", number(0.0, above=True), 1.0, "play the trace this much faster")
PACING = Key("pacing", _pacing(), None, "open loop at the trace's times, or closed loop")
JITTER = Key("jitter_s", number(0.0), 0.0, "spread arrivals by up to this; for coarse trace clocks")
ID_TOKENS = Key("id_tokens", COUNT, 512, "tokens behind one entry of a trace's hash_ids")
MAX_REQUESTS = Key(
    "max_requests", optional(integer(1, MAX_COUNT)), None, "keep the first so many rows"
)

KIND_KEYS: dict[str, tuple[Key[Any], ...]] = {
    "trace": (
        TRACE,
        FORMAT,
        PACING,
        START,
        TRACE_DURATION,
        RATE_SCALE,
        MAX_REQUESTS,
        JITTER,
        ID_TOKENS,
    ),
    "closed_loop": (CONCURRENCY, NUM_REQUESTS, WARMUP, THINK_TIME, *PROMPT_KEYS),
    "poisson": (RATE, MAYBE_NUM_REQUESTS, DURATION, WARMUP, *PROMPT_KEYS),
    "constant": (RATE, MAYBE_NUM_REQUESTS, DURATION, WARMUP, *PROMPT_KEYS),
    "burst": (NUM_REQUESTS, WARMUP, *PROMPT_KEYS),
    "sessions": (
        NUM_SESSIONS,
        TURNS,
        MAYBE_CONCURRENCY,
        MAYBE_RATE,
        FIRST_INPUT,
        THINK_TIME,
        TOOL_TIME,
        TOOL_FRACTION,
        *PROMPT_KEYS,
    ),
}
"""The keys of each kind, apart from `kind` itself."""

TTFT = Key("ttft_ms", optional(number(0.0, above=True)), None, "time to first token, milliseconds")
TPOT = Key("tpot_ms", optional(number(0.0, above=True)), None, "time per output token after it")
E2E = Key("e2e_ms", optional(number(0.0, above=True)), None, "whole request, milliseconds")
SLO_KEYS: tuple[Key[Any], ...] = (TTFT, TPOT, E2E)


def read_workload(value: Value, search: TraceSearch) -> WorkloadSpec:
    """The `workload:` section. Raises ConfigError."""
    if not isinstance(value.data, dict):
        raise value.error(f"expected a mapping, got {type_word(value)}")
    if "kind" not in value.data:
        raise value.error(f"key kind is missing ({KIND.kind.allowed})")
    kind = KIND.kind.read(value.data["kind"])
    section = open_section(value, (KIND, *KIND_KEYS[kind]))
    if kind == "trace":
        return _read_trace(section, search)
    prompts = _checked(value, PromptSpec, *(section.get(key) for key in PROMPT_KEYS))
    if kind == "closed_loop":
        keys = (CONCURRENCY, NUM_REQUESTS, WARMUP, THINK_TIME)
        return _checked(value, ClosedLoopSpec, prompts, *(section.get(key) for key in keys))
    if kind == "burst":
        burst = (section.get(NUM_REQUESTS), section.get(WARMUP))
        return _checked(value, BurstSpec, prompts, *burst)
    if kind == "sessions":
        return _read_sessions(section, prompts)
    return _checked(
        value,
        OpenLoopSpec,
        prompts,
        kind,
        section.get(RATE),
        section.get(MAYBE_NUM_REQUESTS),
        section.get(DURATION),
        section.get(WARMUP),
    )


def _read_sessions(section: Section, prompts: PromptSpec) -> SessionsSpec:
    return _checked(
        section.value,
        SessionsSpec,
        prompts,
        section.get(NUM_SESSIONS),
        section.get(TURNS),
        section.get(MAYBE_CONCURRENCY),
        section.get(MAYBE_RATE),
        section.get(FIRST_INPUT),
        section.get(THINK_TIME),
        section.get(TOOL_TIME),
        section.get(TOOL_FRACTION),
    )


def _read_trace(section: Section, search: TraceSearch) -> TraceSpec:
    name = section.get(TRACE)
    path = search.find(section.at("trace"), name)
    return _checked(
        section.value,
        TraceSpec,
        path,
        section.get(FORMAT),
        section.get(START),
        section.get(TRACE_DURATION),
        section.get(RATE_SCALE),
        section.get(PACING),
        section.get(JITTER),
        section.get(ID_TOKENS),
        section.get(MAX_REQUESTS),
    )


def read_slo(value: Value) -> SloSpec:
    """The `slo:` section. Raises ConfigError."""
    section = open_section(value, SLO_KEYS)
    return SloSpec(section.get(TTFT), section.get(TPOT), section.get(E2E))


def shorten(
    spec: WorkloadSpec, requests: int | None = None, duration_s: float | None = None
) -> WorkloadSpec:
    """The same workload with at most so many requests (or sessions), or of at most that length.

    Raises ConfigError for `duration_s` where a workload has no times to cut at.
    """
    if duration_s is not None:
        if not isinstance(spec, (TraceSpec, OpenLoopSpec)):
            raise ConfigError("duration: this workload has no arrival times to cut at")
        if spec.duration_s is None or duration_s < spec.duration_s:
            spec = replace(spec, duration_s=duration_s)
        if isinstance(spec, OpenLoopSpec):
            spec = replace(spec, num_requests=None)
    if requests is None:
        return spec
    match spec:
        case TraceSpec():
            return replace(spec, max_requests=min(requests, spec.max_requests or requests))
        case SessionsSpec():
            return replace(spec, num_sessions=min(requests, spec.num_sessions))
        case OpenLoopSpec():
            count = min(requests, spec.num_requests or requests)
            return replace(spec, num_requests=count, duration_s=None)
        case ClosedLoopSpec() | BurstSpec():
            return replace(spec, num_requests=min(requests, spec.num_requests))
