"""The flags of SGLang's host tier, and the sizes they come to."""

from pathlib import Path

import pytest

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.resolve import resolve_sglang
from frontier_mock.config.sglang_flags import parse_sglang_args
from frontier_mock.serving.specs import SglangSchedulerSpec
from frontier_mock.serving.tiers.specs import StorageSpec

MODEL = ("--model-path", "meta-llama/Llama-3.1-8B-Instruct", "--max-total-tokens", "100000")
TOKEN_BYTES = 2 * 8 * 128 * 2 * 32


def scheduler(*argv: str) -> SglangSchedulerSpec:
    args, _ = parse_sglang_args([*MODEL, *argv])
    spec = resolve_sglang(args, "h800", "sglang-0.5.23", "w", 0).spec.scheduler
    assert isinstance(spec, SglangSchedulerSpec)
    return spec


def test_without_the_flag_there_is_no_host_tier() -> None:
    assert scheduler("--hicache-ratio", "3").host_tier is None


def test_a_ratio_is_of_the_gpus_pool_and_a_size_goes_before_it() -> None:
    made = scheduler("--enable-hicache").host_tier
    assert made is not None
    assert (made.num_pages, made.layers, made.threshold) == (200_000, 32, 1)
    assert made.page_bytes == TOKEN_BYTES
    made = scheduler("--enable-hierarchical-cache", "--hicache-size", "50").host_tier
    assert made is not None
    assert made.num_pages == 50 * 10**9 // TOKEN_BYTES
    argv = ("--enable-hicache", "--hicache-write-policy", "write_through_selective")
    made = scheduler(*argv, "--hicache-ratio", "1.5", "--page-size", "16").host_tier
    assert made is not None
    assert (made.num_pages, made.page_bytes) == (9375, 16 * TOKEN_BYTES)
    assert made.threshold == 2


def test_without_a_radix_cache_there_is_nothing_to_keep() -> None:
    assert scheduler("--enable-hicache", "--disable-radix-cache").host_tier is None


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--hicache-ratio", "0.5"), "no larger"),
        (("--hicache-write-policy", "write_back"), "write_through"),
        (("--kv-events-config", '{"publisher": "zmq"}'), "kv-events-config"),
    ],
)
def test_what_is_not_simulated_is_refused_by_name(argv: tuple[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        scheduler("--enable-hicache", *argv)


def storage(*argv: str) -> StorageSpec | None:
    made = scheduler("--enable-hicache", "--page-size", "64", *argv).host_tier
    assert made is not None
    return made.storage


def test_storage_is_what_its_flags_say() -> None:
    assert storage() is None
    assert scheduler("--hicache-storage-backend", "file").host_tier is None
    made = storage("--hicache-storage-backend", "hf3fs")
    assert made is not None
    assert (made.policy, made.threshold_tokens, made.contributed_pages) == ("timeout", 256, 0)
    assert (made.timeout_base_s, made.timeout_per_page_s) == (1.0, 0.25 / 16)
    assert made.load.latency_s == 0.45e-3
    extra = '{"prefetch_threshold": 512, "prefetch_timeout_base": 2, "global_segment_size": "8gb"}'
    made = storage(
        *("--hicache-storage-backend", "mooncake"),
        *("--hicache-storage-backend-extra-config", extra),
        *("--hicache-storage-prefetch-policy", "wait_complete"),
    )
    assert made is not None
    assert (made.policy, made.threshold_tokens, made.timeout_base_s) == ("wait_complete", 512, 2)
    assert made.contributed_pages == 8 * 2**30 // (64 * TOKEN_BYTES)


def test_servers_share_what_is_shared() -> None:
    def pool(server: str, *argv: str) -> str:
        args, _ = parse_sglang_args([*MODEL, "--enable-hicache", *argv])
        spec = resolve_sglang(args, "h800", "sglang-0.5.23", server, 0).spec.scheduler
        assert isinstance(spec, SglangSchedulerSpec)
        assert spec.host_tier is not None
        assert spec.host_tier.storage is not None
        return spec.host_tier.storage.pool

    everywhere = ("--hicache-storage-backend", "mooncake")
    assert pool("a", *everywhere) == pool("b", *everywhere)
    assert pool("a", *everywhere) != pool("a", *everywhere, "--page-size", "64")
    files = ("--hicache-storage-backend", "file")
    assert pool("a", *files) != pool("b", *files)
    path = ("--file-storage-path", "/mnt/shared")
    assert pool("a", *files, *path) == pool("b", *files, *path)


def test_options_of_storage_may_be_in_a_file(tmp_path: Path) -> None:
    name = "--hicache-storage-backend-extra-config"
    for file, text in (
        ("one.json", '{"prefetch_threshold": 300}'),
        ("one.toml", "prefetch_threshold = 300"),
        ("one.yaml", "prefetch_threshold: 300"),
    ):
        (tmp_path / file).write_text(text)
        made = storage("--hicache-storage-backend", "nixl", name, f"@{tmp_path / file}")
        assert made is not None
        assert made.threshold_tokens == 300


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "is not an object"),
        ('{"prefetch_threshold": "x"}', "prefetch_threshold"),
        ('{"prefetch_timeout_base": -1}', "prefetch_timeout_base"),
        ('{"global_segment_size": "4tb"}', "global_segment_size"),
        ("@nowhere.json", "cannot read"),
        ("@nowhere.txt", "allowed"),
    ],
)
def test_bad_options_of_storage_are_named(extra: str, said: str) -> None:
    name = "--hicache-storage-backend-extra-config"
    with pytest.raises(ConfigError, match=said):
        storage("--hicache-storage-backend", "mooncake", name, extra)
    with pytest.raises(ConfigError, match="mooncake"):
        storage("--hicache-storage-backend", "dynamic")
