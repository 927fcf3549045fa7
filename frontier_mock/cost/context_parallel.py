"""Decode context parallelism: ranks that would hold the same KV heads share the context. PURE.

Each of `dcp` ranks keeps every dcp-th part of a sequence's cache. For a decode the ranks gather
each other's query heads, attend with all of them over their own part, and reduce the partial
outputs (vLLM's "ag_rs"). A prompt chunk gathers the cached past instead.
"""

import numpy as np

from frontier_mock.cost.attention import Heads
from frontier_mock.cost.collectives import curve_us
from frontier_mock.cost.specs import ModelSpec, ParallelSpec
from frontier_mock.cost.tables import KernelTables

_OUTPUT_BYTES = 2


def check_context_parallel(model: ModelSpec, parallel: ParallelSpec) -> None:
    """Raise ValueError, worded as vLLM's, if the model's heads cannot be shared so."""
    tp, dcp, kv_heads = parallel.tp, parallel.dcp, model.num_kv_heads
    if dcp == 1:
        return
    if tp % dcp:
        raise ValueError(f"tp_size={tp} must be divisible by dcp_size={dcp}.")
    if model.latent is not None:
        return
    if tp <= kv_heads:
        raise ValueError(
            "Decode context parallelism for GQA/MQA requires `--tensor-parallel-size` "
            f"({tp}) to be greater than the model's total number of KV heads ({kv_heads}). "
            "Increase `--tensor-parallel-size` or set `--decode-context-parallel-size 1`."
        )
    if dcp > tp // kv_heads:
        raise ValueError(
            f"`--decode-context-parallel-size` ({dcp}) exceeds the maximum supported value "
            f"({tp // kv_heads}) for `--tensor-parallel-size` ({tp}) and {kv_heads} model KV heads."
        )
    if model.num_heads // kv_heads % dcp:
        raise ValueError(
            f"The model's number of query heads per KV head ({model.num_heads // kv_heads}) must "
            f"be divisible by `--decode-context-parallel-size` ({dcp}) for GQA/MQA."
        )


def exchanged_us(
    tables: KernelTables, heads: Heads, value_size: int, dcp: int, num_seqs: int
) -> float:
    """Microseconds of one layer's gathering of queries and reducing of outputs.

    `heads` are one rank's own. The reduction is taken to move as fast as the gathering.
    """
    curve = tables.all_gather[dcp]
    queries = num_seqs * heads.query * dcp * (heads.latent or heads.size) * _OUTPUT_BYTES
    outputs = num_seqs * heads.query * dcp * value_size * _OUTPUT_BYTES
    return float(curve_us(curve, np.array([float(queries), float(outputs)])).sum())


def gathered_us(tables: KernelTables, heads: Heads, dcp: int, past_tokens: int) -> float:
    """Microseconds in which one layer's chunks collect the cache of their pasts."""
    if not past_tokens:
        return 0.0
    size = np.array([float(past_tokens * heads.bytes_per_token)])
    return float(curve_us(tables.all_gather[dcp], size)[0])
