"""The FFN side as a process: alive, and nothing else."""

import httpx
import pytest

from frontier_mock.config.errors import ConfigError
from frontier_mock.serve.ffn import FfnServer


async def test_it_lives_and_serves_nobody() -> None:
    server = FfnServer("127.0.0.1", 0)
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=server.url) as client:
            alive = await client.get("/health")
            metrics = await client.get("/metrics")
            asked = await client.post("/v1/completions", json={"prompt": "hi"})
            models = await client.get("/v1/models")
    finally:
        await server.stop()
    assert (alive.status_code, alive.content) == (200, b"")
    assert (metrics.status_code, metrics.text) == (200, "")
    assert (asked.status_code, asked.json()) == (404, {"detail": "Not Found"})
    assert models.status_code == 404


async def test_a_port_in_use_is_one_line() -> None:
    server = FfnServer("127.0.0.1", 0)
    await server.start()
    try:
        with pytest.raises(ConfigError, match="cannot listen on"):
            FfnServer("127.0.0.1", int(server.url.rpartition(":")[2]))
    finally:
        await server.stop()
