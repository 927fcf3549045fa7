"""The server as a process: ports, the ready file, signals, and what it says."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from frontier_mock.config.errors import ConfigError
from frontier_mock.serve.up import ClusterServer
from tests.serve.live import WARP, serve_spec

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from frontier_mock.serve.up import run_cluster
from tests.serve.live import FAST, serve_spec
sys.exit(run_cluster(serve_spec(FAST, workers=2, ready_file=sys.argv[1], journal_path=sys.argv[2])))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_listens_says_so_serves_and_ends_well(number: int, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    journal = tmp_path / "journal"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(ready), str(journal)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if "startup complete" in line:
            break
    assert "Starting vLLM server on http://127.0.0.1:" in said
    assert "INFO:     Application startup complete.\n" in said
    # The ready file is written just after the line that harnesses wait for.
    while not ready.exists():
        assert process.poll() is None
    workers = json.loads(ready.read_text())["workers"]
    assert [worker["name"] for worker in workers] == ["w0", "w1"]
    for worker in workers:
        body = json.dumps({"prompt": "hello", "max_tokens": 3}).encode()
        request = urllib.request.Request(
            worker["url"] + "/v1/completions", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            assert json.load(response)["usage"]["completion_tokens"] == 3
    process.send_signal(number)
    _, rest = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in said + rest
    assert "drift: " in rest
    assert "digest: " in rest
    assert len(journal.read_text().splitlines()) == 2


def test_port_in_use_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"port: cannot listen on 127\.0\.0\.1:{port}: .*in use"
        ):
            ClusterServer(serve_spec(port=port))


@pytest.mark.parametrize("port", [-1, 70000])
def test_impossible_port_is_named(port: int) -> None:
    with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
        ClusterServer(serve_spec(port=port))


def test_files_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="journal: cannot write"):
        ClusterServer(serve_spec(WARP, journal_path=str(tmp_path / "no" / "journal")))


async def test_ready_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    server = ClusterServer(serve_spec(WARP, ready_file=str(tmp_path / "no" / "ready")))
    with pytest.raises(ConfigError, match="ready-file: cannot write"):
        await server.start()
    await server.stop()
