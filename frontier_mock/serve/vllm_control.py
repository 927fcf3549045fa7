"""vLLM's control plane for reinforcement learning: pause, sleep, weights, caches, aborts.

All but the aborts of the scale-out API need VLLM_SERVER_DEV_MODE=1, as in vLLM 0.33
(`entrypoints/rl`, `entrypoints/serve/dev`).

Theory of operation. Each request becomes a coroutine that asks the Driver for operations, one after
the other, and so takes its turn, and the virtual time that moving weights takes, among all other
requests.

Rule 1. A pause is over when the engine is at rest, and 20 ms later. In the modes "abort" and "wait"
        new requests are refused until /resume, in mode "keep" they wait in the queue.
Rule 2. Sleep pauses as /pause does, but refuses nobody. Level 1 moves the weights to host memory;
        both levels free the KV cache. Whoever is then awake in part does not go on.
Rule 3. An update takes as long as its tensors need on the link they come over. The version changes
        when /finish_weight_update says so; sequences that live through that report spans.
"""

import asyncio
from collections.abc import Mapping

from frontier_mock.core.commands import Abort, Flush, Pause, Resume
from frontier_mock.drive.driver import Driver
from frontier_mock.drive.protocol import ShutdownError, Ticket
from frontier_mock.serve.answers import Answer, json_answer
from frontier_mock.serve.http1 import Request
from frontier_mock.serve.operating import Operating, Verb
from frontier_mock.serve.operation_metrics import OperationMetrics
from frontier_mock.serve.routing import Table
from frontier_mock.serve.settings import HttpSettings
from frontier_mock.serve.streaming import Stream, Whole, error_answer
from frontier_mock.serve.weight_versions import WeightVersions
from frontier_mock.serve.worker_metrics import ServerMetrics
from frontier_mock.simtime import SimTime
from frontier_mock.wire import control
from frontier_mock.wire.deployment import Deployment
from frontier_mock.wire.errors import ApiError, engine_dead, internal_error
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.tokenizer import Json

_SETTLE_NS = 20_000_000
"""vLLM waits so long at the end of a pause for outputs to be delivered."""
_ENGINE_MODES = {"abort": "abort", "wait": "finish", "keep": "keep"}
_EMPTY = Answer(200, b"", "")


class ControlRoutes:
    """The routes that change a running server; one per port."""

    def __init__(
        self,
        served: ServedModel,
        driver: Driver,
        settings: HttpSettings,
        versions: WeightVersions,
        engines: ServerMetrics,
        created_s: float,
    ) -> None:
        """`created_s` is when its metrics begin, in unix time; `engines` show who sleeps."""
        self.metrics = OperationMetrics(created_s)
        self._engines = engines
        self._served = served
        self._gpus: Deployment = served.deployment
        self._worker = max(served.worker, 0)
        self._driver = driver
        self._settings = settings
        self._versions = versions
        self._operating = Operating(driver, ApiError, _answer_to)
        self._paused = False
        self._asleep: set[str] = set()
        self._level = 0
        self._updating = False
        self._tensor_bytes = -1

    def table(self) -> Table:
        """Handlers by (method, path)."""
        verbs: dict[tuple[str, str], Verb] = {}
        if self._settings.scale_out:
            verbs["POST", "/inference/v1/abort_requests"] = self._abort_listed
            if self._settings.tokens_only:
                verbs["POST", "/abort_requests"] = self._abort_listed
        if self._settings.dev_mode:
            verbs |= self._dev_verbs()
        return {route: self._operating.handler(verb) for route, verb in verbs.items()}

    def _dev_verbs(self) -> Mapping[tuple[str, str], Verb]:
        post: dict[str, Verb] = {
            "/pause": self._pause,
            "/resume": self._resume,
            "/abort_requests": self._abort_any,
            "/init_weight_transfer_engine": self._init_transfer,
            "/shutdown_weight_transfer_engine": self._shutdown_transfer,
            "/start_weight_update": self._start_update,
            "/start_draft_weight_update": self._start_draft_update,
            "/update_weights": self._update,
            "/finish_weight_update": self._finish_update,
            "/update_weight_version": self._set_version,
            "/weight_checker": self._check_weights,
            "/sleep": self._sleep,
            "/wake_up": self._wake,
            "/release_kv_cache_memory": self._release_cache,
            "/reset_prefix_cache": self._reset_prefix_cache,
            "/reset_mm_cache": self._nothing_cached,
            "/reset_encoder_cache": self._nothing_cached,
            "/collective_rpc": self._collective_rpc,
        }
        get: dict[str, Verb] = {
            "/is_paused": self._is_paused,
            "/is_sleeping": self._is_sleeping,
            "/weight_info": self._weight_info,
            "/get_world_size": self._world_size,
        }
        return {("POST", path): verb for path, verb in post.items()} | {
            ("GET", path): verb for path, verb in get.items()
        }

    async def ask(self, method: str, target: str, body: bytes, actor: str | None) -> Answer:
        """What a route answers to someone on another wire, in dev mode or not.

        Raises ApiError for what it refuses, and ShutdownError.
        """
        request = Request(method, target, 1, {})
        request.body = body
        return await self._dev_verbs()[method, request.path](request, actor)

    def _moving_ns(self, num_bytes: float, bytes_per_s: float) -> SimTime:
        return round(num_bytes / bytes_per_s * 1e9)

    # Pauses

    async def _pause(self, request: Request, actor: str | None) -> Answer:
        mode = control.pause_mode(request.query("mode"))
        control.flag(request.query("clear_cache"), "clear_cache")
        await self._come_to_rest(mode, actor, refuse=mode != "keep")
        return json_answer({"status": "paused"})

    async def _come_to_rest(self, mode: str, actor: str | None, *, refuse: bool) -> None:
        """Rule 1. The prefix cache is forgotten, unless somebody still holds blocks of it."""
        self._paused = True
        pause = Pause(self._worker, _ENGINE_MODES[mode], refuse)
        await self._driver.operate(pause, _SETTLE_NS, actor)
        if mode != "keep":
            await self._driver.operate(Flush(self._worker), 0, actor)

    async def _resume(self, request: Request, actor: str | None) -> Answer:
        self._paused = False
        await self._driver.operate(Resume(self._worker), 0, actor)
        return json_answer({"status": "resumed"})

    async def _is_paused(self, request: Request, actor: str | None) -> Answer:
        await self._operating.lasts(actor)
        return json_answer({"is_paused": self._paused})

    # Sleep

    async def _sleep(self, request: Request, actor: str | None) -> Answer:
        level = control.sleep_level(request.query("level"))
        mode = control.pause_mode(request.query("mode"))
        with self.metrics.sleep.during("sleep", self._driver.now_ns):
            await self._come_to_rest(mode, actor, refuse=False)
            if level >= 1 and "weights" not in self._asleep:
                gpus = self._gpus
                size = gpus.weight_bytes if level == 1 else 0
                await self._operating.lasts(actor, self._moving_ns(size, gpus.host_bytes_per_s))
                self._asleep = {"weights", "kv_cache"}
                self._level = level
            self._engines.sleep(level)
        return json_answer({"status": "sleeping", "level": level})

    async def _wake(self, request: Request, actor: str | None) -> Answer:
        tags = request.queries("tags")
        wanted = [tag for tag in tags if tag != "scheduling"]
        with self.metrics.sleep.during("wake", self._driver.now_ns):
            if not tags or wanted:
                await self._back(set(wanted) or {"weights", "kv_cache"}, actor)
            if not self._asleep:
                self._engines.sleep(None)
                self._paused = False
                await self._driver.operate(Resume(self._worker), 0, actor)
        status = "sleeping" if self._asleep else "awake"
        return json_answer({"status": status, "tags": [*tags] or None})

    async def _back(self, wanted: set[str], actor: str | None) -> None:
        """Bring back what sleeps of `wanted`; a tag that does not sleep makes vLLM do nothing."""
        known = wanted <= self._asleep or wanted == {"weights", "kv_cache"}
        moved = self._gpus.weight_bytes if self._level == 1 and "weights" in self._asleep else 0
        if not known or "weights" not in wanted:
            moved = 0
        await self._operating.lasts(actor, self._moving_ns(moved, self._gpus.host_bytes_per_s))
        if known:
            self._asleep -= wanted

    async def _is_sleeping(self, request: Request, actor: str | None) -> Answer:
        await self._operating.lasts(actor)
        return json_answer({"is_sleeping": self._paused or bool(self._asleep)})

    async def _release_cache(self, request: Request, actor: str | None) -> Answer:
        name = "release_kv_cache_memory"
        with self.metrics.sleep.during(name, self._driver.now_ns):
            await self._operating.lasts(actor)
            self._driver.catch_up()
            if not self._paused or self._in_flight():
                return _failed(name, f"{name}() requires a completed pause first")
            if self._asleep:
                return _failed(name, f"{name}() requires all executor memory to be resident")
            await self._driver.operate(Flush(self._worker), 0, actor)
            self._asleep = {"kv_cache"}
            self._engines.sleep(0)
        return json_answer({"status": "kv_cache_released"})

    # Caches

    async def _reset_prefix_cache(self, request: Request, actor: str | None) -> Answer:
        query = request.query
        retract = control.flag(query("reset_running_requests"), "reset_running_requests")
        below = control.flag(query("reset_external"), "reset_external")
        done = await self._driver.operate(Flush(self._worker, retract, below), 0, actor)
        return json_answer({"success": done.result == 1})

    async def _nothing_cached(self, request: Request, actor: str | None) -> Answer:
        await self._operating.lasts(actor)
        return _EMPTY

    # Aborts

    async def _abort_listed(self, request: Request, actor: str | None) -> Answer:
        ids = control.request_ids(request.body)
        await self._abort(set(ids), actor)
        return _EMPTY

    async def _abort_any(self, request: Request, actor: str | None) -> Answer:
        ids = control.optional_request_ids(request.body)
        aborted = await self._abort(set(ids) if ids else None, actor)
        count = len(ids) if ids else aborted
        return json_answer({"status": "aborted", "aborted": count})

    async def _abort(self, ids: set[str] | None, actor: str | None) -> int:
        """Abort the requests of these ids, None for all; returns how many sequences that were.

        They end with what they have said so far and the finish reason "abort".
        """
        await self._operating.lasts(actor)
        driver = self._driver
        driver.catch_up()
        ranks = driver.engine.ranks(self._worker)
        rids = []
        for ticket in list(driver.in_flight):
            for flight in ticket.flights:
                wanted = ids is None or not ids.isdisjoint(_ids(ticket, flight.position))
                if wanted and flight.worker in ranks and flight.finish_ns < 0:
                    rids.append(flight.rid)
        waits = [driver.operate(Abort(rid)) for rid in rids[1:]]
        if rids:
            await driver.operate(Abort(rids[0]), 0, actor)
        await asyncio.gather(*waits)
        return len(rids)

    def _in_flight(self) -> bool:
        ranks = self._driver.engine.ranks(self._worker)
        flights = self._driver.delivery.flights.values()
        return any(flight.worker in ranks for flight in flights)

    # Weights

    async def _init_transfer(self, request: Request, actor: str | None) -> Answer:
        control.init_info(request.body)
        return await self._transfer("init", "Weight transfer initialized", actor)

    async def _shutdown_transfer(self, request: Request, actor: str | None) -> Answer:
        if self._updating:
            await self._operating.lasts(actor)
            return self._worker_failed(control.TRAINER_BUSY)
        with self.metrics.weights.during("shutdown", self._driver.now_ns):
            await self._operating.lasts(actor)
        return json_answer({"message": "Weight transfer shut down"})

    async def _start_update(self, request: Request, actor: str | None) -> Answer:
        return await self._begin("start", "Weight update started", actor)

    async def _start_draft_update(self, request: Request, actor: str | None) -> Answer:
        return await self._begin("start_draft", "Draft weight update started", actor)

    async def _begin(self, operation: str, message: str, actor: str | None) -> Answer:
        if self._gpus.weight_transfer and self._updating:
            await self._operating.lasts(actor)
            return self._worker_failed(control.ALREADY_UPDATING)
        answer = await self._transfer(operation, message, actor)
        self._updating = answer.status == 200
        return answer

    async def _transfer(
        self, operation: str, message: str, actor: str | None, delay_ns: SimTime = 0
    ) -> Answer:
        with self.metrics.weights.during(operation, self._driver.now_ns):
            await self._operating.lasts(actor, delay_ns)
        if not self._gpus.weight_transfer:
            return self._worker_failed(control.NO_WEIGHT_TRANSFER)
        return json_answer({"message": message})

    async def _update(self, request: Request, actor: str | None) -> Answer:
        info = control.update_info(request.body)
        if self._gpus.weight_transfer and not self._updating:
            await self._operating.lasts(actor)
            return self._worker_failed(control.NOT_UPDATING)
        delay_ns = self._update_ns(info) if self._gpus.weight_transfer else 0
        return await self._transfer("update", "Weights updated", actor, delay_ns)

    def _update_ns(self, info: Json) -> SimTime:
        """Rule 3. A broadcast brings every GPU the whole of each tensor; CUDA IPC copies a shard.

        Tensors of unknown size count as all of the model's, and an update that names none repeats
        the one before.
        """
        gpus = self._gpus
        size = control.tensor_bytes(info)
        if size < 0:
            size = self._tensor_bytes
        else:
            self._tensor_bytes = size
        if size < 0:
            size = gpus.weight_bytes * gpus.world_size
        if gpus.weight_transfer == "ipc":
            return self._moving_ns(size / gpus.world_size, gpus.peer_bytes_per_s)
        return self._moving_ns(size, gpus.network_bytes_per_s)

    async def _finish_update(self, request: Request, actor: str | None) -> Answer:
        version = control.optional_version(request.body)
        if self._gpus.weight_transfer and not self._updating:
            await self._operating.lasts(actor)
            return self._worker_failed(control.NOT_STARTED)
        answer = await self._transfer("finish", "Weight update finished", actor)
        if answer.status == 200:
            self._updating = False
            if version is not None:
                self._versions.change(version)
        return answer

    async def _set_version(self, request: Request, actor: str | None) -> Answer:
        version = control.required_version(request.body)
        await self._operating.lasts(actor)
        self._driver.catch_up()
        self._versions.change(version)
        return json_answer({"success": True, "new_version": version})

    async def _weight_info(self, request: Request, actor: str | None) -> Answer:
        await self._operating.lasts(actor)
        return json_answer({"weight_version": self._versions.current})

    async def _check_weights(self, request: Request, actor: str | None) -> Answer:
        action, baseline = control.weight_check(request.body)
        gpus = self._gpus
        await self._operating.lasts(
            actor, self._moving_ns(gpus.weight_bytes, gpus.memory_bytes_per_s)
        )
        if action == "reset":
            return json_answer({"status": "reset"})
        sums = control.checksums(self._versions.current, gpus.world_size * gpus.dp)
        if baseline is None:
            return json_answer({"checksums": sums})
        names = sorted(sums.keys() | baseline.keys())
        mismatches = [name for name in names if sums.get(name) != baseline.get(name)]
        return json_answer({"match": not mismatches, "mismatches": mismatches})

    # The rest

    async def _collective_rpc(self, request: Request, actor: str | None) -> Answer:
        """Methods of worker extensions are unknown here: each GPU answers with null."""
        method = control.rpc_method(request.body)
        gpus = self._gpus
        moved = gpus.weight_bytes if method == "reload_weights" else 0
        await self._operating.lasts(actor, self._moving_ns(moved, gpus.host_bytes_per_s))
        return json_answer({"results": [None] * (gpus.world_size * gpus.dp)})

    async def _world_size(self, request: Request, actor: str | None) -> Answer:
        include_dp = control.flag(request.query("include_dp"), "include_dp", True)
        await self._operating.lasts(actor)
        size = self._gpus.world_size
        return json_answer({"world_size": size * self._gpus.dp if include_dp else size})

    def _worker_failed(self, message: str) -> Answer:
        """A GPU's process raises RuntimeError."""
        if self._gpus.world_size > 1:
            message = (
                f"Worker failed with error '{message}', please check the stack trace above for the "
                "root cause"
            )
        return _failed("collective_rpc", message)


def _failed(name: str, message: str) -> Answer:
    """The engine could not do what it was asked."""
    text = f"Call to {name} method failed: {message}"
    return error_answer(ApiError(500, text, "InternalServerError"))


def _ids(ticket: Ticket, position: int) -> tuple[str, ...]:
    """What a client may call a sequence of a request: the whole, or the prompt it belongs to."""
    subscriber = ticket.subscriber
    if not isinstance(subscriber, Whole | Stream):
        return ()
    generation = subscriber.generation
    prompt = generation.sequences[position].prompt_index
    return generation.id, f"{generation.id}-{prompt}"


def _answer_to(error: Exception) -> Answer:
    if isinstance(error, ApiError):
        return error_answer(error)
    return error_answer(engine_dead() if isinstance(error, ShutdownError) else internal_error())
