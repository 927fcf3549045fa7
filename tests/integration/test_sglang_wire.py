"""SGLang's wire against software made for SGLang: routers in front, and the `openai` package."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from frontier_mock.config.scenario import load_scenario
from frontier_mock.drive.pace import ClockSpec
from frontier_mock.serve.up import ClusterServer
from tests.integration.fleet import digest_of_journal, fleet, play, router
from tests.serve.live import WARP, live
from tests.serve.sglang_live import sglang_spec

pytestmark = pytest.mark.integration

ADAPTERS = Path(__file__).resolve().parents[2] / "adapters"
MESSAGES: Any = [{"role": "user", "content": "Say something about time."}]


@asynccontextmanager
async def sdk(
    clock: ClockSpec = WARP, **front: Any
) -> AsyncIterator[tuple[ClusterServer, openai.AsyncOpenAI]]:
    async with live(sglang_spec(clock, **front)) as server:
        key = front.get("api_key", "none")
        url = server.urls[0] + "/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
            yield server, client


async def test_openai_chat_whole_and_streamed() -> None:
    async with sdk(enable_cache_report=True) as (_, client):
        whole = await client.chat.completions.create(
            model="mock", messages=MESSAGES, max_tokens=12, logprobs=True, top_logprobs=2
        )
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 12
        assert whole.choices[0].finish_reason == "length"
        assert whole.choices[0].logprobs is not None
        assert whole.choices[0].logprobs.content is not None
        assert [len(row.top_logprobs) for row in whole.choices[0].logprobs.content] == [2] * 12
        stream = await client.chat.completions.create(
            model="mock",
            messages=MESSAGES,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.prompt_tokens_details is not None
        assert chunks[-1].usage.prompt_tokens_details.cached_tokens


async def test_openai_completions_models_and_errors() -> None:
    async with sdk(api_key="right") as (server, client):
        done = await client.completions.create(model="mock", prompt=["a", "b"], max_tokens=4, n=2)
        assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
        assert [model.id async for model in client.models.list()] == ["mock"]
        with pytest.raises(openai.BadRequestError, match="top_p must be in"):
            await client.completions.create(model="mock", prompt="a", top_p=2)
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("other")
        wrong = openai.AsyncOpenAI(base_url=server.urls[0] + "/v1", api_key="wrong", max_retries=0)
        async with wrong:
            with pytest.raises(openai.AuthenticationError):
                await wrong.models.list()


async def test_closing_an_openai_stream_aborts() -> None:
    async with sdk(ClockSpec()) as (server, client):
        stream = await client.chat.completions.create(
            model="mock", messages=MESSAGES, max_tokens=3000, stream=True
        )
        async for _ in stream:
            break
        await stream.close()
        while server.driver.in_flight:
            await asyncio.sleep(0)


async def _generate(url: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    body = {"text": "a question", "sampling_params": {"max_new_tokens": 6}, "return_logprob": True}
    async with aiohttp.ClientSession(url) as client:
        whole = await (await client.post("/generate", json=body)).json()
        streamed = await (await client.post("/generate", json={**body, "stream": True})).text()
    frames = streamed.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    return whole, [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


def test_native_generate_and_loads_through_both_routers(tmp_path: Path) -> None:
    scenario = load_scenario(str(ADAPTERS / "smg" / "scenario-sglang.yaml"))
    with fleet(scenario, tmp_path) as served:
        answers = []
        for name in ("smg", "sglang-router"):
            with router(name, "round_robin", served.urls, tmp_path / f"{name}.log") as url:
                whole, chunks = asyncio.run(_generate(url))
                assert [len(chunk["output_ids"]) for chunk in chunks] == [1, 2, 3, 4, 5, 6]
                assert chunks[-1]["text"] == whole["text"]
                triples = whole["meta_info"]["output_token_logprobs"]
                assert [triple[1] for triple in triples] == whole["output_ids"]
                workers = asyncio.run(_get(url, "/workers"))["workers"]
                assert {worker["model_id"] for worker in workers} == {
                    "meta-llama/Llama-3.1-8B-Instruct"
                }
                answers.append(whole["output_ids"])
                if name == "smg":
                    assert {worker["runtime_type"] for worker in workers} == {"sglang"}
                    loads = asyncio.run(_get(url, "/get_loads"))["loads"]
                    assert {load["max_total_num_tokens"] for load in loads} == {411222}
        assert answers[0] == answers[1]


async def _get(url: str, path: str) -> Any:
    async with aiohttp.ClientSession(url) as client:
        return await (await client.get(path)).json()


@pytest.mark.parametrize(("adapter", "name"), [("sglang_router", "sglang-router"), ("smg", "smg")])
def test_agents_before_sglang_workers(adapter: str, name: str, tmp_path: Path) -> None:
    """The adapter's other scenario: closed loops with leases, through the router."""
    scenario = load_scenario(str(ADAPTERS / adapter / "scenario-sglang.yaml"))
    with fleet(scenario, tmp_path) as served:
        with router(name, "round_robin", served.urls, tmp_path / "router.log") as url:
            played = asyncio.run(play(scenario, [url], served.clock_url))
        digest = played.digest
    assert (len(played.exchanges), played.errors, played.failures) == (80, 0, [])
    assert (played.stalls, played.guesses) == (0, 0)
    assert digest == digest_of_journal(served.journal)
