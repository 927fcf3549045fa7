"""Closed-loop agents in virtual time behind real ports, directly and through real routers.

64 agents, 20 turns each, a second's thought between turns; every process is its own. FMOCK_RUNS
sets how often each is repeated (10).
"""

import asyncio
import os
import statistics
import tempfile
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path

from frontier_mock.config.scenario import ScenarioSpec
from frontier_mock.drive.event_loop import new_event_loop
from tests.bench.figures import Figure
from tests.integration.fleet import (
    Played,
    digest_of_journal,
    digest_of_simulation,
    fleet,
    play,
    router,
    shared_fleet,
    write_scenario,
)

AGENTS, TURNS, WORKERS = 64, 20, 4
RUNS = int(os.environ.get("FMOCK_RUNS", "10"))


@dataclass(frozen=True, slots=True)
class Setting:
    """What stands between agents and workers. `repeats` where its choices can be repeated."""

    name: str
    policy: str
    baton: bool
    together: bool
    repeats: bool = True

    def __str__(self) -> str:
        order = "baton" if self.baton else "canonical"
        return f"{self.name} {self.policy} {order}" if self.policy else f"{self.name} {order}"


SETTINGS = (
    Setting("direct", "", baton=False, together=True),
    Setting("sglang-router", "round_robin", baton=False, together=False),
    Setting("smg", "round_robin", baton=False, together=False),
    Setting("vllm-router", "round_robin", baton=False, together=False),
    Setting("sglang-router", "cache_aware", baton=True, together=True),
    Setting("vllm-router", "cache_aware", baton=True, together=True),
    Setting("smg", "cache_aware", baton=True, together=True, repeats=False),
)


def virtual_time_figures() -> Iterator[Figure]:
    """Errors, distinct digests, speed: for every setting, and for two processes on one clock."""
    with tempfile.TemporaryDirectory(prefix="fmock-bench-") as directory:
        path = Path(directory)
        for setting in SETTINGS:
            yield from _setting_figures(setting, path)
        yield from _shared_figures(path)


def _setting_figures(setting: Setting, path: Path) -> Iterator[Figure]:
    scenario = write_scenario(
        path, agents=AGENTS, turns=TURNS, workers=WORKERS, together=setting.together
    )
    runs: list[Played] = []
    off_record = 0
    for _ in range(RUNS):
        played, recorded = _run(setting, scenario, path)
        runs.append(played)
        off_record += played.digest != recorded
    yield from _figures(str(setting), runs)
    yield Figure(f"{setting}: digests unlike their journal's", off_record, "runs", 0, False)
    if setting.name == "direct":
        simulated = digest_of_simulation(scenario)
        off = sum(played.digest != simulated for played in runs)
        yield Figure(f"{setting}: digests unlike the simulation's", off, "runs", 0, False)
    if setting.repeats:
        distinct = len({played.by_role for played in runs})
        yield Figure(f"{setting}: distinct digests in {RUNS} runs", distinct, "", 1, False)


def _run(setting: Setting, scenario: ScenarioSpec, path: Path) -> tuple[Played, str]:
    flags = ["--baton"] if setting.baton else []
    with fleet(scenario, path, *flags) as served:
        if not setting.policy:
            played = _played(play(scenario, served.urls, served.clock_url))
        else:
            log = path / "router.log"
            with router(setting.name, setting.policy, served.urls, log) as url:
                played = _played(play(scenario, [url], served.clock_url, baton=setting.baton))
    return played, digest_of_journal(served.journal)


def _played(play: Coroutine[object, object, Played]) -> Played:
    """As `frontier-mock replay` plays it."""
    with asyncio.Runner(loop_factory=new_event_loop()) as runner:
        return runner.run(play)


def _shared_figures(path: Path) -> Iterator[Figure]:
    scenario = write_scenario(path, agents=AGENTS, turns=TURNS, workers=2 * WORKERS)
    with fleet(scenario, path) as served:
        one = _played(play(scenario, served.urls, served.clock_url))
    runs = []
    for _ in range(max(1, RUNS // 3)):
        with shared_fleet(scenario, path, ["w0..w3", "w4..w7"]) as shared:
            runs.append(_played(play(scenario, shared.urls, shared.clock_url)))
    yield from _figures("two processes", runs)
    off = sum(played.by_name != one.by_name for played in runs)
    yield Figure("two processes: digests unlike one process's", off, "runs", 0, False)


def _figures(name: str, runs: list[Played]) -> Iterator[Figure]:
    errors = sum(played.errors + len(played.failures) for played in runs)
    guesses = sum(played.stalls + played.guesses for played in runs)
    yield Figure(f"{name}: causality errors and failures", errors, "turns", 0, False)
    yield Figure(f"{name}: stalls and guesses", guesses, "", 0, False)
    rates = sorted(len(played.exchanges) / played.wall_s for played in runs)
    speeds = sorted(played.virtual_s / played.wall_s for played in runs)
    note = f"median of {len(runs)}; {rates[0]:,.0f} to {rates[-1]:,.0f}"
    rate = statistics.median(rates)
    yield Figure(f"{name}: requests", rate, "per wall s", 500, True, note)
    note = f"{speeds[0]:.1f} to {speeds[-1]:.1f}"
    yield Figure(f"{name}: virtual over real time", statistics.median(speeds), "x", 20, True, note)
