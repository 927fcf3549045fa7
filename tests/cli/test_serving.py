"""`vllm serve` and `up`: what is refused before anything is served, and a server end to end."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from frontier_mock.cli.main import main
from frontier_mock.cli.serving import (
    capacity_lines,
    clock_spec,
    eos_model,
    front_end,
    http_settings,
)
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.journals import journal_head
from frontier_mock.config.resolve import resolve_scenario, resolve_single
from frontier_mock.config.scenario import load_scenario, parse_scenario
from frontier_mock.config.served import fingerprint, served_models
from frontier_mock.config.vllm_flags import SimulatorArgs, VllmArgs, parse_serve
from frontier_mock.config.workloads import TraceSearch

MODEL = "meta-llama/Llama-3.1-8B-Instruct"


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    errors = [line for line in captured.err.splitlines() if "GPU KV cache size" not in line]
    assert [line.startswith("frontier-mock: error: ") for line in errors] == [True]
    return captured.err


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with taken_port() as port:
        argv = ["vllm", "serve", MODEL, "--host", "127.0.0.1", "--port", str(port)]
        said = refused(argv, capsys)
        assert f"port: cannot listen on 127.0.0.1:{port}: Address already in use" in said
        again = ["up", "poisson-8xh800", "--host", "127.0.0.1", "--port", str(port)]
        assert "Address already in use" in refused(again, capsys)


@pytest.mark.parametrize(
    ("backend", "clock", "warned"),
    [("mooncake", "warp", True), ("mooncake", "real", False), ("fake", "warp", False)],
)
def test_a_sglang_server_that_can_have_no_other_half_warns(
    backend: str, clock: str, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--disaggregation-mode", "decode", "--disaggregation-transfer-backend", backend]
    flags += ["--sim-clock", clock]
    with taken_port() as port:
        assert main(["sglang", "serve", MODEL, *flags, "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert ("--sim-clock-server shares one" in said) is warned


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["vllm", "serve", MODEL, "--sim-hardwear", "h800"], "(did you mean --sim-hardware?)"),
        (["vllm", "serve", MODEL, "--sim-hardware", "h801"], "hardware: 'h801' is not known"),
        (["vllm", "serve", MODEL, "--sim-engine", "vllm-0.1"], "older than any preset"),
        (["vllm", "serve", MODEL, "--sim-clock", "fast"], "clock: 'fast' is not one of real"),
        (["vllm", "serve", MODEL, "--tokenizer", "/absent"], "tokenizer '/absent' has no"),
        (["vllm", "serve", "no/model"], "model: no profile for 'no/model'"),
        (["vllm", "serve", MODEL, "--host", "not an address", "--port", "0"], "cannot listen on"),
        (["up", "absent.yaml"], "scenario absent.yaml: cannot be read"),
        (["up", "poisson-8xh800", "--clock", "scaled:0"], "clock: 'scaled:0' is not one of"),
        (["up", "poisson-8xh800", "--clok", "warp"], "(did you mean --clock?)"),
        (["up", "poisson-8xh800", "--port", "65530"], "port: 65536 is beyond 65535"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(argv, capsys)


def test_a_limit_of_the_environment_must_be_a_number() -> None:
    cluster = resolve_single(VllmArgs(model=MODEL), "h800", "vllm-0.33", 0)
    assert served_models(cluster, None, {"VLLM_MAX_STOP_STRINGS": "9"})[0].max_stop_strings == 9
    with pytest.raises(ConfigError, match="VLLM_MAX_STOP_STRINGS: 'x' is not a whole number"):
        served_models(cluster, None, {"VLLM_MAX_STOP_STRINGS": "x"})


def test_what_the_http_layer_is_told() -> None:
    args = parse_serve(
        [MODEL, "--served-model-name", "a", "b", "--api-key", "k", "--root-path", "/x"], {}
    ).vllm
    settings = http_settings(args, "0.33.0", {"VLLM_SERVER_DEV_MODE": "1"})
    assert (settings.api_key, settings.root_path, settings.dev_mode) == (("k",), "/x", True)
    cluster = resolve_single(args, "h800", "vllm-0.33", 0)
    (served,) = served_models(cluster, None, {})
    assert (served.names, served.root, served.eos) == (("a", "b"), MODEL, None)
    assert served.max_model_len == 131072


def test_workers_of_one_process_share_their_front_end() -> None:
    groups = [
        {"name": name, "model": MODEL, "engine_args": {"api-key": [key]}}
        for name, key in (("a", "k"), ("b", "l"))
    ]
    text = json.dumps({"name": "x", "cluster": {"workers": groups}})
    cluster = resolve_scenario(parse_scenario(text, "s.yaml", TraceSearch(())))
    with pytest.raises(ConfigError, match=r"workers: a and b differ in api_key; allowed: one"):
        front_end(cluster, {})


def test_a_journal_does_not_give_keys_away() -> None:
    args = parse_serve([MODEL, "--api-key", "sk-secret"], {}).vllm
    head = journal_head(resolve_single(args, "h800", "vllm-0.33", 7))
    assert "sk-secret" not in head
    assert json.loads(head)["seed"] == 7


def test_start_up_says_what_each_group_of_workers_holds() -> None:
    cluster = resolve_scenario(load_scenario("llama70b-8xh800", {}))
    (line,) = capacity_lines(cluster)
    assert line.startswith("frontier-mock: w0 to w7: meta-llama/Llama-3.1-70B-Instruct, fp8, tp 4")
    blocks = cluster.workers[0].memory.num_blocks
    assert f"GPU KV cache size: {16 * blocks:,} tokens" in line


@pytest.mark.parametrize(
    ("argv", "shape"),
    [
        ([], r"vllm-0\.33\.0-tp2-[0-9a-f]{8}"),
        (["--fingerprint-mode", "hash"], r"vllm-0\.33\.0-[0-9a-f]{8}"),
        (["--fingerprint-mode", "custom", "--fingerprint-value", "mine"], "mine"),
        (["--fingerprint-mode", "none"], "None"),
    ],
)
def test_system_fingerprints(argv: list[str], shape: str) -> None:
    args = parse_serve([MODEL, "-tp", "2", *argv], {}).vllm
    worker = resolve_single(args, "h800", "vllm-0.33", 0).workers[0]
    assert re.fullmatch(shape, str(fingerprint(worker)))


def test_the_clock_and_the_lengths_asked_for() -> None:
    assert clock_spec(SimulatorArgs(clock="scaled:10", late_ms=7.0)).scale == 10
    assert clock_spec(SimulatorArgs(clock="warp", strict=True)).strict
    assert eos_model(SimulatorArgs(eos=False)) is None
    made = eos_model(SimulatorArgs(eos_mean_tokens=10.0, eos_sigma=0.0))
    assert made is not None
    assert made.length(0, 1, 0) == 10


def test_help_lists_the_flags_that_act(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vllm", "serve", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--tensor-parallel-size, -tp" in said
    assert "--sim-clock" in said


@pytest.mark.integration
def test_a_server_from_the_command_line_to_its_journal(tmp_path: Path) -> None:
    ready, journal = tmp_path / "ready.json", tmp_path / "journal.jsonl"
    argv = [sys.executable, "-m", "frontier_mock", "vllm", "serve", MODEL, "--port", "0"]
    argv += ["--host", "127.0.0.1", "--sim-clock", "warp", "--sim-journal", str(journal)]
    argv += ["--sim-ready-file", str(ready)]
    server = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        url = ""
        for line in server.stderr:
            if "Starting vLLM server on " in line:
                url = line.split()[-1]
            if "Application startup complete." in line:
                break
        body = {"model": MODEL, "prompt": "Once", "max_tokens": 7, "ignore_eos": True}
        request = urllib.request.Request(
            f"{url}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            assert json.load(response)["usage"]["completion_tokens"] == 7
        assert json.loads(ready.read_text())["workers"] == [{"name": "w0", "url": url}]
        server.send_signal(signal.SIGTERM)
        goodbye = server.stderr.read()
        assert server.wait(timeout=30) == 0
    finally:
        server.kill()
        server.wait()
    digest = goodbye.rsplit("digest: ", 1)[1].split()[0]
    replayed = subprocess.run(
        [sys.executable, "-m", "frontier_mock", "journal", "replay", str(journal)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert replayed.stdout.strip() == digest
