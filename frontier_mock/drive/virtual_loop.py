"""An asyncio event loop in virtual time: it jumps to the next timer when nothing else is left.

Theory of operation
-------------------
Everything that runs on one loop in one process can be looked through completely, so time needs no
leases here (shared/specs/virtual_time.md section 3.4). The loop's selector decides:

1. Poll first. What is readable or ready is handled at the present instant.
2. A thread is at work for this loop (`run_in_executor`, `thread`), or a program that it started:
   wait for it in real time. What it computes takes no virtual time, like everything that runs on a
   CPU here. Programs that wait to be told something do not count (`drive.child_processes`).
3. The instant is quiescent. Run what waits for that (`call_when_idle`), once.
4. A descriptor leads out of this process, or a thread of anyio is at work: wait a real moment for
   it, then count a guess. Sockets whose other end is on the same loop do not count: what they carry
   has been delivered already.
5. Jump to the next timer. If there is none, or its time is infinity, nobody will ever wake
   anybody: `Deadlock`, at once.

Each task has a *path*: its parent's path and its number among that parent's children. Paths depend
only on the program, never on which of several ready tasks happened to run first, and they sort like
the order of creation. Clients send them along, so that the requests of one instant can be put into
an order that no transport influences (`frontier_mock.client.wrap`).
"""

import asyncio
import concurrent.futures
import contextlib
import math
import selectors
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from typing import Any, TypeVar, TypeVarTuple, Unpack

from frontier_mock.drive.child_processes import ChildProcesses, program_name
from frontier_mock.drive.watched_selector import Ready, WatchedSelector
from frontier_mock.drive.working_threads import (
    ThreadState,
    WorkingThread,
    anyio_threads_at_work,
    name_of,
    uncounted,
    working_thread,
)
from frontier_mock.simtime import NS_PER_S, SimTime, from_seconds, to_seconds

ResultT = TypeVar("ResultT")
ArgsT = TypeVarTuple("ArgsT")

_TASKS_SHOWN = 20
_POLLS_PER_INSTANT = 500_000
"""Rounds of the loop without time moving after which somebody is taken to spin."""

_POOL_THREADS = 32
"""Threads of the default executor: asyncio's own cap, without its dependence on the machine."""

_LONGEST_SELECT_S = 24 * 3600.0
"""asyncio.base_events.MAXIMUM_SELECT_TIMEOUT."""

_END_NS = 1 << 62
"""The end of time, 146 years: engines keep times in 64 bits."""

_NEVER_NS = 2 * _END_NS
_NEVER_S = to_seconds(_NEVER_NS)


class Deadlock(RuntimeError):
    """Nothing can ever happen again, or time is kept from moving; the message says by whom."""


class TimeLimit(RuntimeError):
    """Virtual time reached the loop's limit: something keeps setting timers."""


class PathTask(asyncio.Task[Any]):
    """A task that knows its place in the tree of tasks; see the module's docstring."""

    __slots__ = ("num_children", "path")

    path: str
    num_children: int


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """See the theory of operation at the top of this module.

    `limit_s` is how far virtual time may go (None: 146 years). `patience_s` is how many
    real seconds a thread or an outside descriptor may keep time from moving before that is a
    Deadlock. `outside_grace_s` is how long, in real time, a jump waits for outside descriptors.
    """

    # asyncio's own, unchanged since Python 3.4: callbacks that are ready, and timers as a heap.
    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]

    def __init__(
        self,
        *,
        limit_s: float | None = None,
        patience_s: float = 60.0,
        outside_grace_s: float = 0.02,
    ) -> None:
        self.jumps = 0
        """How often time has moved."""
        self.guesses = 0
        """How often it moved although something outside might still have said something."""
        self._now_ns: SimTime = 0
        self._limit_ns = _END_NS if limit_s is None else min(from_seconds(limit_s), _END_NS)
        self._patience_s = patience_s
        self._outside_grace_s = outside_grace_s
        self._when_idle: list[asyncio.Handle] = []
        self._threads: dict[WorkingThread, None] = {}
        self._processes = ChildProcesses()
        self._gave_up = False
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        self._parent: WorkingThread | None = None
        self._roots = 0
        self._polls = 0
        self._watched = WatchedSelector(self._select)
        super().__init__(self._watched)

    # Time

    def time(self) -> float:
        """Virtual seconds, for asyncio's own arithmetic; the engine reads `now_ns`."""
        return self._now_ns / NS_PER_S

    def now_ns(self) -> SimTime:
        """Virtual time, exact."""
        return self._now_ns

    def block(self, seconds: float) -> None:
        """Let time pass while nothing else on the loop can run, as a blocking sleep does."""
        self._now_ns += max(0, from_seconds(seconds))

    def call_when_idle(self, callback: Callable[[], object]) -> asyncio.Handle:
        """Call back at the present instant, once nothing else is left to do in it."""
        handle = asyncio.Handle(callback, (), self)
        self._when_idle.append(handle)
        return handle

    def leap(self, t_ns: SimTime) -> bool:
        """Jump to `t_ns` from inside a callback if nothing else would happen before; else False.

        Spares whoever makes most of the timers the way through the loop and back.
        """
        if self._ready or self._when_idle or self._threads or t_ns <= self._now_ns:
            return False
        # Cancelled timers count as well: one that might have been leapt over costs a lap, no more.
        if self._scheduled and self._first_timer_ns() <= t_ns:
            return False
        if self._processes.at_work():
            return False
        if t_ns > self._limit_ns:
            return False
        if self._outside() or self._watched.poll():
            return False
        self._move_to(t_ns)
        return True

    # Threads

    def run_in_executor(
        self,
        executor: concurrent.futures.Executor | None,
        func: Callable[[Unpack[ArgsT]], ResultT],
        *args: *ArgsT,
    ) -> asyncio.Future[ResultT]:
        """As asyncio's; time waits until the function has returned."""
        if executor is None:
            executor = self._own_executor()
        thread = WorkingThread(self, name_of(func), self._next_path(), executor)
        self._threads[thread] = None
        try:
            if isinstance(executor, concurrent.futures.ThreadPoolExecutor):
                submitted = executor.submit(thread.run, func, *args)
            else:
                submitted = executor.submit(func, *args)
        except BaseException:
            del self._threads[thread]
            raise
        future = asyncio.wrap_future(submitted, loop=self)
        # After wrap_future's own callback, so that the result is on its way before time may move.
        submitted.add_done_callback(lambda _: self._from_thread(self._threads.pop, thread, None))
        return future

    @contextlib.contextmanager
    def thread(self, name: str = "") -> Iterator[WorkingThread]:
        """Count the calling thread, one that `run_in_executor` did not start, as at work."""
        working = WorkingThread(self, name or threading.current_thread().name, "", None)
        entered = threading.Event()

        def enter() -> None:
            working.path = self._next_path()
            self._threads[working] = None
            entered.set()

        self.call_soon_threadsafe(enter)
        entered.wait()
        with working.as_current():
            try:
                yield working
            finally:
                self._from_thread(self._threads.pop, working, None)

    def set_default_executor(self, executor: concurrent.futures.Executor) -> None:
        """As asyncio's, which takes thread pools only."""
        assert isinstance(executor, concurrent.futures.ThreadPoolExecutor)
        super().set_default_executor(executor)
        self._pool = executor

    async def shutdown_default_executor(self, *args: Any, **kwargs: Any) -> None:
        """As asyncio's; time waits for the thread that joins the others.

        After a Deadlock it joins nobody: that would say the same again, about itself.
        """
        if self._gave_up and self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            return
        joining = WorkingThread(self, "shutdown_default_executor", "", None)
        self._threads[joining] = None
        try:
            await super().shutdown_default_executor(*args, **kwargs)
        finally:
            del self._threads[joining]

    def _own_executor(self) -> concurrent.futures.ThreadPoolExecutor:
        if self._pool is None:
            self.set_default_executor(
                concurrent.futures.ThreadPoolExecutor(_POOL_THREADS, thread_name_prefix="asyncio")
            )
        assert self._pool is not None
        return self._pool

    def _from_thread(self, callback: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):
            # The loop may be closed by now; nobody waits for this thread any more.
            self.call_soon_threadsafe(callback, *args)

    def _busy_threads(self) -> list[str]:
        """Names of those that will do something by themselves.

        A function that waits for a place in a pool whose threads are all parked will not.
        """
        if not self._threads:
            return []
        taken: dict[int, int] = {}
        for thread in self._threads:
            if thread.state is not ThreadState.QUEUED:
                taken[id(thread.executor)] = taken.get(id(thread.executor), 0) + 1
        busy = []
        for thread in self._threads:
            places = getattr(thread.executor, "_max_workers", _POOL_THREADS)
            free = taken.get(id(thread.executor), 0) < places
            if thread.state is ThreadState.WORKING or (thread.state is ThreadState.QUEUED and free):
                busy.append(thread.name)
        return sorted(busy)

    # Programs

    async def subprocess_exec(self, *args: Any, **kwargs: Any) -> Any:
        """As asyncio's; see rule 2."""
        transport, protocol = await super().subprocess_exec(*args, **kwargs)
        self._processes.started(transport, program_name(args[1]))
        return transport, protocol

    async def subprocess_shell(self, *args: Any, **kwargs: Any) -> Any:
        """As asyncio's; see rule 2."""
        transport, protocol = await super().subprocess_shell(*args, **kwargs)
        self._processes.started(transport, program_name(args[1]))
        return transport, protocol

    # Tasks

    def create_task(
        self,
        coro: Generator[Any, None, ResultT] | Coroutine[Any, Any, ResultT],
        **options: Any,
    ) -> asyncio.Task[ResultT]:
        """As asyncio's. With a task factory of somebody else's, tasks have no path."""
        if self.get_task_factory() is not None:
            return super().create_task(coro, **options)
        if self.is_closed():
            raise RuntimeError("Event loop is closed")
        task = PathTask(coro, loop=self, **options)
        task.path = self._next_path()
        task.num_children = 0
        return task

    def create_child_task(
        self, parent: WorkingThread, coroutine: Coroutine[Any, Any, ResultT]
    ) -> asyncio.Task[ResultT]:
        """A task whose place is below a thread's; called from the loop's own thread."""
        self._parent = parent
        try:
            return self.create_task(coroutine)
        finally:
            self._parent = None

    def _next_path(self) -> str:
        parent = self._parent or asyncio.current_task(self)
        if isinstance(parent, PathTask | WorkingThread):
            parent.num_children += 1
            return parent.path + _numeral(parent.num_children)
        self._roots += 1
        return _numeral(self._roots)

    # The selector's decisions, numbered as in the theory of operation

    def _select(self, inner: selectors.BaseSelector, timeout: float | None) -> Ready:
        ready = inner.select(0)  # 1
        if ready or (timeout is not None and timeout <= 0):
            self._polls += 1
            if self._polls > _POLLS_PER_INSTANT and not self._busy_threads():
                self._polls = 0
                raise Deadlock(self._complaint("a task spins without ever waiting for time"))
            return ready
        if busy := self._busy_threads():  # 2
            return self._wait_outside(inner, f"threads at work: {', '.join(busy)}")
        if busy := self._processes.at_work():
            return self._wait_outside(inner, f"programs at work: {', '.join(busy)}")
        if self._when_idle:  # 3
            handles, self._when_idle = self._when_idle, []
            for handle in handles:
                if not handle.cancelled():
                    self.call_soon(handle._run)
            return ready
        outside = self._outside()
        if timeout is None or self._scheduled[0].when() == math.inf:
            if outside:
                return self._wait_outside(inner, "nothing came from outside the process")
            reason = f"nothing is scheduled, so nobody can wake anybody{uncounted(self._threads)}"
            raise Deadlock(self._complaint(reason))  # 5
        if outside:  # 4
            ready = inner.select(self._outside_grace_s)
            if ready:
                return ready
            self.guesses += 1
        self._jump(timeout)
        return ready

    def _outside(self) -> Sequence[object]:
        """What might say something that nothing here announces."""
        return (
            self._watched.outside()
            or self._processes.in_conversation()
            or anyio_threads_at_work(self)
        )

    def _wait_outside(self, inner: selectors.BaseSelector, why: str) -> Ready:
        ready = inner.select(self._patience_s)
        if not ready:
            self._gave_up = True
            raise Deadlock(self._complaint(f"no progress for {self._patience_s:g} real s; {why}"))
        return ready

    def _jump(self, timeout_s: float) -> None:
        # At least 1 ns, or the rounding of a far deadline could be waited for without end.
        # asyncio selects for a day at most, over and over; a far timer is gone to at once.
        far = timeout_s >= _LONGEST_SELECT_S
        target_ns = self._first_timer_ns() if far else from_seconds(self.time() + timeout_s)
        target_ns = max(self._now_ns + 1, target_ns)
        if target_ns > self._limit_ns:
            reason = f"virtual time reached the limit of {to_seconds(self._limit_ns):g} s"
            self._limit_ns = _END_NS  # what cleans up after the error may take its time
            raise TimeLimit(self._complaint(reason))
        self._move_to(target_ns)

    def _first_timer_ns(self) -> SimTime:
        when_s = self._scheduled[0].when()
        return from_seconds(when_s) if when_s < _NEVER_S else _NEVER_NS

    def _move_to(self, target_ns: SimTime) -> None:
        self._now_ns = target_ns
        # asyncio runs timers due within its clock's resolution; on a far clock, floats are coarser.
        self._clock_resolution = max(1e-9, 2 * math.ulp(self.time()))
        self.jumps += 1
        self._polls = 0

    def _complaint(self, reason: str) -> str:
        tasks = sorted(asyncio.all_tasks(self), key=_path_of)
        lines = [f"{reason}; at {self.time():.9f} virtual s, {len(tasks)} task(s) wait:"]
        lines += [f"  {task.get_name()}: {_where(task)}" for task in tasks[:_TASKS_SHOWN]]
        if len(tasks) > _TASKS_SHOWN:
            lines.append(f"  and {len(tasks) - _TASKS_SHOWN} more")
        return "\n".join(lines)


def task_path() -> str | None:
    """Path of the current task, or thread, on a virtual loop; None anywhere else."""
    thread = working_thread()
    if thread is not None:
        return thread.path
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return None
    return task.path if isinstance(task, PathTask) else None


def _path_of(task: asyncio.Task[Any]) -> str:
    return task.path if isinstance(task, PathTask) else ""


def _numeral(number: int) -> str:
    """A numeral such that strings of them sort as the tuples of their numbers do."""
    digits = str(number)
    return chr(ord("a") - 1 + len(digits)) + digits


def _where(task: asyncio.Task[Any]) -> str:
    """What a task's coroutine is, and where it and what it awaits have stopped."""
    awaited: Any = task.get_coro()
    name = getattr(awaited, "__qualname__", repr(awaited))
    stops = []
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is None:
            break
        code = frame.f_code
        stops.append(f"{code.co_filename}:{frame.f_lineno} in {code.co_name}")
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    if len(stops) > 2:
        stops[1:-1] = ["..."]
    return f"{name}() at {' > '.join(stops)}" if stops else f"{name}()"
