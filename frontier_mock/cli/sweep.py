"""`frontier-mock sweep SWEEP.yaml`: a scenario over a grid of its keys, offline, on every core.

With `capacity:` each cell looks for the most load at which enough requests meet the scenario's SLO,
by halving the interval between a load that does and one that does not.
"""

import argparse
import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from frontier_mock.cli.options import command_parser, whole, writable_directory, write_text
from frontier_mock.cli.simulate import scenario_source, simulate
from frontier_mock.config.errors import ConfigError, shown
from frontier_mock.config.resolve import resolve_scenario
from frontier_mock.config.scenario import ScenarioSpec
from frontier_mock.config.sweep import CapacitySpec, Choice, SweepSpec, load_sweep
from frontier_mock.report.summary import Result
from frontier_mock.report.terminal import figure

FIGURES = {
    "requests_per_s": "requests/s",
    "goodput_requests_per_s": "goodput/s",
    "output_tokens_per_s": "output tokens/s",
    "ttft_ms.mean": "TTFT ms",
    "ttft_ms.p99": "TTFT p99",
    "tpot_ms.mean": "TPOT ms",
    "tpot_ms.p99": "TPOT p99",
    "cost.output_tokens_per_usd": "tokens/$",
}
"""Columns of every table: paths of the result JSON, and what they are called on a terminal."""

GOODPUT = "goodput_requests_per_s"
"""The column that is there only if the scenario has an SLO."""

WIDTH = 160
"""Columns of a table that is not printed to a terminal."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What became of one cell. `refused` says why there is no result.

    `capacity` is the largest load that met the SLO, None if the smallest did not; `result` is the
    run at that load.
    """

    labels: tuple[str, ...]
    result: Result | None
    refused: str = ""
    capacity: float | None = None


def run(argv: Sequence[str]) -> int:
    """Play every cell, print the table, write the files asked for. Raises ConfigError."""
    options = _options(argv)
    sweep = load_sweep(options.sweep)
    chosen = sweep.cells()
    _check(sweep, chosen)
    cells = []
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    with console.status("") as status:
        for cell in _play(sweep, chosen, options.jobs):
            cells.append(cell)
            status.update(f"{len(cells)} of {len(chosen)} cells")
    columns = _columns(sweep, cells)
    console.print(_table(sweep, cells, columns))
    if options.json is not None:
        document = {"sweep": sweep.source, "cells": [_as_json(sweep, cell) for cell in cells]}
        write_text(Path(options.json), json.dumps(document, indent=2) + "\n")
    if options.out is not None:
        directory = writable_directory(options.out)
        write_text(directory / "sweep.csv", _as_csv(sweep, cells, columns))
    return 0 if any(cell.result is not None for cell in cells) else 1


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("sweep", "Run a scenario over a grid of its keys, offline.")
    parser.add_argument("sweep", help="a sweep file: scenario, axes, perhaps capacity")
    parser.add_argument(
        "--jobs", type=whole(1), default=os.cpu_count() or 1, help="processes [one per core]"
    )
    parser.add_argument("--json", metavar="FILE", help="write the result JSON of every cell")
    parser.add_argument("--out", metavar="DIR", help="write the table as sweep.csv there")
    return parser.parse_args(list(argv))


def _check(sweep: SweepSpec, chosen: Sequence[tuple[Choice, ...]]) -> None:
    """Tell a misspelt path or value before anything runs. Raises ConfigError."""
    load = None if sweep.capacity is None else sweep.capacity.low
    for cell in chosen:
        scenario = sweep.scenario(cell, load)
        if sweep.capacity is not None and scenario.slo == type(scenario.slo)():
            raise ConfigError(f"{sweep.source}: capacity: the scenario has no slo to meet")


def _play(sweep: SweepSpec, chosen: Sequence[tuple[Choice, ...]], jobs: int) -> Iterator[Cell]:
    """Every cell, in order. One process is this one."""
    if jobs == 1 or len(chosen) == 1:
        for cell in chosen:
            yield play_cell(sweep, cell)
        return
    with ProcessPoolExecutor(min(jobs, len(chosen)), get_context("spawn")) as pool:
        yield from pool.map(play_cell, [sweep] * len(chosen), chosen)


def play_cell(sweep: SweepSpec, cell: Sequence[Choice]) -> Cell:
    """Play one cell; a configuration that cannot be is told, not raised."""
    labels = tuple(choice.label for choice in cell)
    try:
        if sweep.capacity is None:
            return Cell(labels, _result(sweep.scenario(cell), sweep.requests))
        capacity, result = _find_capacity(sweep, sweep.capacity, cell)
        return Cell(labels, result, capacity=capacity)
    except ConfigError as error:
        return Cell(labels, None, str(error))


def _result(scenario: ScenarioSpec, requests: int | None) -> Result:
    resolved = resolve_scenario(scenario)
    blocks = max(worker.spec.scheduler.block_size for worker in resolved.workers)
    source, _ = scenario_source(scenario, requests, None, block_tokens=blocks, cluster=resolved)
    return simulate(scenario, resolved, source, None).result


def _find_capacity(
    sweep: SweepSpec, spec: CapacitySpec, cell: Sequence[Choice]
) -> tuple[float | None, Result]:
    """The largest load that meets the SLO, and its run; the smallest load's if none does."""

    def meets(load: float) -> tuple[bool, Result]:
        result = _result(sweep.scenario(cell, load), sweep.requests)
        return good_share(result) >= spec.share, result

    good, best = meets(spec.low)
    if not good:
        return None, best
    good, top = meets(spec.high)
    if good:
        return spec.high, top
    low, high = spec.low, spec.high
    while (middle := spec.between(low, high)) is not None:
        good, result = meets(middle)
        if good:
            low, best = middle, result
        else:
            high = middle
    return low, best


def good_share(result: Result) -> float:
    """Share of the requests submitted that met the SLO."""
    good = result["goodput_requests_per_s"]
    submitted = result["requests"]["submitted"]
    if good is None or not submitted:
        return 0.0
    return good * result["duration_s"] / submitted


def look_up(result: Result, path: str) -> object:
    """The value at a dotted path of the result, None if there is none."""
    here: Any = result
    for step in path.split("."):
        if isinstance(here, dict):
            here = here.get(step)
        elif isinstance(here, list) and step.isdecimal() and int(step) < len(here):
            here = here[int(step)]
        else:
            return None
    return here


def _columns(sweep: SweepSpec, cells: Sequence[Cell]) -> list[str]:
    results = [cell.result for cell in cells if cell.result is not None]
    judged = any(result["goodput_requests_per_s"] is not None for result in results)
    columns = [path for path in FIGURES if judged or path != GOODPUT]
    columns += [path for path in sweep.columns if path not in columns]
    for path in sweep.columns:
        if results and all(look_up(result, path) is None for result in results):
            raise ConfigError(f"{sweep.source}: columns: no result has {shown(path)}")
    return columns


def _cells_of(sweep: SweepSpec, cell: Cell, columns: Sequence[str]) -> list[object]:
    row: list[object] = list(cell.labels)
    if sweep.capacity is not None:
        row.append(cell.capacity)
    result = cell.result
    row += [None if result is None else look_up(result, path) for path in columns]
    return row


def _heads(sweep: SweepSpec, columns: Sequence[str]) -> list[str]:
    heads = [axis.name for axis in sweep.axes]
    if sweep.capacity is not None:
        heads.append(f"capacity: {sweep.capacity.key.data}")
    return [*heads, *columns]


def _table(sweep: SweepSpec, cells: Sequence[Cell], columns: Sequence[str]) -> Table:
    table = Table(box=None)
    names = [axis.name for axis in sweep.axes]
    heads = [_short(name, names) for name in names]
    if sweep.capacity is not None:
        heads.append(f"most {_short(str(sweep.capacity.key.data), names)}")
    heads += [FIGURES.get(path, path) for path in columns]
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < len(names) else "right")
    for cell in cells:
        if cell.refused:
            table.add_row(*cell.labels, cell.refused, style="yellow")
            continue
        table.add_row(*[_shown(value) for value in _cells_of(sweep, cell, columns)])
    return table


def _short(name: str, names: Sequence[str]) -> str:
    """The last word of a path, if no other one ends so."""
    last = name.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in names) <= 1 else name


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return figure(value) if isinstance(value, float) else str(value)


def _as_csv(sweep: SweepSpec, cells: Sequence[Cell], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_heads(sweep, columns), "refused"])
    for cell in cells:
        row = _cells_of(sweep, cell, columns)
        writer.writerow(["" if value is None else value for value in row] + [cell.refused])
    return text.getvalue()


def _as_json(sweep: SweepSpec, cell: Cell) -> dict[str, object]:
    made = asdict(cell)
    made["labels"] = dict(zip([axis.name for axis in sweep.axes], cell.labels, strict=True))
    if sweep.capacity is None:
        del made["capacity"]
    return made
