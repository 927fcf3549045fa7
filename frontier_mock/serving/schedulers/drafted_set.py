"""Decodes that take part in a step with more or fewer tokens each: their sums, step by step.

A sequence's course is known when it joins, so it adds its rows to sums kept by step, once, and
takes back those of steps that it will not see if it leaves early. What a step computes, and the
blocks that a run of steps needs, are then read off, whatever the number of sequences.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

UNBOUNDED: Final = 1 << 60
"""More tokens than any step has."""

_LEAST: Final = 1024
"""Steps that there is room for at first."""

_KEPT_STEPS: Final = 4
"""Steps decided already whose sums somebody may ask for: those executing and behind it."""


class StepLoads(NamedTuple):
    """What each of a run of steps computes for its decodes.

    `seqs` sequences take part, with `tokens` tokens to compute and a total context of `kv_tokens`.
    """

    seqs: Ints
    tokens: Ints
    kv_tokens: Ints


class DraftedSet:
    """Sums over sequences by step; `blocks` are those that must be there when it is decided."""

    __slots__ = ("_extra", "_origin", "_sums")

    def __init__(self, extra_slots: int = 0) -> None:
        """A step's budget also pays for `extra_slots` tokens of each sequence in it."""
        self._extra = extra_slots
        self._origin = 0
        self._sums = np.zeros((4, _LEAST), dtype=np.int64)

    def add(self, first: int, rows: tuple[Ints, Ints, Ints], sign: int = 1) -> None:
        """Add widths, contexts and new blocks of one sequence, from step `first` on.

        `sign` -1 takes them out again.
        """
        widths, contexts, blocks = rows
        count = len(widths)
        at = self._room(first, count)
        part = self._sums[:, at : at + count]
        part[0] += sign * (widths > 0)
        part[1] += sign * widths
        part[2] += sign * contexts
        part[3] += sign * blocks

    def loads(self, first: int, last: int) -> StepLoads:
        """What steps `first` to `last` compute."""
        at = self._room(first, last - first + 1)
        part = self._sums[:3, at : at + last - first + 1]
        return StepLoads(part[0], part[1], part[2])

    def tokens_of(self, step: int) -> int:
        """Tokens that step `step` takes from its budget."""
        seqs, tokens = self._sums[:2, self._room(step, 1)].tolist()
        return int(tokens) + self._extra * int(seqs)

    def blocks_of(self, step: int) -> int:
        """Blocks that `step` needs beyond those there are."""
        return int(self._sums[3, self._room(step, 1)])

    def blocks_of_run(self, first: int, last: int) -> int:
        """The same of steps `first` to `last` together."""
        at = self._room(first, last - first + 1)
        return int(self._sums[3, at : at + last - first + 1].sum())

    def last_within(self, first: int, limit: int, blocks: int, tokens: int) -> int:
        """Largest step <= `limit` such that all from `first` on have what they need.

        That is `blocks` together, and `tokens` each.
        """
        if limit < first:
            return limit
        at = self._room(first, limit - first + 1)
        part = self._sums[:, at : at + limit - first + 1]
        short = (np.cumsum(part[3]) > blocks) | (part[1] + self._extra * part[0] > tokens)
        return first + int(np.argmax(short)) - 1 if short.any() else limit

    def forget_before(self, step: int) -> None:
        """Nobody will ask for steps before `step`; room for more is made of theirs."""
        gone = step - self._origin
        if gone >= self._sums.shape[1] // 2:
            kept = self._sums[:, gone:]
            self._sums = np.concatenate((kept, np.zeros((4, gone), dtype=np.int64)), axis=1)
            self._origin = step

    def _room(self, first: int, count: int) -> int:
        """Where step `first` is, with room for `count` steps from there."""
        at = first - self._origin
        size = self._sums.shape[1]
        if at + count > size:
            more = max(size, at + count - size)
            self._sums = np.pad(self._sums, ((0, 0), (0, more)))
        return at


class BySums:
    """The part of a set of decodes that says what steps need: read off `_sums`.

    Stands before `decode_set.DecodeSet` among the bases of a set with drafts.
    """

    __slots__ = ()

    _sums: DraftedSet

    def tokens_of(self, step: int) -> int:
        """Tokens that `step` takes from its budget for them."""
        return self._sums.tokens_of(step)

    def loads(self, first: int, last: int) -> StepLoads:
        """What steps `first` to `last` compute for them."""
        return self._sums.loads(first, last)

    def blocks_of(self, step: int) -> int:
        """Blocks that `step` needs beyond those there are."""
        return self._sums.blocks_of(step)

    def blocks_of_run(self, first: int, last: int) -> int:
        """The same of steps `first` to `last` together."""
        return self._sums.blocks_of_run(first, last)

    def last_within(self, first: int, limit: int, blocks: int, tokens: int = UNBOUNDED) -> int:
        """Largest step <= `limit` such that `blocks` and `tokens` suffice from `first` to there."""
        return self._sums.last_within(first, limit, blocks, tokens)

    def forget_seen(self, step: int) -> None:
        """`step` is about to be decided: nobody asks for steps long before it."""
        self._sums.forget_before(step - _KEPT_STEPS)
