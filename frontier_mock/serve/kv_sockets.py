"""One PUB socket of KV events, and the ROUTER that repeats what its subscribers have missed.

Frames and replay are vLLM 0.33's `distributed/kv_events.ZmqEventPublisher`, which SGLang 0.5.23
shares: [topic, number, payload], numbers in 8 bytes, big-endian. A request [client, "", first
number] is answered batch by batch, and ends with number -1.
"""

import asyncio
import contextlib
import logging
import socket
from collections import deque
from dataclasses import replace
from typing import Final

import zmq

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.kv_events import OPTION, KvEventsConfig

logger = logging.getLogger("frontier_mock")

Context = zmq.Context[zmq.Socket[bytes]]

_END: Final = (-1).to_bytes(8, "big", signed=True)


class Outlet:
    """The sockets of one `config`, as which `config` is after they are bound.

    Raises ConfigError if they cannot be.
    """

    def __init__(self, config: KvEventsConfig, host: str | None, context: Context) -> None:
        self._topic = config.topic.encode()
        # Without a socket to ask at, what is kept could never be told.
        kept = 0 if config.replay_endpoint is None else config.buffer_steps
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=kept)
        self._pub = context.socket(zmq.PUB)
        self._replay: zmq.Socket[bytes] | None = None
        self._pub.set_hwm(config.hwm)
        endpoint = config.endpoint
        if config.binds:
            endpoint = bind(self._pub, endpoint, host, "endpoint")
        else:
            self._pub.connect(endpoint)
        replay = config.replay_endpoint
        if replay is not None:
            self._replay = context.socket(zmq.ROUTER)
            # So that a whole replay and its end fit, however slowly they are read.
            self._replay.setsockopt(zmq.SNDHWM, 2 * (config.buffer_steps + 1))
            replay = bind(self._replay, replay, host, "replay_endpoint")
        self.config = replace(config, endpoint=endpoint, replay_endpoint=replay)

    def send(self, number: int, payload: bytes) -> None:
        """Publish a batch, and keep it for replays."""
        self._pub.send_multipart((self._topic, number.to_bytes(8, "big"), payload), zmq.NOBLOCK)
        self._buffer.append((number, payload))

    def serve_replays(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer replay requests from now on."""
        if self._replay is not None:
            # The descriptor of a ZMQ socket tells of news once: what is there is read to the end.
            loop.add_reader(self._replay.fileno(), self._read_replays)
            self._read_replays()

    def close(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let the sockets go; what has not left by then is lost, as with vLLM."""
        if self._replay is not None:
            loop.remove_reader(self._replay.fileno())
            self._replay.close(linger=0)
        self._pub.close(linger=0)

    def _read_replays(self) -> None:
        replay = self._replay
        assert replay is not None
        while replay.poll(0):
            frames = replay.recv_multipart(zmq.NOBLOCK)
            if len(frames) != 3:
                logger.warning("Invalid replay request: %s", frames)
                continue
            client, _, first = frames
            self._replay_from(client, int.from_bytes(first, "big"))

    def _replay_from(self, client: bytes, first: int) -> None:
        replay = self._replay
        assert replay is not None
        # A client that went away in between is the router socket's business: it drops the frames.
        with contextlib.suppress(zmq.Again):
            for number, payload in self._buffer:
                if number >= first:
                    frames = (client, b"", self._topic, number.to_bytes(8, "big"), payload)
                    replay.send_multipart(frames, zmq.NOBLOCK)
            replay.send_multipart((client, b"", b"", _END, b""), zmq.NOBLOCK)


def bind(sock: zmq.Socket[bytes], endpoint: str, host: str | None, key: str) -> str:
    """Bind; port 0 takes any port of this node. Returns where that is."""
    wanted = endpoint
    if endpoint == "tcp://*:0":
        wanted = f"tcp://{host or _node_address()}:0"
    try:
        sock.bind(wanted)
    except zmq.ZMQError as error:
        raise ConfigError(f"argument {OPTION}: {key}: {endpoint}: {error.strerror}") from None
    if wanted.endswith(":0"):
        return sock.getsockopt_string(zmq.LAST_ENDPOINT)
    return endpoint


def _node_address() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"
