"""Several engine processes on one clock."""

import asyncio
from pathlib import Path

import pytest

from frontier_mock.client.clock import ClockClient, ClockError
from frontier_mock.client.http1 import HttpClient
from tests.integration.fleet import fleet, play, shared_fleet, wait_for_play, write_scenario

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("groups", "flags"),
    [(("w0..w3", "w4..w7"), ()), (("w1..w6", "w0,w7"), ("--baton",))],
    ids=["halves", "baton"],
)
async def test_two_processes_are_one_cluster(
    groups: tuple[str, ...], flags: tuple[str, ...], tmp_path: Path
) -> None:
    scenario = write_scenario(tmp_path, agents=16, turns=5, workers=8)
    with fleet(scenario, tmp_path) as served:
        one = await play(scenario, served.urls, served.clock_url)
    with shared_fleet(scenario, tmp_path, groups, *flags) as shared:
        several = await play(scenario, shared.urls, shared.clock_url)
    assert (one.errors, one.failures) == (several.errors, several.failures) == (0, [])
    assert (several.stalls, several.guesses) == (0, 0)
    assert several.by_name == one.by_name
    assert several.virtual_s == one.virtual_s
    assert "stopped" not in shared.log("clock")


async def test_a_killed_engine_process_ends_the_run_and_is_named(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path, agents=8, turns=50, workers=4)
    with shared_fleet(scenario, tmp_path, ["w0..w1", "w2..w3"]) as shared:
        run = asyncio.create_task(play(scenario, shared.urls, shared.clock_url))
        http = HttpClient(shared.clock_url)
        async with ClockClient(http, ["watcher"]) as clock, asyncio.timeout(60):
            await wait_for_play(http)
            await clock.sleep("watcher", 2_000_000_000)
            shared.engines[1].kill()
            # Whoever asks the clock for something is told; those whose request was in the other
            # process get an error as their answer and hear of it with their next sleep.
            with pytest.raises(ClockError, match=r"workers w2, w3\) is gone"):
                await clock.sleep("watcher", 1_000_000_000_000)
        http.close()
        async with asyncio.timeout(30):
            outcome = (await asyncio.gather(run, return_exceptions=True))[0]
        assert isinstance(outcome, BaseException)
        assert await asyncio.to_thread(shared.clock.wait, 30) == 1
        assert await asyncio.to_thread(shared.engines[0].wait, 30) == 1
    assert "(workers w2, w3) is gone" in shared.log("clock")
    assert "(workers w2, w3) is gone" in shared.log("engine0")


async def test_a_killed_clock_ends_its_engines(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path, agents=4, turns=50, workers=2)
    with shared_fleet(scenario, tmp_path, ["w0", "w1"]) as shared:
        shared.clock.kill()
        for engine in shared.engines:
            assert await asyncio.to_thread(engine.wait, 30) == 1
    assert "lost the clock" in shared.log("engine0")


async def test_an_idle_engine_process_may_leave(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path, agents=4, turns=3, workers=2)
    with shared_fleet(scenario, tmp_path, ["w0", "w1"]) as shared:
        shared.engines[1].terminate()
        assert await asyncio.to_thread(shared.engines[1].wait, 30) == 0
        played = await play(scenario, shared.urls[:1], shared.clock_url)
    assert (played.errors, played.failures) == (0, [])
