"""Real routers when a worker behind them dies, drains, or hangs.

Each worker is a process of its own on a scaled clock. Clients ask in closed loops through the
router for as long as the test lasts; what they saw is compared with what the workers counted.
"""

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from frontier_mock.cli.demo import answers, free_ports, process, wait_until
from tests.integration.fleet import router
from tests.integration.test_adapters import ADAPTERS, EXEC, need

pytestmark = pytest.mark.integration

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
CLIENTS = 8
FAST_CHECKS = (
    *("--health-check-interval-secs", "1"),
    *("--health-check-timeout-secs", "1"),
    *("--health-failure-threshold", "2"),
    *("--retry-initial-backoff-ms", "20"),
    *("--retry-max-backoff-ms", "200"),
)
LAUNCH = {
    "vllm": ["vllm", "serve", MODEL, "--shutdown-timeout", "20"],
    "sglang": ["sglang", "serve", "--model-path", MODEL, "--enable-metrics"],
}
ROUTERS = ["sglang-router", "smg", "vllm-router", "haproxy"]


@dataclass(slots=True)
class Seen:
    """What the clients saw: the real time of each good answer, and what went wrong when."""

    good_s: list[float] = field(default_factory=list)
    bad: list[tuple[float, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker's process and URL."""

    url: str
    process: subprocess.Popen[bytes]
    engine: str = "vllm"

    def completed(self) -> int:
        """Requests it has answered in full, by its own metrics."""
        lines = httpx.get(f"{self.url}/metrics", timeout=10).text.splitlines()
        family = "vllm:request_success_total"
        if self.engine == "sglang":
            family = "sglang:num_requests_total"
        ended = [x for x in lines if x.startswith(family)]
        return int(sum(float(x.rpartition(" ")[2]) for x in ended if 'reason="abort"' not in x))

    def waiting(self) -> int:
        """Requests it has, running or not."""
        lines = httpx.get(f"{self.url}/metrics", timeout=10).text.splitlines()
        names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
        if self.engine == "sglang":
            names = ("sglang:num_running_reqs{", "sglang:num_queue_reqs{")
        return int(sum(float(x.rpartition(" ")[2]) for x in lines if x.startswith(names)))


@contextmanager
def workers(directory: Path, count: int, engine: str = "vllm") -> Iterator[list[Worker]]:
    """Single-worker servers, each in its own process, twenty times as fast as real."""
    with ExitStack() as stack:
        made = []
        for number in range(count):
            ready, log = directory / f"ready{number}.json", directory / f"worker{number}.log"
            argv = ["-m", "frontier_mock", *LAUNCH[engine], "--host", "127.0.0.1", "--port", "0"]
            argv += ["--sim-clock", "scaled:20", "--sim-ready-file", str(ready)]
            with pytest.MonkeyPatch.context() as patch:
                # Otherwise there is no /pause.
                patch.setenv("VLLM_SERVER_DEV_MODE", "1")
                child = stack.enter_context(process(f"worker{number}", argv, log))
            wait_until(ready.exists, child, f"frontier-mock {engine} serve", log)
            url = json.loads(ready.read_text())["workers"][0]["url"]
            made.append(Worker(url, child, engine))
        yield made


@contextmanager
def any_router(
    name: str, urls: list[str], directory: Path, policy: str = "round_robin"
) -> Iterator[str]:
    """A router with quick health checks, or the load balancer that has none to learn."""
    log = directory / "router.log"
    if name != "haproxy":
        with router(name, policy, urls, log, more=FAST_CHECKS) as url:
            yield url
        return
    need(name)
    port, metrics = free_ports(2)
    launch = [str(ADAPTERS / name / "launch"), str(port), str(metrics)]
    launch += [policy.replace("_", ""), *urls]
    with process(name, ["-c", EXEC, *launch], log) as running:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{url}/v1/models"), running, name, log)
        yield url


async def ask(client: httpx.AsyncClient, seen: Seen) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What now?"}],
        "max_tokens": 40,
        "ignore_eos": True,
    }
    try:
        answer = await client.post("/v1/chat/completions", json=body)
    except httpx.HTTPError as error:
        seen.bad.append((time.monotonic(), type(error).__name__))
        return
    if answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 40:
        seen.good_s.append(time.monotonic())
    else:
        seen.bad.append((time.monotonic(), f"{answer.status_code} {answer.text[:80]}"))


@asynccontextmanager
async def traffic(url: str) -> AsyncIterator[Seen]:
    """Closed-loop clients through `url` while the block runs; all have stopped at its end."""
    seen, stopping = Seen(), asyncio.Event()

    async def loop() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            while not stopping.is_set():
                await ask(client, seen)

    tasks = [asyncio.create_task(loop()) for _ in range(CLIENTS)]
    try:
        yield seen
    finally:
        stopping.set()
        await asyncio.gather(*tasks)


async def until(condition: Callable[[], bool], limit_s: float = 40.0) -> None:
    """Poll; fails if it takes too long."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.02)


def good_since(seen: Seen, start_s: float) -> int:
    return sum(when >= start_s for when in seen.good_s)


@pytest.mark.parametrize("name", ROUTERS)
async def test_a_killed_worker_is_left_out_and_nothing_is_lost_but_what_it_held(
    name: str, tmp_path: Path
) -> None:
    with workers(tmp_path, 3) as served:
        urls = [worker.url for worker in served]
        with any_router(name, urls, tmp_path) as url:
            async with traffic(url) as seen:
                await until(lambda: len(seen.good_s) >= 60)
                served[1].process.kill()
                killed_s = time.monotonic()
                await until(lambda: good_since(seen, killed_s) >= 200)
                recovered_s = time.monotonic()
                await until(lambda: good_since(seen, recovered_s) >= 200)
        survivors = [served[0].completed(), served[2].completed()]
    late = [what for when, what in seen.bad if when >= recovered_s]
    early = [what for when, what in seen.bad if when < killed_s]
    assert (early, late) == ([], [])
    # The two that live did all that was answered, but for what the dead one did before.
    assert sum(survivors) >= good_since(seen, killed_s)
    assert min(survivors) > 100


@pytest.mark.parametrize("name", ROUTERS)
async def test_a_draining_worker_answers_what_it_has(name: str, tmp_path: Path) -> None:
    with workers(tmp_path, 2) as served:
        urls = [worker.url for worker in served]
        with any_router(name, urls, tmp_path) as url:
            async with traffic(url) as seen:
                await until(lambda: len(seen.good_s) >= 60)
                served[0].process.terminate()
                asked_s = time.monotonic()
                await until(lambda: good_since(seen, asked_s) >= 200)
        assert served[0].process.wait(30) == 0
    # Its port closed, so that new requests were refused and sent to the other one; a router that
    # holds an idle connection to it may meet its end once per client.
    assert len(seen.bad) <= 2 * CLIENTS
    assert "Shutting down" in (tmp_path / "worker0.log").read_text()


@pytest.mark.parametrize("name", ["sglang-router", "vllm-router", "haproxy"])
async def test_a_paused_worker_holds_what_it_gets_and_loses_nothing(
    name: str, tmp_path: Path
) -> None:
    with workers(tmp_path, 2) as served:
        urls = [worker.url for worker in served]
        with any_router(name, urls, tmp_path) as url:
            async with traffic(url) as seen:
                await until(lambda: len(seen.good_s) >= 60)
                paused = httpx.post(f"{urls[0]}/pause?mode=keep&clear_cache=false", timeout=10)
                assert paused.status_code == 200
                held = served[0].completed()
                # Nobody takes a paused worker out: it is healthy, and its share of the clients
                # waits, which under round robin is all of them in the end.
                await until(lambda: served[0].waiting() == CLIENTS)
                assert served[0].completed() == held
                asked_s = time.monotonic()
                assert httpx.post(f"{urls[0]}/resume", timeout=10).status_code == 200
                await until(lambda: good_since(seen, asked_s) >= 100)
        assert seen.bad == []
