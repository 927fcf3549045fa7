"""The families that a NIXL connector adds to vLLM's /metrics (vLLM 0.33, nixl/stats.py).

A transfer is observed where it ends, on the engine that fetched, an expired lease on the engine
that kept the blocks. Posting takes no time here, and descriptors are one per block and layer.
"""

from typing import Final

from frontier_mock.core.events import Event, KvFailed, KvReceived, KvReleased
from frontier_mock.simtime import NS_PER_S
from frontier_mock.wire.prometheus import Counter, Histogram, Labels

_TIMES_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 5.0)
_BYTES: Final = tuple(float(1 << (10 + i)) for i in range(1, 25, 2))
_DESCRIPTORS: Final = (
    *(10, 20, 30, 50, 75, 100, 200, 400),
    *(1000, 2000, 4000, 10000, 20000, 50000),
)


class NixlMetrics:
    """The families of one engine; `bytes_per_descriptor` is a block's share of one layer."""

    def __init__(self, labels: Labels, created_s: float, bytes_per_descriptor: float) -> None:
        self._bytes_per_descriptor = bytes_per_descriptor

        def histogram(name: str, text: str, bounds: tuple[float, ...]) -> Histogram:
            return Histogram(f"vllm:nixl_{name}", text, labels, bounds, created_s)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"vllm:nixl_{name}", text, [labels], created_s)

        self._xfer = histogram(
            "xfer_time_seconds",
            "Histogram of transfer duration for NIXL KV Cache transfers.",
            _TIMES_S[1:],
        )
        self._post = histogram(
            "post_time_seconds",
            "Histogram of transfer post time for NIXL KV Cache transfers.",
            _TIMES_S,
        )
        self._bytes = histogram(
            "bytes_transferred",
            "Histogram of bytes transferred per NIXL KV Cache transfers.",
            _BYTES,
        )
        self._descriptors = histogram(
            "num_descriptors",
            "Histogram of number of descriptors per NIXL  KV Cache transfers.",
            tuple(float(bound) for bound in _DESCRIPTORS),
        )
        self._failed = counter(
            "num_failed_transfers",
            "Number of failed NIXL KV Cache transfers, including handshake and notification "
            "failures. NOTE: KV expiry is tracked separately in vllm:nixl_num_kv_expired_reqs.",
        )
        self._failed_notifications = counter(
            "num_failed_notifications",
            "Number of failed NIXL KV Cache notifications. Retained for compatibility; these "
            "failures are also included in vllm:nixl_num_failed_transfers.",
        )
        self._expired = counter(
            "num_kv_expired_reqs",
            "Number of requests that had their KV expire. NOTE: This metric is tracked on the P "
            "instance.",
        )
        self._late = counter(
            "num_notifications_after_expiry",
            "Number of completion notifications for requests that were no longer tracked, usually "
            "because their KV lease expired. The KV blocks may have been reused before the "
            "transfer finished. Counted per notification (one per remote rank), not per request.",
        )

    def fold(self, event: Event) -> None:
        """Take one event of this engine into account."""
        if isinstance(event, KvReceived):
            self._xfer.observe((event.t_ns - event.allocated_ns) / NS_PER_S)
            self._post.observe(0.0)
            self._bytes.observe(event.num_bytes)
            self._descriptors.observe(round(event.num_bytes / self._bytes_per_descriptor))
        elif isinstance(event, KvFailed):
            self._failed.values[0] += 1
        elif isinstance(event, KvReleased) and event.reason == "expired":
            self._expired.values[0] += 1

    def render(self) -> bytes:
        """The families' lines."""
        families: list[Histogram | Counter] = [self._xfer, self._post, self._bytes]
        families += [self._descriptors, self._failed, self._failed_notifications]
        families += [self._expired, self._late]
        return "".join([family.render() for family in families]).encode()
