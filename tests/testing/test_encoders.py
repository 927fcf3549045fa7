"""A scenario with encoders apart, served: images in chats go through them."""

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.resolve import resolve_scenario
from frontier_mock.config.scenario import load_scenario
from frontier_mock.core.events import MediaReceived
from frontier_mock.testing import MockSpec, open_cluster, run_virtual

SCENARIO = """\
name: epd
cluster:
  workers:
    - {{name: e, count: 2, engine: {engine}, model: {model}, role: encoder, port: 0}}
    - {{name: p, engine: {engine}, model: {model}, role: prefill, port: 0}}
    - {{name: d, engine: {engine}, model: {model}, role: decode, port: 0}}
  fabric: {{gpus_per_node: 1}}
"""
SEEING = "Qwen/Qwen2.5-VL-7B-Instruct"


def written(directory: Path, engine: str, model: str = SEEING) -> str:
    path = directory / "epd.yaml"
    path.write_text(SCENARIO.format(engine=engine, model=model))
    return str(path)


def chat(*colors: int) -> dict[str, Any]:
    parts: list[dict[str, object]] = [{"type": "text", "text": "What are these?"}]
    for color in colors:
        head = struct.pack(">IIBBBBB", 1024, 1024, 8, 2, 0, 0, 0)
        content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + head + bytes([color])
        url = "data:image/png;base64," + base64.b64encode(content).decode()
        parts.append({"type": "image_url", "image_url": {"url": url}})
    messages = [{"role": "user", "content": parts}]
    return {"model": SEEING, "messages": messages, "max_tokens": 3}


@pytest.mark.parametrize("engine", ["vllm-0.33", "sglang-0.5.23"])
def test_images_of_a_chat_are_encoded_by_encoders(engine: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with open_cluster(MockSpec(scenario=written(tmp_path, engine))) as cluster:
            async with cluster.aiohttp() as client:
                for colors in ((1, 2), (2,)):
                    async with client.post("/v1/chat/completions", json=chat(*colors)) as answer:
                        assert answer.status == 200, await answer.text()
                        assert json.loads(await answer.text())["usage"]["prompt_tokens"] > 1369
                async with client.get("/sim/report") as answer:
                    report = json.loads(await answer.text())
            came = [event for event in cluster.events if isinstance(event, MediaReceived)]
        first, second = came
        assert (first.num_items, second.num_items) == (2, 1)
        # 1,369 tokens of 3,584 numbers each.
        assert second.num_bytes == 1369 * 3584 * 2
        # 13.1 ms an image, the two of the first chat at once.
        assert first.encoded_ns - first.asked_ns == pytest.approx(13.2e6, rel=0.03)
        assert report["encoding"]["images"] == 3
        assert report["transfers"]["ttft_parts_ms"]["encode"]["max"] > 14
        roles = {role["role"]: role["gpus"] for role in report["roles"]}
        assert roles == {"encoder": 2, "prefill": 1, "decode": 1}

    run_virtual(main())


def test_a_model_without_an_encoder_is_none(tmp_path: Path) -> None:
    path = written(tmp_path, "vllm-0.33", "Qwen/Qwen3-8B")
    with pytest.raises(ConfigError, match=r"workers\[0\].*role encoder: Qwen/Qwen3-8B has no enc"):
        resolve_scenario(load_scenario(path, need_trace=False))
