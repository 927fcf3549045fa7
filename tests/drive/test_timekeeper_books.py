"""The Timekeeper's books agree with each other after any sequence of verbs, messages and ends."""

import contextlib
import random

import pytest

from frontier_mock.drive.leases import ActorError, Resume, State, Wait
from frontier_mock.drive.timekeeper import Timekeeper

STEPS = 400
PATIENCE_NS = 50


class Chaos:
    """Clients that do anything at any time, and an engine that has some of their requests."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        baton = self.draw.random() < 0.3
        self.keeper: Timekeeper[str, str] = Timekeeper(
            baton=baton, patience_ns=PATIENCE_NS, grace_ns=5
        )
        self.inside: list[str] = []
        self.resumed: list[str] = []
        self.wall_ns = 0
        self.sessions = 0
        self._names = 0

    def name(self) -> str:
        self._names += 1
        return f"{self._names:05d}"

    def act(self) -> None:
        """One thing, which may be refused."""
        acts = [self.register, self.verb, self.verb, self.message, self.message, self.decide]
        with contextlib.suppress(ActorError):
            self.draw.choice(acts)()

    def register(self) -> None:
        self.sessions += 1
        self.keeper.register(self.sessions, [self.name() for _ in range(self.draw.randint(1, 3))])

    def verb(self) -> None:
        keeper, draw = self.keeper, self.draw
        if not keeper.actors:
            return
        actor = draw.choice(list(keeper.actors))
        later_ns = keeper.now_ns + draw.randint(-2, 40)
        match draw.randrange(7):
            case 0:
                keeper.fork(actor, [self.name()], once=draw.random() < 0.5)
            case 1:
                children = [self.name()] if draw.random() < 0.3 else []
                rename = self.name() if draw.random() < 0.2 else None
                keeper.sleep(actor, later_ns, self.name(), children=children, rename=rename)
            case 2:
                group = f"g{draw.randint(0, 2)}"
                keeper.barrier(actor, group, draw.randint(1, 3), self.name())
            case 3:
                self.resumed += keeper.release([actor])
            case 4:
                self.resumed += keeper.close(keeper.actors[actor].session)
            case 5:
                keeper.give_up(actor)
            case _:
                keeper.advance(later_ns, self.name())

    def message(self) -> None:
        keeper, draw = self.keeper, self.draw
        if self.inside and draw.random() < 0.4:
            actor = self.inside.pop(draw.randrange(len(self.inside)))
            if draw.random() < 0.5:
                keeper.complete(actor, self.name())
            else:
                keeper.disconnect(actor)
        elif keeper.actors:
            actor = draw.choice(list(keeper.actors))
            if draw.random() < 0.2:
                keeper.refuse(actor)
            else:
                keeper.park(actor, legs=draw.choice([1, 1, 1, 2]))
                keeper.post(actor, self.name())
                self.inside.append(actor)

    def decide(self) -> None:
        self.wall_ns += self.draw.randint(0, PATIENCE_NS + 10)
        for _ in range(20):
            ahead_ns = self.draw.randint(1, 20)
            next_ns = self.keeper.now_ns + ahead_ns if self.inside else None
            decision = self.keeper.decide(next_ns, self.wall_ns)
            if isinstance(decision, Resume):
                self.resumed += decision.tokens
            if isinstance(decision, Wait):
                return

    def check(self) -> None:
        keeper = self.keeper
        held = [name for name, actor in keeper.actors.items() if actor.state is State.HELD]
        assert sorted(keeper._held) == sorted(held)
        at_gates = {name for name, _ in keeper._gates.waiting()}
        for name, actor in keeper.actors.items():
            assert actor.name == name
            assert actor.outstanding >= 0
            assert (actor.state is State.BARRIER) == (name in at_gates)
            if actor.state is State.SLEEPING:
                assert len(keeper._sleepers.tokens_of(actor)) == 1
            if actor.lost:
                assert actor.state is State.HELD
                assert actor.outstanding > 0

    def end(self) -> None:
        """Everybody's connection ends; the engine keeps what it has."""
        for session in range(1, self.sessions + 1):
            self.resumed += self.keeper.close(session)
        for _ in range(STEPS):
            self.wall_ns += PATIENCE_NS
            decision = self.keeper.decide(None, self.wall_ns)
            if isinstance(decision, Resume):
                self.resumed += decision.tokens
            if isinstance(decision, Wait) and decision.until_wall_ns is None:
                return
        raise AssertionError("the clock never came to rest")


@pytest.mark.parametrize("seed", range(100))
def test_books_agree_and_nobody_is_left_when_all_have_gone(seed: int) -> None:
    chaos = Chaos(seed)
    for _ in range(STEPS):
        chaos.act()
        chaos.check()
    chaos.end()
    assert chaos.keeper.actors == {}
    assert not chaos.keeper._gates
    # Whoever waits is answered once at most.
    assert len(set(chaos.resumed)) == len(chaos.resumed)
