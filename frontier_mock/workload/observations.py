"""What benchmark tools wrote about a real server: its load, and the latencies it showed. PURE.

Three result files are read, each as its tool writes it: `vllm bench serve --save-result` (with
`--save-detailed`, every request's own lengths and start), guidellm's `benchmarks.json`, and
aiperf's `profile_export_aiperf.json`. A mean TPOT is (last token - first token) / (tokens - 1)
per request, which guidellm and aiperf call inter-token latency.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from frontier_mock.simtime import NS_PER_S
from frontier_mock.workload.rows import Census, TraceRow, TraceRows
from frontier_mock.workload.specs import (
    BurstSpec,
    ClosedLoopSpec,
    FixedTokens,
    OpenLoopSpec,
    PromptSpec,
    TraceSpec,
    WorkloadSpec,
)

TOOLS: Final = "vllm bench serve, guidellm or aiperf"


class ResultError(ValueError):
    """A result file says too little, or nothing we know; the message names it."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One run of a benchmark. `rows` are its requests where the tool kept them."""

    name: str
    workload: WorkloadSpec
    rows: TraceRows | None
    ttft_ms: float
    tpot_ms: float
    output_tokens_per_s: float


def read_observations(document: Any, name: str) -> list[Observation]:
    """Every run in one result file. Raises ResultError."""
    if isinstance(document, Mapping):
        if "benchmarks" in document:
            return _guidellm(document["benchmarks"], name)
        if "mean_ttft_ms" in document:
            return [_vllm_bench(document, name)]
        if "time_to_first_token" in document:
            return [_aiperf(document, name)]
    raise ResultError(f"{name}: not a result of {TOOLS}")


def _vllm_bench(document: Mapping[str, Any], name: str) -> Observation:
    completed = int(_number(document, "completed", name))
    if completed < 1:
        raise ResultError(f"{name}: no request was completed")
    rate = document.get("request_rate")
    rate_per_s = math.inf if rate in (None, "inf") else float(rate)
    concurrency = document.get("max_concurrency")
    rows = _kept_requests(document, name)
    prompt = _number(document, "total_input_tokens", name) / completed
    output = _number(document, "total_output_tokens", name) / completed
    workload: WorkloadSpec
    if rows is None:
        workload = _load(name, completed, prompt, output, rate_per_s, concurrency)
    else:
        workload = TraceSpec(name, concurrency=None if rows.timed else int(concurrency or 1))
    return Observation(
        name,
        workload,
        rows,
        _number(document, "mean_ttft_ms", name),
        _number(document, "mean_tpot_ms", name),
        _number(document, "output_throughput", name),
    )


def _kept_requests(document: Mapping[str, Any], name: str) -> TraceRows | None:
    """The requests of `--save-detailed`: in their order for a closed loop, else at their times."""
    inputs, outputs = document.get("input_lens"), document.get("output_lens")
    starts = document.get("start_times")
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        return None
    timed = document.get("max_concurrency") is None or document.get("request_rate") != "inf"
    if len(inputs) != len(outputs) or (timed and len(starts or []) != len(inputs)):
        raise ResultError(f"{name}: input_lens, output_lens and start_times differ in length")
    first = min(starts) if timed and starts else 0.0
    rows = [
        TraceRow(
            round((starts[i] - first) * NS_PER_S) if timed and starts else 0,
            int(prompt),
            int(output),
            None,
            0,
            i + 1,
        )
        for i, (prompt, output) in enumerate(zip(inputs, outputs, strict=True))
        if prompt > 0 and output > 0
    ]
    if timed:
        rows.sort(key=lambda row: row.t_ns)
    census = Census(rows=len(inputs), read=len(rows))
    return TraceRows(name, "vllm-bench", rows, 512, timed, census) if rows else None


def _guidellm(benchmarks: Any, name: str) -> list[Observation]:
    if not isinstance(benchmarks, Sequence) or not benchmarks:
        raise ResultError(f"{name}: benchmarks: there are none")
    return [_guidellm_run(run, f"{name}#{i}") for i, run in enumerate(benchmarks)]


def _guidellm_run(run: Mapping[str, Any], name: str) -> Observation:
    config, metrics = _section(run, "config", name), _section(run, "metrics", name)
    strategy = _section(config, "strategy", name)

    def successful(metric: str) -> Mapping[str, Any]:
        return _section(_section(metrics, metric, name), "successful", name)

    def mean(metric: str) -> float:
        return _number(successful(metric), "mean", f"{name}: {metric}")

    kind = strategy.get("type_")
    rate = float(strategy["rate"]) if kind in ("constant", "poisson") else math.inf
    concurrency = {"synchronous": 1, "concurrent": strategy.get("streams")}.get(str(kind))
    if kind == "throughput":
        concurrency = strategy.get("max_concurrency")
    elif kind not in ("synchronous", "concurrent", "constant", "poisson"):
        raise ResultError(f"{name}: strategy {kind!r} is not simulated")
    count = int(_number(successful("time_to_first_token_ms"), "count", name))
    prompt, output = mean("prompt_token_count"), mean("output_token_count")
    arrivals = "constant" if kind == "constant" else "poisson"
    return Observation(
        name,
        _load(name, count, prompt, output, rate, concurrency, arrivals),
        None,
        mean("time_to_first_token_ms"),
        mean("inter_token_latency_ms"),
        mean("output_tokens_per_second"),
    )


def _aiperf(document: Mapping[str, Any], name: str) -> Observation:
    def average(metric: str) -> float:
        return _number(_section(document, metric, name), "avg", f"{name}: {metric}")

    config = _section(document, "input_config", name)
    load = _aiperf_load(config, name)
    rate, concurrency = load.get("rate", load.get("request_rate")), load.get("concurrency")
    rate_per_s = math.inf if rate is None else float(rate)
    arrivals = str(load.get("type", load.get("request_rate_mode", "poisson")))
    return Observation(
        name,
        _load(
            name,
            int(average("request_count")),
            average("input_sequence_length"),
            average("output_sequence_length"),
            rate_per_s,
            None if math.isfinite(rate_per_s) else concurrency,
            "constant" if arrivals == "constant" else "poisson",
        ),
        None,
        average("time_to_first_token"),
        average("inter_token_latency"),
        average("output_token_throughput"),
    )


def _aiperf_load(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The profiling phase; before aiperf had phases, its load generator's options."""
    phases = config.get("phases")
    if isinstance(phases, Mapping):
        phases = [{"name": key, **phase} for key, phase in phases.items()]
    if isinstance(phases, Sequence):
        found = [phase for phase in phases if phase.get("name") == "profiling"] or list(phases)
        if found:
            last: Mapping[str, Any] = found[-1]
            return last
    return _section(config, "loadgen", name)


def _load(
    name: str,
    count: int,
    prompt: float,
    output: float,
    rate_per_s: float,
    concurrency: Any,
    arrivals: str = "poisson",
) -> WorkloadSpec:
    """A load of average requests: so many at once, or at a rate, or all at once."""
    if count < 1:
        raise ResultError(f"{name}: no request was completed")
    lengths = PromptSpec(FixedTokens(max(1, round(prompt))), FixedTokens(max(1, round(output))))
    if math.isfinite(rate_per_s):
        if rate_per_s <= 0:
            raise ResultError(f"{name}: a request rate of {rate_per_s} is not above 0")
        return OpenLoopSpec(lengths, arrivals, rate_per_s, num_requests=count)
    if concurrency is None:
        return BurstSpec(lengths, count)
    return ClosedLoopSpec(lengths, int(concurrency), count)


def _section(document: Mapping[str, Any], key: str, name: str) -> Mapping[str, Any]:
    section = document.get(key)
    if not isinstance(section, Mapping):
        raise ResultError(f"{name}: {key} is missing")
    return section


def _number(document: Mapping[str, Any], key: str, name: str) -> float:
    value = document.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ResultError(f"{name}: {key} is missing or not a number")
    return float(value)
