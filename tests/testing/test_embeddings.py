"""vLLM servers that share embeddings, driven as the proxy of vLLM's examples does."""

import json
from pathlib import Path
from typing import Any

import pytest

from frontier_mock.client.pictures import picture_url
from frontier_mock.config.ec_transfer import read_ec_transfer
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.resolve import resolve_scenario
from frontier_mock.config.scenario import load_scenario
from frontier_mock.testing import MockSpec, open_cluster, run_virtual

SEEING = "Qwen/Qwen2.5-VL-7B-Instruct"
SCENARIO = """\
name: shared
cluster:
  workers:
    - {{name: e, model: {model}, port: 0, engine_args: {{ec-transfer-config: {{ec_connector:
        ECExampleConnector, ec_role: ec_producer{extra}}}}}}}
    - {{name: pd, model: {model}, port: 0, engine_args: {{ec-transfer-config: {{ec_connector:
        ECExampleConnector, ec_role: ec_consumer{extra}}}}}}}
"""


def written(directory: Path, extra: str = "", model: str = SEEING) -> str:
    path = directory / "shared.yaml"
    path.write_text(SCENARIO.format(model=model, extra=extra))
    return str(path)


def chat(*keys: int, text: str = "", tokens: int = 4, **more: object) -> dict[str, Any]:
    parts: list[dict[str, object]] = [
        {"type": "image_url", "image_url": {"url": picture_url(key, 1024, 1024)}} for key in keys
    ]
    parts += [{"type": "text", "text": text}] if text else []
    messages = [{"role": "user", "content": parts}]
    return {"model": SEEING, "messages": messages, "max_tokens": tokens, **more}


async def ask(client: Any, url: str, body: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """The answer, and its time to first token in ms."""
    async with client.post(f"{url}/v1/chat/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        arrival = int(answer.headers["x-frontier-arrival-ns"])
        first = int(answer.headers["x-frontier-first-token-ns"])
        return json.loads(await answer.text()), (first - arrival) / 1e6


@pytest.mark.parametrize("in_files", [False, True])
def test_the_proxys_flow(in_files: bool, tmp_path: Path) -> None:
    store = tmp_path / "store"
    extra = f", ec_connector_extra_config: {{shared_storage_path: {store}}}" if in_files else ""

    async def main() -> None:
        path = written(tmp_path, extra)
        async with open_cluster(MockSpec(scenario=path)) as cluster, cluster.aiohttp() as client:
            encoder, other = cluster.urls
            whole = chat(1, 2, text="What are these?")
            names = {}
            for key in (1, 2):
                told, ttft_ms = await ask(client, encoder, chat(key, tokens=1))
                choice = told["choices"][0]
                assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")
                assert told["usage"]["completion_tokens"] == 0
                ((name, item),) = told["ec_transfer_params"].items()
                assert item == {
                    "modality": "image",
                    "item_indices": [0],
                    "metadata": {"image_grid_thw": [1, 74, 74]},
                }
                names[key] = name
                # 10.2 ms of front end, 13.1 ms of encoder, and no language model.
                assert ttft_ms == pytest.approx(24.5, abs=0.5)
            answer, shared_ms = await ask(client, other, whole)
            assert answer["ec_transfer_params"] is None
            assert answer["usage"]["completion_tokens"] == 4
            _, own_ms = await ask(client, other, chat(3, 4, text="What are these?"))
            assert own_ms - shared_ms == pytest.approx(28, abs=1)
            assert len(set(names.values())) == 2
            if in_files:
                assert sorted(one.name for one in store.iterdir()) == sorted(names.values())
            # What is in the store is not encoded by its producer either.
            _, again_ms = await ask(client, encoder, chat(2, 1, 2, tokens=1))
            assert again_ms == pytest.approx(19.5, abs=0.5)

    run_virtual(main())


def test_a_producers_stream_says_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        path = written(tmp_path)
        async with open_cluster(MockSpec(scenario=path)) as cluster, cluster.aiohttp() as client:
            url = f"{cluster.urls[0]}/v1/chat/completions"
            options = {"stream": True, "stream_options": {"include_usage": True}}
            async with client.post(url, json=chat(5, tokens=9, **options)) as answer:
                lines = [line for line in (await answer.text()).split("\n") if line]
            chunks = [json.loads(line[6:]) for line in lines[:-1]]
            said = [c["delta"].get("content") or "" for one in chunks for c in one["choices"]]
            assert "".join(said) == ""
            assert chunks[-1]["usage"]["completion_tokens"] == 0
            _, ttft_ms = await ask(client, cluster.urls[1], chat(5))
            _, own_ms = await ask(client, cluster.urls[1], chat(6))
            assert own_ms - ttft_ms == pytest.approx(13, abs=0.5)

    run_virtual(main())


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ([], "not a JSON object"),
        ({"ec_conector": "x"}, "unknown key 'ec_conector'"),
        ({"ec_connector": "ECExampleConnector"}, "ec_role: None; allowed: ec_producer"),
        ({"ec_connector": "ECMooncakeConnector", "ec_role": "ec_both"}, "is not simulated"),
        (
            {
                "ec_connector": "ECExampleConnector",
                "ec_role": "ec_both",
                "ec_connector_extra_config": {"shared_storage_path": 3},
            },
            "shared_storage_path: 3",
        ),
    ],
)
def test_configurations_that_cannot_be(config: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_ec_transfer(config)


def test_a_producer_needs_an_encoder(tmp_path: Path) -> None:
    scenario = load_scenario(written(tmp_path, model="Qwen/Qwen3-8B"))
    with pytest.raises(ConfigError, match="Qwen/Qwen3-8B has no encoder"):
        resolve_scenario(scenario)
