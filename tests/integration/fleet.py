"""Real processes around a simulated cluster: `frontier-mock up`, unmodified routers, agents.

The agents are closed loops with leases, played by the load generator in the test's own process.
"""

import asyncio
import importlib.util
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest

from frontier_mock.cli.demo import (
    answers,
    free_ports,
    healthy_workers,
    process,
    wait_until,
)
from frontier_mock.client.clock import ClockClient, read_clock, read_json
from frontier_mock.client.endpoint import Answer, Endpoint, EndpointSpec
from frontier_mock.client.http1 import HttpClient
from frontier_mock.client.loadgen import PACER, Exchange, ignore_progress, run_warp
from frontier_mock.cluster.build import build_cluster
from frontier_mock.config.journals import read_recording
from frontier_mock.config.resolve import resolve_scenario
from frontier_mock.config.scenario import ScenarioSpec, load_scenario
from frontier_mock.core.commands import Submit
from frontier_mock.drive.offline import replay
from frontier_mock.drive.offline import run as run_offline
from frontier_mock.simtime import SimTime
from frontier_mock.workload.build import build_source
from frontier_mock.workload.source import Item, Source, Timed

MODEL = "meta-llama/Llama-3.1-8B-Instruct"

SCENARIO = """\
name: agents
seed: 0
cluster:
  workers:
    - {{name: w, count: {workers}, model: {model}, hardware: h800, port: 0}}
workload:
  kind: sessions
  num_sessions: {agents}
  {begin}
  turns: {turns}
  first_input_tokens: {{uniform: [100, 300]}}
  input_tokens: {{uniform: [10, 60]}}
  output_tokens: {{uniform: [1, 64]}}
  think_time_s: {{exponential: 1.0}}
"""
"""Conversations that grow, with a second's thought between turns (virtual_time.md section 3.3)."""

ROUTERS: dict[str, tuple[str, list[str]]] = {
    "sglang-router": (
        "sglang_router",
        ["-m", "sglang_router.launch_router", "--log-level", "warn"],
    ),
    "smg": ("smg", ["-m", "smg.cli", "launch", "--log-level", "warn"]),
    "vllm-router": (
        "vllm_router",
        ["-m", "vllm_router.launch_router", "--log-level", "warning"],
    ),
}
"""Name -> (module it needs, command line before the policy and the workers)."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Workers of a scenario, each on a port of its own; `clock_url` reaches their clock.

    `grpc_urls` are those of workers that speak gRPC as well.
    """

    scenario: ScenarioSpec
    urls: tuple[str, ...]
    clock_url: str
    journal: Path
    grpc_urls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Played:
    """What one run of the agents came to. A turn not stamped when it was due is an error."""

    exchanges: list[Exchange]
    errors: int
    failures: list[str]
    virtual_s: float
    wall_s: float
    stalls: int
    guesses: int
    digest: str
    by_name: str
    by_role: str


def write_scenario(
    directory: Path, *, agents: int, turns: int, workers: int, together: bool = True
) -> ScenarioSpec:
    """A scenario of closed-loop agents that begin `together`, else each at a time of its own."""
    begin = f"concurrency: {agents}" if together else "rate_per_s: 20"
    path = directory / f"agents-{agents}x{turns}-{workers}.yaml"
    path.write_text(
        SCENARIO.format(model=MODEL, agents=agents, turns=turns, workers=workers, begin=begin)
    )
    return load_scenario(str(path))


@contextmanager
def fleet(
    scenario: ScenarioSpec, directory: Path, *flags: str, patience_s: float = 60.0
) -> Iterator[Fleet]:
    """`frontier-mock up` on the warp clock, journalling; ended, journal complete, on exit."""
    ready, log, journal = directory / "ready.json", directory / "up.log", directory / "journal"
    ready.unlink(missing_ok=True)
    argv = ["-m", "frontier_mock", "up", scenario.source, "--clock", "warp", "--host", "127.0.0.1"]
    argv += ["--port", "0", "--ready-file", str(ready), "--journal", str(journal)]
    argv += ["--patience-s", str(patience_s), *flags]
    with process("up", argv, log) as server:
        wait_until(ready.exists, server, "frontier-mock up", log)
        workers = json.loads(ready.read_text())["workers"]
        urls = tuple(worker["url"] for worker in workers)
        grpc_urls = tuple(worker["grpc_url"] for worker in workers if "grpc_url" in worker)
        yield Fleet(scenario, urls, urls[0], journal, grpc_urls)


@dataclass(frozen=True, slots=True)
class SharedFleet:
    """Workers in several processes on one clock; `urls` in the order of their names."""

    scenario: ScenarioSpec
    urls: tuple[str, ...]
    clock_url: str
    clock: subprocess.Popen[bytes]
    engines: tuple[subprocess.Popen[bytes], ...]
    logs: Path

    def log(self, name: str) -> str:
        """What `clock` or `engine0`, `engine1`, ... has said."""
        return (self.logs / f"{name}.log").read_text()


@contextmanager
def shared_fleet(
    scenario: ScenarioSpec, directory: Path, groups: Sequence[str], *flags: str
) -> Iterator[SharedFleet]:
    """`frontier-mock clock`, and an `up` process for each group of workers, in order."""
    with ExitStack() as stack:
        ready, log = directory / "clock.json", directory / "clock.log"
        ready.unlink(missing_ok=True)
        argv = ["-m", "frontier_mock", "clock", "--host", "127.0.0.1", "--port", "0"]
        argv += ["--ready-file", str(ready), "--patience-s", "60", *flags]
        clock = stack.enter_context(process("clock", argv, log))
        wait_until(ready.exists, clock, "frontier-mock clock", log)
        clock_url = json.loads(ready.read_text())["url"]
        engines, urls = [], {}
        for number, group in enumerate(groups):
            ready, log = directory / f"engine{number}.json", directory / f"engine{number}.log"
            ready.unlink(missing_ok=True)
            argv = ["-m", "frontier_mock", "up", scenario.source, "--host", "127.0.0.1"]
            argv += ["--port", "0", "--ready-file", str(ready), "--workers", group]
            argv += ["--clock-server", clock_url]
            engine = stack.enter_context(process(f"engine{number}", argv, log))
            wait_until(ready.exists, engine, "frontier-mock up", log)
            engines.append(engine)
            workers = json.loads(ready.read_text())["workers"]
            urls |= {worker["name"]: worker["url"] for worker in workers}
        in_order = tuple(urls[name] for name in sorted(urls))
        yield SharedFleet(scenario, in_order, clock_url, clock, tuple(engines), directory)


@contextmanager
def router(
    name: str,
    policy: str,
    urls: Sequence[str],
    log: Path,
    port: int | None = None,
    more: Sequence[str] = (),
) -> Iterator[str]:
    """An unmodified router from PyPI in front of `urls`; its URL once it has taken all of them."""
    module, argv = ROUTERS[name]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{name} is not installed: pip install 'frontier-mock[integration]'")
    free, metrics = free_ports(2)
    port = port or free
    argv = [*argv, "--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics)]
    argv += [*more, "--policy", policy, "--worker-urls", *urls]
    with process(name, argv, log) as running:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{url}/health"), running, name, log)
        wait_until(lambda: healthy_workers(url) == len(urls), running, name, log)
        try:
            yield url
        finally:
            # Asked politely, smg and sglang-router take several seconds to drain nothing.
            running.kill()


class SpreadEndpoint:
    """Several servers without a router: request n goes to server n modulo their number."""

    def __init__(self, urls: Sequence[str], model: str) -> None:
        self.parts = [Endpoint(EndpointSpec(url=url, model=model)) for url in urls]

    async def generate(self, submit: Submit, actor: str | None, spoken: dict[int, str]) -> Answer:
        assert actor is not None
        return await self.parts[int(actor) % len(self.parts)].generate(submit, actor, spoken)


async def wait_for_play(http: HttpClient) -> None:
    """Until the agents' pacer holds time; before that a watcher's sleep would pass without them."""
    actors: list[dict[str, object]] = []
    while PACER not in [actor["name"] for actor in actors]:
        await asyncio.sleep(0)
        actors = cast(list[dict[str, object]], (await read_json(http, "/sim/clock"))["actors"])


async def play(
    scenario: ScenarioSpec, urls: Sequence[str], clock_url: str, *, baton: bool = False
) -> Played:
    """Let the scenario's agents loose on the servers, or on the router before them."""
    source = source_of(scenario)
    endpoint = SpreadEndpoint(urls, MODEL)
    http = HttpClient(clock_url)
    started_s = time.perf_counter()
    try:
        async with ClockClient(http, [PACER]) as clock:
            start_ns = clock.now_ns
            exchanges = await run_warp(source, endpoint, clock, ignore_progress, baton)
        wall_s = time.perf_counter() - started_s
        state = await read_clock(http)
        report = await read_json(http, "/sim/report")
    finally:
        http.close()
        for part in endpoint.parts:
            part.http.close()
    exchanges.sort(key=lambda one: one.item.seq)
    workers = cast(dict[str, str], report["workers_digest"])
    return Played(
        exchanges,
        sum(
            one.answer.arrival_ns - start_ns != one.due_ns
            for one in exchanges
            if one.answer.status == 200
        ),
        [one.answer.message for one in exchanges if one.answer.status != 200],
        (max(one.answer.finish_ns for one in exchanges) - start_ns) / 1e9,
        wall_s,
        state.stalls,
        state.grace_jumps,
        str(report["digest"]),
        workers["by_name"],
        workers["by_role"],
    )


def source_of(scenario: ScenarioSpec) -> Source:
    """A fresh source of the scenario's workload."""
    assert scenario.workload is not None
    return build_source(scenario.workload, seed=scenario.seed)


class Placed:
    """A source whose requests say which worker they are for, as `SpreadEndpoint` sends them."""

    def __init__(self, source: Source, workers: int) -> None:
        self._source = source
        self._workers = workers
        self.num_requests = source.num_requests
        self.releases = source.releases
        self.feeds_back = source.feeds_back
        self.lanes_apart = source.lanes_apart

    def initial(self) -> list[Timed]:
        return [self._place(timed) for timed in self._source.initial()]

    def on_finish(self, item: Item, t_ns: SimTime) -> list[Timed]:
        return [self._place(timed) for timed in self._source.on_finish(item, t_ns)]

    def _place(self, timed: Timed) -> Timed:
        worker = timed.item.seq % self._workers
        return timed._replace(submit=replace(timed.submit, worker=worker))


def digest_of_simulation(scenario: ScenarioSpec) -> str:
    """What the same agents come to offline, with the same request on the same worker."""
    resolved = resolve_scenario(scenario)
    cluster = build_cluster(resolved.spec, resolved.costs)
    run_offline(cluster, Placed(source_of(scenario), len(resolved.spec.workers)))
    return cluster.log.digest()


def digest_of_journal(path: Path) -> str:
    """What an offline replay of the journal comes to."""
    recording = read_recording(str(path))
    return replay(build_cluster(recording.cluster.spec, recording.cluster.costs), recording.journal)
