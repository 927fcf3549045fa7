"""The `http_...` families on /metrics: prometheus-fastapi-instrumentator's, which vLLM installs.

Durations are virtual: how long the client would have waited for the last byte.
"""

from bisect import bisect_left
from collections.abc import Iterator

from frontier_mock.simtime import NS_PER_S, SimTime
from frontier_mock.wire.prometheus import Counter, format_value, label_text

_FINE_BOUNDS_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0),
    *(7.5, 10.0, 30.0, 60.0),
)
_COARSE_BOUNDS_S = (0.1, 0.5, 1.0)
_BATCH = 1024

_SIZE_HELP = (
    "Content length of {} by handler. Only value of header is respected. Otherwise ignored. "
    "No percentile calculated. "
)
_FINE_HELP = (
    "Latency with many buckets but no API specific labels. "
    "Made for more accurate percentile calculations. "
)
_COARSE_HELP = (
    "Latency with only few buckets by handler. "
    "Made to be only used if aggregation by handler is important. "
)


class _Durations:
    """Counts per bucket and their sum."""

    __slots__ = ("_bounds_s", "_counts", "_sum_ns")

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_ns = 0

    def observe(self, duration_ns: SimTime) -> None:
        self._counts[bisect_left(self._bounds_s, duration_ns / NS_PER_S)] += 1
        self._sum_ns += duration_ns

    def lines(self, name: str, labels: dict[str, str]) -> Iterator[str]:
        running = 0
        for bound, count in zip((*self._bounds_s, float("inf")), self._counts, strict=True):
            running += count
            own = label_text({**labels, "le": format_value(bound)})
            yield f"{name}_bucket{own} {format_value(running)}\n"
        own = label_text(labels)
        yield f"{name}_count{own} {format_value(running)}\n"
        yield f"{name}_sum{own} {format_value(self._sum_ns / NS_PER_S)}\n"


class HttpMetrics:
    """The families of one port. `handler` is the route's path, "none" where there is no route."""

    def __init__(self, created_s: float) -> None:
        self._created_s = created_s
        self._pending: list[tuple[str, str, int, str, int, SimTime]] = []
        self._totals: dict[tuple[str, str, int], int] = {}
        self._sizes: dict[str, list[int]] = {}
        self._fine = _Durations(_FINE_BOUNDS_S)
        self._coarse: dict[tuple[str, str], _Durations] = {}

    def answered(
        self,
        handler: str,
        method: str,
        status: int,
        request_bytes: str,
        response_bytes: int,
        duration_ns: SimTime,
    ) -> None:
        """One answer is complete. Sizes are those of the content-length headers, 0 without one."""
        self._pending.append((handler, method, status, request_bytes, response_bytes, duration_ns))
        if len(self._pending) >= _BATCH:
            self._observe()

    def _observe(self) -> None:
        for handler, method, status, request_bytes, response_bytes, duration_ns in self._pending:
            total = (handler, method, status // 100)
            self._totals[total] = self._totals.get(total, 0) + 1
            sizes = self._sizes.setdefault(handler, [0, 0, 0])
            sizes[0] += 1
            sizes[1] += int(request_bytes) if request_bytes.isdecimal() else 0
            sizes[2] += response_bytes
            self._fine.observe(duration_ns)
            coarse = self._coarse.get((handler, method))
            if coarse is None:
                coarse = self._coarse[handler, method] = _Durations(_COARSE_BOUNDS_S)
            coarse.observe(duration_ns)
        self._pending.clear()

    def render(self) -> bytes:
        """Prometheus text."""
        self._observe()
        children = [
            {"handler": handler, "method": method, "status": f"{hundreds}xx"}
            for handler, method, hundreds in self._totals
        ]
        help_text = "Total number of requests by method, status and handler."
        totals = Counter("http_requests", help_text, children, self._created_s)
        totals.values[:] = [float(count) for count in self._totals.values()]
        parts = [totals.render()]
        parts += self._size_lines("http_request_size_bytes", "incoming requests", 1)
        parts += self._size_lines("http_response_size_bytes", "outgoing responses", 2)
        fine = "http_request_duration_highr_seconds"
        parts.append(f"# HELP {fine} {_FINE_HELP}\n# TYPE {fine} histogram\n")
        parts += self._fine.lines(fine, {})
        parts += self._created(fine, _FINE_HELP, [{}])
        coarse = "http_request_duration_seconds"
        parts.append(f"# HELP {coarse} {_COARSE_HELP}\n# TYPE {coarse} histogram\n")
        labels = [{"handler": handler, "method": method} for handler, method in self._coarse]
        for own, durations in zip(labels, self._coarse.values(), strict=True):
            parts += durations.lines(coarse, own)
        parts += self._created(coarse, _COARSE_HELP, labels)
        return "".join(parts).encode()

    def _size_lines(self, name: str, what: str, column: int) -> Iterator[str]:
        help_text = _SIZE_HELP.format(what)
        yield f"# HELP {name} {help_text}\n# TYPE {name} summary\n"
        for handler, sizes in self._sizes.items():
            own = label_text({"handler": handler})
            yield f"{name}_count{own} {format_value(sizes[0])}\n"
            yield f"{name}_sum{own} {format_value(sizes[column])}\n"
        yield from self._created(name, help_text, [{"handler": h} for h in self._sizes])

    def _created(self, name: str, help_text: str, labels: list[dict[str, str]]) -> Iterator[str]:
        yield f"# HELP {name}_created {help_text}\n# TYPE {name}_created gauge\n"
        stamp = format_value(self._created_s)
        for own in labels:
            yield f"{name}_created{label_text(own)} {stamp}\n"
