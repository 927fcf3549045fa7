"""The flags of SGLang's host tier, and the sizes they come to."""

import pytest

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.resolve import resolve_sglang
from frontier_mock.config.sglang_flags import parse_sglang_args
from frontier_mock.serving.specs import SglangSchedulerSpec

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
