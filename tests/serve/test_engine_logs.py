"""Log lines in the engines' own words: the right ones, at the right virtual times."""

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from frontier_mock.serve.engine_logs import Sink, VllmStats
from frontier_mock.serve.settings import HttpSettings, LogSettings
from frontier_mock.serve.spec import ServeSpec
from frontier_mock.simtime import SimTime
from tests.serve.live import WARP, live, serve_spec
from tests.serve.sglang_live import sglang_spec

BODY: dict[str, Any] = {"text": "x" * 50, "sampling_params": {"max_new_tokens": 101}}
PREFILL = re.compile(
    r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] Prefill batch, #new-seq: 1, #new-token: (\d+), "
    r"#cached-token: (\d+), token usage: \d\.\d\d, #running-req: 0, #queue-req: 0, "
    r"#pending-token: \d+, cuda graph: False, input throughput \(token/s\): [\d.]+"
)
DECODE = re.compile(
    r"\[[^]]+\] Decode batch, #running-req: 1, #token: (\d+), token usage: \d\.\d\d, cuda graph: "
    r"True, gen throughput \(token/s\): ([\d.]+), #queue-req: 0"
)
STATS = re.compile(
    r"INFO \d\d-\d\d \d\d:\d\d:\d\d \[loggers.py:336\] Engine 000: Avg prompt throughput: ([\d.]+) "
    r"tokens/s, Avg generation throughput: ([\d.]+) tokens/s, Running: (\d) reqs, Waiting: 0 reqs, "
    r"GPU KV cache usage: [\d.]+%, Prefix cache hit rate: ([\d.]+)%"
)


def told(spec: ServeSpec, **settings: Any) -> ServeSpec:
    return replace(spec, logs=[LogSettings(**settings)] * len(spec.served))


@pytest.fixture
def lines() -> Iterator[list[str]]:
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    target, ear = logging.getLogger("frontier_mock.engine"), Ear()
    level, target.level = target.level, logging.INFO
    target.addHandler(ear)
    yield heard
    target.removeHandler(ear)
    target.setLevel(level)


async def test_sglang_tells_of_batches(lines: list[str]) -> None:
    spec = told(sglang_spec(WARP), sglang=True, access=False, interval=40, largest_graph=8)
    async with live(spec) as server, httpx.AsyncClient(base_url=server.urls[0]) as client:
        for _ in range(2):
            assert (await client.post("/generate", json=BODY)).status_code == 200
    prefills = [found.groups() for line in lines if (found := PREFILL.fullmatch(line))]
    assert prefills[0] == ("50", "0")
    assert prefills[1] == ("1", "49")
    decodes = [found.groups() for line in lines if (found := DECODE.fullmatch(line))]
    # 100 decode steps a request: lines after 40, 80, and 20 into the second one, and so on.
    assert len(decodes) == 5
    assert len(lines) == 7
    assert [int(tokens) for tokens, _ in decodes] == [92, 132, 72, 112, 152]
    # A millisecond a step, and a little more with more context; the first ones wait for a prompt.
    rates = [float(rate) for _, rate in decodes]
    assert all(900 < rate < 1000 for rate in rates)
    assert rates[1] > rates[0] < rates[4]


async def test_macro_steps_and_single_steps_log_the_same(lines: list[str]) -> None:
    heard = []
    for single in (False, True):
        spec = told(sglang_spec(WARP), sglang=True, access=False, interval=7, largest_graph=8)
        cluster = replace(spec.cluster, single_step=single)
        spec = replace(spec, cluster=cluster)
        async with live(spec) as server, httpx.AsyncClient(base_url=server.urls[0]) as client:
            await client.post("/generate", json=BODY)
        heard.append([line.partition("] ")[2] for line in lines])
        lines.clear()
    assert heard[0] == heard[1]
    assert len(heard[0]) == 1 + 100 // 7


async def test_vllm_tells_averages_while_something_happens(lines: list[str]) -> None:
    spec = told(serve_spec(WARP), access=False, stats_s=0.05)
    body = {"prompt": "x" * 100, "max_tokens": 200}
    async with live(spec) as server, httpx.AsyncClient(base_url=server.urls[0]) as client:
        answer = await client.post("/v1/completions", json=body)
        finish_ns = int(answer.headers["x-frontier-finish-ns"])
        arrival_ns = int(answer.headers["x-frontier-arrival-ns"])
        await client.post("/v1/completions", json=body)
    found = [STATS.fullmatch(line) for line in lines]
    assert all(found)
    rates = [(float(one[1]), float(one[2])) for one in found if one is not None]
    prompts, outputs = (sum(column) * 0.05 for column in zip(*rates, strict=True))
    assert finish_ns > arrival_ns
    # What the last interval has is not told before it is over.
    assert 100 <= prompts <= 104 + 1e-9
    assert 200 <= outputs <= 400
    assert found[-1] is not None
    assert float(found[-1][4]) == pytest.approx(48.0)


async def test_vllm_runs_nothing_between_two_requests() -> None:
    said: list[tuple[SimTime, str]] = []
    async with live(serve_spec(WARP)) as server:
        worker = server.cluster.workers[0]
        stats = VllmStats(worker, 0, LogSettings(stats_s=0.05), lambda *line: said.append(line))
        worker.step_log = Sink(stats)
        async with httpx.AsyncClient(base_url=server.urls[0]) as client:
            await client.post("/v1/completions", json={"prompt": "x", "max_tokens": 5})
            # Nobody looks, and a request comes a second later: what was due is told as it was then.
            server.driver.keeper.elapse(server.driver.now_ns() + 10**9)
            await client.post("/v1/completions", json={"prompt": "y", "max_tokens": 5})
    assert [line for _, line in said if "generation throughput: 0.0" in line]
    assert all("Running: 0" in line for _, line in said)


async def test_accesses_as_uvicorn_writes_them(lines: list[str]) -> None:
    vllm = told(serve_spec(WARP), batches=False, excluded=("/health",))
    sglang = told(sglang_spec(WARP), batches=False, sglang=True)
    for spec, prefix in ((vllm, "INFO: "), (sglang, "[20")):
        async with live(spec) as server, httpx.AsyncClient(base_url=server.urls[0]) as client:
            await client.get("/v1/models?a=b%20c")
            await client.get("/no where")
            await client.get("/health")
        assert all(line.startswith(prefix) for line in lines)
        assert re.search(r'127.0.0.1:\d+ - "GET /v1/models\?a=b%20c HTTP/1.1" 200 OK$', lines[0])
        assert lines[1].endswith('"GET /no%20where HTTP/1.1" 404 Not Found')
        assert len(lines) == (2 if spec is vllm else 3)
        lines.clear()


async def test_vllm_tells_of_requests(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "frontier_mock")
    spec = serve_spec(WARP, http=HttpSettings(enable_log_requests=True))
    async with live(spec) as server, httpx.AsyncClient(base_url=server.urls[0]) as client:
        body = {"prompt": ["a", "b"], "max_tokens": 3, "stop": "x", "n": 2, "logprobs": 1}
        name = (await client.post("/v1/completions", json=body)).json()["id"]
        chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "top_k": 5}
        await client.post("/v1/chat/completions", json=chat | {"logprobs": True})
    heard = [line for line in caplog.messages if line.startswith("Received request ")]
    assert len(heard) == 3
    assert [line.split(": ", 1)[0].rpartition("-")[2] for line in heard[:2]] == ["0", "1"]
    assert name in heard[0]
    assert "stop=['x'], " in heard[0]
    assert "max_tokens=3, min_tokens=0, logprobs=1, " in heard[0]
    assert "top_k=5, " in heard[2]
    assert "logprobs=0, prompt_logprobs=None" in heard[2]
    assert heard[2].endswith("extra_args=None), lora_request: None.")


def requests_of(lines: list[str]) -> list[str]:
    """Lines of the request log, without their dates."""
    split = [line.split("] ", 1) for line in lines]
    return [text for date, text in split if re.fullmatch(r"\[[-0-9]{10} [:0-9]{8}", date)]


def requesting(level: int, *, as_json: bool = False) -> ServeSpec:
    return told(
        sglang_spec(WARP),
        sglang=True,
        access=False,
        batches=False,
        requests=level,
        requests_as_json=as_json,
    )


@pytest.mark.parametrize("level", [0, 1, 2, 3])
async def test_sglang_tells_of_requests(level: int, lines: list[str]) -> None:
    body = {"text": "x" * 3000, "rid": "r", "sampling_params": {"max_new_tokens": 3}}
    async with (
        live(requesting(level)) as server,
        httpx.AsyncClient(base_url=server.urls[0]) as client,
    ):
        answer = (await client.post("/generate", json=body)).json()
    came, over = requests_of(lines)
    assert came.startswith("Receive: obj=GenerateReqInput(rid='r', session_id=None, ")
    assert over.startswith(f"Finish: obj={came.removeprefix('Receive: obj=')}, out={{")
    prompt = {2: f"text='{'x' * 1024}' ... '{'x' * 1024}', ", 3: f"text='{'x' * 3000}', "}
    assert ("text=" in came) == (level >= 2)
    assert prompt.get(level, "") in came
    assert ("sampling_params={'max_new_tokens': 3}" in came) == (level >= 1)
    assert (f"'output_ids': {answer['output_ids']}" in over) == (level >= 2)
    assert "'meta_info': {'id': 'r', 'finish_reason': {'type': 'length', 'length': 3}" in over
    assert came.endswith("kv_hints=None)")


async def test_every_sequence_of_a_batch_has_an_end_of_its_own(lines: list[str]) -> None:
    body = {"text": ["one", "two"], "rid": ["a", "b"], "sampling_params": {"max_new_tokens": 2}}
    async with (
        live(requesting(3)) as server,
        httpx.AsyncClient(base_url=server.urls[0]) as client,
    ):
        await client.post("/generate", json={**body, "stream": True})
    came, *over = requests_of(lines)
    assert "rid=['a', 'b'], " in came
    assert "text=['one', 'two'], " in came
    assert "stream=True" in came
    assert sorted(line.split(", session_id")[0] for line in over) == [
        "Finish: obj=GenerateReqInput(rid='a'",
        "Finish: obj=GenerateReqInput(rid='b'",
    ]
    assert "text='one', " in min(over)


async def test_openai_requests_are_logged_as_they_came_and_as_json(lines: list[str]) -> None:
    body = {"model": "mock", "prompt": "y" * 3000, "max_tokens": 2, "user": None}
    async with (
        live(requesting(2, as_json=True)) as server,
        httpx.AsyncClient(base_url=server.urls[0]) as client,
    ):
        assert (await client.post("/v1/completions", json=body)).status_code == 200
    raw, came, over = map(json.loads, requests_of(lines))
    assert [one["event"] for one in (raw, came, over)] == [
        "request.received.openai",
        "request.received",
        "request.finished",
    ]
    assert raw["obj"] == {
        "model": "mock",
        "prompt": f"{'y' * 1024}...{'y' * 1024}",
        "max_tokens": 2,
    }
    assert came["obj"]["sampling_params"] == {"max_new_tokens": 2}
    assert over["rid"] == came["rid"] == over["out"]["meta_info"]["id"]
    assert len(over["out"]["output_ids"]) == 2


async def test_long_lists_lose_their_middle(lines: list[str]) -> None:
    body = {"input_ids": list(range(100)) * 30, "sampling_params": {"max_new_tokens": 1}}
    for as_json in (False, True):
        async with (
            live(requesting(2, as_json=as_json)) as server,
            httpx.AsyncClient(base_url=server.urls[0]) as client,
        ):
            assert (await client.post("/generate", json=body)).status_code == 200
    text, _, made, _ = requests_of(lines)
    assert "22, 23] ... [76, 77, " in text
    ids = json.loads(made)["obj"]["input_ids"]
    assert (len(ids), ids[1023:1026]) == (2049, [23, "...", 76])


async def test_without_the_flag_nobody_tells_of_requests(lines: list[str]) -> None:
    async with (
        live(requesting(-1)) as server,
        httpx.AsyncClient(base_url=server.urls[0]) as client,
    ):
        assert (await client.post("/generate", json=BODY)).status_code == 200
    assert requests_of(lines) == []
