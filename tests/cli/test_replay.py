"""`up` and `replay` together: the command line against real ports."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from frontier_mock.cli.main import main
from frontier_mock.cli.replay import wait_until_up

pytestmark = pytest.mark.integration

SCENARIO = """
name: small
cluster:
  workers:
    - {model: meta-llama/Llama-3.1-8B-Instruct, count: 2}
workload: {kind: poisson, rate_per_s: 50, num_requests: 30, input_tokens: 200, output_tokens: 9}
slo: {ttft_ms: 1000}
"""


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("replay") / "small.yaml"
    path.write_text(SCENARIO)
    return str(path)


@pytest.fixture(scope="module")
def url(scenario: str) -> Iterator[str]:
    with served(scenario) as found:
        yield found


@contextmanager
def served(scenario: str, ports: tuple[str, ...] = ("--port", "0")) -> Iterator[str]:
    """The URL of the scenario's first worker, of an `up` in virtual time."""
    argv = [sys.executable, "-m", "frontier_mock", "up", scenario, "--clock", "warp"]
    argv += ["--host", "127.0.0.1", *ports]
    server = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        found = ""
        for line in server.stderr:
            if not found and " server on http" in line:
                found = line.split()[-1]
            if "Application startup complete." in line:
                break
        yield found
    finally:
        server.terminate()
        server.communicate(timeout=30)


def test_a_scenario_replayed_in_virtual_time(
    scenario: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["replay", scenario, "--url", url, "--clock", "warp", "--out", str(tmp_path)]
    assert main(argv) == 0
    assert "30 of 30 requests completed" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["client"]["mode"] == "warp"
    assert result["client"]["prompt_tokens_differ"] == 0
    assert (tmp_path / "report.html").exists()


def test_a_clock_that_is_not_the_one_asked_for(
    scenario: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", scenario, "--url", url, "--clock", "scaled:10"]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"frontier-mock: error: clock: 'scaled:10' was asked for, but {url} runs on warp\n"
    )
    assert main(["replay", scenario, "--url", f"{url}/nowhere", "--clock", "warp"]) == 2
    assert "/nowhere/sim/clock does not answer" in capsys.readouterr().err


def test_a_replay_in_which_nothing_was_completed_has_failed(
    scenario: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", scenario, "--url", url, "--model", "nobody", "--requests", "3"]) == 1
    assert "no request was completed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "argv", "code", "said"),
    [
        (SCENARIO, ["--url", "http://127.0.0.1:1"], 1, "cannot reach http://127.0.0.1:1"),
        (SCENARIO, [], 2, "the following arguments are required: --url"),
        (SCENARIO.split("workload")[0], ["--url", "http://x"], 2, "key workload is missing"),
        (
            "name: x\nworkload:" + SCENARIO.split("workload:")[1],
            ["--url", "http://x"],
            2,
            "key cluster is missing; name the model with --model",
        ),
        (SCENARIO, ["--url", "http://127.0.0.1:1", "--clock", "fast"], 2, "clock: 'fast' is not"),
    ],
)
def test_replays_that_cannot_be(
    text: str,
    argv: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    assert main(["replay", str(path), "--wait-s", "0", *argv]) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_the_oracle_is_the_servers(
    scenario: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", scenario, "--url", url, "--oracle"]) == 2
    assert "has none; start it with frontier-mock up --oracle" in capsys.readouterr().err
    assert (
        main(["replay", scenario, "--url", "http://127.0.0.1:9", "--oracle", "--wait-s", "0"]) == 2
    )
    assert "/sim/report does not answer" in capsys.readouterr().err


def test_a_router_that_is_not_ready_is_waited_for() -> None:
    answers = [("/health", 503), ("/health", 200), ("/readiness", 503), ("/readiness", 404)]

    class Router(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, status = answers.pop(0)
            self.send_response(status if self.path == path else 500)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    with HTTPServer(("127.0.0.1", 0), Router) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        wait_until_up(f"http://127.0.0.1:{server.server_port}/", 60)
        server.shutdown()
        thread.join()
    assert not answers


def test_a_server_that_starts_later_is_waited_for() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as holder:
        port = holder.getsockname()[1]
    waiting = threading.Thread(target=wait_until_up, args=(f"http://127.0.0.1:{port}", 60))
    waiting.start()
    with closing(socket.create_server(("127.0.0.1", port))) as server:
        for _ in range(2):
            connection = server.accept()[0]
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            connection.close()
        waiting.join()


def test_nobody_waits_for_what_is_no_server_at_all() -> None:
    for url in ("nonsense", "ftp://127.0.0.1:1", "http://127.0.0.1:x"):
        wait_until_up(url, 3600)
    wait_until_up("http://127.0.0.1:1", 0)


PICTURES = """
name: pictures
cluster:
  workers:
    - {name: w, model: Qwen/Qwen2.5-VL-7B-Instruct}
    - {name: e, model: Qwen/Qwen2.5-VL-7B-Instruct, role: encoder}
  fabric: {gpus_per_node: 1}
workload: {kind: poisson, rate_per_s: 4, num_requests: 8, input_tokens: 3000, output_tokens: 9,
           images: {count: 2, distinct: 5}}
"""


def test_prompts_with_images_are_sent_to_who_encodes_them(tmp_path: Path) -> None:
    path = tmp_path / "pictures.yaml"
    path.write_text(PICTURES)
    with served(str(path)) as url:
        argv = ["replay", str(path), "--url", url, "--api", "chat", "--out", str(tmp_path)]
        assert main(argv) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["requests"]["completed"] == 8
    assert (result["encoding"]["images"], result["encoding"]["encoded"]) == (16, 5)


ENCODERS = """
name: language-only
cluster:
  workers:
    - {{name: w, engine: sglang-0.5.23, model: Qwen/Qwen2.5-VL-7B-Instruct, port: {ports[0]},
       engine_args: {args}}}
    - {{name: e0, engine: sglang-0.5.23, model: Qwen/Qwen2.5-VL-7B-Instruct, port: {ports[1]},
       engine_args: {{encoder-only: true}}}}
    - {{name: e1, engine: sglang-0.5.23, model: Qwen/Qwen2.5-VL-7B-Instruct, port: {ports[2]},
       engine_args: {{encoder-only: true}}}}
workload: {{kind: closed_loop, concurrency: 1, num_requests: 4, input_tokens: 3000,
           output_tokens: 9, images: {{count: 2}}}}
"""


def test_a_language_only_server_asks_its_encoders(tmp_path: Path) -> None:
    """Over HTTP, to itself as to any other process: their time is in the time to first token."""
    ttft_ms = []
    for asks in (True, False):
        with contextlib.ExitStack() as held:
            socks = [held.enter_context(closing(socket.socket())) for _ in range(3)]
            for sock in socks:
                sock.bind(("127.0.0.1", 0))
            ports = [sock.getsockname()[1] for sock in socks]
        urls = ", ".join(f"'http://127.0.0.1:{port}'" for port in ports[1:])
        args = f"{{language-only: true, encoder-urls: [{urls}]}}" if asks else "{}"
        path = tmp_path / "language-only.yaml"
        path.write_text(ENCODERS.format(ports=ports, args=args))
        with served(str(path), ()) as url:
            argv = ["replay", str(path), "--url", url, "--api", "chat", "--out", str(tmp_path)]
            assert main(argv) == 0
        result = json.loads((tmp_path / "result.json").read_text())
        assert result["requests"]["completed"] == 4
        ttft_ms.append(result["ttft_ms"]["p50"])
    # Two encoders side by side take 13 ms where one's own takes 26, and their front ends some.
    assert 1 < ttft_ms[1] - ttft_ms[0] < 14, ttft_ms
