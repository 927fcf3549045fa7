"""Streams cut by an abort, new weights and a flush, on both engines: nothing lost, nothing twice.

What the chunks brought is compared with uninterrupted runs, and their number with what the engine
itself says that it generated.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from frontier_mock.testing import MockCluster, MockSpec, open_cluster, run_virtual

SCENARIO = """\
name: rl
cluster:
  workers:
    - name: w
      model: Qwen/Qwen3-8B
      hardware: h800
      engine: {engine}
      engine_args: {{{args}}}
"""
SGLANG = ("sglang-0.5.23", "enable-metrics: true")
VLLM = ("vllm-0.33", """weight-transfer-config: '{"backend": "nccl"}'""")
LIMIT = 300
SAMPLES = 5
ROUNDS = 3

Ask = Callable[[httpx.AsyncClient, "Sample"], Awaitable[bool]]


@dataclass(slots=True)
class Sample:
    """What one rollout has so far, and in how many streams it came."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    streams: int = 0


async def frames(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> tuple[int, list[dict[str, Any]]]:
    """Status and data of a stream, its end mark left out."""
    async with client.stream("POST", path, json=body) as answer:
        lines = [line[6:] async for line in answer.aiter_lines() if line.startswith("data: ")]
        return answer.status_code, [json.loads(line) for line in lines if line != "[DONE]"]


async def ask_vllm(client: httpx.AsyncClient, sample: Sample) -> bool:
    """One stream more; whether the sample is complete."""
    body = {
        "prompt": sample.prompt + sample.tokens,
        "max_tokens": LIMIT - len(sample.tokens),
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": 0,
        "return_token_ids": True,
        "return_weight_versions": True,
    }
    status, chunks = await frames(client, "/v1/completions", body)
    refused = chunks[0].get("error") if chunks else {"code": status}
    if refused is not None:
        # Paused, which a driver waits out.
        assert refused["code"] == 503
        await asyncio.sleep(0.01)
        return False
    sample.streams += 1
    before, reason = len(sample.tokens), None
    for chunk in chunks:
        for choice in chunk["choices"]:
            sample.tokens += choice["token_ids"]
            sample.logprobs += (choice["logprobs"] or {}).get("token_logprobs") or []
            reason = choice["finish_reason"] or reason
            for span in choice.get("weight_versions") or ():
                sample.versions.add(span["version"])
    assert chunks[-1]["usage"]["completion_tokens"] == len(sample.tokens) - before
    assert reason in ("abort", "length")
    return reason == "length"


async def ask_sglang(client: httpx.AsyncClient, sample: Sample) -> bool:
    """The same of /generate, whose chunks have all there is so far."""
    body = {
        "input_ids": sample.prompt + sample.tokens,
        "sampling_params": {"max_new_tokens": LIMIT - len(sample.tokens), "ignore_eos": True},
        "return_logprob": True,
        "stream": True,
    }
    _, chunks = await frames(client, "/generate", body)
    sample.streams += 1
    sizes = [len(chunk["output_ids"]) for chunk in chunks]
    assert sizes == sorted(sizes)
    last = chunks[-1]
    meta = last["meta_info"]
    assert meta["completion_tokens"] == len(last["output_ids"])
    listed = meta["output_token_logprobs"]
    assert [entry[1] for entry in listed] == last["output_ids"]
    sample.tokens += last["output_ids"]
    sample.logprobs += [entry[0] for entry in listed]
    sample.versions.add(meta["weight_version"])
    return bool(meta["finish_reason"]["type"] == "length")


async def update_vllm(client: httpx.AsyncClient, version: str) -> None:
    for path, params, body in (
        ("/pause", {"mode": "abort"}, None),
        ("/start_weight_update", {}, None),
        ("/update_weights", {}, {"update_info": {}}),
        ("/finish_weight_update", {}, {"weight_version": version}),
        ("/reset_prefix_cache", {}, None),
        ("/resume", {}, None),
    ):
        answer = await client.post(path, params=params, json=body)
        assert answer.status_code == 200, answer.text


async def update_sglang(client: httpx.AsyncClient, version: str) -> None:
    update = {"model_path": "/new", "weight_version": version}
    for path, body in (
        ("/pause_generation", {"mode": "abort"}),
        ("/flush_cache", None),
        ("/update_weights_from_disk", update),
        ("/continue_generation", {}),
    ):
        answer = await client.post(path, json=body)
        assert answer.status_code == 200, answer.text


COUNTED = {
    "vllm": ("vllm:generation_tokens_total", "vllm:prompt_tokens_total"),
    "sglang": ("sglang:generation_tokens_total", "sglang:prompt_tokens_total"),
}


async def counted(client: httpx.AsyncClient, name: str) -> int:
    lines = (await client.get("/metrics")).text.splitlines()
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{")))


async def collect(client: httpx.AsyncClient, sample: Sample, ask: Ask) -> Sample:
    while not await ask(client, sample):
        pass
    return sample


@pytest.mark.parametrize(
    ("kind", "engine", "ask", "update"),
    [
        ("vllm", VLLM, ask_vllm, update_vllm),
        ("sglang", SGLANG, ask_sglang, update_sglang),
    ],
)
def test_streams_add_up_through_aborts_updates_and_flushes(
    kind: str, engine: tuple[str, str], ask: Ask, update: Any, tmp_path: Path
) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO.format(engine=engine[0], args=engine[1]))

    def fresh() -> list[Sample]:
        return [Sample(list(range(300 + i, 340 + i))) for i in range(SAMPLES)]

    async def main(client: httpx.AsyncClient, cluster: MockCluster) -> None:
        alone = [await collect(client, sample, ask) for sample in fresh()]
        assert {sample.streams for sample in alone} == {1}
        generated = await counted(client, COUNTED[kind][0])
        assert generated == SAMPLES * LIMIT
        tasks = [asyncio.create_task(collect(client, sample, ask)) for sample in fresh()]
        for step in range(ROUNDS):
            await asyncio.sleep(0.4)
            await update(client, f"step-{step}")
        cut = await asyncio.gather(*tasks)
        for whole, parts in zip(alone, cut, strict=True):
            assert parts.tokens == whole.tokens
            assert parts.logprobs == whole.logprobs
            assert len(parts.tokens) == len(parts.logprobs) == LIMIT
            assert {"default", "step-0", "step-1"} <= parts.versions
        assert min(sample.streams for sample in cut) == ROUNDS + 1
        # The engine generated each token that a stream brought once, and no other.
        assert await counted(client, COUNTED[kind][0]) - generated == SAMPLES * LIMIT
        truth = (await client.get("/sim/truth")).json()["workers"][0]
        assert (truth["running"], truth["waiting"], truth["in_frontend"]) == (0, 0, 0)
        assert truth["free_blocks"] == truth["num_blocks"]

    async def outer() -> None:
        spec = MockSpec(scenario=str(path), dev_mode=True)
        async with open_cluster(spec) as cluster, cluster.httpx(httpx, timeout=None) as client:
            await main(client, cluster)

    run_virtual(outer())
