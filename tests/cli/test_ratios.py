"""Ratio studies: they rank as the physics says, and refuse in one line."""

from functools import partial
from operator import ge

import pytest

from frontier_mock.cli import ratios
from frontier_mock.cli.ratios import Ratio, largest, study
from frontier_mock.config.afd import AfdArgs
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.vllm_flags import VllmArgs

STEP3 = "stepfun-ai/step3-fp8"


def studied(attention: int, context: int, ffn_hardware: str | None = None) -> Ratio:
    afd = AfdArgs(8 * attention, 16, attention, 2, ffn_hardware=ffn_hardware)
    args = VllmArgs(model=STEP3, max_model_len=context, afd=afd)
    return study(args, "h800", f"{attention}A2F", context, 50.0)


def best(context: int) -> int:
    return max((1, 2, 3, 4, 8, 16), key=lambda n: studied(n, context).tokens_per_s_per_gpu)


def test_longer_contexts_want_more_attention() -> None:
    """Step-3's own choice grows from 2A2F or 3A2F at 4k over 4A2F at 8k to 16A2F at 32k."""
    assert best(4096) in (2, 3)
    assert best(8192) == 4
    assert best(32_768) == 16


def test_the_batch_is_the_largest_that_keeps_the_time() -> None:
    found = studied(8, 4096)
    assert found.bound == "time"
    assert found.tpot_ms <= 50.0
    assert found.gpus == 80


def test_enough_attention_makes_ffn_the_limit() -> None:
    few, many = studied(1, 4096), studied(16, 4096)
    assert few.bound == "KV"
    assert many.batch < few.batch


def test_prices_are_what_they_are_said_to_be() -> None:
    afd = AfdArgs(16, 16, 2, 2, ffn_hardware="h20")
    args = VllmArgs(model=STEP3, max_model_len=4096, afd=afd)
    prices = {"h800": 3.0, "h20": 1.0}
    found = study(args, "h800", "2A2F", 4096, 50.0, prices)
    dollars_per_s = (16 * 3.0 + 16 * 1.0) / 3600
    assert found.tokens_per_usd == pytest.approx(32 * found.tokens_per_s_per_gpu / dollars_per_s)


def test_cheap_memory_suits_attention_over_a_large_cache() -> None:
    """Grouped-query attention reads much and computes little; experts do the opposite."""
    prices = {"h800": 2.0, "h20": 1.2}

    def found(attention: str, ffn: str) -> Ratio:
        afd = AfdArgs(32, 8, 4, 1, ffn_hardware=ffn)
        args = VllmArgs(model="Qwen/Qwen3-235B-A22B-FP8", max_model_len=8192, afd=afd)
        return study(args, attention, "4A1F", 8192, 50.0, prices)

    alike, mixed, swapped = found("h800", "h800"), found("h20", "h800"), found("h800", "h20")
    assert mixed.tokens_per_usd > 1.2 * alike.tokens_per_usd
    assert swapped.tokens_per_usd < mixed.tokens_per_usd


def test_largest() -> None:
    for limit, found in ((0, 0), (1, 1), (7, 7), (10, 10), (99, 10)):
        assert largest(partial(ge, limit), 10) == found


def test_the_command_prints_a_row_per_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert ratios.run([STEP3, "--contexts", "4096,8192", "--ratios", "2A2F,4A2F"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("A2F") == 4
    assert printed.count("│ * │") == 2


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--ratios", "3F2A"], "'3F2A' is not like 3A2F"),
        (["--contexts", "4k"], "'4k' is not a number of tokens"),
        (["--prices", "h800"], "'h800' is not like h800=2.5"),
        (["--prices", "h900=2"], "hardware is one of a100"),
        (["--tpot-ms", "0"], "0.0 is not above 0"),
        (["--micro-batches", "0"], "0 is not in 1..16"),
        (["--ratios", "2A4F"], "do not divide into 32 FFN GPUs"),
    ],
)
def test_what_cannot_be_is_one_line(argv: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ratios.run([STEP3, *argv])
