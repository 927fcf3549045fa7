"""What routers that do not run on a laptop call, request by request, and what they read.

production-stack (2026-08-05), llm-d's endpoint picker with its sidecar (2026-05-17), AIBrix
(2026-08-22), after specs/sglang_and_routers.md sections 7c, 7d and 7g. Scraped text goes through
prometheus_client's own parser, as their scrapers are no kinder.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from frontier_mock.testing import MockCluster, MockSpec, open_cluster, run_virtual

MODEL = "Qwen/Qwen3-8B"
SGLANG = """\
name: contracts
cluster:
  workers:
    - name: w
      model: Qwen/Qwen3-8B
      hardware: h800
      engine: sglang-0.5.23
      engine_args: {enable-metrics: true}
"""

Main = Callable[[httpx.AsyncClient, MockCluster], Awaitable[None]]


def with_cluster(spec: MockSpec, main: Main) -> None:
    async def outer() -> None:
        async with (
            open_cluster(spec) as cluster,
            cluster.httpx(httpx, timeout=None) as client,
        ):
            await main(client, cluster)

    run_virtual(outer())


async def scraped(client: httpx.AsyncClient) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples by name, in order, as (labels, value)."""
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


async def chat(client: httpx.AsyncClient, path: str = "/v1/chat/completions", **more: Any) -> Any:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], **more}
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_production_stack() -> None:
    """Static discovery with health checks that are real requests, and a scraper of old names."""

    async def main(client: httpx.AsyncClient, cluster: MockCluster) -> None:
        await chat(client, max_tokens=3, temperature=0)
        await client.post("/v1/completions", json={"model": MODEL, "prompt": "Hi", "max_tokens": 3})
        cards = (await client.get("/v1/models")).json()["data"]
        assert [(card["id"], card["parent"]) for card in cards] == [(MODEL, None)]
        samples = await scraped(client)
        for name in ("vllm:num_requests_running", "vllm:num_requests_waiting"):
            assert samples[name][-1][1] == 0
        hits = samples["vllm:gpu_prefix_cache_hits_total"][-1][1]
        queries = samples["vllm:gpu_prefix_cache_queries_total"][-1][1]
        assert queries > hits >= 0
        assert samples["vllm:gpu_prefix_cache_hit_rate"][-1][1] == pytest.approx(hits / queries)
        assert 0 <= samples["vllm:gpu_cache_usage_perc"][-1][1] <= 1

    with_cluster(MockSpec(model=MODEL, flags=("--sim-old-metric-names",)), main)


def test_old_names_are_gone_unless_asked_for() -> None:
    async def main(client: httpx.AsyncClient, cluster: MockCluster) -> None:
        assert not any("gpu_cache" in name for name in await scraped(client))

    with_cluster(MockSpec(model=MODEL), main)


def test_production_stacks_prefill_and_decode_legs_without_a_connector() -> None:
    """It asks prefill for one token, then sends the client's body to decode, and no parameters."""

    async def main(client: httpx.AsyncClient, cluster: MockCluster) -> None:
        first = await chat(client, max_tokens=1, max_completion_tokens=1)
        assert first["usage"]["completion_tokens"] == 1
        assert first.get("kv_transfer_params") is None
        both = await chat(client, max_tokens=8, ignore_eos=True)
        assert both["usage"]["completion_tokens"] == 8

    with_cluster(MockSpec(model=MODEL), main)


def test_llm_d_reads_gauges_of_vllm() -> None:
    """The first sample of a name wins; block size and count come as labels."""

    async def main(client: httpx.AsyncClient, cluster: MockCluster) -> None:
        await chat(client, max_tokens=2)
        samples = await scraped(client)
        for name in ("num_requests_waiting", "num_requests_running", "kv_cache_usage_perc"):
            assert samples[f"vllm:{name}"][0][1] == 0
        labels, value = samples["vllm:cache_config_info"][0]
        assert value == 1
        assert int(labels["block_size"]) == 16
        assert int(labels["num_gpu_blocks"]) > 1000

    with_cluster(MockSpec(model=MODEL), main)


def test_llm_d_renders_prompts_on_the_worker() -> None:
    """Its precise prefix cache needs the token ids that the engine will see."""

    async def main(client: httpx.AsyncClient, cluster: MockCluster) -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
        rendered = await client.post("/v1/chat/completions/render", json=body)
        assert rendered.status_code == 200
        ids = rendered.json()["token_ids"]
        counted = await client.post("/tokenize", json={**body, "add_generation_prompt": True})
        assert ids == counted.json()["tokens"]
        usage = (await chat(client, max_tokens=1))["usage"]
        assert usage["prompt_tokens"] == len(ids)

    with_cluster(MockSpec(model=MODEL, flags=("--enable-scale-out",)), main)


def test_llm_d_reads_gauges_of_sglang(tmp_path: Path) -> None:
    async def main(client: httpx.AsyncClient, cluster: MockCluster) -> None:
        samples = await scraped(client)
        for name in ("num_queue_reqs", "num_running_reqs", "token_usage"):
            assert samples[f"sglang:{name}"][0][1] == 0

    path = tmp_path / "scenario.yaml"
    path.write_text(SGLANG)
    with_cluster(MockSpec(scenario=str(path)), main)


def test_aibrix_reads_sglangs_histograms_and_tokenizes_remotely(tmp_path: Path) -> None:
    async def main(client: httpx.AsyncClient, cluster: MockCluster) -> None:
        await chat(client, max_tokens=4, ignore_eos=True)
        samples = await scraped(client)
        for name in (
            "e2e_request_latency_seconds",
            "time_to_first_token_seconds",
            "inter_token_latency_seconds",
        ):
            assert sum(value for _, value in samples[f"sglang:{name}_count"]) >= 1
        for name in ("num_running_reqs", "num_queue_reqs", "num_retracted_reqs", "gen_throughput"):
            assert f"sglang:{name}" in samples
        tokens = await client.post("/tokenize", json={"model": MODEL, "prompt": "Hello there"})
        answer = tokens.json()
        assert answer["count"] == len(answer["tokens"]) > 0
        assert answer["max_model_len"] > 0
        assert (await client.get("/health")).status_code == 200

    path = tmp_path / "scenario.yaml"
    path.write_text(SGLANG)
    with_cluster(MockSpec(scenario=str(path)), main)


def test_llm_ds_sidecar_relays_transfer_parameters(tmp_path: Path) -> None:
    """NIXLv2: nulls to prefill, what that answers to decode, the client's own limits there."""
    path = tmp_path / "scenario.yaml"
    path.write_text(
        "name: pd\n"
        "cluster:\n"
        "  workers:\n"
        f"    - {{name: p, model: {MODEL}, hardware: h800, role: prefill}}\n"
        f"    - {{name: d, model: {MODEL}, hardware: h800, role: decode}}\n"
    )

    async def main(client: httpx.AsyncClient, cluster: MockCluster) -> None:
        prefill, decode = cluster.urls
        nulls = dict.fromkeys(
            ("remote_engine_id", "remote_block_ids", "remote_host", "remote_port")
        )
        ask = {"do_remote_decode": True, "do_remote_prefill": False, **nulls}
        first = await chat(
            client,
            f"{prefill}/v1/chat/completions",
            max_tokens=1,
            max_completion_tokens=1,
            stream=False,
            kv_transfer_params=ask,
        )
        params = first["kv_transfer_params"]
        assert params["do_remote_prefill"] is True
        assert params["remote_block_ids"]
        second = await chat(
            client,
            f"{decode}/v1/chat/completions",
            max_tokens=6,
            ignore_eos=True,
            kv_transfer_params=params,
        )
        assert second["usage"]["completion_tokens"] == 6

    with_cluster(MockSpec(scenario=str(path)), main)


def test_production_stack_asks_who_sleeps_and_tokenizes_on_the_first_worker() -> None:
    """Its Kubernetes discovery leaves sleepers out; without a tokenizer of its own it asks one."""

    async def main(client: httpx.AsyncClient, cluster: MockCluster) -> None:
        assert (await client.get("/is_sleeping")).json() == {"is_sleeping": False}
        assert (await client.post("/sleep", params={"level": "1"})).status_code == 200
        assert (await client.get("/is_sleeping")).json() == {"is_sleeping": True}
        assert (await client.post("/wake_up")).status_code == 200
        assert (await client.get("/is_sleeping")).json() == {"is_sleeping": False}
        answer = await client.post("/tokenize", json={"model": MODEL, "prompt": "Hello there"})
        tokens = answer.json()["tokens"]
        asked = {"model": MODEL, "prompt": "Hello there", "max_tokens": 1}
        usage = (await client.post("/v1/completions", json=asked)).json()["usage"]
        assert usage["prompt_tokens"] == len(tokens)

    with_cluster(MockSpec(model=MODEL, flags=("--enable-sleep-mode",), dev_mode=True), main)


def test_llm_d_polls_models_for_adapters() -> None:
    async def main(client: httpx.AsyncClient, cluster: MockCluster) -> None:
        cards = (await client.get("/v1/models")).json()["data"]
        assert [(card["id"], card["parent"]) for card in cards] == [(MODEL, None), ("sql", MODEL)]

    flags = ("--enable-lora", "--max-loras", "2", "--lora-modules", "sql=/adapters/sql")
    with_cluster(MockSpec(model=MODEL, flags=flags), main)


def test_aibrix_reads_vllms_gauges_and_histograms() -> None:
    async def main(client: httpx.AsyncClient, cluster: MockCluster) -> None:
        await chat(client, max_tokens=4, ignore_eos=True)
        samples = await scraped(client)
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
            assert samples[f"vllm:{name}"][0][1] == 0
        for name in ("e2e_request_latency_seconds", "time_to_first_token_seconds"):
            assert samples[f"vllm:{name}_count"][0][1] == 1
        assert samples["vllm:inter_token_latency_seconds_count"][0][1] == 3

    with_cluster(MockSpec(model=MODEL), main)
