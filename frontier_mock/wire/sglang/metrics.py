"""SGLang's /metrics: a fold over one worker's events, rendered with its gauges.

Families, help texts, labels and buckets are those of SGLang 0.5.23 (`metrics_collector.py`; spec:
sglang_metrics_0.5.23.txt). Shown are those that a colocated server without host cache, drafts,
adapters or grammars shows; of them, what nothing here decides stays 0, as on such a server.
Durations are virtual.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from frontier_mock.core.events import (
    Drafted,
    Event,
    Fetched,
    Finished,
    FirstToken,
    Preempted,
    Queued,
    Rejected,
    Scheduled,
    Submitted,
)
from frontier_mock.simtime import NS_PER_S, SimTime
from frontier_mock.wire.compat import CACHE_CONFIG_INFO
from frontier_mock.wire.prometheus import Counter, Gauge, Histogram, Labels
from frontier_mock.wire.sglang.host_metrics import HostMetrics, StorageMetrics
from frontier_mock.wire.sglang.info import RankLoad
from frontier_mock.wire.sglang.load import added
from frontier_mock.wire.sglang.metrics_table import (
    E2E_BUCKETS_S,
    GAUGES,
    ITL_BUCKETS_S,
    LOADS_BUCKETS_S,
    QUEUE_BUCKETS_S,
    STAGE_BUCKETS_S,
    TOKEN_BUCKETS,
    TTFT_BUCKETS_S,
)
from frontier_mock.wire.sglang.served import SglangFront

_STREAMING = ("true", "false")
_BATCH = 1024


class PoolState(NamedTuple):
    """What only the worker's cache knows: pages that are free and those that could be evicted."""

    available_pages: int
    evictable_pages: int
    context_tokens: int = 0


class _Sequence:
    """What is known of a sequence that has not ended; times in ns, -1 before they happen."""

    __slots__ = (
        "arrival_ns",
        "cached_tokens",
        "fetched_tokens",
        "first_ns",
        "prompt_tokens",
        "queued_ns",
        "scheduled_ns",
        "stored_tokens",
        "streams",
        "told_first",
    )

    def __init__(self, arrival_ns: SimTime, prompt_tokens: int) -> None:
        self.arrival_ns = arrival_ns
        self.prompt_tokens = prompt_tokens
        self.queued_ns: SimTime = -1
        self.scheduled_ns: SimTime = -1
        self.first_ns: SimTime = -1
        self.cached_tokens = 0
        self.fetched_tokens = 0
        self.stored_tokens = 0
        self.streams = False
        self.told_first = False


class SglangMetrics:
    """The metrics of one worker. `fold` takes only that worker's events, in order."""

    def __init__(self, model_name: str, front: SglangFront, rank: int, pid: int) -> None:
        """`rank` is the data-parallel one; `pid` stands in the labels of two gauges."""
        self._front = front
        kinds = {"null": "unified", "prefill": "prefill", "decode": "decode"}
        engine = kinds.get(front.disaggregation_mode, "unified")
        front_labels: Labels = {
            **front.extra_metric_labels,
            "model_name": model_name,
            "engine_type": engine,
        }
        own = {**front_labels, "tp_rank": "0", "pp_rank": "0", "moe_ep_rank": "0"}
        if front.num_dp_ranks > 1:
            own["dp_rank"] = str(rank)
            front_labels = {**front_labels, "dp_rank": str(rank)}
        self._open: dict[int, _Sequence] = {}
        self._ended: list[tuple[int, ...]] = []
        self._firsts: tuple[list[SimTime], list[SimTime]] = ([], [])
        self._waits: list[SimTime] = []
        self._prefills: list[SimTime] = []
        self._host = HostMetrics(own) if front.host_tier else None
        self._storage = (
            StorageMetrics(front.storage_backend, rank, front.extra_metric_labels)
            if front.storage_backend
            else None
        )
        self._make_scheduler(own, pid)
        self._make_front(front_labels)
        self._accepted_steps: tuple[int, ...] = ()
        self._accepted_seen: tuple[int, ...] = ()

    # What happens

    def streams(self, rids: Sequence[int]) -> None:
        """The answers to these sequences are streamed."""
        for rid in rids:
            state = self._open.get(rid)
            if state is not None:
                state.streams = True

    def fold(self, event: Event) -> None:
        """Take one event of this worker into account."""
        if isinstance(event, Submitted):
            self._open[event.rid] = _Sequence(event.t_ns, event.prompt_tokens)
            return
        state = self._open.get(event.rid)
        if state is None:
            return
        if isinstance(event, Queued):
            state.queued_ns = event.t_ns
        elif isinstance(event, Fetched):
            if state.scheduled_ns < 0:
                if event.tier == "storage":
                    state.stored_tokens = event.tokens
                else:
                    state.fetched_tokens = event.tokens
        elif isinstance(event, Scheduled):
            self._scheduled(event, state)
        elif isinstance(event, FirstToken):
            if state.first_ns < 0:
                state.first_ns = event.t_ns
                self._prefills.append(event.t_ns - state.scheduled_ns)
                if state.streams:
                    self._first_told(state)
        elif isinstance(event, Preempted):
            self._retractions.values[0] += 1
            self._retracted_input.values[0] += state.prompt_tokens
            self._retracted_output.values[0] += event.output_tokens
        elif isinstance(event, Finished):
            del self._open[event.rid]
            self._finished(event, state)
        elif isinstance(event, Drafted):
            self._accepted_steps = added(self._accepted_steps, event.accepted_steps)
        elif isinstance(event, Rejected):
            del self._open[event.rid]

    def _scheduled(self, event: Scheduled, state: _Sequence) -> None:
        if event.resumed:
            return
        state.scheduled_ns = event.t_ns
        state.cached_tokens = event.cached_tokens
        self._waits.append(event.t_ns - max(state.queued_ns, state.arrival_ns))
        computed = state.prompt_tokens - event.cached_tokens
        self._realtime.values[0] += computed
        self._realtime.values[1] += event.cached_tokens
        self._effective.values[0] += event.cached_tokens
        self._effective.values[3] += computed

    def _first_told(self, state: _Sequence) -> None:
        state.told_first = True
        self._firsts[not state.streams].append(state.first_ns - state.arrival_ns)

    def _finished(self, event: Finished, state: _Sequence) -> None:
        if state.first_ns >= 0 and not state.told_first and event.reason != "abort":
            self._first_told(state)
        if state.scheduled_ns < 0:
            # Aborted in the queue: the front end counts no such request.
            return
        generated = event.output_tokens
        self._realtime.values[2] += generated
        column = int(not state.streams)
        self._prompt_tokens.values[column] += state.prompt_tokens
        self._generated.values[column] += generated
        self._requests.values[column] += 1
        below = state.fetched_tokens + state.stored_tokens
        self._cached.values[0] += state.cached_tokens - below
        if state.fetched_tokens and self._host is not None:
            self._cached.values[1] += state.fetched_tokens
        if state.stored_tokens and self._storage is not None:
            self._cached.values[2] += state.stored_tokens
        told = event.reason in ("stop", "length") and generated > 1
        self._ended.append(
            (
                column,
                event.t_ns - state.arrival_ns,
                event.t_ns - state.first_ns if told else -1,
                max(generated - 1, 1),
                state.prompt_tokens,
                state.prompt_tokens - state.cached_tokens,
                generated,
            )
        )
        if len(self._ended) >= _BATCH:
            self._observe()

    def fold_itl(self, durations_ns: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Times between consecutive output tokens, and how often each occurred."""
        self._itl.observe_many(durations_ns / NS_PER_S, counts)

    def loads_took(self, duration_s: float) -> None:
        """/v1/loads was answered."""
        self._loads.observe(duration_s)

    def _observe(self) -> None:
        """Histograms take what there is since the last time in one go."""
        for column in (0, 1):
            if self._firsts[column]:
                self._ttft[column].observe_many(_seconds(self._firsts[column]))
                self._firsts[column].clear()
        for pending, histogram in ((self._waits, self._queue), (self._prefills, self._stage)):
            if pending:
                histogram.observe_many(_seconds(pending))
                pending.clear()
        if not self._ended:
            return
        rows = np.array(self._ended, np.int64)
        self._ended.clear()
        for column in (0, 1):
            mine = rows[rows[:, 0] == column]
            if len(mine):
                self._e2e[column].observe_many(mine[:, 1] / NS_PER_S)
            told = mine[mine[:, 2] >= 0]
            if len(told):
                self._tpot[column].observe_many(told[:, 2] / NS_PER_S / told[:, 3])
        for histogram, column in zip(self._token_histograms, (4, 5, 6), strict=True):
            histogram.observe_many(rows[:, column].astype(np.float64))

    # What is shown

    def verified(self, live: Iterable[tuple[int, ...]]) -> None:
        """Show what has been accepted since the last time; `live` is of unfinished sequences.

        SGLang shows the mean of the steps since its last line in the log.
        """
        steps = self._accepted_steps
        for accepted in live:
            steps = added(steps, accepted)
        seen = self._accepted_seen + (0,) * (len(steps) - len(self._accepted_seen))
        fresh = [now - before for now, before in zip(steps, seen, strict=True)]
        calls = sum(fresh)
        front, gauges = self._front, self._gauges
        gauges["spec_num_steps"].values[0] = front.draft_steps
        gauges["spec_num_draft_tokens"].values[0] = front.verified_tokens
        if calls <= 0:
            return
        self._accepted_seen = steps
        correct = sum(accepted * times for accepted, times in enumerate(fresh))
        gauges["spec_accept_length"].values[0] = 1 + correct / calls
        gauges["spec_accept_rate"].values[0] = correct / (calls * (front.verified_tokens - 1))

    def render(self, load: RankLoad, pool: PoolState, running_tokens: int, aborts: int) -> bytes:
        """The exposition, in Prometheus text format 0.0.4.

        `running_tokens` are the output tokens of unfinished sequences so far, `aborts` the requests
        that somebody asked to be aborted.
        """
        self._observe()
        self._set_gauges(load, pool)
        self._aborted.values[0] = aborts
        self._paused.values[0] = load.paused
        self._retracted.values[0] = load.retracted
        self._busy.values[0] = load.gauges.busy_ns / NS_PER_S
        before = self._realtime.values[2]
        self._realtime.values[2] += running_tokens
        text = "".join([family.render() for family in self._families])
        self._realtime.values[2] = before
        if self._host is not None and load.gauges.tiers:
            text += self._host.render(load.gauges.tiers[0])
        if self._storage is not None and load.gauges.tiers:
            text += self._storage.render(load.gauges.tiers[1])
        text += "".join(_joined(histograms) for histograms in self._histograms)
        return text.encode()

    def _set_gauges(self, load: RankLoad, pool: PoolState) -> None:
        gauges, front = load.gauges, self._front
        page = front.page_size
        total = front.num_pages * page
        available = pool.available_pages * page
        evictable = pool.evictable_pages * page
        used = total - available - evictable
        usage = used / total if total else 0.0
        values = {
            "num_running_reqs": gauges.running,
            "num_queue_reqs": gauges.waiting,
            "gen_throughput": load.gen_throughput,
            "cache_hit_rate": load.cache_hit_rate,
            "decode_sum_seq_lens": pool.context_tokens,
            "token_usage": usage,
            "full_token_usage": usage,
            "num_used_tokens": used,
            "kv_available_tokens": available,
            "kv_evictable_tokens": evictable,
            "kv_used_tokens": used,
            "is_cuda_graph": float(0 < gauges.running <= front.largest_graph),
        }
        for name, value in values.items():
            self._gauges[name].values[0] = value

    # The families

    def _make_scheduler(self, own: Labels, pid: int) -> None:
        front = self._front
        self._gauges = {}
        for line in GAUGES.strip().splitlines():
            name, _, help_text = line.partition("|")
            self._gauges[name] = Gauge(f"sglang:{name}", help_text, [own])
        constants = {
            "max_total_num_tokens": front.num_pages * front.page_size,
            "weight_memory_usage_gb": front.weight_gb,
            "kv_cache_memory_usage_gb": front.kv_cache_gb,
            "page_size": front.page_size,
            "num_pages": front.num_pages,
            "context_len": front.context_len,
        }
        for name, value in constants.items():
            self._gauges[name].values[0] = value
        if CACHE_CONFIG_INFO in front.compat:
            sizes = {"page_size": str(front.page_size), "num_pages": str(front.num_pages)}
            info = Gauge(
                "sglang:cache_config_info", "Sizes of the KV cache pool.", [{**own, **sizes}]
            )
            info.values[0] = 1.0
            self._gauges["cache_config_info"] = info
        graphs = {**own, "phase": "decode"}
        self._graph_gb = Gauge(
            "sglang:graph_memory_usage_gb", "Memory used by captured device graphs in GB.", [graphs]
        )
        self._graph_gb.values[0] = front.graph_gb
        # These two name the process: their gauges are of the kind that every process has.
        by_pid = {**own, "pid": str(pid)}
        self._retracted = Gauge(
            "sglang:num_retracted_reqs", "The number of retracted requests.", [by_pid]
        )
        self._paused = Gauge(
            "sglang:num_paused_reqs",
            "The number of paused requests by async weight sync.",
            [by_pid],
        )
        count = _counter
        self._retractions = count(
            "num_retracted_requests", "Total number of retracted requests.", [own]
        )
        self._retracted_input = count(
            "num_retracted_input_tokens", "Total number of retracted input tokens.", [own]
        )
        self._retracted_output = count(
            "num_retracted_output_tokens", "Total number of retracted output tokens.", [own]
        )
        self._realtime = count(
            "realtime_tokens",
            "Total number of tokens processed (updated on each log interval). mode: "
            "prefill_compute, prefill_cache, decode.",
            _children(own, "mode", ("prefill_compute", "prefill_cache", "decode")),
        )
        self._effective = count(
            "prefill_effective_tokens",
            "Effective prefill tokens with retracted-request re-counts excluded, updated on each "
            "log interval. mode: device_hit, host_hit, storage_hit, input. Windowed prefix cache "
            "hit rate = rate(sum of *_hit) / rate(sum of all modes); per-tier rate uses a single "
            "*_hit mode in the numerator.",
            _children(own, "mode", ("device_hit", "host_hit", "storage_hit", "input")),
        )
        self._busy = count(
            "forward_execution_seconds",
            "Total time that GPU is busy executing model forward passes. Refer to ForwardMode for "
            "category labels.",
            _children(own, "category", ("decode",)),
        )
        self._queue = _histogram(
            "queue_time_seconds", "Histogram of queueing time in seconds.", own, QUEUE_BUCKETS_S
        )
        self._stage = _histogram(
            "per_stage_req_latency_seconds",
            "The latency of each stage of requests.",
            {**own, "stage": "prefill_forward"},
            STAGE_BUCKETS_S,
        )

    def _cache_sources(self) -> tuple[str, ...]:
        if self._storage is not None:
            return ("device", "host", "storage")
        return ("device", "host") if self._host is not None else ("device",)

    def _make_front(self, labels: Labels) -> None:
        streaming = _children(labels, "is_streaming", _STREAMING)
        count = _counter
        self._prompt_tokens = count(
            "prompt_tokens", "Number of prefill tokens processed.", streaming
        )
        self._generated = count(
            "generation_tokens", "Number of generation tokens processed.", streaming
        )
        self._cached = count(
            "cached_tokens",
            "Number of cached prompt tokens by source (device/host/storage).",
            _children(labels, "cache_source", self._cache_sources()),
        )
        self._requests = count("num_requests", "Number of requests processed.", streaming)
        self._aborted = count("num_aborted_requests", "Number of requests aborted.", [labels])

        def pair(name: str, help_text: str, bounds: Sequence[float]) -> list[Histogram]:
            return [_histogram(name, help_text, child, bounds) for child in streaming]

        self._ttft = pair(
            "time_to_first_token_seconds",
            "Histogram of time to first token in seconds.",
            TTFT_BUCKETS_S,
        )
        self._tpot = pair(
            "request_time_per_output_token_seconds",
            "Per-request TPOT in seconds: (finished_time - first_token_time) / "
            "(completion_tokens - 1).",
            ITL_BUCKETS_S,
        )
        self._e2e = pair(
            "e2e_request_latency_seconds",
            "Histogram of End-to-end request latency in seconds",
            E2E_BUCKETS_S,
        )
        self._itl = _histogram(
            "inter_token_latency_seconds",
            "Histogram of inter-token latency in seconds.",
            labels,
            ITL_BUCKETS_S,
        )
        self._loads = _histogram(
            "get_loads_duration_seconds",
            "Time spent serving /v1/loads requests (seconds).",
            labels,
            LOADS_BUCKETS_S,
        )
        self._token_histograms = [
            _histogram(name, help_text, labels, TOKEN_BUCKETS)
            for name, help_text in (
                ("prompt_tokens_histogram", "Histogram of prompt token length."),
                (
                    "uncached_prompt_tokens_histogram",
                    "Histogram of uncached (compute) prompt token length.",
                ),
                ("generation_tokens_histogram", "Histogram of generation token length."),
            )
        ]
        gauges: list[Gauge] = [*self._gauges.values(), self._graph_gb]
        counters: list[Counter] = [self._retractions, self._retracted_input]
        counters += [self._retracted_output, self._realtime, self._effective, self._busy]
        counters += [self._prompt_tokens, self._generated, self._cached, self._requests]
        self._families: list[Gauge | Counter] = [*gauges, self._retracted, self._paused]
        self._families += [*counters, self._aborted]
        self._histograms = [
            *([self._queue], [self._stage], self._ttft, [self._itl], self._tpot, self._e2e),
            *([one] for one in self._token_histograms),
            [self._loads],
        ]


def _seconds(durations_ns: Sequence[SimTime]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.array(durations_ns, np.int64) / NS_PER_S
    return found


def _children(own: Labels, name: str, values: Sequence[str]) -> list[Labels]:
    return [{**own, name: value} for value in values]


def _counter(name: str, help_text: str, children: Sequence[Labels]) -> Counter:
    return Counter(f"sglang:{name}", help_text, children, None)


def _histogram(name: str, help_text: str, labels: Labels, bounds: Sequence[float]) -> Histogram:
    return Histogram(f"sglang:{name}", help_text, labels, bounds, None)


def _joined(histograms: Sequence[Histogram]) -> str:
    """One family with a child each."""
    first, *others = histograms
    return first.render() + "".join(other.render(bare=True) for other in others)


def http_families(
    requests: Mapping[tuple[str, str], int],
    responses: Mapping[tuple[str, int, str], int],
    active: Mapping[tuple[str, str], int],
    routing_keys: int,
) -> str:
    """The families of the HTTP layer: by (endpoint, method), and by (endpoint, status, method)."""
    asked = _counter(
        "http_requests",
        "Total number of HTTP requests by endpoint and method",
        [{"endpoint": endpoint, "method": method} for endpoint, method in requests],
    )
    asked.values[:] = [float(count) for count in requests.values()]
    told = _counter(
        "http_responses",
        "Total number of HTTP responses by endpoint and status code",
        [
            {"endpoint": endpoint, "status_code": str(status), "method": method}
            for endpoint, status, method in responses
        ],
    )
    told.values[:] = [float(count) for count in responses.values()]
    now = Gauge(
        "sglang:http_requests_active",
        "Number of currently active HTTP requests",
        [{"endpoint": endpoint, "method": method} for endpoint, method in active],
    )
    now.values[:] = [float(count) for count in active.values()]
    keys = Gauge(
        "sglang:routing_keys_active", "Number of unique routing keys with active requests", [{}]
    )
    keys.values[0] = routing_keys
    return asked.render() + told.render() + now.render() + keys.render()
