"""vLLM's control plane for RL: pauses, refusals, sleep, weights and caches, in virtual time."""

import asyncio
import json
from dataclasses import replace

import pytest

from tests.serve.live import live
from tests.serve.rl import (
    GENERATE,
    GIGABYTE,
    GPUS,
    PROMPT,
    client_of,
    generate,
    in_virtual_time,
    rl_spec,
)


@pytest.mark.parametrize("mode", ["abort", "wait"])
@in_virtual_time
async def test_a_pause_refuses_newcomers_until_it_is_lifted(mode: str) -> None:
    async with live(rl_spec()) as server, client_of(server) as client:
        began = asyncio.create_task(generate(client, 200))
        await asyncio.sleep(0.03)
        assert (await client.post("/pause", params={"mode": mode})).json() == {"status": "paused"}
        (choice,) = (await began)["choices"]
        assert choice["finish_reason"] == ("abort" if mode == "abort" else "length")
        assert (await client.get("/is_paused")).json() == {"is_paused": True}
        assert (await client.get("/is_sleeping")).json() == {"is_sleeping": True}
        assert (await client.get("/health")).status_code == 200
        refused = await client.post(GENERATE, json={"token_ids": [1], "sampling_params": {}})
        assert refused.status_code == 503
        assert refused.json()["error"] == {
            "message": "Generation is paused. Please retry after it resumes.",
            "type": "ServiceUnavailableError",
            "param": None,
            "code": 503,
        }
        streamed = await client.post(
            "/v1/completions", json={"prompt": "x", "stream": True, "max_tokens": 3}
        )
        assert streamed.status_code == 200
        first, done = streamed.text.split("\n\n")[:2]
        assert json.loads(first.removeprefix("data: "))["error"]["code"] == 503
        assert done == "data: [DONE]"
        assert (await client.post("/resume")).json() == {"status": "resumed"}
        assert (await client.get("/is_paused")).json() == {"is_paused": False}
        assert (await generate(client))["choices"][0]["finish_reason"] == "length"


@in_virtual_time
async def test_what_is_kept_goes_on_and_newcomers_wait() -> None:
    async with live(rl_spec()) as server, client_of(server) as client:
        undisturbed = await generate(client, 300)
        began = asyncio.create_task(generate(client, 300, stream=False))
        await asyncio.sleep(0.03)
        await client.post("/pause", params={"mode": "keep", "clear_cache": "false"})
        later = asyncio.create_task(generate(client))
        await asyncio.sleep(0.5)
        assert not began.done()
        await client.post("/resume")
        assert (await began)["choices"] == undisturbed["choices"]
        assert (await later)["choices"][0]["finish_reason"] == "length"


@in_virtual_time
async def test_an_update_takes_the_time_its_bytes_need_and_labels_tokens() -> None:
    async with live(rl_spec()) as server, client_of(server) as client:
        undisturbed = await generate(client, 300)
        began = asyncio.create_task(generate(client, 300))
        await asyncio.sleep(0.03)
        await client.post("/pause", params={"mode": "keep"})
        sequence = next(iter(server.driver.delivery.flights))
        before = server.cluster.tokens(sequence)
        init = {"init_info": {"master_address": "127.0.0.1", "master_port": 1, "world_size": 3}}
        said = await client.post("/init_weight_transfer_engine", json=init)
        assert said.json() == {"message": "Weight transfer initialized"}
        early = await client.post("/update_weights", json={"update_info": {}})
        assert early.status_code == 500
        assert "start_weight_update must be called" in early.json()["error"]["message"]
        assert (await client.post("/start_weight_update")).json() == {
            "message": "Weight update started"
        }
        again = await client.post("/start_weight_update")
        assert "already active" in again.json()["error"]["message"]
        shapes = {"names": ["a", "b"], "dtype_names": ["bfloat16", "float32"]}
        info = {**shapes, "shapes": [[GIGABYTE, 4], [GIGABYTE, 2]]}
        took = []
        for update in (info, {"names": [], "dtype_names": [], "shapes": []}):
            at_ns = server.driver.now_ns()
            said = await client.post("/update_weights", json={"update_info": update})
            assert said.json() == {"message": "Weights updated"}
            took.append(server.driver.now_ns() - at_ns)
        # 16 GB over 40 GB/s; an update without names repeats the one before.
        assert took == [400_000_000, 400_000_000]
        said = await client.post("/finish_weight_update", json={"weight_version": "step-1"})
        assert said.json() == {"message": "Weight update finished"}
        assert (await client.get("/weight_info")).json() == {"weight_version": "step-1"}
        await client.post("/resume")
        (choice,) = (await began)["choices"]
        assert choice["token_ids"] == undisturbed["choices"][0]["token_ids"]
        assert choice["weight_versions"] == [
            {"version": "default", "start": 0, "end": before},
            {"version": "step-1", "start": before, "end": 300},
        ]
        assert 0 < before < 300
        metrics = (await client.get("/metrics")).text
        name = "vllm:rl_weight_update_operation"
        assert f'{name}_duration_seconds_sum{{operation="update"}} 0.8' in metrics
        assert f'{name}s_in_flight{{operation="update"}} 0.0' in metrics


@in_virtual_time
async def test_without_weight_transfer_an_update_fails_as_a_worker_does() -> None:
    spec = rl_spec(gpus=replace(GPUS, weight_transfer="", tp=1))
    async with live(spec) as server, client_of(server) as client:
        for path in ("/start_weight_update", "/finish_weight_update"):
            answer = await client.post(path)
            assert answer.status_code == 500
            assert answer.json()["error"]["message"].startswith(
                "Call to collective_rpc method failed: Weight transfer not configured."
            )


@in_virtual_time
async def test_sleep_moves_the_weights_and_comes_back_in_parts() -> None:
    async with live(rl_spec()) as server, client_of(server) as client:
        first = await generate(client)
        at_ns = server.driver.now_ns()
        said = await client.post("/sleep", params={"level": 1})
        assert said.json() == {"status": "sleeping", "level": 1}
        # 20 ms to settle, then 8 GB over 50 GB/s.
        assert server.driver.now_ns() - at_ns == 180_000_000
        state = 'vllm:engine_sleep_state{engine="0",model_name="mock",sleep_state='
        metrics = (await client.get("/metrics")).text
        assert f'{state}"awake"}} 0.0' in metrics
        assert f'{state}"weights_offloaded"}} 1.0' in metrics
        waiting = asyncio.create_task(generate(client))
        await asyncio.sleep(0.03)
        woken = await client.post("/wake_up", params={"tags": "weights"})
        assert woken.json() == {"status": "sleeping", "tags": ["weights"]}
        assert (await client.get("/is_sleeping")).json() == {"is_sleeping": True}
        assert not waiting.done()
        woken = await client.post("/wake_up", params={"tags": ["kv_cache"]})
        assert woken.json() == {"status": "awake", "tags": ["kv_cache"]}
        assert f'{state}"awake"}} 1.0' in (await client.get("/metrics")).text
        assert (await waiting)["choices"] == first["choices"]
        assert (await client.get("/is_sleeping")).json() == {"is_sleeping": False}
        # Level 2 forgets them: nothing has to move.
        at_ns = server.driver.now_ns()
        await client.post("/sleep", params={"level": 2})
        assert (await client.post("/wake_up")).json() == {"status": "awake", "tags": None}
        assert server.driver.now_ns() - at_ns == 20_000_000
        # Level 0 only pauses.
        await client.post("/sleep", params={"level": 0, "mode": "keep"})
        scheduling = await client.post("/wake_up", params={"tags": "scheduling"})
        assert scheduling.json() == {"status": "awake", "tags": ["scheduling"]}


@in_virtual_time
async def test_the_prefix_cache_is_reset_unless_somebody_holds_it() -> None:
    async with live(rl_spec()) as server, client_of(server) as client:
        await generate(client)
        worker = server.cluster.workers[0]
        assert worker.kv.num_cached > 0
        assert (await client.post("/reset_prefix_cache")).json() == {"success": True}
        assert worker.kv.num_cached == 0
        undisturbed = await generate(client, 300)
        began = asyncio.create_task(generate(client, 300))
        await asyncio.sleep(0.03)
        await client.post("/pause", params={"mode": "keep"})
        assert (await client.post("/reset_prefix_cache")).json() == {"success": False}
        retracting = {"reset_running_requests": "true"}
        forced = await client.post("/reset_prefix_cache", params=retracting)
        assert forced.json() == {"success": True}
        assert worker.kv.num_cached == 0
        await client.post("/resume")
        assert (await began)["choices"] == undisturbed["choices"]


@in_virtual_time
async def test_releasing_the_kv_cache_needs_an_engine_at_rest() -> None:
    async with live(rl_spec()) as server, client_of(server) as client:
        early = await client.post("/release_kv_cache_memory")
        assert early.status_code == 500
        assert "requires a completed pause first" in early.json()["error"]["message"]
        await client.post("/pause")
        assert (await client.post("/release_kv_cache_memory")).json() == {
            "status": "kv_cache_released"
        }
        assert (await client.post("/wake_up", params={"tags": "kv_cache"})).json()[
            "status"
        ] == "awake"
        assert (await generate(client))["choices"][0]["finish_reason"] == "length"


@in_virtual_time
async def test_the_rest_answers_in_vllms_shapes() -> None:
    async with live(rl_spec()) as server, client_of(server) as client:
        assert (await client.get("/get_world_size")).json() == {"world_size": 2}
        info = (await client.get("/server_info", params={"config_format": "json"})).json()
        assert info["vllm_config"]["model_config"]["dtype"] == "torch.bfloat16"
        assert info["vllm_config"]["weight_transfer_config"] == {"backend": "nccl"}
        rpc = await client.post("/collective_rpc", json={"method": "skyrl_start_weight_update"})
        assert rpc.json() == {"results": [None, None]}
        missing = await client.post("/collective_rpc", json={})
        assert missing.json()["error"]["message"] == "Missing 'method' in request body"
        for path in ("/reset_mm_cache", "/reset_encoder_cache"):
            assert (await client.post(path)).content == b""
        sums = (await client.post("/weight_checker", json={"action": "checksum"})).json()
        assert len(sums["checksums"]) == 2
        compared = {"action": "compare", "baseline": sums["checksums"]}
        same = await client.post("/weight_checker", json=compared)
        assert same.json() == {"match": True, "mismatches": []}
        named = await client.post("/update_weight_version", json={"new_version": "v2"})
        assert named.json() == {"success": True, "new_version": "v2"}
        other = await client.post("/weight_checker", json=compared)
        assert other.json() == {"match": False, "mismatches": ["rank0", "rank1"]}


@pytest.mark.parametrize(
    ("method", "path", "content", "said"),
    [
        ("POST", "/pause?mode=never", b"", "'abort', 'wait' or 'keep'"),
        ("POST", "/sleep?level=3", b"", "less than or equal to 2"),
        ("POST", "/sleep?level=x", b"", "valid integer"),
        ("POST", "/reset_prefix_cache?reset_running_requests=maybe", b"", "valid boolean"),
        ("POST", "/abort_requests", b"{", "Invalid JSON format"),
        ("POST", "/abort_requests", b"[]", "Request body must be a JSON object"),
        ("POST", "/collective_rpc", b"[]", "Request body must be a JSON object"),
        ("POST", "/update_weights", b"{}", "Field required"),
        ("POST", "/update_weights", b'{"update_info": 5}', "valid dictionary"),
        ("POST", "/update_weight_version", b'{"new_version": 5}', "valid string"),
        ("POST", "/weight_checker", b'{"action": "look"}', "'checksum', 'reset' or 'compare'"),
        ("POST", "/weight_checker", b'{"action": "compare"}', "requires a 'baseline' object"),
    ],
)
@in_virtual_time
async def test_bad_control_requests_are_refused(
    method: str, path: str, content: bytes, said: str
) -> None:
    async with live(rl_spec()) as server, client_of(server) as client:
        headers = {"content-type": "application/json"}
        answer = await client.request(method, path, content=content, headers=headers)
        assert answer.status_code == 400
        assert said in answer.json()["error"]["message"]
        assert (await generate(client))["choices"][0]["finish_reason"] == "length"


@in_virtual_time
async def test_a_server_with_ranks_is_paused_when_all_of_them_rest() -> None:
    spec = rl_spec(ranks=2)
    async with live(spec) as server, client_of(server) as client:
        long = [asyncio.create_task(generate(client, 200, [*PROMPT, i])) for i in range(4)]
        await asyncio.sleep(0.03)
        await client.post("/pause", params={"mode": "wait"})
        assert all(task.done() for task in long)
        ranks = {event.worker for event in server.cluster.log.events if event.rid >= 0}
        assert ranks == {0, 1}
        refused = await client.post(GENERATE, json={"token_ids": [1], "sampling_params": {}})
        assert refused.status_code == 503
        assert (await client.post("/reset_prefix_cache")).json() == {"success": True}
        await client.post("/resume")
        pinned = {"x-data-parallel-rank": "1"}
        asked = {"token_ids": PROMPT, "sampling_params": {"max_tokens": 3}}
        assert (await client.post(GENERATE, json=asked, headers=pinned)).status_code == 200
        assert server.cluster.log.events[-1].worker == 1
        beyond = {"x-data-parallel-rank": "2"}
        answer = await client.post(GENERATE, json=asked, headers=beyond)
        assert answer.status_code == 400
        assert "data_parallel_rank 2 is out of range [0, 2)." in answer.json()["error"]["message"]
