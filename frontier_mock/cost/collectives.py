"""Collectives between the ranks of one worker, priced from measured curves. PURE."""

import numpy as np

from frontier_mock.cost.tables import Curve, Floats


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
