"""The demo: real processes, a real router, and nothing left behind."""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from frontier_mock.cli.demo import DemoError, free_ports, process, wait_until
from frontier_mock.cli.main import main

pytestmark = pytest.mark.integration

DEMO = [sys.executable, "-m", "frontier_mock", "demo"]


def without_data() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "FRONTIER_MOCK_DATA"}


def test_a_synthetic_trace_through_the_real_router(tmp_path: Path) -> None:
    pytest.importorskip("sglang_router")
    done = subprocess.run(
        [*DEMO, "--requests", "40", "--policy", "round_robin", "--out", str(tmp_path)],
        env=without_data(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "trace    synthetic:conversation" in done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["requests"]["completed"] == 40
    assert [worker["requests"] for worker in result["workers"]] == [5] * 8
    assert result["client"]["mode"] == "warp"
    assert (result["client"]["stalls"], result["client"]["grace_jumps"]) == (0, 0)


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads Linux's /proc")
def test_a_killed_demo_takes_its_processes_with_it() -> None:
    pytest.importorskip("sglang_router")
    demo = subprocess.Popen([*DEMO], env=without_data(), stderr=subprocess.PIPE, text=True)
    assert demo.stderr is not None
    try:
        for line in demo.stderr:
            if "in virtual time" in line:
                break
        pids = children(demo.pid)
        assert len(pids) == 2
        handles = [os.pidfd_open(pid) for pid in pids]
    finally:
        demo.send_signal(signal.SIGKILL)
        demo.wait()
    # A pidfd is readable once its process is gone.
    poller = select.poll()
    for handle in handles:
        poller.register(handle)
    gone = 0
    while gone < 2 and (events := poller.poll(20_000)):
        for handle, _ in events:
            poller.unregister(handle)
            os.close(handle)
            gone += 1
    assert gone == 2


def test_a_process_that_does_not_start_is_named_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        process("child", ["-c", "import sys; sys.exit('no such luck')"], log) as child,
        pytest.raises(DemoError, match="child ended with code 1: no such luck"),
    ):
        wait_until(lambda: False, child, "child", log)


def test_free_ports_differ() -> None:
    assert len(set(free_ports(5))) == 5


def test_a_demo_without_a_router_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["demo"]) == 2
    assert "pip install 'frontier-mock[integration]'" in capsys.readouterr().err
