"""How NVIDIA's gap-analysis rows were taken, as far as its own tools and the rows say.

The rows were made by ai-dynamo/aiconfigurator: its generator writes the engines' flags for a
length and a concurrency, starts Dynamo, and runs genai-perf or aiperf against it.

Documented there (generator/rule_plugin, generator/config/backend_templates, eval/benchmarks and
aiperf's defaults):

- vLLM's token budget is the prompt, 1500 and the concurrency, not vLLM's default;
- models in fp8 get an fp8 KV cache in the later sweep;
- SGLang since 0.5.3 mixes prompt chunks with decodes and takes a prompt and 1500 tokens at a time
  (the template of 0.5.1.post1 misspelled the flag, so that version does not);
- the earlier sweep, whose lengths are powers of two, used 12 prompts per lane, so none came twice,
  10 requests a lane and 2 to warm up;
- the later one, whose lengths are round thousands, left aiperf's default of 100 prompts.

Inferred from the rows, because no version of the script that we found has it: the later sweep
warmed up with one request a lane, and vLLM cached prefixes. The first hundred prompts are then
computed and the others are not, and TTFT comes within 12 % where it was 60 to 500 % off. SGLang's
rows of that sweep show that it computed every prompt.
"""

from dataclasses import replace

from frontier_mock.config.sglang_flags import SglangArgs
from frontier_mock.config.vllm_flags import VllmArgs
from frontier_mock.workload.specs import ClosedLoopSpec, FixedTokens, PromptSpec

AIPERF_PROMPTS = 100
"""aiperf's `--num-dataset-entries` where none is given."""

SPARE_TOKENS = 1500
"""What the generator adds to a prompt wherever it sizes something for it."""

_MIXED_SINCE = (0, 5, 3)


def later_sweep(isl: int) -> bool:
    """Whether a row with this prompt length is of the sweep of January 2026."""
    return isl % 1000 == 0


def gap_loop(backend: str, isl: int, osl: int, lanes: int) -> ClosedLoopSpec:
    """The client of a row."""
    later = later_sweep(isl)
    repeats = AIPERF_PROMPTS if later and backend == "vllm" else None
    prompts = PromptSpec(FixedTokens(isl), FixedTokens(osl), distinct_prompts=repeats)
    return ClosedLoopSpec(prompts, lanes, 10 * lanes, lanes if later else 2 * lanes)


def gap_vllm_args(args: VllmArgs, fp8: bool, isl: int, osl: int, lanes: int) -> VllmArgs:
    """`args` with what the generator writes for vLLM; `fp8` is the row's precision."""
    return replace(
        args,
        kv_cache_dtype="fp8" if fp8 and later_sweep(isl) else args.kv_cache_dtype,
        max_num_batched_tokens=lanes + isl + SPARE_TOKENS,
        max_model_len=isl + osl + SPARE_TOKENS,
        enable_prefix_caching=later_sweep(isl),
    )


def gap_sglang_args(args: SglangArgs, fp8: bool, version: tuple[int, ...], isl: int) -> SglangArgs:
    """`args` with what the generator writes for SGLang of that version."""
    if version < _MIXED_SINCE:
        return args
    return replace(
        args,
        kv_cache_dtype="fp8_e4m3" if fp8 and later_sweep(isl) else args.kv_cache_dtype,
        enable_mixed_chunk=True,
        max_prefill_tokens=isl + SPARE_TOKENS,
    )
