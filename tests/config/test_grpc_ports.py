"""Which port speaks what, from flags and scenarios."""

from pathlib import Path

import pytest

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.grpc_ports import Ports, ports_of
from frontier_mock.config.resolve import resolve_scenario
from frontier_mock.config.scenario import load_scenario
from frontier_mock.config.sglang_flags import SglangArgs, parse_sglang_args
from frontier_mock.config.vllm_flags import VllmArgs, parse_serve

MODEL = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.mark.parametrize(
    ("flags", "ports"),
    [
        ([], Ports(8000, None)),
        (["--grpc"], Ports(0, 8000)),
        (["--grpc", "--port", "50051"], Ports(0, 50051)),
        (["--grpc-port", "50051"], Ports(8000, 50051)),
        (["--grpc-port", "0"], Ports(8000, 0)),
    ],
)
def test_vllm(flags: list[str], ports: Ports) -> None:
    args = parse_serve([MODEL, *flags], {}).vllm
    assert ports_of(args, None, args.port, None) == ports


@pytest.mark.parametrize(
    ("flags", "ports"),
    [
        ([], Ports(30000, None)),
        (["--smg-grpc-mode"], Ports(30001, 30000)),
        (["--grpc-mode", "--smg-http-sidecar-port", "9"], Ports(9, 30000)),
        (["--smg-grpc-mode", "--port", "0"], Ports(0, 0)),
    ],
)
def test_sglang(flags: list[str], ports: Ports) -> None:
    args, _ = parse_sglang_args(["--model-path", MODEL, *flags])
    assert ports_of(VllmArgs(), args, args.port, None) == ports


def test_side_car_beyond_the_last_port() -> None:
    args = SglangArgs(model_path=MODEL, smg_grpc_mode=True)
    with pytest.raises(ConfigError, match="--smg-http-sidecar-port: 65536 is beyond 65535"):
        ports_of(VllmArgs(), args, 65535, None)


def test_vllm_has_one_kind_at_a_time() -> None:
    with pytest.raises(ConfigError, match="--grpc-port: not with --grpc"):
        parse_serve([MODEL, "--grpc", "--grpc-port", "1"], {})


def scenario(tmp_path: Path, *workers: str) -> Path:
    path = tmp_path / "s.yaml"
    lines = "\n".join(f"    - {{{worker}, model: {MODEL}}}" for worker in workers)
    path.write_text(f"name: s\ncluster:\n  workers:\n{lines}\n")
    return path


def ports_in(path: Path, base_port: int | None = None) -> list[tuple[int, int | None]]:
    cluster = resolve_scenario(load_scenario(str(path)), base_port=base_port)
    return [(worker.spec.port, worker.grpc_port) for worker in cluster.workers]


def test_scenario(tmp_path: Path) -> None:
    path = scenario(tmp_path, "name: a, count: 2, grpc_port: 50051", "name: b")
    assert ports_in(path) == [(8000, 50051), (8001, 50052), (8002, None)]
    assert ports_in(path, 9000) == [(9000, 50051), (9001, 50052), (9002, None)]
    assert ports_in(path, 0) == [(0, 0), (0, 0), (0, None)]
    path = scenario(tmp_path, "name: a, engine: sglang-0.5.23, grpc_port: 0")
    assert ports_in(path) == [(8000, 0)]
    path = scenario(tmp_path, "name: a, engine_args: {grpc: true}", "name: b")
    assert ports_in(path) == [(0, 8000), (8001, None)]


def test_scenario_with_a_port_twice_or_beyond_the_last(tmp_path: Path) -> None:
    path = scenario(tmp_path, "name: a, grpc_port: 8001", "name: b")
    with pytest.raises(ConfigError, match="a and b both use port 8001"):
        ports_in(path)
    path = scenario(tmp_path, "count: 2, grpc_port: 65535")
    with pytest.raises(ConfigError, match="grpc_port: 65536 is beyond 65535"):
        ports_in(path)
