"""Anthropic's API, spoken by Anthropic's own SDK."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import anthropic
import httpx
import pytest

from frontier_mock.client.actor import Actor
from frontier_mock.client.wrap import with_actor
from frontier_mock.serve.up import ClusterServer, ServeSpec
from frontier_mock.wire.eos import EosModel
from tests.serve.live import WARP, live, serve_spec

MESSAGES: Any = [{"role": "user", "content": "hello"}]
TOOL: Any = {
    "name": "weather",
    "description": "of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "maximum": 7}},
        "required": ["city", "days"],
    },
}


def spec(**changes: Any) -> ServeSpec:
    made = serve_spec(WARP)
    return replace(made, served=[replace(model, **changes) for model in made.served])


def client_of(server: ClusterServer, **options: Any) -> anthropic.AsyncAnthropic:
    options.setdefault("max_retries", 0)
    return anthropic.AsyncAnthropic(base_url=server.urls[0], api_key="none", **options)


async def test_a_message_and_its_stream_say_the_same() -> None:
    async with live(spec()) as server, client_of(server) as client:
        message = await client.messages.create(model="mock", max_tokens=20, messages=MESSAGES)
        assert message.id.startswith("chatcmpl-")
        assert (message.role, message.stop_reason) == ("assistant", "max_tokens")
        assert message.usage.output_tokens == 20
        (block,) = message.content
        assert block.type == "text"
        async with client.messages.stream(
            model="mock", max_tokens=20, messages=MESSAGES, system="Be brief."
        ) as stream:
            said = "".join([text async for text in stream.text_stream])
            final = await stream.get_final_message()
        assert final.stop_reason == "max_tokens"
        assert final.content[0].type == "text"
        assert final.content[0].text == said
        assert len(said) == final.usage.output_tokens == 20
        again = await client.messages.create(
            model="mock", max_tokens=20, messages=MESSAGES, system="Be brief."
        )
        assert again.content[0].model_dump()["text"] == said
        count = await client.messages.count_tokens(
            model="mock", messages=MESSAGES, system="Be brief."
        )
        assert count.input_tokens == again.usage.input_tokens


async def test_events_come_in_vllms_order() -> None:
    async with live(spec()) as server, httpx.AsyncClient(base_url=server.urls[0]) as client:
        asked = {"model": "mock", "max_tokens": 3, "messages": MESSAGES, "stream": True}
        answer = await client.post("/v1/messages", json=asked)
        events = [part.split("\n") for part in answer.text.split("\n\n")[:-1]]
        assert [name for name, _ in events] == [
            "event: message_start",
            "event: content_block_start",
            *["event: content_block_delta"] * 3,
            "event: content_block_stop",
            "event: message_delta",
            "event: message_stop",
        ]
        start = json.loads(events[0][1].removeprefix("data: "))
        assert start["message"]["usage"] == {"input_tokens": 24, "output_tokens": 0}
        assert start["message"]["content"] == []
        end = json.loads(events[-2][1].removeprefix("data: "))
        assert end["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
        assert end["usage"] == {"input_tokens": 24, "output_tokens": 3}


async def test_ends_are_told_in_anthropics_words() -> None:
    made = spec(eos=EosModel(10.0, 0.0), enable_prompt_tokens_details=True)
    async with live(made) as server, client_of(server) as client:
        natural = await client.messages.create(model="mock", max_tokens=200, messages=MESSAGES)
        assert natural.stop_reason == "end_turn"
        assert natural.usage.output_tokens == 10
        assert natural.usage.cache_read_input_tokens == 0
        text = natural.content[0].model_dump()["text"]
        stopped = await client.messages.create(
            model="mock", max_tokens=200, messages=MESSAGES, stop_sequences=[text[4:6]]
        )
        assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", text[4:6])
        warm = await client.messages.create(model="mock", max_tokens=5, messages=MESSAGES)
        assert warm.usage.cache_read_input_tokens == 16
        assert warm.usage.cache_creation_input_tokens == 8


async def test_a_forced_tool_is_used_with_arguments_under_its_schema() -> None:
    async with live(spec(tool_call_parser="hermes")) as server, client_of(server) as client:
        asked: dict[str, Any] = {
            "model": "mock",
            "max_tokens": 300,
            "messages": MESSAGES,
            "tools": [TOOL],
        }
        for choice in ({"type": "tool", "name": "weather"}, {"type": "any"}):
            message = await client.messages.create(**asked, tool_choice=choice)
            (block,) = message.content
            assert message.stop_reason == "tool_use"
            assert block.type == "tool_use"
            assert block.name == "weather"
            assert block.input.keys() == {"city", "days"}
            assert block.input["days"] <= 7
            async with client.messages.stream(**asked, tool_choice=choice) as stream:
                final = await stream.get_final_message()
            assert final.content[0].model_dump()["input"] == block.input
            assert final.usage == message.usage
        result: Any = {"type": "tool_result", "tool_use_id": "1", "content": "rain"}
        used: Any = {"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "x"}}
        turns = [
            *MESSAGES,
            {"role": "assistant", "content": [used]},
            {"role": "user", "content": [result]},
        ]
        answer = await client.messages.create(**{**asked, "messages": turns})
        assert answer.content[0].type == "text"


async def test_errors_have_anthropics_shape_unless_the_schema_refuses() -> None:
    async with live(spec()) as server, client_of(server) as client:
        with pytest.raises(anthropic.NotFoundError) as missing:
            await client.messages.create(model="other", max_tokens=5, messages=MESSAGES)
        assert missing.value.body == {
            "type": "error",
            "error": {
                "type": "not_found_error",
                "message": "The model `other` does not exist. Valid aliases: mock, alias.",
            },
        }
        with pytest.raises(anthropic.BadRequestError, match="invalid_request_error"):
            await client.messages.create(model="mock", max_tokens=5000, messages=MESSAGES)
        async with httpx.AsyncClient(base_url=server.urls[0]) as raw:
            for change, said in (
                ({"max_tokens": 0}, "max_tokens must be positive"),
                ({"messages": [{"role": "robot", "content": "x"}]}, "'user', 'assistant' or"),
                ({"model": ""}, "Model is required"),
                ({"tool_choice": {"type": "tool"}}, "tool_choice.name is required"),
            ):
                asked = {"model": "mock", "max_tokens": 5, "messages": MESSAGES, **change}
                answer = await raw.post("/v1/messages", json=asked)
                assert answer.status_code == 400
                assert said in answer.json()["error"]["message"]
                assert answer.json()["error"]["code"] == 400
            counted = await raw.post("/v1/messages/count_tokens", json={"model": "mock"})
            assert counted.status_code == 400


async def test_anthropics_client_carries_an_actors_lease() -> None:
    async with live(spec()) as server, client_of(server) as client:
        async with Actor(server.urls[0], "agent") as agent:
            mine = with_actor(client, agent)
            before_s = agent.now_s
            at_ns = server.driver.now_ns()
            message = await mine.messages.create(model="mock", max_tokens=50, messages=MESSAGES)
            assert message.usage.output_tokens == 50
            after_ns = server.driver.now_ns()
            assert after_ns > at_ns
            # The lease is back: time stands still while the agent thinks.
            await asyncio.sleep(0.02)
            assert server.driver.now_ns() == after_ns
            assert await agent.sleep(5.0) >= before_s + 5.0
        shared = with_actor(client)
        async with Actor(server.urls[0], "other") as other:
            await other.gather(
                *(
                    shared.messages.create(model="mock", max_tokens=5, messages=MESSAGES)
                    for _ in range(3)
                )
            )
