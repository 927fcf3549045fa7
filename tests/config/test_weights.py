"""Weight formats and ranks of experts, from a scenario's words to what is simulated."""

import pytest

from frontier_mock.config.resolve import resolve_scenario
from frontier_mock.config.scenario import parse_scenario
from frontier_mock.config.weights import VLLM_WEIGHTS, weight_format
from frontier_mock.config.workloads import TraceSearch

SCENARIO = """\
name: x
cluster:
  workers:
    - name: w
      engine: {engine}
      model: Qwen/Qwen3-30B-A3B
      quantization: {word}
      parallel: {{tp: 2, ep: {ep}}}
"""


def capacity(engine: str, word: str, ep: int = 1) -> int:
    text = SCENARIO.format(engine=engine, word=word, ep=ep)
    scenario = parse_scenario(text, "x.yaml", TraceSearch(()))
    return resolve_scenario(scenario).workers[0].spec.scheduler.num_blocks


@pytest.mark.parametrize("engine", ["vllm-0.33", "sglang-0.5.23"])
def test_smaller_weights_leave_more_room(engine: str) -> None:
    sizes = [capacity(engine, word) for word in ("none", "fp8", "int4")]
    assert sizes[0] < sizes[1] < sizes[2]


def test_every_word_means_something_to_vllm() -> None:
    assert len({capacity("vllm-0.33", word) for word in ("none", "fp8", "int4", "mxfp4")}) == 4
    assert capacity("vllm-0.33", "fp8_block") > capacity("vllm-0.33", "none")


@pytest.mark.parametrize("engine", ["vllm-0.33", "sglang-0.5.23"])
def test_experts_are_spread_by_a_key_of_the_scenario(engine: str) -> None:
    text = SCENARIO.format(engine=engine, word="none", ep=2)
    [worker] = parse_scenario(text, "x.yaml", TraceSearch(())).groups
    spread = worker.args.enable_expert_parallel if worker.sglang is None else worker.sglang.ep_size
    assert spread in (True, 2)


def test_a_flag_does_not_change_a_quantized_checkpoint() -> None:
    assert weight_format("fp8_block", "fp8", VLLM_WEIGHTS) == "fp8_block"
    assert weight_format("bf16", "fp8_per_block", VLLM_WEIGHTS) == "fp8_block"
    assert weight_format("bf16", None, VLLM_WEIGHTS) == "bf16"
