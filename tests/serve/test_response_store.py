"""Responses that both engines keep, asked for by OpenAI's own SDK."""

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

from frontier_mock.client.actor import Actor
from frontier_mock.serve.settings import HttpSettings
from frontier_mock.serve.up import ClusterServer, ServeSpec
from tests.serve.live import FAST, WARP, live, serve_spec
from tests.serve.sglang_live import sglang_spec

KEEPING = HttpSettings(response_store=True)


def vllm() -> ServeSpec:
    return serve_spec(WARP, http=KEEPING)


def sglang() -> ServeSpec:
    return sglang_spec(WARP, enable_response_store=True, enable_cache_report=True)


def client_of(server: ClusterServer) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.urls[0]}/v1", api_key="none", max_retries=0)


async def settled(client: openai.AsyncOpenAI, name: str) -> Any:
    """The response once it is over; on the warp clock nothing is waited for in real time."""
    while True:
        response = await client.responses.retrieve(name)
        if response.status not in ("queued", "in_progress"):
            return response
        await asyncio.sleep(0)


@pytest.mark.parametrize("spec", [vllm, sglang])
async def test_what_is_kept_can_be_looked_up_and_gone_on_with(spec: Any) -> None:
    async with live(spec()) as server, client_of(server) as client:
        first = await client.responses.create(
            model="mock", input="hello", instructions="Be brief.", max_output_tokens=9
        )
        assert (await client.responses.retrieve(first.id)).output == first.output
        second = await client.responses.create(
            model="mock", input="more", previous_response_id=first.id, max_output_tokens=9
        )
        assert second.previous_response_id == first.id
        assert first.usage is not None
        assert second.usage is not None
        said = [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "more"},
        ]
        spelled = await client.responses.create(
            model="mock",
            input=said,  # type: ignore[arg-type]  # plain dictionaries
            max_output_tokens=9,
        )
        assert spelled.usage is not None
        assert spelled.usage.input_tokens == second.usage.input_tokens
        third = await client.responses.create(
            model="mock",
            input="x",
            previous_response_id=second.id,
            stream=True,
            max_output_tokens=5,
        )
        (last,) = [event async for event in third if event.type == "response.incomplete"] or [None]
        assert last is None or last.response.usage is not None
        unkept = await client.responses.create(
            model="mock", input="a", store=False, max_output_tokens=5
        )
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(unkept.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(
                model="mock", input="a", previous_response_id="resp_nobody"
            )


@pytest.mark.parametrize("spec", [vllm, sglang])
async def test_background_goes_on_without_its_client(spec: Any) -> None:
    async with live(spec()) as server, client_of(server) as client:
        asked = await client.responses.create(
            model="mock", input="hello", background=True, max_output_tokens=12
        )
        assert (asked.status, asked.output) == ("queued", [])
        done = await settled(client, asked.id)
        assert done.status == "incomplete"
        assert done.usage is not None
        assert done.output_text
        again = await client.responses.create(
            model="mock", input="hello", max_output_tokens=12, store=False
        )
        assert again.output_text == done.output_text
        assert len(server.driver.in_flight) == 0


@pytest.mark.parametrize("spec", [vllm, sglang])
async def test_background_gives_its_actor_back_at_once(spec: Any) -> None:
    body = {"model": "mock", "input": "hello", "background": True}
    head = {"tracestate": "fmock=a"}
    async with (
        live(spec()) as server,
        Actor(server.urls[0], "a") as actor,
        httpx.AsyncClient(base_url=server.urls[0]) as client,
    ):
        began = (await client.post("/v1/responses", json=body, headers=head)).json()
        before = await client.get(f"/v1/responses/{began['id']}")
        assert before.json()["status"] in ("queued", "in_progress")
        await actor.sleep(3600.0)
        after = await client.get(f"/v1/responses/{began['id']}")
        assert after.json()["status"] in ("completed", "incomplete")


@pytest.mark.parametrize("spec", [vllm, sglang])
async def test_background_can_be_cancelled_once(spec: Any) -> None:
    async with live(spec()) as server, Actor(server.urls[0], "a"), client_of(server) as client:
        # The actor does not sleep, so no time passes, and nothing can be over.
        asked = await client.responses.create(model="mock", input="hello", background=True)
        cancelled = await client.responses.cancel(asked.id)
        assert cancelled.status == "cancelled"
        assert (await client.responses.retrieve(asked.id)).status == "cancelled"
        if spec is sglang:
            assert (await client.responses.cancel(asked.id)).status == "cancelled"
        else:
            with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous"):
                await client.responses.cancel(asked.id)
            assert len(server.driver.in_flight) == 0


async def test_vllm_streams_a_background_response_to_whoever_comes() -> None:
    async with live(vllm()) as server, client_of(server) as client:
        stream = await client.responses.create(
            model="mock", input="hello", background=True, stream=True, max_output_tokens=6
        )
        events = [event async for event in stream]
        assert [event.sequence_number for event in events] == [*range(len(events))]
        assert events[0].type == "response.created"
        last = events[-1]
        assert last.type == "response.incomplete"
        name = last.response.id
        again = [e async for e in await client.responses.retrieve(name, stream=True)]
        assert again == events
        rest = [
            event
            async for event in await client.responses.retrieve(name, stream=True, starting_after=4)
        ]
        assert rest == events[5:]
        assert (await client.responses.retrieve(name)).output_text == last.response.output_text


async def test_vllm_streams_go_on_when_their_first_reader_has_left() -> None:
    body = {"model": "mock", "input": "hi", "background": True, "stream": True}
    made = serve_spec(FAST, http=KEEPING)
    async with live(made) as server, client_of(server) as client, httpx.AsyncClient() as http:
        url = server.urls[0] + "/v1/responses"
        async with http.stream("POST", url, json=body | {"max_output_tokens": 400}) as response:
            lines = response.aiter_lines()
            assert await anext(lines) == "event: response.created"
            name = json.loads((await anext(lines)).removeprefix("data: "))["response"]["id"]
        done = await settled(client, name)
        assert done.status == "incomplete"
        assert done.usage.output_tokens == 400


async def test_a_reader_that_leaves_takes_its_lease_along() -> None:
    body = {"model": "mock", "input": "hi", "background": True, "stream": True}
    async with live(vllm()) as server, httpx.AsyncClient() as http:
        url = server.urls[0]
        async with Actor(url, "a") as leaver, Actor(url, "b") as other:
            head = {"tracestate": "fmock=a"}
            told = http.stream("POST", f"{url}/v1/responses", json=body, headers=head)
            async with told as response:
                sleeping = asyncio.create_task(other.sleep(0.01))
                assert await anext(response.aiter_lines()) == "event: response.created"
            await asyncio.gather(leaver.sleep(3600.0), sleeping, other.sleep(3600.0))
        assert len(server.driver.in_flight) == 0


async def test_vllm_has_no_events_of_what_was_not_streamed() -> None:
    async with live(vllm()) as server, httpx.AsyncClient(base_url=server.urls[0]) as client:
        kept = (await client.post("/v1/responses", json={"input": "x"})).json()
        path = f"/v1/responses/{kept['id']}"
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(path, params={"stream": "true"})
        assert (await client.get(path, params={"starting_after": "x"})).status_code == 400
        assert (await client.get(path + "/more")).status_code == 404
        assert (await client.post(path)).status_code == 405
        refused = await client.post("/v1/responses", json={"input": "x", "background": True} | OFF)
        assert refused.status_code == 400
        assert "only be used when `store` is true" in refused.json()["error"]["message"]


OFF = {"store": False}


async def test_sglangs_words_about_its_store() -> None:
    async with live(sglang()) as server, httpx.AsyncClient(base_url=server.urls[0]) as client:
        for path in ("/v1/responses/x", "/v1/responses/x/cancel"):
            method = "POST" if path.endswith("cancel") else "GET"
            answer = await client.request(method, path)
            assert answer.status_code == 400
            assert "Expected an ID that begins with 'resp'." in answer.json()["error"]["message"]
        unknown = await client.get("/v1/responses/resp_x")
        assert unknown.status_code == 404
        assert unknown.json()["error"]["param"] == "response_id"
        assert (await client.post("/v1/responses/resp_x")).status_code == 405
        asked = {"input": "x", "background": True} | OFF
        refused = await client.post("/v1/responses", json=asked)
        assert refused.json()["error"]["message"] == "background=true requires store=true."
        streamed = await client.post("/v1/responses", json=asked | {"store": True, "stream": True})
        assert "event: response.completed" in streamed.text or "incomplete" in streamed.text
