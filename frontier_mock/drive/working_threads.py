"""Threads whose work a virtual loop waits for (drive.virtual_loop, rule 2)."""

import asyncio
import concurrent.futures
import concurrent.futures.thread
import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from frontier_mock.drive.virtual_loop import VirtualTimeLoop

ResultT = TypeVar("ResultT")

_local = threading.local()


class ThreadState(Enum):
    """What a thread that belongs to a loop is doing."""

    QUEUED = "queued"
    """Its executor has not begun to run it."""
    WORKING = "working"
    """Time waits for it."""
    PARKED = "parked"
    """It waits for virtual time, or for the loop, itself."""


class WorkingThread:
    """A thread whose work virtual time waits for."""

    __slots__ = ("_loop", "executor", "name", "num_children", "path", "state")

    def __init__(
        self,
        loop: "VirtualTimeLoop",
        name: str,
        path: str,
        executor: concurrent.futures.Executor | None,
    ) -> None:
        """`executor` None means that the thread runs already."""
        self._loop = loop
        self.name = name
        self.path = path
        self.num_children = 0
        self.executor = executor
        self.state = ThreadState.WORKING if executor is None else ThreadState.QUEUED

    @property
    def loop(self) -> "VirtualTimeLoop":
        """Whose time it lives in."""
        return self._loop

    def run(self, func: Callable[..., ResultT], *args: Any) -> ResultT:
        """Run `func` in the calling thread, on this object's account."""
        self.state = ThreadState.WORKING
        with self.as_current():
            return func(*args)

    @contextlib.contextmanager
    def as_current(self) -> Iterator[None]:
        """Let `working_thread()` find this object in the calling thread."""
        before = working_thread()
        _local.thread = self
        try:
            yield
        finally:
            _local.thread = before

    def wait_for(self, coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Run `coroutine` on the loop and wait for it; time is free to move meanwhile."""
        result: concurrent.futures.Future[ResultT] = concurrent.futures.Future()

        def begin() -> None:
            self.state = ThreadState.PARKED
            task = self._loop.create_child_task(self, coroutine)
            task.add_done_callback(end)

        def end(task: "asyncio.Task[ResultT]") -> None:
            # Working again before the thread knows, or time could slip past it.
            self.state = ThreadState.WORKING
            if task.cancelled():
                result.set_exception(concurrent.futures.CancelledError())
            elif (error := task.exception()) is not None:
                result.set_exception(error)
            else:
                result.set_result(task.result())

        try:
            self._loop.call_soon_threadsafe(begin)
        except RuntimeError:
            coroutine.close()
            raise
        return result.result()

    def sleep(self, seconds: float) -> None:
        """Wait for virtual time."""
        self.wait_for(asyncio.sleep(seconds))


def working_thread() -> WorkingThread | None:
    """The calling thread's account with a virtual loop, if it has one."""
    return getattr(_local, "thread", None)


def name_of(func: Callable[..., object]) -> str:
    """A function's name; that of `asyncio.to_thread`'s is inside a partial of a context's run."""
    if isinstance(func, functools.partial):
        inner = func.args[0] if func.args and callable(func.args[0]) else func.func
        return name_of(inner)
    return getattr(func, "__qualname__", None) or repr(func)


def anyio_threads_at_work(loop: asyncio.AbstractEventLoop) -> list[str]:
    """Threads of `anyio.to_thread` that run a function for `loop`.

    They cannot be counted, as the function may itself wait for the loop (`anyio.from_thread`).
    There is no public way to ask for them; an anyio whose books are elsewhere has none at work.
    """
    backend = sys.modules.get("anyio._backends._asyncio")
    kind = getattr(backend, "WorkerThread", None)
    if kind is None or threading.active_count() == 1:
        return []
    return [
        thread.name
        for thread in threading.enumerate()
        if isinstance(thread, kind)
        and getattr(thread, "loop", None) is loop
        and not getattr(thread, "stopping", True)
        and thread not in getattr(thread, "idle_workers", (thread,))
    ]


def uncounted(counted: Iterable[WorkingThread]) -> str:
    """A hint at threads that run but belong to no loop: they might wake somebody, unseen."""
    if any(counted):
        return ""
    own = threading.current_thread()
    names = [
        thread.name
        for thread in threading.enumerate()
        if thread not in (own, threading.main_thread()) and not _is_pools(thread)
    ]
    if not names:
        return ""
    return f" (unless threads do it that time does not wait for, see loop.thread(): {names})"


def _is_pools(thread: threading.Thread) -> bool:
    """Whether it is a worker of a thread pool, waiting for work."""
    return getattr(thread, "_target", None) is getattr(concurrent.futures.thread, "_worker", None)
