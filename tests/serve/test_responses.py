"""OpenAI's Responses API, spoken by OpenAI's own SDK."""

from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from frontier_mock.serve.up import ClusterServer, ServeSpec
from frontier_mock.wire.eos import EosModel
from tests.serve.live import WARP, live, serve_spec


def spec(**changes: Any) -> ServeSpec:
    made = serve_spec(WARP)
    return replace(made, served=[replace(model, **changes) for model in made.served])


def client_of(server: ClusterServer) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.urls[0]}/v1", api_key="none", max_retries=0)


async def test_a_response_and_its_stream_say_the_same() -> None:
    async with live(spec()) as server, client_of(server) as client:
        asked: dict[str, Any] = {
            "model": "mock",
            "input": "hello",
            "instructions": "Be brief.",
            "max_output_tokens": 20,
        }
        response = await client.responses.create(**asked)
        assert response.id.startswith("resp_")
        assert response.status == "incomplete"
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens"
        assert response.usage is not None
        assert response.usage.output_tokens == len(response.output_text) == 20
        assert response.instructions == "Be brief."
        events = [event async for event in await client.responses.create(**asked, stream=True)]
        assert [event.sequence_number for event in events] == [*range(len(events))]
        assert [event.type for event in events] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            *["response.output_text.delta"] * 20,
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete",
        ]
        said = "".join(e.delta for e in events if e.type == "response.output_text.delta")
        assert said == response.output_text
        last = events[-1]
        assert last.type == "response.incomplete"
        assert last.response.output_text == said
        assert last.response.usage is not None
        assert last.response.usage.total_tokens == response.usage.total_tokens
        assert last.response.usage.input_tokens_details.cached_tokens == 32


async def test_a_conversation_in_items_completes() -> None:
    made = spec(eos=EosModel(30.0, 0.0))
    async with live(made) as server, client_of(server) as client:
        items: Any = [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "5"},
        ]
        response = await client.responses.create(model="mock", input=items)
        assert response.status == "completed"
        assert response.usage is not None
        assert response.usage.output_tokens == 30
        assert len(response.output_text) == 29


class City(BaseModel):
    name: str
    people: int


async def test_shapes_and_forced_calls() -> None:
    made = spec(tool_call_parser="hermes", eos=EosModel())
    async with live(made) as server, client_of(server) as client:
        parsed = await client.responses.parse(model="mock", input="a city", text_format=City)
        assert isinstance(parsed.output_parsed, City)
        tool: Any = {"type": "function", "name": "visit", "parameters": City.model_json_schema()}
        for choice in ("required", {"type": "function", "name": "visit"}):
            asked: dict[str, Any] = {
                "model": "mock",
                "input": "go",
                "tools": [tool],
                "tool_choice": choice,
            }
            (call,) = (await client.responses.create(**asked)).output
            assert call.type == "function_call"
            assert call.name == "visit"
            City.model_validate_json(call.arguments)
            stream = await client.responses.create(**asked, stream=True)
            events = [event async for event in stream]
            pieces = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
            assert "".join(pieces) == call.arguments


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"model": "other"}, 404, "does not exist"),
        ({"background": True}, 400, "does not support the background mode"),
        ({"previous_response_id": "resp_1"}, 404, "Response with id 'resp_1' not found."),
        ({"max_output_tokens": 5000}, 400, "max_output_tokens=5000 cannot be greater"),
        ({"input": 5}, 400, "valid string"),
        ({"prompt": {"id": "x"}}, 400, "prompt template is not supported"),
        ({"metadata": {"a": 5}}, 400, "metadata"),
        ({"prompt_cache_key": 5}, 400, "prompt_cache_key"),
        ({"reasoning": {"effort": 5}}, 400, "effort"),
    ],
)
async def test_bad_requests_are_refused(change: dict[str, Any], status: int, said: str) -> None:
    async with live(spec()) as server, httpx.AsyncClient(base_url=server.urls[0]) as client:
        asked = {"model": "mock", "input": "x", **change}
        answer = await client.post("/v1/responses", json=asked)
        assert answer.status_code == status
        assert said in answer.json()["error"]["message"]


async def test_nothing_is_stored() -> None:
    async with live(spec()) as server, client_of(server) as client:
        with pytest.raises(openai.NotFoundError, match="Response with id 'resp_x' not found"):
            await client.responses.retrieve("resp_x")
        with pytest.raises(openai.NotFoundError, match="Response with id 'resp_x' not found"):
            await client.responses.cancel("resp_x")


async def test_what_is_no_number_in_json_comes_back_as_null() -> None:
    tool = '{"type":"function","name":"f","parameters":{"a":[Infinity,{"b":NaN},1.5]}}'
    body = f'{{"model":"mock","input":"x","max_output_tokens":2,"tools":[{tool}]}}'
    async with live(spec()) as server, httpx.AsyncClient(base_url=server.urls[0]) as client:
        head = {"content-type": "application/json"}
        answer = await client.post("/v1/responses", content=body, headers=head)
        (echoed,) = answer.json()["tools"]
        assert "NaN" not in answer.text
        assert echoed["parameters"] == {"a": [None, {"b": None}, 1.5]}
