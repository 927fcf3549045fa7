"""Every measured serving row beside its simulation, run from its configuration alone.

Client protocols are those of cost_model.md section 2.1, and for NVIDIA's gap analysis those of
`cli.gap_analysis`.
"""

import csv
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from frontier_mock.cli.gap_analysis import gap_loop, gap_sglang_args, gap_vllm_args
from frontier_mock.cluster.build import build_cluster
from frontier_mock.config.resolve import ResolvedCluster, resolve_single, resolve_single_sglang
from frontier_mock.config.sglang_flags import SglangArgs
from frontier_mock.config.vllm_flags import VllmArgs
from frontier_mock.core.events import Finished, FirstToken, Submitted
from frontier_mock.cost.specs import StepSpec
from frontier_mock.drive.offline import OfflineRun
from frontier_mock.drive.offline import run as play
from frontier_mock.workload.build import build_source
from frontier_mock.workload.specs import (
    ClosedLoopSpec,
    FixedTokens,
    OpenLoopSpec,
    PromptSpec,
    UniformTokens,
    WorkloadSpec,
)

SERVING = "h100_h200_serving_mean_ttft_tpot.csv"
OPEN_LOOP = "h100_llama2_7b_openloop_vllm0_15.csv"
IX_VERSION = "0.10.2"
"""The InferenceX rows carry no version; its image of 2025-09 was vLLM 0.10.2."""

GPUS = {"h100_sxm": "h100", "h200_sxm": "h200"}
DENSE_MODELS = {
    "meta-llama/Llama-3.1-70B": "meta-llama/Llama-3.1-70B-Instruct",
    "Qwen/Qwen3-32B": "Qwen/Qwen3-32B",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Llama-3.1-8B-Instruct",
}
"""Model of a row, and its card."""

FP8_CACHES = ("meta-llama/Llama-3.1-70B", "nvidia/Llama-3.1-8B-Instruct-FP8")
"""InferenceX's flag of 2025, and what ModelOpt's checkpoints say of themselves
(kv_cache_quant_algo)."""

EXPERT_MODELS = ("MiniMaxAI/MiniMax-M2.5", "Qwen/Qwen3-235B-A22B-FP8")
OLDEST_SGLANG = "0.5.5"
"""Rows of older versions than the oldest preset are run with that."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One measured row beside its simulation.

    `output_tokens` is the mean answer. `ttft_known`: what the client does is documented, or was
    inferred from rows whose TTFT then fits (`cli.gap_analysis`). `peak_share` is the fraction of
    the GPUs' peak that linear layers alone would take if the measured latencies held at the stated
    concurrency and every prompt were computed; 0 for models with experts. Where it is above what
    kernels reach, something in the row is not as it says.
    """

    group: str
    label: str
    tp: int
    load: float
    tpot_ms: float
    tpot_sim_ms: float
    ttft_ms: float
    ttft_sim_ms: float
    output_tokens: float
    ttft_known: bool
    closed_loop: bool = True
    peak_share: float = 0.0

    @property
    def throughput_ratio(self) -> float:
        """Simulated over measured output tokens per second.

        Requests in flight are as many in both, so by Little's law it is the inverse ratio of how
        long a request takes. Only for closed loops; an open loop's throughput is its rate.
        """
        steps = self.output_tokens - 1
        measured = self.ttft_ms + steps * self.tpot_ms
        return measured / (self.ttft_sim_ms + steps * self.tpot_sim_ms)


@dataclass(frozen=True, slots=True)
class _Row:
    """What both engines' rows say, in numbers."""

    isl: int
    osl: int
    lanes: int
    tp: int
    ep: int
    model: str
    version: str
    fp8: bool

    @property
    def dense(self) -> bool:
        """Whether the model has no experts."""
        return self.model in DENSE_MODELS


def measure(data: Path, wanted: str = "") -> list[Outcome]:
    """Simulate every visible row of folder `data` whose label contains `wanted`."""
    return (
        _vllm_rows(data / SERVING, wanted)
        + _sglang_rows(data / SERVING, wanted)
        + _open_loop_rows(data / OPEN_LOOP, wanted)
    )


def mean_latencies_ms(result: OfflineRun) -> tuple[float, float]:
    """Mean TTFT and mean TPOT in ms over the measured requests of an offline run."""
    arrival: dict[int, int] = {}
    first: dict[int, int] = {}
    ttft: list[float] = []
    tpot: list[float] = []
    for event in result.cluster.log.events:
        if isinstance(event, Submitted):
            arrival[event.rid] = event.t_ns
        elif isinstance(event, FirstToken):
            first[event.rid] = event.t_ns
        elif isinstance(event, Finished) and result.items[event.rid].measured:
            ttft.append(first[event.rid] - arrival[event.rid])
            if event.output_tokens > 1:
                tpot.append((event.t_ns - first[event.rid]) / (event.output_tokens - 1))
    return statistics.fmean(ttft) / 1e6, statistics.fmean(tpot) / 1e6


def _simulate(resolved: ResolvedCluster, workload: WorkloadSpec) -> tuple[float, float]:
    cluster = build_cluster(resolved.spec, resolved.costs)
    return mean_latencies_ms(play(cluster, build_source(workload, seed=0)))


def _rows(path: Path, what: str) -> Iterator[dict[str, str]]:
    """The rows of a file; how far it is with them is told on stderr, a tenth at a time."""
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for i, row in enumerate(rows):
        if i * 10 // len(rows) > (i - 1) * 10 // len(rows):
            print(f"accuracy: {what}: row {i + 1} of {len(rows)}", file=sys.stderr, flush=True)
        yield row


def _engine_rows(path: Path, backend: str) -> Iterator[tuple[dict[str, str], _Row]]:
    """Rows of one engine and of models with a card.

    Rows with attention and experts on different numbers of GPUs are left out, since they do not say
    how, and so are three that have no experts' parallelism at all: aiconfigurator's later results,
    whose concurrency is that of several replicas.
    """
    for raw in _rows(path, backend):
        model = raw["model_path"]
        if raw["backend"] != backend or model not in (*DENSE_MODELS, *EXPERT_MODELS):
            continue
        numbers = ("isl", "osl", "conc", "tp_size", "moe_ep_size", "moe_tp_size")
        isl, osl, lanes, tp, ep, expert_tp = (int(float(raw[key])) for key in numbers)
        if expert_tp * ep not in (1, tp):
            continue
        version = raw["backend_version"] or IX_VERSION
        yield raw, _Row(isl, osl, lanes, tp, max(1, ep), model, version, raw["precision"] == "fp8")


def _vllm_rows(path: Path, wanted: str) -> list[Outcome]:
    """The vLLM rows: dense models and models with experts."""
    outcomes = []
    for raw, row in _engine_rows(path, "vllm"):
        group = _group(raw, row)
        spread = f" ep{row.ep}" if row.ep > 1 else ""
        label = f"{group} tp{row.tp}{spread} isl{row.isl} osl{row.osl} c{row.lanes}"
        if wanted not in label:
            continue
        inferencex = raw["origin"] == "InferenceX"
        args = _vllm_args(raw, row)
        loop = (
            _inferencex_loop(row) if inferencex else gap_loop("vllm", row.isl, row.osl, row.lanes)
        )
        if not inferencex:
            args = gap_vllm_args(args, row.fp8, row.isl, row.osl, row.lanes)
        resolved = resolve_single(args, GPUS[raw["system"]], f"vllm-{row.version}", seed=0)
        step = resolved.spec.workers[0].step
        outcomes.append(_outcome(group, label, raw, row, _simulate(resolved, loop), step=step))
    return outcomes


def _inferencex_loop(row: _Row) -> ClosedLoopSpec:
    """Lengths within a fifth below what is stated; 10 requests a lane after 2 to warm up."""
    lengths = PromptSpec(
        UniformTokens(row.isl * 4 // 5, row.isl), UniformTokens(row.osl * 4 // 5, row.osl)
    )
    return ClosedLoopSpec(lengths, row.lanes, 10 * row.lanes, 2 * row.lanes)


def _group(raw: Mapping[str, str], row: _Row) -> str:
    version = raw["backend_version"] or row.version
    name = row.model.split("/")[1]
    return f"{raw['origin']} {name} {raw['system']} {raw['backend']} {version}"


def _outcome(
    group: str,
    label: str,
    raw: Mapping[str, str],
    row: _Row,
    simulated: tuple[float, float],
    *,
    ttft_known: bool = True,
    step: StepSpec | None = None,
) -> Outcome:
    ttft, tpot = float(raw["ttft_ms"]), float(raw["tpot_ms"])
    answer = 0.9 * row.osl if raw["origin"] == "InferenceX" else row.osl
    share = 0.0 if step is None else _peak_share(step, row, ttft, tpot)
    return Outcome(
        group,
        label,
        row.tp,
        row.lanes,
        tpot,
        simulated[1],
        ttft,
        simulated[0],
        answer,
        ttft_known,
        peak_share=share,
    )


def _peak_share(step: StepSpec, row: _Row, ttft_ms: float, tpot_ms: float) -> float:
    """See `Outcome.peak_share`."""
    model, hw = step.model, step.hardware
    if model.experts is not None or model.latent is not None:
        return 0.0
    attention = 2 * (model.num_heads + model.num_kv_heads) * model.head_dim
    per_layer = model.hidden_size * (attention + 3 * model.intermediate_size)
    flops = 2.0 * model.num_layers * per_layer * (row.isl + row.osl)
    fp8 = step.precision.weights.startswith("fp8")
    peak = step.parallel.tp * (hw.peak_fp8_flops if fp8 else hw.peak_bf16_flops)
    return flops * row.lanes / ((ttft_ms + tpot_ms * (row.osl - 1)) / 1e3) / peak


def _vllm_args(raw: Mapping[str, str], row: _Row) -> VllmArgs:
    """The row's flags. Those of InferenceX in 2025 are known (cost_model.md section 2.1).

    Its rows of models with experts are from 2026: vLLM's own defaults, and what their checkpoint
    says about weights. Those over 8 GPUs had whole experts on each, whatever the row says: vLLM
    refuses to cut 128 x 128 blocks, and SemiAnalysisAI/InferenceX#869 added the flag for it.
    """
    inferencex = raw["origin"] == "InferenceX"
    return VllmArgs(
        model=DENSE_MODELS.get(row.model, row.model),
        quantization="fp8" if row.dense and row.fp8 else None,
        kv_cache_dtype="fp8" if row.model in FP8_CACHES else "auto",
        tensor_parallel_size=row.tp,
        enable_expert_parallel=row.ep > 1 or (inferencex and row.tp == 8),
        max_num_seqs=row.lanes if inferencex else None,
        max_num_batched_tokens=8192,
        max_model_len=row.isl + row.osl + 200,
        enable_prefix_caching=False,
        async_scheduling=True if row.dense and inferencex else None,
        gpu_memory_utilization=0.9,
    )


def _sglang_rows(path: Path, wanted: str) -> list[Outcome]:
    """The gap-analysis rows of SGLang."""
    outcomes = []
    for raw, row in _engine_rows(path, "sglang"):
        group = _group(raw, row)
        label = f"{group} tp{row.tp} isl{row.isl} osl{row.osl} c{row.lanes}"
        if wanted not in label:
            continue
        version = row.version.partition(".post")[0]
        preset = max(version, OLDEST_SGLANG, key=_numbers)
        args = SglangArgs(
            model_path=DENSE_MODELS.get(row.model, row.model),
            quantization="fp8" if row.dense and row.fp8 else None,
            tp_size=row.tp,
        )
        args = gap_sglang_args(args, row.fp8, _numbers(version), row.isl)
        loop = gap_loop("sglang", row.isl, row.osl, row.lanes)
        resolved = resolve_single_sglang(args, GPUS[raw["system"]], f"sglang-{preset}", seed=0)
        simulated = _simulate(resolved, loop)
        outcomes.append(_outcome(group, label, raw, row, simulated, ttft_known=False))
    return outcomes


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _open_loop_rows(path: Path, wanted: str) -> list[Outcome]:
    """Rates the server sustained without failures; prompts repeat, so nearly all are cached."""
    outcomes = []
    group = "BLIS Llama-2-7b h100 vllm 0.15.1 open loop"
    for row in _rows(path, "open loop"):
        rate = float(row["rate_rps"])
        label = f"{group} {row['exp'].split('-')[-1]} {rate:g} rps"
        if wanted not in label or int(row["n_fail"]):
            continue
        tp = int(row["tp"])
        args = VllmArgs(
            model="meta-llama/Llama-2-7b-hf",
            tensor_parallel_size=tp,
            max_num_seqs=int(row["max_num_seqs"]),
            max_num_batched_tokens=int(row["max_num_batched_tokens"]),
            max_model_len=int(row["max_model_len"]),
            gpu_memory_utilization=0.9,
        )
        answer = int(row["output_len"])
        lengths = PromptSpec(
            FixedTokens(round(float(row["prompt_len_mean"]))),
            FixedTokens(answer),
            distinct_prompts=int(row["n_system_prompts"]) * int(row["users_per_prompt"]),
        )
        count = round(rate * float(row["duration_s"]))
        loop = OpenLoopSpec(lengths, row["arrival"], rate, num_requests=count)
        resolved = resolve_single(args, "h100", "vllm-0.15.1", seed=0)
        ttft_sim, tpot_sim = _simulate(resolved, loop)
        tpot, ttft = float(row["tpot_derived_ms"]), float(row["ttft_mean_ms"])
        outcomes.append(
            Outcome(group, label, tp, rate, tpot, tpot_sim, ttft, ttft_sim, answer, True, False)
        )
    return outcomes
