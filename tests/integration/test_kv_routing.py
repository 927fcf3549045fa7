"""Routers that follow the KV cache: what they believe is what the engine has, and it pays."""

import asyncio
import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import aiohttp
import pytest

from frontier_mock.cli.demo import answers, free_ports, process, wait_until
from frontier_mock.config.scenario import ScenarioSpec, load_scenario
from tests.integration.fleet import MODEL, Fleet, fleet, play, router

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
ADAPTER = ROOT / "adapters" / "vllm_router"
DATA = ROOT.parent / "shared" / "data"
EXEC = (
    "import os, sys; os.environ |= {'PYTHON': sys.executable, 'LOG_LEVEL': 'debug'}; "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
DECISION = re.compile(r'KV prefix decision outcome="(\w+)".*credited_prefix_tokens=(\d+)')

MOONCAKE = """\
name: mooncake-slice
seed: 0
cluster:
  workers:
    - name: w
      count: 3
      model: meta-llama/Llama-3.1-8B-Instruct
      hardware: h800
      port: 0
      engine_args:
        enable-scale-out: true
        kv-events-config:
          {{enable_kv_cache_events: true, endpoint: "tcp://*:0", replay_endpoint: "tcp://*:0"}}
workload:
  kind: trace
  trace: {trace}
  format: mooncake
  pacing: timestamps
"""


SGLANG = """\
      engine: sglang-0.5.23
      engine_args:
        page-size: 16
        kv-events-config:
          '{"publisher": "zmq", "endpoint": "tcp://*:0", "replay_endpoint": "tcp://*:0"}'
"""
"""The engine of the workers, in place of vLLM's arguments. Its pages are as long as blocks."""


def agents(directory: Path, engine: str) -> ScenarioSpec:
    """A part of the adapter's scenario, on ports that nobody has, with workers of either engine."""
    text = (ADAPTER / "scenario-kv.yaml").read_text().replace("port: 8000", "port: 0")
    text = text.replace("num_sessions: 16", "num_sessions: 6")
    text = text.replace("5557", "0").replace("6557", "0")
    if engine == "sglang":
        text = re.sub(r" +engine_args:\n.*(?=workload:)", SGLANG, text, flags=re.DOTALL)
    path = directory / "agents.yaml"
    path.write_text(text)
    return load_scenario(str(path))


def read_json(url: str) -> dict[str, Any]:
    with urlopen(url, timeout=10.0) as reply:
        found: dict[str, Any] = json.load(reply)
    return found


def sockets_of(worker_url: str) -> tuple[str, str]:
    """Where a worker publishes and replays its events, as its own kind of engine says it."""
    if read_json(f"{worker_url}/v1/models")["data"][0]["owned_by"] == "vllm":
        source = read_json(f"{worker_url}/kv_event_sources")["0"]
        return source["endpoint"], source["replay_endpoint"]
    about = read_json(f"{worker_url}/server_info")["kv_events"]
    ports = about["endpoint_port_base"], about["replay_endpoint_port_base"]
    events, replays = (f"tcp://{about['endpoint_host']}:{port}" for port in ports)
    return events, replays


@contextmanager
def kv_aware(served: Fleet, log: Path) -> Iterator[str]:
    """vllm-router on the workers' events, started by the adapter's own line; its URL."""
    if importlib.util.find_spec("vllm_router") is None:
        pytest.skip("vllm-router is not installed: pip install 'frontier-mock[integration]'")
    workers = ["=".join((url, *sockets_of(url))) for url in served.urls]
    port, metrics = free_ports(2)
    url = f"http://127.0.0.1:{port}"
    launch = [str(ADAPTER / "launch-kv"), str(port), str(metrics), MODEL, *workers]
    with process("vllm-router", ["-c", EXEC, *launch], log) as running:
        wait_until(lambda: answers(f"{url}/v1/models"), running, "vllm-router", log)
        # Its subscribers ask for what they missed, which is nothing, once they are connected.
        wait_until(lambda: log.read_text(errors="replace").count("kv_index") >= 3, running, "", log)
        yield url
        running.kill()


def credited_tokens(log: Path) -> list[int]:
    """The prefix credited to the worker chosen, of each decision in order."""
    found = DECISION.findall(ESCAPES.sub("", log.read_text(errors="replace")))
    assert {outcome for outcome, _ in found} == {"prefix_cost"}
    return [int(tokens) for _, tokens in found]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_vllm_router_credits_what_the_engine_has(engine: str, tmp_path: Path) -> None:
    """SGLang's own events it refuses: those workers speak vLLM's dialect."""
    pytest.importorskip("zmq", reason="pip install 'frontier-mock[kv-events]'")
    scenario = agents(tmp_path, engine)
    log = tmp_path / "router.log"
    flags = ("--oracle", "--kv-event-settle-ms", "150", "--kv-event-dialect", "vllm-map")
    with fleet(scenario, tmp_path, *flags) as served, kv_aware(served, log) as url:
        played = asyncio.run(play(scenario, [url], served.clock_url, baton=True))
        report = read_json(f"{served.clock_url}/sim/report")
    assert played.failures == []
    assert (played.errors, played.stalls, played.guesses) == (0, 0, 0)
    # With one request at a time the router decides in the order of arrival.
    by_arrival = sorted(played.exchanges, key=lambda one: one.answer.arrival_ns)
    credited = credited_tokens(log)
    assert credited == [one.answer.cached_tokens for one in by_arrival]
    assert sum(credited) > 4_000
    rates = report["cache_oracle"]["rates"]
    assert rates["oracle"] >= rates["taken"] == rates["hit"] > rates["round_robin"]


def replay(scenario: Path, url: str, served: Fleet) -> dict[str, Any]:
    """The result of the whole workload, sent to `url` by the command line."""
    result = scenario.with_suffix(".json")
    argv = [sys.executable, "-m", "frontier_mock", "replay", str(scenario), "--url", url]
    argv += ["--clock-url", served.clock_url, "--json", str(result), "--oracle"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(result.read_text())
    return report


def conversations(path: Path, requests: int) -> None:
    """The first requests of those Mooncake conversations of short prompts that have three turns.

    Whole stretches of the trace are too long for a test, and short ones reuse too little to tell
    routers apart.
    """
    with (DATA / "traces/mooncake/conversation_trace.jsonl").open() as lines:
        rows = [json.loads(line) for line in islice(lines, 4000)]
    rows = [row for row in rows if 2 <= len(row["hash_ids"]) <= 10]
    turns = Counter(row["hash_ids"][1] for row in rows)
    kept = [row for row in rows if turns[row["hash_ids"][1]] >= 3]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept[:requests]))


@pytest.mark.golden
def test_a_trace_orders_the_routers(tmp_path: Path) -> None:
    """Shared-cache bound >= prefix-aware >= round robin, without the block that all share."""
    if not (DATA / "traces").is_dir():
        pytest.skip(f"{DATA}/traces is not here: the Mooncake trace is not part of the repository")
    pytest.importorskip("zmq", reason="pip install 'frontier-mock[kv-events]'")
    requests = 100
    trace, path = tmp_path / "trace.jsonl", tmp_path / "mooncake.yaml"
    conversations(trace, requests)
    path.write_text(MOONCAKE.format(trace=trace))
    scenario = load_scenario(str(path))
    hits = {}
    for name, policy in (
        ("vllm-router", "kv_aware"),
        ("smg", "cache_aware"),
        ("sglang-router", "cache_aware"),
        ("vllm-router", "round_robin"),
    ):
        log = tmp_path / f"{name}-{policy}.log"
        with fleet(scenario, tmp_path, "--oracle") as served:
            aware = policy == "kv_aware"
            front = kv_aware(served, log) if aware else router(name, policy, served.urls, log)
            with front as url:
                report = replay(path, url, served)
        assert report["requests"]["completed"] == requests
        stats = report["cache_oracle"]
        assert stats["common_prefix_tokens"] == 512
        rates = stats["beyond_common_prefix"]
        assert rates["unlimited"] >= rates["oracle"] >= rates["taken"]
        assert rates["unlimited"] >= rates["hit"]
        hits[name, policy] = rates["hit"]
    worst = hits.pop(("vllm-router", "round_robin"))
    assert min(hits.values()) > worst


def test_smg_believes_in_the_loads_there_are(tmp_path: Path) -> None:
    """Requests with a prefix in common go to one worker, and smg's count of them is the truth."""
    scenario = agents(tmp_path, "vllm")
    asyncio.run(_compare_loads(scenario, tmp_path))


async def _compare_loads(scenario: ScenarioSpec, directory: Path) -> None:
    log = directory / "router.log"
    with (
        fleet(scenario, directory, "--clock", "real") as served,
        router("smg", "cache_aware", served.urls, log) as url,
    ):
        async with aiohttp.ClientSession(url) as client:

            async def ask(number: int) -> None:
                prompt = f"{'the same beginning of a long story ' * 20}, chapter {number}"
                body = {"model": MODEL, "prompt": prompt, "max_tokens": 4000, "ignore_eos": True}
                async with client.post("/v1/completions", json=body) as response:
                    await response.read()

            asked = [asyncio.create_task(ask(number)) for number in range(6)]
            try:
                while sum((loads := await asyncio.to_thread(true_loads, served)).values()) < 6:
                    await asyncio.sleep(0)
                workers = (await (await client.get("/workers")).json())["workers"]
            finally:
                for task in asked:
                    task.cancel()
                await asyncio.gather(*asked, return_exceptions=True)
    assert {worker["url"]: worker["load"] for worker in workers} == loads
    assert max(loads.values()) > 2


def true_loads(served: Fleet) -> dict[str, int]:
    """Requests on each worker, by its URL."""
    truth = read_json(f"{served.clock_url}/sim/truth")["workers"]
    return {
        url: worker["running"] + worker["waiting"] + worker["in_frontend"]
        for url, worker in zip(served.urls, truth, strict=True)
    }
