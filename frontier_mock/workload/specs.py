"""What a scenario's `workload:` section says, fully resolved: one frozen type per `kind`.

`config` turns YAML into these and complains about what it cannot; `workload.build` turns these into
a `Source`. Values are checked here, so that no other way of making one can get past the checks:
a bad one raises ValueError with a message that names the field.
"""

from dataclasses import dataclass, field


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, slots=True)
class FixedTokens:
    """Always `tokens`. YAML: a bare number, or `{fixed: 1024}`."""

    tokens: int

    def __post_init__(self) -> None:
        _require(self.tokens >= 1, f"fixed: must be at least 1, not {self.tokens}")


@dataclass(frozen=True, slots=True)
class UniformTokens:
    """Uniform over the integers low..high, both included. YAML: `{uniform: [819, 1024]}`."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _require(
            1 <= self.low <= self.high,
            f"uniform: needs 1 <= low <= high, not [{self.low}, {self.high}]",
        )


@dataclass(frozen=True, slots=True)
class LognormalTokens:
    """exp(Normal(ln median, sigma)), rounded, then limited to low..high.

    YAML: `{lognormal: {median: 1020, sigma: 1.1, min: 1, max: 32768}}`.
    """

    median: float
    sigma: float
    low: int = 1
    high: int = 1 << 20

    def __post_init__(self) -> None:
        _require(self.median > 0, f"lognormal.median: must be positive, not {self.median}")
        _require(self.sigma >= 0, f"lognormal.sigma: must not be negative, not {self.sigma}")
        _require(
            1 <= self.low <= self.high,
            f"lognormal: needs 1 <= min <= max, not {self.low} and {self.high}",
        )


@dataclass(frozen=True, slots=True)
class HistogramTokens:
    """Bins (low, high, weight): a bin by its weight, then uniform over low..high.

    YAML: `{histogram: [[1, 128, 0.7], [129, 2048, 0.3]]}`; a single value is `[v, v, w]`. Weights
    need not sum to 1.
    """

    bins: tuple[tuple[int, int, float], ...]

    def __post_init__(self) -> None:
        _require(bool(self.bins), "histogram: needs at least one bin")
        for low, high, weight in self.bins:
            _require(
                1 <= low <= high and weight >= 0,
                f"histogram: needs 1 <= low <= high and weight >= 0, not [{low}, {high}, {weight}]",
            )
        _require(sum(weight for _, _, weight in self.bins) > 0, "histogram: all weights are zero")


TokenCount = FixedTokens | UniformTokens | LognormalTokens | HistogramTokens
"""A distribution of token counts."""


@dataclass(frozen=True, slots=True)
class FixedDelay:
    """Always `seconds`. YAML: a bare number."""

    seconds: float = 0.0

    def __post_init__(self) -> None:
        _require(self.seconds >= 0, f"delay: must not be negative, not {self.seconds}")


@dataclass(frozen=True, slots=True)
class ExponentialDelay:
    """Exponential with mean `mean_s`. YAML: `{exponential: 2.5}`."""

    mean_s: float

    def __post_init__(self) -> None:
        _require(self.mean_s > 0, f"exponential: must be positive, not {self.mean_s}")


Delay = FixedDelay | ExponentialDelay
"""A distribution of pauses, in seconds."""


@dataclass(frozen=True, slots=True)
class ImagesSpec:
    """`count` images of `width` x `height` pixels at the beginning of each prompt.

    There are `distinct` of them, None for as many as there are places.
    """

    count: int = 1
    width: int = 1024
    height: int = 1024
    distinct: int | None = None


@dataclass(frozen=True, slots=True)
class PromptSpec:
    """The prompts and output lengths of every synthetic kind.

    `shared_prefix_tokens` come before, and in addition to, `input_tokens`, as with vLLM's
    `--random-prefix-len`. With `distinct_prompts` = k, request i sends the prompt of request
    i mod k again, length and all; output lengths are drawn for every request. `images` are part of
    `input_tokens`.
    """

    input_tokens: TokenCount
    output_tokens: TokenCount
    shared_prefix_tokens: int = 0
    distinct_prompts: int | None = None
    images: ImagesSpec | None = None

    def __post_init__(self) -> None:
        _require(
            self.shared_prefix_tokens >= 0,
            f"shared_prefix_tokens: must not be negative, not {self.shared_prefix_tokens}",
        )
        _require(
            self.distinct_prompts is None or self.distinct_prompts >= 1,
            f"distinct_prompts: must be at least 1, not {self.distinct_prompts}",
        )


@dataclass(frozen=True, slots=True)
class ClosedLoopSpec:
    """`concurrency` lanes, each sending its next request when the last one has ended.

    The InferenceX protocol: lanes start together; requests go out in the order of their index to
    whichever lane is free; all `warmup_requests` run first, with the same lanes, and end before
    the first measured request starts. `think_time` is a lane's pause before its next request.
    """

    prompts: PromptSpec
    concurrency: int
    num_requests: int
    warmup_requests: int = 0
    think_time: Delay = field(default_factory=FixedDelay)

    def __post_init__(self) -> None:
        _require(self.concurrency >= 1, f"concurrency: must be at least 1, not {self.concurrency}")
        _check_counts(self.num_requests, self.warmup_requests)


@dataclass(frozen=True, slots=True)
class BurstSpec:
    """Everything at t = 0; warm-up requests, if any, are a burst of their own before it."""

    prompts: PromptSpec
    num_requests: int
    warmup_requests: int = 0

    def __post_init__(self) -> None:
        _check_counts(self.num_requests, self.warmup_requests)


@dataclass(frozen=True, slots=True)
class OpenLoopSpec:
    """Arrivals at `rate_per_s` whatever the server does: "poisson" or "constant" gaps.

    Ends after `num_requests`, or with the last arrival before `duration_s`; exactly one is set.
    The first `warmup_requests` of them are left out of the figures. The first constant arrival is
    at t = 0, the first Poisson one after its gap.
    """

    prompts: PromptSpec
    arrivals: str
    rate_per_s: float
    num_requests: int | None = None
    duration_s: float | None = None
    warmup_requests: int = 0

    def __post_init__(self) -> None:
        _require(
            self.arrivals in ("poisson", "constant"),
            f"arrivals: must be poisson or constant, not {self.arrivals}",
        )
        _require(self.rate_per_s > 0, f"rate_per_s: must be positive, not {self.rate_per_s}")
        _require(
            (self.num_requests is None) != (self.duration_s is None),
            "num_requests, duration_s: give exactly one of them",
        )
        _require(
            self.duration_s is None or self.duration_s > 0,
            f"duration_s: must be positive, not {self.duration_s}",
        )
        _check_counts(1 if self.num_requests is None else self.num_requests, self.warmup_requests)


@dataclass(frozen=True, slots=True)
class SessionsSpec:
    """Conversations: turn n+1 sends everything said so far plus new input, after a pause.

    `prompts.input_tokens` is what the user (or a tool) adds at each turn, on top of the session's
    first prompt: `prompts.shared_prefix_tokens` common to all sessions, then `first_input_tokens`
    of its own (None: drawn from input_tokens like any turn). Outputs are part of the next prompt.
    Between turns a session thinks (`think_time`) or, for a fraction `tool_fraction` of turns, waits
    for a tool (`tool_time`). With `concurrency` = N, N sessions are alive at a time, all started at
    t = 0, and a new one begins when one ends; with `rate_per_s`, sessions begin as a Poisson
    process; exactly one is set.
    """

    prompts: PromptSpec
    num_sessions: int
    turns: TokenCount
    concurrency: int | None = None
    rate_per_s: float | None = None
    first_input_tokens: TokenCount | None = None
    think_time: Delay = field(default_factory=FixedDelay)
    tool_time: Delay = field(default_factory=FixedDelay)
    tool_fraction: float = 0.0

    def __post_init__(self) -> None:
        _require(
            self.num_sessions >= 1, f"num_sessions: must be at least 1, not {self.num_sessions}"
        )
        _require(
            (self.concurrency is None) != (self.rate_per_s is None),
            "concurrency, rate_per_s: give exactly one of them",
        )
        _require(
            self.concurrency is None or self.concurrency >= 1,
            f"concurrency: must be at least 1, not {self.concurrency}",
        )
        _require(
            self.rate_per_s is None or self.rate_per_s > 0,
            f"rate_per_s: must be positive, not {self.rate_per_s}",
        )
        _require(
            0 <= self.tool_fraction <= 1,
            f"tool_fraction: must be between 0 and 1, not {self.tool_fraction}",
        )
        _require(
            self.prompts.distinct_prompts is None, "distinct_prompts: not available for sessions"
        )
        _require(self.prompts.images is None, "images: not available for sessions")


@dataclass(frozen=True, slots=True)
class TraceSpec:
    """A recorded trace. `path` is for whoever opens the file, or "synthetic:conversation".

    `format` None means: recognise it by its first lines, or fail. Rows with start_s <= t <
    start_s + duration_s are played, t counted from the earliest row; then times are divided by
    `rate_scale`. `concurrency` None is the open loop at the trace's timestamps, 1 is sequential,
    N is N lanes in trace order, timestamps ignored. `jitter_s` spreads arrivals by a uniform draw
    from [0, jitter_s): for traces whose clock ticks coarsely (Mooncake's conversation trace ticks
    every 3 s); 0, the default, plays what was recorded. `id_tokens` is the block length of
    `hash_ids`. `max_requests` keeps the first so many of the selected rows.
    """

    path: str
    format: str | None = None
    start_s: float = 0.0
    duration_s: float | None = None
    rate_scale: float = 1.0
    concurrency: int | None = None
    jitter_s: float = 0.0
    id_tokens: int = 512
    max_requests: int | None = None

    def __post_init__(self) -> None:
        _require(self.start_s >= 0, f"start_s: must not be negative, not {self.start_s}")
        _require(
            self.duration_s is None or self.duration_s > 0,
            f"duration_s: must be positive, not {self.duration_s}",
        )
        _require(self.rate_scale > 0, f"rate_scale: must be positive, not {self.rate_scale}")
        _require(
            self.concurrency is None or self.concurrency >= 1,
            f"pacing.concurrency: must be at least 1, not {self.concurrency}",
        )
        _require(self.jitter_s >= 0, f"jitter_s: must not be negative, not {self.jitter_s}")
        _require(
            self.jitter_s == 0 or self.concurrency is None,
            "jitter_s: only with pacing: timestamps",
        )
        _require(self.id_tokens >= 1, f"id_tokens: must be at least 1, not {self.id_tokens}")
        _require(
            self.max_requests is None or self.max_requests >= 1,
            f"max_requests: must be at least 1, not {self.max_requests}",
        )


WorkloadSpec = ClosedLoopSpec | BurstSpec | OpenLoopSpec | SessionsSpec | TraceSpec
"""Any kind of workload."""


def _check_counts(num_requests: int, warmup_requests: int) -> None:
    _require(num_requests >= 1, f"num_requests: must be at least 1, not {num_requests}")
    _require(warmup_requests >= 0, f"warmup_requests: must not be negative, not {warmup_requests}")
