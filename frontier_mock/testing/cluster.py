"""A mock cluster inside the program that tests against it: one process, one loop, virtual time."""

import asyncio
import gc
import importlib
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from frontier_mock.cli.serving import eos_model, http_settings, with_compat
from frontier_mock.client.wrap import with_actor
from frontier_mock.cluster.routing import POLICIES
from frontier_mock.cluster.specs import ClusterSpec
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.journals import journal_head
from frontier_mock.config.resolve import (
    ResolvedCluster,
    ResolvedWorker,
    cluster_of,
    resolve_scenario,
    resolve_single,
)
from frontier_mock.config.scenario import load_scenario
from frontier_mock.config.served import served_models, sized
from frontier_mock.config.vllm_flags import SimulatorArgs, parse_serve
from frontier_mock.core.commands import AUTO_WORKER
from frontier_mock.core.events import Event
from frontier_mock.drive.pace import ClockSpec
from frontier_mock.drive.virtual_loop import VirtualTimeLoop
from frontier_mock.serve.connection import Http1Server
from frontier_mock.serve.up import ClusterServer, ServeSpec
from frontier_mock.simtime import SimTime, to_seconds
from frontier_mock.testing.direct import AsyncDirectTransport, DirectTransport
from frontier_mock.testing.memory import Origin, aiohttp_connector, httpcore_backend
from frontier_mock.wire.served import counting_ids

if TYPE_CHECKING:
    import aiohttp
    from openai import AsyncOpenAI, OpenAI

ResultT = TypeVar("ResultT")

DEFAULT_MODEL = "meta-llama/Llama-3.1-8B-Instruct"
TRANSPORTS = ("direct", "memory", "tcp")
_HOST = "127.0.0.1"
_GC_ALLOCATIONS = 50_000


@dataclass(frozen=True, slots=True)
class MockSpec:
    """What to simulate: a scenario of the library or in a file, or else `workers` equal workers.

    `flags` are those of `frontier-mock vllm serve`, vLLM's own among them, such as
    `("--max-num-seqs", "64", "--no-sim-eos")`; `hardware` is --sim-hardware. `router_policy` is
    that of the cluster's own router, which stands before several workers at `MockCluster.url`.
    `journal` names a file for every command with its stamp. `dev_mode` is what
    VLLM_SERVER_DEV_MODE=1 is to a process: vLLM's control plane is served.
    """

    scenario: str | None = None
    model: str = DEFAULT_MODEL
    hardware: str = "h800"
    workers: int = 1
    flags: tuple[str, ...] = ()
    router_policy: str = "round_robin"
    seed: int = 0
    journal: str | None = None
    dev_mode: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError for values that no cluster can have."""
        if isinstance(self.flags, str):
            raise ConfigError(f"flags: {self.flags!r} is one string; allowed: a list of them")
        if self.workers < 1:
            raise ConfigError(f"workers: {self.workers} is not at least 1")
        if self.router_policy not in POLICIES:
            allowed = ", ".join(POLICIES)
            raise ConfigError(f"router_policy: {self.router_policy!r} is not one of {allowed}")


def resolve(spec: MockSpec) -> tuple[ResolvedCluster, SimulatorArgs]:
    """The cluster that `spec` describes, and the simulator's settings. Raises ConfigError."""
    if spec.scenario is not None:
        scenario = load_scenario(spec.scenario, {}, need_trace=False)
        return resolve_scenario(scenario, base_port=0, host=_HOST), SimulatorArgs()
    given = parse_serve((spec.model, *spec.flags), {})
    simulator = replace(given.simulator, hardware=spec.hardware, seed=spec.seed)
    one = resolve_single(given.vllm, spec.hardware, simulator.engine, spec.seed)
    (worker,) = one.workers
    workers = tuple(
        ResolvedWorker(replace(worker.spec, name=f"w{i}", port=0), worker.args, worker.memory)
        for i in range(spec.workers)
    )
    return cluster_of(workers, ClusterSpec((), spec.router_policy, spec.seed)), simulator


class MockCluster:
    """A running cluster; see `open_cluster`. `url` is its entrance, `urls` are its workers."""

    def __init__(self, server: ClusterServer, front: Http1Server, url: str, model: str) -> None:
        """`front` serves `url`, which is a worker's own where there is only one."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        self.loop = loop
        self.server = server
        self.url = url
        self.urls = server.urls
        self.model = model
        self._front = front
        self._servers: dict[Origin, Http1Server] = {
            _origin(worker): web for worker, web in zip(server.urls, server.webs, strict=True)
        }
        self._servers[_origin(url)] = front
        self._closers: list[Any] = []

    # What happened

    @property
    def now_ns(self) -> SimTime:
        """Virtual time since the loop began."""
        return self.loop.now_ns()

    @property
    def now_s(self) -> float:
        """Virtual seconds since the loop began."""
        return to_seconds(self.loop.now_ns())

    @property
    def events(self) -> Sequence[Event]:
        """Everything the engine has said (`frontier_mock.core.events`)."""
        return self.server.cluster.log.events

    def digest(self) -> str:
        """Digest of the event log: equal exactly if everything happened at the same times."""
        return self.server.cluster.log.digest()

    # Clients

    def openai(self, transport: str = "direct", **options: Any) -> "AsyncOpenAI":
        """An `AsyncOpenAI` for this cluster; `options` are its own."""
        import openai

        sdk = openai.DefaultAsyncHttpxClient
        options.setdefault("http_client", self._httpx_client(sdk, transport))
        options.setdefault("base_url", self.url + "/v1")
        options.setdefault("api_key", "mock")
        return openai.AsyncOpenAI(**options)

    def openai_sync(self, **options: Any) -> "OpenAI":
        """A blocking `OpenAI`, for code that runs in threads (`asyncio.to_thread`)."""
        import openai

        sdk: Any = openai.DefaultHttpxClient
        transport = DirectTransport(_httpx_of(sdk), self._apps(), self.loop)
        options.setdefault("http_client", sdk(transport=transport))
        options.setdefault("base_url", self.url + "/v1")
        options.setdefault("api_key", "mock")
        return openai.OpenAI(**options)

    def httpx(self, library: ModuleType, transport: str = "direct", **options: Any) -> Any:
        """An `AsyncClient` of `library`, httpx or httpx2, whose base URL is this cluster."""
        options.setdefault("base_url", self.url)
        return self._httpx_client(library.AsyncClient, transport, **options)

    def aiohttp(self, transport: str = "memory", **options: Any) -> "aiohttp.ClientSession":
        """A `ClientSession` whose base URL is this cluster; "memory" or "tcp"."""
        import aiohttp

        _check_transport(transport, ("memory", "tcp"))
        if transport == "memory":
            options.setdefault("connector", aiohttp_connector(self._servers, limit=0))
        else:
            options.setdefault("connector", aiohttp.TCPConnector(limit=0))
        session = with_actor(aiohttp.ClientSession(self.url, **options))
        self._closers.append(session.close)
        return session

    def environment(self) -> dict[str, str]:
        """Variables that lead SDKs which nobody configures to this cluster, over TCP."""
        return {"OPENAI_BASE_URL": self.url + "/v1", "OPENAI_API_KEY": "mock"}

    async def close(self) -> None:
        """Close the clients made here; `open_cluster` does."""
        while self._closers:
            await self._closers.pop()()

    def _apps(self) -> dict[Origin, Any]:
        return {origin: web.app for origin, web in self._servers.items()}

    def _httpx_client(self, kind: Any, transport: str, **options: Any) -> Any:
        """A client whose requests carry the path of the task that makes them."""
        _check_transport(transport, TRANSPORTS)
        library = _httpx_of(kind)
        if transport == "direct":
            client = kind(transport=AsyncDirectTransport(library, self._apps()), **options)
        else:
            limits = library.Limits(
                max_connections=None, max_keepalive_connections=None, keepalive_expiry=None
            )
            over = library.AsyncHTTPTransport(limits=limits, trust_env=False)
            if transport == "memory":
                core = importlib.import_module(library.__name__.replace("httpx", "httpcore"))
                over._pool = core.AsyncConnectionPool(
                    max_connections=None,
                    max_keepalive_connections=None,
                    keepalive_expiry=None,
                    network_backend=httpcore_backend(core, self._servers),
                )
            client = with_actor(kind(transport=over, **options))
        self._closers.append(client.aclose)
        return client


@asynccontextmanager
async def open_cluster(spec: MockSpec | None = None) -> AsyncIterator[MockCluster]:
    """Run a cluster on the current loop, which must be a VirtualTimeLoop.

    Raises ConfigError for a spec that cannot be simulated, RuntimeError on another loop.
    """
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualTimeLoop):
        raise RuntimeError(
            "a mock cluster in process needs a VirtualTimeLoop: use the mock_cluster fixture with "
            "pytest-asyncio 1.5 or later, or frontier_mock.testing.run_virtual"
        )
    spec = spec or MockSpec()
    resolved, simulator = resolve(spec)
    resolved = with_compat(resolved, simulator)
    new_id = counting_ids()
    models = sized(served_models(resolved, eos_model(simulator), {}), simulator.image_size)
    args = resolved.workers[0].args
    environment = {"VLLM_SERVER_DEV_MODE": "1"} if spec.dev_mode else {}
    server = ClusterServer(
        ServeSpec(
            cluster=resolved.spec,
            costs=resolved.costs,
            served=[replace(served, new_id=new_id) for served in models],
            clock=ClockSpec(),
            http=http_settings(args, resolved.spec.workers[0].step.engine.version, environment),
            host=_HOST,
            journal_path=spec.journal,
            journal_head=journal_head(resolved),
        )
    )
    await server.start()
    front, url, listening = server.webs[0], server.urls[0], None
    if len(server.webs) > 1:
        # An encoder server has no routes that generate.
        fronts = [one for one in models if not (one.sglang and one.sglang.encoder.encodes_only)]
        app = server.app(AUTO_WORKER, fronts[0] if fronts else models[0])
        front = Http1Server(app, 0.0)
        listening = await loop.create_server(front, _HOST, 0)
        url = f"http://{_HOST}:{listening.sockets[0].getsockname()[1]}"
    cluster = MockCluster(server, front, url, models[0].names[0])
    try:
        yield cluster
    finally:
        await cluster.close()
        if listening is not None:
            listening.close()
            await front.shutdown(0.0)
        await server.stop()


def run_virtual(main: Coroutine[Any, Any, ResultT], *, limit_s: float | None = None) -> ResultT:
    """As `asyncio.run`, in virtual time that may go as far as `limit_s`."""
    with (
        _rare_collections(),
        asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(limit_s=limit_s)) as runner,
    ):
        return runner.run(main)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Look for cycles less often than Python does by default: the event log makes none, and grows.

    Saves about 5% of the time of a long run.
    """
    usual = gc.get_threshold()
    gc.set_threshold(_GC_ALLOCATIONS, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def _httpx_of(kind: type) -> ModuleType:
    """The library, httpx or httpx2, from which a client class is derived."""
    for ancestor in kind.__mro__:
        name = ancestor.__module__.partition(".")[0]
        if name in ("httpx", "httpx2"):
            return sys.modules[name]
    raise TypeError(f"{kind.__name__} is not a client class of httpx or httpx2")


def _check_transport(transport: str, allowed: tuple[str, ...]) -> None:
    if transport not in allowed:
        raise ValueError(f"transport: {transport!r} is not one of {', '.join(allowed)}")


def _origin(url: str) -> Origin:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 80
