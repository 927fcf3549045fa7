"""Constrained output over HTTP, on both engines: whole and streamed alike, ids and text alike."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from frontier_mock.testing import MockCluster, MockSpec, open_cluster, run_virtual

MODEL = "Qwen/Qwen3-8B"
SCENARIO = """\
name: constraints
cluster:
  workers:
    - {{name: w, model: Qwen/Qwen3-8B, hardware: h800, engine: {engine}}}
"""
MESSAGES: Any = [{"role": "user", "content": "hello"}]
PATTERNS = [r"[a-z]+@[a-z]+\.(com|org)", "naïve [à-ü]{3,9}!", r"\d{3}-\d{4}", "(yes|no)\n[a-z ]+"]
SGLANG_ERROR = "Regex parsing error at position 5: Unclosed '['"


def asked(engine: str, pattern: str) -> dict[str, Any]:
    """The extra body by which an engine is held to a regex."""
    if engine.startswith("vllm"):
        return {"structured_outputs": {"regex": pattern}}
    return {"regex": pattern}


async def compare(client: openai.AsyncOpenAI, engine: str, pattern: str) -> None:
    whole = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=60, extra_body=asked(engine, pattern)
    )
    (choice,) = whole.choices
    assert choice.finish_reason == "stop"
    assert re.fullmatch(pattern, choice.message.content or "")
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=60,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=asked(engine, pattern),
    )
    said, counted = "", 0
    async for chunk in stream:
        said += "".join(one.delta.content or "" for one in chunk.choices)
        counted = chunk.usage.completion_tokens if chunk.usage else counted
    assert said == choice.message.content
    assert whole.usage is not None
    assert counted == whole.usage.completion_tokens == len(said.encode()) + 1


async def refused(client: openai.AsyncOpenAI, engine: str) -> None:
    words = "Grammar error" if engine.startswith("vllm") else SGLANG_ERROR
    with pytest.raises(openai.BadRequestError, match=re.escape(words)):
        await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, extra_body=asked(engine, "[a-z")
        )
    with pytest.raises(openai.APIError, match=re.escape(words)):
        await read(client, asked(engine, "[a-z"))


async def read(client: openai.AsyncOpenAI, extra: dict[str, Any]) -> None:
    """Read a stream to its end."""
    stream = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, extra_body=extra
    )
    async for _ in stream:
        pass


@pytest.mark.parametrize("engine", ["vllm-0.33", "sglang-0.5.23"])
def test_what_is_said_is_what_was_asked_for(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO.format(engine=engine))

    async def main() -> None:
        async with (
            open_cluster(MockSpec(scenario=str(path))) as cluster,
            cluster.openai(max_retries=0) as client,
        ):
            await asyncio.gather(*(compare(client, engine, pattern) for pattern in PATTERNS))
            await refused(client, engine)
            assert await at_rest(cluster)

    run_virtual(main())


async def at_rest(cluster: MockCluster) -> bool:
    """Whether nobody is served any more, a refused request included."""
    async with cluster.httpx(httpx) as client:
        (truth,) = json.loads((await client.get("/sim/truth")).text)["workers"]
    return (truth["running"], truth["waiting"], truth["in_frontend"]) == (0, 0, 0)


def test_a_server_without_a_grammar_backend_refuses(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    text = SCENARIO.format(engine="sglang-0.5.23")
    path.write_text(text.replace("0.5.23}", "0.5.23, engine_args: {grammar-backend: none}}"))

    async def main() -> None:
        async with (
            open_cluster(MockSpec(scenario=str(path))) as cluster,
            cluster.openai(max_retries=0) as client,
        ):
            with pytest.raises(
                openai.BadRequestError, match="launched with --grammar-backend none"
            ):
                await client.chat.completions.create(
                    model=MODEL, messages=MESSAGES, extra_body={"regex": "a"}
                )

    run_virtual(main())
