"""Sweep files: one scenario, some of its keys with several values each.

A cell of a sweep is one choice of every axis. Its scenario is the document with those values in
place of its own, read as if the file had been written so: a bad value is an error that names the
place in the sweep file.
"""

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from frontier_mock.config.document import Value, plain, read_document
from frontier_mock.config.errors import shown
from frontier_mock.config.keys import (
    REQUIRED,
    Key,
    boolean,
    integer,
    listing,
    mapping,
    number,
    open_section,
    optional,
    string,
)
from frontier_mock.config.scenario import ScenarioSpec, read_scenario
from frontier_mock.config.scenario_files import open_scenario, read_text
from frontier_mock.config.workloads import TraceSearch

MAX_CELLS = 10_000
"""Most cells of one sweep."""

SCENARIO = Key("scenario", string(), REQUIRED, "a file beside the sweep, or one of the library")
AXES = Key("axes", mapping(), REQUIRED, "path of a key, or a name: its values, or named choices")
REQUESTS = Key("requests", optional(integer(1)), None, "at most so many requests per cell")
CAPACITY = Key("capacity", optional(mapping()), None, "look for the most load that meets the SLO")
COLUMNS = Key("columns", listing("a list of paths"), (), "of the result JSON, to show as well")
SWEEP_KEYS: tuple[Key[Any], ...] = (SCENARIO, AXES, REQUESTS, CAPACITY, COLUMNS)

KEY = Key("key", string(), REQUIRED, "path of the key to look for, e.g. workload.rate_per_s")
LOW = Key("low", number(0, above=True), REQUIRED, "smallest value tried")
HIGH = Key("high", number(0, above=True), REQUIRED, "largest value tried")
SHARE = Key("share", number(0, 1, above=True), 0.9, "of the requests that must meet the SLO")
TOLERANCE = Key("tolerance", number(0, 1, above=True), 0.02, "relative width to stop at")
WHOLE = Key("whole", boolean(), False, "try whole numbers only, as workload.concurrency wants")
CAPACITY_KEYS: tuple[Key[Any], ...] = (KEY, LOW, HIGH, SHARE, TOLERANCE, WHOLE)


@dataclass(frozen=True, slots=True)
class Choice:
    """One value of an axis: how it is called, and what it puts where."""

    label: str
    values: tuple[tuple[str, Value], ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """A column of the table: its name and what may stand there."""

    name: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class CapacitySpec:
    """Look for the largest value of `key` in [low, high] with `share` of the requests good."""

    key: Value
    low: float
    high: float
    share: float
    tolerance: float
    whole: bool = False

    def between(self, low: float, high: float) -> float | None:
        """The load to try next, of four figures; None if `low` and `high` are close enough."""
        if high <= low * (1 + self.tolerance):
            return None
        # Loads differ by factors, so the middle is the geometric one.
        middle = float(f"{math.sqrt(low * high):.4g}")
        if self.whole:
            middle = float(max(math.floor(middle), math.floor(low) + 1))
        return middle if low < middle < high else None


@dataclass(frozen=True, slots=True)
class SweepSpec:
    """A sweep: its base document and how cells differ from it."""

    source: str
    base: Value
    search: TraceSearch
    axes: tuple[Axis, ...]
    requests: int | None
    capacity: CapacitySpec | None
    columns: tuple[str, ...]

    def cells(self) -> list[tuple[Choice, ...]]:
        """Every choice of the axes, the last axis fastest."""
        return list(itertools.product(*(axis.choices for axis in self.axes)))

    def scenario(self, cell: Sequence[Choice], load: float | None = None) -> ScenarioSpec:
        """The scenario of a cell, with `load` for the key of `capacity`. Raises ConfigError."""
        document = self.base
        for choice in cell:
            for path, value in choice.values:
                document = _put(document, path, value)
        if load is not None and self.capacity is not None:
            key = self.capacity.key
            whole = int(load) if load == int(load) else load
            document = _put(document, str(key.data), replace(key, data=whole))
        return read_scenario(document, self.search)


def load_sweep(name: str, environment: Mapping[str, str] | None = None) -> SweepSpec:
    """Read a sweep file. Raises ConfigError."""
    path = Path(name)
    section = open_section(read_document(read_text(path, "sweep"), name), SWEEP_KEYS)
    variables = os.environ if environment is None else environment
    scenario = section.get(SCENARIO)
    base, search = open_scenario(_beside(path.parent, scenario), variables)
    entries = section.get(AXES).data
    assert isinstance(entries, dict)
    axes = tuple(_axis(name, value) for name, value in entries.items())
    capacity = section.get(CAPACITY)
    sweep = SweepSpec(
        source=name,
        base=base,
        search=search,
        axes=axes,
        requests=section.get(REQUESTS),
        capacity=None if capacity is None else _capacity(capacity),
        columns=tuple(string().read(value) for value in section.get(COLUMNS)),
    )
    count = 1
    for axis in axes:
        count *= len(axis.choices)
    if count > MAX_CELLS:
        raise section.at("axes").error(f"{count} cells; at most {MAX_CELLS}")
    return sweep


def _beside(directory: Path, scenario: str) -> str:
    """A file's name as it is from here, if there is such a file beside the sweep."""
    path = directory / scenario
    return str(path) if path.is_file() else scenario


def _axis(name: str, value: Value) -> Axis:
    if isinstance(value.data, list) and value.data:
        return Axis(name, tuple(Choice(_label(item), ((name, item),)) for item in value.data))
    if isinstance(value.data, dict) and value.data:
        choices = []
        for label, entry in value.data.items():
            if not isinstance(entry.data, dict):
                raise entry.error("a named choice is a mapping of paths to values")
            choices.append(Choice(label, tuple(entry.data.items())))
        return Axis(name, tuple(choices))
    raise value.error("allowed: a list of values, or a mapping of names to {path: value, ...}")


def _label(value: Value) -> str:
    return value.data if isinstance(value.data, str) else str(plain(value))


def _capacity(value: Value) -> CapacitySpec:
    section = open_section(value, CAPACITY_KEYS)
    section.get(KEY)
    spec = CapacitySpec(
        section.at("key"),
        section.get(LOW),
        section.get(HIGH),
        section.get(SHARE),
        section.get(TOLERANCE),
        section.get(WHOLE),
    )
    if spec.low >= spec.high:
        raise section.at("high").error(f"{spec.high:g} is not above low ({spec.low:g})")
    return spec


def _put(document: Value, path: str, value: Value) -> Value:
    """`document` with `value` at `path`, which is made if it is missing. Raises ConfigError."""
    steps = path.split(".")
    if not all(steps):
        raise value.error(f"{shown(path)} is not a path such as cluster.workers.w.parallel.tp")
    return _put_at(document, steps, path, value)


def _name(entry: Value) -> str | None:
    """What a list's entry calls itself."""
    name = entry.data.get("name") if isinstance(entry.data, dict) else None
    return name.data if name is not None and isinstance(name.data, str) else None


def _put_at(here: Value, steps: Sequence[str], path: str, value: Value) -> Value:
    if not steps:
        return replace(value, path=path)
    first, rest = steps[0], steps[1:]
    if isinstance(here.data, list):
        names = [_name(entry) or str(index) for index, entry in enumerate(here.data)]
        at = int(first) if first.isdecimal() else names.index(first) if first in names else -1
        if not 0 <= at < len(names):
            allowed = ", ".join(names)
            raise value.error(f"{path}: no {shown(first)} in {here.path}; allowed: {allowed}")
        items = list(here.data)
        items[at] = _put_at(items[at], rest, path, value)
        return replace(here, data=items)
    if here.data is not None and not isinstance(here.data, dict):
        raise value.error(f"{path}: {here.path} is {shown(here.data)} and has no keys")
    entries = dict(here.data or {})
    where = f"{here.path}.{first}" if here.path else first
    below = entries.get(first, Value(None, where, value.source, value.line))
    entries[first] = _put_at(below, rest, path, value)
    return replace(here, data=entries)
