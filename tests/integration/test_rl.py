"""RL control through a real gateway: smg's own client, pausing and reweighting SGLang workers."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from frontier_mock.config.scenario import load_scenario
from tests.integration.fleet import fleet, router
from tests.integration.test_router_faults import until

pytestmark = pytest.mark.integration

SCENARIO = """\
name: rl
cluster:
  workers:
    - {name: w, count: 2, model: Qwen/Qwen3-8B, hardware: h800, engine: sglang-0.5.23, port: 0}
"""


OUTPUT_TOKENS = 3000
"""Long enough that a busy machine still finds everybody at work."""


async def rollout(client: httpx.AsyncClient, number: int) -> Any:
    """One sample, resubmitted with what it has whenever it is cut short."""
    prompt, tokens, logprobs, versions = list(range(300, 340 + number)), [], [], []
    while len(tokens) < OUTPUT_TOKENS:
        body = {
            "input_ids": prompt + tokens,
            "sampling_params": {"max_new_tokens": OUTPUT_TOKENS - len(tokens), "ignore_eos": True},
            "return_logprob": True,
        }
        answer = (await client.post("/generate", json=body)).json()
        meta = answer["meta_info"]
        new = [item[1] for item in meta["output_token_logprobs"]]
        assert new == answer["output_ids"]
        assert len(new) == meta["completion_tokens"]
        tokens += new
        logprobs += [item[0] for item in meta["output_token_logprobs"]]
        versions.append((meta["weight_version"], meta["finish_reason"]["type"]))
    return tokens, logprobs, versions


def update_weights(url: str, version: str) -> list[str]:
    """What a trainer does between two steps; returns who was told."""
    from smg.rl import RL, paused

    rl = RL(url)
    with paused(rl, "engine=sglang"):
        body = {"model_path": "/checkpoints/next", "weight_version": version}
        done = rl.fanout("update_weights_from_disk", body, selector="engine=sglang")
        return [str(result.body["message"]) for result in done.results.values()]


def running(url: str) -> bool:
    """Whether a worker generates for somebody."""
    (load,) = httpx.get(f"{url}/v1/loads", timeout=10).json()["loads"]
    return bool(load["num_running_reqs"] == 3)


async def test_smg_pauses_reweights_and_resumes_workers_mid_rollout(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO)
    log = tmp_path / "smg.log"
    with (
        fleet(load_scenario(str(path)), tmp_path, "--clock", "scaled:20") as served,
        router("smg", "round_robin", served.urls, log, more=["--enable-rl"]) as url,
    ):
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            alone = await rollout(client, 0)
            tasks = [asyncio.create_task(rollout(client, number)) for number in range(6)]
            await until(lambda: all(running(worker) for worker in served.urls))
            told = await asyncio.to_thread(update_weights, url, "step-1")
            results = await asyncio.gather(*tasks)
    assert len(told) == 2
    assert all("Weight version updated to step-1." in message for message in told)
    assert results[0][:2] == alone[:2]
    for tokens, logprobs, versions in results:
        assert len(tokens) == len(logprobs) == OUTPUT_TOKENS
        assert versions == [("default", "abort"), ("step-1", "length")]
