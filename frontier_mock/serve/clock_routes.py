"""The clock as a service: the verbs of the Timekeeper over HTTP (docs/internals.md).

Bodies and replies are JSON; times are integer nanoseconds of virtual time. The connection that
holds /sim/clock/register open owns the leases it created, so a client that dies frees time.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from frontier_mock.drive.drift import Drift
from frontier_mock.drive.leases import ActorError
from frontier_mock.drive.pace import ClockSpec
from frontier_mock.drive.timekeeper import Timekeeper
from frontier_mock.serve.answers import NDJSON, Answer, json_answer
from frontier_mock.serve.connection import Exchange
from frontier_mock.serve.vllm_app import Handler
from frontier_mock.simtime import SimTime, from_seconds

_MAX_SECONDS = 1e9
"""As far as time goes, about thirty years: keeps absurd numbers out of the calendar."""

_MAX_NS = from_seconds(_MAX_SECONDS)

Body = Mapping[str, object]

Report = Callable[[], Mapping[str, object]]
"""Makes the body of GET /sim/report."""


class Clockwork(Protocol):
    """What drives time: a Driver, or the ClockHost of several processes."""

    keeper: Timekeeper[Callable[[], None], Any]
    clock: ClockSpec
    error: BaseException | None
    drift: Drift

    @property
    def num_in_flight(self) -> int:
        """Requests accepted and not yet complete."""
        ...

    @property
    def num_events(self) -> int:
        """How much has happened, as a number that grows."""
        ...

    def now_ns(self) -> SimTime:
        """The virtual present."""
        ...

    def next_due(self) -> SimTime | None:
        """When something will happen by itself."""
        ...

    def holders(self) -> list[tuple[str, str]]:
        """Who keeps time from moving."""
        ...

    def wall_s(self) -> float:
        """Real seconds since the start."""
        ...

    def poke(self) -> None:
        """The Timekeeper was told something."""
        ...

    def catch_up(self) -> None:
        """Bring the engine to the present."""
        ...


class VerbError(ValueError):
    """A body that does not say what its verb needs; the message names the key."""


class ClockRoutes:
    """Routes under /sim. One instance serves every port of a cluster: there is one clock."""

    def __init__(self, driver: Clockwork, report: Report) -> None:
        self._driver = driver
        self._report = report
        self._sessions = 0
        self._open: dict[int, Exchange] = {}

    def table(self) -> dict[tuple[str, str], Handler]:
        """Handlers by (method, path)."""
        verbs = {
            "fork": self._fork,
            "sleep": self._sleep,
            "barrier": self._barrier,
            "release": self._release,
            "advance": self._advance,
        }
        table = {("POST", f"/sim/clock/{name}"): self._verb(act) for name, act in verbs.items()}
        table["POST", "/sim/clock/register"] = self._register
        table["GET", "/sim/clock"] = self._clock
        table["GET", "/sim/report"] = self._get_report
        return table

    def close(self) -> None:
        """End all sessions, and with them whatever their actors still wait for."""
        for session, exchange in self._open.items():
            _run(self._driver.keeper.close(session))
            exchange.end()
        self._open.clear()

    # Verbs

    def _register(self, exchange: Exchange) -> Answer | None:
        driver = self._driver
        if driver.error is not None:
            return self._now()
        self._sessions += 1
        session = self._sessions
        try:
            driver.keeper.register(session, _names(_body(exchange), "actors"))
        except ValueError as error:
            return _refused(error)
        driver.poke()
        exchange.begin(NDJSON)
        line = json.dumps({"session": session, "now_ns": driver.now_ns()})
        exchange.write(line.encode() + b"\n")
        self._open[session] = exchange

        def lost() -> None:
            del self._open[session]
            _run(driver.keeper.close(session))
            driver.poke()

        exchange.on_lost = lost
        return None

    def _fork(self, body: Body, exchange: Exchange) -> Answer | None:
        keeper = self._driver.keeper
        keeper.fork(_name(body, "parent"), _names(body, "children"), once=_flag(body, "once"))
        return self._now()

    def _sleep(self, body: Body, exchange: Exchange) -> Answer | None:
        until_ns = self._until(body)
        then = body.get("then_fork")
        if then is None:
            then = {"children": []}
        if not isinstance(then, dict):
            raise VerbError("then_fork must be an object")
        rename = _name(body, "rename") if "rename" in body else None
        name = _name(body, "actor")
        self._driver.keeper.sleep(
            name,
            until_ns,
            lambda: exchange.reply(self._now()),
            children=_names(then, "children"),
            once=_flag(then, "once"),
            rename=rename,
        )
        self._watch(exchange, rename or name)
        return None

    def _barrier(self, body: Body, exchange: Exchange) -> Answer | None:
        size = body.get("size")
        if not isinstance(size, int) or isinstance(size, bool):
            raise VerbError("size must be an integer")
        keeper = self._driver.keeper
        name, group = _name(body, "actor"), _name(body, "group")

        def met() -> None:
            fault = keeper.take_fault(name)
            exchange.reply(json_answer({"error": fault}, 409) if fault else self._now())

        keeper.barrier(name, group, size, met)
        self._watch(exchange, name)
        return None

    def _release(self, body: Body, exchange: Exchange) -> Answer | None:
        keeper = self._driver.keeper
        session = body.get("session")
        if session is None:
            _run(keeper.release(_names(body, "actors")))
        elif isinstance(session, int) and not isinstance(session, bool):
            _run(keeper.release_session(session))
        else:
            raise VerbError("session must be an integer")
        return self._now()

    def _advance(self, body: Body, exchange: Exchange) -> Answer | None:
        driver = self._driver
        before = driver.num_events

        def arrived() -> None:
            now_ns, events = driver.now_ns(), driver.num_events - before
            exchange.reply(json_answer({"now_ns": now_ns, "events": events}))

        self._driver.keeper.advance(self._until(body), arrived)
        return None

    def _watch(self, exchange: Exchange, name: str) -> None:
        """Hold the lease again if whoever asked for this verb does not await its answer."""

        def lost() -> None:
            self._driver.keeper.give_up(name)
            self._driver.poke()

        if not exchange.is_lost():
            exchange.on_lost = lost

    # Views

    def _clock(self, exchange: Exchange) -> Answer:
        driver = self._driver
        keeper = driver.keeper
        clock = driver.clock
        warp = clock.mode == "warp"
        return json_answer(
            {
                "now_ns": driver.now_ns(),
                "mode": clock.mode,
                "scale": None if warp else clock.scale,
                "canonical": warp,
                "baton": clock.baton,
                "wall_s": driver.wall_s(),
                "in_flight": driver.num_in_flight,
                "next_ns": driver.next_due(),
                "actors": [
                    {
                        "name": actor.name,
                        "state": actor.state.value,
                        "last": actor.last,
                        "session": actor.session,
                        "outstanding": actor.outstanding,
                    }
                    for actor in keeper.actors.values()
                ],
                "held_by": [{"name": name, "last": last} for name, last in driver.holders()],
                "jumps": keeper.jumps,
                "grace_jumps": keeper.guesses,
                "stalls": {
                    "count": keeper.stall_count,
                    "by_actor": keeper.stalled_by,
                    "recent": [str(stall) for stall in keeper.stalls[-10:]],
                },
                "drift": driver.drift.verdict(),
                "error": None if driver.error is None else str(driver.error),
            }
        )

    def _get_report(self, exchange: Exchange) -> Answer:
        self._driver.catch_up()
        return json_answer(self._report())

    # Parts

    def _verb(self, act: Callable[[Body, Exchange], Answer | None]) -> Handler:
        def handle(exchange: Exchange) -> Answer | None:
            if self._driver.error is not None:
                return self._now()
            try:
                answer = act(_body(exchange), exchange)
            except ValueError as error:
                return _refused(error)
            self._driver.poke()
            return answer

        return handle

    def _now(self) -> Answer:
        error = self._driver.error
        if error is not None:
            return json_answer({"error": str(error)}, 503)
        return json_answer({"now_ns": self._driver.now_ns()})

    def _until(self, body: Body) -> SimTime:
        return until_ns_of(body, self._driver.now_ns())


def until_ns_of(body: Body, now_ns: SimTime) -> SimTime:
    """The time that `until_ns` or `seconds` of a verb mean. Raises VerbError.

    None is beyond `_MAX_NS`, so that times fit into the 64 bits that others keep them in.
    """
    until_ns, seconds = body.get("until_ns"), body.get("seconds")
    if isinstance(until_ns, int) and not isinstance(until_ns, bool):
        if not -_MAX_NS <= until_ns <= _MAX_NS:
            raise VerbError(f"until_ns must be within {_MAX_NS} of 0")
        return until_ns
    if isinstance(seconds, int | float) and not isinstance(seconds, bool):
        if not (math.isfinite(seconds) and 0 <= seconds <= _MAX_SECONDS):
            raise VerbError(f"seconds must be between 0 and {_MAX_SECONDS:g}")
        if now_ns + from_seconds(seconds) > _MAX_NS:
            raise VerbError(
                f"seconds: {seconds:g} from now is beyond the end of time, {_MAX_NS} ns"
            )
        return now_ns + from_seconds(seconds)
    raise VerbError("until_ns (an integer) or seconds (a number) is required")


def _run(actions: list[Callable[[], None]]) -> None:
    for action in actions:
        action()


def _refused(error: ValueError) -> Answer:
    """409 for a verb that makes no sense now, 400 for one that makes no sense at all."""
    status = 409 if isinstance(error, ActorError) else 400
    return json_answer({"error": str(error)}, status)


def _body(exchange: Exchange) -> Body:
    try:
        body = json.loads(exchange.request.body)
    except (ValueError, RecursionError):
        raise VerbError("the body is not JSON") from None
    if not isinstance(body, dict):
        raise VerbError("the body must be an object")
    return body


def _name(body: Body, key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not value:
        raise VerbError(f"{key} must be a non-empty string")
    return value


def _names(body: Body, key: str) -> list[str]:
    value = body.get(key)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise VerbError(f"{key} must be a list of strings")
    return value


def _flag(body: Body, key: str) -> bool:
    value = body.get(key, False)
    if not isinstance(value, bool):
        raise VerbError(f"{key} must be true or false")
    return value
