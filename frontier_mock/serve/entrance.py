"""The way of a generating request into the engine, whichever wire it came over."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from frontier_mock.core.commands import Submit
from frontier_mock.drive.driver import Driver
from frontier_mock.drive.protocol import Subscriber, Ticket
from frontier_mock.serve.carriers import actor_and_legs, actor_of
from frontier_mock.serve.connection import Exchange


class Accepted(NamedTuple):
    """A request that was parsed: what to submit, `choices` of it sharing each prompt, and for whom.

    `actor` is the lease holder the body names, if any. A `detached` request is made for nobody who
    waits: its client is answered at once, and has its lease back.
    """

    submits: Sequence[Submit]
    subscriber: Subscriber
    choices: int = 1
    actor: str | None = None
    detached: bool = False


def enter(driver: Driver, exchange: Exchange, read: Callable[[], Accepted]) -> Ticket:
    """Parse and submit. The answer comes from the subscriber, out of the driver's pump.

    Whatever `read` raises passes through, as does ShutdownError, once the actor has its lease back.
    """
    actor, legs = actor_and_legs(actor_of(exchange.request.headers))
    try:
        accepted = read()
        if actor is None:
            actor, legs = actor_and_legs(accepted.actor)
        waits = None if accepted.detached else actor
        ticket = driver.submit(accepted.submits, accepted.subscriber, waits, accepted.choices, legs)
    except Exception:
        driver.keeper.refuse(actor, legs)
        driver.poke()
        raise
    if accepted.detached:
        driver.keeper.refuse(actor, legs)
        driver.poke()
    else:
        exchange.on_lost = lambda: driver.abort(ticket)
    return ticket
