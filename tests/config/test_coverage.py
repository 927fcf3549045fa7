"""Every model family, GPU and engine version of the issue resolves and has a price, or is refused
with the numbers."""

import pytest

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.profiles import known_hardware, load_hardware
from frontier_mock.config.resolve import ResolvedCluster, resolve_single, resolve_single_sglang
from frontier_mock.config.sglang_flags import SglangArgs
from frontier_mock.config.vllm_flags import VllmArgs
from frontier_mock.cost.protocol import Chunk, StepCost

GPUS = [*["H800", "H100", "H200", "H20", "A100", "A800", "L20", "L40S"], "RTX PRO 6000", "RTX 4090"]
ENGINES = ["0.10", "0.11", "0.12", "0.15", "0.18", "0.19", "0.24", "0.30", "0.33"]
SGLANGS = ["0.5.5", "0.5.9", "0.5.23"]
FAMILIES = [
    *("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-70b-hf", "meta-llama/Llama-3.1-405B"),
    *("meta-llama/Meta-Llama-3.1-8B-Instruct", "meta-llama/Llama-3.3-70B-Instruct"),
    *("meta-llama/Llama-3.2-1B", "codellama/CodeLlama-70b-hf", "mistralai/Mistral-7B-v0.1"),
    *("Qwen/Qwen2.5-72B-Instruct", "Qwen/Qwen3-32B", "Qwen/Qwen3-8B-FP8", "Qwen/Qwen3-30B-A3B"),
    *("Qwen/Qwen3-235B-A22B-FP8", "mistralai/Mixtral-8x7B-v0.1", "mistralai/Mixtral-8x22B-v0.1"),
    *("deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-R1", "openai/gpt-oss-20b"),
    *("openai/gpt-oss-120b", "moonshotai/Kimi-K2-Instruct-0905", "moonshotai/Kimi-K2.5"),
    *("zai-org/GLM-4.5", "zai-org/GLM-5-FP8", "MiniMaxAI/MiniMax-M2.5", "stepfun-ai/step3-fp8"),
]


def prices(cost: StepCost) -> list[float]:
    """One sequence, many, a prompt, a longer one."""
    lines = [(cost.decode(n, 1000 * n), 1000 * n) for n in (1, 64)]
    decodes = [line.base_ns + line.slope_ns * tokens for line, tokens in lines]
    return decodes + [cost.mixed(0, 0, [Chunk(n, 0)]) for n in (4096, 8192)]


def assert_priced(resolved: ResolvedCluster) -> None:
    one, many, short, long = prices(resolved.costs[0])
    assert 0.0 < one <= many
    assert 0.0 < short < long


def served_on_eight_h200(model: str, engine: str) -> ResolvedCluster:
    if engine.startswith("vllm"):
        args = VllmArgs(model=model, tensor_parallel_size=8, max_model_len=4096)
        return resolve_single(args, "h200", engine, seed=0)
    return resolve_single_sglang(SglangArgs(model, tp_size=8), "h200", engine, seed=0)


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize("engine", ["vllm-0.33", "sglang-0.5.23"])
def test_every_model_family_has_a_price(model: str, engine: str) -> None:
    assert_priced(served_on_eight_h200(model, engine))


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("weights", [None, "fp8"])
def test_every_gpu_has_a_price_in_bf16_and_in_fp8(gpu: str, weights: str | None) -> None:
    args = VllmArgs(model="Qwen/Qwen3-4B", quantization=weights, max_model_len=8192)
    assert_priced(resolve_single(args, gpu, "vllm-0.33", seed=0))


def test_fp8_weights_on_ampere_save_bytes_but_no_multiplications() -> None:
    """There vLLM unpacks them on the way to bf16 tensor cores (Marlin)."""
    args = VllmArgs(model="Qwen/Qwen3-8B", max_model_len=8192)
    wide = prices(resolve_single(args, "a800", "vllm-0.33", seed=0).costs[0])
    fp8 = VllmArgs(model="Qwen/Qwen3-8B", quantization="fp8", max_model_len=8192)
    narrow = prices(resolve_single(fp8, "a800", "vllm-0.33", seed=0).costs[0])
    assert narrow[0] < 0.8 * wide[0]
    assert narrow[3] == pytest.approx(wide[3], rel=0.15)


@pytest.mark.parametrize("version", ENGINES)
def test_every_vllm_version_serves(version: str) -> None:
    args = VllmArgs(model="Qwen/Qwen3-8B", max_model_len=8192)
    resolved = resolve_single(args, "h800", f"vllm-{version}", seed=0)
    assert resolved.spec.workers[0].step.engine.version.startswith(f"{version}.")
    assert_priced(resolved)


@pytest.mark.parametrize("version", SGLANGS)
def test_every_sglang_version_serves(version: str) -> None:
    args = SglangArgs("Qwen/Qwen3-8B")
    assert_priced(resolve_single_sglang(args, "h800", f"sglang-{version}", seed=0))


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    args = VllmArgs(model="meta-llama/Llama-3.1-405B", tensor_parallel_size=8)
    with pytest.raises(ConfigError, match=r"h800: .* GiB x 0\.\d+, weights \d+\.\d+ GiB, left"):
        resolve_single(args, "h800", "vllm-0.33", seed=0)
    with pytest.raises(ConfigError, match=r"weights \d+\.\d+ GiB of \d+\.\d+ GiB"):
        resolve_single_sglang(
            SglangArgs("meta-llama/Llama-3.1-405B", tp_size=8), "h800", "sglang-0.5.9", seed=0
        )


def test_all_gpus_are_named_here() -> None:
    named = {load_hardware(name).name for name in GPUS}
    assert named == set(known_hardware())
