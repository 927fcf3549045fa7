"""The loop alone: order, jumps, threads, descriptors, and what it says when nothing can happen."""

import asyncio
import math
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from frontier_mock.drive.virtual_loop import (
    Deadlock,
    PathTask,
    TimeLimit,
    VirtualTimeLoop,
    task_path,
)
from frontier_mock.drive.working_threads import working_thread

HOUR_S = 3600.0


def run(main: Coroutine[Any, Any, Any], **options: Any) -> Any:
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(**options)) as runner:
        return runner.run(main)


def the_loop() -> VirtualTimeLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    return loop


def test_an_hour_passes_at_once_and_to_the_nanosecond() -> None:
    async def main() -> list[int]:
        times = []
        for _ in range(3):
            await asyncio.sleep(HOUR_S + 1e-9)
            times.append(the_loop().now_ns())
        return times

    assert run(main()) == [3600 * 10**9 * n + n for n in (1, 2, 3)]


def test_timeouts_fire_in_virtual_time() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(90.0):
                await asyncio.Event().wait()
        return the_loop().time()

    assert run(main()) == 90.0


def test_far_deadlines_do_not_spin() -> None:
    async def main() -> float:
        await asyncio.sleep(40 * 365 * 86400.0)
        await asyncio.sleep(1e-9)
        return the_loop().time()

    assert run(main()) >= 40 * 365 * 86400.0


@pytest.mark.parametrize("delay_s", [2.0 * 86400.0, 1e9])
def test_days_are_one_jump(delay_s: float) -> None:
    async def main() -> tuple[float, int]:
        await asyncio.sleep(delay_s)
        return the_loop().time(), the_loop().jumps

    assert run(main()) == (delay_s, 1)


def test_a_timer_that_never_comes_wakes_nobody() -> None:
    async def main() -> None:
        await asyncio.sleep(math.inf)

    with pytest.raises(Deadlock, match="nothing is scheduled"):
        run(main())


@pytest.mark.parametrize("delay_s", [1e10, 1e300])
def test_time_ends(delay_s: float) -> None:
    async def main() -> None:
        await asyncio.sleep(delay_s)

    with pytest.raises(TimeLimit, match=r"the limit of 4\.61169e\+09 s"):
        run(main())


def test_deadlock_hints_at_threads_that_nobody_counts() -> None:
    go_on = threading.Event()

    async def main() -> None:
        thread = threading.Thread(target=go_on.wait, name="stray", daemon=True)
        thread.start()
        await asyncio.to_thread(int)  # leaves a pool's thread, which is nobody's hope
        await asyncio.Event().wait()

    try:
        with pytest.raises(Deadlock) as caught:
            run(main())
    finally:
        go_on.set()
    assert "time does not wait for, see loop.thread(): ['stray'])" in str(caught.value)


def test_a_poll_comes_before_a_jump() -> None:
    async def main() -> float:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(1 << 16):
                writer.write(data)
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        ticker = asyncio.create_task(_tick(0.0001))
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for _ in range(20):
            writer.write(b"x" * 1_000_000)
            await reader.readexactly(1_000_000)
        elapsed = the_loop().time()
        assert the_loop().guesses == 0
        ticker.cancel()
        writer.close()
        server.close()
        return elapsed

    assert run(main()) == 0.0


async def _tick(period_s: float) -> None:
    while True:
        await asyncio.sleep(period_s)


def test_idle_callbacks_run_when_the_instant_has_nothing_left() -> None:
    async def main() -> list[str]:
        said: list[str] = []
        loop = the_loop()
        loop.call_when_idle(lambda: said.append(f"idle at {loop.now_ns()}"))
        loop.call_when_idle(lambda: said.append("never")).cancel()
        for n in range(5):
            await asyncio.sleep(0)
            said.append(f"step {n}")
        await asyncio.sleep(1.0)
        return said

    steps = [f"step {n}" for n in range(5)]
    assert run(main()) == [*steps, "idle at 0"]


def test_deadlock_is_found_at_once_and_says_who_waits() -> None:
    async def waits_for_godot() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        await asyncio.gather(*(asyncio.create_task(waits_for_godot()) for _ in range(30)))

    with pytest.raises(Deadlock) as caught:
        run(main())
    text = str(caught.value)
    assert "nothing is scheduled" in text
    assert "31 task(s)" in text
    assert "waits_for_godot() at" in text
    assert "in wait" in text
    assert "and 11 more" in text


def test_a_listening_server_is_nobody_to_wait_for() -> None:
    async def main() -> None:
        server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        async with server:
            await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run(main())


def test_spinning_is_a_deadlock_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontier_mock.drive.virtual_loop._POLLS_PER_INSTANT", 1000)

    async def main() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(Deadlock, match="spins without ever waiting"):
        run(main())


def test_virtual_time_has_a_limit() -> None:
    with pytest.raises(TimeLimit, match=r"limit of 60 s(.|\n)*_tick\(\) at"):
        run(_tick(7.0), limit_s=60.0)


def test_threads_keep_time_from_moving() -> None:
    started, go_on = threading.Event(), threading.Event()

    def work() -> str:
        started.set()
        go_on.wait()
        return "done"

    async def main() -> tuple[str, float]:
        loop = the_loop()
        result = asyncio.create_task(asyncio.to_thread(work))
        timer = loop.call_later(5.0, lambda: None)
        await asyncio.to_thread(started.wait)
        threading.Thread(target=go_on.set).start()
        said = await result
        timer.cancel()
        return said, loop.time()

    assert run(main()) == ("done", 0.0)


def test_a_thread_that_never_returns_is_named() -> None:
    go_on = threading.Event()

    def never_returns() -> None:
        go_on.wait()

    async def main() -> None:
        try:
            await asyncio.to_thread(never_returns)
        finally:
            go_on.set()

    with pytest.raises(Deadlock, match=r"threads at work: [\w.<>]*never_returns; at"):
        run(main(), patience_s=0.01)


def test_threads_sleep_in_virtual_time_and_queue_for_places() -> None:
    def nap() -> int:
        thread = working_thread()
        assert thread is not None
        thread.sleep(10.0)
        return thread.loop.now_ns()

    async def main() -> list[int]:
        with ThreadPoolExecutor(2) as pool:
            loop = the_loop()
            return list(await asyncio.gather(*(loop.run_in_executor(pool, nap) for _ in range(5))))

    assert sorted(run(main())) == [10 * 10**9, 10 * 10**9, 20 * 10**9, 20 * 10**9, 30 * 10**9]


def test_a_threads_question_to_the_loop_brings_its_errors_back() -> None:
    async def refuse() -> None:
        await asyncio.sleep(1.0)
        raise LookupError("no such thing")

    def ask() -> str:
        thread = working_thread()
        assert thread is not None
        with pytest.raises(LookupError) as caught:
            thread.wait_for(refuse())
        return str(caught.value)

    async def main() -> str:
        return await asyncio.to_thread(ask)

    assert run(main()) == "no such thing"


def test_anyios_threads_are_waited_for_like_anything_outside() -> None:
    go_on = threading.Event()

    async def sleeps() -> float:
        await asyncio.sleep(5.0)
        return the_loop().time()

    async def main() -> tuple[float, int, float]:
        # Nothing is scheduled meanwhile, which is no Deadlock.
        threading.Timer(0.01, go_on.set).start()
        await anyio.to_thread.run_sync(go_on.wait)
        before = the_loop().guesses
        await asyncio.sleep(1.0)
        assert the_loop().guesses == before
        # A thread that itself waits for the loop must not keep time from moving.
        woke = await anyio.to_thread.run_sync(lambda: anyio.from_thread.run(sleeps))
        return woke, the_loop().guesses, the_loop().time()

    assert run(main(), outside_grace_s=0.001) == (6.0, 1, 6.0)


def test_own_threads_can_be_counted() -> None:
    async def main() -> tuple[float, str]:
        loop = the_loop()
        done = asyncio.Event()
        seen: list[str] = []

        def work() -> None:
            with loop.thread("mine") as thread:
                thread.sleep(3.0)
                seen.append(thread.name)
            loop.call_soon_threadsafe(done.set)

        thread = threading.Thread(target=work)
        with_timer = loop.call_later(100.0, lambda: None)
        thread.start()
        await done.wait()
        with_timer.cancel()
        thread.join()
        return loop.time(), seen[0]

    assert run(main()) == (3.0, "mine")


def test_outside_descriptors_are_waited_for_in_real_time() -> None:
    read_end, write_end = os.pipe()

    async def main() -> tuple[bytes, int]:
        loop = the_loop()
        heard: asyncio.Future[bytes] = loop.create_future()
        loop.add_reader(read_end, lambda: heard.set_result(os.read(read_end, 10)))
        threading.Timer(0.01, os.write, (write_end, b"hello")).start()
        data = await heard
        await asyncio.sleep(1.0)
        loop.remove_reader(read_end)
        return data, loop.guesses

    assert run(main(), outside_grace_s=0.0) == (b"hello", 1)


def test_outside_silence_is_a_deadlock_after_the_patience() -> None:
    read_end, write_end = os.pipe()

    async def main() -> None:
        loop = the_loop()
        loop.add_reader(read_end, lambda: None)
        try:
            await loop.create_future()
        finally:
            loop.remove_reader(read_end)

    try:
        with pytest.raises(Deadlock, match="nothing came from outside"):
            run(main(), patience_s=0.01)
    finally:
        for fd in (read_end, write_end):
            os.close(fd)


def test_paths_follow_the_program_and_sort_like_creation() -> None:
    async def path() -> str:
        return task_path() or ""

    async def family(size: int) -> list[str]:
        return list(await asyncio.gather(*(path() for _ in range(size))))

    async def main() -> list[list[str]]:
        return list(await asyncio.gather(family(12), family(3)))

    first, second = run(main())
    flat = first + second
    assert flat == sorted(flat)
    assert len(set(flat)) == len(flat)
    assert all(len(p) < 12 for p in flat)
    assert task_path() is None


def test_tasks_of_a_foreign_factory_have_no_path() -> None:
    async def main() -> str | None:
        loop = the_loop()
        loop.set_task_factory(
            lambda loop, coro, **options: asyncio.Task(coro, loop=loop, **options)
        )
        task = loop.create_task(asyncio.sleep(0))
        assert not isinstance(task, PathTask)
        await task

        async def path() -> str | None:
            return task_path()

        return await loop.create_task(path())

    assert run(main()) is None


def test_getaddrinfo_counts_as_a_thread() -> None:
    async def main() -> float:
        timer = the_loop().call_later(9.0, lambda: None)
        await the_loop().getaddrinfo("localhost", 80)
        timer.cancel()
        return the_loop().time()

    assert run(main()) == 0.0


def test_two_runs_take_the_same_path() -> None:
    async def worker(name: int, log: list[tuple[int, int]], draw: Callable[[], float]) -> None:
        for _ in range(5):
            await asyncio.sleep(draw())
            log.append((the_loop().now_ns(), name))

    async def main() -> list[tuple[int, int]]:
        log: list[tuple[int, int]] = []
        delays = iter([(n * 7919 % 13) / 8 for n in range(1000)])
        await asyncio.gather(*(worker(n, log, lambda: next(delays)) for n in range(20)))
        return log

    first = run(main())
    assert first == run(main())
    assert first == sorted(first, key=lambda entry: entry[0])


def test_an_instant_with_a_thread_at_work_is_not_over() -> None:
    async def main() -> list[str]:
        loop = the_loop()
        said: list[str] = []
        working = asyncio.create_task(asyncio.to_thread(lambda: said.append("thread")))
        await asyncio.sleep(0)
        loop.call_when_idle(lambda: said.append("idle"))
        await working
        await asyncio.sleep(1.0)
        return said

    assert run(main()) == ["thread", "idle"]


def test_a_leap_passes_nothing_by() -> None:
    async def main() -> list[tuple[int, bool]]:
        loop = the_loop()
        leaps: list[tuple[int, bool]] = []

        def try_to(t_ns: int) -> None:
            leaps.append((t_ns, loop.leap(t_ns)))

        timer = loop.call_later(5.0, lambda: None)
        for t_ns in (0, 3 * 10**9, 5 * 10**9, 61 * 10**9):
            loop.call_when_idle(lambda t_ns=t_ns: try_to(t_ns))
            await asyncio.sleep(0.5)
        timer.cancel()
        return [*leaps, (loop.now_ns(), True)]

    # The sleeper's own timer stands in the way of all but what comes before it.
    assert run(main(), limit_s=60.0) == [
        (0, False),
        (3 * 10**9, False),
        (5 * 10**9, False),
        (61 * 10**9, False),
        (2 * 10**9, True),
    ]


def test_a_leap_moves_time_when_nobody_else_would() -> None:
    async def main() -> list[bool]:
        loop = the_loop()
        told: asyncio.Future[None] = loop.create_future()
        leaps: list[bool] = []

        def idle() -> None:
            leaps.append(loop.leap(3))
            leaps.append(loop.leap(7))
            leaps.append(loop.leap(7))
            told.set_result(None)
            leaps.append(loop.leap(8))

        loop.call_when_idle(idle)
        await told
        leaps.append(loop.now_ns() == 7)
        return leaps

    assert run(main()) == [True, True, False, False, True]
