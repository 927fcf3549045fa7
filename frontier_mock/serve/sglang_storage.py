"""`/hicache/storage-backend`: clear, show, attach and detach what is behind the host tier.

Only what the server was started with can be attached again.
"""

from collections.abc import Sequence

from frontier_mock.core.commands import Storage
from frontier_mock.drive.driver import Driver
from frontier_mock.serve.answers import Answer, json_answer
from frontier_mock.serve.http1 import Request
from frontier_mock.serve.operating import Operating
from frontier_mock.serve.routing import Table
from frontier_mock.serve.sglang_metrics import SglangWorkerMetrics
from frontier_mock.serve.sglang_state import ServerState
from frontier_mock.wire.sglang import storage
from frontier_mock.wire.sglang.served import SglangFront
from frontier_mock.wire.tokenizer import Json

_PATH = "/hicache/storage-backend"


class StorageRoutes:
    """See the top of this module; one per port."""

    def __init__(
        self,
        front: SglangFront,
        driver: Driver,
        operating: Operating,
        state: ServerState,
        ranks: Sequence[SglangWorkerMetrics],
        worker: int,
    ) -> None:
        self._front = front
        self._driver = driver
        self._operating = operating
        self._state = state
        self._ranks = ranks
        self._worker = worker
        self._shown: dict[str, Json] = {name: front.server_args.get(name) for name in storage.SHOWN}

    def table(self) -> Table:
        """Handlers by (method, path)."""
        handler = self._operating.handler
        return {
            ("POST", f"{_PATH}/clear"): handler(self._clear),
            ("GET", _PATH): handler(self._show),
            ("PUT", _PATH): handler(self._attach),
            ("DELETE", _PATH): handler(self._detach),
        }

    async def _clear(self, request: Request, actor: str | None) -> Answer:
        await self._driver.operate(Storage(self._worker, "clear"), 0, actor)
        return Answer(200 if self._front.host_tier else 400, storage.CLEARED.encode(), "")

    async def _show(self, request: Request, actor: str | None) -> Answer:
        await self._operating.lasts(actor)
        return json_answer(self._shown) if self._front.admin_api_key else _no_admin_key()

    async def _attach(self, request: Request, actor: str | None) -> Answer:
        asked = storage.read_attachment(request.body)
        if not self._front.admin_api_key:
            await self._operating.lasts(actor)
            return _no_admin_key()
        refused, message = self._refusal(asked)
        if refused:
            await self._operating.lasts(actor)
            return self._told(False, "attach", refused)
        command = Storage(self._worker, "attach", asked.prefetch_policy)
        await self._driver.operate(command, 0, actor)
        self._state.storage_class = self._front.storage_class
        values = (
            asked.backend,
            asked.extra_config,
            asked.prefetch_policy,
            asked.write_policy,
        )
        self._shown |= {
            name: value for name, value in zip(storage.SHOWN, values, strict=True) if value
        }
        return self._told(True, "attach", message)

    def _refusal(self, asked: storage.Attachment) -> tuple[str, str]:
        """Why not, and what is said if so."""
        front, current = self._front, self._state.storage_class
        own = front.storage_backend
        refused = self._not_now("attach") or storage.invalid(asked)
        if refused:
            return refused, ""
        if current:
            other = "" if asked.backend == own else storage.other_backend(own, asked.backend)
            return other or self._unlike(asked), storage.UPDATED
        if asked.backend != own:
            return storage.not_simulated(asked.backend), ""
        return self._unlike(asked), storage.ATTACHED

    def _unlike(self, asked: storage.Attachment) -> str:
        """What of it would change what was said at the start, and is not simulated."""
        for name, value in (
            ("hicache_storage_backend_extra_config", asked.extra_config),
            ("hicache_write_policy", asked.write_policy),
        ):
            if value and value != self._front.server_args.get(name):
                return f"{name}: not simulated unless as at the start"
        return ""

    async def _detach(self, request: Request, actor: str | None) -> Answer:
        if not self._front.admin_api_key:
            await self._operating.lasts(actor)
            return _no_admin_key()
        refused = self._not_now("detach")
        if refused:
            await self._operating.lasts(actor)
            return self._told(False, "detach", refused)
        await self._driver.operate(Storage(self._worker, "detach"), 0, actor)
        self._state.storage_class = ""
        self._shown |= dict.fromkeys(storage.SHOWN[:2])
        return self._told(True, "detach", storage.DETACHED)

    def _not_now(self, verb: str) -> str:
        if not self._front.host_tier:
            return storage.NO_HOST_TIER
        driver = self._driver
        driver.catch_up()
        gauges = [rank.load(driver).gauges for rank in self._ranks]
        waiting = sum(one.waiting for one in gauges)
        running = sum(one.running for one in gauges)
        return storage.busy(verb, waiting, running) if waiting or running else ""

    def _told(self, done: bool, verb: str, message: str) -> Answer:
        """Each rank says the same."""
        said = " | ".join([message] * self._front.num_dp_ranks)
        return Answer(200 if done else 400, storage.outcome(done, verb, said).encode(), "")


def _no_admin_key() -> Answer:
    return json_answer({"error": storage.NO_ADMIN_KEY}, 400)
