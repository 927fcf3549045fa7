"""`frontier-mock accuracy`: the simulator against real serving measurements.

Every vLLM and SGLang row of shared/data/measurements is run from its configuration alone, under its
own client protocol (cost_model.md section 2.1). No constant comes out of a regression on these
rows, but some choices were made with them in sight: docs/accuracy.md says where they are listed.
Printed are the median absolute and signed errors of mean TPOT and TTFT by data set, TP degree and
load octave.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from frontier_mock.cli.accuracy_rows import Outcome, measure
from frontier_mock.cli.accuracy_trace import TRACE, compare_trace, trace_charts, trace_rows
from frontier_mock.cli.anchors import Anchor, anchors
from frontier_mock.cli.capacity_anchors import capacity_anchors
from frontier_mock.cli.pd_anchors import pd_anchors
from frontier_mock.cli.serving_anchors import serving_anchors
from frontier_mock.report.accuracy_page import accuracy_page

DATA = Path("..") / "shared" / "data" / "measurements"


def _error(simulated: float, measured: float) -> float:
    return 100 * (simulated / measured - 1)


def _summary(outcomes: list[Outcome]) -> dict[str, float]:
    tpot = [_error(o.tpot_sim_ms, o.tpot_ms) for o in outcomes]
    ttft = [_error(o.ttft_sim_ms, o.ttft_ms) for o in outcomes if o.ttft_known]
    result: dict[str, float] = {
        "rows": len(outcomes),
        "tpot_median_abs": statistics.median(map(abs, tpot)),
        "tpot_median_signed": statistics.median(tpot),
    }
    closed = [100 * (o.throughput_ratio - 1) for o in outcomes if o.closed_loop]
    if closed:
        result["throughput_median_abs"] = statistics.median(map(abs, closed))
        result["throughput_median_signed"] = statistics.median(closed)
    result["peak_share"] = statistics.median(o.peak_share for o in outcomes)
    if ttft:
        result["ttft_median_abs"] = statistics.median(map(abs, ttft))
        result["ttft_median_signed"] = statistics.median(ttft)
    return result


def run(argv: list[str]) -> int:
    """Entry point of the command; returns the exit code."""
    parser = argparse.ArgumentParser("frontier-mock accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the measurements")
    parser.add_argument("--json", type=Path, help="write every row and the summary here")
    parser.add_argument("--rows", default="", help="only rows whose label contains this")
    parser.add_argument("--docs", type=Path, help="write the page of this name (docs/accuracy.md)")
    parser.add_argument("--verbose", action="store_true", help="print every row")
    arguments = parser.parse_args(argv)
    if not arguments.data.is_dir():
        print(f"frontier-mock: error: --data: {arguments.data} is not a folder", file=sys.stderr)
        return 2
    outcomes = measure(arguments.data, arguments.rows)
    if not outcomes:
        print(f"frontier-mock: error: --rows: {arguments.rows!r} matches none", file=sys.stderr)
        return 2
    if arguments.verbose:
        _print_rows(outcomes)
    report = summarise(outcomes)
    _print_summary(report)
    print("accuracy: published anchors", file=sys.stderr, flush=True)
    published = (
        []
        if arguments.rows
        else [*capacity_anchors(), *anchors(), *serving_anchors(), *pd_anchors()]
    )
    _print_anchors(published)
    latencies = []
    if not arguments.rows and (arguments.data / TRACE).is_file():
        latencies = compare_trace(arguments.data)
    trace = trace_rows(latencies)
    for row in trace:
        error = _error(row["simulated_ms"], row["measured_ms"])
        print(f"trace {row['what']:12s} {row['measured_ms']:10.1f} ms {error:+6.1f}%")
    if arguments.docs:
        kernels = kernel_errors(arguments.docs.parent)
        page = accuracy_page(report, kernels, [asdict(a) for a in published], trace)
        arguments.docs.write_text(page)
        for name, svg in trace_charts(latencies).items():
            (arguments.docs.parent / f"accuracy-{name}.svg").write_text(svg)
    if arguments.json:
        rows = [asdict(outcome) for outcome in outcomes]
        document = {"summary": report, "rows": rows, "trace": trace}
        arguments.json.write_text(json.dumps(document, indent=1))
    return 0


def kernel_errors(folder: Path) -> list[dict[str, Any]]:
    """Held-out errors of the kernel tables as `scripts/fit_profiles --check --json` wrote them."""
    path = folder / "kernel-errors.json"
    if not path.is_file():
        return []
    errors: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return errors


def summarise(outcomes: list[Outcome]) -> dict[str, dict[str, float]]:
    """Median errors in percent, by data set and within it by TP degree and load octave."""
    groups: dict[str, list[Outcome]] = {}
    for o in outcomes:
        octave = 1 << int(math.log2(o.load))
        for suffix in ("", f" | tp{o.tp}", f" | load {octave}..{2 * octave - 1}"):
            groups.setdefault(o.group + suffix, []).append(o)
    return {name: _summary(rows) for name, rows in sorted(groups.items())}


def _print_rows(outcomes: list[Outcome]) -> None:
    for o in outcomes:
        print(
            f"{o.label:84s} TPOT {o.tpot_ms:7.2f} {_error(o.tpot_sim_ms, o.tpot_ms):+6.1f}%  "
            f"TTFT {o.ttft_ms:9.1f} {_error(o.ttft_sim_ms, o.ttft_ms):+6.1f}%  "
            f"tokens/s {100 * (o.throughput_ratio - 1):+6.1f}%"
        )


def _print_anchors(published: Sequence[Anchor]) -> None:
    for anchor in published:
        print(
            f"{anchor.row:4s} {anchor.what:64s} {anchor.measured:8.0f} {anchor.simulated:8.0f} "
            f"{anchor.unit} {anchor.error:+6.1f}%"
        )


def _print_summary(report: dict[str, dict[str, float]]) -> None:
    print(f"{'group':80s} rows   TPOT  signed   TTFT  signed  tokens/s  signed")
    for name, figures in report.items():
        cells = [f"{name:80s} {figures['rows']:4.0f}"]
        for metric in ("tpot", "ttft", "throughput"):
            if f"{metric}_median_abs" in figures:
                off, bias = figures[f"{metric}_median_abs"], figures[f"{metric}_median_signed"]
                cells.append(f"{off:5.1f}% {bias:+6.1f}%")
            else:
                cells.append(f"{'not known':>14s}")
        print(" ".join(cells))
