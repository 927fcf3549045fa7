"""`frontier-mock pools SCENARIO`: how many prefill and how many decode workers a workload wants.

Plays the scenario's workload once for each ratio, everything else as the file says: `1P3D` is one
prefill and three decode workers, `4C` four of the decode workers without a role (co-located).
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from frontier_mock.cli.options import command_parser, whole
from frontier_mock.cli.simulate import scenario_source, simulate
from frontier_mock.config.errors import ConfigError, shown
from frontier_mock.config.resolve import resolve_scenario
from frontier_mock.config.scenario import ScenarioSpec, WorkerGroup, load_scenario
from frontier_mock.report.charts import Chart, Line, standalone
from frontier_mock.report.summary import Result, RunReport
from frontier_mock.report.terminal import figure

DEFAULT_RATIOS = "1P3D,2P2D,3P1D,4C"
_RATIO = re.compile(r"(\d{1,3})P(\d{1,3})D|(\d{1,3})C")
_MOST = 512
_ONE_IN = tuple(digit * 10**power for power in range(7) for digit in (1, 2, 5))
_COLOURS = ("#1f77b4", "#2ca02c", "#9467bd", "#d62728", "#8c564b", "#7f7f7f")


@dataclass(frozen=True, slots=True)
class Pools:
    """So many workers of each kind; `together` are co-located."""

    name: str
    prefill: int = 0
    decode: int = 0
    together: int = 0


def run(argv: Sequence[str]) -> int:
    """Print the study. Raises ConfigError."""
    options = _options(argv)
    scenario = load_scenario(options.scenario)
    rows = []
    for name in options.ratios.split(","):
        pools = read_ratio(name)
        rows.append((pools, played(scenario, pools, options.requests)))
    if options.chart is not None:
        _write_chart(options.chart, rows)
    _print(
        [(pools, report.result) for pools, report in rows],
        scenario.slo.ttft_ms is not None or scenario.slo.tpot_ms is not None,
    )
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("pools", "Compare numbers of prefill and decode workers.")
    parser.add_argument("scenario", help="a scenario with prefill and decode workers")
    parser.add_argument("--ratios", default=DEFAULT_RATIOS, help=f"[{DEFAULT_RATIOS}]")
    parser.add_argument("--requests", type=whole(1), metavar="N", help="at most so many requests")
    parser.add_argument(
        "--chart", type=Path, metavar="SVG", help="write the tails of the gaps between tokens here"
    )
    return parser.parse_args(list(argv))


def read_ratio(name: str) -> Pools:
    """What `1P3D` or `4C` means. Raises ConfigError."""
    found = _RATIO.fullmatch(name.strip())
    counts = [int(count) for count in found.groups() if count is not None] if found else []
    if not counts or min(counts) < 1 or sum(counts) > _MOST:
        raise ConfigError(
            f"argument --ratios: {shown(name)}; allowed: xPyD or nC, {_MOST} workers at most"
        )
    if len(counts) == 1:
        return Pools(name, together=counts[0])
    return Pools(name, prefill=counts[0], decode=counts[1])


def study(scenario: ScenarioSpec, pools: Pools, requests: int | None = None) -> Result:
    """What becomes of the scenario's workload on so many workers. Raises ConfigError."""
    return played(scenario, pools, requests).result


def played(scenario: ScenarioSpec, pools: Pools, requests: int | None = None) -> RunReport:
    """The same with every sample. Raises ConfigError."""
    groups = tuple(_counted(group, pools) for group in scenario.groups)
    kept = tuple(group for group in groups if group.count)
    if {group.role for group in scenario.groups} != {"prefill", "decode"}:
        raise ConfigError(f"{scenario.source}: pools: workers must have roles prefill and decode")
    if len(scenario.groups) != 2:
        raise ConfigError(f"{scenario.source}: pools: one group of workers for each role")
    changed = replace(scenario, groups=kept, timeline=())
    resolved = resolve_scenario(changed)
    source, _ = scenario_source(changed, requests, None, cluster=resolved)
    return simulate(changed, resolved, source, None)


def itl_chart(rows: Sequence[tuple[Pools, RunReport]]) -> str:
    """An SVG: the gap between two tokens that one in so many exceeds, for each ratio."""
    lines, marks = [], []
    for i, (pools, report) in enumerate(rows):
        itl = report.samples.itl
        if not itl.count:
            continue
        most = [n for n in _ONE_IN if n <= itl.count]
        gaps_ms = (itl.quantiles_ns([1.0 - 1.0 / n for n in most]) / 1e6).tolist()
        lines.append(Line(pools.name, f"r{i}", list(zip(map(float, most), gaps_ms, strict=True))))
        # Named at different places, as pools that stall nobody lie upon each other.
        at = min(3 * (i + 1), len(most) - 1)
        marks.append((float(most[at]), gaps_ms[at], pools.name))
    if not lines:
        raise ConfigError("argument --chart: no request made a second token")
    chart = Chart("ITL by pools", "one token in", "ITL (ms)", lines, log_x=True, marks=marks)
    return standalone(chart, {f"r{i}": _COLOURS[i % len(_COLOURS)] for i in range(len(rows))})


def _write_chart(path: Path, rows: Sequence[tuple[Pools, RunReport]]) -> None:
    try:
        path.write_text(itl_chart(rows), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"argument --chart: {path}: {error.strerror}") from None


def _counted(group: WorkerGroup, pools: Pools) -> WorkerGroup:
    if pools.together:
        count = pools.together if group.role == "decode" else 0
        sglang = group.sglang
        if sglang is not None:
            sglang = replace(sglang, disaggregation_mode="null")
        args = replace(group.args, kv_transfer_config=None)
        alone = replace(group, role="colocated", args=args, sglang=sglang)
        return replace(alone, count=count, port=0)
    return replace(group, count=pools.prefill if group.role == "prefill" else pools.decode, port=0)


def _print(rows: Sequence[tuple[Pools, Result]], judged: bool) -> None:
    table = Table(box=None)
    heads = ["pools", "requests/s", "TTFT mean", "p99", "TPOT mean", "ITL max", "busy P", "busy D"]
    if judged:
        heads.insert(2, "goodput/s")
    for head in heads:
        table.add_column(head, justify="left" if head == "pools" else "right")
    for pools, result in rows:
        good = result["goodput_requests_per_s"]
        cells = [pools.name, f"{result['requests_per_s']:,.2f}"]
        if judged:
            cells.append("-" if good is None else f"{good:,.2f}")
        ttft = result["ttft_ms"]
        cells += [figure(ttft["mean"]), figure(ttft["p99"]), figure(result["tpot_ms"]["mean"])]
        cells += [figure(result["itl_ms"]["max"]), *_busy(pools, result)]
        table.add_row(*cells)
    Console().print(table)


def _busy(pools: Pools, result: Result) -> list[str]:
    """Mean busy share of prefill and of decode workers; of all of them where they are one."""
    shares = [worker["busy_fraction"] for worker in result["workers"]]
    parts = (shares[: pools.prefill] or shares, shares[pools.prefill :])
    return [f"{sum(part) / len(part):.0%}" for part in parts]
