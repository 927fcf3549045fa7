"""Published single figures of whole servers, beside ours. Rows of cost_model.md section 2.2."""

from collections.abc import Iterator

from frontier_mock.cli.anchors import Anchor
from frontier_mock.cluster.build import build_cluster
from frontier_mock.config.profiles import load_engine, load_hardware, load_kernels, load_model
from frontier_mock.config.resolve import resolve_single, resolve_single_sglang
from frontier_mock.config.sglang_flags import SglangArgs
from frontier_mock.config.vllm_flags import VllmArgs
from frontier_mock.cost.protocol import Chunk, RankBatch, StepCost
from frontier_mock.cost.specs import ParallelSpec, PrecisionSpec, StepSpec
from frontier_mock.cost.step import build_step_cost
from frontier_mock.drive.offline import run as play
from frontier_mock.report.summary import report_cluster
from frontier_mock.workload.build import build_source
from frontier_mock.workload.specs import ClosedLoopSpec, PromptSpec, UniformTokens

GPT_OSS = "openai/gpt-oss-120b"
INFERENCEX = PromptSpec(UniformTokens(819, 1024), UniformTokens(819, 1024))

_GPT_OSS_ROWS = (
    ("A11", 1, 4, 85.7, 6.33),
    ("A11", 2, 4, 63.8, 4.80),
    ("A11", 4, 4, 46.1, 3.94),
    ("A11", 8, 4, 36.9, 3.62),
    ("A12", 2, 64, 177.9, 14.42),
    ("A12", 4, 64, 117.0, 9.48),
    ("A12", 8, 64, 80.9, 7.05),
)
"""Row, tensor parallelism, concurrency, mean TTFT and TPOT in ms."""


def serving_anchors() -> list[Anchor]:
    """All of them, in the order of the tables."""
    return [*_gpt_oss(), *_single_stream(), *_gpt_oss_alone(), *_first_forward()]


def _gpt_oss() -> Iterator[Anchor]:
    """A11, A12: vLLM 0.18 on H200 under InferenceX's closed loop, its flags of 2026 unknown."""
    for row, tp, lanes, ttft_ms, tpot_ms in _GPT_OSS_ROWS:
        args = VllmArgs(
            model=GPT_OSS,
            tensor_parallel_size=tp,
            max_num_seqs=lanes,
            max_model_len=4096,
            enable_prefix_caching=False,
            gpu_memory_utilization=0.9,
        )
        resolved = resolve_single(args, "h200", "vllm-0.18", seed=0)
        loop = ClosedLoopSpec(INFERENCEX, lanes, 10 * lanes, 2 * lanes)
        done = play(build_cluster(resolved.spec, resolved.costs), build_source(loop, seed=0))
        measured = [item.measured for item in done.items]
        result = report_cluster(done.cluster, row, 0.0, measured).result
        what = f"gpt-oss-120b, H200 tp{tp}, vLLM 0.18, c{lanes}"
        yield Anchor(row, f"{what}: TTFT", "ms", ttft_ms, result["ttft_ms"]["mean"] or 0.0)
        yield Anchor(row, f"{what}: TPOT", "ms", tpot_ms, result["tpot_ms"]["mean"] or 0.0)


def _step_ms(cost: StepCost, num_seqs: int, kv_tokens: int) -> float:
    line = cost.decode(num_seqs, kv_tokens)
    return (line.base_ns + line.slope_ns * kv_tokens) / 1e6


def _single_stream() -> Iterator[Anchor]:
    """A61: one sequence's ITL by its context, bf16 and fp8 cache."""
    for cache, base_ms, slope_ms in (("auto", 6.44, 4.37e-5), ("fp8", 6.58, 2.37e-5)):
        args = VllmArgs(model="meta-llama/Llama-3.1-8B-Instruct", kv_cache_dtype=cache)
        (cost,) = resolve_single(args, "h100", "vllm-0.19", seed=0).costs
        for context in (1000, 65_536):
            what = f"Llama-3.1-8B, H100, vLLM 0.19, cache {cache}, context {context}: ITL"
            measured_ms = base_ms + slope_ms * context
            yield Anchor("A61", what, "ms", measured_ms, _step_ms(cost, 1, context))


def _gpt_oss_alone() -> Iterator[Anchor]:
    """A83: one sequence on SGLang; the context is not given, 1,000 tokens are taken."""
    args = SglangArgs(model_path=GPT_OSS, tp_size=8)
    (cost,) = resolve_single_sglang(args, "h100", "sglang-0.5.5", seed=0).costs
    what = "gpt-oss-120b, H100 tp8, SGLang, one sequence"
    yield Anchor("A83", what, "tokens/s", 318.5, 1e3 / _step_ms(cost, 1, 1000))


def _first_forward() -> Iterator[Anchor]:
    """first_prefill_forward_4096.csv: uncaptured, one rank of attention idle, vLLM 0.10.2."""
    for gpu, measured_ms in (("h800", 77.5), ("h200", 78.7)):
        hw, card = load_hardware(gpu), load_model("Qwen/Qwen3-30B-A3B")
        parallel = ParallelSpec(tp=4, dp=2, ep=8)
        engine = load_engine("vllm-0.10.2")
        spec = StepSpec(hw, card, parallel, PrecisionSpec(), engine, False, ())
        cost = build_step_cost(spec, load_kernels(hw.kernels))
        step_ns = cost.lockstep([RankBatch(0, 0, [Chunk(4096, 0)]), RankBatch(0, 0)])
        what = f"Qwen3-30B-A3B, {gpu} tp4 dp2 ep8: first forward of 4,096 tokens"
        yield Anchor("-", what, "ms", measured_ms, step_ns / 1e6)
