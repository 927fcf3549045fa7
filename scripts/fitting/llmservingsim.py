"""Decodes beside prompt chunks under FlashAttention 2: LLMServingSim's profiles of vLLM 0.19."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from frontier_mock.cost.attention import (
    Heads,
    PrefillPrice,
    decode_us,
    empty_tiles_us,
    ragged_us,
)
from frontier_mock.cost.protocol import Chunk
from frontier_mock.cost.specs import HardwareSpec
from frontier_mock.cost.tables import DecodeAttentionTable, PrefillAttentionTable, RaggedFit

MODELS = {
    "meta-llama/Llama-3.1-8B": Heads(32, 8, 128, 2),
    "Qwen/Qwen3-32B": Heads(64, 8, 128, 2),
}
L2_BYTES = {
    "rtx-pro-6000": 128e6,
    "rtx-4090": 72e6,
    "l20": 96e6,
    "l40s": 96e6,
    "a100": 40e6,
    "a800": 40e6,
}
"""Vendor sheets. GPUs on which vLLM runs FlashAttention 2."""

LONGEST = 500_000
"""Tokens of all sequences together that a GPU could hold; launches beyond are left out."""


@dataclass(frozen=True)
class Cell:
    """One measured launch of one model: so many decodes of equal context beside one chunk."""

    heads: Heads
    chunk: int
    past: int
    decodes: int
    context: int
    us: float


def cells(folder: Path, gpu: str, model: str) -> list[Cell]:
    """The profile's launches with at least four decodes of 256 to 8,192 tokens."""
    heads = MODELS[model]
    path = folder / "llmservingsim" / "profiler" / "perf" / gpu / model / "bf16/tp1/attention.csv"
    keys = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    made = []
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            chunk, past, decodes, context = (int(row[key]) for key in keys)
            usual = decodes >= 4 and 256 <= context <= 8192 and decodes * context < LONGEST
            if usual:
                made.append(Cell(heads, chunk, past, decodes, context, float(row["time_us"])))
    return made


@dataclass(frozen=True)
class Tables:
    """What a launch is priced by beside the constants sought."""

    hw: HardwareSpec
    decode: DecodeAttentionTable
    prefill: PrefillAttentionTable


def predicted_us(fit: RaggedFit, tables: Tables, measured: list[Cell]) -> np.ndarray:
    """The equations on each cell."""
    hw = tables.hw
    prices = {cell.heads: PrefillPrice(tables.prefill, hw, cell.heads) for cell in measured}
    chunks: dict[tuple[Heads, int, int], float] = {}
    alone: dict[tuple[Heads, int], tuple[np.ndarray, np.ndarray]] = {}
    made = []
    for cell in measured:
        key = cell.heads, cell.decodes
        if key not in alone:
            alone[key] = decode_us(tables.decode, hw, cell.heads, cell.decodes, fit)
        kv = float(cell.decodes * cell.context)
        us = float(np.interp(kv, *alone[key]))
        if cell.chunk:
            first = cell.heads, cell.chunk, cell.past
            if first not in chunks:
                chunks[first] = prices[cell.heads].chunks_us([Chunk(cell.chunk, cell.past)])
            beside = ragged_us(fit, hw, cell.heads, cell.decodes, np.array([kv]))[0]
            us = chunks[first] + max(float(beside), us - float(tables.decode.time_us[0, 0]))
            us += empty_tiles_us(fit, hw, cell.heads, cell.decodes, cell.chunk)
        made.append(us)
    return np.array(made)


def fit_ragged(tables: Tables, l2_bytes: float, measured: list[Cell]) -> RaggedFit:
    """Constants of the equations; every thirteenth cell is enough."""
    some = measured[::13]
    target = np.log([cell.us for cell in some])

    def error(x: np.ndarray) -> np.ndarray:
        fit = RaggedFit(l2_bytes, *np.exp(x))
        return np.log(predicted_us(fit, tables, some)) - target

    start, reach = np.log((22e9, 5.0, 5.0, 0.3)), np.log(4.0)
    solved = least_squares(
        error,
        start,
        bounds=(start - reach, start + reach),
        loss="soft_l1",
        f_scale=0.1,
        diff_step=0.01,
    )
    return RaggedFit(l2_bytes, *(float(f"{v:.4g}") for v in np.exp(solved.x)))


def ragged_errors(
    tables: Tables, l2_bytes: float, by_model: Mapping[str, list[Cell]]
) -> np.ndarray:
    """Relative errors on each model, fitted on the others."""
    errors = []
    for model, measured in by_model.items():
        others = [cell for name, rest in by_model.items() if name != model for cell in rest]
        fit = fit_ragged(tables, l2_bytes, others)
        us = np.array([cell.us for cell in measured])
        errors.append(np.abs(predicted_us(fit, tables, measured) / us - 1.0))
    return np.concatenate(errors)
