"""Schedulers with several batches in flight: what their lanes have in common, and what a worker
with pipeline stages asks of them beyond what any worker does."""

from collections.abc import Sequence
from typing import Protocol

from frontier_mock.serving.schedulers.decode_set import DecodeSet
from frontier_mock.serving.schedulers.protocol import Scheduler
from frontier_mock.serving.sequence import Sequence as EngineSequence


class Lanes:
    """What schedulers of lanes have in common: lanes as sets of decodes, and how long they stay.

    A step is calm if the scheduler without lanes calls itself `blocked` after it, and its lane is
    as it was. With so many of them in a row as may be in flight, every lane is known to stay.
    """

    depth: int
    decode_sets: Sequence[DecodeSet]
    """The decodes of each lane."""
    _calm = False
    _quiet = 0

    def next_step(self, lane: int) -> int:
        """The number that the next step of this lane will have, if it is one of its steps."""
        return self.decode_sets[lane].decided + 1

    @property
    def blocked(self) -> bool:
        """Whether nothing changes before something ends, arrives or is aborted."""
        return self._quiet >= self.depth

    @blocked.setter
    def blocked(self, value: bool) -> None:
        self._calm = value
        if not value:
            self._quiet = 0

    def note(self, alike: bool) -> None:
        """A step has been decided; `alike`: its lane is as it was the last time."""
        self._quiet = self._quiet + 1 if self._calm and alike else 0

    def need(self, slots: int, next_lane: int) -> int:
        """Blocks that begin in the next `slots` steps, the first of which is of `next_lane`."""
        size = len(self.decode_sets)
        blocks = 0
        for place in range(min(slots, size)):
            lane = self.decode_sets[(next_lane + place) % size]
            first = lane.decided + 1
            blocks += lane.blocks_of_run(first, first + (slots - 1 - place) // size)
        return blocks

    def room_for(self, slots: int, next_lane: int, free: int) -> int:
        """For how many steps, at most `slots`, `free` blocks suffice for decodes alone."""
        if self.need(slots, next_lane) <= free:
            return slots
        low, high = 0, slots
        while low < high:
            middle = (low + high + 1) // 2
            enough = self.need(middle, next_lane) <= free
            low, high = (middle, high) if enough else (low, middle - 1)
        return low


class Decoding(Protocol):
    """The decodes of one lane, as sums: see `schedulers.decode_set`."""

    num_decodes: int
    kv_offset: int

    def next_finish(self) -> int | None:
        """The earliest step of the lane in which some sequence produces its last token."""
        ...


class LanedScheduler(Scheduler, Protocol):
    """A scheduler with several batches in flight, at most `depth`, whose decodes take turns in
    `num_lanes` lanes.

    `schedule` is called once per step, for the lanes in turn, with `next_step` of the lane.
    `blocked` says that no lane changes any more until something ends, arrives or is aborted; then
    `coast_slots` may stand for many calls. `seen` has the last step of each lane whose output has
    come: the worker keeps it.
    """

    depth: int
    num_lanes: int
    seen: list[int]

    def lane(self, number: int) -> Decoding:
        """The decodes of one lane."""
        ...

    def next_step(self, lane: int) -> int:
        """The number that the next step of this lane will have, if it is one of its steps."""
        ...

    def seen_of(self, seq: EngineSequence) -> int:
        """`seen` of the lane of `seq`."""
        ...

    def room_for(self, slots: int, next_lane: int, free: int) -> int:
        """For how many steps, at most `slots`, `free` blocks suffice for decodes alone.

        The first of them is of `next_lane`.
        """
        ...

    def coast_slots(self, slots: int, next_lane: int) -> None:
        """Schedule the next `slots` steps, none of which changes any lane."""
        ...
