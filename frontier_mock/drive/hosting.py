"""One clock for several engine processes: the Timekeeper, and an asyncio pump that asks them.

Theory of operation. Every engine is a member that has promised that nothing happens in it before
its `next_ns` (`drive.following` lists the messages). The pump asks the Timekeeper what to do, with
the least promise as the next event, exactly as a Driver does with its own engine's:

1. Nothing is decided while a member is at work on an order: what it says on the way (requests that
   have ended, above all) belongs to the instant that was ordered. Nor may anybody outside be heard
   before that is over (`at_work`), whom a response may have told to go on: whoever takes verbs from
   clients sees to it. In baton mode responses wait for the host instead.
2. Move: to the members whose promise is due, all at once.
3. Feed: to each member its own commands, in the canonical order of them all. Workers do not see
   each other, so it does not matter that the others' commands of that instant are elsewhere.
   If only one member is moved or fed, and the Timekeeper is settled, it may go on by itself up
   to the next thing that anybody else has promised.
4. Letters: a member's word for another one waits here until it is due, which is part of what the
   other has promised. As it is due later than what caused it, nobody can have gone past that.
   Letters due at one instant are heard in the order of who wrote them, and when; one for nobody
   is returned.
5. A member that is lost takes its requests with it: the run has failed, and everybody is told why.
   One that says goodbye with nothing in flight just leaves.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush

from frontier_mock.drive.drift import Drift
from frontier_mock.drive.following import Message
from frontier_mock.drive.leases import Feed, Move, Resume
from frontier_mock.drive.pace import ClockSpec
from frontier_mock.drive.stall_log import StallLog
from frontier_mock.drive.timekeeper import Timekeeper
from frontier_mock.simtime import NS_PER_S, SimTime, from_ms, from_seconds

logger = logging.getLogger("frontier_mock")

Action = Callable[[], None]

_DECISIONS_PER_PUMP = 256


class MemberLostError(RuntimeError):
    """An engine process is gone in the middle of a run; the message names it."""


@dataclass(eq=False, slots=True)
class Member:
    """An engine process. `send` puts a message on its way; `busy` while an order is carried out.

    `addresses` is where others look for it, beside its name: `host:port` of bootstrap servers.
    """

    name: str
    workers: tuple[str, ...]
    send: Callable[[Message], None]
    addresses: tuple[str, ...] = ()
    next_ns: SimTime | None = None
    busy: bool = False
    in_flight: int = 0
    resumed: list[int] = field(default_factory=list)
    letters: list[tuple[SimTime, tuple[str, ...], int, Message]] = field(default_factory=list)

    @property
    def letter_ns(self) -> SimTime | None:
        """When the next letter for it is due."""
        return self.letters[0][0] if self.letters else None

    @property
    def due_ns(self) -> SimTime | None:
        """When something will happen in it: of itself, or because a letter comes."""
        if not self.letters or self.next_ns is None:
            return self.next_ns if not self.letters else self.letter_ns
        return min(self.letters[0][0], self.next_ns)

    def take_letters(self, t_ns: SimTime) -> list[Message]:
        """The words that are due by `t_ns`, in order."""
        words: list[Message] = []
        while self.letters and self.letters[0][0] <= t_ns:
            words.append(heappop(self.letters)[3])
        return words

    def __str__(self) -> str:
        return f"engine process {self.name} (workers {', '.join(self.workers)})"


class ClockHost:
    """See the theory of operation at the top of this module. `start` binds it to an event loop."""

    def __init__(self, clock: ClockSpec, wall_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.clock = clock
        self.keeper: Timekeeper[Action, tuple[Member, int]] = Timekeeper(
            grace_ns=from_ms(clock.grace_ms),
            patience_ns=from_seconds(clock.patience_s),
            strict=clock.strict,
            baton=clock.baton,
        )
        self._stall_log = StallLog(self.keeper)
        self.members: list[Member] = []
        self.error: BaseException | None = None
        self.died = asyncio.Event()
        self.drift = Drift(late_ms=clock.late_ms, scale=1.0)
        self._wall_ns = wall_ns
        self._started_wall_ns = wall_ns()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pump_soon: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._orders = 0
        self._letters = 0

    # Life

    def start(self) -> None:
        """Bind to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._started_wall_ns = self._wall_ns()

    def stop(self) -> None:
        """No pump after this."""
        for handle in (self._pump_soon, self._timer):
            if handle is not None:
                handle.cancel()
        self._pump_soon = self._timer = None
        self._loop = None

    def now_ns(self) -> SimTime:
        """The virtual present."""
        return self.keeper.now_ns

    def wall_s(self) -> float:
        """Real seconds since `start`."""
        return (self._wall_ns() - self._started_wall_ns) / NS_PER_S

    def catch_up(self) -> None:
        """Nothing: a warp clock has nothing to catch up with."""

    @property
    def num_in_flight(self) -> int:
        """Requests inside all engines."""
        return sum(member.in_flight for member in self.members)

    @property
    def num_events(self) -> int:
        """Orders carried out, the host's measure of what has happened."""
        return self._orders

    @property
    def at_work(self) -> bool:
        """Whether an engine carries out an order: it may have answered somebody already."""
        return any(member.busy for member in self.members)

    def next_due(self) -> SimTime | None:
        """The least promise of all engines."""
        dues = [member.due_ns for member in self.members]
        return min((due for due in dues if due is not None), default=None)

    def holders(self) -> list[tuple[str, str]]:
        """Who keeps time from moving: leases, and engines at work."""
        busy = [(str(member), "carries out an order") for member in self.members if member.busy]
        return [*self.keeper.holders(), *busy]

    # Members

    def join(self, member: Member) -> None:
        """An engine process takes part from now on."""
        self.members.append(member)
        logger.info("%s joined at %d ns", member, self.keeper.now_ns)
        self.poke()

    def heard(self, member: Member, message: Message) -> None:
        """A member said something. Raises ValueError for what makes no sense."""
        keeper = self.keeper
        match message:
            case ["done", int(now_ns), int() | None as next_ns] if member.busy:
                member.busy = False
                member.next_ns = next_ns
                keeper.now_ns = max(keeper.now_ns, now_ns)
            case ["park", str() | None as name, int(legs), str(room)]:
                member.in_flight += 1
                keeper.park(name, legs, room)
            case ["refuse", str() | None as name, int(legs), str(room)]:
                keeper.refuse(name, legs, room)
            case ["post", str() | None as name, int(number)]:
                keeper.post(name, (member, number))
            case ["complete", str() | None as name, int(number)]:
                member.in_flight -= 1
                keeper.complete(name, lambda: member.resumed.append(number))
            case ["returned", str(name)] if member.busy:
                member.in_flight -= 1
                keeper.returned(name)
            case ["disconnect", str() | None as name]:
                member.in_flight -= 1
                keeper.disconnect(name)
            case ["letter", str(peer), int(due_ns), list(word)] if due_ns > keeper.now_ns:
                self._letter(member, peer, due_ns, word)
            case ["arriving"]:
                keeper.arriving()
            case ["received"]:
                keeper.received()
            case _:
                raise ValueError(f"{member} said {message!r}")
        self.poke()

    def leave(self, member: Member, why: str = "") -> None:
        """A member is gone: `why` is empty if it said goodbye."""
        if member not in self.members:
            return
        self.members.remove(member)
        if why or member.busy or member.in_flight:
            self._fail(MemberLostError(f"{member} is gone: {why or 'it left with work to do'}"))
        else:
            logger.info("%s left at %d ns", member, self.keeper.now_ns)
            self.poke()

    def _letter(self, sender: Member, peer: str, due_ns: SimTime, word: Message) -> None:
        """Put a letter where it will be found when it is due."""
        found = [m for m in self.members if m.name == peer or peer in m.addresses]
        if not found:
            # By whatever name of its host; ports are taken once on most.
            port = ":" + peer.rpartition(":")[2]
            found = [m for m in self.members if any(a.endswith(port) for a in m.addresses)]
        match word:
            case [str(what), str(key), str(), *rest]:
                pass
            case _:
                raise ValueError(f"{sender} wrote {word!r}")
        if len(found) == 1:
            self._put(found[0], due_ns, sender, [what, key, sender.name, *rest])
        elif what == "ready":
            self._put(sender, due_ns + _LOOKED_FOR_NS, sender, ["over", key, peer, "unknown"])

    def _put(self, reader: Member, due_ns: SimTime, sender: Member, word: Message) -> None:
        self._letters += 1
        heappush(reader.letters, (due_ns, sender.workers, self._letters, word))

    # The pump

    def poke(self) -> None:
        """Something was said: decide again soon."""
        if self._pump_soon is None and self.error is None and self._loop is not None:
            self._pump_soon = self._loop.call_soon(self._pump)

    def pump_now(self) -> None:
        """Decide at once: everything that a member had to say at present has been heard."""
        if self.error is None and self._loop is not None:
            self._pump()

    def _pump(self) -> None:
        if self._pump_soon is not None:
            self._pump_soon.cancel()
            self._pump_soon = None
        try:
            for _ in range(_DECISIONS_PER_PUMP):
                if not self._step():
                    return
        except Exception as error:
            self._fail(error)
        self.poke()

    def _step(self) -> bool:
        """Take one decision; False if there is nothing to do but wait."""
        if self.at_work:
            return False
        keeper = self.keeper
        decision = keeper.decide(self.next_due(), self._wall_ns())
        if isinstance(decision, Move):
            self._move(decision.t_ns)
        elif isinstance(decision, Resume):
            for action in decision.tokens:
                action()
            for member in self.members:
                if member.resumed:
                    member.send(["resume", member.resumed])
                    member.resumed = []
        elif isinstance(decision, Feed):
            self._feed(decision.items)
        else:
            self._wait(decision.until_wall_ns)
            return False
        return True

    def _move(self, t_ns: SimTime) -> None:
        due = [m for m in self.members if m.due_ns is not None and m.due_ns <= t_ns]
        words = [member.take_letters(t_ns) for member in due]
        limit_ns = self._limit_ns(due[0]) if len(due) == 1 else t_ns
        for member, heard in zip(due, words, strict=True):
            if heard:
                self._order(member, ["hear", t_ns, heard, limit_ns])
            else:
                self._order(member, ["move", t_ns, limit_ns])

    def _feed(self, items: list[tuple[Member, int]]) -> None:
        shares: dict[Member, list[int]] = {}
        for member, number in items:
            shares.setdefault(member, []).append(number)
        now_ns = self.keeper.now_ns
        limit_ns = self._limit_ns(next(iter(shares))) if len(shares) == 1 else now_ns
        for member, numbers in shares.items():
            if member in self.members:
                self._order(member, ["feed", now_ns, numbers, limit_ns])

    def _limit_ns(self, alone: Member) -> SimTime:
        """Before when a member may go on by itself, with all others at rest."""
        if not self.keeper.is_settled:
            return 0
        wake_ns = self.keeper.next_wake()
        limit_ns = _FAR_NS if wake_ns is None else wake_ns
        for member in self.members:
            due_ns = member.letter_ns if member is alone else member.due_ns
            if due_ns is not None and due_ns < limit_ns:
                limit_ns = due_ns
        return limit_ns

    def _order(self, member: Member, message: Message) -> None:
        member.busy = True
        self._orders += 1
        member.send(message)

    def _wait(self, until_wall_ns: int | None) -> None:
        self._stall_log.tell()
        if self._timer is not None and (until_wall_ns is None or until_wall_ns < self._timer_ns):
            self._timer.cancel()
            self._timer = None
        if until_wall_ns is not None and self._timer is None and self._loop is not None:
            # Rung too early, the pump only looks again: cheaper than a timer for each message.
            delay_s = max((until_wall_ns - self._wall_ns()) / NS_PER_S, 0.0)
            self._timer_ns = until_wall_ns
            self._timer = self._loop.call_later(delay_s, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._pump()

    def _fail(self, error: BaseException) -> None:
        if self.error is not None:
            return
        self.error = error
        logger.error("the clock stopped: %s", error)
        for member in self.members:
            member.send(["fail", str(error)])
        for action in self.keeper.abandon():
            action()
        if self._timer is not None:
            self._timer.cancel()
        self.died.set()


_LOOKED_FOR_NS = 15 * NS_PER_S
"""How long a decode server looks for a prefill server: 15 attempts, one per second (SGLang 0.5.23,
disaggregation/decode.py)."""
_FAR_NS = 1 << 62
"""No limit: later than any time there is."""
