"""vLLM's /metrics: a fold over one worker's events, rendered with its gauges.

Families, help texts, order, buckets and definitions are those of vLLM 0.33 (`v1/metrics/loggers.py`
and `buckets.py`; spec: vllm.md §4). Two figures are not in the events and come from elsewhere:
inter-token latencies, which `fold_itl` takes, and tokens per step, of which only count and sum are
known exactly; its buckets get the mean of the steps between two scrapes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from frontier_mock.core.events import (
    Event,
    Fetched,
    Finished,
    FirstToken,
    KvReceived,
    Preempted,
    Queued,
    Rejected,
    Scheduled,
    Submitted,
)
from frontier_mock.serving.gauges import Gauges
from frontier_mock.simtime import NS_PER_S, SimTime
from frontier_mock.wire.prometheus import Counter, Gauge, Histogram, Labels

LATENCY_BUCKETS_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
TTFT_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
ITL_BUCKETS_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
ITERATION_BUCKETS = tuple(float(b) for b in (1, *(1 << i for i in range(3, 15))))
PARAMS_N_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0)
PREEMPTION_BUCKETS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)

FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
_WAITING_REASONS = ("capacity", "deferred")
_SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")
_PROMPT_SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
_CACHE_TIERS = ("device", "host", "p2p", "disk", "external_unspecified")
_ADMISSION_LIMITS = ("max_num_queued_reqs", "max_num_queued_tokens")
_ENDED_BATCH = 1024
_LIMIT_OF_REJECTION = {"queue_full": 0, "backlog_full": 1}


def token_buckets(max_model_len: int) -> list[float]:
    """1, 2, 5, 10, 20, ... up to `max_model_len`."""
    buckets: list[float] = []
    scale = 1
    while scale <= max_model_len:
        buckets += [float(m * scale) for m in (1, 2, 5) if m * scale <= max_model_len]
        scale *= 10
    return buckets


@dataclass(slots=True)
class _Sequence:
    """What is known of a sequence that has not finished; times in ns, -1 before they happen."""

    arrival_ns: SimTime
    prompt_tokens: int
    max_tokens: int
    queued_ns: SimTime = -1
    scheduled_ns: SimTime = -1
    first_token_ns: SimTime = -1
    cached_tokens: int = 0
    received_tokens: int = 0
    fetched_tokens: int = 0
    preemptions: int = 0


@dataclass(slots=True)
class _Request:
    """A request with n > 1 choices: how many are left, and the longest so far."""

    n: int
    left: int
    longest: int = field(default=0)


class VllmMetrics:
    """The metrics of one worker. `fold` takes only that worker's events, in order."""

    def __init__(
        self,
        model_name: str,
        max_model_len: int,
        created_s: float,
        engine: int = 0,
        cache_config: Mapping[str, str] | None = None,
    ) -> None:
        """`model_name` is the first served name, `created_s` the unix time counters begin at.

        `cache_config` are the labels of `vllm:cache_config_info` (block_size, num_gpu_blocks and
        whatever else is known); the family is left out without them.
        """
        self._created_s = created_s
        self._own: Labels = {"model_name": model_name, "engine": str(engine)}
        self._open: dict[int, _Sequence] = {}
        self._requests: dict[int, _Request] = {}
        self._steps_seen = 0
        self._tokens_seen = 0
        self._finished_tokens = 0
        self._ended: list[tuple[int, ...]] = []
        self._first_tokens_ns: list[SimTime] = []
        self._prompt_computed = 0
        self._asked_below = 0
        self._make_gauges(cache_config)
        self._make_counters(model_name)
        self._make_histograms(token_buckets(max_model_len))
        self._families = self._in_order()

    # What happens

    def sleep(self, level: int | None) -> None:
        """The engine sleeps at this level, or is awake (None)."""
        self._sleep_state.values[:] = [level is None, level == 1, level == 2]

    def request(self, rids: Sequence[int]) -> None:
        """These sequences are the choices of one request; only needed where there are several."""
        shared = _Request(len(rids), len(rids))
        for rid in rids:
            self._requests[rid] = shared

    def fold(self, event: Event) -> None:
        """Take one event of this worker into account."""
        kind = type(event)
        rid = event.rid
        if kind is Submitted:
            assert isinstance(event, Submitted)
            self._open[rid] = _Sequence(event.t_ns, event.prompt_tokens, event.max_tokens)
            return
        state = self._open.get(rid)
        if state is None:
            if isinstance(event, Rejected):
                self._reject(event)
        elif isinstance(event, Queued):
            state.queued_ns = event.t_ns
        elif isinstance(event, Scheduled):
            if not event.resumed:
                state.scheduled_ns = event.t_ns
                state.cached_tokens = event.cached_tokens
        elif isinstance(event, FirstToken):
            self._first_token(event, state)
        elif isinstance(event, Finished):
            del self._open[rid]
            self._finish(event, state)
        elif isinstance(event, Fetched):
            if not state.preemptions:
                state.fetched_tokens = event.tokens
                self._external[1].values[0] += event.tokens
                self._cached_by_tier.values[_CACHE_TIERS.index("host")] += event.tokens
        elif isinstance(event, KvReceived):
            # The last token of a prompt that came from elsewhere is computed here.
            state.received_tokens = max(0, state.prompt_tokens - event.cached_tokens - 1)
            self._external[0].values[0] += state.prompt_tokens - event.cached_tokens
            self._external[1].values[0] += state.prompt_tokens - event.cached_tokens
        elif isinstance(event, Preempted):
            state.preemptions += 1
            self._preemptions.values[0] += 1
        elif isinstance(event, Rejected):
            del self._open[rid]
            self._reject(event)

    def fold_itl(self, durations_ns: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Times between consecutive output tokens, and how often each occurred."""
        self._itl.observe_many(durations_ns / NS_PER_S, counts)

    def _reject(self, event: Rejected) -> None:
        limit = _LIMIT_OF_REJECTION.get(event.reason)
        if limit is not None:
            self._rejections.values[limit] += 1

    def _first_token(self, event: FirstToken, state: _Sequence) -> None:
        if state.first_token_ns >= 0:
            return
        state.first_token_ns = event.t_ns
        cached = state.cached_tokens + state.received_tokens
        computed = state.prompt_tokens - cached
        self._prompt_computed += computed
        self._prompt_tokens.values[0] += state.prompt_tokens
        self._prompt_by_source.values[0] += computed
        # A prompt that is all there has its last token computed again.
        fetched = min(state.fetched_tokens, state.cached_tokens)
        self._prompt_by_source.values[1] += state.cached_tokens - fetched
        self._prompt_by_source.values[2] += state.received_tokens + fetched
        self._prompt_cached.values[0] += cached
        self._first_tokens_ns.append(event.t_ns - state.arrival_ns)

    def _finish(self, event: Finished, state: _Sequence) -> None:
        end, generated = event.t_ns, event.output_tokens
        self._finished_tokens += generated
        if event.reason in FINISH_REASONS:
            self._success.values[FINISH_REASONS.index(event.reason)] += 1
        n, longest = 1, generated
        if self._requests:
            n, longest = self._close_request(event.rid, generated)
        # A sequence aborted early has not reached every phase: those it missed took no time.
        scheduled = state.scheduled_ns if state.scheduled_ns >= 0 else end
        first = state.first_token_ns if state.first_token_ns >= 0 else end
        queued = state.queued_ns if state.queued_ns >= 0 else scheduled
        self._ended.append(
            (
                end - state.arrival_ns,
                scheduled - queued,
                end - scheduled,
                first - scheduled,
                end - first,
                generated,
                state.preemptions,
                state.prompt_tokens - state.cached_tokens,
                state.prompt_tokens,
                state.max_tokens,
                n,
                longest,
            )
        )
        if len(self._ended) >= _ENDED_BATCH:
            self._observe_ended()

    def _close_request(self, rid: int, generated: int) -> tuple[int, int]:
        """(choices, longest choice) if this was the request's last choice, else zeros."""
        shared = self._requests.pop(rid, None)
        if shared is None:
            return 1, generated
        shared.left -= 1
        shared.longest = max(shared.longest, generated)
        return (shared.n, shared.longest) if shared.left == 0 else (0, 0)

    def _observe_ended(self) -> None:
        """Histograms take what ended since the last time in one go, at a tenth of the cost."""
        if self._first_tokens_ns:
            self._ttft.observe_many(np.array(self._first_tokens_ns, np.int64) / NS_PER_S)
            self._first_tokens_ns.clear()
        if not self._ended:
            return
        columns = np.array(self._ended, np.int64).T
        self._ended.clear()
        phases = (
            self._e2e,
            self._queue_time,
            self._inference_time,
            self._prefill_time,
            self._decode_time,
        )
        for histogram, durations_ns in zip(phases, columns[:5], strict=True):
            histogram.observe_many(durations_ns / NS_PER_S)
        generated = columns[5]
        gaps = np.maximum(generated - 1, 1)
        self._tpot.observe_many(np.where(generated > 1, columns[4] / NS_PER_S / gaps, 0.0))
        counts = (
            self._request_generation,
            self._request_preemptions,
            self._prefill_computed,
            self._request_prompt,
            self._max_tokens,
        )
        for histogram, values in zip(counts, columns[5:10], strict=True):
            histogram.observe_many(values.astype(np.float64))
        last = columns[10] > 0
        self._params_n.observe_many(columns[10][last].astype(np.float64))
        self._max_generation.observe_many(columns[11][last].astype(np.float64))

    # What is shown

    def render(self, gauges: Gauges, *, running_tokens: int = 0) -> bytes:
        """The exposition, in Prometheus text format 0.0.4.

        `running_tokens` are the output tokens of unfinished sequences so far; without them the
        count of generated tokens moves when sequences finish.
        """
        self._observe_ended()
        self._running.values[0] = gauges.running
        self._waiting.values[0] = gauges.waiting
        self._waiting_by_reason.values[0] = gauges.waiting
        self._kv_usage.values[0] = gauges.kv_usage
        self._queries.values[0] = gauges.query_tokens
        self._hits.values[0] = gauges.hit_tokens
        asked = sum(tier.query_tokens for tier in gauges.tiers)
        self._external[0].values[0] += asked - self._asked_below
        self._asked_below = asked
        self._cached_by_tier.values[0] = gauges.hit_tokens
        generated = max(self._finished_tokens + running_tokens, int(self._generated.values[0]))
        self._generated.values[0] = generated
        self._count_steps(gauges.steps, self._prompt_computed + generated)
        return "".join([family.render() for family in self._families]).encode()

    def _count_steps(self, steps: int, tokens: int) -> None:
        new_steps, new_tokens = steps - self._steps_seen, tokens - self._tokens_seen
        if new_steps > 0:
            self._iteration.observe(new_tokens / new_steps, new_steps)
            self._steps_seen, self._tokens_seen = steps, tokens

    # The families, in the order vLLM registers them

    def _children(self, name: str, values: Sequence[str]) -> list[Labels]:
        return [{**self._own, name: value} for value in values]

    def _counter(self, name: str, help_text: str, children: Sequence[Labels] = ()) -> Counter:
        return Counter(f"vllm:{name}", help_text, children or [self._own], self._created_s)

    def _histogram(self, name: str, help_text: str, bounds: Sequence[float]) -> Histogram:
        return Histogram(f"vllm:{name}", help_text, self._own, bounds, self._created_s)

    def _make_gauges(self, cache_config: Mapping[str, str] | None) -> None:
        own = [self._own]
        self._running = Gauge(
            "vllm:num_requests_running", "Number of requests in model execution batches.", own
        )
        self._waiting = Gauge(
            "vllm:num_requests_waiting", "Number of requests waiting to be processed.", own
        )
        self._waiting_by_reason = Gauge(
            "vllm:num_requests_waiting_by_reason",
            "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for "
            "scheduling capacity; 'deferred' = deferred by transient constraints (LoRA budget, KV "
            "transfer, blocked status). Sum of all reasons equals vllm:num_requests_waiting.",
            self._children("reason", _WAITING_REASONS),
        )
        self._sleep_state = Gauge(
            "vllm:engine_sleep_state",
            "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is "
            "awake; weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level "
            "2.",
            self._children("sleep_state", _SLEEP_STATES),
        )
        self._sleep_state.values[0] = 1.0
        self._kv_usage = Gauge(
            "vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", own
        )
        self._info: list[Gauge] = []
        if cache_config is not None:
            labels = {**cache_config, "engine": self._own["engine"]}
            info = Gauge(
                "vllm:cache_config_info", "Information of the LLMEngine CacheConfig", [labels]
            )
            info.values[0] = 1.0
            self._info.append(info)

    def _make_counters(self, model_name: str) -> None:
        make = self._counter
        self._queries = make(
            "prefix_cache_queries", "Prefix cache queries, in terms of number of queried tokens."
        )
        self._hits = make(
            "prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens."
        )
        self._external = [
            make(
                "external_prefix_cache_queries",
                "External prefix cache queries from KV connector cross-instance cache sharing, in "
                "terms of number of queried tokens.",
            ),
            make(
                "external_prefix_cache_hits",
                "External prefix cache hits from KV connector cross-instance cache sharing, in "
                "terms of number of cached tokens.",
            ),
        ]
        self._unused = [
            make(
                "mm_cache_queries",
                "Multi-modal cache queries, in terms of number of queried items.",
            ),
            make("mm_cache_hits", "Multi-modal cache hits, in terms of number of cached items."),
        ]
        self._preemptions = make(
            "num_preemptions", "Cumulative number of preemption from the engine."
        )
        self._prompt_tokens = make("prompt_tokens", "Number of prefill tokens processed.")
        self._prompt_by_source = make(
            "prompt_tokens_by_source",
            "Number of prompt tokens by source.",
            self._children("source", _PROMPT_SOURCES),
        )
        self._prompt_cached = make(
            "prompt_tokens_cached", "Number of cached prompt tokens (local + external)."
        )
        self._cached_by_tier = make(
            "prompt_tokens_cached_by_source",
            "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), "
            "host (offloaded to DRAM), disk, p2p (transferred from another vLLM instance) or "
            "external_unspecified. Counted at admission; sums to vllm:prefix_cache_hits + "
            "vllm:external_prefix_cache_hits.",
            self._children("source", _CACHE_TIERS),
        )
        self._generated = make("generation_tokens", "Number of generation tokens processed.")
        self._success = make(
            "request_success",
            "Count of successfully processed requests.",
            self._children("finished_reason", FINISH_REASONS),
        )
        self._rejections = make(
            "admission_rejections",
            "Number of admission attempts rejected by a queue limit, by reason.",
            [{"model_name": model_name, "reason": reason} for reason in _ADMISSION_LIMITS],
        )

    def _make_histograms(self, tokens: Sequence[float]) -> None:
        make = self._histogram
        self._request_prompt = make(
            "request_prompt_tokens", "Number of prefill tokens processed.", tokens
        )
        self._request_generation = make(
            "request_generation_tokens", "Number of generation tokens processed.", tokens
        )
        self._iteration = make(
            "iteration_tokens_total",
            "Histogram of number of tokens per engine_step.",
            ITERATION_BUCKETS,
        )
        self._max_generation = make(
            "request_max_num_generation_tokens",
            "Histogram of maximum number of requested generation tokens.",
            tokens,
        )
        self._params_n = make(
            "request_params_n", "Histogram of the n request parameter.", PARAMS_N_BUCKETS
        )
        self._max_tokens = make(
            "request_params_max_tokens", "Histogram of the max_tokens request parameter.", tokens
        )
        self._ttft = make(
            "time_to_first_token_seconds",
            "Histogram of time to first token in seconds.",
            TTFT_BUCKETS_S,
        )
        self._itl = make(
            "inter_token_latency_seconds",
            "Histogram of inter-token latency in seconds.",
            ITL_BUCKETS_S,
        )
        self._tpot = make(
            "request_time_per_output_token_seconds",
            "Histogram of time_per_output_token_seconds per request.",
            ITL_BUCKETS_S,
        )
        self._e2e = make(
            "e2e_request_latency_seconds",
            "Histogram of e2e request latency in seconds.",
            LATENCY_BUCKETS_S,
        )
        phases = [
            make(
                f"request_{name}_time_seconds",
                f"Histogram of time spent in {phase} phase for request.",
                LATENCY_BUCKETS_S,
            )
            for name, phase in (
                ("queue", "WAITING"),
                ("inference", "RUNNING"),
                ("prefill", "PREFILL"),
                ("decode", "DECODE"),
            )
        ]
        self._queue_time, self._inference_time, self._prefill_time, self._decode_time = phases
        self._request_preemptions = make(
            "request_num_preemptions",
            "Histogram of the number of times a request was preempted.",
            PREEMPTION_BUCKETS,
        )
        self._prefill_computed = make(
            "request_prefill_kv_computed_tokens",
            "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
            tokens,
        )

    def _in_order(self) -> list[Gauge | Counter | Histogram]:
        scheduler: list[Gauge] = [self._running, self._waiting, self._waiting_by_reason]
        counters: list[Counter] = [self._queries, self._hits, *self._external, *self._unused]
        counters += [self._preemptions]
        counters += [self._prompt_tokens, self._prompt_by_source, self._prompt_cached]
        counters += [self._cached_by_tier, self._generated, self._success, self._rejections]
        counts: list[Histogram] = [self._request_prompt, self._request_generation]
        counts += [self._iteration, self._max_generation, self._params_n, self._max_tokens]
        times: list[Histogram] = [self._ttft, self._itl, self._tpot, self._e2e]
        times += [self._queue_time, self._inference_time, self._prefill_time, self._decode_time]
        last: list[Histogram] = [self._request_preemptions, self._prefill_computed]
        gauges = [*scheduler, self._sleep_state, self._kv_usage]
        return [*gauges, *counters, *counts, *times, *last, *self._info]
