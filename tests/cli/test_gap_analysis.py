"""How the gap-analysis rows were taken: flags by aiconfigurator, prompts by aiperf."""

from frontier_mock.cli.accuracy_rows import Outcome
from frontier_mock.cli.gap_analysis import gap_loop, gap_sglang_args, gap_vllm_args
from frontier_mock.config.sglang_flags import SglangArgs
from frontier_mock.config.vllm_flags import VllmArgs


def test_the_later_sweep_repeats_a_hundred_prompts_on_vllm() -> None:
    loop = gap_loop("vllm", 4000, 100, 32)
    assert (loop.prompts.distinct_prompts, loop.warmup_requests, loop.num_requests) == (
        100,
        32,
        320,
    )
    assert gap_loop("sglang", 4000, 100, 32).prompts.distinct_prompts is None


def test_the_earlier_sweep_repeats_none() -> None:
    loop = gap_loop("vllm", 4096, 128, 16)
    assert (loop.prompts.distinct_prompts, loop.warmup_requests) == (None, 32)


def test_vllm_gets_a_budget_of_prompt_and_concurrency() -> None:
    args = gap_vllm_args(VllmArgs(model="m"), False, 1024, 128, 16)
    assert args.max_num_batched_tokens == 1024 + 1500 + 16
    assert (args.kv_cache_dtype, args.enable_prefix_caching) == ("auto", False)
    later = gap_vllm_args(VllmArgs(model="m"), True, 1000, 100, 16)
    assert (later.kv_cache_dtype, later.enable_prefix_caching) == ("fp8", True)


def test_sglang_mixes_chunks_since_its_template_spells_the_flag() -> None:
    old = gap_sglang_args(SglangArgs(model_path="m"), False, (0, 5, 1), 1024)
    assert not old.enable_mixed_chunk
    new = gap_sglang_args(SglangArgs(model_path="m"), True, (0, 5, 6), 2000)
    assert (new.enable_mixed_chunk, new.max_prefill_tokens) == (True, 3500)
    assert new.kv_cache_dtype == "fp8_e4m3"


def test_throughput_of_a_closed_loop_is_inverse_to_the_time_of_a_request() -> None:
    row = Outcome("g", "l", 1, 8, 10.0, 5.0, 100.0, 100.0, 101, True)
    assert row.throughput_ratio == (100 + 1000) / (100 + 500)
