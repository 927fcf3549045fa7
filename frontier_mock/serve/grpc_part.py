"""What a gRPC servicer knows of the worker behind it, and the books it keeps of its calls."""

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from frontier_mock.cluster.specs import WorkerSpec
from frontier_mock.drive.driver import Driver
from frontier_mock.drive.protocol import Ticket
from frontier_mock.serve.sglang_app import SglangApp
from frontier_mock.serve.sglang_metrics import SglangWorkerMetrics
from frontier_mock.serve.tokenizer_bundle import build_archive
from frontier_mock.serve.vllm_app import VllmApp
from frontier_mock.serve.worker_metrics import WorkerMetrics
from frontier_mock.serving.specs import SglangSchedulerSpec
from frontier_mock.serving.worker import Worker
from frontier_mock.simtime import NS_PER_S, SimTime
from frontier_mock.wire.served import ServedModel

if TYPE_CHECKING:
    from frontier_mock.serve.kv_events import KvPublisher


class Load(NamedTuple):
    """One engine at this moment. Tokens are KV slots; throughput is in tokens per second."""

    rank: int
    running: int
    waiting: int
    used_tokens: int
    capacity_tokens: int
    usage: float
    hit_rate: float
    throughput: float
    max_running: int
    uncached_tokens: int
    retracted: int


class _Rate(NamedTuple):
    """Tokens a rank had produced at a time, and how fast it was before."""

    t_ns: SimTime
    tokens: int
    per_s: float


class Books:
    """Requests in flight by their ids, and what each engine has produced for them.

    Several requests may share an id, as vLLM lets them.
    """

    def __init__(self) -> None:
        self.active: dict[Ticket, str] = {}
        self.tokens: dict[int, int] = {}
        self.last_receive_s = time.time()
        self._rates: dict[int, _Rate] = {}

    def enter(self, ticket: Ticket, request_id: str) -> None:
        """A request is on its way."""
        self.active[ticket] = request_id
        self.last_receive_s = time.time()

    def leave(self, ticket: Ticket) -> None:
        """It is answered, or its caller is gone."""
        self.active.pop(ticket, None)

    def count(self, worker: int, tokens: int) -> None:
        """An engine has produced tokens."""
        self.tokens[worker] = self.tokens.get(worker, 0) + tokens

    def named(self, request_ids: Iterable[str]) -> Iterator[Ticket]:
        """Requests in flight that go by one of these ids."""
        wanted = frozenset(request_ids)
        return (ticket for ticket, name in self.active.items() if name in wanted)

    def throughput(self, worker: int, now: SimTime) -> float:
        """Tokens per second of virtual time since the last time anybody asked."""
        tokens = self.tokens.get(worker, 0)
        last = self._rates.get(worker, _Rate(0, 0, 0.0))
        if now <= last.t_ns:
            return last.per_s
        per_s = (tokens - last.tokens) * NS_PER_S / (now - last.t_ns)
        self._rates[worker] = _Rate(now, tokens, per_s)
        return per_s


class GrpcPart:
    """One worker: its engines, one per data-parallel rank, what it serves, and its books.

    `app` is its HTTP application, which has what both wires see of the worker; `metrics` are the
    folds of its engines, `publishers` those of its KV events by rank.
    `tokenizer_dir` is where its tokenizer is, None for our own.
    """

    def __init__(
        self,
        driver: Driver,
        spec: WorkerSpec,
        engines: Sequence[Worker],
        served: ServedModel,
        app: VllmApp | SglangApp,
        metrics: Sequence[WorkerMetrics | SglangWorkerMetrics],
        publishers: "Mapping[int, KvPublisher]",
        tokenizer_dir: str | None,
    ) -> None:
        self.driver = driver
        self.spec = spec
        self.engines = engines
        self._served = served
        self.app = app
        self.metrics = metrics
        self.publishers = publishers
        self.tokenizer_dir = tokenizer_dir
        self.books = Books()
        self.started_s = time.time()
        self._archive: asyncio.Task[bytes] | None = None

    @property
    def served(self) -> ServedModel:
        """What is served now: vLLM's adapters come and go."""
        return self.app.served if isinstance(self.app, VllmApp) else self._served

    @property
    def version(self) -> str:
        """The engine's version."""
        return self.spec.step.engine.version

    @property
    def max_batched_tokens(self) -> int:
        """Tokens of one step at most."""
        spec = self.spec.scheduler
        if isinstance(spec, SglangSchedulerSpec):
            return spec.chunked_prefill_size
        return spec.max_num_batched_tokens

    @property
    def alive(self) -> bool:
        """Whether the engine takes requests."""
        return self.driver.error is None and self.driver.accepting

    async def archive(self) -> bytes:
        """The tokenizer's archive, made once, in a thread.

        Raises FileNotFoundError if there is no tokenizer where it should be.
        """
        if self._archive is None:
            length = self.served.max_model_len
            made = asyncio.to_thread(build_archive, self.tokenizer_dir, length)
            self._archive = asyncio.ensure_future(made)
        return await asyncio.shield(self._archive)

    def abort(self, request_ids: Sequence[str]) -> bool:
        """Abort requests by their ids; whether there were any."""
        tickets = list(self.books.named(request_ids))
        for ticket in tickets:
            for position in range(len(ticket.submits)):
                self.driver.halt(ticket, position)
        return bool(tickets)

    def left(self, ticket: Ticket) -> None:
        """Nobody waits for a request any more; if it is not complete it is aborted."""
        self.books.leave(ticket)
        self.driver.abort(ticket)

    def loads(self) -> list[Load]:
        """Every engine at this moment."""
        self.driver.catch_up()
        now = self.driver.engine.now_ns
        return [self._load(rank, engine, now) for rank, engine in enumerate(self.engines)]

    def _load(self, rank: int, engine: Worker, now: SimTime) -> Load:
        gauges = engine.gauges(now)
        block = engine.spec.block_size
        index = engine.index
        used = (gauges.num_blocks - gauges.free_blocks) * block
        queries = gauges.query_tokens
        return Load(
            rank=rank,
            running=gauges.running,
            waiting=gauges.waiting,
            used_tokens=used,
            capacity_tokens=gauges.num_blocks * block,
            usage=gauges.kv_usage,
            hit_rate=gauges.hit_tokens / queries if queries else 0.0,
            throughput=self.books.throughput(index, now),
            max_running=max_running(engine),
            uncached_tokens=self._waiting_tokens(rank, index),
            retracted=gauges.preemptions,
        )

    def _waiting_tokens(self, rank: int, index: int) -> int:
        """Prompt tokens of requests that engine `index` has not begun.

        Those that are not in any engine yet count as the first one's.
        """
        total = 0
        for ticket in self.books.active:
            flights = ticket.flights
            for position, submit in enumerate(ticket.submits):
                if position >= len(flights):
                    waits = rank == 0 and not ticket.closed
                else:
                    waits = flights[position].queued and flights[position].worker == index
                total += submit.prompt.num_tokens * waits
        return total


def max_running(engine: Worker) -> int:
    """How many sequences an engine runs at once at most."""
    spec = engine.spec
    if isinstance(spec, SglangSchedulerSpec):
        return spec.max_running_requests
    return spec.max_num_seqs
