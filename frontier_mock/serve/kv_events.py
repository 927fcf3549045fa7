"""Publishing KV events: a ZMQ PUB socket per engine, and a ROUTER for those who missed something.

Theory of operation
1. The engine says what its cache did (`cluster.observed`) in the pump that moves it, so batches go
   out in the order of virtual time and before any byte of the responses of that instant.
2. A subscriber reads another socket than the client does, so sent first is not seen first. Where
   time is virtual the driver's thread therefore waits, once per instant that ends a response, until
   `settle_s` of real time has gone by since the last batch; nobody's virtual time is lost by that.
3. Frames, sequence numbers and replay are those of vLLM 0.33 `distributed/kv_events.py`, which
   SGLang 0.5.23 shares: [topic, number, payload], numbers from 0 in 8 bytes, big-endian. A replay
   request [.., "", first number] is answered batch by batch, then with number -1.
4. Others in this process may `listen` to an engine's events, before they become bytes.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import zmq

from frontier_mock.cluster.observed import KvBatch
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.kv_events import OPTION, KvEventsConfig, KvSource, described
from frontier_mock.core.events import Event, Finished
from frontier_mock.drive.driver import Driver
from frontier_mock.drive.protocol import Folder
from frontier_mock.serve.load_events import LoadPublisher
from frontier_mock.serve.sglang_metrics import SglangWorkerMetrics
from frontier_mock.simtime import NS_PER_S, SimTime
from frontier_mock.wire.kv_events import KvEvent, KvEventMapper, KvEventWriter
from frontier_mock.wire.kv_hashes import SglangHasher, VllmHasher
from frontier_mock.wire.tokenizer import Json

logger = logging.getLogger("frontier_mock")

_END: Final = (-1).to_bytes(8, "big", signed=True)


class Told(NamedTuple):
    """A batch as it goes out: its number among the engine's batches, its time, its events."""

    number: int
    t_ns: SimTime
    events: list[KvEvent]


class KvPublisher:
    """One engine's events. Raises ConfigError if a socket cannot be had."""

    def __init__(
        self,
        source: KvSource,
        created_s: float,
        host: str | None,
        context: "zmq.Context[zmq.Socket[bytes]]",
    ) -> None:
        sglang = source.hash_algorithm is None
        try:
            hasher = (
                SglangHasher()
                if source.hash_algorithm is None
                else VllmHasher(source.hash_algorithm, source.hash_seed)
            )
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"argument --prefix-caching-hash-algo: {error}; "
                "needs pip install 'frontier-mock[kv-events]'"
            ) from None
        self.mapper = KvEventMapper(hasher, source.block_tokens, merges=sglang)
        self.source = source
        self.config = source.config
        self.sent_s = 0.0
        """Real time of the last batch, on the monotonic clock."""
        self._writer = KvEventWriter(hasher, source.dialect, as_bytes=source.as_bytes)
        self._created_s = created_s
        self._topic = source.config.topic.encode()
        self._next = 0
        self._buffer: deque[tuple[int, bytes]] = deque(maxlen=source.config.buffer_steps)
        self._listeners: list[Callable[[Told], None]] = []
        self._open(host, context)

    @property
    def num_batches(self) -> int:
        """Batches published so far; the last one's number is one less."""
        return self._next

    def listen(self, listener: Callable[[Told], None]) -> Callable[[], None]:
        """Call `listener` with every batch from now on; what is returned ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def publish(self, batch: KvBatch) -> None:
        """Send the engine's next batch, and keep it for replays."""
        events = self.mapper.events(batch)
        number = self._next
        self._next += 1
        seconds = self._created_s + batch.t_ns / NS_PER_S
        payload = self._writer.payload(seconds, events, self.source.rank)
        self._pub.send_multipart((self._topic, number.to_bytes(8, "big"), payload), zmq.NOBLOCK)
        self.sent_s = time.monotonic()
        self._buffer.append((number, payload))
        for listener in self._listeners:
            listener(Told(number, batch.t_ns, events))

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

    def _open(self, host: str | None, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        config = self.config
        self._pub = context.socket(zmq.PUB)
        self._replay: zmq.Socket[bytes] | None = None
        self._pub.set_hwm(config.hwm)
        endpoint = config.endpoint
        if config.binds:
            endpoint = _bind(self._pub, endpoint, host, "endpoint")
        else:
            self._pub.connect(endpoint)
        replay = config.replay_endpoint
        if replay is not None:
            self._replay = context.socket(zmq.ROUTER)
            # So that a whole replay and its end fit, however slowly they are read.
            self._replay.setsockopt(zmq.SNDHWM, 2 * (config.buffer_steps + 1))
            replay = _bind(self._replay, replay, host, "replay_endpoint")
        self.config = replace(config, endpoint=endpoint, replay_endpoint=replay)

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


def _bind(sock: "zmq.Socket[bytes]", endpoint: str, host: str | None, key: str) -> str:
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


class KvEvents:
    """The publishers of a process's engines, by engine number."""

    def __init__(
        self,
        sources: Mapping[int, KvSource],
        created_s: float,
        host: str | None,
        settle_s: float,
    ) -> None:
        """Opens the sockets. Raises ConfigError."""
        self.publishers: dict[int, KvPublisher] = {}
        self._loads: list[LoadPublisher] = []
        self._host = host
        self._settle_s = settle_s
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            for engine, source in sources.items():
                self.publishers[engine] = KvPublisher(source, created_s, host, self._context)
        except ConfigError:
            self._context.destroy(linger=0)
            raise

    def publish(self, batch: KvBatch) -> None:
        """An engine's next batch."""
        self.publishers[batch.worker].publish(batch)

    def start(self, driver: Driver) -> None:
        """Answer replay requests and publish loads, in the running event loop."""
        loop = asyncio.get_running_loop()
        for publisher in self.publishers.values():
            publisher.serve_replays(loop)
        for load in self._loads:
            load.start(driver)

    def stop(self) -> None:
        """Close every socket."""
        loop = asyncio.get_running_loop()
        for publisher in self.publishers.values():
            publisher.close(loop)
        for load in self._loads:
            load.stop()
        self._context.term()

    def heralded(self, folder: Folder, engine: int) -> Folder:
        """`folder`, which hears of an end only when subscribers had time to hear what led to it.

        An SGLang engine's load is published as well, if that was asked for. Raises ConfigError.
        """
        publisher = self.publishers.get(engine)
        if publisher is None:
            return folder
        if publisher.source.load_endpoint is not None and isinstance(folder, SglangWorkerMetrics):
            folder = self._load_publisher(folder, publisher.source, publisher.source.load_endpoint)
        if self._settle_s <= 0:
            return folder
        return _Heralded(folder, publisher, self._settle_s)

    def _load_publisher(
        self, metrics: SglangWorkerMetrics, source: KvSource, endpoint: str
    ) -> LoadPublisher:
        pub = self._context.socket(zmq.PUB)
        try:
            _bind(pub, endpoint, self._host, "load-publish-endpoint")
        except ConfigError:
            self._context.destroy(linger=0)
            raise
        load = LoadPublisher(
            metrics, pub, source.rank, source.block_tokens, source.max_running_requests
        )
        self._loads.append(load)
        return load

    def describe(self, engines: Sequence[int]) -> Json:
        """/server_info's `kv_events` of an SGLang server, None if it has no publisher."""
        publisher = self.publishers.get(engines[0])
        if publisher is None:
            return None
        source = publisher.source
        load = source.load_endpoint
        return described(publisher.config, source.block_tokens, len(engines), load)

    def sources(self, engines: Sequence[int]) -> dict[str, KvEventsConfig]:
        """The publishers of one server, by data-parallel rank."""
        return {
            str(rank): self.publishers[engine].config
            for rank, engine in enumerate(engines)
            if engine in self.publishers
        }


class _Heralded:
    """See `KvEvents.heralded`."""

    __slots__ = ("_folder", "_publisher", "_settle_s")

    def __init__(self, folder: Folder, publisher: KvPublisher, settle_s: float) -> None:
        self._folder = folder
        self._publisher = publisher
        self._settle_s = settle_s

    def fold(self, event: Event) -> None:
        """Take one event into account."""
        if isinstance(event, Finished):
            left_s = self._publisher.sent_s + self._settle_s - time.monotonic()
            if left_s > 0:
                time.sleep(left_s)
        self._folder.fold(event)

    def request(self, rids: Sequence[int]) -> None:
        """These sequences are the choices of one request."""
        self._folder.request(rids)
