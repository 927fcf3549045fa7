"""Speculative decoding as clients and scrapers of a vLLM server see it."""

import json
from typing import Any

from frontier_mock.core.events import Drafted
from frontier_mock.pytest_plugin import StartCluster
from frontier_mock.testing import MockCluster

CONFIG = {
    "method": "ngram",
    "num_speculative_tokens": 3,
    "rejection_sample_method": "synthetic",
    "synthetic_acceptance_rates": [1.0, 1.0, 0.0],
}
DRAFTING = ("--speculative-config", json.dumps(CONFIG))


async def stream(cluster: MockCluster, tokens: int) -> list[tuple[int, Any]]:
    chunks = await cluster.openai().chat.completions.create(
        model=cluster.model,
        stream=True,
        max_tokens=tokens,
        messages=[{"role": "user", "content": "Say something about time."}],
        logprobs=True,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    return [(cluster.now_ns, chunk.choices[0]) async for chunk in chunks if chunk.choices]


async def test_a_chunk_carries_what_its_step_accepted(mock_cluster: StartCluster) -> None:
    cluster = await mock_cluster(flags=DRAFTING)
    heard = await stream(cluster, 12)
    carried = [
        (t_ns, len(choice.logprobs.content), choice.token_ids)
        for t_ns, choice in heard
        if choice.logprobs is not None and choice.logprobs.content
    ]
    # The prompt's step brings one token, each verification three, and the last one is cut at 12.
    assert [count for _, count, _ in carried] == [1, 3, 3, 3, 2]
    assert [len(ids) for *_, ids in carried] == [1, 3, 3, 3, 2]
    assert len({t_ns for t_ns, *_ in carried}) == 5
    (drafted,) = [event for event in cluster.events if isinstance(event, Drafted)]
    assert drafted.bursts == bytes([1, 3, 3, 3, 2])


async def scrape(cluster: MockCluster) -> dict[str, float]:
    async with cluster.aiohttp().get("/metrics") as response:
        text = await response.text()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("vllm:spec")]
    return {name: float(value) for name, value in lines if "_created" not in name}


async def test_metrics_count_drafts_by_position(mock_cluster: StartCluster) -> None:
    cluster = await mock_cluster(flags=DRAFTING)
    labels = f'{{engine="0",model_name="{cluster.model}"'
    before = await scrape(cluster)
    assert before[f"vllm:spec_decode_num_drafts_total{labels}}}"] == 0
    await stream(cluster, 12)
    counted = await scrape(cluster)
    assert counted == {
        f"vllm:spec_decode_num_drafts_total{labels}}}": 4,
        f"vllm:spec_decode_num_draft_tokens_total{labels}}}": 12,
        f"vllm:spec_decode_num_accepted_tokens_total{labels}}}": 8,
        f'vllm:spec_decode_num_accepted_tokens_per_pos_total{labels},position="0"}}': 4,
        f'vllm:spec_decode_num_accepted_tokens_per_pos_total{labels},position="1"}}': 4,
        f'vllm:spec_decode_num_accepted_tokens_per_pos_total{labels},position="2"}}': 0,
    }


async def test_a_server_without_drafts_has_none_of_it(mock_cluster: StartCluster) -> None:
    cluster = await mock_cluster()
    assert await scrape(cluster) == {}
