"""Unmodified routers in front of workers over gRPC: same tokens as over HTTP, leases and all."""

import asyncio
import importlib.util
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from frontier_mock.cli.demo import answers, free_ports, process, wait_until
from frontier_mock.client.clock import ClockClient, read_clock
from frontier_mock.client.http1 import HttpClient
from frontier_mock.config.scenario import ScenarioSpec, load_scenario
from frontier_mock.config.tokenizers import write_byte_tokenizer
from tests.integration.fleet import MODEL, Fleet, digest_of_journal, fleet, play, router

pytestmark = pytest.mark.integration

for package in ("grpc", "smg_grpc_proto"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

ADAPTERS = Path(__file__).resolve().parents[2] / "adapters"
ADAPTER = ADAPTERS / "smg"
EXEC = "import os, sys; os.environ['PYTHON'] = sys.executable; os.execv(sys.argv[1], sys.argv[1:])"

ONE_SHOTS = """\
name: grpc
seed: 0
cluster:
  workers:
    - name: w
      count: 2
      engine: {engine}
      model: {model}
      hardware: h800
      port: 0
      grpc_port: 0
      engine_args: {{served-model-name: {served}}}
"""


def plain(directory: Path, engine: str, served: str = MODEL) -> ScenarioSpec:
    """Two workers and no workload."""
    path = directory / "plain.yaml"
    path.write_text(ONE_SHOTS.format(engine=engine, model=MODEL, served=served))
    return load_scenario(str(path), need_trace=False)


def agents(directory: Path) -> ScenarioSpec:
    """The adapter's scenario with ports that nobody else has."""
    path = directory / "agents.yaml"
    text = (ADAPTER / "scenario-grpc.yaml").read_text()
    path.write_text(text.replace(":5557", ":0"))
    return load_scenario(str(path))


def post(url: str, body: dict[str, object]) -> bytes:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        data: bytes = reply.read()
    return data


def streamed(data: bytes) -> str:
    """The text of a stream of chat chunks."""
    frames = [line[6:] for line in data.split(b"\n") if line.startswith(b"data: {")]
    choices = [choice for frame in frames for choice in json.loads(frame)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as reply:
        text: str = reply.read().decode()
    return text


@contextmanager
def grpc_router(urls: Sequence[str], log: Path) -> Iterator[str]:
    """vllm-router before gRPC workers, once it has found all of them healthy."""
    port, metrics = free_ports(2)
    argv = ["-m", "vllm_router.launch_router", "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--prometheus-port", str(metrics), "--log-level", "info", "--policy", "round_robin"]
    with process("vllm-router", [*argv, "--worker-urls", *urls], log) as running:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{url}/health"), running, "vllm-router", log)
        try:
            yield url
        finally:
            running.kill()


def figures(url: str, name: str) -> dict[str, float]:
    """Samples of a metric, by their labels."""
    text = get(url)
    return {
        match[1]: float(match[2])
        for match in re.finditer(rf"^{name}(\{{.*\}})? (\S+)$", text, re.MULTILINE)
    }


@pytest.mark.parametrize("engine", ["vllm-0.33", "sglang-0.5.23"])
def test_smg_streams_the_tokens_that_http_gives(engine: str, tmp_path: Path) -> None:
    body: dict[str, object] = {"model": MODEL, "max_tokens": 40, "temperature": 1.0}
    with fleet(plain(tmp_path, engine), tmp_path) as served:
        log = tmp_path / "smg.log"
        with router("smg", "round_robin", served.grpc_urls, log) as url:
            for question in ("Tell me a story.", "Why is the sky blue?", "x"):
                asked = {**body, "messages": [{"role": "user", "content": question}]}
                direct = json.loads(post(f"{served.urls[0]}/v1/chat/completions", asked))
                whole = json.loads(post(f"{url}/v1/chat/completions", asked))
                (wanted,) = direct["choices"]
                (choice,) = whole["choices"]
                assert choice["message"]["content"] == wanted["message"]["content"]
                assert choice["finish_reason"] == wanted["finish_reason"]
                usage = [
                    (one["usage"]["prompt_tokens"], one["usage"]["completion_tokens"])
                    for one in (direct, whole)
                ]
                assert usage[0] == usage[1]
                stream = post(f"{url}/v1/chat/completions", {**asked, "stream": True})
                assert streamed(stream) == wanted["message"]["content"]
            text = {**body, "prompt": "Once upon a time"}
            direct = json.loads(post(f"{served.urls[0]}/v1/completions", text))
            whole = json.loads(post(f"{url}/v1/completions", text))
            assert whole["choices"][0]["text"] == direct["choices"][0]["text"]


@pytest.mark.parametrize("engine", ["vllm-0.33", "sglang-0.5.23"])
def test_smg_asks_for_outputs_of_a_shape(engine: str, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    shape = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    tool = {"type": "function", "function": {"name": "look_up", "parameters": schema}}
    turn = [{"role": "user", "content": "Who are you?"}]
    body: dict[str, object] = {"model": MODEL, "max_tokens": 200, "messages": turn}
    with fleet(plain(tmp_path, engine), tmp_path) as served:
        log = tmp_path / "smg.log"
        with router("smg", "round_robin", served.grpc_urls, log) as url:
            asked = {**body, "response_format": shape}
            direct = json.loads(post(f"{served.urls[0]}/v1/chat/completions", asked))
            whole = json.loads(post(f"{url}/v1/chat/completions", asked))
            written = whole["choices"][0]["message"]["content"]
            assert written == direct["choices"][0]["message"]["content"]
            assert set(json.loads(written)) == {"age"}
            asked = {**body, "tools": [tool], "tool_choice": "required"}
            whole = json.loads(post(f"{url}/v1/chat/completions", asked))
            (choice,) = whole["choices"]
            calls = [call["function"] for call in choice["message"]["tool_calls"]]
            assert {call["name"] for call in calls} == {"look_up"}
            assert all(set(json.loads(call["arguments"])) == {"age"} for call in calls)


def played(served: Fleet, directory: Path) -> tuple[str, str, str]:
    """Digests of the agents' run through smg: all events, by role, and what its journal gives."""
    log = directory / "smg.log"
    with router("smg", "round_robin", served.grpc_urls, log) as url:
        run = asyncio.run(play(served.scenario, [url], served.clock_url))
    assert (run.failures, run.errors, run.stalls, run.guesses) == ([], 0, 0, 0)
    assert len(run.exchanges) == 80
    return run.digest, run.by_role, str(served.journal)


def test_agents_in_virtual_time_repeat_through_smg(tmp_path: Path) -> None:
    scenario = agents(tmp_path)
    digests = []
    for number in range(2):
        directory = tmp_path / str(number)
        directory.mkdir()
        with fleet(scenario, directory, "--kv-event-settle-ms", "0") as served:
            digest, by_role, journal = played(served, directory)
        assert digest_of_journal(Path(journal)) == digest
        digests.append(by_role)
    assert digests[0] == digests[1]


def test_adapter_of_smg_follows_the_caches(tmp_path: Path) -> None:
    scenario = agents(tmp_path)
    port, metrics = free_ports(2)
    url, log, result = f"http://127.0.0.1:{port}", tmp_path / "router.log", tmp_path / "result.json"
    with fleet(scenario, tmp_path) as served:
        launch = [str(ADAPTER / "launch"), str(port), str(metrics), "cache_aware"]
        argv = ["-c", EXEC, *launch, *served.grpc_urls]
        with process("smg", argv, log) as running:
            wait_until(lambda: answers(f"{url}/v1/models"), running, "smg", log)
            replay = [sys.executable, "-m", "frontier_mock", "replay", scenario.source]
            replay += ["--url", url, "--clock-url", served.clock_url, "--json", str(result)]
            done = subprocess.run(replay, capture_output=True, text=True, timeout=60, check=False)
            seen = f"http://127.0.0.1:{metrics}/metrics"
            believed = figures(seen, "smg_kv_index_blocks")
            gaps = figures(seen, "smg_kv_event_gaps_total")
            branches = figures(seen, "smg_cache_aware_policy_branch_total")
            truth = json.loads(get(f"{served.urls[0]}/sim/truth"))["workers"]
            running.kill()
    assert done.returncode == 0, done.stderr
    report = json.loads(result.read_text())
    assert report["requests"]["completed"] == 80
    assert (report["client"]["stalls"], report["client"]["grace_jumps"]) == (0, 0)
    assert branches['{branch="event_hit"}'] > 40
    assert set(gaps.values()) == {0.0}
    for worker, grpc_url in zip(truth, served.grpc_urls, strict=True):
        own = [blocks for labels, blocks in believed.items() if grpc_url in labels]
        assert own == [worker["cached_blocks"]]


def test_vllm_router_speaks_its_own_dialect(tmp_path: Path) -> None:
    # It takes the tokenizer from a directory that is named like the model.
    tokenizer = write_byte_tokenizer(tmp_path / "tokenizer")
    name = str(tokenizer)
    scenario = plain(tmp_path, "vllm-0.33", served=name)
    body: dict[str, object] = {"model": name, "max_tokens": 40}
    log = tmp_path / "router.log"
    with fleet(scenario, tmp_path) as served:
        assert len(served.grpc_urls) == 2
        with grpc_router(served.grpc_urls, log) as url:
            for question in ("Tell me a story.", "Why is the sky blue?"):
                asked = {**body, "messages": [{"role": "user", "content": question}]}
                direct = json.loads(post(f"{served.urls[0]}/v1/chat/completions", asked))
                wanted = direct["choices"][0]["message"]["content"]
                whole = json.loads(post(f"{url}/v1/chat/completions", asked))
                assert whole["choices"][0]["message"]["content"] == wanted
                assert whole["usage"]["completion_tokens"] == direct["usage"]["completion_tokens"]
                stream = post(f"{url}/v1/chat/completions", {**asked, "stream": True})
                assert streamed(stream) == wanted
            ids = {**body, "prompt": [*b"Hey\n"]}
            direct = json.loads(post(f"{served.urls[0]}/v1/completions", ids))
            whole = json.loads(post(f"{url}/v1/completions", ids))
            assert whole["choices"][0]["text"] == direct["choices"][0]["text"]
            truth = json.loads(get(f"{served.urls[0]}/sim/report"))
            assert all(worker["requests"] > 0 for worker in truth["workers"])
            asyncio.run(_lease_in_a_salt(served.clock_url, url, ids))


async def _lease_in_a_salt(clock_url: str, router_url: str, body: dict[str, object]) -> None:
    """Nothing else of a request's words comes out of this router on the other side."""
    http = HttpClient(clock_url)
    async with ClockClient(http, ["agent"]) as clock:
        began_ns = await clock.sleep_for("agent", 3.0)
        salted = {**body, "cache_salt": "fmock-agent--"}
        await asyncio.to_thread(post, f"{router_url}/v1/completions", salted)
        took_ns = await clock.sleep("agent", 0) - began_ns
        state = await read_clock(http)
        assert 0 < took_ns < 3_000_000_000
        assert state.stalls == 0
    http.close()


@pytest.mark.parametrize(("engine", "legs"), [("vllm_router", 1), ("sglang_router", 2)])
def test_smg_pairs_prefill_and_decode_workers(engine: str, legs: int, tmp_path: Path) -> None:
    text = (ADAPTERS / engine / "scenario-pd.yaml").read_text()
    path = tmp_path / "pd.yaml"
    path.write_text(re.sub(r"port: \d+", "port: 0, grpc_port: 0", text))
    port, metrics = free_ports(2)
    url, log, result = f"http://127.0.0.1:{port}", tmp_path / "router.log", tmp_path / "result.json"
    with fleet(load_scenario(str(path)), tmp_path) as served:
        ready = json.loads((tmp_path / "ready.json").read_text())["workers"]
        argv = ["-m", "smg.cli", "launch", "--host", "127.0.0.1", "--port", str(port)]
        argv += ["--prometheus-port", str(metrics), "--log-level", "warn"]
        argv += ["--policy", "round_robin", "--pd-disaggregation"]
        for worker in ready[:2]:
            argv += ["--prefill", worker["grpc_url"]]
            argv += [str(worker["bootstrap_port"])] if "bootstrap_port" in worker else []
        for worker in ready[2:]:
            argv += ["--decode", worker["grpc_url"]]
        with process("smg", argv, log) as running:
            wait_until(lambda: answers(f"{url}/v1/models"), running, "smg", log)
            replay = [sys.executable, "-m", "frontier_mock", "replay", str(path), "--url", url]
            replay += ["--clock-url", served.clock_url, "--legs", str(legs), "--json", str(result)]
            done = subprocess.run(replay, capture_output=True, text=True, timeout=60, check=False)
            report = json.loads(get(f"{served.clock_url}/sim/report"))
            running.kill()
    assert done.returncode == 0, done.stderr
    replayed = json.loads(result.read_text())
    assert replayed["requests"]["completed"] == 64
    assert (replayed["client"]["stalls"], replayed["client"]["grace_jumps"]) == (0, 0)
    transfers = report["transfers"]
    assert (transfers["failed"], transfers["released"]) == ({}, {"sent": 80})
