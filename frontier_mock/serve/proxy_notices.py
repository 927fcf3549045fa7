"""LMCache's word to its proxy that a prompt is where it will be decoded, over ZMQ.

A PUSH socket connected to the proxy's PULL; each tensor-parallel rank of the prefill engine sends
the same message, and the proxy counts them.
Source: LMCache 0.3 and later, v1/storage_backend/pd_backend.py (ProxyNotif).
"""

import logging
from collections.abc import Sequence

import msgspec
import zmq

from frontier_mock.drive.driver import Driver
from frontier_mock.drive.protocol import Flight
from frontier_mock.wire.served import ServedModel

logger = logging.getLogger("frontier_mock")


class ProxyNotif(msgspec.Struct, tag=True):
    """The message; `req_id` is what the proxy calls the request."""

    req_id: str


class ProxyNotices:
    """The sockets of all prefill engines. `num_lost` are messages no proxy was there to take."""

    def __init__(self, driver: Driver, engines: Sequence[ServedModel]) -> None:
        """`engines` are what serves each engine, in order."""
        self.num_lost = 0
        self._engines = engines
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        driver.delivery.on_sent = self._sent

    def stop(self) -> None:
        """Close the sockets; what no proxy has taken yet is lost."""
        self._context.destroy(linger=0)

    def _sent(self, flight: Flight) -> None:
        transfer = flight.ticket.submits[flight.position].transfer
        port = self._engines[flight.worker].kv
        if transfer is None or transfer.target < 0 or port is None or port.lmcache is None:
            return
        proxy = port.lmcache.proxy
        if not proxy:
            return
        socket = self._sockets.get(proxy)
        if socket is None:
            socket = self._sockets[proxy] = self._context.socket(zmq.PUSH)
            socket.connect(f"tcp://{proxy}")
        message = msgspec.msgpack.encode(ProxyNotif(transfer.notice))
        for _ in range(port.tp):
            try:
                socket.send(message, zmq.NOBLOCK)
            except zmq.Again:
                if not self.num_lost:
                    logger.warning("LMCache's proxy at %s takes no messages", proxy)
                self.num_lost += 1
