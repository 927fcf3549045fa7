"""`frontier-mock accuracy`: the simulator against real serving measurements.

Every vLLM and SGLang row of shared/data/measurements is run from its configuration alone, under its
own client protocol (cost_model.md section 2.1). No constant comes out of a regression on these
rows, but some choices were made with them in sight: docs/accuracy.md says where they are listed.
Printed are the median absolute and signed errors of mean TPOT and TTFT by data set, TP degree and
load octave.
"""

import argparse
import csv
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from frontier_mock.cli.accuracy_trace import TRACE, compare_trace, trace_charts, trace_rows
from frontier_mock.cli.anchors import Anchor, anchors
from frontier_mock.cli.pd_anchors import pd_anchors
from frontier_mock.cli.serving_anchors import serving_anchors
from frontier_mock.cluster.build import build_cluster
from frontier_mock.config.resolve import ResolvedCluster, resolve_single, resolve_single_sglang
from frontier_mock.config.sglang_flags import SglangArgs
from frontier_mock.config.vllm_flags import VllmArgs
from frontier_mock.core.events import Finished, FirstToken, Submitted
from frontier_mock.cost.specs import StepSpec
from frontier_mock.drive.offline import OfflineRun
from frontier_mock.drive.offline import run as play
from frontier_mock.report.accuracy_page import accuracy_page
from frontier_mock.workload.build import build_source
from frontier_mock.workload.specs import (
    ClosedLoopSpec,
    FixedTokens,
    OpenLoopSpec,
    PromptSpec,
    UniformTokens,
    WorkloadSpec,
)

DATA = Path("..") / "shared" / "data" / "measurements"
SERVING = "h100_h200_serving_mean_ttft_tpot.csv"
OPEN_LOOP = "h100_llama2_7b_openloop_vllm0_15.csv"
IX_VERSION = "0.10.2"
"""The InferenceX rows carry no version; its image of 2025-09 was vLLM 0.10.2."""

GPUS = {"h100_sxm": "h100", "h200_sxm": "h200"}
MODELS = {
    "meta-llama/Llama-3.1-70B": "meta-llama/Llama-3.1-70B-Instruct",
    "Qwen/Qwen3-32B": "Qwen/Qwen3-32B",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama/Llama-3.1-8B-Instruct",
}
FP8_CACHES = ("meta-llama/Llama-3.1-70B", "nvidia/Llama-3.1-8B-Instruct-FP8")
"""InferenceX's flag of 2025, and what ModelOpt's checkpoints say of themselves
(kv_cache_quant_algo)."""
EXPERT_MODELS = ("MiniMaxAI/MiniMax-M2.5", "Qwen/Qwen3-235B-A22B-FP8")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One measured row beside its simulation. `ttft_known`: the client's ramp is documented.

    `peak_share` is the fraction of the GPUs' peak that linear layers alone would take if the
    measured latencies held at the stated concurrency and every prompt were computed; 0 for models
    with experts. Where it is above what kernels reach, something in the row is not as it says.
    """

    group: str
    label: str
    tp: int
    load: float
    tpot_ms: float
    tpot_sim_ms: float
    ttft_ms: float
    ttft_sim_ms: float
    ttft_known: bool
    peak_share: float = 0.0


SGLANG_MODELS = {
    "Qwen/Qwen3-32B": "Qwen/Qwen3-32B",
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Llama-3.1-8B-Instruct",
    "Qwen/Qwen3-235B-A22B-FP8": "Qwen/Qwen3-235B-A22B-FP8",
}
OLDEST_SGLANG = "0.5.5"
"""Rows of older versions than the oldest preset are run with that."""


def _simulate(resolved: ResolvedCluster, workload: WorkloadSpec) -> OfflineRun:
    cluster = build_cluster(resolved.spec, resolved.costs)
    return play(cluster, build_source(workload, seed=0))


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


def _rows(path: Path, what: str) -> Iterator[dict[str, str]]:
    """The rows of a file; how far it is with them is told on stderr, a tenth at a time."""
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for i, row in enumerate(rows):
        if i * 10 // len(rows) > (i - 1) * 10 // len(rows):
            print(f"accuracy: {what}: row {i + 1} of {len(rows)}", file=sys.stderr, flush=True)
        yield row


def _serving_rows(path: Path, wanted: str) -> list[Outcome]:
    """The vLLM rows: dense models and models with experts."""
    outcomes = []
    for row in _rows(path, "vLLM"):
        if row["backend"] != "vllm" or row["model_path"] not in (*MODELS, *EXPERT_MODELS):
            continue
        inferencex = row["origin"] == "InferenceX"
        version = row["backend_version"] or IX_VERSION
        isl, osl, conc, tp = (int(float(row[k])) for k in ("isl", "osl", "conc", "tp_size"))
        ep = int(float(row["moe_ep_size"]))
        if int(float(row["moe_tp_size"])) * ep not in (1, tp):
            continue  # attention and experts on different numbers of GPUs: the row does not say how
        group = f"{row['origin']} {row['model_path'].split('/')[1]} {row['system']} vllm {version}"
        label = f"{group} tp{tp}{f' ep{ep}' if ep > 1 else ''} isl{isl} osl{osl} c{conc}"
        if wanted not in label:
            continue
        args = _vllm_args(row, isl + osl + 200)
        lengths = (
            PromptSpec(UniformTokens(isl * 4 // 5, isl), UniformTokens(osl * 4 // 5, osl))
            if inferencex
            else PromptSpec(FixedTokens(isl), FixedTokens(osl))
        )
        loop = ClosedLoopSpec(lengths, conc, 10 * conc, 2 * conc)
        resolved = resolve_single(args, GPUS[row["system"]], f"vllm-{version}", seed=0)
        result = _simulate(resolved, loop)
        sim_ttft, sim_tpot = mean_latencies_ms(result)
        tpot, ttft = float(row["tpot_ms"]), float(row["ttft_ms"])
        share = _peak_share(resolved.spec.workers[0].step, isl, osl, conc, ttft, tpot)
        outcomes.append(
            Outcome(group, label, tp, conc, tpot, sim_tpot, ttft, sim_ttft, inferencex, share)
        )
    return outcomes


def _peak_share(
    step: StepSpec, isl: int, osl: int, conc: int, ttft_ms: float, tpot_ms: float
) -> float:
    """See `Outcome.peak_share`."""
    model, hw = step.model, step.hardware
    if model.experts is not None or model.latent is not None:
        return 0.0
    attention = 2 * (model.num_heads + model.num_kv_heads) * model.head_dim
    per_layer = model.hidden_size * (attention + 3 * model.intermediate_size)
    flops = 2.0 * model.num_layers * per_layer * (isl + osl)
    fp8 = step.precision.weights.startswith("fp8")
    peak = step.parallel.tp * (hw.peak_fp8_flops if fp8 else hw.peak_bf16_flops)
    return flops * conc / ((ttft_ms + tpot_ms * (osl - 1)) / 1e3) / peak


def _vllm_args(row: Mapping[str, str], max_model_len: int) -> VllmArgs:
    """The row's flags. Those of InferenceX in 2025 are known (cost_model.md section 2.1).

    Its rows of models with experts are from 2026: vLLM's own defaults, and what their checkpoint
    says about weights. Those over 8 GPUs had whole experts on each, whatever the row says: vLLM
    refuses to cut 128 x 128 blocks, and SemiAnalysisAI/InferenceX#869 added the flag for it.
    """
    inferencex, dense = row["origin"] == "InferenceX", row["model_path"] in MODELS
    tp = int(float(row["tp_size"]))
    return VllmArgs(
        model=MODELS[row["model_path"]] if dense else row["model_path"],
        quantization="fp8" if dense and row["precision"] == "fp8" else None,
        kv_cache_dtype="fp8" if row["model_path"] in FP8_CACHES else "auto",
        tensor_parallel_size=tp,
        enable_expert_parallel=float(row["moe_ep_size"]) > 1 or (inferencex and tp == 8),
        max_num_seqs=int(float(row["conc"])) if inferencex else None,
        max_num_batched_tokens=8192,
        max_model_len=max_model_len,
        enable_prefix_caching=False,
        async_scheduling=True if dense and inferencex else None,
        gpu_memory_utilization=0.9,
    )


def _sglang_rows(path: Path, wanted: str) -> list[Outcome]:
    """The gap-analysis rows of SGLang, on its own defaults; their clients' ramp is unknown."""
    outcomes = []
    for row in _rows(path, "SGLang"):
        if row["backend"] != "sglang" or row["model_path"] not in SGLANG_MODELS:
            continue
        ranks = int(float(row["moe_tp_size"])) * int(float(row["moe_ep_size"]))
        if ranks not in (1, int(float(row["tp_size"]))):
            continue
        measured = row["backend_version"]
        version = measured.partition(".post")[0]
        version = max(version, OLDEST_SGLANG, key=lambda text: [int(n) for n in text.split(".")])
        isl, osl, conc, tp = (int(float(row[k])) for k in ("isl", "osl", "conc", "tp_size"))
        model = row["model_path"].split("/")[1]
        group = f"{row['origin']} {model} {row['system']} sglang {measured}"
        label = f"{group} tp{tp} isl{isl} osl{osl} c{conc}"
        if wanted not in label:
            continue
        dense = row["model_path"] not in EXPERT_MODELS
        args = SglangArgs(
            model_path=SGLANG_MODELS[row["model_path"]],
            quantization="fp8" if row["precision"] == "fp8" and dense else None,
            tp_size=tp,
        )
        lengths = PromptSpec(FixedTokens(isl), FixedTokens(osl))
        loop = ClosedLoopSpec(lengths, conc, 10 * conc, 2 * conc)
        resolved = resolve_single_sglang(args, GPUS[row["system"]], f"sglang-{version}", seed=0)
        sim_ttft, sim_tpot = mean_latencies_ms(_simulate(resolved, loop))
        tpot, ttft = float(row["tpot_ms"]), float(row["ttft_ms"])
        outcomes.append(Outcome(group, label, tp, conc, tpot, sim_tpot, ttft, sim_ttft, False))
    return outcomes


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
        lengths = PromptSpec(
            FixedTokens(round(float(row["prompt_len_mean"]))),
            FixedTokens(int(row["output_len"])),
            distinct_prompts=int(row["n_system_prompts"]) * int(row["users_per_prompt"]),
        )
        count = round(rate * float(row["duration_s"]))
        loop = OpenLoopSpec(lengths, row["arrival"], rate, num_requests=count)
        resolved = resolve_single(args, "h100", "vllm-0.15.1", seed=0)
        sim_ttft, sim_tpot = mean_latencies_ms(_simulate(resolved, loop))
        tpot, ttft = float(row["tpot_derived_ms"]), float(row["ttft_mean_ms"])
        outcomes.append(Outcome(group, label, tp, rate, tpot, sim_tpot, ttft, sim_ttft, True))
    return outcomes


def _error(simulated: float, measured: float) -> float:
    return 100 * (simulated / measured - 1)


def _summary(outcomes: list[Outcome]) -> dict[str, float]:
    tpot = [_error(o.tpot_sim_ms, o.tpot_ms) for o in outcomes]
    ttft = [_error(o.ttft_sim_ms, o.ttft_ms) for o in outcomes if o.ttft_known]
    result: dict[str, float] = {
        "rows": len(outcomes),
        "tpot_median_abs": statistics.median(map(abs, tpot)),
        "tpot_median_signed": statistics.median(tpot),
    }
    result["peak_share"] = statistics.median(o.peak_share for o in outcomes)
    if ttft:
        result["ttft_median_abs"] = statistics.median(map(abs, ttft))
        result["ttft_median_signed"] = statistics.median(ttft)
    return result


def run(argv: list[str]) -> int:
    """Entry point of the command; returns the exit code."""
    parser = argparse.ArgumentParser("frontier-mock accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the measurements")
    parser.add_argument("--json", type=Path, help="write every row and the summary here")
    parser.add_argument("--rows", default="", help="only rows whose label contains this")
    parser.add_argument("--docs", type=Path, help="write the page of this name (docs/accuracy.md)")
    parser.add_argument("--verbose", action="store_true", help="print every row")
    arguments = parser.parse_args(argv)
    if not arguments.data.is_dir():
        print(f"frontier-mock: error: --data: {arguments.data} is not a folder", file=sys.stderr)
        return 2
    outcomes = measure(arguments.data, arguments.rows)
    if not outcomes:
        print(f"frontier-mock: error: --rows: {arguments.rows!r} matches none", file=sys.stderr)
        return 2
    if arguments.verbose:
        _print_rows(outcomes)
    report = summarise(outcomes)
    _print_summary(report)
    print("accuracy: published anchors", file=sys.stderr, flush=True)
    published = [] if arguments.rows else [*anchors(), *serving_anchors(), *pd_anchors()]
    _print_anchors(published)
    latencies = []
    if not arguments.rows and (arguments.data / TRACE).is_file():
        latencies = compare_trace(arguments.data)
    trace = trace_rows(latencies)
    for row in trace:
        error = _error(row["simulated_ms"], row["measured_ms"])
        print(f"trace {row['what']:12s} {row['measured_ms']:10.1f} ms {error:+6.1f}%")
    if arguments.docs:
        kernels = kernel_errors(arguments.docs.parent)
        page = accuracy_page(report, kernels, [asdict(a) for a in published], trace)
        arguments.docs.write_text(page)
        for name, svg in trace_charts(latencies).items():
            (arguments.docs.parent / f"accuracy-{name}.svg").write_text(svg)
    if arguments.json:
        rows = [asdict(outcome) for outcome in outcomes]
        document = {"summary": report, "rows": rows, "trace": trace}
        arguments.json.write_text(json.dumps(document, indent=1))
    return 0


def kernel_errors(folder: Path) -> list[dict[str, Any]]:
    """Held-out errors of the kernel tables as `scripts/fit_profiles --check --json` wrote them."""
    path = folder / "kernel-errors.json"
    if not path.is_file():
        return []
    errors: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return errors


def measure(data: Path, wanted: str = "") -> list[Outcome]:
    """Simulate every visible row whose label contains `wanted`."""
    return (
        _serving_rows(data / SERVING, wanted)
        + _sglang_rows(data / SERVING, wanted)
        + _open_loop_rows(data / OPEN_LOOP, wanted)
    )


def summarise(outcomes: list[Outcome]) -> dict[str, dict[str, float]]:
    """Median errors in percent, by data set and within it by TP degree and load octave."""
    groups: dict[str, list[Outcome]] = {}
    for o in outcomes:
        octave = 1 << int(math.log2(o.load))
        for suffix in ("", f" | tp{o.tp}", f" | load {octave}..{2 * octave - 1}"):
            groups.setdefault(o.group + suffix, []).append(o)
    return {name: _summary(rows) for name, rows in sorted(groups.items())}


def _print_rows(outcomes: list[Outcome]) -> None:
    for o in outcomes:
        print(
            f"{o.label:84s} TPOT {o.tpot_ms:7.2f} {_error(o.tpot_sim_ms, o.tpot_ms):+6.1f}%  "
            f"TTFT {o.ttft_ms:9.1f} {_error(o.ttft_sim_ms, o.ttft_ms):+6.1f}%"
        )


def _print_anchors(published: Sequence[Anchor]) -> None:
    for anchor in published:
        print(
            f"{anchor.row:4s} {anchor.what:64s} {anchor.measured:8.0f} {anchor.simulated:8.0f} "
            f"{anchor.unit} {anchor.error:+6.1f}%"
        )


def _print_summary(report: dict[str, dict[str, float]]) -> None:
    print(f"{'group':80s} rows  TPOT |err|  signed  TTFT |err|  signed")
    for name, figures in report.items():
        ttft = (
            f"{figures['ttft_median_abs']:9.1f}% {figures['ttft_median_signed']:+7.1f}%"
            if "ttft_median_abs" in figures
            else "   (client ramp unknown)"
        )
        print(
            f"{name:80s} {figures['rows']:4.0f} {figures['tpot_median_abs']:9.1f}% "
            f"{figures['tpot_median_signed']:+7.1f}% {ttft}"
        )
