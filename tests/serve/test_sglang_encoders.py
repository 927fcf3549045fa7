"""SGLang's encoder servers and those that ask them, over real ports."""

import json
from typing import Any

import aiohttp
import pytest

from frontier_mock.client.pictures import picture_url
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.resolve import ResolvedCluster, resolve_scenario, resolve_single_sglang
from frontier_mock.config.scenario import load_scenario
from frontier_mock.config.served import served_models
from frontier_mock.config.sglang_flags import parse_sglang_args
from frontier_mock.core.commands import Submit
from frontier_mock.drive.pace import ClockSpec
from frontier_mock.serve.up import ServeSpec
from tests.serve.live import FAST, live

SEEING = "Qwen/Qwen2.5-VL-7B-Instruct"


def resolved(*flags: str, model: str = SEEING) -> ResolvedCluster:
    args, idle = parse_sglang_args(["--model-path", model, "--port", "0", *flags])
    assert idle == ()
    return resolve_single_sglang(args, "H800", "sglang-0.5.23", 0)


def spec(*flags: str, clock: ClockSpec = FAST) -> ServeSpec:
    cluster = resolved(*flags)
    return ServeSpec(
        cluster=cluster.spec,
        costs=cluster.costs,
        served=served_models(cluster, None, {}),
        clock=clock,
        host="127.0.0.1",
    )


def asked(**more: object) -> dict[str, object]:
    body: dict[str, object] = {"req_id": "r_local_part_0", "modality": "IMAGE"}
    body |= {"mm_items": [picture_url(1, 280, 280), {"url": picture_url(2, 28, 56)}]}
    return body | {"num_parts": 1, "part_idx": 0, **more}


async def post(url: str, body: object) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as client, client.post(url, json=body) as answer:
        text = await answer.text()
        return answer.status, json.loads(text) if text else None


async def test_an_encoder_server_encodes_and_does_nothing_else() -> None:
    async with live(spec("--encoder-only")) as server:
        url = server.urls[0]
        assert await post(f"{url}/encode", asked()) == (200, None)
        for wrong, message in (
            ({"req_id": ""}, "missing or invalid req_id"),
            ({"modality": 3}, "missing or invalid modality"),
            ({"modality": "SMELL"}, "unsupported modality: SMELL"),
            ({"mm_items": []}, "missing or empty mm_items"),
            ({"num_parts": 0}, "num_parts must be a positive integer"),
            ({"part_idx": 1}, "part_idx must be in [0, 1)"),
            ({"mm_items": ["data:image/png;base64,AAAA"]}, "Failed to load image"),
        ):
            status, body = await post(f"{url}/encode", asked(**wrong))
            assert (status, body["status"]) == (400, "error")
            assert message in body["message"]
        async with aiohttp.ClientSession() as client:
            async with client.get(f"{url}/health") as answer:
                assert answer.status == 200
            async with client.get(f"{url}/v1/models") as answer:
                assert answer.status == 404


async def test_with_mooncake_it_says_how_large_embeddings_are() -> None:
    flags = ("--encoder-only", "--encoder-transfer-backend", "mooncake")
    async with live(spec(*flags)) as server:
        status, body = await post(f"{server.urls[0]}/encode", asked())
    # 10 x 10 and 2 x 4 (grown to the least there is) merged patches of 3,584 numbers.
    assert status == 200
    assert "mm_items" not in body
    assert body["req_id"] == "r_local_part_0"
    assert body["embedding_dim"] == 3584
    assert body["embedding_size"] == body["embedding_len"] * 3584 * 2
    assert body["embedding_len"] > 100


def chat(stream: bool = False) -> dict[str, object]:
    parts: list[object] = [
        {"type": "image_url", "image_url": {"url": picture_url(key, 1024, 1024)}} for key in (1, 2)
    ]
    parts.append({"type": "text", "text": "What?"})
    messages = [{"role": "user", "content": parts}]
    return {"model": SEEING, "messages": messages, "max_tokens": 3, "stream": stream}


async def test_a_language_only_server_computes_no_image_itself() -> None:
    async with live(spec("--encoder-only")) as first, live(spec("--encoder-only")) as second:
        encoders = [first.urls[0], second.urls[0]]
        flags = ("--language-only", "--encoder-urls", *encoders)
        async with live(spec(*flags)) as server:
            heard: list[Submit] = []
            take = server.driver.submit

            def listen(submits: Any, *rest: Any) -> Any:
                heard.extend(submits)
                return take(submits, *rest)

            server.driver.submit = listen  # type: ignore[method-assign]
            url = f"{server.urls[0]}/v1/chat/completions"
            status, body = await post(url, chat())
            assert (status, body["usage"]["completion_tokens"]) == (200, 3)
            (submit,) = heard
            assert [(item.patches, item.stored) for item in submit.media] == [(0, True)] * 2
            # What is wrong is found before anybody is asked.
            assert (await post(url, chat() | {"max_tokens": 1 << 30}))[0] == 400
            async with aiohttp.ClientSession() as client:
                async with client.post(url, json=chat(stream=True)) as answer:
                    assert (await answer.text()).endswith("data: [DONE]\n\n")
                async with client.get(f"{server.urls[0]}/server_info") as answer:
                    info = json.loads(await answer.text())
            assert (info["language_only"], info["encoder_urls"]) == (True, encoders)
            assert info["encoder_transfer_backend"] == "zmq_to_scheduler"
        done = [len(one.cluster.log.events) for one in (first, second)]
        assert all(done)


async def test_an_encoder_that_is_not_there_is_a_bad_gateway() -> None:
    flags = ("--language-only", "--encoder-urls", "http://127.0.0.1:9")
    async with live(spec(*flags)) as server:
        status, body = await post(f"{server.urls[0]}/v1/chat/completions", chat())
        assert status == 502
        assert "http://127.0.0.1:9/encode does not answer" in json.dumps(body)
        text = {"model": SEEING, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
        assert (await post(f"{server.urls[0]}/v1/chat/completions", text))[0] == 200


@pytest.mark.parametrize(
    ("flags", "model", "said"),
    [
        (("--encoder-only", "--language-only"), SEEING, "Cannot set --encoder-only and --lang"),
        (("--encoder-only", "--disaggregation-mode", "prefill"), SEEING, "prefill/decode together"),
        (("--encoder-only",), "Qwen/Qwen3-8B", "has no encoder"),
        (("--encoder-only", "--pp-size", "2"), SEEING, "not with drafts, pipeline stages"),
    ],
)
def test_flags_that_do_not_go_together(flags: tuple[str, ...], model: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolved(*flags, model=model)


def test_a_scenario_with_encoders_sets_the_flags(tmp_path: Any) -> None:
    path = tmp_path / "epd.yaml"
    worker = f"engine: sglang-0.5.23, model: {SEEING}"
    path.write_text(
        f"name: epd\ncluster:\n  workers:\n    - {{name: e, {worker}, role: encoder}}\n"
        f"    - {{name: w, {worker}}}\n"
    )
    encoder, worker_front = (
        model.sglang
        for model in served_models(resolve_scenario(load_scenario(str(path))), None, {})
    )
    assert encoder is not None
    assert worker_front is not None
    assert encoder.encoder.encodes_only
    assert encoder.server_args["encoder_only"] is True
    assert not worker_front.encoder.encodes_only
    assert worker_front.server_args["language_only"] is True
