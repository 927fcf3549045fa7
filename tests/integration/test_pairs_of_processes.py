"""A prefill and a decode server of SGLang in processes of their own, behind sglang-router."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from frontier_mock.cli.demo import answers, free_ports, process, wait_until
from tests.integration.fleet import MODEL
from tests.integration.test_adapters import ADAPTERS, EXEC, need
from tests.integration.test_disaggregation import _get

pytestmark = pytest.mark.integration

PREFILL, DECODE = "prefill", "decode"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two servers, their URLs, and the bootstrap server's port."""

    running: dict[str, "subprocess.Popen[bytes]"]
    urls: dict[str, str]
    bootstrap_port: int
    logs: Path


@contextmanager
def pair(directory: Path, *flags: str) -> Iterator[Pair]:
    """`frontier-mock sglang serve`, twice; both run until the block ends, or somebody kills one."""
    (bootstrap_port,) = free_ports(1)
    running, urls = {}, {}
    with ExitStack() as stack:
        for role in (PREFILL, DECODE):
            ready, log = directory / f"{role}.json", directory / f"{role}.log"
            ready.unlink(missing_ok=True)
            argv = ["-m", "frontier_mock", "sglang", "serve", "--model-path", MODEL, "--port", "0"]
            argv += ["--disaggregation-mode", role, "--sim-name", role]
            argv += ["--disaggregation-bootstrap-port", str(bootstrap_port)]
            argv += ["--sim-ready-file", str(ready), *flags]
            running[role] = stack.enter_context(process(role, argv, log))
            wait_until(ready.exists, running[role], "frontier-mock sglang serve", log)
            (worker,) = json.loads(ready.read_text())["workers"]
            urls[role] = worker["url"]
            if role == PREFILL:
                bootstrap_port = worker["bootstrap_port"]
        yield Pair(running, urls, bootstrap_port, directory)


@contextmanager
def routed(pair: Pair) -> Iterator[str]:
    """sglang-router in front of a pair; its URL."""
    need("sglang_router")
    port, metrics = free_ports(2)
    url, log = f"http://127.0.0.1:{port}", pair.logs / "router.log"
    launch = [str(ADAPTERS / "sglang_router" / "launch-pd"), str(port), str(metrics)]
    launch += [f"{pair.urls[PREFILL]}={pair.bootstrap_port}", "--", pair.urls[DECODE]]
    with process("sglang_router", ["-c", EXEC, *launch], log) as router:
        wait_until(lambda: answers(f"{url}/v1/models"), router, "sglang_router", log)
        yield url
        router.kill()


def chat(tokens: int) -> dict[str, object]:
    messages = [{"role": "user", "content": "Tell me of disaggregation. " * 20}]
    return {"model": MODEL, "messages": messages, "max_tokens": tokens, "ignore_eos": True}


async def post(url: str, path: str, body: dict[str, object]) -> tuple[int, Any]:
    """Status and answer of one request; -1 and the error if the connection broke."""
    timeout = aiohttp.ClientTimeout(total=60)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as client,
            client.post(f"{url}{path}", json=body) as answer,
        ):
            return answer.status, await answer.json(content_type=None)
    except (aiohttp.ClientError, ValueError) as error:
        return -1, str(error)


async def test_a_router_pairs_two_processes_in_real_time(tmp_path: Path) -> None:
    with pair(tmp_path) as servers, routed(servers) as url:
        asked = [post(url, "/v1/chat/completions", chat(8)) for _ in range(12)]
        told = await asyncio.gather(*asked)
        report = _get(f"{servers.urls[DECODE]}/sim/report")
        (truth,) = _get(f"{servers.urls[PREFILL]}/sim/truth")["workers"]
    assert [status for status, _ in told] == [200] * 12
    assert {answer["usage"]["completion_tokens"] for _, answer in told} == {8}
    assert report["transfers"]["requests"] == 12
    assert report["transfers"]["failed"] == {}
    # Time to first token is the client's: it begins at the prefill server.
    assert report["transfers"]["ttft_parts_ms"]["prefill"]["mean"] > 0
    assert truth["free_blocks"] == truth["num_blocks"]


async def test_a_shared_warp_clock_makes_them_repeatable(tmp_path: Path) -> None:
    need("sglang_router")
    scenario = str(ADAPTERS / "sglang_router" / "scenario-pd.yaml")
    digests = []
    for run in range(2):
        directory = tmp_path / str(run)
        directory.mkdir()
        with ExitStack() as stack:
            ready, log = directory / "clock.json", directory / "clock.log"
            argv = ["-m", "frontier_mock", "clock", "--host", "127.0.0.1", "--port", "0"]
            argv += ["--ready-file", str(ready), "--patience-s", "60"]
            clock = stack.enter_context(process("clock", argv, log))
            wait_until(ready.exists, clock, "frontier-mock clock", log)
            clock_url = json.loads(ready.read_text())["url"]
            servers = stack.enter_context(pair(directory, "--sim-clock-server", clock_url))
            url = stack.enter_context(routed(servers))
            result = directory / "result.json"
            replay = [sys.executable, "-m", "frontier_mock", "replay", scenario, "--legs", "2"]
            replay += ["--url", url, "--clock-url", clock_url, "--json", str(result)]
            done = subprocess.run(replay, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
            report = _get(f"{clock_url}/sim/report")
        replayed = json.loads(result.read_text())
        assert replayed["requests"]["completed"] == 64
        assert (replayed["client"]["stalls"], replayed["client"]["grace_jumps"]) == (0, 0)
        digests.append(report["workers_digest"]["by_name"])
    assert digests[0] == digests[1]


@pytest.mark.parametrize("victim", [PREFILL, DECODE])
async def test_whoever_waits_for_a_killed_process_is_told(
    victim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = DECODE if victim == PREFILL else PREFILL
    monkeypatch.setenv("SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL", "2")
    monkeypatch.setenv("SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE", "1")
    with pair(tmp_path) as servers:
        room = {
            "bootstrap_host": "127.0.0.1",
            "bootstrap_port": servers.bootstrap_port,
            "bootstrap_room": 1 << 60,
        }
        # A prompt that takes long enough to compute that both have met when one dies.
        body = {"input_ids": [5] * 100_000, "sampling_params": {"max_new_tokens": 4}, **room}
        legs = {
            role: asyncio.create_task(post(servers.urls[role], "/generate", body))
            for role in (DECODE, PREFILL)
        }
        async with asyncio.timeout(60):
            while not await asyncio.to_thread(_is_met, servers):
                assert not legs[PREFILL].done()
            servers.running[victim].kill()
            status, answer = await legs[other]
        await legs[victim]
        # The survivor has everything back, and goes on.
        (truth,) = _get(f"{servers.urls[other]}/sim/truth")["workers"]
        log = (tmp_path / f"{other}.log").read_text()
    assert status == 500
    words = "Decode handshake failed" if victim == PREFILL else "Prefill transfer failed"
    assert words in json.dumps(answer)
    assert truth["free_blocks"] == truth["num_blocks"]
    assert "1 requests affected" in log


def _is_met(servers: Pair) -> bool:
    """Whether the prefill server has begun, as it does once the decode server has room."""
    (truth,) = _get(f"{servers.urls[PREFILL]}/sim/truth")["workers"]
    return bool(truth["running"])


@pytest.mark.parametrize("first", [PREFILL, DECODE])
async def test_legs_meet_in_either_order_and_give_up_alone(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = DECODE if first == PREFILL else PREFILL
    monkeypatch.setenv("SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT", "40")
    monkeypatch.setenv("SGLANG_DISAGGREGATION_WAITING_TIMEOUT", "40")
    with pair(tmp_path, "--sim-clock", "scaled:20") as servers:

        def body(number: int) -> dict[str, object]:
            return {
                "text": "hello",
                "sampling_params": {"max_new_tokens": 3, "ignore_eos": True},
                "bootstrap_host": "127.0.0.1",
                "bootstrap_port": servers.bootstrap_port,
                "bootstrap_room": number,
            }

        early = asyncio.create_task(post(servers.urls[first], "/generate", body(7)))
        async with asyncio.timeout(60):
            while not _get(f"{servers.urls[first]}/sim/clock")["in_flight"]:
                await asyncio.sleep(0)
            late = await post(servers.urls[other], "/generate", body(7))
            assert (late[0], (await early)[0]) == (200, 200)
            # Without its other half: 40 s, twenty times as fast.
            status, answer = await post(servers.urls[first], "/generate", body(8))
    assert status == 500
    words = "Prefill bootstrap failed" if first == PREFILL else "Decode handshake failed"
    assert words in json.dumps(answer)
