"""Metric families in Prometheus text format 0.0.4, byte for byte as `prometheus_client` writes it.

Labels stand in alphabetical order, counters gain `_total`, counters and histograms a family of
`_created` gauges behind them, unless `created_s` is None: a server whose processes share their
metrics (PROMETHEUS_MULTIPROC_DIR) has none.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Labels = Mapping[str, str]
"""Label names and values of one child."""


def format_value(value: float) -> str:
    """A float as Go prints it, which is how the Python client does: 1e+06 from a million on."""
    text = repr(float(value))
    point = text.find(".")
    if value <= 0 or point <= 6:
        return {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}.get(text, text)
    digits = f"{text[0]}.{text[1:point]}{text[point + 1 :]}".rstrip("0.")
    return f"{digits}e+{point - 1:02d}"


def label_text(labels: Labels) -> str:
    """`{name="value",...}` with names in order and values escaped; empty without labels."""
    if not labels:
        return ""
    pairs = [f'{name}="{_escape(labels[name])}"' for name in sorted(labels)]
    return "{" + ",".join(pairs) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def merged(expositions: Sequence[str]) -> str:
    """One exposition of several whose families are the same, each family's samples together."""
    if len(expositions) == 1:
        return expositions[0]
    families = zip(*(text.split("# HELP ")[1:] for text in expositions), strict=True)
    parts = []
    for same in families:
        help_line, type_line, _ = same[0].split("\n", 2)
        parts.append(f"# HELP {help_line}\n{type_line}\n")
        parts += [text.split("\n", 2)[2] for text in same]
    return "".join(parts)


class Gauge:
    """A family of gauges, one value per child in the order of `children`."""

    __slots__ = ("_header", "_prefixes", "values")

    def __init__(self, name: str, help_text: str, children: Sequence[Labels]) -> None:
        self._header = f"# HELP {name} {help_text}\n# TYPE {name} gauge\n"
        self._prefixes = [f"{name}{label_text(child)} " for child in children]
        self.values = [0.0] * len(self._prefixes)

    def render(self) -> str:
        """The family's lines."""
        lines = zip(self._prefixes, self.values, strict=True)
        return self._header + "".join([f"{p}{format_value(v)}\n" for p, v in lines])


class Counter:
    """A family of counters, one value per child in the order of `children`."""

    __slots__ = ("_created", "_header", "_prefixes", "values")

    def __init__(
        self, name: str, help_text: str, children: Sequence[Labels], created_s: float | None
    ) -> None:
        self._header = f"# HELP {name}_total {help_text}\n# TYPE {name}_total counter\n"
        self._prefixes = [f"{name}_total{label_text(child)} " for child in children]
        self._created = ""
        if created_s is not None:
            self._created = f"# HELP {name}_created {help_text}\n# TYPE {name}_created gauge\n"
            stamp = format_value(created_s)
            self._created += "".join(
                [f"{name}_created{label_text(child)} {stamp}\n" for child in children]
            )
        self.values = [0.0] * len(self._prefixes)

    def render(self) -> str:
        """The family's lines and those of its creation times."""
        lines = zip(self._prefixes, self.values, strict=True)
        values = "".join([f"{p}{format_value(v)}\n" for p, v in lines])
        return self._header + values + self._created


class Histogram:
    """A histogram with one child. `bounds` are its upper bounds without the infinite one."""

    __slots__ = ("_bounds", "_counts", "_created", "_header", "_prefixes", "_sum", "_tails")

    def __init__(
        self,
        name: str,
        help_text: str,
        labels: Labels,
        bounds: Sequence[float],
        created_s: float | None,
    ) -> None:
        self._header = f"# HELP {name} {help_text}\n# TYPE {name} histogram\n"
        self._bounds = [float(bound) for bound in bounds]
        self._prefixes = [
            f"{name}_bucket{label_text({**labels, 'le': format_value(bound)})} "
            for bound in [*self._bounds, float("inf")]
        ]
        own = label_text(labels)
        self._tails = (f"{name}_count{own} ", f"{name}_sum{own} ")
        self._created = ""
        if created_s is not None:
            self._created = (
                f"# HELP {name}_created {help_text}\n# TYPE {name}_created gauge\n"
                f"{name}_created{own} {format_value(created_s)}\n"
            )
        self._counts = [0] * len(self._prefixes)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value` `times` times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def observe_many(
        self, values: NDArray[np.float64], times: NDArray[np.int64] | None = None
    ) -> None:
        """Count each of `values` as often as its entry in `times` says, once by default."""
        where = np.searchsorted(self._bounds, values, side="left")
        added = np.bincount(where, weights=times, minlength=len(self._counts)).astype(np.int64)
        self._counts = [a + b for a, b in zip(self._counts, added.tolist(), strict=True)]
        self._sum += float(values.sum() if times is None else values @ times)

    def render(self, *, bare: bool = False) -> str:
        """The family's lines and that of its creation time; `bare` without help and type."""
        parts, running = ["" if bare else self._header], 0
        for prefix, count in zip(self._prefixes, self._counts, strict=True):
            running += count
            parts.append(f"{prefix}{format_value(running)}\n")
        parts.append(f"{self._tails[0]}{format_value(running)}\n")
        parts.append(f"{self._tails[1]}{format_value(self._sum)}\n")
        parts.append(self._created)
        return "".join(parts)
