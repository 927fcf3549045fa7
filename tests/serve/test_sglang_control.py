"""SGLang's control plane, in virtual time: what RL trainers ask of it, and what it refuses."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from frontier_mock.testing import MockCluster, MockSpec, open_cluster, run_virtual

SCENARIO = """\
name: rl
cluster:
  workers:
    - name: w
      model: Qwen/Qwen3-8B
      hardware: h800
      engine: sglang-0.5.23
      engine_args: {{{args}}}
"""


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., Any]:
    """Run a coroutine function with a client of a fresh SGLang server, in virtual time."""

    def run(
        main: Callable[[httpx.AsyncClient, MockCluster], Awaitable[Any]], args: str = ""
    ) -> Any:
        path = tmp_path / "scenario.yaml"
        path.write_text(SCENARIO.format(args=args))

        async def outer() -> Any:
            async with (
                open_cluster(MockSpec(scenario=str(path))) as cluster,
                cluster.httpx(httpx, timeout=None) as client,
            ):
                return await main(client, cluster)

        return run_virtual(outer())

    return run


async def generate(client: httpx.AsyncClient, ids: list[int], tokens: int, **more: Any) -> Any:
    body = {
        "input_ids": ids,
        "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True},
        "return_logprob": True,
        **more,
    }
    return (await client.post("/generate", json=body)).json()


async def call(client: httpx.AsyncClient, path: str, body: Any = None) -> httpx.Response:
    return await client.post(path, json={} if body is None else body)


PROMPT = list(range(300, 340))


def test_a_partial_rollout_goes_on_where_it_was_aborted(play: Callable[..., Any]) -> None:
    """slime's loop: abort all, flush, new weights, resubmit prompt and partial output."""

    async def main(client: httpx.AsyncClient, cluster: MockCluster) -> None:
        whole = await generate(client, PROMPT, 60)
        started = asyncio.create_task(generate(client, PROMPT, 60))
        await asyncio.sleep(0.2)
        assert (await call(client, "/pause_generation")).json() == {
            "message": "Generation paused successfully.",
            "status": "ok",
        }
        partial = await started
        meta = partial["meta_info"]
        assert meta["finish_reason"]["type"] == "abort"
        done = meta["completion_tokens"]
        assert 0 < done < 60
        assert len(meta["output_token_logprobs"]) == len(partial["output_ids"]) == done
        assert (await client.get("/flush_cache")).status_code == 200
        update = {"model_path": "/new", "weight_version": "2", "flush_cache": True}
        answer = await call(client, "/update_weights_from_disk", update)
        assert answer.json() == {
            "success": True,
            "message": "Succeeded to update model weights. Weight version updated to 2.",
            "num_paused_requests": 0,
        }
        resumed = asyncio.create_task(generate(client, PROMPT + partial["output_ids"], 60 - done))
        await asyncio.sleep(0.5)
        assert not resumed.done()
        await call(client, "/continue_generation")
        rest = await resumed
        assert partial["output_ids"] + rest["output_ids"] == whole["output_ids"]
        both = meta["output_token_logprobs"] + rest["meta_info"]["output_token_logprobs"]
        assert both == whole["meta_info"]["output_token_logprobs"]
        assert rest["meta_info"]["weight_version"] == "2"
        assert "weight_versions" not in rest["meta_info"]

    play(main)


@pytest.mark.parametrize("mode", ["in_place", "retract"])
def test_versions_span_a_sequence_that_lives_through_an_update(
    play: Callable[..., Any], mode: str
) -> None:
    async def main(client: httpx.AsyncClient, cluster: MockCluster) -> None:
        started = asyncio.create_task(generate(client, PROMPT, 60))
        await asyncio.sleep(0.2)
        await call(client, "/pause_generation", {"mode": mode})
        assert (await client.get("/ready")).status_code == 503
        paused_s = cluster.now_ns / 1e9
        flush = await client.get("/flush_cache")
        assert flush.status_code == (400 if mode == "in_place" else 200)
        await call(client, "/init_weights_update_group", GROUP)
        bucket = {"names": ["a"], "dtypes": ["bfloat16"], "shapes": [[1000, 1000, 2000]]}
        answer = await call(
            client,
            "/update_weights_from_distributed",
            {**bucket, "flush_cache": mode == "retract", "weight_version": "v2"},
        )
        assert answer.status_code == 200, answer.text
        # Four gigabytes at 40 GB/s.
        assert cluster.now_ns / 1e9 - paused_s >= 0.1
        await call(client, "/continue_generation")
        done = await started
        meta = done["meta_info"]
        (first, second) = meta["weight_versions"]
        assert first["version"] == "default"
        assert first["start"] == 0
        assert second == {"version": "v2", "start": first["end"], "end": 60}
        assert meta["num_retractions"] == (mode == "retract")
        assert meta["completion_tokens"] == 60

    play(main)


GROUP = {
    "master_address": "10.0.0.1",
    "master_port": "29500",
    "rank_offset": 1,
    "world_size": 9,
}


def test_an_update_without_a_pause_waits_and_makes_others_wait(play: Callable[..., Any]) -> None:
    async def main(client: httpx.AsyncClient, cluster: MockCluster) -> None:
        first = asyncio.create_task(generate(client, PROMPT, 40))
        await asyncio.sleep(0.05)
        update = asyncio.create_task(
            call(client, "/update_weights_from_disk", {"model_path": "m", "weight_version": "2"})
        )
        await asyncio.sleep(0.01)
        second = asyncio.create_task(generate(client, PROMPT, 1))
        one, answer, two = await asyncio.gather(first, update, second)
        assert answer.status_code == 200
        assert one["meta_info"]["weight_version"] == "default"
        assert one["meta_info"]["completion_tokens"] == 40
        # Sixteen gigabytes from a shared disk take seconds, and the second request sat through it.
        assert two["meta_info"]["e2e_latency"] > 5
        assert two["meta_info"]["weight_version"] == "2"
        assert two["meta_info"]["cached_tokens"] == 0

    play(main)


def test_memory_is_let_go_only_when_idle_and_only_once(play: Callable[..., Any]) -> None:
    async def main(client: httpx.AsyncClient, cluster: MockCluster) -> None:
        started = asyncio.create_task(generate(client, PROMPT, 40))
        await asyncio.sleep(0.05)
        busy = await call(client, "/release_memory_occupation")
        assert busy.status_code == 400
        assert "only when server is idle" in busy.json()["error"]["message"]
        await started
        assert (await call(client, "/release_memory_occupation")).json() is None
        again = await call(client, "/release_memory_occupation", {"tags": ["weights"]})
        assert again.status_code == 400
        assert (
            await call(client, "/resume_memory_occupation", {"tags": ["weights"]})
        ).json() is None
        rest = {"tags": ["kv_cache", "cuda_graph"]}
        assert (await call(client, "/resume_memory_occupation", rest)).status_code == 200
        warm = await generate(client, PROMPT, 1)
        assert warm["meta_info"]["cached_tokens"] == 0

    play(main)


def test_requests_of_a_flush_wait_for_idleness_as_long_as_they_say(
    play: Callable[..., Any],
) -> None:
    async def main(client: httpx.AsyncClient, cluster: MockCluster) -> None:
        started = asyncio.create_task(generate(client, PROMPT, 40))
        await asyncio.sleep(0.05)
        assert (await client.get("/flush_cache")).status_code == 400
        patient = await client.post("/flush_cache?timeout=60")
        assert patient.status_code == 200
        assert started.done() or (await started)
        assert (await client.get("/flush_cache?timeout=x")).status_code == 400

    play(main)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/pause_generation", {"mode": "nap"}, "mode"),
        ("/update_weights_from_disk", {}, "model_path"),
        ("/update_weights_from_distributed", {"names": []}, "dtypes"),
        (
            "/update_weights_from_distributed",
            {"names": [], "dtypes": [], "shapes": []},
            "not in []",
        ),
        ("/init_weights_update_group", {**GROUP, "master_port": "x"}, "master_port"),
        ("/destroy_weights_update_group", {"group_name": "x"}, "does not exist"),
        ("/end_weight_update", {}, "no weight-update session is open"),
        ("/load_lora_adapter", {"lora_name": "a", "lora_path": "b"}, "LoRA is not enabled"),
        ("/open_session", {"capacity_of_str_len": 1, "streaming": True}, "disabled"),
        ("/release_memory_occupation", {"tags": 3}, "tags"),
        ("/slow_down", {"forward_sleep_time": 2.0**63}, "is more than 86400 seconds"),
    ],
)
def test_what_is_wrong_is_refused_and_said(
    play: Callable[..., Any], path: str, body: Any, message: str
) -> None:
    async def main(client: httpx.AsyncClient, cluster: MockCluster) -> None:
        answer = await call(client, path, body)
        assert answer.status_code == 400
        assert message in answer.text

    play(main)


def test_the_rest_answers_as_the_real_one(play: Callable[..., Any]) -> None:
    async def main(client: httpx.AsyncClient, cluster: MockCluster) -> None:
        said = {
            "/start_profile": "Start profiling.\n",
            "/freeze_gc": "Garbage collection frozen.\n",
            "/start_expert_distribution_record": "Start recording the expert distribution.\n",
        }
        for path, text in said.items():
            assert (await client.get(path)).text == text
        session = (await call(client, "/open_session", {"capacity_of_str_len": 9})).json()
        again = {"capacity_of_str_len": 9, "session_id": session}
        assert (await call(client, "/open_session", again)).status_code == 400
        assert (await call(client, "/close_session", {"session_id": session})).status_code == 200
        assert (await call(client, "/open_session", again)).json() == session
        before = (await call(client, "/weights_checker")).json()["per_engine_checksum"]
        answer = await call(client, "/update_weight_version", {"new_version": "7"})
        assert answer.json()["new_version"] == "7"
        assert (await client.get("/model_info")).json()["weight_version"] == "7"
        assert (await call(client, "/weights_checker")).json()["per_engine_checksum"] != before
        weight = await call(client, "/get_weights_by_name", {"name": "w", "truncate_size": 3})
        assert len(weight.json()) == 3

    play(main)


def test_a_worker_can_be_slowed_down_and_let_go(play: Callable[..., Any]) -> None:
    async def main(client: httpx.AsyncClient, cluster: MockCluster) -> None:
        async def latency_s() -> float:
            return float((await generate(client, PROMPT, 20))["meta_info"]["e2e_latency"])

        before = await latency_s()
        await call(client, "/slow_down", {"forward_sleep_time": 0.02})
        slow = await latency_s()
        await call(client, "/slow_down", {"forward_sleep_time": None})
        after = await latency_s()
        assert slow - before == pytest.approx(20 * 0.02, abs=0.03)
        assert after < before + 0.01

    play(main)
