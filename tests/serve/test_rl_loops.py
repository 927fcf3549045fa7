"""Rollout loops as RL drivers run them, against vLLM's wire: every token, every logprob."""

import asyncio
import math
import re
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import pytest

from frontier_mock.client.actor import Actor
from frontier_mock.client.wrap import current_actor, with_actor
from frontier_mock.wire.eos import EosModel
from tests.serve.live import WARP, live
from tests.serve.rl import client_of, generate, in_virtual_time, rl_spec

PROMPTS = [[*f"<|im_start|>user\nproblem {i}\n".encode()] for i in range(6)]


def openai_of(url: str, **options: Any) -> openai.AsyncOpenAI:
    transport = with_actor(httpx.AsyncClient(timeout=None))
    return openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", http_client=transport, timeout=None, **options
    )


def metric(text: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)}{{[^}}]*}} (\S+)$", text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def sampled(logprobs: dict[str, Any]) -> tuple[list[int], list[float]]:
    """Token ids and logprobs out of a completion's logprobs whose tokens are named by id."""
    ids = [int(token.removeprefix("token_id:")) for token in logprobs["tokens"]]
    for token, own, tops in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert tops[token] == own
    return ids, logprobs["token_logprobs"]


@in_virtual_time
async def test_a_loop_of_trl_generates_scores_and_updates() -> None:
    """What TRL 1.16's VLLMClient sends (`generation/vllm_client.py`), step after step."""
    spec = rl_spec(eos=EosModel(120.0, 0.8))
    async with live(spec) as server, client_of(server) as client:

        async def post(path: str, body: dict[str, Any] | None = None) -> Any:
            answer = await client.post(path, json=body)
            answer.raise_for_status()
            return answer.json()

        info = (await client.get("/server_info", params={"config_format": "json"})).json()
        assert info["vllm_config"]["weight_transfer_config"]["backend"] == "nccl"
        world = (await client.get("/get_world_size")).json()["world_size"]
        init = {"master_address": "10.0.0.1", "master_port": 29500, "rank_offset": 1}
        await post("/init_weight_transfer_engine", {"init_info": {**init, "world_size": world + 1}})
        n, tokens = 4, 0
        for step in range(3):
            payload = {
                "model": "mock",
                "prompt": PROMPTS,
                "n": n,
                "temperature": 1.0,
                "max_tokens": 150,
                "logprobs": 0,
                "seed": step,
                "return_token_ids": True,
                "return_tokens_as_token_ids": True,
            }
            body = await post("/v1/completions", payload)
            choices = body["choices"]
            assert [choice["prompt_token_ids"] for choice in choices[::n]] == PROMPTS
            made = sum(len(choice["token_ids"]) for choice in choices)
            assert body["usage"]["completion_tokens"] == made
            tokens += made
            for choice in choices:
                ids, figures = sampled(choice["logprobs"])
                assert ids == choice["token_ids"]
                assert all(-20 < figure < 0 for figure in figures)
            assert {choice["finish_reason"] for choice in choices} == {"stop", "length"}
            queried = server.cluster.workers[0].scheduler.query_tokens
            # The teacher's view of the same sequences: one token is generated and thrown away.
            sequences = [choice["prompt_token_ids"] + choice["token_ids"] for choice in choices[:3]]
            scored = await post(
                "/v1/completions",
                {"prompt": sequences, "max_tokens": 1, "prompt_logprobs": 2, "temperature": 1.0},
            )
            tokens += len(sequences)
            assert server.cluster.workers[0].scheduler.query_tokens == queried
            for choice, score in zip(choices, scored["choices"], strict=False):
                start = len(choice["prompt_token_ids"])
                entries = score["prompt_logprobs"][start:]
                own = [
                    entry[str(token)]["logprob"]
                    for entry, token in zip(entries, choice["token_ids"], strict=True)
                ]
                assert own == choice["logprobs"]["token_logprobs"]
            await post("/pause?mode=keep")
            await post("/start_weight_update")
            tensors = {"names": ["w"], "dtype_names": ["bfloat16"], "shapes": [[4096, 4096]]}
            await post("/update_weights", {"update_info": tensors})
            await post("/finish_weight_update", {"weight_version": str(step)})
            assert await post("/reset_prefix_cache") == {"success": True}
            await post("/resume")
        text = (await client.get("/metrics")).text
        assert metric(text, "vllm:generation_tokens_total") == tokens


@dataclass
class Rollout:
    """One sample as a driver with partial rollouts collects it."""

    prompt: list[int]
    seed: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[tuple[str, int]] = field(default_factory=list)
    pieces: int = 0


async def collect(client: openai.AsyncOpenAI, rollout: Rollout, limit: int) -> Rollout:
    """Ask again, with what there is, until the sample ends by itself."""
    while True:
        answer = await client.completions.create(
            model="mock",
            prompt=rollout.prompt + rollout.tokens,
            max_tokens=limit - len(rollout.tokens),
            temperature=1.0,
            seed=rollout.seed,
            logprobs=0,
            extra_body={
                "return_token_ids": True,
                "return_tokens_as_token_ids": True,
                "return_weight_versions": True,
            },
        )
        choice = answer.choices[0].model_dump()
        ids, figures = sampled(choice["logprobs"])
        assert answer.usage is not None
        assert answer.usage.completion_tokens == len(ids) == len(choice["token_ids"])
        assert answer.usage.prompt_tokens == len(rollout.prompt) + len(rollout.tokens)
        spans = choice["weight_versions"]
        assert sum(span["end"] - span["start"] for span in spans) == len(ids)
        rollout.versions += [(span["version"], span["end"] - span["start"]) for span in spans]
        rollout.tokens += ids
        rollout.logprobs += figures
        rollout.pieces += 1
        if choice["finish_reason"] != "abort":
            return rollout


@pytest.mark.parametrize("mode", ["abort", "keep"])
@in_virtual_time
async def test_partial_rollouts_go_on_where_they_were_cut(mode: str) -> None:
    limit = 600
    spec = rl_spec(eos=EosModel(400.0, 0.6))
    async with live(spec) as server, client_of(server) as control:
        # The SDK retries the 503 of a pause by itself.
        client = openai_of(server.urls[0], max_retries=10)
        alone = [await collect(client, Rollout(prompt, 11), limit) for prompt in PROMPTS]
        assert {rollout.pieces for rollout in alone} == {1}
        tasks = [
            asyncio.create_task(collect(client, Rollout(prompt, 11), limit)) for prompt in PROMPTS
        ]
        for step in range(1, 4):
            await asyncio.sleep(0.11)
            await control.post("/pause", params={"mode": mode})
            await control.post("/start_weight_update")
            await control.post("/update_weights", json={"update_info": {}})
            finish = {"weight_version": f"step-{step}"}
            await control.post("/finish_weight_update", json=finish)
            await control.post("/reset_prefix_cache", params={"reset_running_requests": "true"})
            await control.post("/resume")
        interrupted = await asyncio.gather(*tasks)
        await client.close()
        # How soon the SDK asks again is up to chance.
        most = max(rollout.pieces for rollout in interrupted)
        assert most > 1 if mode == "abort" else most == 1
        for whole, parts in zip(alone, interrupted, strict=True):
            assert parts.tokens == whole.tokens
            assert parts.logprobs == whole.logprobs
            assert next(version for version, _ in parts.versions) == "default"
        versions = {version for rollout in interrupted for version, _ in rollout.versions}
        assert "step-3" in versions


@in_virtual_time
async def test_samples_of_one_prompt_resume_apart() -> None:
    async with live(rl_spec()) as server, client_of(server) as client:
        prompt = PROMPTS[0]
        whole = await generate(client, 300, prompt, n=8, seed=3)
        long = asyncio.create_task(generate(client, 300, prompt, n=8, seed=3))
        await asyncio.sleep(0.15)
        await client.post("/abort_requests", json={})
        for cut, full in zip((await long)["choices"], whole["choices"], strict=True):
            assert cut["finish_reason"] == "abort"
            said = cut["token_ids"]
            assert 20 < len(said) < 300
            left = 300 - len(said)
            (rest,) = (await generate(client, left, prompt + said, seed=3))["choices"]
            assert said + rest["token_ids"] == full["token_ids"]
            figures = cut["logprobs"]["content"] + rest["logprobs"]["content"]
            assert figures == full["logprobs"]["content"]
            assert not any(math.isnan(entry["logprob"]) for entry in figures)


async def test_over_sockets_a_trainer_with_a_lease_repeats_itself() -> None:
    """Warp: trainer and rollouts are actors; two runs give the same log."""

    async def run() -> tuple[str, list[list[int]]]:
        async with live(rl_spec(WARP)) as server, Actor(server.urls[0], "driver") as driver:
            http = with_actor(httpx.AsyncClient(base_url=server.urls[0], timeout=60))

            async def rollout(number: int) -> list[int]:
                tokens: list[int] = []
                while len(tokens) < 200:
                    prompt = PROMPTS[number] + tokens
                    answer = await generate(http, 200 - len(tokens), prompt, seed=5)
                    if "error" in answer:
                        await driver.sleep(0.05, current_actor())
                        continue
                    tokens += answer["choices"][0]["token_ids"]
                return tokens

            async def train() -> list[int]:
                for step in range(2):
                    await driver.sleep(0.08, current_actor())
                    await http.post("/pause", params={"mode": "abort"})
                    await http.post("/start_weight_update")
                    await http.post("/update_weights", json={"update_info": {}})
                    version = {"weight_version": str(step)}
                    await http.post("/finish_weight_update", json=version)
                    await http.post("/resume")
                return []

            results = await driver.gather(train(), *(rollout(i) for i in range(4)))
            await http.aclose()
            return server.cluster.log.digest(), results

    first, second = await run(), await run()
    assert first == second
    assert [len(tokens) for tokens in first[1]] == [0, 200, 200, 200, 200]
