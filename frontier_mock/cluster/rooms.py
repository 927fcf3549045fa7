"""Rooms: what is known of one transfer between two engines, and what is due for it. PURE."""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final

from frontier_mock.core.commands import Submit, Transfer
from frontier_mock.core.prompt import KeyedPrompt
from frontier_mock.core.words import Ready
from frontier_mock.cost.kv_transfer import KvShape
from frontier_mock.serving.sequence import Sequence as Seq
from frontier_mock.simtime import SimTime

NEVER: Final = -1
FAR: Final = -1
"""`Sequence.worker` of one that stands for a receiver in another process."""


class Room:
    """One transfer. Times are -1 until they are known.

    `computed_tokens` exist, or do when the step has ended that computes them in `pace_ns`;
    `sent_bytes` have moved or are moving; `moving` while a flow is under way or about to be.
    `peer` is where the other side is, if that is not this process, and `far` what a receiver there
    has said; `source_ranks` are those of a sender there.
    """

    __slots__ = (
        "allocated_ns",
        "arrived_ns",
        "cached_tokens",
        "closed",
        "computed_ns",
        "computed_tokens",
        "deadline_ns",
        "far",
        "key",
        "moving",
        "number",
        "pace_ns",
        "peer",
        "receiver",
        "scheduled_ns",
        "sender",
        "sent_bytes",
        "source_ranks",
    )

    def __init__(self, key: str, number: int) -> None:
        self.key = key
        self.number = number
        self.sender: Seq | None = None
        self.receiver: Seq | None = None
        self.arrived_ns = NEVER
        self.scheduled_ns = NEVER
        self.computed_ns = NEVER
        self.allocated_ns = NEVER
        self.computed_tokens = 0
        self.cached_tokens = 0
        self.sent_bytes = 0
        self.pace_ns: SimTime = 0
        self.moving = False
        self.closed = False
        self.deadline_ns = NEVER
        self.peer = ""
        self.far: Ready | None = None
        self.source_ranks = 0

    def has_source(self) -> bool:
        """Whether there is anybody whom the receiver can get its prompt from."""
        receiver = self.receiver
        if self.sender is not None or receiver is None:
            return self.sender is not None
        transfer = transfer_of(receiver)
        return transfer.far or bool(transfer.peer)


Action = Callable[[Room, SimTime], None]


class Timers:
    """What is due when for rooms; nothing is due any more for one that is closed."""

    __slots__ = ("_count", "_due")

    def __init__(self) -> None:
        self._due: list[tuple[SimTime, int, Action, Room]] = []
        self._count = 0

    def set(self, due_ns: SimTime, room: Room, action: Action) -> None:
        """Do `action` at `due_ns`."""
        self._count += 1
        heappush(self._due, (due_ns, self._count, action, room))

    def next_time(self) -> SimTime | None:
        """When something is due next."""
        due = self._due
        while due and due[0][3].closed:
            heappop(due)
        return due[0][0] if due else None

    def run(self, t_ns: SimTime) -> None:
        """Do what is due by `t_ns`, in the order of setting."""
        due = self._due
        while due and due[0][0] <= t_ns:
            _, _, action, room = heappop(due)
            if not room.closed:
                action(room, t_ns)


def transfer_of(seq: Seq) -> Transfer:
    """The transfer of a sequence that has one."""
    assert seq.transfer is not None
    return seq.transfer


def stand_in(word: Ready) -> Seq:
    """A sequence that stands for the receiver in another process that said `word`."""
    transfer = Transfer(word.key, False, "room", word.patience_ns, streams=True)
    prompt = KeyedPrompt(word.tokens, word.tokens + 1, b"")
    return Seq(-1, Submit(prompt, 1, 1, transfer=transfer), FAR)


def shape_of(word: Ready) -> KvShape:
    """The bytes that a receiver in another process needs; it lays them out anew by itself."""
    return KvShape(word.token_bytes, word.window_bytes, word.window, 1, 1.0)
