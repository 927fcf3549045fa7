"""Speculative decoding as clients and scrapers of a server see it."""

import json
from pathlib import Path
from typing import Any

import pytest

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.vllm_flags import parse_serve
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


TOLD = {
    "mean_acceptance_length": 3.0,
    "draft_acceptance_rate": pytest.approx(2 / 3),
    "acceptance_histogram": [0, 0, 4, 0],
    "num_spec_steps": 4,
    "num_accepted_draft_tokens": 8,
    "num_draft_tokens": 12,
    "num_spec_tokens": 3,
}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_an_answer_says_what_became_of_its_drafts(
    mock_cluster: StartCluster, path: str
) -> None:
    flags = (*DRAFTING, "--per-request-spec-decode-metrics", "summary")
    client = (await mock_cluster(flags=flags)).aiohttp()
    asked: dict[str, Any] = {"max_tokens": 12, "ignore_eos": True}
    if "chat" in path:
        asked["messages"] = [{"role": "user", "content": "time"}]
    else:
        asked["prompt"] = "time"
    async with client.post(path, json=asked) as response:
        metrics = (await response.json())["metrics"]
    assert metrics["time_to_first_token_ms"] is None
    nulls = {"per_step_accepted": None, "per_step_drafted": None}
    assert metrics["speculative_decoding"] == TOLD | nulls
    async with client.post(path, json={**asked, "n": 2}) as response:
        assert (await response.json())["metrics"] is None
    streamed = {**asked, "stream": True, "stream_options": {"include_usage": True}}
    async with client.post(path, json=streamed) as response:
        lines = [line async for line in response.content if line.startswith(b"data: {")]
    assert json.loads(lines[-1][6:])["metrics"] == {"speculative_decoding": TOLD}
    assert all(b'"metrics"' not in line for line in lines[:-1])


async def test_answers_are_silent_unless_that_is_asked_for(mock_cluster: StartCluster) -> None:
    cluster = await mock_cluster(flags=DRAFTING)
    body = {"prompt": "time", "max_tokens": 12, "ignore_eos": True}
    async with cluster.aiohttp().post("/v1/completions", json=body) as response:
        assert (await response.json())["metrics"] is None


def test_without_drafts_there_is_nothing_to_tell_of() -> None:
    with pytest.raises(ConfigError, match="summary needs --speculative-config"):
        parse_serve(["m", "--per-request-spec-decode-metrics", "summary"], {})


async def test_a_server_without_drafts_has_none_of_it(mock_cluster: StartCluster) -> None:
    cluster = await mock_cluster()
    assert await scrape(cluster) == {}


SGLANG = """
name: drafting
cluster:
  workers:
    - engine: sglang-0.5.23
      model: meta-llama/Llama-3.1-8B-Instruct
      hardware: h800
      engine_args:
        enable-metrics: true
        speculative-algorithm: EAGLE3
        speculative-draft-model-path: some/head
        speculative-num-steps: 3
        speculative-eagle-topk: 1
        speculative-num-draft-tokens: 4
      speculation: {acceptance_rates: [1.0, 1.0, 0.0]}
"""


async def test_sglang_says_what_became_of_a_requests_drafts(
    mock_cluster: StartCluster, tmp_path: Path
) -> None:
    (tmp_path / "drafting.yaml").write_text(SGLANG)
    cluster = await mock_cluster(str(tmp_path / "drafting.yaml"))
    client = cluster.aiohttp()
    body = {
        "text": "Say something about time.",
        "sampling_params": {"max_new_tokens": 12, "ignore_eos": True},
    }
    async with client.post("/generate", json={**body, "stream": True}) as response:
        chunks = [
            json.loads(line[6:])["meta_info"]
            async for line in response.content
            if line.startswith(b"data: {")
        ]
    # The prompt's step brings one token, each verification three, and the last one is cut at 12.
    assert [meta["completion_tokens"] for meta in chunks] == [1, 4, 7, 10, 12]
    assert all("spec_verify_ct" not in meta for meta in chunks[:-1])
    last = chunks[-1]
    assert last["spec_verify_ct"] == 4
    assert (last["spec_num_correct_drafts"], last["spec_num_proposed_drafts"]) == (8, 12)
    assert last["spec_accept_rate"] == pytest.approx(2 / 3)
    assert last["spec_accept_length"] == 3.0
    assert last["spec_correct_drafts_histogram"] == [0, 0, 4]
    async with client.get("/metrics") as response:
        text = await response.text()
    gauges = {
        line.partition("{")[0]: float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith("sglang:spec_")
    }
    assert gauges["sglang:spec_accept_length"] == 3.0
    assert gauges["sglang:spec_accept_rate"] == pytest.approx(2 / 3)
    assert gauges["sglang:spec_num_steps"] == 3
    assert gauges["sglang:spec_num_draft_tokens"] == 4
    async with client.get("/v1/loads?include=spec") as response:
        (load,) = (await response.json())["loads"]
    assert load["speculative"] == {"accept_length": 3.0, "accept_rate": pytest.approx(2 / 3)}
    async with client.get("/v1/loads?include=queues") as response:
        assert "speculative" not in (await response.json())["loads"][0]
    # Eleven tokens after the first one, each with its part of a verification's time.
    itl = {
        line.rsplit(" ", 1)[0].partition("{")[0]: float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith("sglang:inter_token_latency_seconds_")
    }
    assert itl["sglang:inter_token_latency_seconds_count"] == 11
    took_s = last["e2e_latency"] - chunks[0].get("e2e_latency", 0.0)
    assert 0 < itl["sglang:inter_token_latency_seconds_sum"] < took_s


async def test_loads_say_nothing_of_drafts_before_there_are_any(
    mock_cluster: StartCluster, tmp_path: Path
) -> None:
    (tmp_path / "drafting.yaml").write_text(SGLANG)
    cluster = await mock_cluster(str(tmp_path / "drafting.yaml"))
    async with cluster.aiohttp().get("/v1/loads") as response:
        assert "speculative" not in (await response.json())["loads"][0]
