"""The flags of vLLM's CPU tiers, and the sizes they come to."""

import json

import pytest

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.resolve import resolve_worker
from frontier_mock.config.vllm_flags import parse_serve
from frontier_mock.serving.specs import SchedulerSpec
from frontier_mock.serving.tiers.specs import OffloadSpec

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
GIB = 1 << 30
BLOCK_BYTES = 16 * 2 * 8 * 128 * 2 * 32


def tier(*argv: str) -> OffloadSpec | None:
    args = parse_serve([MODEL, *argv], {}).vllm
    scheduler = resolve_worker(args, "h800", "vllm-0.33", "w", 8000).spec.scheduler
    assert isinstance(scheduler, SchedulerSpec)
    return scheduler.offload


def transfer(connector: str, **extra: object) -> tuple[str, str]:
    config = {
        "kv_connector": connector,
        "kv_role": "kv_both",
        "kv_connector_extra_config": extra,
    }
    return "--kv-transfer-config", json.dumps(config)


def test_without_flags_there_is_no_tier() -> None:
    assert tier() is None


def test_a_size_makes_a_native_tier_over_all_ranks() -> None:
    made = tier("--kv-offloading-size", "10", "--tensor-parallel-size", "4")
    assert made is not None
    assert (made.name, made.blocks_per_chunk) == ("OffloadingConnector", 1)
    assert made.block_bytes == BLOCK_BYTES // 4
    assert made.num_chunks == 10 * GIB // BLOCK_BYTES
    assert made.load.bytes_per_s == pytest.approx(50e9)


def test_a_connector_says_the_same_in_its_own_keys() -> None:
    made = tier(
        *transfer(
            "OffloadingConnector",
            cpu_bytes_to_use=10 * GIB,
            block_size=48,
            eviction_policy="arc",
            store_threshold=2,
            offload_prompt_only=False,
        )
    )
    assert made is not None
    assert made.blocks_per_chunk == 3
    assert made.num_chunks == 10 * GIB // (3 * BLOCK_BYTES)
    assert (made.eviction_policy, made.store_threshold) == ("arc", 2)
    assert not made.offload_prompt_only


def test_lmcache_keeps_chunks_of_256_tokens_and_steps_wait_for_it() -> None:
    made = tier(*transfer("LMCacheConnectorV1", **{"lmcache.max_local_cpu_size": 20}))
    assert made is not None
    assert (made.blocks_per_chunk, made.blocking, made.whole_prefix) == (16, True, True)
    assert made.num_chunks == 20 * GIB // (16 * BLOCK_BYTES)
    server = tier("--kv-offloading-size", "10", "--kv-offloading-backend", "lmcache")
    assert server is not None
    assert (server.name, server.blocking) == ("LMCacheMPConnector", False)


def test_a_multi_connector_may_have_a_tier_and_move_kv_between_engines() -> None:
    listed = [
        {"kv_connector": "NixlConnector", "kv_role": "kv_both"},
        {
            "kv_connector": "OffloadingConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"cpu_bytes_to_use": GIB},
        },
    ]
    argv = [MODEL, *transfer("MultiConnector", connectors=listed)]
    worker = resolve_worker(parse_serve(argv, {}).vllm, "h800", "vllm-0.33", "w", 8000)
    assert worker.spec.connector is not None
    assert worker.spec.connector.name == "NixlConnector"
    assert isinstance(worker.spec.scheduler, SchedulerSpec)
    assert worker.spec.scheduler.offload is not None


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--kv-offloading-size", "0"), "not above 0"),
        (transfer("OffloadingConnector"), "cpu_bytes_to_use"),
        (transfer("OffloadingConnector", cpu_bytes_to_use=GIB, block_size=40), "Use 48 instead"),
        (transfer("OffloadingConnector", cpu_bytes_to_use=GIB, eviction_policy="mru"), "lru, arc"),
        (transfer("OffloadingConnector", cpu_bytes_to_use=GIB, spec_name="Tiering"), "spec_name"),
        (
            transfer(
                "OffloadingConnector", cpu_bytes_to_use=GIB, block_size=16, blocks_per_chunk=1
            ),
            "only one",
        ),
        (transfer("OffloadingConnector", cpu_bytes_to_use=GIB, store_threshold=-1), "store_thresh"),
        (transfer("MultiConnector"), "connectors"),
        (transfer("LMCacheConnectorV1", **{"lmcache.chunk_size": 100}), "chunk_size"),
    ],
)
def test_bad_values_are_refused_by_name(argv: tuple[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tier(*argv)
