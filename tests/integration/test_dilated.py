"""A router's binary under libfaketime, ten times too fast, like the mock behind it."""

import asyncio
import importlib.util
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from frontier_mock.cli.demo import answers, free_ports, process, wait_until
from frontier_mock.client.endpoint import Endpoint, EndpointSpec
from frontier_mock.core.commands import Submit
from frontier_mock.drive.pace import ClockSpec
from frontier_mock.serve.connection import Exchange
from frontier_mock.workload.prompts import Piece, StreamPrompt
from tests.integration.fleet import ROUTERS
from tests.serve.live import live, serve_spec

pytestmark = pytest.mark.integration

DILATED = Path(__file__).resolve().parents[2] / "scripts" / "dilated"
RATE = 10
EXEC = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
SUBMIT = Submit(StreamPrompt(1, (Piece(1, 10),)), 20, 20)


@pytest.fixture(scope="module")
def dilated(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs another dilated, its library built."""
    if shutil.which("gcc") is None or shutil.which("make") is None:
        pytest.skip("building libfaketime needs gcc and make")
    built = subprocess.run([DILATED, "100", "true"], capture_output=True, text=True, check=False)
    if built.returncode:
        pytest.skip(f"libfaketime cannot be had here: {built.stderr.strip()[-200:]}")
    return [str(DILATED), str(RATE)]


def test_rate_that_is_no_number_is_one_line() -> None:
    done = subprocess.run([DILATED, "fast", "true"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_a_program_sees_ten_seconds_in_one(dilated: list[str]) -> None:
    """`date` before and after a sleep; in real time it would outlast the limit."""
    command = [*dilated, "sh", "-c", "date +%s; sleep 10; date +%s"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=9.0)
    first, last = map(int, done.stdout.split())
    assert last - first in (10, 11)


async def test_router_binary_checks_health_and_relays_in_dilated_time(
    dilated: list[str], tmp_path: Path
) -> None:
    module, argv = ROUTERS["sglang-router"]
    if importlib.util.find_spec(module) is None:
        pytest.skip("sglang-router is not installed: pip install 'frontier-mock[integration]'")
    clock = ClockSpec(mode="scaled", scale=float(RATE), late_ms_max=1e9)
    async with live(serve_spec(clock)) as server:
        port, metrics = free_ports(2)
        argv = [*argv, "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"]
        argv += ["--prometheus-port", str(metrics), "--worker-urls", server.urls[0]]
        argv += ["--health-check-interval-secs", "5"]
        log = tmp_path / "router.log"
        url = f"http://127.0.0.1:{port}"
        checked_ns: list[int] = []
        web = server.webs[0]
        handle = web.app.handle

        def watched(exchange: Exchange) -> None:
            if exchange.request.path == "/health":
                checked_ns.append(server.driver.now_ns())
            handle(exchange)

        web.app.handle = watched
        argv = ["-c", EXEC, *dilated, sys.executable, *argv]
        with process("router", argv, log) as running:
            await asyncio.to_thread(
                wait_until, lambda: answers(f"{url}/v1/models"), running, "router", log
            )
            endpoint = Endpoint(EndpointSpec(url=url, model="mock", stream=True))
            async with asyncio.timeout(60.0):
                while len(checked_ns) < 6:
                    await asyncio.sleep(0.05)
                answer = await endpoint.generate(SUBMIT, None, {})
            endpoint.http.close()
    assert (answer.status, answer.output_tokens, answer.message) == (200, 20, "")
    gaps_s = [(b - a) / 1e9 for a, b in pairwise(checked_ns)]
    # Every five dilated seconds; real ones would show as fifty in the mock's time.
    assert 3.0 < sorted(gaps_s)[len(gaps_s) // 2] < 10.0
