"""SGLang's control plane: pauses, weights, memory, caches, adapters, sessions.

Theory of operation. Each request becomes a coroutine that asks the Driver for operations, one after
the other, and so takes its turn, and the virtual time that moving weights takes, among all other
requests. The rules of who waits for whom are the tokenizer manager's (SGLang 0.5.23; specs/
sglang_and_routers.md sections 1.5 and 3.1):

Rule 1. A pause of mode "abort" is over when nothing is in flight any more; new requests stay
        outside until /continue_generation. "retract" and "in_place" stop the scheduler.
Rule 2. An update of the weights takes the writer lock unless the server is paused: it waits for
        what is in flight, and new requests wait for it.
Rule 3. The weight version changes with the update; sequences that live through that report spans.
"""

import uuid
from collections.abc import Sequence

from frontier_mock.core.commands import Flush, Pause, Resume, Slow
from frontier_mock.drive.driver import Driver
from frontier_mock.drive.protocol import ShutdownError
from frontier_mock.serve.answers import Answer, json_answer
from frontier_mock.serve.connection import Exchange
from frontier_mock.serve.http1 import Request
from frontier_mock.serve.operating import Operating, Verb
from frontier_mock.serve.routing import Handler, Table
from frontier_mock.serve.sglang_metrics import SglangWorkerMetrics
from frontier_mock.serve.sglang_state import ServerState
from frontier_mock.serve.sglang_storage import StorageRoutes
from frontier_mock.serve.sglang_streaming import engine_gone
from frontier_mock.serve.weight_versions import WeightVersions
from frontier_mock.wire.compat import SLIME_ROUTES, WEIGHT_SESSIONS
from frontier_mock.wire.render import dumps
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang import control
from frontier_mock.wire.sglang.control import WeightUpdate, outcome, with_version
from frontier_mock.wire.sglang.errors import SglangError, bad_query, native_error
from frontier_mock.wire.sglang.plan import front_of
from frontier_mock.wire.tokenizer import Json

_MODES = {"abort": "abort", "retract": "retract", "in_place": "keep"}
_TEXT = "text/plain; charset=utf-8"
_FLUSH_POLL_NS = 100_000_000

_DISK_BYTES_PER_S = 2.5e9
"""From a node's NVMe, which eight GPUs share: 20 GB/s."""
_NETWORK_BYTES_PER_S = 4.0e10
"""An NCCL broadcast into one GPU over its own 400 Gbit/s NIC, at 80 %."""
_DEVICE_BYTES_PER_S = 1.2e12
"""A copy inside one GPU's memory, read and written."""
_HOST_BYTES_PER_S = 5.0e10
"""Pinned host memory to GPU (cost_model.md section 1.12: 50 GB/s on H100)."""
_UNMAP_NS = 50_000_000
"""Unmapping, or mapping, of a GPU's memory without moving what is in it."""


class ControlRoutes:
    """The routes that change a running server; one per port."""

    def __init__(
        self,
        served: ServedModel,
        driver: Driver,
        state: ServerState,
        ranks: Sequence[SglangWorkerMetrics],
    ) -> None:
        """`ranks` are the folds of the port's engines."""
        self._ranks = ranks
        self._worker = max(served.worker, 0)
        self._front = front_of(served)
        self._driver = driver
        self._state = state
        self._operating = Operating(driver, SglangError, _answer_to)
        self._groups: set[str] = set()
        self._released: set[str] = set()
        self._sessions: set[str] = set()
        self._updating = False
        self._versions = WeightVersions(driver, self._worker, state.weight_version)
        state.spans_of = self._versions.spans_of

    def table(self) -> Table:
        """Handlers by (method, path)."""
        both, post = ("GET", "POST"), ("POST",)
        verbs: list[tuple[tuple[str, ...], str, Verb]] = [
            (both, "/flush_cache", self._flush),
            (post, "/pause_generation", self._pause),
            (post, "/continue_generation", self._continue),
            (post, "/update_weights_from_disk", self._from_disk),
            (post, "/update_weights_from_distributed", self._from_distributed),
            (post, "/update_weights_from_tensor", self._from_tensor),
            (post, "/update_weights_from_ipc", self._from_ipc),
            (post, "/update_weight_version", self._set_version),
            (post, "/begin_weight_update", self._begin_update),
            (post, "/end_weight_update", self._end_update),
            (post, "/init_weights_update_group", self._init_group),
            (post, "/destroy_weights_update_group", self._destroy_group),
            (both, "/release_memory_occupation", self._release),
            (both, "/resume_memory_occupation", self._resume_memory),
            (both, "/slow_down", self._slow_down),
            (post, "/load_lora_adapter", self._load_adapter),
            (post, "/load_lora_adapter_from_tensors", self._load_adapter),
            (post, "/unload_lora_adapter", self._unload_adapter),
        ]
        table: dict[tuple[str, str], Handler] = {
            (method, path): self._operating.handler(verb)
            for methods, path, verb in verbs
            for method in methods
        }
        plain: list[tuple[tuple[str, ...], str, Handler]] = [
            (both, "/get_weights_by_name", self._weight),
            (both, "/weights_checker", self._check_weights),
            (both, "/open_session", self._open_session),
            (both, "/close_session", self._close_session),
            (both, "/start_profile", _says("Start profiling.\n")),
            (both, "/stop_profile", _says("Stop profiling. This will take some time.\n")),
            (both, "/freeze_gc", _says("Garbage collection frozen.\n")),
            (both, "/set_trace_level", _set_trace_level),
            (both, "/configure_logging", _says("")),
        ]
        table |= {(method, path): handler for methods, path, handler in plain for method in methods}
        table |= StorageRoutes(
            self._front, self._driver, self._operating, self._state, self._ranks, self._worker
        ).table()
        if SLIME_ROUTES in self._front.compat:
            table["POST", "/pull_weights"] = self._operating.handler(self._pull)
            table["POST", "/post_process_weights"] = self._operating.handler(self._post_process)
        for path, words in control.EXPERT_RECORD.items():
            table |= {(method, path): _says(words) for method in both}
        return table

    # What several verbs need

    async def _try_flush(self, actor: str | None) -> bool:
        """Forget the prefix cache; False if the server is not idle."""
        if not self._idle():
            await self._operating.lasts(actor)
            return False
        done = await self._driver.operate(Flush(self._worker), 0, actor)
        return done.result == 1

    def _idle(self) -> bool:
        """Nothing runs, and nothing waits unless the server is paused."""
        driver = self._driver
        driver.catch_up()
        loads = [rank.load(driver) for rank in self._ranks]
        waiting = not self._state.paused and any(load.gauges.waiting for load in loads)
        return not waiting and not any(load.gauges.running for load in loads)

    # Caches and pauses

    async def _flush(self, request: Request, actor: str | None) -> Answer:
        timeout_s = control.read_timeout(request.query("timeout"))
        deadline_ns = self._driver.now_ns() + round(timeout_s * 1e9)
        while not await self._try_flush(actor):
            if self._driver.now_ns() >= deadline_ns:
                return Answer(400, control.NOT_FLUSHED.encode(), "")
            await self._operating.lasts(actor, _FLUSH_POLL_NS)
        return Answer(200, control.FLUSHED.encode(), "")

    async def _pause(self, request: Request, actor: str | None) -> Answer:
        mode = control.read_pause(request.body)
        self._state.paused = True
        await self._driver.operate(Pause(self._worker, _MODES[mode]), 0, actor)
        return json_answer({"message": "Generation paused successfully.", "status": "ok"})

    async def _continue(self, request: Request, actor: str | None) -> Answer:
        control.read_continue(request.body)
        self._state.paused = False
        await self._driver.operate(Resume(self._worker), 0, actor)
        return json_answer({"message": "Generation continued successfully.", "status": "ok"})

    # Weights

    async def _from_disk(self, request: Request, actor: str | None) -> Answer:
        update = control.read_disk_update(request.body)
        success, message = await self._update(
            update, "Succeeded to update model weights.", _DISK_BYTES_PER_S, actor
        )
        state = self._state
        if update.model_path is not None:
            # SGLang gives the new path to the served name as well.
            state.model_path = state.served_model_name = update.model_path
            state.load_format = update.load_format or state.load_format
        return _told(success, outcome(success, message, num_paused_requests=0))

    async def _from_distributed(self, request: Request, actor: str | None) -> Answer:
        update = control.read_distributed_update(request.body)
        refusal = self._outside_session("update_weights_from_distributed")
        if refusal is None and update.group_name not in self._groups:
            name, known = update.group_name, sorted(self._groups)
            refusal = control.unknown_group(name, known)
        if refusal is not None:
            await self._operating.lasts(actor)
            return _told(False, outcome(False, refusal))
        return _told(
            *await self._told_update(
                update, "Succeeded to update parameter online.", _NETWORK_BYTES_PER_S, actor
            )
        )

    async def _from_tensor(self, request: Request, actor: str | None) -> Answer:
        update = control.read_tensor_update(request.body)
        refusal = self._outside_session("update_weights_from_tensor")
        if refusal is not None:
            await self._operating.lasts(actor)
            return _told(False, outcome(False, refusal))
        return _told(*await self._told_update(update, "Success", _DEVICE_BYTES_PER_S, actor))

    async def _from_ipc(self, request: Request, actor: str | None) -> Answer:
        update = control.read_ipc_update(request.body)
        message = "Succeeded to update model weights."
        return _told(*await self._told_update(update, message, _DEVICE_BYTES_PER_S, actor))

    async def _told_update(
        self, update: WeightUpdate, message: str, bytes_per_s: float, actor: str | None
    ) -> tuple[bool, dict[str, Json]]:
        success, message = await self._update(update, message, bytes_per_s, actor)
        return success, outcome(success, message)

    def _outside_session(self, route: str) -> str | None:
        """Why an update is refused that no /begin_weight_update came before.

        Trainers written for earlier versions know nothing of that; `weight-sessions` lets them in.
        """
        if self._updating or WEIGHT_SESSIONS in self._front.compat:
            return None
        return f"{route} must run between begin_weight_update() and end_weight_update()"

    async def _update(
        self, update: WeightUpdate, message: str, bytes_per_s: float, actor: str | None
    ) -> tuple[bool, str]:
        """Rule 2. Returns (success, message)."""
        driver, worker, state = self._driver, self._worker, self._state
        size = self._front.weight_gb * (1 << 30) if update.num_bytes < 0 else update.num_bytes
        duration_ns = round(size / bytes_per_s * 1e9)
        locked = not state.paused
        if locked:
            mode = "abort" if update.abort_all_requests else "finish"
            await driver.operate(Pause(worker, mode), duration_ns, actor)
        else:
            await self._operating.lasts(actor, duration_ns)
        if update.weight_version is not None:
            self._change_version(update.weight_version)
        success = not update.flush_cache or await self._try_flush(actor)
        if locked and not update.keep_pause:
            await driver.operate(Resume(worker), 0, actor)
        elif locked:
            state.paused = True
        if not success:
            return False, control.UPDATED_NOT_FLUSHED
        return True, with_version(message, update.weight_version)

    def _change_version(self, version: str) -> None:
        self._versions.change(version)
        self._state.weight_version = version

    async def _set_version(self, request: Request, actor: str | None) -> Answer:
        version, abort_all = control.read_version(request.body)
        worker = self._worker
        if abort_all and not self._state.paused:
            await self._driver.operate(Pause(worker, "abort"), 0, actor)
            await self._driver.operate(Resume(worker), 0, actor)
        else:
            await self._operating.lasts(actor)
        self._change_version(version)
        message = f"Weight version updated to {version}"
        return json_answer(outcome(True, message, new_version=version))

    async def _begin_update(self, request: Request, actor: str | None) -> Answer:
        control.read_selector(request.body)
        await self._operating.lasts(actor)
        if self._updating:
            return _told(False, outcome(False, control.SESSION_OPEN))
        self._updating = True
        return _told(True, outcome(True, "Success"))

    async def _end_update(self, request: Request, actor: str | None) -> Answer:
        control.read_selector(request.body)
        await self._operating.lasts(actor)
        if not self._updating:
            return _told(False, outcome(False, control.NO_SESSION))
        self._updating = False
        return _told(True, outcome(True, "Success"))

    async def _init_group(self, request: Request, actor: str | None) -> Answer:
        group = control.read_group(request.body)
        await self._operating.lasts(actor)
        self._groups.add(group.name)
        return _told(True, outcome(True, "Succeeded to initialize custom process group."))

    async def _destroy_group(self, request: Request, actor: str | None) -> Answer:
        name = control.read_group_name(request.body)
        await self._operating.lasts(actor)
        if name not in self._groups:
            return _told(False, outcome(False, "The group to be destroyed does not exist."))
        self._groups.remove(name)
        return _told(True, outcome(True, "Succeeded to destroy custom process group."))

    def _weight(self, exchange: Exchange) -> Answer:
        """Values nobody has: as many made-up figures as asked for, the same for the same name."""
        name, size = control.read_weight(exchange.request.body)
        version = self._state.weight_version
        return Answer(200, dumps(control.parameter(name, version, size)).encode())

    def _check_weights(self, exchange: Exchange) -> Answer:
        action = control.read_action(exchange.request.body)
        checksum = control.checksum(self._state.model_path, self._state.weight_version)
        more = {"per_engine_checksum": checksum} if action == "checksum" else {}
        return json_answer(outcome(True, "Success.", **more))

    async def _pull(self, request: Request, actor: str | None) -> Answer:
        """Slime's own way to fetch what the next update is made of; it moves no weights yet."""
        await self._operating.lasts(actor)
        return _told(True, outcome(True, "Success"))

    async def _post_process(self, request: Request, actor: str | None) -> Answer:
        """What slime does to weights after the last bucket, such as to requantise them."""
        await self._operating.lasts(actor)
        return _told(True, outcome(True, "Success"))

    # Memory

    async def _release(self, request: Request, actor: str | None) -> Answer:
        """Only an idle server may let go; a real one that is not does not survive the attempt."""
        tags = control.read_tags(request.body)
        if not self._idle():
            raise native_error(control.NOT_IDLE)
        if again := sorted(self._released.intersection(tags)):
            raise native_error(f"{', '.join(again)}: already released")
        await self._operating.lasts(actor, _UNMAP_NS * len(tags))
        self._released.update(tags)
        if "kv_cache" in tags:
            await self._driver.operate(Flush(self._worker), 0, actor)
        return Answer(200, b"null")

    async def _resume_memory(self, request: Request, actor: str | None) -> Answer:
        tags = control.read_tags(request.body)
        if missing := sorted(set(tags) - self._released):
            raise native_error(f"{', '.join(missing)}: not currently released")
        moved = self._front.weight_gb * (1 << 30) if "weights" in tags else 0.0
        await self._operating.lasts(
            actor, _UNMAP_NS * len(tags) + round(moved / _HOST_BYTES_PER_S * 1e9)
        )
        self._released.difference_update(tags)
        return Answer(200, b"null")

    async def _slow_down(self, request: Request, actor: str | None) -> Answer:
        extra_s = control.read_slow_down(request.body)
        await self._driver.operate(Slow(self._worker, round(extra_s * 1e9)), 0, actor)
        return Answer(200, b"null")

    # Adapters and sessions

    async def _load_adapter(self, request: Request, actor: str | None) -> Answer:
        from_tensors = request.path.endswith("_from_tensors")
        name, path = control.read_lora(request.body, loading=not from_tensors)
        await self._operating.lasts(actor)
        if not self._front.enable_lora:
            return _adapters(False, control.NO_LORA, None)
        self._state.adapters[name] = path
        return _adapters(True, None, dict(self._state.adapters))

    async def _unload_adapter(self, request: Request, actor: str | None) -> Answer:
        name, _ = control.read_lora(request.body, loading=False)
        await self._operating.lasts(actor)
        if not self._front.enable_lora:
            return _adapters(False, control.NO_LORA, None)
        if name not in self._state.adapters:
            return _adapters(False, f"LoRA with name {name} does not exist", None)
        del self._state.adapters[name]
        return _adapters(True, None, dict(self._state.adapters))

    def _open_session(self, exchange: Exchange) -> Answer:
        name, streaming = control.read_open_session(exchange.request.body)
        if streaming:
            raise native_error(control.NO_STREAMING_SESSIONS)
        if name in self._sessions:
            raise native_error(control.SESSION_TAKEN)
        name = name or uuid.uuid4().hex
        self._sessions.add(name)
        return Answer(200, dumps(name).encode())

    def _close_session(self, exchange: Exchange) -> Answer:
        self._sessions.discard(control.read_close_session(exchange.request.body))
        return Answer(200, b"", "")


def _says(text: str) -> Handler:
    """Nothing happens, and this is what is said about it."""
    return lambda exchange: Answer(200, text.encode(), "")


def _set_trace_level(exchange: Exchange) -> Answer:
    level = exchange.request.query("level")
    if level is None or not level.isdecimal():
        raise bad_query("level", level)
    return Answer(200, b"success", "")


def _told(success: bool, body: dict[str, Json]) -> Answer:
    return json_answer(body, 200 if success else 400)


def _adapters(success: bool, error: str | None, loaded: dict[str, str] | None) -> Answer:
    body: dict[str, object] = {
        "success": success,
        "error_message": error,
        "loaded_adapters": loaded,
    }
    return json_answer(body, 200 if success else 400)


def _answer_to(error: Exception) -> Answer:
    if isinstance(error, ShutdownError):
        error = engine_gone()
    if isinstance(error, SglangError):
        return Answer(error.status, error.body())
    return Answer(500, b"Internal Server Error", _TEXT)
