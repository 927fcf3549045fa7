"""Who is woken at a boundary: an engine, or the group that steps together."""

from typing import Protocol

from frontier_mock.simtime import SimTime


class Waker(Protocol):
    """Who is to be woken for a worker: itself, or the group that it steps with."""

    index: int
    wake_ns: SimTime | None

    def wake(self, t_ns: SimTime) -> None:
        """Cross the boundary at `t_ns` and go on to the next one."""
        ...


class Group(Waker, Protocol):
    """Workers whose steps begin and end together, as one of them sees it."""

    def shorten(self, steps: int) -> None:
        """Let the present run of everybody end after `steps` steps from the last boundary."""
        ...

    def wake_idle(self, t_ns: SimTime) -> None:
        """A worker that executes nothing has something to do from `t_ns` on."""
        ...

    def slow(self, extra_ns: SimTime) -> None:
        """Every joint step from the next boundary on takes so much longer than it should."""
        ...
