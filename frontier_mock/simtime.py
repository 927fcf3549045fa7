"""Simulated time: integer nanoseconds, and the only functions that make them from floats.

Integers keep the event order exact: two platforms, or two ways to sum the same durations, can
never disagree about which of two events came first (design rule 1).
"""

SimTime = int
"""A point in simulated time, or a duration, in integer nanoseconds since the run began."""

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000
NS_PER_US = 1_000


def from_seconds(seconds: float) -> SimTime:
    """Nearest nanosecond to `seconds`; the one place where float seconds become SimTime."""
    return round(seconds * NS_PER_S)


def from_ms(milliseconds: float) -> SimTime:
    """Nearest nanosecond to `milliseconds`."""
    return round(milliseconds * NS_PER_MS)


def to_seconds(t_ns: SimTime) -> float:
    """`t_ns` in seconds, for reports and the wire; never feed the result back into the engine."""
    return t_ns / NS_PER_S


def to_ms(t_ns: SimTime) -> float:
    """`t_ns` in milliseconds, for reports and the wire."""
    return t_ns / NS_PER_MS
