"""One direction between two tiers, and what is under way on it.

Transfers of one direction follow each other: vLLM lets every copy wait for the end of the one
before it (v1/kv_offload/cpu/gpu_worker.py), SGLang's cache controller has one stream per direction.
So the end of a transfer is known when it is booked, and those behind it wait: that is how
contention shows.
"""

from collections.abc import Sequence as Ranges

from frontier_mock.serving.sequence import Sequence
from frontier_mock.serving.tiers.specs import LaneSpec
from frontier_mock.simtime import NS_PER_S, SimTime


class Transfer:
    """Chunks `ranges` of the path `keys`, `num_bytes` of one GPU, on their way to or from a tier.

    `end_ns` is -1 until they are booked on a lane. `waiters` are sequences that cannot go on
    before it has ended.
    """

    __slots__ = ("end_ns", "keys", "num_bytes", "ranges", "waiters")

    def __init__(self, keys: bytes, ranges: Ranges[tuple[int, int]], num_bytes: int) -> None:
        self.keys = keys
        self.ranges = tuple(ranges)
        self.num_bytes = num_bytes
        self.end_ns: SimTime = -1
        self.waiters: list[Sequence] = []


class Lane:
    """See the top of this module. `num_bytes` and `busy_ns` count what was ever booked."""

    __slots__ = ("_free_ns", "_spec", "busy_ns", "num_bytes")

    def __init__(self, spec: LaneSpec) -> None:
        self._spec = spec
        self._free_ns: SimTime = 0
        self.num_bytes = 0
        self.busy_ns: SimTime = 0

    def duration_ns(self, num_bytes: int) -> SimTime:
        """What `num_bytes` take with the lane to themselves; never nothing."""
        seconds = self._spec.latency_s + num_bytes / self._spec.bytes_per_s
        return max(1, round(seconds * NS_PER_S))

    def book(self, t_ns: SimTime, num_bytes: int) -> SimTime:
        """Move `num_bytes` from `t_ns` on, after all that was booked before; when that ends."""
        self._free_ns = max(self._free_ns, t_ns) + self.carry(num_bytes)
        return self._free_ns

    def carry(self, num_bytes: int) -> SimTime:
        """Move `num_bytes` as part of a step, which waits for it; how long that takes."""
        duration_ns = self.duration_ns(num_bytes)
        self.num_bytes += num_bytes
        self.busy_ns += duration_ns
        return duration_ns
