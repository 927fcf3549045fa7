"""Step time as straight pieces over total context. PURE."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from frontier_mock.cost.protocol import DecodeLine

_UNBOUNDED: Final = 1 << 62


def lines_of(xs: list[float], ys: list[float]) -> tuple[list[int], list[DecodeLine]]:
    """The polyline as lines and the last whole token of each; the last one never ends."""
    ends: list[int] = []
    lines: list[DecodeLine] = []
    for i in range(len(xs) - 1):
        slope = (ys[i + 1] - ys[i]) / (xs[i + 1] - xs[i])
        end = int(xs[i + 1]) if i < len(xs) - 2 else _UNBOUNDED
        ends.append(end)
        lines.append(DecodeLine(ys[i] - slope * xs[i], slope, end))
    return ends, lines


def along(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """The polyline at `x`; its last piece goes on."""
    i = min(max(bisect_left(xs, x), 1), len(xs) - 1)
    share = (x - xs[i - 1]) / (xs[i] - xs[i - 1])
    return ys[i - 1] + share * (ys[i] - ys[i - 1])


def raised_to(xs: list[float], ys: list[float], floor: float) -> tuple[list[float], list[float]]:
    """The ascending polyline (xs, ys) lifted to `floor`, with a knot where it leaves it."""
    if ys[0] >= floor:
        return xs, ys
    for i in range(1, len(xs)):
        if ys[i] > floor:
            share = (floor - ys[i - 1]) / (ys[i] - ys[i - 1])
            crossing = xs[i - 1] + share * (xs[i] - xs[i - 1])
            head_xs, head_ys = ([xs[0]], [floor]) if crossing > xs[0] else ([], [])
            return [*head_xs, crossing, *xs[i:]], [*head_ys, floor, *ys[i:]]
    return [xs[0], xs[-1]], [floor, floor]
