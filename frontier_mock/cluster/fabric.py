"""The transfer fabric: flows on shared links, each with its max-min fair share. PURE.

Theory of operation
1. A *flow* moves a number of bytes over a path of links, all at once (a fluid, not packets). Its
   rate is max-min fair: raise all rates together; whenever a link is full, what crosses it is
   settled; go on with the others. A flow may have a cap of its own, such as the pace at which the
   layers of a forward pass produce what it carries.
2. Rates change only when a flow starts, ends, is cancelled or gets another cap. Between two such
   moments everything is a straight line, so the next end is known and costs one event.
3. Bytes and rates are integers in units of 2**-RATE_BITS (byte; byte per nanosecond), and rates are
   rounded down: progress over any number of nanoseconds is exact, a link never carries more than
   its capacity, and a flow's end is the first nanosecond by which all of it has moved.
4. What a link has carried is the sum of what its flows have moved, each byte once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from frontier_mock.simtime import NS_PER_S, SimTime

RATE_BITS = 20
"""Fractional bits of bytes and of bytes per nanosecond."""

_UNBOUNDED = 1 << 80


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """One direction of a link, as fast as it really gets."""

    name: str
    bytes_per_s: float


class LinkUse(NamedTuple):
    """What one link has done by some time: bytes carried and nanoseconds with any flow on it."""

    name: str
    bytes_per_s: float
    num_bytes: int
    busy_ns: SimTime


class _Flow:
    __slots__ = ("cap", "left", "path", "rate", "size")

    def __init__(self, path: tuple[int, ...], size: int, cap: int) -> None:
        self.path = path
        self.size = size
        self.left = size
        self.cap = cap
        self.rate = 0


class Fabric:
    """See the theory of operation at the top of this module.

    Flows are known by the caller's own numbers. Calls must not go back in time.
    """

    def __init__(self, links: Sequence[LinkSpec]) -> None:
        self.links = tuple(links)
        self._capacity = [_units(link.bytes_per_s) for link in links]
        if any(capacity < 1 for capacity in self._capacity):
            raise ValueError("every link must move at least a byte per millisecond")
        self._flows: dict[int, _Flow] = {}
        self._on_link = [0] * len(self.links)
        self._carried = [0] * len(self.links)
        self._busy_ns = [0] * len(self.links)
        self._now_ns: SimTime = 0
        self._due_ns: SimTime | None = None

    def __len__(self) -> int:
        """Flows under way."""
        return len(self._flows)

    def start(
        self,
        t_ns: SimTime,
        flow: int,
        path: Sequence[int],
        num_bytes: int,
        cap_bytes_per_s: float | None = None,
    ) -> None:
        """Begin to move `num_bytes` over the links `path`, none of them twice.

        Raises ValueError for a flow under way, no bytes, or a path that is empty or repeats a link.
        """
        if flow in self._flows:
            raise ValueError(f"flow {flow} is under way")
        if num_bytes < 1 or not path or len(frozenset(path)) != len(path):
            raise ValueError(f"flow {flow}: {num_bytes} bytes over links {tuple(path)}")
        self._progress(t_ns)
        cap = _UNBOUNDED if cap_bytes_per_s is None else _units(cap_bytes_per_s)
        self._flows[flow] = _Flow(tuple(path), num_bytes << RATE_BITS, max(1, cap))
        for link in path:
            self._on_link[link] += 1
        self._share()

    def cancel(self, t_ns: SimTime, flow: int) -> int:
        """Stop a flow; returns the whole bytes it has moved. Raises KeyError if it is not there."""
        self._progress(t_ns)
        gone = self._remove(flow)
        self._share()
        return (gone.size - gone.left) >> RATE_BITS

    def uncap(self, t_ns: SimTime, flow: int) -> None:
        """From now on only links bound this flow. Raises KeyError if it is not there."""
        self._progress(t_ns)
        self._flows[flow].cap = _UNBOUNDED
        self._share()

    def set_capacity(self, t_ns: SimTime, link: int, bytes_per_s: float) -> None:
        """A link becomes slower or faster. Raises ValueError below a byte per millisecond."""
        capacity = _units(bytes_per_s)
        if capacity < 1:
            raise ValueError(f"{bytes_per_s} bytes per second is too slow for a link")
        self._progress(t_ns)
        self._capacity[link] = capacity
        self._share()

    def next_time(self) -> SimTime | None:
        """When the next flow ends, if nothing changes until then."""
        return self._due_ns

    def pop_done(self, t_ns: SimTime) -> list[int]:
        """Flows that have ended by `t_ns`, which must not be later than `next_time`, in order."""
        if self._due_ns is None or t_ns < self._due_ns:
            return []
        self._progress(t_ns)
        done = [number for number, flow in self._flows.items() if not flow.left]
        for number in done:
            self._remove(number)
        self._share()
        return sorted(done)

    def rate_bytes_per_s(self, flow: int) -> float:
        """What a flow gets at present."""
        return self._flows[flow].rate * NS_PER_S / (1 << RATE_BITS)

    def use(self, t_ns: SimTime) -> list[LinkUse]:
        """What every link has carried by `t_ns`, the present."""
        self._progress(t_ns)
        figures = zip(self.links, self._carried, self._busy_ns, strict=True)
        return [
            LinkUse(link.name, link.bytes_per_s, carried >> RATE_BITS, busy)
            for link, carried, busy in figures
        ]

    def _remove(self, number: int) -> _Flow:
        flow = self._flows.pop(number)
        for link in flow.path:
            self._on_link[link] -= 1
        return flow

    def _progress(self, t_ns: SimTime) -> None:
        """Move everybody from the last change to `t_ns`."""
        elapsed = t_ns - self._now_ns
        if elapsed < 0:
            raise ValueError(f"cannot go back from {self._now_ns} ns to {t_ns} ns")
        if not elapsed:
            return
        self._now_ns = t_ns
        for flow in self._flows.values():
            moved = min(flow.left, flow.rate * elapsed)
            flow.left -= moved
            for link in flow.path:
                self._carried[link] += moved
        for link, count in enumerate(self._on_link):
            if count:
                self._busy_ns[link] += elapsed

    def _share(self) -> None:
        """Max-min fair rates, and when the first flow will end."""
        left = list(self._capacity)
        waiting = list(self._on_link)
        open_flows = list(self._flows.values())
        while open_flows:
            level = min(
                min(left[link] // waiting[link] for flow in open_flows for link in flow.path),
                min(flow.cap for flow in open_flows),
            )
            full = [n > 0 and left[link] // n <= level for link, n in enumerate(waiting)]
            still = []
            for flow in open_flows:
                if flow.cap <= level or any(full[link] for link in flow.path):
                    flow.rate = max(1, level)
                    for link in flow.path:
                        left[link] -= level
                        waiting[link] -= 1
                else:
                    still.append(flow)
            open_flows = still
        ends = [-(-flow.left // flow.rate) for flow in self._flows.values()]
        self._due_ns = self._now_ns + min(ends) if ends else None


def _units(bytes_per_s: float) -> int:
    return int(bytes_per_s * (1 << RATE_BITS)) // NS_PER_S
