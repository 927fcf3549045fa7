"""Pipeline stages as users ask for them."""

import pytest

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.resolve import ResolvedWorker, resolve_sglang, resolve_worker
from frontier_mock.config.sglang_flags import parse_sglang_serve
from frontier_mock.config.vllm_flags import parse_serve
from frontier_mock.serving.specs import SchedulerSpec, SglangSchedulerSpec

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"


def resolve(
    *flags: str, engine: str = "vllm-0.33", environment: dict[str, str] | None = None
) -> ResolvedWorker:
    args = parse_serve(flags, environment or {}).vllm
    return resolve_worker(args, "h800", engine, "w0", 8000)


def scheduler(worker: ResolvedWorker) -> SchedulerSpec:
    assert isinstance(worker.spec.scheduler, SchedulerSpec)
    return worker.spec.scheduler


def test_stages_reach_price_memory_and_scheduler() -> None:
    alone = resolve(LLAMA_8B)
    staged = resolve(LLAMA_8B, "-pp", "2")
    assert staged.spec.step.parallel.pp == 2
    assert staged.spec.gpus == 2
    assert scheduler(staged).pipeline_stages == 2
    assert scheduler(staged).num_blocks > 2 * scheduler(alone).num_blocks
    assert staged.memory.bytes_per_block * 2 == alone.memory.bytes_per_block


def test_the_layers_of_each_stage_are_vllms_variable() -> None:
    uneven = {"VLLM_PP_LAYER_PARTITION": "20,12"}
    staged = resolve(LLAMA_8B, "-pp", "2", environment=uneven)
    assert staged.spec.step.parallel.stage_layers == (20, 12)
    assert scheduler(staged).num_blocks < scheduler(resolve(LLAMA_8B, "-pp", "2")).num_blocks
    assert resolve(LLAMA_8B, environment=uneven).spec.step.parallel.stage_layers == ()


def test_only_the_second_model_runner_schedules_ahead_with_stages() -> None:
    assert scheduler(resolve(LLAMA_8B, "-pp", "2")).async_scheduling
    old = resolve(LLAMA_8B, "-pp", "2", engine="vllm-0.24")
    assert not scheduler(old).async_scheduling
    assert not old.spec.step.async_scheduling
    assert scheduler(resolve(LLAMA_8B, engine="vllm-0.24")).async_scheduling
    with pytest.raises(ConfigError, match="not supported by the V1 model runner with pipeline"):
        resolve(LLAMA_8B, "-pp", "2", "--async-scheduling", engine="vllm-0.24")


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (["-pp", "33"], {}, "pipeline-parallel-size: pp is 33; .* has 32 layers"),
        (["-pp", "2"], {"VLLM_PP_LAYER_PARTITION": "20,13"}, "stages of 20, 13 layers are not 2"),
        (["-pp", "2"], {"VLLM_PP_LAYER_PARTITION": "half"}, "'half' is no list of numbers"),
    ],
)
def test_stages_that_cannot_be_are_refused(
    flags: list[str], environment: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(LLAMA_8B, *flags, environment=environment)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--kv-offloading-size", "10"], "a tier under the KV cache of 2 pipeline stages is not"),
        (
            ["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 3}'],
            "speculative decoding with pipeline parallelism",
        ),
    ],
)
def test_what_is_not_simulated_beside_stages_is_refused(flags: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve(LLAMA_8B, "-pp", "2", *flags)


def test_ranks_of_attention_with_stages_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 stages of 2 attention ranks are not simulated"):
        resolve("Qwen/Qwen3-30B-A3B", "-pp", "2", "-dp", "2", "-ep")


def resolve_pages(*flags: str, environment: dict[str, str] | None = None) -> ResolvedWorker:
    args = parse_sglang_serve(["--model", LLAMA_8B, *flags], environment).sglang
    return resolve_sglang(args, "h800", "sglang-0.5.23", "w0", 8000)


def test_sglangs_stages_have_layers_by_its_own_rule_and_no_overlap() -> None:
    alone, staged = resolve_pages(), resolve_pages("--pp-size", "3", "--pp-async-batch-depth", "1")
    scheduler = staged.spec.scheduler
    assert isinstance(scheduler, SglangSchedulerSpec)
    assert staged.spec.step.parallel.stage_layers == (10, 11, 11)
    assert (scheduler.pipeline_stages, scheduler.pp_async_batch_depth) == (3, 1)
    assert not scheduler.enable_overlap
    assert not staged.spec.step.async_scheduling
    assert scheduler.num_pages > 2.5 * alone.spec.scheduler.num_blocks
    uneven = {"SGLANG_PP_LAYER_PARTITION": "20,12"}
    partition = resolve_pages("--pp-size", "2", environment=uneven).spec.step.parallel
    assert partition.stage_layers == (20, 12)


def test_sglangs_prefill_and_decode_servers_have_one_stage() -> None:
    with pytest.raises(ConfigError, match="pp-size: 2 is not simulated with --disaggregation-mode"):
        resolve_pages("--pp-size", "2", "--disaggregation-mode", "prefill")
