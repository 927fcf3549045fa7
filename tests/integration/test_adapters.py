"""Each adapter's launch line and scenario, as its README has them."""

import asyncio
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import openai
import pytest

from frontier_mock.cli.demo import answers, free_ports, process, wait_until
from frontier_mock.config.scenario import load_scenario
from tests.integration.fleet import fleet

pytestmark = pytest.mark.integration

ADAPTERS = Path(__file__).resolve().parents[2] / "adapters"
EXEC = "import os, sys; os.environ['PYTHON'] = sys.executable; os.execv(sys.argv[1], sys.argv[1:])"


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("sglang_router", "round_robin"),
        ("smg", "round_robin"),
        ("vllm_router", "round_robin"),
        ("haproxy", "leastconn"),
        ("nginx", "least_conn"),
    ],
)
def test_launch_line_and_scenario(name: str, policy: str, tmp_path: Path) -> None:
    need(name)
    adapter = ADAPTERS / name
    scenario = load_scenario(str(adapter / "scenario.yaml"))
    port, metrics = free_ports(2)
    url, log, result = f"http://127.0.0.1:{port}", tmp_path / "router.log", tmp_path / "result.json"
    with fleet(scenario, tmp_path) as served:
        launch = [str(adapter / "launch"), str(port), str(metrics), policy, *served.urls]
        with process(name, ["-c", EXEC, *launch], log) as router:
            wait_until(lambda: answers(f"{url}/v1/models"), router, name, log)
            replay = [sys.executable, "-m", "frontier_mock", "replay", scenario.source]
            replay += ["--url", url, "--clock-url", served.clock_url, "--json", str(result)]
            done = subprocess.run(replay, capture_output=True, text=True, timeout=60, check=False)
            router.kill()
    assert done.returncode == 0, done.stderr
    report = json.loads(result.read_text())
    assert report["requests"]["completed"] == 80
    assert (report["client"]["stalls"], report["client"]["grace_jumps"]) == (0, 0)
    assert all(worker["requests"] > 0 for worker in report["workers"])


def need(name: str) -> None:
    """Skip if a router is not there. Python's come from PyPI, the others from Debian."""
    if name in ("haproxy", "nginx"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed: apt-get install {name}")
    elif importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install 'frontier-mock[integration]'")


@pytest.mark.slow
def test_litellm(tmp_path: Path) -> None:
    if shutil.which(os.environ.get("LITELLM", "litellm")) is None:
        pytest.skip("litellm is not installed: pip install 'litellm[proxy]', or set LITELLM")
    adapter = ADAPTERS / "litellm"
    scenario = load_scenario(str(adapter / "scenario.yaml"))
    (port,) = free_ports(1)
    url, log = f"http://127.0.0.1:{port}", tmp_path / "router.log"
    with fleet(scenario, tmp_path, "--clock", "scaled:10") as served:
        launch = [str(adapter / "launch"), str(port), "-", "simple-shuffle", *served.urls]
        with process("litellm", ["-c", EXEC, *launch], log) as router:
            wait_until(lambda: answers(f"{url}/health/liveliness"), router, "litellm", log)
            asyncio.run(_chat_through(url, scenario.groups[0].args.model))
            router.kill()
        counts = [_completed(worker) for worker in served.urls]
    assert sum(counts) == 30
    assert min(counts) > 0


async def _chat_through(url: str, model: str) -> None:
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-frontier-mock", max_retries=0)

    async def ask(number: int) -> int:
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": f"question {number}"}],
            max_tokens=20,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        return sum([chunk.usage.completion_tokens async for chunk in stream if chunk.usage])

    async with client:
        assert await asyncio.gather(*(ask(number) for number in range(30))) == [20] * 30
        with pytest.raises(openai.BadRequestError, match="max_tokens must be at least 1"):
            await client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "x"}], max_tokens=-1
            )


def _completed(url: str) -> int:
    with urllib.request.urlopen(f"{url}/metrics", timeout=5.0) as reply:
        lines = reply.read().decode().splitlines()
    ended = [line for line in lines if line.startswith("vllm:request_success_total")]
    return int(sum(float(line.rpartition(" ")[2]) for line in ended))
