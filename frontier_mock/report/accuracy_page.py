"""docs/accuracy.md: what was measured, against what, how far off, and what is not covered."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

_HEAD: Final = """\
<!-- written by scripts/accuracy --docs; edit frontier_mock/report/accuracy_page.py -->
# How far off the simulator is

Every figure on this page compares with a published measurement that lies in `shared/data`; none
was taken by us. An error is simulated over measured minus one, in percent; "off" is the median
of its absolute value, "bias" the median with its sign. `scripts/accuracy` repeats the serving
rows, `scripts/fit_profiles --check` the kernels and `pytest -m golden` the anchors.

## Read this first

- **These rows are not a blind test.** No constant comes out of a regression on end-to-end rows
  and none depends on a model. But the rows were in sight when choices were made:
  [0002](decisions/0002-cost-model.md) names each of them. Expect somewhat larger errors on rows
  nobody has seen.
- **TTFT is compared only where the client is documented.** NVIDIA's gap-analysis rows do not say
  how their clients ramp up, and their TTFT and some of their TPOT cannot be had from the
  concurrency they state.
- **A median hides tails.** Groups are shown by tensor parallelism and by octave of load, so that
  a bias shows.

## Serving
"""

_OPS: Final = """
## Kernels

Points that the tables were not given: whole (N, K) shapes of linear layers, cells of decode
attention, prompt lengths of prefill attention, whole shapes of experts. The targets are 4 % for
linear layers, 6 % for decode attention, 8 % for prefill attention and for experts. "Skewed load"
is measured with an uneven load on experts, of which the tables know only the even one; the
figure in brackets is the bias.
"""

_ANCHORS: Final = """
## Published single figures

Rows of `shared/specs/cost_model.md`. Constants of communication (B31 to B38) and of latent
attention (B41 to B43) were taken from these very rows, so they show that the equations fit, not
that they predict. A65 and the attention halves (B46 to B48) took no part. A65 is priced as DeepSeek
describes its prefill: 32 redundant experts and two overlapped batches. A74 and B67 took no part
either; A74's attention is taken to have fp8 weights and a bf16 cache, as its own layer times say
(B46 with fp8 projections is met within 1 %). "5.2" is arithmetic: the time of the layers, and the
filling of the pipeline on top.
"""

_TAIL: Final = """
## What is not covered

- Measured kernels exist for H100, H200, A100 and RTX PRO 6000. H800's single-GPU kernels are
  H100's (checked against H800's own linear layers, decode attention and latent attention), its
  collectives are rescaled. H20, A800, L20, L40S and RTX 4090 use another GPU's equations with
  their own peak and bandwidth, and no serving row exists for them.
- InferSim measured H800's and H20's own kernels. Against them: H800's block-fp8 layers are 12 %
  too slow in the median and 20 % on large batches, decode attention 6 % off, masked expert GEMMs
  10 %, latent decode attention 11 %; its contiguous expert GEMMs alone are 32 % faster than the
  whole expert kernel we price. On H20 linear layers are 7 % off (left out), grouped-query
  decode attention 8 %, latent decode attention 12 %, and expert GEMMs 20 to 24 %, where 12 % was
  wanted.
- Groups above that are far off are not explained: vLLM 0.12 and SGLang 0.5.6 with Llama-3.1-8B in
  fp8, vLLM 0.12 with Qwen3-235B, vLLM 0.16 with MiniMax-M2.5 at few requests. TTFT of MiniMax-M2.5
  is too short throughout.
- Expert popularity is an assumption (Zipf, by kind of router), not a measurement. It moves the
  time of small batches by up to a factor of two.
- Latent attention and communication between experts follow equations through a handful of
  published points.
- Serving with pipeline stages or with several ranks of attention can be priced per step, but the
  scheduler does not run it yet; no measured row checks those prices, save DeepSeek's own
  prefill.
- Speculative decoding, KV offload, LoRA, grammar masks and penalties have no price.
- Clients, networks and tokenisers are one constant per engine.
"""


def accuracy_page(
    serving: Mapping[str, Mapping[str, float]],
    kernels: Sequence[Mapping[str, Any]],
    anchors: Sequence[Mapping[str, Any]],
) -> str:
    """The page from the summary of `frontier-mock accuracy`, the kernel tables' errors, and rows
    (`row`, `what`, `unit`, `measured`, `simulated`) of published single figures."""
    lines = [_HEAD]
    whole = {name: figures for name, figures in serving.items() if " | " not in name}
    lines += _serving_table(whole)
    lines.append("\n### By tensor parallelism and load\n")
    lines += _serving_table({name: f for name, f in serving.items() if " | " in name})
    if kernels:
        lines.append(_OPS)
        lines += ["| kernel | MAPE | median | p90 | points |", "|---|---|---|---|---|"]
        for row in kernels:
            figures = " | ".join(f"{row[key]:.1%}" for key in ("mape", "median", "p90"))
            lines.append(f"| {row['what']} | {figures} | {row['points']} |")
    lines.append(_ANCHORS)
    lines += ["| row | what | measured | simulated | unit | error |", "|---|---|---|---|---|---|"]
    for row in anchors:
        error = 100.0 * (row["simulated"] / row["measured"] - 1.0)
        lines.append(
            f"| {row['row']} | {row['what']} | {row['measured']:.0f} | {row['simulated']:.0f} | "
            f"{row['unit']} | {error:+.1f} % |"
        )
    lines.append(_TAIL)
    return "\n".join(lines)


def _serving_table(groups: Mapping[str, Mapping[str, float]]) -> list[str]:
    made = ["| rows | n | TPOT off | bias | TTFT off | bias |", "|---|---|---|---|---|---|"]
    for name, figures in groups.items():
        ttft = " | |"
        if "ttft_median_abs" in figures:
            ttft = f" | {figures['ttft_median_abs']:.1f} | {figures['ttft_median_signed']:+.1f}"
        made.append(
            f"| {name.replace(' | ', ', ')} | {figures['rows']:.0f} | "
            f"{figures['tpot_median_abs']:.1f} | {figures['tpot_median_signed']:+.1f}{ttft} |"
        )
    return made
