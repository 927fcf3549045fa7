"""--kv-events-config: what it may say, and where the workers of a scenario then publish."""

from pathlib import Path

import pytest

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.kv_events import KvSource
from frontier_mock.config.kv_sources import check_oracle, kv_sources
from frontier_mock.config.resolve import resolve_scenario, resolve_single
from frontier_mock.config.scenario import load_scenario
from frontier_mock.config.vllm_flags import parse_serve

SCENARIO = """\
name: kv
seed: 0
cluster:
  workers:
    - name: w
      count: {count}
      engine: {engine}
      model: meta-llama/Llama-3.1-8B-Instruct
      hardware: h800
      engine_args: {args}
"""


def sources(
    directory: Path,
    args: str,
    *,
    count: int = 2,
    engine: str = "vllm-0.33",
    environ: dict[str, str] | None = None,
    dialect: str | None = None,
) -> dict[int, KvSource]:
    path = directory / "kv.yaml"
    path.write_text(SCENARIO.format(count=count, engine=engine, args=args))
    cluster = resolve_scenario(load_scenario(str(path)))
    return kv_sources(cluster, environ or {}, dialect)


def endpoints(found: dict[int, KvSource]) -> list[tuple[str, str | None]]:
    return [(source.config.endpoint, source.config.replay_endpoint) for source in found.values()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"endpont": "x"}', "unknown key 'endpont' .did you mean endpoint?"),
        ('{"endpoint": "nowhere"}', "endpoint: 'nowhere'; allowed: tcp://HOST:PORT, ipc://PATH"),
        ('{"endpoint": "tcp://*:99999"}', "allowed: tcp://HOST:PORT"),
        ('{"publisher": "kafka"}', "publisher: 'kafka'; allowed: null, zmq"),
        ('{"hwm": -1}', "hwm: -1 is not a whole number >= 0"),
        ('{"enable_kv_cache_events": 1}', "enable_kv_cache_events: 1 is not true or false"),
        ('{"topic": 5}', "topic: 5 is not text"),
        ('{"bind": true}', "unknown key 'bind'"),
        ("[1]", "is not a JSON object"),
    ],
)
def test_bad_config(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"argument --kv-events-config: .*{message}"):
        parse_serve(["model", "--kv-events-config", text], {})


def test_workers_count_up(tmp_path: Path) -> None:
    text = (
        "{{kv-events-config: "
        "{{enable_kv_cache_events: true, endpoint: '{}', replay_endpoint: '{}'}}}}"
    )
    found = sources(tmp_path, text.format("tcp://*:5557", "tcp://*:6557"))
    assert endpoints(found) == [
        ("tcp://*:5557", "tcp://*:6557"),
        ("tcp://*:5558", "tcp://*:6558"),
    ]
    assert {source.rank for source in found.values()} == {0}
    # Replay ports right behind: each worker has a pair.
    found = sources(tmp_path, text.format("tcp://*:5557", "tcp://*:5558"))
    assert endpoints(found) == [
        ("tcp://*:5557", "tcp://*:5558"),
        ("tcp://*:5559", "tcp://*:5560"),
    ]
    found = sources(tmp_path, text.format("tcp://epp:5557", "tcp://*:6557"))
    assert [source.config.endpoint for source in found.values()] == ["tcp://epp:5557"] * 2


def test_ranks_count_up() -> None:
    argv = ["meta-llama/Llama-3.1-8B-Instruct", "--data-parallel-size", "2"]
    argv += ["--kv-events-config", '{"enable_kv_cache_events": true}']
    cluster = resolve_single(parse_serve(argv, {}).vllm, "h800", "vllm-0.33", 0)
    found = kv_sources(cluster, {})
    assert [(source.rank, source.config.endpoint) for source in found.values()] == [
        (0, "tcp://*:5557"),
        (1, "tcp://*:5558"),
    ]


def test_hash_settings(tmp_path: Path) -> None:
    args = "{kv-events-config: {enable_kv_cache_events: true, topic: 'kv@{worker}@{model}'}}"
    first, second = sources(tmp_path, args).values()
    assert (first.hash_algorithm, first.hash_seed) == ("sha256", "vllm-none-hash")
    assert first.config.topic == "kv@w0@meta-llama/Llama-3.1-8B-Instruct"
    assert second.config.topic == "kv@w1@meta-llama/Llama-3.1-8B-Instruct"
    assert (first.dialect, first.as_bytes) == ("vllm-map", False)
    environ = {"PYTHONHASHSEED": "7", "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "0"}
    one, _ = sources(tmp_path, args, environ=environ, dialect="array").values()
    assert (one.hash_seed, one.as_bytes, one.dialect) == ("7", True, "array")
    fast = args.replace("{kv-events", "{prefix-caching-hash-algo: xxhash_cbor, kv-events")
    first, second = sources(tmp_path, fast).values()
    assert first.hash_seed != second.hash_seed
    with pytest.raises(ConfigError, match="USE_INT_BLOCK_HASHES: 'yes'; allowed: 0, 1"):
        sources(tmp_path, args, environ={"VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "yes"})
    with pytest.raises(ConfigError, match="kv-event-dialect: 'xml'; allowed: vllm-map"):
        sources(tmp_path, args, dialect="xml")


@pytest.mark.parametrize(
    "args",
    [
        "{}",
        "{kv-events-config: {enable_kv_cache_events: false, publisher: zmq}}",
        "{kv-events-config: {enable_kv_cache_events: true, publisher: 'null'}}",
        "{enable-prefix-caching: false, kv-events-config: {enable_kv_cache_events: true}}",
    ],
)
def test_nothing_to_publish(args: str, tmp_path: Path) -> None:
    assert sources(tmp_path, args) == {}


def test_sglang(tmp_path: Path) -> None:
    args = (
        """{kv-events-config: '{"publisher": "zmq", "endpoint": "tcp://*:5557"}', page-size: 4}"""
    )
    first, second = sources(tmp_path, args, engine="sglang-0.5.23").values()
    assert (first.hash_algorithm, first.block_tokens, first.dialect) == (None, 4, "sglang-map")
    assert (first.load_endpoint, second.config.endpoint) == (None, "tcp://*:5558")
    loads = args.replace("page-size", "load-publish-endpoint: auto, page-size")
    found = sources(tmp_path, loads, engine="sglang-0.5.23").values()
    assert [(s.config.endpoint, s.load_endpoint) for s in found] == [
        ("tcp://*:5557", "tcp://*:5558"),
        ("tcp://*:5559", "tcp://*:5560"),
    ]
    assert all(source.max_running_requests > 0 for source in found)


def test_the_oracle_wants_one_block_size(tmp_path: Path) -> None:
    path = tmp_path / "mixed.yaml"
    text = SCENARIO.format(count=1, engine="vllm-0.33", args="{block-size: 32}")
    path.write_text(text + "    - {name: x, model: meta-llama/Llama-3.1-8B-Instruct}\n")
    with pytest.raises(ConfigError, match=r"oracle: workers differ in block size \(w 32, x 16\)"):
        check_oracle(resolve_scenario(load_scenario(str(path))))
