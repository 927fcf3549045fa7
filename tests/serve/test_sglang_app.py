"""SGLang's HTTP surface: routes, keys, health, streams, aborts, queue limits, virtual time."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from frontier_mock.client.actor import Actor
from frontier_mock.core.events import Submitted
from frontier_mock.drive.pace import ClockSpec
from frontier_mock.serve.up import ClusterServer, ServeSpec
from frontier_mock.serving.tiers.specs import HostTierSpec, LaneSpec, StorageSpec
from tests.serve.live import WARP, live
from tests.serve.sglang_live import SCHEDULER, sglang_spec

CHAT = "/v1/chat/completions"
HELLO = {"text": "hello", "sampling_params": {"max_new_tokens": 5}}
LONG = {"text": "hello", "sampling_params": {"max_new_tokens": 3000}}


@asynccontextmanager
async def opened(spec: ServeSpec) -> AsyncIterator[tuple[ClusterServer, aiohttp.ClientSession]]:
    async with live(spec) as server, aiohttp.ClientSession(server.urls[0]) as client:
        yield server, client


async def frames(response: aiohttp.ClientResponse) -> list[Any]:
    parts = (await response.text()).split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


async def metrics(client: aiohttp.ClientSession) -> dict[str, dict[tuple[str, ...], float]]:
    """Values by sample name and the values of its labels that tests look at."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    text = await (await client.get("/metrics")).text()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            names = ("is_streaming", "cache_source", "endpoint", "status_code", "stage")
            key = tuple(sample.labels[name] for name in names if name in sample.labels)
            found.setdefault(sample.name, {})[key] = sample.value
    return found


async def test_generate_whole_and_streamed_say_the_same() -> None:
    async with opened(sglang_spec(WARP)) as (_, client):
        response = await client.post("/generate", json=HELLO)
        body = await response.json()
        assert len(body["output_ids"]) == 5
        assert response.headers["x-frontier-output-tokens"] == "5"
        chunks = await frames(await client.post("/generate", json={**HELLO, "stream": True}))
        assert [len(chunk["output_ids"]) for chunk in chunks] == [1, 2, 3, 4, 5]
        assert chunks[-1]["text"] == body["text"]
        assert chunks[-1]["meta_info"]["cached_tokens"] == 4
        assert chunks[-1]["meta_info"]["cached_tokens_details"] == {"device": 4, "host": 0}
        put = await client.put("/generate", json=HELLO)
        assert (await put.json())["output_ids"] == body["output_ids"]


async def test_chat_and_completions_in_sglangs_shapes() -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "model": "any"}
    async with opened(sglang_spec(WARP, enable_cache_report=True)) as (_, client):
        body = await (await client.post(CHAT, json=chat)).json()
        assert list(body) == ["id", "object", "created", "model", "choices", "usage", "metadata"]
        assert body["model"] == "any"
        assert not body["id"].startswith("chatcmpl-")
        assert body["choices"][0]["message"]["reasoning_content"] is None
        assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
        streamed = await client.post(
            CHAT, json={**chat, "stream": True, "stream_options": {"include_usage": True}}
        )
        chunks = await frames(streamed)
        assert chunks[0]["choices"][0]["delta"] == {
            "reasoning_content": None,
            "role": "assistant",
            "content": "",
        }
        text = "".join(
            c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]
        )
        assert text == body["choices"][0]["message"]["content"]
        assert chunks[-2]["choices"][0]["delta"] == {"reasoning_content": None}
        assert chunks[-2]["choices"][0]["finish_reason"] == "length"
        assert chunks[-1]["usage"]["completion_tokens"] == 4
        done = await client.post("/v1/completions", json={"prompt": "x", "stream": True})
        parts = await frames(done)
        assert parts[-1]["choices"][0]["finish_reason"] == "length"
        assert all(part["usage"] is None for part in parts)
        assert len(parts) == 16


async def test_parallel_samples_find_their_prompt_cached() -> None:
    async with opened(sglang_spec(WARP)) as (server, client):
        body = {"text": "x" * 40, "sampling_params": {"max_new_tokens": 3, "n": 3}}
        response = await client.post("/generate", json=body)
        items = await response.json()
        assert [item["meta_info"]["cached_tokens"] for item in items] == [39, 39, 39]
        submitted = [e for e in server.cluster.log.events if isinstance(e, Submitted)]
        assert [event.max_tokens for event in submitted] == [1, 3, 3, 3]
        arrival = int(response.headers["x-frontier-arrival-ns"])
        assert arrival == submitted[0].t_ns < submitted[1].t_ns
        chunks = await frames(await client.post("/generate", json={**body, "stream": True}))
        assert {chunk["index"] for chunk in chunks} == {0, 1, 2}


async def test_samples_keep_their_actors_lease() -> None:
    body = {"text": ["ab", "cd"], "sampling_params": {"max_new_tokens": 3, "n": 2}}
    async with opened(sglang_spec(WARP)) as (server, client):
        async with Actor(server.urls[0], "a") as actor:
            response = await client.post("/generate", json=body, headers={"tracestate": "fmock=a"})
            assert len(await response.json()) == 4
            finish_s = int(response.headers["x-frontier-finish-ns"]) / 1e9
            assert await actor.sleep(1.0) == pytest.approx(finish_s + 1.0, abs=1e-9)
        assert server.driver.keeper.guesses == 0


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "answer"),
    [
        ("GET", "/nowhere", None, 404, {"detail": "Not Found"}),
        ("GET", "/generate", None, 405, {"detail": "Method Not Allowed"}),
        (
            "POST",
            "/generate",
            {},
            400,
            {"error": {"message": "Either text, input_ids or input_embeds should be provided."}},
        ),
        (
            "POST",
            CHAT,
            {"messages": []},
            400,
            {
                "object": "error",
                "message": "Messages cannot be empty.",
                "type": "BadRequestError",
                "param": None,
                "code": 400,
            },
        ),
        (
            "GET",
            "/v1/models/other",
            None,
            404,
            {
                "error": {
                    "message": "The model 'other' does not exist",
                    "type": "invalid_request_error",
                    "param": "model",
                    "code": "model_not_found",
                }
            },
        ),
        (
            "GET",
            "/v1/loads?include=core,sun",
            None,
            400,
            {
                "object": "error",
                "message": (
                    "Invalid include sections: {'sun'}. Valid options: "
                    "['all', 'core', 'disagg', 'lora', 'memory', 'queues', 'spec']"
                ),
                "type": "400",
                "param": None,
                "code": 400,
            },
        ),
    ],
)
async def test_each_route_has_its_envelope(
    method: str, path: str, body: object, status: int, answer: object
) -> None:
    async with opened(sglang_spec()) as (_, client):
        response = await client.request(method, path, json=body)
        assert response.status == status
        assert await response.json() == answer


async def test_a_stream_of_generate_has_begun_before_it_is_refused() -> None:
    async with opened(sglang_spec()) as (_, client):
        body = {"text": "x", "stream": True, "sampling_params": {"temperature": -1}}
        response = await client.post("/generate", json=body)
        assert response.status == 200
        (error,) = await frames(response)
        assert error["error"] == {
            "message": "temperature must be a non-negative finite number, got -1.",
            "type": "invalid_request_error",
            "code": 400,
            "retryable": False,
        }
        # Chat takes its first chunk before it answers, so a refusal is a plain one.
        chat = {"messages": [{"role": "user", "content": "x"}], "stream": True, "temperature": -1}
        response = await client.post(CHAT, json=chat)
        assert response.status == 400
        assert (await response.json())["type"] == "BadRequestError"


async def test_openai_routes_want_json_and_generate_does_not() -> None:
    async with opened(sglang_spec()) as (_, client):
        plain = {"content-type": "text/plain"}
        refused = await client.post(CHAT, data=b"{}", headers=plain)
        assert refused.status == 400
        assert "Unsupported Media Type" in (await refused.json())["message"]
        taken = await client.post("/generate", data=json.dumps(HELLO).encode(), headers=plain)
        assert taken.status == 200


async def test_keys_guard_what_sglang_guards() -> None:
    async with opened(sglang_spec(api_key="key", admin_api_key="admin")) as (_, client):

        async def status(path: str, key: str, method: str = "GET") -> int:
            head = {"authorization": f"Bearer {key}"} if key else {}
            return (await client.request(method, path, headers=head, json={})).status

        assert await status("/health", "") == 200
        assert await status("/model_info", "") == 401
        assert await status("/model_info", "key") == 200
        assert await status("/model_info", "admin") == 401
        assert await status("/abort_request", "key", "POST") == 401
        assert await status("/abort_request", "admin", "POST") == 200
        assert await (await client.get("/model_info")).json() == {"error": "Unauthorized"}


async def test_information_has_what_routers_read() -> None:
    spec = sglang_spec(server_args={"tp_size": 1, "dp_size": 1, "disaggregation_mode": "null"})
    async with opened(spec) as (_, client):
        info = await (await client.get("/model_info")).json()
        assert (info["model_path"], info["served_model_name"]) == ("/models/mock", "mock")
        assert info["is_generation"] is True
        assert info["weight_version"] == "default"
        server = await (await client.get("/get_server_info")).json()
        assert server["tp_size"] == 1
        assert server["max_total_num_tokens"] == 65536
        assert server["max_req_input_len"] == 4090
        assert len(server["internal_states"]) == 1
        assert server["version"] == "0.5.23"
        (model,) = (await (await client.get("/v1/models")).json())["data"]
        assert (model["owned_by"], model["max_model_len"]) == ("sglang", 4096)
        one = await (await client.get("/v1/models/mock")).json()
        assert one["id"] == "mock"
        assert await (await client.get("/get_weight_version")).json() == {
            "weight_version": "default"
        }


async def test_removed_routes_are_gone_without_the_switch() -> None:
    async with opened(sglang_spec(compat=())) as (_, client):
        assert (await client.get("/get_load")).status == 404
        assert (await client.get("/metrics")).status == 404


async def test_what_was_given_up_is_served_by_name() -> None:
    async with opened(sglang_spec(compat=("slime-routes",))) as (_, client):
        for path in ("/pull_weights", "/post_process_weights"):
            assert (await (await client.post(path, json={})).json())["success"] is True
        assert (await client.get("/get_load")).status == 404
    more = {"compat": ("cache-config-info",), "enable_metrics": True}
    async with opened(sglang_spec(WARP, **more)) as (_, client):
        text = await (await client.get("/metrics")).text()
        (line,) = [one for one in text.splitlines() if one.startswith("sglang:cache_config_info{")]
        assert 'num_pages="65536"' in line
        assert 'page_size="1"' in line
        assert (await client.post("/pull_weights", json={})).status == 404


async def test_loads_tell_running_waiting_and_used() -> None:
    scheduler = replace(SCHEDULER, max_running_requests=2)
    async with opened(sglang_spec(ClockSpec(), scheduler=scheduler)) as (server, client):
        calls = [asyncio.create_task(client.post("/generate", json=LONG)) for _ in range(3)]
        scheduler_now = server.cluster.workers[0].scheduler
        while (len(scheduler_now.running), scheduler_now.num_waiting) != (2, 1):
            await asyncio.sleep(0)
        loads = await (await client.get("/v1/loads")).json()
        (load,) = loads["loads"]
        assert (load["num_running_reqs"], load["num_waiting_reqs"]) == (2, 1)
        assert load["num_total_tokens"] == load["num_used_tokens"] + 5
        assert load["max_total_num_tokens"] == 65536
        assert load["queues"]["waiting"] == 1
        core = (await (await client.get("/v1/loads?include=core")).json())["loads"][0]
        assert "memory" not in core
        (old,) = await (await client.get("/get_load")).json()
        assert (old["num_reqs"], old["num_waiting_reqs"]) == (3, 1)
        text = await (await client.get("/v1/loads?format=prometheus")).text()
        assert 'sglang_num_running_reqs{dp_rank="0"} 2' in text
        assert (await (await client.get("/v1/loads?dp_rank=7")).json())["loads"] == []
        await client.post("/abort_request", json={"abort_all": True})
        bodies = [await (await call).json() for call in calls]
        reasons = sorted(str(body["meta_info"]["finish_reason"]["message"]) for body in bodies)
        assert reasons == ["Abort in waiting queue", "Aborted", "Aborted"]


async def test_aborts_are_by_prefix_of_a_known_id_and_leave_what_there_is() -> None:
    async with opened(sglang_spec(ClockSpec())) as (server, client):
        names = ("r", "r2", "s")
        calls = {
            rid: asyncio.create_task(client.post("/generate", json={**LONG, "rid": rid}))
            for rid in names
        }
        while len(server.cluster.workers[0].scheduler.running) != 3:
            await asyncio.sleep(0)
        twice = await client.post("/generate", json={**LONG, "rid": "s"})
        assert await twice.json() == {"error": {"message": "Duplicate request ID detected: s"}}
        # A prefix that nobody has for an id is dropped before it reaches the scheduler.
        assert (await client.post("/abort_request", json={"rid": "nobody"})).status == 200
        assert (await client.post("/abort_request", json={"rid": ""})).status == 200
        assert len(server.driver.in_flight) == 3
        await client.post("/abort_request", json={"rid": "r"})
        for rid in ("r", "r2"):
            response = await calls[rid]
            body = await response.json()
            assert response.status == 200
            assert body["meta_info"]["finish_reason"]["type"] == "abort"
            assert body["meta_info"]["completion_tokens"] == len(body["output_ids"]) > 0
        assert not calls["s"].done()
        await client.post("/abort_request", json={"abort_all": True})
        assert (await calls["s"]).status == 200


async def test_an_abort_on_the_warp_clock_reaches_what_was_not_fed() -> None:
    async with opened(sglang_spec(WARP)) as (server, client):
        async with Actor(server.urls[0], "holder"):
            call = asyncio.create_task(client.post("/generate", json={**LONG, "rid": "r"}))
            while not server.driver.in_flight:
                await asyncio.sleep(0)
            assert (await client.post("/abort_request", json={"rid": "r"})).status == 200
        body = await (await call).json()
        assert body["meta_info"]["finish_reason"]["type"] == "abort"
        assert body["meta_info"]["completion_tokens"] == 0


async def test_a_full_queue_refuses_in_three_ways() -> None:
    scheduler = replace(SCHEDULER, max_running_requests=1, max_queued_requests=1)
    async with opened(sglang_spec(ClockSpec(), scheduler=scheduler)) as (server, client):
        calls = [asyncio.create_task(client.post("/generate", json=LONG)) for _ in range(1)]
        while len(server.cluster.workers[0].scheduler.running) != 1:
            await asyncio.sleep(0)
        calls.append(asyncio.create_task(client.post("/generate", json=LONG)))
        while server.cluster.workers[0].scheduler.num_waiting != 1:
            await asyncio.sleep(0)
        whole = await client.post("/generate", json=HELLO)
        assert whole.status == 503
        assert await whole.json() == {
            "object": "error",
            "message": "The request queue is full.",
            "type": "503",
            "param": None,
            "code": 503,
        }
        (chunk,) = await frames(await client.post("/generate", json={**HELLO, "stream": True}))
        assert chunk["meta_info"]["finish_reason"] == {
            "type": "abort",
            "status_code": 503,
            "message": "The request queue is full.",
        }
        chat = {"messages": [{"role": "user", "content": "x"}], "stream": True}
        (error,) = await frames(await client.post(CHAT, json=chat))
        assert error["error"]["type"] == "SERVICE_UNAVAILABLE"
        await client.post("/abort_request", json={"abort_all": True})
        await asyncio.gather(*calls)


async def test_closing_the_connection_aborts() -> None:
    async with opened(sglang_spec(ClockSpec())) as (server, client):
        response = await client.post("/generate", json={**LONG, "rid": "r", "stream": True})
        await response.content.readline()
        response.close()
        while server.driver.in_flight:
            await asyncio.sleep(0)
        again = await client.post("/generate", json={**HELLO, "rid": "r"})
        assert again.status == 200


async def test_health_waits_for_its_probe_and_pauses_matter() -> None:
    clock = ClockSpec(mode="scaled", scale=200.0, late_ms_max=1e9)
    async with opened(sglang_spec(clock)) as (server, client):
        app = server._sglang[0]
        assert (await client.get("/health")).status == 200
        assert (await client.get("/health_generate")).status == 200
        assert (await client.get("/ready")).status == 200
        app.state.paused = True
        assert (await client.get("/ready")).status == 503
        assert (await client.get("/ping")).status == 200
        # Nothing runs, and a paused server takes no probe: after 20 of its seconds it gives up.
        assert (await client.get("/health")).status == 503
        assert (await client.get("/ping")).status == 503
        app.state.paused = False
        assert (await client.get("/health")).status == 200
        app.state.exiting = True
        assert (await client.get("/health")).status == 503
        app.state.exiting = False
        app.state.status = "Starting"
        assert (await client.get("/health")).status == 503


async def test_health_need_not_generate() -> None:
    clock = ClockSpec(mode="scaled", scale=200.0, late_ms_max=1e9)
    spec = sglang_spec(clock, health_generates=False, health_timeout_s=1)
    async with opened(spec) as (server, client):
        server._sglang[0].state.paused = True
        assert (await client.get("/health")).status == 200
        assert (await client.get("/health_generate")).status == 503


async def test_tokenizing() -> None:
    async with opened(sglang_spec()) as (_, client):
        body = await (await client.post("/tokenize", json={"prompt": ["ab", "c"]})).json()
        assert body == {"tokens": [[97, 98], [99]], "count": [2, 1], "max_model_len": 4096}
        both = await client.post("/v1/tokenize", json={"prompt": "a", "messages": []})
        assert "Exactly one of" in (await both.json())["message"]
        text = await client.post("/detokenize", json={"tokens": [97, 258]})
        assert await text.json() == {"text": "a"}
        shown = await client.post(
            "/v1/detokenize", json={"tokens": [[97, 258]], "skip_special_tokens": False}
        )
        assert await shown.json() == {"text": ["a<|im_end|>"]}


async def test_metrics_count_what_happened() -> None:
    async with opened(sglang_spec(WARP, enable_metrics=True)) as (_, client):
        await (await client.post("/generate", json=HELLO)).read()
        await frames(await client.post("/generate", json={**HELLO, "stream": True}))
        found = await metrics(client)
        assert found["sglang:prompt_tokens_total"] == {("true",): 5.0, ("false",): 5.0}
        assert found["sglang:generation_tokens_total"] == {("true",): 5.0, ("false",): 5.0}
        assert found["sglang:cached_tokens_total"] == {("device",): 4.0}
        assert found["sglang:time_to_first_token_seconds_count"] == {
            ("true",): 1.0,
            ("false",): 1.0,
        }
        assert found["sglang:inter_token_latency_seconds_count"] == {(): 8.0}
        assert found["sglang:queue_time_seconds_count"] == {(): 2.0}
        assert found["sglang:num_running_reqs"] == {(): 0.0}
        evictable = found["sglang:kv_evictable_tokens"][()]
        assert found["sglang:kv_available_tokens"][()] == 65536 - evictable
        assert found["sglang:http_responses_total"] == {("/generate", "200"): 2.0}
        assert not any(name.endswith("_created") for name in found if name[:6] == "sglang")


async def test_unserved_frontier_times_ride_along_when_asked() -> None:
    async with opened(sglang_spec(WARP)) as (_, client):
        body = await (await client.post("/generate", json={**HELLO, "frontier": True})).json()
        assert body["frontier"]["output_tokens"] == 5
        chunks = await frames(
            await client.post("/generate", json={**HELLO, "frontier": True, "stream": True})
        )
        assert "frontier" not in chunks[0]
        assert chunks[-1]["frontier"]["finish_ns"] > chunks[-1]["frontier"]["first_token_ns"]


async def test_scores_cost_a_prefill_and_nothing_embeds() -> None:
    async with opened(sglang_spec(WARP)) as (server, client):
        asked = {"query": "q", "items": ["a", "b"], "label_token_ids": [65]}
        response = await client.post("/v1/score", json=asked)
        assert len((await response.json())["scores"]) == 2
        assert int(response.headers["x-frontier-finish-ns"]) > 0
        submitted = [e for e in server.cluster.log.events if isinstance(e, Submitted)]
        assert [event.max_tokens for event in submitted] == [1, 1]
        refused = await client.post("/v1/embeddings", json={"input": "x"})
        assert refused.status == 400
        assert "does not appear to be an embedding model" in (await refused.json())["message"]


async def test_anthropics_messages_are_served_whole_and_streamed() -> None:
    async with opened(sglang_spec(WARP)) as (_, client):
        asked = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
        response = await client.post("/v1/messages", json=asked)
        whole = await response.json()
        assert int(response.headers["x-frontier-finish-ns"]) > 0
        counted = await client.post("/v1/messages/count_tokens", json=asked)
        assert (await counted.json())["input_tokens"] == whole["usage"]["input_tokens"]
        response = await client.post("/v1/messages", json=asked | {"stream": True})
        assert response.headers["content-type"].startswith("text/event-stream")
        text = await response.text()
        assert text.startswith("event: message_start\n")
        assert text.endswith('event: message_stop\ndata: {"type":"message_stop"}\n\n')
        assert "[DONE]" not in text
        refused = await client.post("/v1/messages", data="{}")
        assert refused.status == 400
        assert (await refused.json())["type"] == "error"


async def test_responses_are_served_whole_and_streamed() -> None:
    async with opened(sglang_spec(WARP)) as (_, client):
        asked = {"model": "mock", "max_output_tokens": 7, "input": "hi"}
        response = await client.post("/v1/responses", json=asked)
        whole = await response.json()
        assert (whole["status"], whole["usage"]["output_tokens"]) == ("incomplete", 5)
        assert int(response.headers["x-frontier-finish-ns"]) > 0
        response = await client.post("/v1/responses", json=asked | {"stream": True})
        text = await response.text()
        assert text.startswith("event: response.created\n")
        assert text.count("event: response.created\n") == 1
        assert "event: response.incomplete\n" in text
        assert "[DONE]" not in text
        kept = await client.get(f"/v1/responses/{whole['id']}")
        assert kept.status == 400
        assert (await kept.json())["error"]["param"] == "response_id"
        refused = await client.post("/v1/responses", data="{}")
        assert refused.status == 400
        assert "Unsupported Media Type" in (await refused.json())["error"]["message"]


@pytest.mark.parametrize(
    ("number", "offset", "said"),
    [
        ("NaN", 0, "unexpected character, expected a JSON value"),
        ("-Infinity", 1, "no digit after sign"),
        ("1e999", 0, "number is infinity when parsed as double"),
    ],
)
async def test_bodies_are_read_as_orjson_reads_them(number: str, offset: int, said: str) -> None:
    body = f'{{"text":"NaN 1e999 -\\"","a":{number}}}'
    async with opened(sglang_spec(WARP)) as (_, client):
        for path in ("/generate", CHAT, "/api/show", "/update_weight_version"):
            head = {"content-type": "application/json"}
            answer = await client.post(path, data=body, headers=head)
            text = (await answer.json())["message"]
            assert answer.status == 400
            assert said in text
            assert f"body.{body.rindex(number) + offset}'" in text


async def test_storage_behind_the_host_serves_what_another_server_has_computed() -> None:
    lane = LaneSpec(1e12, 0.0)
    storage = StorageSpec("mooncake", "shared", lane, lane, "wait_complete", 1)
    host = HostTierSpec(200_000, 1000, lane, lane, layers=1, storage=storage)
    scheduler = replace(SCHEDULER, host_tier=host)
    named = {"storage_backend": "mooncake", "storage_class": "MooncakeStore"}
    front = {"host_tier": True, "enable_metrics": True, **named}
    spec = sglang_spec(WARP, workers=2, scheduler=scheduler, **front)
    body = {"input_ids": [*range(300)], "sampling_params": {"max_new_tokens": 5}}
    async with live(spec) as server, aiohttp.ClientSession() as client:
        first = await (await client.post(f"{server.urls[0]}/generate", json=body)).json()
        assert first["meta_info"]["cached_tokens_details"] is None
        # What it computes next ends the step after which the first prompt is written.
        await client.post(f"{server.urls[0]}/generate", json=HELLO)
        other = await (await client.post(f"{server.urls[1]}/generate", json=body)).json()
        assert other["meta_info"]["cached_tokens"] == 299
        assert other["meta_info"]["cached_tokens_details"] == {
            "device": 0,
            "host": 0,
            "storage": 299,
            "storage_backend": "MooncakeStore",
        }
        streamed = {**body, "stream": True}
        chunks = await frames(await client.post(f"{server.urls[1]}/generate", json=streamed))
        details = chunks[-1]["meta_info"]["cached_tokens_details"]
        assert (details["device"], details["storage"]) == (299, 0)
    async with live(spec) as server, aiohttp.ClientSession(server.urls[0]) as client:
        found = await metrics(client)
        for name in ("prefetched", "backuped", "storage_prefetch_hit"):
            assert f"sglang:{name}_tokens_total" in found
