"""What a Timekeeper keeps and what it decides, as data: leases, stalls, decisions. PURE."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

from frontier_mock.simtime import SimTime

TokenT = TypeVar("TokenT")
"""What the driver gets back when an actor resumes: whatever it passed in with the verb."""

ItemT = TypeVar("ItemT")
"""What the driver gets back to feed: a command, or several."""


class ActorError(ValueError):
    """A clock verb that makes no sense now; the message names the actor and what it is doing."""


_NAME_CHARS = 256


def check_name(name: str) -> None:
    """Raises ActorError for a name that a request could not carry in a header as it is."""
    plain = name.isascii() and name.isprintable() and name == name.strip()
    if not (0 < len(name) <= _NAME_CHARS and plain and "," not in name and ";" not in name):
        raise ActorError(
            f"actor {name[:_NAME_CHARS]!a}: a name has 1 to {_NAME_CHARS} printable ASCII "
            "characters other than ',' and ';', and no space at its ends"
        )


class StallError(RuntimeError):
    """Strict mode: leases were held without traffic for longer than the patience."""


class State(Enum):
    """What an actor is doing."""

    HELD = "held"
    """Outside the engine; time stands still."""
    PARKED = "parked"
    """Its request is inside the engine."""
    SLEEPING = "sleeping"
    """Waiting for a declared time."""
    BARRIER = "barrier"
    """Waiting for the rest of a group."""
    READY = "ready"
    """May go on, but has not been told yet (in baton mode: waits for its turn)."""
    PENDING = "pending"
    """Created by a sleep's `then_fork`; begins when the parent wakes."""


@dataclass(slots=True)
class Actor:
    """One lease. `last` is what it was last seen doing, for the stall report."""

    name: str
    session: int
    once: bool
    state: State
    last: str
    outstanding: int = 0
    until_ns: SimTime = 0
    serial: int = 0
    children: tuple[str, ...] = ()
    legs_due: dict[str, int] = field(default_factory=dict)
    """Messages with this lease that are still on their way, by rendezvous."""
    lost: bool = False
    """Its connection has ended; it is forgotten once its requests have left the engine."""
    fault: str = ""
    """Why what it waited for did not happen, until it has been told."""


@dataclass(frozen=True, slots=True)
class Stall:
    """Time stood still at `now_ns` for the whole patience; `holders` are (actor, last call)."""

    now_ns: SimTime
    holders: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        named = ", ".join(f"{name} (last: {last})" for name, last in self.holders[:8])
        more = f" and {len(self.holders) - 8} more" if len(self.holders) > 8 else ""
        return f"clock stalled at {self.now_ns} ns: held by {named}{more}"


@dataclass(frozen=True, slots=True)
class Resume(Generic[TokenT]):
    """Let these go on, in this order."""

    tokens: list[TokenT]


@dataclass(frozen=True, slots=True)
class Feed(Generic[ItemT]):
    """Feed these to the engine now, in this order."""

    items: list[ItemT]


@dataclass(frozen=True, slots=True)
class Move:
    """Advance the engine to `t_ns`, dispatch what happened, ask again."""

    t_ns: SimTime


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until a verb, a message, or `until_wall_ns` (None: no deadline)."""

    until_wall_ns: int | None
    why: str


Decision = Resume[TokenT] | Feed[ItemT] | Move | Wait


@dataclass(slots=True)
class Waking(Generic[TokenT]):
    """A resumption that has not been handed out; `actor` is None for those without a lease."""

    name: str
    serial: int
    actor: Actor | None
    token: TokenT
