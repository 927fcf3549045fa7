"""The follower's end of a shared clock: joins the host, carries its orders to the Driver."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from frontier_mock.config.errors import ConfigError, shown
from frontier_mock.core.words import word_of
from frontier_mock.drive.driver import Action, Driver, Item
from frontier_mock.drive.following import FollowingKeeper, Message
from frontier_mock.drive.operations import Heard
from frontier_mock.drive.protocol import ShutdownError
from frontier_mock.serve.answers import Answer, json_answer
from frontier_mock.serve.connection import Exchange
from frontier_mock.serve.lines import JOIN_PATH, PROTOCOL, Dialled
from frontier_mock.serve.vllm_app import Handler

_JOIN_LIMIT_S = 30.0
_GOODBYE_LIMIT_S = 5.0


class HostLostError(ShutdownError):
    """The process that keeps the clock is gone, or has stopped it; the message says which."""


def _item(value: object) -> Item:
    """What a word from another process is to the Driver. Raises ValueError if it is none."""
    return Heard(word_of(value)), True


class Follower(Dialled):
    """The connection to the host at `url`, and the keeper that a Driver is built with."""

    def __init__(self, url: str, name: str, workers: Sequence[str]) -> None:
        """Raises ConfigError if `url` is none."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme != "http" or parts.hostname is None or port is None:
            raise ConfigError(f"clock-server: {shown(url)} is not http://HOST:PORT")
        self._me: dict[str, object] = {"name": name, "workers": list(workers)}
        super().__init__((parts.hostname, port), JOIN_PATH, PROTOCOL, self._me)
        self.url = url
        self.keeper: FollowingKeeper[Action, Item] = FollowingKeeper(self.send, self.flush, _item)
        self.report: Callable[[], Mapping[str, object]] = dict
        self._driver: Driver | None = None
        self._leaving: asyncio.Future[None] | None = None

    async def join(self, driver: Driver, addresses: Sequence[str] = ()) -> None:
        """Connect and take part; words for any of `addresses` are for this process.

        Raises ConfigError if the host does not answer or refuses.
        """
        self._driver = driver
        self._me["addresses"] = list(addresses)
        try:
            async with asyncio.timeout(_JOIN_LIMIT_S):
                await self.dial()
        except OSError as error:
            # A timeout is an OSError as well, without a text of its own.
            why = error.strerror or str(error) or "no answer"
            raise ConfigError(f"clock-server: cannot join the clock at {self.url}: {why}") from None

    async def leave(self) -> None:
        """Say goodbye, so that the host does not take this for a crash."""
        if self._transport is None:
            return
        self._leaving = asyncio.get_running_loop().create_future()
        self.send(["bye"])
        self.close()
        await asyncio.wait((self._leaving,), timeout=_GOODBYE_LIMIT_S)

    # What the connection says

    def heard(self, message: Message) -> None:
        """An order, or a question. Raises ValueError for anything else."""
        assert self._driver is not None
        match message:
            case ["fail", str(why)]:
                self._driver.fail(HostLostError(f"the clock at {self.url} stopped: {why}"))
            case ["now", int(now_ns), bool(at_once)]:
                self.keeper.now_ns = now_ns
                self.keeper.at_once = at_once
            case ["report", int(number)]:
                self.send(["report", number, dict(self.report())])
            case _:
                self.keeper.order(message)

    def heard_all(self) -> None:
        """Carry out the orders at once, as the host does nothing before it has heard back."""
        if self._driver is not None:
            self._driver.pump_now()
            self.flush()

    def lost(self, why: str) -> None:
        """The host is gone."""
        if self._leaving is not None:
            if not self._leaving.done():
                self._leaving.set_result(None)
        elif self._driver is not None:
            self._driver.fail(HostLostError(f"lost the clock at {self.url}: {why}"))


class FollowedClock:
    """Routes under /sim of a worker whose clock is elsewhere."""

    def __init__(self, follower: Follower, driver: Driver) -> None:
        self._follower = follower
        self._driver = driver

    def table(self) -> dict[tuple[str, str], Handler]:
        """Handlers by (method, path)."""
        verbs = ("register", "fork", "sleep", "barrier", "release", "advance")
        table: dict[tuple[str, str], Handler] = {
            ("POST", f"/sim/clock/{verb}"): self._elsewhere for verb in verbs
        }
        table["GET", "/sim/clock"] = self._clock
        table["GET", "/sim/report"] = self._report
        return table

    def close(self) -> None:
        """Nothing is held open here."""

    def _elsewhere(self, exchange: Exchange) -> Answer:
        said = f"this worker follows the clock at {self._follower.url}; its verbs are served there"
        return json_answer({"error": said, "clock_server": self._follower.url}, 421)

    def _clock(self, exchange: Exchange) -> Answer:
        driver = self._driver
        return json_answer(
            {
                "now_ns": driver.now_ns(),
                "mode": driver.clock.mode,
                "clock_server": self._follower.url,
                "in_flight": driver.num_in_flight,
                "next_ns": driver.next_due(),
                "error": None if driver.error is None else str(driver.error),
            }
        )

    def _report(self, exchange: Exchange) -> Answer:
        return json_answer(self._follower.report())
