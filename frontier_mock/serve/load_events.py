"""SGLang's load socket: how busy a worker is, pushed to routers instead of polled.

Frames ["load", number, LoadStat], numbers from 0, signed, 8 bytes big-endian. A changed figure goes
out at once, an unchanged one every second of real time. SGLang 0.5.23 looks every five scheduler
steps and when it goes idle; here it is at every instant at which something happens.
Source: SGLang 0.5.23 managers/scheduler_components/load_publisher.py.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec
import zmq

from frontier_mock.core.events import Event
from frontier_mock.drive.driver import Driver
from frontier_mock.serve.sglang_metrics import SglangWorkerMetrics
from frontier_mock.simtime import SimTime

HEARTBEAT_S: Final = 1.0
"""An unchanged figure is sent again after so long, in real time."""

HIGH_WATER_MARK: Final = 8
"""Old figures are worth nothing: a slow reader loses them."""


class LoadStat(msgspec.Struct, tag="LoadStat", array_like=True):
    """The figures, in SGLang's order; tokens are those in use, with those of waiting requests."""

    num_running_reqs: int
    num_waiting_reqs: int
    num_tokens: int
    max_total_num_tokens: int
    attn_dp_rank: int
    num_waiting_uncached_tokens: int
    num_total_tokens: int
    max_running_requests: int
    total_prefill_uncached_tokens: int
    total_prefill_busy_us: int


class LoadPublisher:
    """One engine's load; a folder of the driver, around `metrics`, which is SGLang's own."""

    def __init__(
        self,
        metrics: SglangWorkerMetrics,
        pub: "zmq.Socket[bytes]",
        rank: int,
        block_tokens: int,
        max_running_requests: int,
    ) -> None:
        self._metrics = metrics
        self._pub = pub
        self._rank = rank
        self._block_tokens = block_tokens
        self._max_running_requests = max_running_requests
        self._driver: Driver | None = None
        self._heartbeat: asyncio.TimerHandle | None = None
        self._looked_ns: SimTime = -1
        self._last: LoadStat | None = None
        self._number = 0
        pub.set_hwm(HIGH_WATER_MARK)

    def fold(self, event: Event) -> None:
        """Something has happened: figures may have changed."""
        self._metrics.fold(event)
        if event.t_ns != self._looked_ns and self._driver is not None:
            self._looked_ns = event.t_ns
            stat = self._stat(self._driver)
            if stat != self._last:
                self._send(stat)

    def request(self, rids: Sequence[int]) -> None:
        """These sequences are the choices of one request."""
        self._metrics.request(rids)

    def start(self, driver: Driver) -> None:
        """Publish from now on."""
        self._driver = driver
        self._beat(driver)

    def stop(self) -> None:
        """Close the socket."""
        self._driver = None
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        self._pub.close(linger=0)

    def _beat(self, driver: Driver) -> None:
        self._send(self._stat(driver))
        loop = asyncio.get_running_loop()
        self._heartbeat = loop.call_later(HEARTBEAT_S, self._beat, driver)

    def _stat(self, driver: Driver) -> LoadStat:
        load = self._metrics.load(driver)
        gauges, size = load.gauges, self._block_tokens
        used = (gauges.num_blocks - gauges.free_blocks) * size
        return LoadStat(
            num_running_reqs=gauges.running,
            num_waiting_reqs=gauges.waiting,
            num_tokens=used,
            max_total_num_tokens=gauges.num_blocks * size,
            attn_dp_rank=self._rank,
            num_waiting_uncached_tokens=load.waiting_uncached_tokens,
            num_total_tokens=used + load.waiting_tokens,
            max_running_requests=self._max_running_requests,
            total_prefill_uncached_tokens=load.prefilled_tokens,
            total_prefill_busy_us=load.prefill_busy_us,
        )

    def _send(self, stat: LoadStat) -> None:
        number = self._number.to_bytes(8, "big", signed=True)
        self._pub.send_multipart((b"load", number, msgspec.msgpack.encode(stat)), zmq.NOBLOCK)
        self._number += 1
        self._last = stat
