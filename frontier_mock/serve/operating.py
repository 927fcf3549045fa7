"""From a request of a control plane to a coroutine that asks the Driver for operations.

Such requests take their turn, and virtual time, among all others: whoever answers one awaits
`Driver.operate`, one operation after the other.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from frontier_mock.drive.driver import Driver
from frontier_mock.drive.protocol import ShutdownError
from frontier_mock.serve.answers import Answer
from frontier_mock.serve.carriers import actor_and_legs, actor_of
from frontier_mock.serve.connection import Exchange
from frontier_mock.serve.http1 import Request
from frontier_mock.serve.routing import Handler
from frontier_mock.simtime import SimTime

logger = logging.getLogger("frontier_mock")

Verb = Callable[[Request, str | None], Awaitable[Answer]]
"""Answers a request; its second argument is the actor whose lease the request carries."""


class Operating:
    """Runs the verbs of one port's control plane.

    `refusal` is the error by which a verb refuses a request before any operation, and `answer_to`
    what is answered to that, to a ShutdownError, and to anything else, which is a bug of ours.
    """

    def __init__(
        self,
        driver: Driver,
        refusal: type[Exception],
        answer_to: Callable[[Exception], Answer],
    ) -> None:
        self._driver = driver
        self._refusal = refusal
        self._answer_to = answer_to
        self._tasks: set[asyncio.Task[None]] = set()

    def handler(self, verb: Verb) -> Handler:
        """The route's handler; the answer comes when the coroutine is done."""

        def handle(exchange: Exchange) -> None:
            task = asyncio.get_running_loop().create_task(self._answer(exchange, verb))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return handle

    async def lasts(self, actor: str | None, delay_ns: SimTime = 0) -> None:
        """Nothing but the turn, and the time, of an operation."""
        await self._driver.operate(None, delay_ns, actor)

    async def _answer(self, exchange: Exchange, verb: Verb) -> None:
        request = exchange.request
        actor, _ = actor_and_legs(actor_of(request.headers))
        try:
            answer = await verb(request, actor)
        except Exception as error:
            if isinstance(error, self._refusal):
                self._driver.keeper.refuse(actor)
                self._driver.poke()
            elif not isinstance(error, ShutdownError):
                logger.error("%s failed: %r", request.path, error)
            answer = self._answer_to(error)
        exchange.reply(answer)
