"""LoRA adapters: served by name, loaded and unloaded while the server runs."""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from frontier_mock.serve.settings import HttpSettings
from frontier_mock.serve.up import ServeSpec
from tests.serve.live import WARP, live, serve_spec


def spec(**adapters: str) -> ServeSpec:
    made = serve_spec(WARP, http=HttpSettings(lora_updating=True, scale_out=True))
    return replace(made, served=[replace(model, adapters=adapters) for model in made.served])


async def test_an_adapter_is_a_model_with_a_cache_and_words_of_its_own() -> None:
    async with (
        live(spec(first="/first")) as server,
        httpx.AsyncClient(base_url=server.urls[0]) as client,
    ):
        base, card = (await client.get("/v1/models")).json()["data"][::2]
        assert base["id"] == "mock"
        assert (card["id"], card["root"], card["parent"]) == ("first", "/first", "mock")
        assert card["max_model_len"] is None
        said: dict[str, Any] = {}
        for model in ("mock", "first", "first"):
            asked = {"model": model, "prompt": "x" * 64, "max_tokens": 8}
            body = (await client.post("/v1/completions", json=asked)).json()
            assert body["model"] == model
            assert said.setdefault(model, body["choices"][0]["text"]) == body["choices"][0]["text"]
        assert said["mock"] != said["first"]
        assert server.cluster.workers[0].scheduler.hit_tokens == 48
        asked = {"model": "first", "token_ids": [120] * 64, "sampling_params": {"max_tokens": 8}}
        body = (await client.post("/inference/v1/generate", json=asked)).json()
        assert bytes(body["choices"][0]["token_ids"]).decode() == said["first"]


async def test_adapters_come_and_go() -> None:
    async with live(spec()) as server, httpx.AsyncClient(base_url=server.urls[0]) as client:

        async def post(path: str, **body: Any) -> httpx.Response:
            return await client.post(path, json=body)

        load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
        answer = await post(load, lora_name="step-1", lora_path="/ckpt/1")
        assert answer.text == "Success: LoRA adapter 'step-1' added successfully."
        asked = {"model": "step-1", "messages": [{"role": "user", "content": "x"}]}
        chat = await post("/v1/chat/completions", **asked, max_tokens=3)
        assert chat.json()["model"] == "step-1"
        rendered = await post("/v1/chat/completions/render", **asked)
        assert rendered.json()["model"] == "step-1"
        again = await post(load, lora_name="step-1", lora_path="/ckpt/1")
        assert again.status_code == 400
        assert again.json()["error"]["type"] == "InvalidUserInput"
        assert "already been loaded" in again.json()["error"]["message"]
        in_place = await post(load, lora_name="step-1", lora_path="/ckpt/2", load_inplace=True)
        assert in_place.status_code == 200
        gone = await post(unload, lora_name="step-1")
        assert gone.text == "Success: LoRA adapter 'step-1' removed successfully."
        assert (await post("/v1/chat/completions", **asked)).status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("load", {"lora_name": "mock", "lora_path": "/x"}, 400, "conflicts with a served base"),
        ("load", {"lora_name": "", "lora_path": "/x"}, 400, "must be provided"),
        ("load", {"lora_name": "a"}, 400, "Field required"),
        ("unload", {"lora_name": "a"}, 404, "The lora adapter 'a' cannot be found."),
        ("unload", {"lora_name": ""}, 400, "needs to be provided"),
    ],
)
async def test_bad_adapters_are_refused(
    path: str, body: dict[str, str], status: int, said: str
) -> None:
    async with live(spec()) as server, httpx.AsyncClient(base_url=server.urls[0]) as client:
        answer = await client.post(f"/v1/{path}_lora_adapter", json=body)
        assert answer.status_code == status
        assert said in answer.json()["error"]["message"]


async def test_without_the_variable_there_are_no_such_routes() -> None:
    async with live(serve_spec()) as server, httpx.AsyncClient(base_url=server.urls[0]) as client:
        assert (await client.post("/v1/load_lora_adapter", json={})).status_code == 404
