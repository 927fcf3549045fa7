"""Token ids in, token ids out: the inference route, its aborts, and the render routes."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from frontier_mock.wire.deployment import Deployment
from tests.serve.live import live, serve_spec
from tests.serve.rl import GENERATE, PROMPT, client_of, generate, in_virtual_time, rl_spec


def body(**more: Any) -> dict[str, Any]:
    params = {"max_tokens": 12, **more.pop("sampling_params", {})}
    return {"token_ids": PROMPT, "sampling_params": params, **more}


def frames(text: str) -> list[dict[str, Any]]:
    parts = text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


async def test_without_the_flag_the_routes_say_how_to_turn_them_on() -> None:
    async with live(serve_spec()) as server, httpx.AsyncClient(base_url=server.urls[0]) as client:
        for path in (
            GENERATE,
            "/inference/v1/abort_requests",
            "/v1/chat/completions/render",
            "/v1/completions/derender",
        ):
            answer = await client.post(path, json={})
            assert answer.status_code == 403
            error = answer.json()["error"]
            assert error["type"] == "PermissionDeniedError"
            assert "--enable-scale-out" in error["message"]
        assert (await client.post("/pause")).status_code == 404


async def test_a_body_has_every_key_in_its_order() -> None:
    async with live(rl_spec()) as server, httpx.AsyncClient(base_url=server.urls[0]) as client:
        answer = await client.post(
            GENERATE,
            json=body(
                request_id="one",
                return_token_ids=True,
                sampling_params={"logprobs": 2, "prompt_logprobs": 1},
            ),
        )
        assert answer.status_code == 200
        assert "content-length" in answer.headers
        whole = answer.json()
        assert [*whole] == [
            *("request_id", "model", "created", "usage", "prompt_logprobs"),
            *("prompt_token_id_logprobs", "prompt_token_ids", "mm_placeholders", "metrics"),
            *("kv_transfer_params", "ec_transfer_params", "output_mode", "choices"),
        ]
        assert whole["request_id"] == "generate-tokens-one"
        assert whole["prompt_token_ids"] == PROMPT
        assert len(whole["prompt_logprobs"]) == len(PROMPT)
        (choice,) = whole["choices"]
        assert [*choice] == [
            *("index", "finish_reason", "stop_reason", "token_ids", "routed_experts"),
            *("sampling_mask", "weight_versions", "logprobs"),
        ]
        assert choice["finish_reason"] == "length"
        assert choice["weight_versions"] == [{"version": "default", "start": 0, "end": 12}]
        content = choice["logprobs"]["content"]
        assert [entry["token_id"] for entry in content] == choice["token_ids"]
        assert all(entry["rank"] == 1 for entry in content)
        assert all(len(entry["top_logprobs"]) == 2 for entry in content)
        assert whole["usage"]["completion_tokens"] == len(choice["token_ids"]) == 12


async def test_streamed_tokens_are_those_of_the_body() -> None:
    async with live(rl_spec()) as server, httpx.AsyncClient(base_url=server.urls[0]) as client:
        wishes = {"n": 2, "logprobs": 0}
        whole = (await client.post(GENERATE, json=body(sampling_params=wishes))).json()
        streamed = await client.post(
            GENERATE,
            json=body(
                sampling_params=wishes,
                stream=True,
                return_token_ids=True,
                stream_options={"include_usage": True},
            ),
        )
        chunks = frames(streamed.text)
        assert chunks[0]["prompt_token_ids"] == PROMPT
        assert all("prompt_token_ids" not in chunk for chunk in chunks[1:])
        for i, choice in enumerate(whole["choices"]):
            mine = [c["choices"][0] for c in chunks[:-1] if c["choices"][0]["index"] == i]
            assert [t for m in mine for t in m["token_ids"]] == choice["token_ids"]
            said = [entry for m in mine for entry in m["logprobs"]["content"]]
            assert said == choice["logprobs"]["content"]
            assert mine[-1]["finish_reason"] == "length"
            assert [m["weight_versions"] for m in mine[:-1]] == [None] * (len(mine) - 1)
            assert mine[-1]["weight_versions"] == choice["weight_versions"]
        assert chunks[-1] == {
            "request_id": chunks[0]["request_id"],
            "usage": {
                "prompt_tokens": len(PROMPT),
                "total_tokens": len(PROMPT) + 24,
                "completion_tokens": 24,
            },
            "output_mode": "tokens",
            "choices": [],
        }


async def test_text_mode_has_the_text_and_its_bytes() -> None:
    async with live(rl_spec()) as server, httpx.AsyncClient(base_url=server.urls[0]) as client:
        asked = body(output_mode="text", sampling_params={"logprobs": 1})
        (choice,) = (await client.post(GENERATE, json=asked)).json()["choices"]
        assert choice["text"].encode() == bytes(choice["token_ids"])
        spoken = [bytes(entry["bytes"]) for entry in choice["logprobs"]["content"]]
        assert b"".join(spoken) == choice["text"].encode()
        derendered = body(output_mode="derender")
        (message,) = (await client.post(GENERATE, json=derendered)).json()["choices"]
        assert message["message"]["content"] == choice["text"]


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"token_ids": []}, 400, "at least 1 item"),
        ({"token_ids": [1, -1]}, 400, "must not contain negative values"),
        ({"token_ids": [70_000]}, 400, "Token id 70000 is out of vocabulary"),
        ({"token_ids": "text"}, 400, "valid list"),
        ({"token_ids": [5] * 4097}, 400, "is longer than the maximum model length of 4096"),
        ({"token_ids": [5] * 4096}, 400, "plus the number of requested output tokens"),
        ({"sampling_params": None}, 400, "valid dictionary"),
        ({"sampling_params": {"temperature": 3}}, 400, "temperature must be in [0, 2]"),
        ({"sampling_params": {"max_tokens": 0}}, 400, "max_tokens must be at least 1"),
        ({"sampling_params": {"n": 65}}, 400, "at most the server's max_num_seqs (64), got 65."),
        ({"model": "other"}, 404, "does not exist"),
        ({"output_mode": "derender", "stream": True}, 400, "does not support stream=true"),
        ({"output_mode": "words"}, 400, "'tokens', 'text' or 'derender'"),
        ({"cache_salt": ""}, 400, "cache_salt"),
    ],
)
async def test_bad_requests_are_refused_in_vllms_words(
    change: dict[str, Any], status: int, said: str
) -> None:
    gpus = Deployment(max_num_seqs=64)
    spec = rl_spec(gpus=gpus)
    async with live(spec) as server, httpx.AsyncClient(base_url=server.urls[0]) as client:
        answer = await client.post(GENERATE, json={**body(), **change})
        assert answer.status_code == status
        assert said in answer.json()["error"]["message"]


async def test_a_dictated_output_is_spoken_token_by_token() -> None:
    gpus = Deployment(trace_replay=True)
    async with live(rl_spec(gpus=gpus)) as server, client_of(server) as client:
        told = [*b'{"any": "thing"} at all', 256]
        params = {"trace_decode_token_ids": told, "logprobs": 0, "max_tokens": 500}
        asked = body(output_mode="text", sampling_params=params)
        (choice,) = (await client.post(GENERATE, json=asked)).json()["choices"]
        assert choice["token_ids"] == told
        assert choice["text"] == '{"any": "thing"} at all'
        assert choice["finish_reason"] == "length"
        cut = body(sampling_params={**params, "max_tokens": 5})
        (choice,) = (await client.post(GENERATE, json=cut)).json()["choices"]
        assert choice["token_ids"] == told[:5]
        for change, said in (
            ({"n": 2}, "requires n=1"),
            ({"prompt_logprobs": 1}, "not supported with prompt_logprobs"),
            ({"trace_decode_token_ids": []}, "non-empty list"),
            ({"trace_decode_token_ids": [-1]}, "non-negative"),
            ({"trace_decode_token_ids": [99_999]}, "out of vocabulary"),
        ):
            answer = await client.post(GENERATE, json=body(sampling_params={**params, **change}))
            assert answer.status_code == 400
            assert said in answer.json()["error"]["message"]
    async with live(rl_spec()) as server, client_of(server) as client:
        answer = await client.post(GENERATE, json=body(sampling_params=params))
        assert answer.status_code == 400
        assert "--enable-trace-replay" in answer.json()["error"]["message"]


async def test_without_a_cap_the_room_in_the_context_is_used() -> None:
    async with live(rl_spec()) as server, httpx.AsyncClient(base_url=server.urls[0]) as client:
        asked = {"token_ids": [65] * 4000, "sampling_params": {}}
        (choice,) = (await client.post(GENERATE, json=asked)).json()["choices"]
        assert len(choice["token_ids"]) == 96
        assert choice["finish_reason"] == "length"


@in_virtual_time
async def test_an_abort_ends_a_request_with_what_it_has_said() -> None:
    async with live(rl_spec()) as server, client_of(server) as client:
        whole = await generate(client, 3000)
        asked = body(request_id="long", sampling_params={"max_tokens": 3000}, stream=True)
        reading = asyncio.create_task(client.post(GENERATE, json=asked))
        await asyncio.sleep(0.5)
        abort = {"request_ids": ["generate-tokens-long"]}
        said = await client.post("/inference/v1/abort_requests", json=abort)
        assert (said.status_code, said.content) == (200, b"")
        choices = [chunk["choices"][0] for chunk in frames((await reading).text)]
        ids = [token for choice in choices for token in choice["token_ids"]]
        assert choices[-1]["finish_reason"] == "abort"
        assert 100 < len(ids) < 1000
        assert ids == whole["choices"][0]["token_ids"][: len(ids)]
        spans = [{"version": "default", "start": 0, "end": len(ids)}]
        assert choices[-1]["weight_versions"] == spans
        wrong = await client.post("/inference/v1/abort_requests", json={})
        assert wrong.status_code == 400
        assert wrong.json()["error"]["message"] == "Missing 'request_ids' in request body"


async def test_a_rendered_chat_generates_what_the_chat_route_says() -> None:
    async with live(rl_spec()) as server, httpx.AsyncClient(base_url=server.urls[0]) as client:
        chat = {
            "messages": [{"role": "user", "content": "hello"}],
            "max_completion_tokens": 20,
            "temperature": 0.5,
            "logprobs": True,
            "top_logprobs": 0,
            "stop": "zzz",
            "request_id": "r",
        }
        rendered = (await client.post("/v1/chat/completions/render", json=chat)).json()
        assert [*rendered][:6] == [
            *("request_id", "token_ids", "token_offsets", "features", "content_parts"),
            "sampling_params",
        ]
        assert rendered["request_id"] == "chatcmpl-r"
        assert rendered["sampling_params"] == {
            "temperature": 0.5,
            "stop": ["zzz"],
            "stop_token_ids": [],
            "max_tokens": 20,
            "logprobs": 0,
            "output_kind": 2,
            "skip_clone": True,
            "output_text_buffer_length": 2,
            "bad_words": [],
            "skip_reading_prefix_cache": False,
        }
        said = (
            await client.post("/v1/chat/completions", json={**chat, "return_token_ids": True})
        ).json()
        assert said["prompt_token_ids"] == rendered["token_ids"]
        (choice,) = (await client.post(GENERATE, json=rendered)).json()["choices"]
        assert choice["token_ids"] == said["choices"][0]["token_ids"]
        figures = [entry["logprob"] for entry in choice["logprobs"]["content"]]
        theirs = said["choices"][0]["logprobs"]["content"]
        assert figures == [entry["logprob"] for entry in theirs]


async def test_rendered_completions_are_one_for_each_prompt() -> None:
    async with live(rl_spec()) as server, httpx.AsyncClient(base_url=server.urls[0]) as client:
        asked = {
            "prompt": ["one", "two"],
            "n": 2,
            "max_tokens": 16,
            "request_id": "x",
            "stream": True,
        }
        rendered = (await client.post("/v1/completions/render", json=asked)).json()
        assert [r["request_id"] for r in rendered] == ["cmpl-x-0", "cmpl-x-1"]
        assert [bytes(r["token_ids"]) for r in rendered] == [b"one", b"two"]
        assert all(r["stream"] for r in rendered)
        assert "max_tokens" not in rendered[0]["sampling_params"]
        unknown = await client.post("/v1/completions/render", json={**asked, "model": "other"})
        assert unknown.status_code == 404


async def test_messages_and_responses_are_rendered_as_the_chats_they_are() -> None:
    async with live(rl_spec()) as server, client_of(server) as client:
        turns = [{"role": "user", "content": "hello"}]
        chat = {"messages": turns, "max_completion_tokens": 9}
        expected = (await client.post("/v1/chat/completions/render", json=chat)).json()
        message = {"model": "mock", "messages": turns, "max_tokens": 9}
        rendered = (await client.post("/v1/messages/render", json=message)).json()
        assert rendered["token_ids"] == expected["token_ids"]
        assert rendered["sampling_params"] == expected["sampling_params"]
        asked = {"input": "hello", "max_output_tokens": 9, "request_id": "resp_x"}
        rendered = (await client.post("/v1/responses/render", json=asked)).json()
        assert rendered["token_ids"] == expected["token_ids"]
        assert rendered["request_id"] == "resp_x"
        assert rendered["parse_context"] is None
        previous = {**asked, "previous_response_id": "resp_y"}
        refused = await client.post("/v1/responses/render", json=previous)
        assert refused.status_code == 400


async def test_half_a_surrogate_pair_is_refused_whatever_it_is_in() -> None:
    async with live(serve_spec()) as server, httpx.AsyncClient(base_url=server.urls[0]) as client:
        headers = {"content-type": "application/json"}
        for sent in (b'{"model": "\\ud800", "prompt": "x"}', b'{"prompt": "x\\ud800"}'):
            answer = await client.post("/v1/completions", content=sent, headers=headers)
            assert answer.status_code == 400
            assert "surrogates not allowed" in answer.json()["error"]["message"]


@in_virtual_time
async def test_aborts_reach_many_requests_at_once() -> None:
    async with live(rl_spec()) as server, client_of(server) as client:
        asked = {"prompt": "go", "max_tokens": 3000, "n": 2, "temperature": 1}
        posts = [client.post("/v1/completions", json=asked) for _ in range(3)]
        waiting = [asyncio.create_task(post) for post in posts]
        await asyncio.sleep(0.2)
        answer = await client.post("/abort_requests", json={})
        assert answer.json() == {"status": "aborted", "aborted": 6}
        for response in await asyncio.gather(*waiting):
            reasons = [c["finish_reason"] for c in response.json()["choices"]]
            assert reasons == ["abort", "abort"]
