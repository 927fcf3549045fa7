"""Operations of a driver: they take their turn, and their time, among the requests."""

import asyncio

import pytest

from frontier_mock.core.commands import Flush, Pause, Resume
from frontier_mock.core.events import Controlled
from frontier_mock.drive.operations import Agenda, Done, Operation
from frontier_mock.drive.pace import ClockSpec
from frontier_mock.drive.protocol import ShutdownError
from tests.drive.test_driver import FAST, WARP, Reader, Run, submit

CLOCKS = [FAST, WARP]


@pytest.mark.parametrize("clock", CLOCKS)
async def test_a_pause_is_over_when_the_engine_rests_and_holds_until_it_is_lifted(
    clock: ClockSpec,
) -> None:
    run = Run(clock)
    reader = Reader()
    run.driver.submit([submit(1, 50)], reader)
    paused = await run.driver.operate(Pause(0))
    assert paused.result == -1
    waited = await run.driver.operate(None, 10**9)
    assert waited.t_ns - paused.t_ns >= 10**9
    assert not reader.done.done()
    resumed = await run.driver.operate(Resume(0))
    await reader.done
    assert reader.flights[0].finish_ns > resumed.t_ns >= waited.t_ns
    assert reader.flights[0].output_tokens == 50
    assert run.replayed_digest() == run.cluster.log.digest()
    run.driver.stop()


@pytest.mark.parametrize("clock", CLOCKS)
async def test_an_operation_lasts_as_long_as_it_says(clock: ClockSpec) -> None:
    run = Run(clock)
    before_ns = run.driver.now_ns()
    done = await run.driver.operate(Flush(0), 2 * 10**9)
    assert done.result == 1
    assert done.t_ns - before_ns >= 2 * 10**9
    run.driver.stop()


async def test_in_warp_an_actor_waits_for_its_operation_without_holding_time() -> None:
    run = Run(ClockSpec(mode="warp", patience_s=3600))
    run.driver.keeper.register(1, ["admin"])
    done = await run.driver.operate(Pause(0), 5 * 10**9, actor="admin")
    assert done.t_ns == 5 * 10**9
    assert [name for name, _ in run.driver.holders()] == ["admin"]
    again = await run.driver.operate(Resume(0), actor="admin")
    assert again.t_ns == done.t_ns
    run.driver.stop()


async def test_a_flush_waits_for_its_retraction() -> None:
    run = Run(WARP)
    run.driver.keeper.register(1, ["admin"])
    reader = Reader()
    run.driver.submit([submit(1, 50)], reader)
    await run.driver.operate(None, 5_000_000, actor="admin")
    refused = await run.driver.operate(Flush(0), actor="admin")
    assert refused.result == 0
    done = await run.driver.operate(Flush(0, retract=True), actor="admin")
    assert done.result == 1
    run.driver.keeper.release(["admin"])
    run.driver.poke()
    await reader.done
    assert reader.flights[0].output_tokens == 50
    run.driver.stop()


async def test_what_lifts_a_pause_ends_the_wait_for_it_and_no_other() -> None:
    agenda = Agenda(lambda worker: [worker])
    for command in (Pause(0), Flush(0, retract=True)):
        future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        operation = Operation(command, 0, None, future)
        agenda.asked(operation)
        agenda.begin(operation, 0)
    agenda.observe(Controlled(5, 0, -1, "resume"))
    assert [operation.command for operation in agenda.pop_due(5)] == [Pause(0)]
    agenda.observe(Controlled(7, 0, -1, "flush"))
    assert [operation.command for operation in agenda.pop_due(7)] == [Flush(0, retract=True)]


@pytest.mark.parametrize("clock", CLOCKS)
async def test_whoever_waits_is_told_when_the_server_goes(clock: ClockSpec) -> None:
    run = Run(clock)
    future = run.driver.operate(None, 10**15, actor="admin")
    run.driver.keeper.register(1, ["somebody"])
    await asyncio.sleep(0)
    run.driver.settle()
    with pytest.raises(ShutdownError):
        await future
    with pytest.raises(ShutdownError):
        run.driver.operate(None)
    run.driver.stop()
