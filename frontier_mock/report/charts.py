"""Line charts as inline SVG: no script, no font, no asset from anywhere."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 14.0, 18.0, 34.0
_TICKS = 5
_LABEL = 62.0
"""Room that the label of a mark needs to its right."""


@dataclass(frozen=True, slots=True)
class Line:
    """One series. `css` names its colour class; `filled` shades the area below."""

    name: str
    css: str
    points: Sequence[tuple[float, float]]
    filled: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over one pair of axes, y from 0. `marks` are (x, y, label) to point out."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False
    y_max: float | None = None
    percent_y: bool = False
    marks: Sequence[tuple[float, float, str]] = ()
    width: int = 440
    height: int = 230


def draw(chart: Chart) -> str:
    """The chart as an SVG element."""
    points = [point for line in chart.lines for point in line.points]
    x_low, x_high = _x_range([x for x, _ in points], chart.log_x)
    top = chart.y_max if chart.y_max is not None else _round_up(max(y for _, y in points))
    frame = _Frame(chart, x_low, x_high, top)
    body = [frame.grid(), *(frame.line(line) for line in chart.lines), frame.marked()]
    return (
        f'<svg viewBox="0 0 {chart.width} {chart.height}" role="img" '
        f'aria-label="{escape(chart.title)}">{"".join(body)}</svg>'
    )


def standalone(chart: Chart, colours: Mapping[str, str]) -> str:
    """The chart as a file of its own, each line in the colour of its class."""
    svg = draw(chart).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    strokes = "".join(
        f".{css}{{stroke:{colour};stroke-width:1.5}}" for css, colour in colours.items()
    )
    style = (
        "<style>text{font:11px sans-serif;fill:#444}path,line,polyline{fill:none;stroke:#ccc}"
        f"{strokes}</style>"
    )
    cut = svg.index(">") + 1
    return svg[:cut] + style + svg[cut:] + "\n"


def short(value: float) -> str:
    """A number for an axis: at most three significant digits, k and M for thousands."""
    for limit, divisor, unit in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= limit:
            return f"{value / divisor:.3g}{unit}"
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


class _Frame:
    """Axes: from data to pixels."""

    def __init__(self, chart: Chart, x_low: float, x_high: float, y_high: float) -> None:
        self._chart = chart
        self._x_low, self._x_high, self._y_high = x_low, x_high, y_high

    def _x(self, value: float) -> float:
        low, high = self._x_low, self._x_high
        if self._chart.log_x:
            value, low, high = (math.log10(max(one, low)) for one in (value, low, high))
        share = (value - low) / (high - low)
        return _LEFT + share * (self._chart.width - _LEFT - _RIGHT)

    def _y(self, value: float) -> float:
        share = value / self._y_high
        return self._chart.height - _BOTTOM - share * (self._chart.height - _TOP - _BOTTOM)

    def grid(self) -> str:
        chart = self._chart
        left, right = _LEFT, chart.width - _RIGHT
        floor = chart.height - _BOTTOM
        parts = []
        for i in range(_TICKS):
            value = self._y_high * i / (_TICKS - 1)
            y = self._y(value)
            label = f"{value:.0%}" if chart.percent_y else short(value)
            parts.append(
                f'<line class="grid" x1="{left:g}" x2="{right:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="tick" x="{left - 6:g}" y="{y + 3.5:.1f}" text-anchor="end">'
                f"{label}</text>"
            )
        for value in self._x_ticks():
            x = self._x(value)
            parts.append(
                f'<line class="tickmark" x1="{x:.1f}" x2="{x:.1f}" y1="{floor:g}" '
                f'y2="{floor + 4:g}"/>'
                f'<text class="tick" x="{x:.1f}" y="{floor + 15:g}" text-anchor="middle">'
                f"{short(value)}</text>"
            )
        middle = (left + right) / 2
        parts.append(
            f'<text class="axis" x="{middle:g}" y="{chart.height - 4}" text-anchor="middle">'
            f"{escape(chart.x_label)}</text>"
        )
        return "".join(parts)

    def _x_ticks(self) -> list[float]:
        low, high = self._x_low, self._x_high
        if not self._chart.log_x:
            step = _step((high - low) / 5)
            first = math.ceil(low / step)
            return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        digits = (1,) if last - first > 4 else (1, 3) if last - first > 2 else (1, 2, 5)
        ticks = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
        return [tick for tick in ticks if low <= tick <= high]

    def line(self, line: Line) -> str:
        path = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in line.points)
        area = ""
        if line.filled:
            floor = self._y(0)
            start, end = self._x(line.points[0][0]), self._x(line.points[-1][0])
            area = (
                f'<polygon class="area {line.css}" points="{start:.1f},{floor:.1f} {path} '
                f'{end:.1f},{floor:.1f}"/>'
            )
        return (
            f'{area}<polyline class="line {line.css}" points="{path}">'
            f"<title>{escape(line.name)}</title></polyline>"
        )

    def marked(self) -> str:
        parts = []
        limit = self._chart.width - _RIGHT - _LABEL
        for x_value, y_value, label in self._chart.marks:
            x, y = self._x(x_value), self._y(y_value)
            # Beside the point and below the curve, or before and above it near the edge.
            dx, dy, anchor = (-7, -6, "end") if x > limit else (7, 11, "start")
            parts.append(
                f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
                f'<text class="marklabel" x="{x + dx:.1f}" y="{y + dy:.1f}" '
                f'text-anchor="{anchor}">{escape(label)}</text>'
            )
        return "".join(parts)


def _x_range(values: Sequence[float], log: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if not log:
        return (low, high) if high > low else (low - 0.5, high + 0.5)
    low = max(low, high / 1e6, 1e-6)
    return (low / 1.02, high * 1.02) if high / low > 1.1 else (low / 1.5, low * 1.5)


def _step(rough: float) -> float:
    """A round number of about `rough`: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(digit for digit in (1, 2, 5, 10) if digit * power >= rough)


def _round_up(value: float) -> float:
    """The top of an axis that has to reach `value`: four round steps."""
    if value <= 0:
        return 1.0
    return _step(value / (_TICKS - 1)) * (_TICKS - 1)
