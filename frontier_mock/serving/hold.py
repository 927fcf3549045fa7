"""What an engine is kept from doing: pauses, and a cache to be forgotten at the next rest.

Theory of operation. A pause freezes or drains. *Frozen* ("keep", "retract"), the engine decides no
further step. *Draining* ("finish", "abort"), it goes on deciding, but arrivals stay outside. The
engine is at rest once it executes nothing; what had to wait for that (retraction, the end of the
pause's first half, a flush that retracts) happens there. A flush freezes for as long as it takes,
whether there is a pause or not, and a pause that is lifted does not lift it.
"""

from typing import Protocol

from frontier_mock.core.commands import Pause
from frontier_mock.core.events import Controlled, EventLog
from frontier_mock.serving.schedulers.protocol import Cache, Scheduler, Step
from frontier_mock.serving.sequence import DONE, Sequence
from frontier_mock.simtime import SimTime

_FREEZING = ("keep", "retract")


class Engine(Protocol):
    """The engine as what holds it sees it."""

    index: int
    in_frontend: int

    @property
    def scheduler(self) -> Scheduler:
        """Its sequences."""
        ...

    @property
    def kv(self) -> Cache:
        """Its cache."""
        ...

    @property
    def executing(self) -> Step | None:
        """The step being executed."""
        ...

    def interrupt(self, t_ns: SimTime) -> None:
        """Let the present run end with the step that is executed at `t_ns`."""
        ...

    def wake_idle(self, t_ns: SimTime) -> None:
        """There is something to do from `t_ns` on, and no step is executing."""
        ...

    def enter(self, seq: Sequence, t_ns: SimTime, at_once: bool) -> None:
        """Take a sequence from the front end into the scheduler's queue."""
        ...


class Hold:
    """See the theory of operation at the top of this module.

    `frozen` and `draining` say what the engine may not do, `refuses` whether arrivals are rejected
    meanwhile.
    """

    __slots__ = (
        "_awaited",
        "_engine",
        "_flushing",
        "_kept_from",
        "_kept_out",
        "_log",
        "_mode",
        "_resting",
        "draining",
        "frozen",
        "refuses",
    )

    def __init__(self, engine: Engine, log: EventLog) -> None:
        self.frozen = False
        self.draining = False
        self.refuses = False
        self._engine = engine
        self._log = log
        self._mode = ""
        self._resting = False
        self._flushing = False
        self._kept_out: list[Sequence] = []
        self._kept_from = 0
        self._awaited = 0

    def pause(self, command: Pause, t_ns: SimTime, next_rid: int) -> None:
        """Come to rest; aborts of the mode "abort" are the caller's, sequences are its to know.

        `next_rid` is that of the first sequence that comes after this command.
        """
        engine = self._engine
        self._mode = command.mode
        self.refuses = command.refuse
        self.draining = command.mode not in _FREEZING
        self.frozen = self._flushing or not self.draining
        self._resting = False
        self._kept_from = next_rid
        self._awaited = engine.in_frontend
        self._say(t_ns, "pause")
        if engine.executing is not None:
            engine.interrupt(t_ns)
        elif self.frozen or not engine.scheduler.num_live:
            self.come_to_rest(t_ns)
        else:
            engine.wake_idle(t_ns)

    def resume(self, t_ns: SimTime) -> None:
        """End a pause; what had to stay outside comes in."""
        if not self._mode:
            return
        engine = self._engine
        self._mode = ""
        self.draining = self.refuses = False
        self.frozen = self._flushing
        self._say(t_ns, "resume")
        kept_out, self._kept_out = self._kept_out, []
        for seq in kept_out:
            if seq.state != DONE:
                engine.enter(seq, t_ns, at_once=True)
        if engine.executing is None and engine.scheduler.num_live:
            engine.wake_idle(t_ns)

    def flush(self, retract: bool, t_ns: SimTime) -> bool:
        """Forget the prefix cache; False, and nothing done, if blocks are in use.

        With `retract` it will be done as soon as no step is executing, and running sequences start
        again after it. The engine must have been settled.
        """
        engine = self._engine
        if not retract:
            done = engine.kv.reset()
            if done:
                self._say(t_ns, "flush")
            return done
        self._flushing = self.frozen = True
        if engine.executing is not None:
            engine.interrupt(t_ns)
        else:
            self.come_to_rest(t_ns)
        return True

    def keeps_out(self, seq: Sequence, t_ns: SimTime) -> bool:
        """While draining: whether an arrival came after the pause, or is gone already."""
        if seq.rid >= self._kept_from:
            self._kept_out.append(seq)
            return True
        self._awaited -= 1
        if seq.state == DONE and self._engine.executing is None:
            self.come_to_rest(t_ns)
        return seq.state == DONE

    def come_to_rest(self, t_ns: SimTime) -> None:
        """The engine executes nothing: do what has waited for that."""
        scheduler = self._engine.scheduler
        if self._flushing:
            self._flushing = False
            scheduler.retract_all(t_ns)
            self._engine.kv.reset()
            self._say(t_ns, "flush")
            self.frozen = self._mode in _FREEZING
            if not self.frozen and scheduler.num_live:
                self._engine.wake_idle(t_ns)
        # A frozen engine decides no step with which they would begin.
        scheduler.begin_copies(t_ns)
        if not self._mode or self._resting:
            return
        if self.draining and (scheduler.num_live or self._awaited):
            return
        if self._mode == "retract":
            scheduler.retract_all(t_ns)
        self._resting = True
        self._say(t_ns, "rest")

    def _say(self, t_ns: SimTime, what: str) -> None:
        self._log.append(Controlled(t_ns, self._engine.index, -1, what))
