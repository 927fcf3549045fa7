"""What routers believe of their workers, loads and health, against what is really the case.

What they believe of caches is in test_kv_routing.py and test_grpc_routers.py.
"""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from frontier_mock.cli.demo import answers, free_ports, process, wait_until
from tests.integration.fleet import router
from tests.integration.test_adapters import ADAPTERS, EXEC, need
from tests.integration.test_router_faults import FAST_CHECKS, MODEL, Worker, until, workers

pytestmark = pytest.mark.integration

REQUESTS = 5


@dataclass(frozen=True, slots=True)
class Believer:
    """A router: its URL, and where it says what it believes."""

    name: str
    url: str
    said_at: str

    def loads(self, urls: list[str]) -> dict[str, int]:
        """Requests it believes to be with each worker."""
        answer = httpx.get(self.said_at, timeout=10)
        if self.name == "haproxy":
            found = re.findall(
                r'haproxy_server_current_sessions\{proxy="workers",server="w(\d+)"\} (\d+)',
                answer.text,
            )
            return {urls[int(number)]: int(count) for number, count in found}
        return {worker["url"]: worker["load"] for worker in answer.json()["workers"]}

    def healthy(self, urls: list[str]) -> set[str]:
        """Workers that it would send a request to."""
        answer = httpx.get(self.said_at, timeout=10)
        if self.name == "haproxy":
            up = re.findall(
                r'haproxy_server_status\{proxy="workers",server="w(\d+)",state="UP"\} 1',
                answer.text,
            )
            return {urls[int(number)] for number in up}
        return {worker["url"] for worker in answer.json()["workers"] if worker["is_healthy"]}


@contextmanager
def believer(name: str, urls: list[str], directory: Path) -> Iterator[Believer]:
    """A router that counts what it has under way."""
    log = directory / "router.log"
    if name not in ("haproxy", "nginx"):
        with router(name, "cache_aware", urls, log, more=FAST_CHECKS) as url:
            yield Believer(name, url, f"{url}/workers")
        return
    need(name)
    port, metrics = free_ports(2)
    policy = "leastconn" if name == "haproxy" else "least_conn"
    launch = [str(ADAPTERS / name / "launch"), str(port), str(metrics), policy, *urls]
    with process(name, ["-c", EXEC, *launch], log) as running:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{url}/v1/models"), running, name, log)
        yield Believer(name, url, f"http://127.0.0.1:{metrics}/metrics")


async def hold(url: str) -> list[asyncio.Task[None]]:
    """Requests that take long, sent through a router."""

    async def ask(number: int) -> None:
        prompt = f"{number} is a number " * 30
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 20_000, "ignore_eos": True}
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            await client.post("/v1/completions", json=body)

    return [asyncio.create_task(ask(number)) for number in range(REQUESTS)]


async def let_go(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def true_loads(served: list[Worker]) -> dict[str, int]:
    """What the engines themselves say, each at `/sim/truth` of its own process."""
    loads = {}
    for worker in served:
        (truth,) = httpx.get(f"{worker.url}/sim/truth", timeout=10).json()["workers"]
        loads[worker.url] = truth["running"] + truth["waiting"] + truth["in_frontend"]
    return loads


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("sglang-router", "sglang"),
        ("smg", "sglang"),
        ("vllm-router", "vllm"),
        ("haproxy", "vllm"),
    ],
)
async def test_loads_and_health_are_what_the_router_believes(
    name: str, engine: str, tmp_path: Path
) -> None:
    with workers(tmp_path, 2, engine) as served:
        urls = [worker.url for worker in served]
        with believer(name, urls, tmp_path) as one:
            tasks = await hold(one.url)
            try:
                await until(lambda: sum(true_loads(served).values()) == REQUESTS)
                assert one.loads(urls) == true_loads(served)
                assert one.healthy(urls) == set(urls)
            finally:
                await let_go(tasks)
            await until(lambda: not any(true_loads(served).values()))
            await until(lambda: not any(one.loads(urls).values()))
            served[1].process.kill()
            await until(lambda: one.healthy(urls) == {urls[0]})


async def test_nginx_counts_what_there_is(tmp_path: Path) -> None:
    """It has one figure for all workers: requests being answered, this one included."""
    with (
        workers(tmp_path, 2) as served,
        believer("nginx", [worker.url for worker in served], tmp_path) as one,
    ):
        tasks = await hold(one.url)
        try:
            await until(lambda: sum(true_loads(served).values()) == REQUESTS)
            said = httpx.get(one.said_at, timeout=10).text
        finally:
            await let_go(tasks)
    assert f"Writing: {REQUESTS + 1} " in said
