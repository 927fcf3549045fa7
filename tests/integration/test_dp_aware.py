"""A router that knows data-parallel ranks: smg --dp-aware spreads requests over them."""

import importlib.util
from collections import Counter
from pathlib import Path

import httpx
import pytest

from frontier_mock.cli.demo import answers, free_ports, process, wait_until
from frontier_mock.config.scenario import load_scenario
from tests.integration.fleet import fleet

pytestmark = pytest.mark.integration

SCENARIO = """\
name: dp
cluster:
  workers:
    - name: w
      count: 2
      model: Qwen/Qwen3-8B
      hardware: h800
      engine: sglang-0.5.23
      port: 0
      engine_args: {dp-size: 2, enable-metrics: true}
"""


def test_smg_addresses_every_rank_of_every_worker(tmp_path: Path) -> None:
    if importlib.util.find_spec("smg") is None:
        pytest.skip("smg is not installed: pip install 'frontier-mock[integration]'")
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO)
    port, metrics = free_ports(2)
    url, log = f"http://127.0.0.1:{port}", tmp_path / "smg.log"
    launch = ["-m", "smg.cli", "launch", "--log-level", "warn", "--host", "127.0.0.1"]
    launch += ["--port", str(port), "--prometheus-port", str(metrics), "--policy", "round_robin"]
    with fleet(load_scenario(str(path)), tmp_path, "--clock", "scaled:20") as served:
        launch += ["--dp-aware", "--worker-urls", *served.urls]
        with process("smg", launch, log) as router:
            wait_until(lambda: answers(f"{url}/readiness"), router, "smg", log)
            wait_until(lambda: _ranks_known(url) == 4, router, "smg", log)
            body = {"text": "hello", "sampling_params": {"max_new_tokens": 3, "ignore_eos": True}}
            replies = [httpx.post(f"{url}/generate", json=body).json() for _ in range(8)]
            router.kill()
        counts = [_requests_by_rank(worker) for worker in served.urls]
    # The worker says of each answer which rank gave it, and counts it there.
    assert Counter(reply["meta_info"]["dp_rank"] for reply in replies) == {0: 4, 1: 4}
    assert counts == [{"0": 2, "1": 2}] * 2


def _ranks_known(url: str) -> int:
    found = httpx.get(f"{url}/workers").json()["workers"]
    return sum(worker["is_healthy"] and worker["dp_size"] == 2 for worker in found)


def _requests_by_rank(url: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        if line.startswith("sglang:num_requests_total{"):
            rank = line.partition('dp_rank="')[2].partition('"')[0]
            counts[rank] += int(float(line.rpartition(" ")[2]))
    return dict(counts)
