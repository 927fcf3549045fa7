"""Barriers: actors that wait for each other. PURE.

A gate opens when as many actors wait at it as it was said to have, and is then forgotten. One that
can never open is for the Timekeeper to find out, and to break (`Gates.break_all`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic

from frontier_mock.drive.leases import Actor, ActorError, TokenT

_NAMED = 8
"""Actors that a message names before it counts the rest."""


@dataclass(slots=True)
class Gate(Generic[TokenT]):
    """A barrier of `size` actors and those that wait at it, each with its token."""

    size: int
    waiting: list[tuple[Actor, TokenT]] = field(default_factory=list)


class Gates(Generic[TokenT]):
    """All barriers of a clock, by group."""

    def __init__(self) -> None:
        self._gates: dict[str, Gate[TokenT]] = {}

    def __bool__(self) -> bool:
        """Whether anybody waits at any."""
        return bool(self._gates)

    def check(self, actor: Actor, group: str, size: int) -> None:
        """Raises ActorError if this actor cannot wait there."""
        if size < 1:
            raise ActorError(f"barrier {group}: size must be at least 1, got {size}")
        gate = self._gates.get(group)
        if gate is not None and gate.size != size:
            raise ActorError(
                f"barrier {group} has size {gate.size}, actor {actor.name} says {size}"
            )

    def arrive(
        self, actor: Actor, group: str, size: int, token: TokenT
    ) -> list[tuple[Actor, TokenT]]:
        """It waits there now. Returns everybody who does, in order, if that opens the gate."""
        gate = self._gates.setdefault(group, Gate(size))
        gate.waiting.append((actor, token))
        if len(gate.waiting) < size:
            return []
        return self._gates.pop(group).waiting

    def forget(self, actor: Actor) -> list[TokenT]:
        """It waits nowhere any more. Returns what it waited with."""
        tokens: list[TokenT] = []
        for group, gate in list(self._gates.items()):
            tokens += [token for waiter, token in gate.waiting if waiter is actor]
            gate.waiting = [entry for entry in gate.waiting if entry[0] is not actor]
            if not gate.waiting:
                del self._gates[group]
        return tokens

    def waiting(self) -> list[tuple[str, str]]:
        """Everybody who waits, and for what."""
        return [
            (actor.name, f"barrier {group}, {len(gate.waiting)} of {gate.size}")
            for group, gate in self._gates.items()
            for actor, _ in gate.waiting
        ]

    def break_all(self, gone: Sequence[str]) -> list[tuple[Actor, TokenT]]:
        """Forget all gates, which wait for actors that are `gone`. Returns everybody who waited.

        Each actor's `fault` says why its wait was in vain.
        """
        broken: list[tuple[Actor, TokenT]] = []
        for group, gate in self._gates.items():
            here = named([actor.name for actor, _ in gate.waiting])
            fault = (
                f"barrier {group} is broken: {len(gate.waiting)} of {gate.size} wait ({here}), "
                f"nobody else can come, and these have gone without a release: {named(gone)}"
            )
            for actor, token in gate.waiting:
                actor.fault = fault
                broken.append((actor, token))
        self._gates.clear()
        return broken


def named(names: Sequence[str]) -> str:
    """Names for a message, the first few of them."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
