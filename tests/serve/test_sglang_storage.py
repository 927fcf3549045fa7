"""`/hicache/storage-backend` over HTTP: cleared, shown, detached and attached again."""

from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from frontier_mock.serve.up import ServeSpec
from frontier_mock.serving.tiers.specs import HostTierSpec, LaneSpec, StorageSpec
from tests.serve.live import WARP, live
from tests.serve.sglang_live import SCHEDULER, sglang_spec

PATH = "/hicache/storage-backend"
LANE = LaneSpec(1e12, 0.0)
STORAGE = StorageSpec("mooncake", "shared", LANE, LANE, "wait_complete", 1)
HOST = HostTierSpec(200_000, 1000, LANE, LANE, layers=1, storage=STORAGE)
HELLO = {"text": "hello", "sampling_params": {"max_new_tokens": 5}}
PROMPT = {"input_ids": [*range(300)], "sampling_params": {"max_new_tokens": 5}}
ADMIN = {"Authorization": "Bearer root"}


def spec(**more: Any) -> ServeSpec:
    front = {
        "host_tier": True,
        "storage_backend": "mooncake",
        "storage_class": "MooncakeStore",
        "admin_api_key": "root",
        "server_args": {
            "hicache_storage_backend": "mooncake",
            "hicache_storage_backend_extra_config": None,
            "hicache_storage_prefetch_policy": "wait_complete",
            "hicache_write_policy": "write_through",
        },
        **more,
    }
    return sglang_spec(WARP, workers=2, scheduler=replace(SCHEDULER, host_tier=HOST), **front)


async def generate(client: aiohttp.ClientSession, url: str, body: Any) -> Any:
    response = await client.post(f"{url}/generate", json=body)
    return (await response.json())["meta_info"]


async def test_what_is_cleared_or_detached_is_not_found() -> None:
    async with live(spec()) as server, aiohttp.ClientSession(headers=ADMIN) as client:
        one, other = server.urls
        for body in (PROMPT, HELLO):
            await generate(client, one, body)
        gone = await client.delete(other + PATH)
        assert await gone.text() == (
            "HiCache storage backend detached.\nDetached HiCache storage backend successfully.\n"
        )
        shown = await (await client.get(other + PATH)).json()
        assert shown == {
            "hicache_storage_backend": None,
            "hicache_storage_backend_extra_config": None,
            "hicache_storage_prefetch_policy": "wait_complete",
            "hicache_write_policy": "write_through",
        }
        # Without storage an answer does not speak of it.
        shorter = {**PROMPT, "input_ids": [*range(280)]}
        assert (await generate(client, other, shorter))["cached_tokens"] == 0
        back = await client.put(
            other + PATH,
            json={
                "hicache_storage_backend": "mooncake",
                "hicache_storage_prefetch_policy": "best_effort",
            },
        )
        assert (back.status, (await back.text()).splitlines()[1]) == (
            200,
            "Attached HiCache storage backend successfully.",
        )
        shown = await (await client.get(other + PATH)).json()
        assert shown["hicache_storage_prefetch_policy"] == "best_effort"
        cleared = await client.post(f"{one}{PATH}/clear")
        assert (cleared.status, await cleared.text()) == (
            200,
            "Hierarchical cache storage backend cleared.\n",
        )
        again = {"hicache_storage_backend": "mooncake"}
        policy = {**again, "hicache_storage_prefetch_policy": "wait_complete"}
        updated = await client.put(other + PATH, json=policy)
        assert "policies updated" in await updated.text()
        meta = await generate(client, other, PROMPT)
        assert meta["cached_tokens_details"]["storage"] == 0


async def test_bad_attachments_are_answered_as_sglang_does() -> None:
    async with live(spec()) as server, aiohttp.ClientSession(headers=ADMIN) as client:
        url = server.urls[0] + PATH
        for body, said in (
            ({"hicache_storage_backend": "file"}, "Detach first."),
            (
                {"hicache_storage_backend": "mooncake", "hicache_storage_prefetch_policy": "x"},
                "Invalid hicache_storage_prefetch_policy: 'x'. Expected one of",
            ),
            (
                {"hicache_storage_backend": "mooncake", "hicache_write_policy": "write_back"},
                "not simulated",
            ),
        ):
            response = await client.put(url, json=body)
            text = await response.text()
            assert response.status == 400
            assert text.startswith("Failed to attach HiCache storage backend.\n")
            assert said in text
        assert (await client.put(url, json={})).status == 400
        await client.delete(url)
        other = await client.put(url, json={"hicache_storage_backend": "file"})
        assert "start with --hicache-storage-backend file" in await other.text()
        async with aiohttp.ClientSession() as stranger:
            assert (await stranger.get(url)).status == 401


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_without_an_admin_key_only_clearing_is_allowed(method: str) -> None:
    body = {"hicache_storage_backend": "mooncake"} if method == "PUT" else None
    async with live(spec(admin_api_key=None)) as server, aiohttp.ClientSession() as client:
        url = server.urls[0] + PATH
        response = await client.request(method, url, json=body)
        assert response.status == 400
        assert "requires admin API key" in (await response.json())["error"]
        assert (await client.post(f"{url}/clear")).status == 200


async def test_without_a_host_tier_there_is_nothing_to_clear() -> None:
    plain = sglang_spec(WARP, admin_api_key="root")
    async with live(plain) as server, aiohttp.ClientSession(headers=ADMIN) as client:
        url = server.urls[0] + PATH
        assert (await client.post(f"{url}/clear")).status == 400
        refused = await client.delete(url)
        assert (await refused.text()).splitlines()[1] == "Hierarchical cache is not enabled."
