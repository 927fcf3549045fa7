"""NVIDIA Dynamo's frontend and sidecars before mock vLLMs. Needs ai-dynamo: marked slow."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from frontier_mock.cli.demo import free_ports, process, wait_until
from frontier_mock.config.scenario import load_scenario
from frontier_mock.config.tokenizers import write_byte_tokenizer
from tests.integration.fleet import Fleet, fleet
from tests.integration.test_adapters import ADAPTERS

pytestmark = [pytest.mark.integration, pytest.mark.slow]

EXEC = (
    "import os, sys; os.environ.setdefault('DYNAMO_PYTHON', sys.executable); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
STORIES = 6
TOKENS = 12
MAX_PASSES = 30


@pytest.mark.skipif(
    "DYNAMO_PYTHON" not in os.environ and importlib.util.find_spec("dynamo") is None,
    reason="needs ai-dynamo and its runtime, here or in the Python that DYNAMO_PYTHON names",
)
def test_its_kv_router_finds_what_the_engines_have_cached(tmp_path: Path) -> None:
    pytest.importorskip("zmq", reason="pip install 'frontier-mock[kv-events]'")
    model = write_byte_tokenizer(tmp_path / "model")
    text = (ADAPTERS / "dynamo" / "scenario.yaml").read_text()
    for old, new in (
        ("/tmp/frontier-mock-dynamo", str(model)),
        ("grpc_port: 50051", "grpc_port: 0"),
        ("tcp://*:5557", "tcp://*:0"),
    ):
        text = text.replace(old, new)
    path, log = tmp_path / "scenario.yaml", tmp_path / "dynamo.log"
    path.write_text(text)
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with fleet(load_scenario(str(path)), tmp_path, "--clock", "scaled:20") as served:
        addresses = [grpc_url.removeprefix("grpc://") for grpc_url in served.grpc_urls]
        launch = [str(ADAPTERS / "dynamo" / "launch"), str(port), "kv", *addresses]
        with process("dynamo", ["-c", EXEC, *launch], log) as running:
            wait_until(lambda: knows(url, "mock"), running, "dynamo", log)
            said = [ask(url, number) for number in range(STORIES)]
            # Events travel on their own: after a few rounds every story goes where it is known.
            whole = STORIES * ((len(story(0)) - 1) // 16 * 16)
            found = any(known_in_one_pass(url, served) == whole for _ in range(MAX_PASSES))
            direct = [ask(served.urls[0], number) for number in range(STORIES)]
    assert found
    assert said == direct
    assert [usage["completion_tokens"] for _, usage in said] == [TOKENS] * STORIES
    assert [usage["prompt_tokens"] for _, usage in said] == [len(story(0))] * STORIES


def story(number: int) -> str:
    """A prompt of its own, thirty blocks and a bit."""
    return f"story {number} " * 61


def ask(url: str, number: int) -> tuple[str, dict[str, Any]]:
    """What a completion says and counts."""
    body = {"model": "mock", "prompt": story(number), "max_tokens": TOKENS, "ignore_eos": True}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()
    usage = answer["usage"]
    return answer["choices"][0]["text"], {
        name: usage[name] for name in ("prompt_tokens", "completion_tokens")
    }


def known_in_one_pass(url: str, served: Fleet) -> int:
    """Tokens that the engines had cached when every story was asked for once more."""
    before = hit_tokens(served)
    for number in range(STORIES):
        ask(url, number)
    return hit_tokens(served) - before


def hit_tokens(served: Fleet) -> int:
    truth = httpx.get(f"{served.clock_url}/sim/truth", timeout=10).json()["workers"]
    return sum(int(worker["hit_tokens"]) for worker in truth)


def knows(url: str, model: str) -> bool:
    """Whether the frontend has found an engine with the model."""
    try:
        cards = json.loads(httpx.get(f"{url}/v1/models", timeout=5).text)["data"]
    except (httpx.HTTPError, ValueError, KeyError):
        return False
    return model in [card["id"] for card in cards]
