"""Routed experts through DeepGEMM's contiguous grouped GEMM, as vLLM calls it on Hopper. PURE.

Theory of operation
1. Every expert's rows begin at a multiple of 128, and nobody knows on the host how many rows an
   expert got. So vLLM allocates `rows + experts x 127` rows for any batch, and the kernel walks
   over all their tiles.
2. A tile without rows is not multiplied, but its operands are loaded all the same (DeepGEMM
   issues its copies before it asks whether a tile is valid). It takes as long as one that is.
3. So one decode takes nearly as long as a full tile of rows for each expert would, whatever was
   routed where. That is why this kernel is measured in tiles, and needs no popularity for them;
   weights still come from memory only for experts that were hit.
"""

from typing import Final

import numpy as np

from frontier_mock.cost.experts import ExpertLoad, ExpertShape, floor_us, peak_flops
from frontier_mock.cost.specs import HardwareSpec
from frontier_mock.cost.tables import ContiguousFit, Floats

ROWS: Final = 128
"""Rows of a tile, and the alignment of every expert's first row."""

_KERNELS: Final = 8
"""Launches beside the two GEMMs: quantising the input, counting and filling, two that scatter,
activation with quantisation, gathering with the weighted sum, and two memory sets. An inference
from vLLM's code."""

_LAUNCH_US: Final = 2.0
"""Fixed cost of each (cost_model.md section 1.6)."""

_ELEMENTWISE: Final = 0.8
"""Fraction of bandwidth that they reach (section 1.6)."""

_ACTIVATION: Final = 0.21
"""The fraction that vLLM's activation kernel reaches over many short rows: 147 us for 32,760 rows
of 2 x 768 on H200 (shared/data/measurements/h200_kernels_nsys_4096tok_tp4dp2ep8.csv)."""


def gemm_us(
    fit: ContiguousFit, hw: HardwareSpec, weights: str, products: Floats, moved_bytes: Floats
) -> Floats:
    """Microseconds of one grouped GEMM by multiplications, those of empty tiles included."""
    tiles_us = products * (2e6 / (peak_flops(hw, weights) * fit.compute))
    memory_us = moved_bytes / (fit.memory * hw.hbm_bytes_per_s) * 1e6
    both: Floats = (tiles_us**fit.blend + memory_us**fit.blend) ** (1.0 / fit.blend)
    return both


def contiguous_us(
    fit: ContiguousFit, hw: HardwareSpec, weights: str, shape: ExpertShape, load: ExpertLoad
) -> Floats:
    """Microseconds of the experts of one rank. `load.rows` counts routed rows of this rank."""
    bandwidth = hw.hbm_bytes_per_s
    allocated = load.rows + (shape.num_experts // shape.ep) * (ROWS - 1.0)
    time_us = np.full_like(allocated, _LAUNCH_US * _KERNELS)
    for n, k in ((2 * shape.inner, shape.hidden), (shape.hidden, shape.inner)):
        moved = load.active * float(n * k) + load.rows * (k + 2.0 * n)
        time_us = time_us + gemm_us(fit, hw, weights, allocated * float(n * k), moved)
    activation = allocated * (6.0 * shape.inner)
    moved = allocated * (3.0 * shape.inner) + load.rows * (6.0 * shape.hidden)
    slow_bytes = activation / _ACTIVATION + moved / _ELEMENTWISE
    time_us = time_us + slow_bytes / bandwidth * 1e6
    return np.maximum(time_us, floor_us(hw, weights, shape, load))
