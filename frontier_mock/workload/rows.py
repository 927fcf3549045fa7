"""What a trace is once read: rows, and a census of everything that happened on the way."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from frontier_mock.simtime import SimTime


class TraceError(ValueError):
    """The trace as a whole cannot be used; the message says why, naming the trace."""


class TraceRow(NamedTuple):
    """One request of a trace. `ids` are its prefix-chained hash ids, None if the trace has none."""

    t_ns: SimTime
    prompt_tokens: int
    output_tokens: int
    ids: npt.NDArray[np.int64] | None
    priority: int
    line: int


class SkippedRow(NamedTuple):
    """A row that was not played, and why; `line` counts from 1 and includes the header."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Census:
    """What became of every row: `rows == read + len(skipped)`.

    `clipped` rows had a length of 0 and were given 1 token. `out_of_order` rows were earlier than
    a row above them and were sorted in. `duplicates` repeat an earlier row in everything and are
    played. `blank` lines hold no row. `ignored` are the fields that mean nothing to the replay.
    """

    rows: int = 0
    read: int = 0
    blank: int = 0
    clipped: int = 0
    out_of_order: int = 0
    duplicates: int = 0
    skipped: tuple[SkippedRow, ...] = ()
    ignored: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The census in words, one fact a line, every skipped row named."""
        text = [f"{self.read} of {self.rows} rows read"]
        for count, what in (
            (self.clipped, "with a length of 0, raised to 1"),
            (self.out_of_order, "out of order, sorted by time"),
            (self.duplicates, "repeating an earlier row, kept"),
        ):
            if count:
                text.append(f"{count} {what}")
        if self.ignored:
            text.append(f"fields not used: {', '.join(self.ignored)}")
        text.extend(f"line {line}: skipped: {reason}" for line, reason in self.skipped)
        return text


@dataclass(frozen=True, slots=True)
class TraceRows:
    """A whole trace, rows sorted by time. `timed` is False if it records lengths only."""

    name: str
    format: str
    rows: Sequence[TraceRow]
    id_tokens: int
    timed: bool
    census: Census
