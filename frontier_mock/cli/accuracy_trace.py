"""One real trace, request by request: vLLM 0.19 with Llama-3.1-8B on one RTX PRO 6000.

LLMServingSim's 300 ShareGPT requests, which more than fill the batch: what is compared is the whole
distribution of each latency, and their means. Times run from a request's entry into the queue,
which is where the trace begins, so the front end is left out of the simulation too.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from frontier_mock.cluster.build import build_cluster
from frontier_mock.config.resolve import build_costs, resolve_single
from frontier_mock.config.vllm_flags import VllmArgs
from frontier_mock.drive.offline import run as play
from frontier_mock.report.charts import Chart, Line, standalone
from frontier_mock.report.summary import report_cluster
from frontier_mock.simtime import NS_PER_MS, NS_PER_S
from frontier_mock.workload.build import build_source
from frontier_mock.workload.rows import Census, TraceRow, TraceRows
from frontier_mock.workload.specs import TraceSpec

TRACE: Final = Path("llmservingsim_rtxpro6000_llama8b") / "vllm" / "requests.jsonl"
GPU: Final = "rtx-pro-6000"
ARGS: Final = VllmArgs(
    model="meta-llama/Llama-3.1-8B-Instruct", max_num_seqs=128, max_num_batched_tokens=2048
)
QUANTILES: Final = (0.1, 0.5, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Latencies:
    """One latency of every request in ms, measured and simulated, in no common order."""

    name: str
    measured: Sequence[float]
    simulated: Sequence[float]


def compare_trace(folder: Path) -> list[Latencies]:
    """TTFT, TPOT, E2E and when each request ended, of the trace under `folder`."""
    lines = (folder / TRACE).read_text(encoding="utf-8").splitlines()
    requests = [json.loads(line) for line in lines]
    measured = {
        "TTFT": [1e3 * (r["first_token_ts"] - r["queued_ts"]) for r in requests],
        "TPOT": [
            1e3 * (r["last_token_ts"] - r["first_token_ts"]) / (r["output_toks"] - 1)
            for r in requests
            if r["output_toks"] > 1
        ],
        "E2E": [1e3 * (r["last_token_ts"] - r["queued_ts"]) for r in requests],
        "whole run": [1e3 * (r["last_token_ts"] - requests[0]["queued_ts"]) for r in requests],
    }
    simulated = _simulated_ms(requests)
    return [Latencies(name, measured[name], simulated[name]) for name in measured]


def _simulated_ms(requests: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    begin = min(r["queued_ts"] for r in requests)
    rows = [
        TraceRow(
            round((r["queued_ts"] - begin) * NS_PER_S),
            r["input_toks"],
            r["output_toks"],
            None,
            0,
            i + 1,
        )
        for i, r in enumerate(requests)
    ]
    rows.sort(key=lambda row: row.t_ns)
    count = len(rows)
    trace = TraceRows("trace", "jsonl", rows, 512, True, Census(rows=count, read=count))
    resolved = resolve_single(ARGS, GPU, "vllm-0.19", seed=0)
    (worker,) = resolved.spec.workers
    engine = replace(worker.step.engine, frontend_s=0.0, frontend_token_s=0.0)
    worker = replace(worker, step=replace(worker.step, engine=engine))
    spec = replace(resolved.spec, workers=(worker,))
    cluster = build_cluster(spec, build_costs(spec))
    done = play(cluster, build_source(TraceSpec("trace"), seed=0, rows=trace))
    records = report_cluster(done.cluster, "trace", 0.0).records
    return {
        "TTFT": [(r.first_token_ns - r.arrival_ns) / NS_PER_MS for r in records],
        "TPOT": [
            (r.finish_ns - r.first_token_ns) / (r.output_tokens - 1) / NS_PER_MS
            for r in records
            if r.output_tokens > 1
        ],
        "E2E": [(r.finish_ns - r.arrival_ns) / NS_PER_MS for r in records],
        "whole run": [r.finish_ns / NS_PER_MS for r in records],
    }


def trace_rows(latencies: Sequence[Latencies]) -> list[dict[str, Any]]:
    """Mean and quantiles of each latency: `what`, `measured_ms`, `simulated_ms`."""
    rows = []
    for each in latencies:
        real, ours = np.array(each.measured), np.array(each.simulated)
        if each.name == "whole run":  # equal tokens: its error is that of the throughput
            rows.append(_trace_row(each.name, real.max(), ours.max()))
            continue
        rows.append(_trace_row(f"{each.name} mean", real.mean(), ours.mean()))
        for q in QUANTILES:
            name = f"{each.name} p{100 * q:.0f}"
            rows.append(_trace_row(name, np.quantile(real, q), np.quantile(ours, q)))
    return rows


def _trace_row(what: str, measured_ms: float, simulated_ms: float) -> dict[str, Any]:
    return {
        "what": what,
        "measured_ms": float(measured_ms),
        "simulated_ms": float(simulated_ms),
    }


_COLOURS: Final = {"measured": "#d62728", "simulated": "#1f77b4"}


def trace_charts(latencies: Sequence[Latencies]) -> dict[str, str]:
    """An SVG a latency: the share of requests at or below each value, measured and simulated."""
    charts = {}
    for each in latencies:
        if each.name == "whole run":
            continue
        lines = [
            Line(name, css, _shares(values))
            for name, css, values in (
                ("measured", "measured", each.measured),
                ("simulated", "simulated", each.simulated),
            )
        ]
        chart = Chart(f"{each.name}: share of requests", f"{each.name} (ms)", "", lines, y_max=1.0)
        charts[each.name.lower()] = standalone(replace(chart, percent_y=True), _COLOURS)
    return charts


def _shares(values: Sequence[float]) -> list[tuple[float, float]]:
    ordered = sorted(values)
    return [(value, (i + 1) / len(ordered)) for i, value in enumerate(ordered)]
