"""LMCache's roles: who receives what others send, where it listens, and what is refused."""

import json
from pathlib import Path

import pytest

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.resolve import ResolvedCluster, resolve_scenario
from frontier_mock.config.scenario import load_scenario
from frontier_mock.config.served import served_models
from frontier_mock.serving.specs import SchedulerSpec
from frontier_mock.wire.lmcache import Sender

MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def worker(
    role: str,
    *,
    count: int = 1,
    name: str = "LMCacheConnectorV1",
    flags: str = "",
    tp: int = 1,
    **extra: object,
) -> str:
    config = {"kv_connector": name, "kv_role": role, "kv_connector_extra_config": extra}
    args = f"{{kv-transfer-config: {json.dumps(config)}{flags}}}"
    head = f"name: {role[3:]}, count: {count}, model: {MODEL}, port: 0, parallel: {{tp: {tp}}}"
    return f"    - {{{head}, engine_args: {args}}}\n"


def resolved(directory: Path, *workers: str) -> ResolvedCluster:
    path = directory / "s.yaml"
    path.write_text("name: s\ncluster:\n  workers:\n" + "".join(workers))
    return resolve_scenario(load_scenario(str(path)))


def senders(cluster: ResolvedCluster) -> list[Sender | None]:
    ports = [model.kv for model in served_models(cluster, None, {})]
    return [None if port is None else port.lmcache for port in ports]


def test_a_producer_knows_the_consumers_ports_and_its_proxy(tmp_path: Path) -> None:
    ports = {"lmcache.pd_peer_init_port": [7500, 7501]}
    proxy = {"lmcache.pd_proxy_host": "proxy", "lmcache.pd_proxy_port": 8500}
    cluster = resolved(
        tmp_path,
        worker("kv_producer", **proxy),
        worker("kv_consumer", count=2, tp=2, **ports),
    )
    assert [spec.role for spec in cluster.spec.workers] == ["prefill", "decode", "decode"]
    assert senders(cluster) == [Sender({7500: 1, 7502: 2}, "proxy:8500"), None, None]


@pytest.mark.parametrize(
    ("extra", "per_chunk", "rate"),
    [
        ({}, 16, 3.35e12 / 2),
        ({"skip_last_n_tokens": 1}, 1, 3.35e12 / 2),
        ({"lmcache.pd_buffer_device": "cpu"}, 16, 50e9),
    ],
)
def test_a_consumers_buffer(
    tmp_path: Path, extra: dict[str, object], per_chunk: int, rate: float
) -> None:
    more = {**extra, "lmcache.pd_buffer_size": 2 << 30}
    cluster = resolved(tmp_path, worker("kv_producer"), worker("kv_consumer", **more))
    scheduler = cluster.spec.workers[1].scheduler
    assert isinstance(scheduler, SchedulerSpec)
    made = scheduler.offload
    assert made is not None
    assert (made.blocking, made.stores, made.whole_prefix) == (True, False, True)
    assert made.blocks_per_chunk == per_chunk
    assert made.load.bytes_per_s == pytest.approx(rate, rel=0.01)
    # 128 KiB a token.
    assert made.num_chunks == (2 << 30) // (16 * per_chunk * 131072)
    producer = cluster.spec.workers[0].scheduler
    assert isinstance(producer, SchedulerSpec)
    assert producer.offload is None


def test_the_multi_process_connector_keeps_a_tier_in_any_role(tmp_path: Path) -> None:
    cluster = resolved(tmp_path, worker("kv_producer", name="LMCacheMPConnector"))
    scheduler = cluster.spec.workers[0].scheduler
    assert isinstance(scheduler, SchedulerSpec)
    assert scheduler.offload is not None
    assert scheduler.offload.stores
    assert senders(cluster) == [None]


@pytest.mark.parametrize(
    ("more", "flags", "why"),
    [
        ({"lmcache.pd_peer_init_port": "x"}, "", "lmcache.pd_peer_init_port: 'x'; allowed: a port"),
        ({"lmcache.pd_peer_init_port": 0}, "", "lmcache.pd_peer_init_port: 0; allowed: a port"),
        ({"lmcache.pd_buffer_size": -1}, "", "lmcache.pd_buffer_size: -1 is not a number above 0"),
        ({"skip_last_n_tokens": -1}, "", "skip_last_n_tokens: -1 is not a number from 0 on"),
        ({}, ", data-parallel-size: 2", "data parallel size 2 is not simulated; allowed: 1"),
        ({}, ", block-size: 32", r"block sizes \[16, 32\] differ"),
    ],
)
def test_what_a_consumer_is_refused(
    tmp_path: Path, more: dict[str, object], flags: str, why: str
) -> None:
    workers = worker("kv_producer"), worker("kv_consumer", flags=flags, **more)
    with pytest.raises(ConfigError, match=why):
        senders(resolved(tmp_path, *workers))


def test_two_receivers_on_one_port_are_refused(tmp_path: Path) -> None:
    again = worker("kv_consumer").replace("name: consumer", "name: other")
    cluster = resolved(tmp_path, worker("kv_producer"), worker("kv_consumer"), again)
    with pytest.raises(ConfigError, match=r"pd_peer_init_port: 7300 is taken twice"):
        senders(cluster)
