"""Many steps of a pipeline in which nothing changes: their ends, and any state on the way."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from frontier_mock.serving.pipeline import Lane, Pipeline, State, Work, foresee

_LEAST_ROUNDS = 4
"""Fewer rounds than this are not worth a closed form."""


class Piece(NamedTuple):
    """Slots from `first` on: one by one (`states`), or by the round (`lanes`, from round 1 on).

    A piece of rounds begins in slot `first`, whatever the place of that in a lane's numbering;
    `states` has what went before it then: its last three rounds.
    """

    first: int
    states: list[State]
    lanes: tuple[Lane | None, ...] = ()


class Run:
    """Steps in slots `first` to `last`, each lane repeating its own work.

    `works[i]` is the work of the slot `first + i`, None if its lane is empty; in every further
    round it is that much later. `before` is the state before the first one, the last `depth` of
    whose ends are those of the slots before it.
    """

    __slots__ = ("_pipeline", "_works", "first", "last", "pieces")

    def __init__(
        self,
        pipeline: Pipeline,
        before: State,
        works: Sequence[Work | None],
        first: int,
        last: int,
    ) -> None:
        self._pipeline = pipeline
        self._works = works
        self.first = first
        self.last = last
        self.pieces: list[Piece] = []
        self._fill(before)

    def _fill(self, state: State) -> None:
        pipeline, works, size = self._pipeline, self._works, self._pipeline.lanes
        slot, states = self.first, list[State]()
        begun = slot
        tries = 3
        while slot <= self.last:
            rounds_left = (self.last - slot + 1) // size
            exact = len(states) // size
            if exact >= tries and rounds_left >= _LEAST_ROUNDS and len(states) % size == 0:
                tries = exact + max(1, exact // 2)
                done = (slot - self.first) // size
                latest = [None if work is None else work.later(done - 1) for work in works]
                history = [states[-3 * size : -2 * size], states[-2 * size : -size], states[-size:]]
                lanes, rounds = foresee(pipeline, history, latest, rounds_left)
                if rounds >= _LEAST_ROUNDS:
                    self.pieces.append(Piece(begun, states))
                    self.pieces.append(Piece(slot, states[-3 * size :], lanes))
                    slot += rounds * size
                    state = self.state(slot - 1)
                    states, begun, tries = [], slot, 3
                    continue
            done, place = divmod(slot - self.first, size)
            work = works[place]
            now = None if work is None else work.later(done)
            # The slot that had to end before this one was decided is the oldest kept.
            state = pipeline.after(state, now, state.ends[0])
            states.append(state)
            slot += 1
        if states:
            self.pieces.append(Piece(begun, states))

    def _piece(self, slot: int) -> Piece:
        return self.pieces[bisect_right(self.pieces, slot, key=lambda piece: piece.first) - 1]

    def end(self, slot: int) -> int:
        """When the step in `slot` has left the pipeline."""
        piece = self._piece(slot)
        if not piece.lanes:
            return piece.states[slot - piece.first].ends[-1]
        size = self._pipeline.lanes
        m, place = divmod(slot - piece.first, size)
        while (lane := piece.lanes[place % size]) is None:
            place -= 1
        return lane.computed(self._pipeline.stages - 1).at(m + 1 + place // size)

    def state(self, slot: int) -> State:
        """The state after the step in `slot`."""
        piece = self._piece(slot)
        if not piece.lanes:
            return piece.states[slot - piece.first]
        size, depth = self._pipeline.lanes, self._pipeline.depth
        m, place = divmod(slot - piece.first, size)
        while (lane := piece.lanes[place % size]) is None:
            place -= 1
        starts, computed, cpu = lane.state(m + 1 + place // size)
        ends = tuple(self._end_within(piece, at) for at in range(slot - depth + 1, slot + 1))
        return State(starts, computed, cpu, ends)

    def _end_within(self, piece: Piece, slot: int) -> int:
        """The end of a slot of a piece of rounds, or of one of the three rounds before it."""
        if slot < piece.first:
            return piece.states[slot - piece.first].ends[-1]
        return self.end(slot)
