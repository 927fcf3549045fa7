"""Images through the `openai` package, unmodified, in virtual time."""

import base64
import struct

import openai
import pytest

from frontier_mock.testing import MockCluster, MockSpec, open_cluster, run_virtual

SEEING = MockSpec(model="Qwen/Qwen2.5-VL-7B-Instruct", flags=("--max-model-len", "32768"))


def image(color: int, side: int = 1024) -> dict[str, object]:
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + head + bytes([color])
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    return {"type": "image_url", "image_url": {"url": url}}


async def ttft_ms(cluster: MockCluster, text: str, *images: dict[str, object]) -> float:
    """Virtual time to the first token of an answer about images."""
    began_ns = cluster.now_ns
    async with cluster.openai() as client:
        stream = await client.chat.completions.create(
            model=cluster.model,
            messages=[{"role": "user", "content": [{"type": "text", "text": text}, *images]}],
            max_tokens=2,
            stream=True,
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                return (cluster.now_ns - began_ns) / 1e6
    raise AssertionError("no token came")


def test_encoding_is_part_of_time_to_first_token_and_is_done_once() -> None:
    async def main() -> None:
        async with open_cluster(SEEING) as cluster:
            first = await ttft_ms(cluster, "What is this?", image(1))
            again = await ttft_ms(cluster, "What is this?", image(1))
            # Other text before it: nothing of the prompt is cached, but the image is encoded.
            moved = await ttft_ms(cluster, "Now: what is this?", image(1))
            other = await ttft_ms(cluster, "Then what is that?", image(2))
            # 13.1 ms, by `cost.vision`.
            assert other - moved == pytest.approx(13.1, abs=0.5)
            assert first == pytest.approx(other, abs=1.0)
            assert again < moved / 2

    run_virtual(main())


def test_a_large_image_is_more_tokens_and_one_too_large_is_an_error() -> None:
    async def main() -> None:
        async with open_cluster(SEEING) as cluster, cluster.openai() as client:
            tokens = []
            for side in (28 * 10, 28 * 20):
                parts = [{"type": "text", "text": "?"}, image(1, side)]
                answer = await client.chat.completions.create(
                    model=cluster.model,
                    messages=[{"role": "user", "content": parts}],
                    max_tokens=1,
                )
                assert answer.usage is not None
                tokens.append(answer.usage.prompt_tokens)
            assert tokens[1] - tokens[0] == 400 - 100
            parts = [image(color, 3000) for color in range(3)]
            with pytest.raises(openai.BadRequestError, match="longer than the maximum model len"):
                await client.chat.completions.create(
                    model=cluster.model,
                    messages=[{"role": "user", "content": parts}],
                )

    run_virtual(main())
