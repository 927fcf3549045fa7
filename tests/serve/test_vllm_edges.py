"""vLLM's routes at the edge: SageMaker, batches of chats, and what is off."""

from typing import Any

import httpx
import pytest

from frontier_mock.core.events import Submitted
from tests.serve.live import WARP, live, serve_spec

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}


async def test_invocations_go_to_the_first_schema_that_fits() -> None:
    async with live(serve_spec(WARP)) as server, httpx.AsyncClient(base_url=server.urls[0]) as http:

        async def ask(body: Any) -> httpx.Response:
            return await http.post("/invocations", json=body)

        assert (await ask(CHAT)).json()["object"] == "chat.completion"
        body = (await ask({"prompt": "x", "max_tokens": 3})).json()
        assert body["object"] == "text_completion"
        streamed = await ask(CHAT | {"stream": True})
        assert streamed.text.endswith("data: [DONE]\n\n")
        both = await ask({**CHAT, "messages": 5, "prompt": "x"})
        assert both.status_code in (200, 400)
        for wrong in ({}, [], {"input": "x"}, {"messages": [{"role": 5}]}, {"prompt": {}}):
            refused = await ask(wrong)
            assert refused.status_code == 400
            assert "Cannot find suitable handler" in refused.json()["error"]["message"]
        assert (await ask(CHAT | {"model": "other"})).status_code == 404
        plain = await http.post("/invocations", content=b"{}")
        assert plain.status_code == 400
        for method in ("GET", "POST"):
            assert (await http.request(method, "/ping")).status_code == 200


async def test_a_batch_of_chats_has_one_choice_for_each() -> None:
    path = "/v1/chat/completions/batch"
    turns = [[{"role": "user", "content": text}] for text in ("a", "bb", "ccc")]
    async with live(serve_spec(WARP)) as server, httpx.AsyncClient(base_url=server.urls[0]) as http:
        body = (await http.post(path, json={"messages": turns, "max_tokens": 4})).json()
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        assert body["usage"]["completion_tokens"] == 12
        submitted = [e for e in server.cluster.log.events if isinstance(e, Submitted)]
        prompts = [event.prompt_tokens for event in submitted]
        assert prompts[0] + 2 == prompts[1] + 1 == prompts[2]
        assert body["usage"]["prompt_tokens"] == sum(prompts)
        single = await http.post("/v1/chat/completions", json={"messages": turns[1]} | SHORT)
        alone = single.json()["choices"][0]["message"]
        assert body["choices"][1]["message"] == alone
        for wrong, said in (
            ({"messages": []}, "at least 1 item"),
            ({"messages": [[]]}, "at least 1 item"),
            ({"messages": ["x"]}, "valid list"),
            ({"messages": "x"}, "valid list"),
            ({}, "Field required"),
            ({"messages": turns, "n": 2}, "do not support `n > 1`"),
            ({"messages": turns, "use_beam_search": True}, "do not support beam search"),
        ):
            refused = await http.post(path, json=wrong)
            assert refused.status_code == 400
            assert said in refused.json()["error"]["message"]


SHORT = {"max_tokens": 4}


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/is_scaling_elastic_ep", {}, 200, '"phase":"idle"'),
        ("/scale_elastic_ep", {}, 400, "new_data_parallel_size is required"),
        ("/scale_elastic_ep", {"new_data_parallel_size": -1}, 400, "must be a positive integer"),
        ("/scale_elastic_ep", {"new_data_parallel_size": 2, "drain_timeout": 0}, 400, "drain"),
        ("/scale_elastic_ep", {"new_data_parallel_size": 2}, 500, "Scale failed"),
        ("/scale_elastic_ep", [], 400, "valid dictionary"),
        ("/v1/decisions", {}, 501, "NotImplementedError"),
        ("/generative_scoring", {}, 501, "does not simulate /generative_scoring"),
    ],
)
async def test_features_that_are_off_say_so(path: str, body: Any, status: int, said: str) -> None:
    async with live(serve_spec(WARP)) as server, httpx.AsyncClient(base_url=server.urls[0]) as http:
        answer = await http.post(path, json=body)
        assert (answer.status_code, said in answer.text) == (status, True), answer.text
