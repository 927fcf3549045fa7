"""Collectives between the ranks of one worker, priced from measured curves. PURE."""

from typing import Final

import numpy as np

from frontier_mock.cost.tables import Curve, Floats

_RANK_SPREAD: Final = 0.03
"""Relative standard deviation of the same kernel's time on different GPUs. An inference: the tables
differ by 3.3 % in the median between two collections (cost_model.md section 1.2)."""

_EXPECTED_MAXIMUM: Final = {
    1: 0.0,
    2: 0.564,
    4: 1.029,
    8: 1.424,
    16: 1.766,
    32: 2.070,
    64: 2.344,
    128: 2.595,
    256: 2.827,
}
"""Mean of the largest of n standard normal draws."""


def straggling(ranks: int) -> float:
    """How much longer the slowest of `ranks` takes than the average between two collectives."""
    nearest = min(_EXPECTED_MAXIMUM, key=lambda known: abs(known - ranks))
    return 1.0 + _RANK_SPREAD * _EXPECTED_MAXIMUM[nearest]


def curve_us(curve: Curve, size_bytes: Floats) -> Floats:
    """Microseconds by message size: straight lines between measured points.

    Below the first point the latency floor holds, beyond the last the last two points' bandwidth.
    """
    sizes, times = curve.size_bytes, curve.time_us
    inside = np.interp(size_bytes, sizes, times)
    per_byte = (times[-1] - times[-2]) / (sizes[-1] - sizes[-2])
    beyond = np.maximum(size_bytes - sizes[-1], 0.0) * per_byte
    time_us: Floats = inside + beyond
    return time_us
