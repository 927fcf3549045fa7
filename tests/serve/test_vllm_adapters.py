"""LoRA adapters: served by name, loaded and unloaded while the server runs."""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from frontier_mock.serve.settings import HttpSettings
from frontier_mock.serve.up import ServeSpec
from frontier_mock.wire.lora_metrics import MAX_CHILDREN, LoraInfo
from tests.serve.live import FAST, WARP, live, serve_spec


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


async def test_metrics_say_which_adapters_have_requests() -> None:
    made = serve_spec(FAST)
    gpus = replace(made.served[0].deployment, max_loras=4)
    adapters = {"first": "/1", "second": "/2"}
    model = replace(made.served[0], adapters=adapters, deployment=gpus)
    async with (
        live(replace(made, served=[model])) as server,
        httpx.AsyncClient(base_url=server.urls[0], timeout=60) as client,
    ):

        async def shown() -> dict[str, float]:
            samples = {}
            for line in (await client.get("/metrics")).text.splitlines():
                if line.startswith("vllm:lora_requests_info{"):
                    labels, value = line.rsplit(" ", 1)
                    samples[labels.removeprefix("vllm:lora_requests_info")] = float(value)
            return samples

        none = '{max_lora="4",running_lora_adapters="",waiting_lora_adapters=""}'
        assert list(await shown()) == [none]
        asked = {"prompt": "x" * 64, "max_tokens": 4000, "stream": True}
        async with (
            client.stream("POST", "/v1/completions", json={**asked, "model": "second"}) as one,
            client.stream("POST", "/v1/completions", json={**asked, "model": "first"}) as other,
            client.stream("POST", "/v1/completions", json={**asked, "model": "mock"}) as base,
        ):
            assert [answer.status_code for answer in (one, other, base)] == [200] * 3
            samples = await shown()
        both = '{max_lora="4",running_lora_adapters="second,first",'
        both += 'waiting_lora_adapters="second,first"}'
        assert list(samples) == [none, both]
        # The newest child is the present one.
        assert samples[both] > samples[none]


async def test_without_lora_there_is_no_such_family() -> None:
    async with (
        live(spec(first="/first")) as server,
        httpx.AsyncClient(base_url=server.urls[0]) as client,
    ):
        assert "lora_requests_info" not in (await client.get("/metrics")).text


def test_few_combinations_are_kept() -> None:
    info = LoraInfo(2)
    for number in range(MAX_CHILDREN + 5):
        text = info.render([f"a{number}", "b", "b"], float(number))
    assert text.count("vllm:lora_requests_info{") == MAX_CHILDREN
    assert 'running_lora_adapters="a4,b"' not in text
    assert text.splitlines()[-1].endswith(" 1004.0")
