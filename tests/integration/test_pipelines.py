"""Both engines with two pipeline stages, from the command line, driven by the `openai` package."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

pytestmark = pytest.mark.integration

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
COMMANDS = {
    "vllm": ["vllm", "serve", MODEL, "-pp", "2", "-tp", "2"],
    "sglang": ["sglang", "serve", "--model-path", MODEL, "--pp-size", "2", "--tp-size", "2"],
}


@contextmanager
def serving(command: list[str], journal: Path) -> Iterator[tuple[str, list[str]]]:
    """URL of a server of this command line; its last words once it is gone."""
    argv = [sys.executable, "-m", "frontier_mock", *command, "--port", "0", "--host", "127.0.0.1"]
    argv += ["--sim-clock", "warp", "--sim-journal", str(journal)]
    server = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    goodbye: list[str] = []
    try:
        assert server.stderr is not None
        url = ""
        for line in server.stderr:
            if "http://" in line:
                url = line[line.index("http://") :].split()[0]
            if "startup complete" in line or "fired up and ready" in line:
                break
        yield url, goodbye
        server.send_signal(signal.SIGTERM)
        goodbye.append(server.stderr.read())
        assert server.wait(timeout=60) == 0
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_two_stages_serve_the_openai_package_and_replay(engine: str, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    with serving(COMMANDS[engine], journal) as (url, goodbye):
        client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=60)

        def streamed(number: int) -> int:
            stream = client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": f"Count to {number}. " * (20 + number)}],
                max_tokens=40 + number,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
            chunks = list(stream)
            assert chunks[-1].usage is not None
            return chunks[-1].usage.completion_tokens

        with client, ThreadPoolExecutor(8) as pool:
            made = list(pool.map(streamed, range(8)))
        assert made == [40 + number for number in range(8)]
    digest = goodbye[0].rsplit("digest: ", 1)[1].split()[0]
    replayed = subprocess.run(
        [sys.executable, "-m", "frontier_mock", "journal", "replay", str(journal)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert replayed.stdout.strip() == digest
