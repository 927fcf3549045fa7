"""Who holds time, who may go on, and when the virtual clock may jump. PURE.

Theory of operation
-------------------
An *actor* is one sequential thread of control in some client. Its *lease* is held while anything it
says could still reach the engine at the present instant, and parked while it cannot: because its
request is inside the engine, because it sleeps until a declared time, or because it waits at a
barrier. This class knows actors, messages and the present instant; it knows neither sockets nor
the engine. A driver tells it what happened (the verbs) and asks it what to do (`decide`).

1. Time moves only if no lease is held, no message is half received and the inbox is empty. It then
   moves to the earliest of {next engine event, earliest sleep deadline}: the barrier of a
   conservative discrete-event simulation, in which an actor that waits has promised silence.
2. A lease is held whenever a message that carries it is outside the engine: it parks when its
   request arrives and is held again before the last byte of the response leaves. A router that
   makes several requests of one (prefill and decode) has delivered it when all of them are here.
   A client that dies is such a message as well: if it has requests in the engine its lease is held
   until their connections have ended too, so that they are aborted at the instant it died.
3. Commands of one instant wait in the inbox until the instant is quiescent, and are then fed in
   canonical order: actor name, then that actor's own sequence. How the operating system interleaved
   the clients is thereby invisible to the engine.
4. Actors that resume at the same instant do so in order of name; in *baton* mode one at a time, the
   next only when the previous one has parked, so that a router in between sees one order too.
5. Patience: when leases block and nothing has moved for `patience_ns` of real time, they stop
   blocking until something moves (a verb, a message, a completed response). That is a *stall*.
   It is counted against the actors that held time, or raised as `StallError` in strict mode. It
   is what resolves a router that queues requests while the clock they wait for stands still.
   Actors at a barrier that nobody else can reach have stalled as well; if an actor's connection was
   lost before, such a barrier is broken, as nobody will ever complete it.
6. Grace: a request without a registered actor has no lease to watch. After any of its messages time
   stands still for `grace_ns` of real time; the jump that follows is counted as a guess.

Real time appears only as the `wall_ns` argument of `decide`: any monotonic nanosecond counter.
"""

from collections.abc import Sequence
from typing import Generic

from frontier_mock.drive.gates import Gates
from frontier_mock.drive.leases import (
    Actor,
    ActorError,
    Decision,
    Feed,
    ItemT,
    Move,
    Resume,
    Stall,
    StallError,
    State,
    TokenT,
    Wait,
    Waking,
    check_name,
)
from frontier_mock.drive.sleepers import Sleepers
from frontier_mock.simtime import SimTime

_STALLS_KEPT = 100
"""How many stalls `stalls` remembers; `stall_count` counts them all."""

_STALLED_KEPT = 1000
"""How many actors `stalled_by` counts by name."""

_GONE_KEPT = 100
"""How many actors whose connection was lost are remembered by name."""


class Timekeeper(Generic[TokenT, ItemT]):
    """The state machine of the module's docstring. All times are integer nanoseconds."""

    def __init__(
        self,
        *,
        grace_ns: int = 5_000_000,
        patience_ns: int = 1_000_000_000,
        strict: bool = False,
        baton: bool = False,
    ) -> None:
        self.now_ns: SimTime = 0
        self.actors: dict[str, Actor] = {}
        self.stalls: list[Stall] = []
        self.stall_count = 0
        self.stalled_by: dict[str, int] = {}
        self.jumps = 0
        self.guesses = 0
        self._grace_ns = grace_ns
        self._patience_ns = patience_ns
        self._strict = strict
        self._baton = baton
        self._held: dict[str, Actor] = {}
        self._ready: list[Waking[TokenT]] = []
        self._inbox: list[tuple[str, int, ItemT]] = []
        self._sleepers: Sleepers[TokenT] = Sleepers()
        self._gates: Gates[TokenT] = Gates()
        self._gone: dict[str, None] = {}
        self._stuck = False
        self._inbound = 0
        self._serial = 0
        self._touched = True
        self._traffic_wall_ns = 0
        self._stalled = False
        self._grace_armed = False
        self._grace_until_ns: int | None = None
        self._guessing = False

    # Verbs

    def register(self, session: int, names: Sequence[str]) -> None:
        """Create leases, held, owned by `session`. Raises ActorError if a name is taken."""
        self._check_new(names)
        for name in names:
            self._create(name, session, once=False, state=State.HELD, last="register")
        self._touched = True

    def fork(self, parent: str, children: Sequence[str], *, once: bool) -> None:
        """Create held leases owned by the parent's session, before the parent parks.

        A `once` child is released, not resumed, when its response is complete.
        """
        actor = self._known(parent)
        if actor.lost:
            raise ActorError(f"actor {parent} cannot fork: it is lost")
        self._check_new(children)
        for name in children:
            self._create(name, actor.session, once=once, state=State.HELD, last="fork")
        actor.last = "fork"
        self._touched = True

    def sleep(
        self,
        name: str,
        until_ns: SimTime,
        token: TokenT,
        *,
        children: Sequence[str] = (),
        once: bool = False,
        rename: str | None = None,
    ) -> None:
        """Park until `until_ns`; the past means the present: take your turn.

        `children` begin, held, at the moment the actor wakes. `rename` gives the actor another
        name, and with it another place in the canonical order, from now on.
        """
        actor = self._outside(name, "sleep")
        self._check_new(children if rename is None else (*children, rename))
        if rename is not None:
            self._rename(actor, rename)
        for child in children:
            self._create(child, actor.session, once=once, state=State.PENDING, last="fork")
        actor.children = tuple(children)
        self._serial += 1
        actor.serial = self._serial
        actor.until_ns = max(until_ns, self.now_ns)
        self._park(actor, State.SLEEPING, f"sleep until {actor.until_ns}")
        self._sleepers.add(actor.until_ns, self._serial, actor, token)

    def advance(self, until_ns: SimTime, token: TokenT) -> None:
        """Hand `token` back once time has reached `until_ns`, whatever happens on the way."""
        self._serial += 1
        self._sleepers.add(max(until_ns, self.now_ns), self._serial, None, token)
        self._touched = True

    def barrier(self, name: str, group: str, size: int, token: TokenT) -> None:
        """Park until `size` actors wait at `group`, then resume them all."""
        actor = self._outside(name, "barrier")
        self._gates.check(actor, group, size)
        self._park(actor, State.BARRIER, f"barrier {group}")
        for waiter, its_token in self._gates.arrive(actor, group, size, token):
            self._make_ready(waiter, its_token)

    def take_fault(self, name: str) -> str:
        """Why the barrier at which an actor waited has not opened, once; empty if it has."""
        actor = self.actors.get(name)
        if actor is None:
            return ""
        fault, actor.fault = actor.fault, ""
        return fault

    def give_up(self, name: str) -> None:
        """Nobody waits any more for the answer to this actor's sleep or barrier: it is outside."""
        actor = self.actors.get(name)
        if actor is None or actor.state not in (State.SLEEPING, State.BARRIER):
            return
        self._stop_waiting(actor)
        self._hold(actor, f"gave up: {actor.last}")
        self._touched = True

    def release(self, names: Sequence[str]) -> list[TokenT]:
        """Forget these actors. Returns the tokens of those that slept or waited at a barrier.

        What they still have inside the engine completes as if it had never carried a lease.
        """
        for name in names:
            self._known(name)
        return [token for name in names for token in self._forget(name)]

    def release_session(self, session: int) -> list[TokenT]:
        """As `release`, for every actor that `session` has."""
        names = [a.name for a in self.actors.values() if a.session == session]
        return [token for name in names for token in self._forget(name)]

    def close(self, session: int) -> list[TokenT]:
        """The connection that owned `session` is gone: whoever it still has is lost."""
        tokens: list[TokenT] = []
        for actor in [a for a in self.actors.values() if a.session == session]:
            self._gone[actor.name] = None
            if actor.name not in self.actors:
                continue  # A child that never began has gone with its parent.
            if actor.outstanding and actor.state is not State.READY:
                tokens += self._stop_waiting(actor)
                actor.lost = True
                self._hold(actor, "lost its connection with a request inside")
                self._touched = True
            else:
                tokens += self._forget(actor.name)
        while len(self._gone) > _GONE_KEPT:
            del self._gone[next(iter(self._gone))]
        return tokens

    def abandon(self) -> list[TokenT]:
        """The run is over: forget every actor. Returns the tokens of all who wait for time."""
        tokens = [token for name in list(self.actors) for token in self._forget(name)]
        tokens += self._sleepers.tokens_of(None)
        self._sleepers.clear()
        return tokens

    # Messages

    def arriving(self) -> None:
        """A request has begun to arrive; ends with `received`."""
        self._inbound += 1
        self._touched = True

    def received(self) -> None:
        """The request that was `arriving` is complete, refused, or given up."""
        self._inbound -= 1
        self._touched = True

    def knows(self, name: str | None) -> bool:
        """Whether `name` is a registered actor, so that its requests carry a lease."""
        return name is not None and name in self.actors

    def park(self, name: str | None, legs: int = 1, room: str = "") -> None:
        """A request of this actor is inside the engine.

        It is one of `legs` that meet in `room`; the lease parks when the last of them is here.
        """
        actor = self.actors.get(name) if name is not None else None
        self._touched = True
        if actor is None:
            self._arm_grace()
            return
        actor.outstanding += 1
        self._leg_arrived(actor, legs, room)
        self._park_if_delivered(actor)

    def post(self, name: str | None, item: ItemT) -> None:
        """Put a command in the present instant's inbox."""
        self._serial += 1
        self._inbox.append((name or "", self._serial, item))
        self._touched = True

    def refuse(self, name: str | None, legs: int = 1, room: str = "") -> None:
        """A request of this actor was answered without entering the engine (an API error)."""
        actor = self.actors.get(name) if name is not None else None
        self._touched = True
        if actor is None:
            self._arm_grace()
            return
        self._leg_arrived(actor, legs, room)
        if actor.outstanding:
            self._park_if_delivered(actor)
        elif actor.once and not actor.legs_due:
            self._forget(actor.name)

    def complete(self, name: str | None, token: TokenT) -> None:
        """The engine is done with a request: hand `token` back when its actor may resume.

        With another request of the same actor still inside, the actor goes on waiting for that.
        """
        actor = self.actors.get(name) if name is not None else None
        if actor is None:
            self._arm_grace()
            self._append_ready(name or "", None, token)
            return
        actor.outstanding -= 1
        if actor.outstanding == 0 and actor.state is State.PARKED:
            self._make_ready(actor, token)
            return
        self._append_ready(actor.name, None, token)
        if actor.lost and actor.outstanding == 0:
            self._forget(actor.name)

    def returned(self, name: str | None) -> None:
        """As `complete`, for a response that has left already: the lease is outside again."""
        actor = self.actors.get(name) if name is not None else None
        self._touched = True
        if actor is None:
            self._arm_grace()
            return
        actor.outstanding -= 1
        if actor.outstanding == 0:
            if actor.lost:
                self._forget(actor.name)
            elif actor.state is State.PARKED:
                self._come_back(actor, "resumed after request")

    def disconnect(self, name: str | None) -> None:
        """The client gave up a request inside the engine: its lease is outside again."""
        actor = self.actors.get(name) if name is not None else None
        self._touched = True
        if actor is None:
            self._arm_grace()
            return
        actor.outstanding -= 1
        if actor.outstanding == 0:
            # Whoever gave up one leg will not send the other.
            actor.legs_due.clear()
            if actor.lost:
                self._forget(actor.name)
            elif actor.state is State.PARKED:
                self._come_back(actor, "disconnect")

    # Decisions

    def decide(self, next_ns: SimTime | None, wall_ns: int) -> "Decision[TokenT, ItemT]":
        """What to do now, given the engine's next event time and the real clock.

        Raises StallError in strict mode.
        """
        if self._touched:
            self._touched = False
            self._stalled = self._stuck = False
            self._traffic_wall_ns = wall_ns
        if self._ready:
            tokens = self._take_ready()
            if tokens:
                return Resume(tokens)
        if not self._stalled and (self._held or self._inbound > 0):
            deadline = self._traffic_wall_ns + self._patience_ns
            if wall_ns < deadline:
                return Wait(deadline, "leases held")
            self._declare_stall()
            if self._ready:
                return Resume(self._take_ready())
        if self._grace_armed:
            if self._grace_until_ns is None:
                self._grace_until_ns = wall_ns + self._grace_ns
            if wall_ns < self._grace_until_ns:
                return Wait(self._grace_until_ns, "grace")
            self._grace_armed = False
            self._guessing = True
        if self._inbox:
            self._inbox.sort(key=_canonical)
            items = [item for _, _, item in self._inbox]
            self._inbox.clear()
            return Feed(items)
        return self._move(next_ns) or self._dead_end(wall_ns)

    def glide(self, next_ns: SimTime | None) -> bool:
        """Move to the engine's next event if that is all that `decide` would do; else do nothing.

        Between two events in which nobody outside has a part there is little to decide.
        """
        if next_ns is None or self._touched or self._ready or self._held or self._inbox:
            return False
        if self._inbound > 0 or self._grace_armed or self._guessing or next_ns <= self.now_ns:
            return False
        wake_ns = self._sleepers.next_ns()
        if wake_ns is not None and wake_ns <= next_ns:
            return False
        self.jumps += 1
        self.now_ns = next_ns
        return True

    def elapse(self, now_ns: SimTime) -> list[TokenT]:
        """Real and scaled clocks: time is `now_ns` now, whoever holds what. Returns who resumes."""
        self.now_ns = max(self.now_ns, now_ns)
        self._wake()
        if not self._ready:
            return []
        ready = sorted(self._ready, key=_turn)
        self._ready = []
        return [self._start(entry) for entry in ready]

    def next_wake(self) -> SimTime | None:
        """Earliest sleep deadline, None if nobody sleeps."""
        return self._sleepers.next_ns()

    def holders(self) -> list[tuple[str, str]]:
        """Who keeps time from moving, and what each was last seen doing."""
        found = [(a.name, a.last) for a in self._held.values()]
        if self._inbound > 0:
            found.append((f"{self._inbound} request(s)", "still arriving"))
        return found + self._gates.waiting() if self._stuck else found

    @property
    def is_settled(self) -> bool:
        """Whether the next move follows from what is known: nobody resumes first, no guess."""
        return not self._ready and not self._guessing

    # Internals

    def _move(self, next_ns: SimTime | None) -> Move | None:
        target = self.next_wake()
        if next_ns is not None and (target is None or next_ns < target):
            target = next_ns
        if target is None:
            return None
        if target > self.now_ns:
            self.jumps += 1
            if self._guessing:
                self.guesses += 1
            self.now_ns = target
        self._guessing = False
        self._wake()
        return Move(self.now_ns)

    def _dead_end(self, wall_ns: int) -> "Wait | Resume[TokenT]":
        """Nothing will happen by itself. Whoever waits at a barrier may wait in vain."""
        if not self._gates:
            return Wait(None, "idle")
        if not self._stuck:
            deadline = self._traffic_wall_ns + self._patience_ns
            if wall_ns < deadline:
                return Wait(deadline, "barriers incomplete")
            self._stuck = True
            self._declare_stall()
            if self._gone:
                for waiter, token in self._gates.break_all(list(self._gone)):
                    self._make_ready(waiter, token)
                return Resume(self._take_ready())
        return Wait(None, "barriers incomplete")

    def _wake(self) -> None:
        for actor, token in self._sleepers.pop_due(self.now_ns):
            if actor is None:
                self._append_ready("", None, token)
            else:
                self._make_ready(actor, token)

    def _take_ready(self) -> list[TokenT]:
        """Those that may go on: all of them, or in baton mode one lease if nobody runs."""
        ready = sorted(self._ready, key=_turn)
        if not self._baton:
            self._ready = []
            return [self._start(entry) for entry in ready]
        free = not self._held or self._stalled
        tokens: list[TokenT] = []
        rest: list[Waking[TokenT]] = []
        for entry in ready:
            leased = entry.actor is not None
            if leased and not free:
                rest.append(entry)
                continue
            free = free and not leased
            tokens.append(self._start(entry))
        self._ready = rest
        return tokens

    def _start(self, entry: Waking[TokenT]) -> TokenT:
        actor = entry.actor
        if actor is not None and self.actors.get(actor.name) is actor:
            children, actor.children = actor.children, ()
            for name in children:
                child = self.actors.get(name)
                if child is not None and child.state is State.PENDING:
                    self._hold(child, "fork")
            self._come_back(actor, "resumed after " + actor.last)
        self._touched = True
        return entry.token

    def _come_back(self, actor: Actor, last: str) -> None:
        """Its request is over: hold the lease again, or end it if it was for one request."""
        if actor.once:
            self._forget(actor.name)
        else:
            self._hold(actor, last)

    def _leg_arrived(self, actor: Actor, legs: int, room: str) -> None:
        due = actor.legs_due.pop(room, legs) - 1
        if due > 0:
            actor.legs_due[room] = due
            actor.last = f"{legs - due} of {legs} requests"

    def _park_if_delivered(self, actor: Actor) -> None:
        if actor.state is State.HELD and not actor.legs_due and not actor.lost:
            self._park(actor, State.PARKED, "request")

    def _rename(self, actor: Actor, name: str) -> None:
        if actor.outstanding:
            raise ActorError(f"actor {actor.name} cannot be renamed: its request is in the engine")
        del self.actors[actor.name]
        self._held.pop(actor.name, None)
        actor.name = name
        self.actors[name] = actor

    def _hold(self, actor: Actor, last: str) -> None:
        actor.state = State.HELD
        actor.last = last
        self._held[actor.name] = actor

    def _park(self, actor: Actor, state: State, last: str) -> None:
        self._held.pop(actor.name, None)
        actor.state = state
        actor.last = last
        self._touched = True

    def _make_ready(self, actor: Actor, token: TokenT) -> None:
        actor.state = State.READY
        self._append_ready(actor.name, actor, token)

    def _append_ready(self, name: str, actor: Actor | None, token: TokenT) -> None:
        self._serial += 1
        self._ready.append(Waking(name, self._serial, actor, token))

    def _create(self, name: str, session: int, *, once: bool, state: State, last: str) -> None:
        actor = Actor(name, session, once, state, last)
        self.actors[name] = actor
        self._gone.pop(name, None)
        if state is State.HELD:
            self._held[name] = actor

    def _forget(self, name: str) -> list[TokenT]:
        """Remove an actor, its pending children, and what it waited for."""
        actor = self.actors.pop(name, None)
        if actor is None:
            return []
        self._held.pop(name, None)
        self._touched = True
        return self._stop_waiting(actor)

    def _stop_waiting(self, actor: Actor) -> list[TokenT]:
        """End an actor's sleep or barrier, and children that wait for that. Returns its tokens."""
        tokens = self._gates.forget(actor)
        if actor.state is State.SLEEPING:
            tokens += self._sleepers.tokens_of(actor)
            actor.serial = 0
        children, actor.children = actor.children, ()
        for child in children:
            tokens += self._forget(child)
        return tokens

    def _declare_stall(self) -> None:
        stall = Stall(self.now_ns, tuple(self.holders()))
        if self._strict:
            raise StallError(str(stall))
        self._stalled = True
        self.stall_count += 1
        for name, _ in stall.holders:
            if len(self.stalled_by) >= _STALLED_KEPT and name not in self.stalled_by:
                name = "(others)"
            self.stalled_by[name] = self.stalled_by.get(name, 0) + 1
        self.stalls.append(stall)
        del self.stalls[:-_STALLS_KEPT]
        for actor in [a for a in self._held.values() if a.lost]:
            # Somebody goes on with its requests after all, without it.
            self._forget(actor.name)
            self._touched = False

    def _arm_grace(self) -> None:
        self._grace_armed = True
        self._grace_until_ns = None

    def _known(self, name: str) -> Actor:
        actor = self.actors.get(name)
        if actor is None:
            raise ActorError(f"actor {name} is not registered")
        return actor

    def _outside(self, name: str, verb: str) -> Actor:
        """The actor, if it can call a verb that parks: one that already waits cannot."""
        actor = self._known(name)
        if actor.state not in (State.HELD, State.PARKED) or actor.lost:
            state = "lost" if actor.lost else actor.state.value
            raise ActorError(f"actor {name} cannot {verb}: it is {state}")
        return actor

    def _check_new(self, names: Sequence[str]) -> None:
        for index, name in enumerate(names):
            check_name(name)
            if name in self.actors or name in names[:index]:
                raise ActorError(f"actor {name} is already registered")


def _canonical(entry: tuple[str, int, object]) -> tuple[str, int]:
    """Order of the commands of one instant: actor, then the actor's own sequence."""
    return entry[0], entry[1]


def _turn(entry: Waking[TokenT]) -> tuple[str, int]:
    """Order of the actors that resume at one instant."""
    return entry.name, entry.serial
