"""Publishing KV events: a ZMQ PUB socket per engine, and a ROUTER for those who missed something.

Theory of operation
1. The engine says what its cache did (`cluster.observed`) in the pump that moves it, so batches go
   out in the order of virtual time and before any byte of the responses of that instant.
2. A subscriber reads another socket than the client does, so sent first is not seen first. Where
   time is virtual the driver's thread therefore waits, once per instant that ends a response, until
   `settle_s` of real time has gone by since the last batch; nobody's virtual time is lost by that.
3. Frames, numbers from 0 and replay are the engines' own (`serve.kv_sockets`). Consumers that want
   different forms of the same events get an outlet each.
4. Others in this process may `listen` to an engine's events, before they become bytes.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import zmq

from frontier_mock.cluster.observed import KvBatch
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.kv_events import KvEventsConfig, KvSource, described
from frontier_mock.core.events import Event, Finished
from frontier_mock.drive.driver import Driver
from frontier_mock.drive.protocol import Folder
from frontier_mock.serve.kv_sockets import Context, Outlet, bind
from frontier_mock.serve.load_events import LoadPublisher
from frontier_mock.serve.sglang_metrics import SglangWorkerMetrics
from frontier_mock.simtime import NS_PER_S, SimTime
from frontier_mock.wire.kv_events import KvEvent, KvEventMapper, KvEventWriter
from frontier_mock.wire.kv_hashes import SglangHasher, VllmHasher
from frontier_mock.wire.tokenizer import Json

logger = logging.getLogger("frontier_mock")


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
        context: Context,
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
        self.sent_s = 0.0
        """Real time of the last batch, on the monotonic clock."""
        self._created_s = created_s
        self._next = 0
        self._listeners: list[Callable[[Told], None]] = []
        self._outlets = [
            (
                Outlet(config, host, context),
                KvEventWriter(hasher, dialect, as_bytes=source.as_bytes),
            )
            for config, dialect in ((source.config, source.dialect), *source.also)
        ]

    @property
    def config(self) -> KvEventsConfig:
        """The engine's own publisher, with the ports it has got."""
        return self._outlets[0][0].config

    @property
    def endpoints(self) -> list[str]:
        """Where events go, the engine's own publisher first."""
        return [outlet.config.endpoint for outlet, _ in self._outlets]

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
        for outlet, writer in self._outlets:
            outlet.send(number, writer.payload(seconds, events, self.source.rank))
        self.sent_s = time.monotonic()
        for listener in self._listeners:
            listener(Told(number, batch.t_ns, events))

    def serve_replays(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer replay requests from now on."""
        for outlet, _ in self._outlets:
            outlet.serve_replays(loop)

    def close(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let the sockets go."""
        for outlet, _ in self._outlets:
            outlet.close(loop)


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
        self._context: Context = zmq.Context()
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
            bind(pub, endpoint, self._host, "load-publish-endpoint")
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
