"""TRL's own clients against the launch line of its adapter. Needs trl, and torch: marked slow."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from frontier_mock.cli.demo import answers, free_ports, process, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ADAPTER = Path(__file__).resolve().parents[2] / "adapters" / "trl"
EXEC = "import os, sys; os.environ['PYTHON'] = sys.executable; os.execv(sys.argv[1], sys.argv[1:])"


@pytest.mark.skipif(
    "TRL_PYTHON" not in os.environ and importlib.util.find_spec("trl") is None,
    reason="needs trl (1 GB with torch), here or in the Python that TRL_PYTHON names",
)
def test_trls_clients_account_for_every_token(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    url, log = f"http://127.0.0.1:{port}", tmp_path / "server.log"
    launch = [str(ADAPTER / "launch"), str(port), "--no-sim-eos"]
    with process("vllm", ["-c", EXEC, *launch], log) as server:
        wait_until(lambda: answers(f"{url}/health"), server, "vllm", log)
        python = os.environ.get("TRL_PYTHON", sys.executable)
        loop = [python, str(ADAPTER / "loop.py"), url, "2"]
        done = subprocess.run(loop, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["dtype"] == "torch.bfloat16"
    assert said["tokens"] == said["scored"] == 2 * 8 * 4 * 120
