"""What happens to a cluster while it runs: a scenario's `cluster.timeline`.

Times count from the start of the run. A worker that is to come later `leave`s at 0 and `start`s
when it is asked for: it takes requests once its weights are loaded, over PCIe from host memory, as
fast as the hardware profile says, or after `load_s`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from frontier_mock.config.document import Value
from frontier_mock.config.errors import ConfigError, nearest, shown
from frontier_mock.config.keys import REQUIRED, Key, number, one_of, open_section, optional, string
from frontier_mock.core.commands import CHANGES, Change
from frontier_mock.simtime import SimTime, from_seconds

START: Final = "start"

AT = Key("at_s", number(0), REQUIRED, "when, in seconds")
WORKER = Key("worker", string(), REQUIRED, "name of the worker")
DO = Key("do", one_of(*CHANGES, START), REQUIRED, "what happens")
FACTOR = Key(
    "factor",
    optional(number(0, 1000, above=True)),
    None,
    "link, and required there: speed compared with its own",
)
LOAD = Key("load_s", optional(number(0)), None, "start: time to load weights; null: by PCIe")
TIMELINE_KEYS: tuple[Key[Any], ...] = (AT, WORKER, DO, FACTOR, LOAD)


@dataclass(frozen=True, slots=True)
class Happening:
    """One entry. `where` is file, line and path."""

    at_s: float
    worker: str
    what: str
    factor: float | None
    load_s: float | None
    where: str


def read_timeline(values: Sequence[Value]) -> tuple[Happening, ...]:
    """A scenario's `cluster.timeline`. Raises ConfigError."""
    made = []
    for value in values:
        section = open_section(value, TIMELINE_KEYS)
        where = f"{value.source}:{value.line}: {value.path}"
        what, factor = section.get(DO), section.get(FACTOR)
        if what == "link" and factor is None:
            raise ConfigError(f"{where}: do: link needs a factor; allowed: a number above 0")
        if what != "link" and factor is not None:
            raise ConfigError(f"{where}: factor: {factor:g} goes with do: link only, not {what}")
        made.append(
            Happening(section.get(AT), section.get(WORKER), what, factor, section.get(LOAD), where)
        )
    return tuple(made)


def changes(
    happenings: Sequence[Happening], servers: Sequence[tuple[str, int, float]]
) -> tuple[tuple[SimTime, Change], ...]:
    """When what happens to which engine; `servers` are names, first engines and seconds to load.

    Raises ConfigError for a worker that is not there.
    """
    by_name = {name: (first, load_s) for name, first, load_s in servers}
    made: list[tuple[SimTime, Change]] = []
    for one in happenings:
        found = by_name.get(one.worker)
        if found is None:
            hint = nearest(one.worker, tuple(by_name))
            raise ConfigError(f"{one.where}: worker: no worker is named {shown(one.worker)}{hint}")
        first, load_s = found
        at_s, what = one.at_s, one.what
        if what == START:
            at_s, what = at_s + (load_s if one.load_s is None else one.load_s), "join"
        made.append((from_seconds(at_s), Change(first, what, one.factor)))
    return tuple(sorted(made, key=lambda entry: entry[0]))
