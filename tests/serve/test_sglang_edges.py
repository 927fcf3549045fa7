"""SGLang's routes at the edge: Ollama, Vertex AI, its root, parsers, and what is off."""

import json
from typing import Any

import aiohttp
import pytest

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.sglang_front import _route_names
from frontier_mock.wire.sglang.served import RouteNames
from tests.serve.live import WARP, serve_spec
from tests.serve.sglang_live import sglang_spec
from tests.serve.test_sglang_app import frames, opened

SHORT = {"num_predict": 6}
TURNS = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"seed": 1}},
        {"options": {"num_predict": -1}},
        {"options": {"temperature": "hot"}},
        {"prompt": "x" * 5000},
    ],
)
async def test_what_ollamas_handlers_do_not_catch(change: dict[str, Any]) -> None:
    body = {"model": "m", "prompt": "x", **change}
    async with opened(sglang_spec(WARP)) as (server, client):
        failed = await client.post("/api/generate", json={**body, "stream": False})
        assert (failed.status, await failed.text()) == (500, "Internal Server Error")
        broken = await client.post("/api/generate", json=body)
        assert broken.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await broken.read()
        assert len(server.driver.in_flight) == 0
        bad = await client.post("/api/chat", json={"model": "m", "messages": [{"role": "user"}]})
        assert bad.status == 400
        assert (await bad.json())["type"] == "Bad Request"


async def test_vertex_wraps_generate() -> None:
    params = {"sampling_params": {"max_new_tokens": 3}}
    async with opened(sglang_spec(WARP)) as (_, client):

        async def ask(body: Any) -> aiohttp.ClientResponse:
            return await client.post("/vertex_generate", json=body)

        asked = {"instances": [{"text": "a"}, {"text": "b"}], "parameters": params}
        body = await (await ask(asked)).json()
        assert [len(one["output_ids"]) for one in body["predictions"]] == [3, 3]
        single = await (await ask({"instances": [{"input_ids": [5]}], "parameters": params})).json()
        assert len(single["predictions"]) == 1
        assert await (await ask({"instances": []})).json() == []
        streamed = {**asked, "parameters": {**params, "stream": True}}
        assert {chunk["index"] for chunk in await frames(await ask(streamed))} == {0, 1}
        nothing = await ask({"instances": [{"prompt": "x"}]})
        assert nothing.status == 400
        assert "should be provided" in (await nothing.json())["error"]["message"]
        for wrong in ({"what": 1}, {"sampling_params": {"seed": 1}}, {"text": "b"}):
            assert (await ask({**asked, "parameters": wrong})).status == 500
        assert (await (await ask({})).json())["type"] == "Bad Request"


async def test_paths_come_from_the_environment() -> None:
    names = _route_names(
        {"SGLANG_OLLAMA_ROOT_ROUTE": "/o", "SGLANG_OLLAMA_CHAT_ROUTE": "/o/chat"}
        | {"AIP_PREDICT_ROUTE": "/predict"}
    )
    async with opened(sglang_spec(WARP, routes=names)) as (_, client):
        assert await (await client.get("/o")).json() == "Ollama is running"
        assert (await client.get("/")).status == 404
        asked = {"model": "m", "messages": TURNS, "options": SHORT, "stream": False}
        assert (await client.post("/o/chat", json=asked)).status == 200
        assert (await client.post("/api/chat", json=asked)).status == 404
        assert (await client.post("/predict", json={"instances": []})).status == 200
    assert _route_names({}) == RouteNames()
    with pytest.raises(ConfigError, match="SGLANG_OLLAMA_TAGS_ROUTE"):
        _route_names({"SGLANG_OLLAMA_TAGS_ROUTE": "tags"})


async def test_the_root_says_who_is_there() -> None:
    async with opened(sglang_spec(WARP)) as (_, client):
        assert await (await client.get("/")).json() == "SGLang is running"
        head = await client.head("/")
        assert (head.status, await head.read()) == (200, b"")


async def test_texts_are_taken_apart() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    call = 'ok <tool_call>\n{"name": "f", "arguments": {"é": 1}}\n</tool_call>'
    async with opened(sglang_spec(WARP)) as (_, client):
        asked = {"text": call, "tools": [tool], "tool_call_parser": "qwen25"}
        body = await (await client.post("/parse_function_call", json=asked)).json()
        assert body == {
            "normal_text": "ok",
            "calls": [{"tool_index": 0, "name": "f", "parameters": '{"é": 1}'}],
        }
        unknown = {**asked, "text": call.replace('"f"', '"g"')}
        assert (await (await client.post("/parse_function_call", json=unknown)).json()) == {
            "normal_text": "ok",
            "calls": [],
        }
        for parser, status in (("llama3", 400), ("nobody's", 500), (None, 500)):
            answer = await client.post(
                "/parse_function_call", json={**asked, "tool_call_parser": parser}
            )
            assert answer.status == status
        thought = {"text": "<think>a</think>b", "reasoning_parser": "qwen3"}
        body = await (await client.post("/separate_reasoning", json=thought)).json()
        assert body == {"reasoning_text": "a", "text": "b"}
        forced = {"text": "a</think>b", "reasoning_parser": "deepseek-r1", "return_blocks": True}
        body = await (await client.post("/separate_reasoning", json=forced)).json()
        assert body["blocks"] == [
            {"type": "reasoning", "text": "a"},
            {"type": "text", "text": "b"},
        ]
        plain = {"text": "a</think>b", "reasoning_parser": "qwen3"}
        body = await (await client.post("/separate_reasoning", json=plain)).json()
        assert body == {"reasoning_text": "", "text": "a</think>b"}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/set_internal_state", {"server_args": {}}, 200, "[true]"),
        ("PUT", "/set_internal_state", {"server_args": {"x": 1}}, 200, "[false]"),
        ("POST", "/set_internal_state", {"server_args": {"pp_max_micro_batch_size": 0}}, 200, "f"),
        ("POST", "/set_internal_state", {}, 400, "Field required"),
        ("POST", "/pd_role_switch", {"new_role": "decode"}, 400, "--enable-pd-role-switch is not"),
        ("POST", "/pd_role_switch", {"new_role": "x"}, 400, "new_role"),
        ("POST", "/scale_elastic_ep", {"new_ep_size": 2}, 404, "elastic EP is not enabled"),
        ("POST", "/scale_elastic_ep", {"new_ep_size": True}, 400, "positive integer"),
        ("POST", "/scale_elastic_ep", [], 400, "must be a JSON object"),
        ("GET", "/is_scaling_elastic_ep", None, 404, "elastic EP is not enabled"),
        ("POST", "/add_external_corpus", {"documents": ["a"]}, 400, "Ngram speculative"),
        ("POST", "/remove_external_corpus", {}, 400, "corpus_id is required."),
        ("GET", "/list_external_corpora", None, 400, '"corpus_token_counts":{}'),
        ("GET", "/remote_instance_transfer_engine_info", None, 400, "invalid rank"),
        ("GET", "/remote_instance_transfer_engine_info?rank=0", None, 400, "for rank 0"),
        ("GET", "/remote_instance_transfer_engine_info?rank=x", None, 400, "valid integer"),
        ("GET", "/v1/loads?dp_rank=x", None, 400, '"type":"Bad Request"'),
        ("GET", "/set_trace_level", None, 400, "Field required"),
        ("POST", "/set_trace_level?level=-1", None, 400, "query.level"),
        ("POST", "/send_weights_to_remote_instance", {"ports": "1"}, 400, "master_address"),
        ("POST", "/v1/audio/transcriptions", {}, 400, "text only"),
        ("POST", "/v1/decisions", {}, 501, '"type":"NotImplementedError"'),
        ("POST", "/v1/systemone", {}, 501, '{"detail":'),
        ("PUT", "/encode", {"text": "x"}, 400, "embedding model"),
    ],
)
async def test_features_that_are_off_say_so(
    method: str, path: str, body: Any, status: int, said: str
) -> None:
    async with opened(sglang_spec(WARP)) as (_, client):
        answer = await client.request(method, path, json=body)
        text = await answer.text()
        assert (answer.status, said in text) == (status, True), text
        json.loads(text)


@pytest.mark.parametrize("make", [sglang_spec, serve_spec])
async def test_a_slash_too_many_sends_clients_on(make: Any) -> None:
    async with opened(make(WARP)) as (server, client):
        answer = await client.get("/v1/models/?a=b", allow_redirects=False)
        if make is serve_spec:
            assert answer.status == 307
            assert answer.headers["location"] == f"{server.urls[0]}/v1/models?a=b"
        moved = await client.post("/tokenize//", json={"prompt": "ab"}, allow_redirects=False)
        assert moved.status == 307
        followed = await client.post("/tokenize/", json={"prompt": "ab"})
        assert (await followed.json())["count"] == 2
        assert (await client.get("/nowhere/")).status == 404
        assert (await client.get("/tokenize")).status == 405
