"""An engine process that shares another process's clock: the Timekeeper's local stand-in.

Theory of operation. One process, the *host* (`drive.hosting`), has the Timekeeper with all leases.
Every other process is a *follower*: it has an engine, its workers' ports, and this class in the
place of its Driver's Timekeeper. What the Driver tells it becomes a message to the host; what the
Driver asks of it (`decide`) is answered from the host's orders. Messages are lists, first the verb:

follower to host: `["arriving"]`, `["received"]`, `["park", actor, legs]`, `["refuse", actor,
legs]`, `["post", actor, number]`, `["complete", actor, number]`, `["returned", actor]`,
`["disconnect", actor]`, and `["done", now_ns, next_ns]` after every feed or move: next_ns is the
promise that nothing will happen in this engine before, null if nothing will at all. `["letter",
peer, due_ns, word]` is for the half of a transfer at another process (`core.words`), to be heard
there at `due_ns`, which is later than now.

host to follower: `["feed", t_ns, numbers, limit_ns]`: it is t_ns, feed these posts in this order.
`["move", t_ns, limit_ns]`: advance to t_ns. `["hear", t_ns, words, limit_ns]`: advance to t_ns, and
hear these words. After each of them, go on through events before limit_ns as
long as nobody has to be told. `["resume", numbers]`: write the last bytes of these completed
requests.

Nothing can be overtaken: a request's lease is held at the host until its `park` is read there, and
`post` is right behind it; a response is written only after the host holds its lease again. That is
what `complete` waits for. Where the host allows it (`at_once`), a response is written as soon as
`returned` and the `done` of its order have left: the host, which decides nothing before it has read
that `done`, puts off what the client says until then.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from frontier_mock.drive.leases import Decision, Feed, ItemT, Move, Resume, TokenT, Wait
from frontier_mock.drive.timekeeper import Timekeeper
from frontier_mock.simtime import SimTime

Message = list[object]
"""One line of JSON on the way between host and follower."""


class FollowingKeeper(Timekeeper[TokenT, ItemT]):
    """Stands where a Driver has its Timekeeper; has no actors of its own."""

    def __init__(
        self,
        send: Callable[[Message], None],
        flush: Callable[[], None],
        heard: Callable[[object], ItemT],
    ) -> None:
        """`send` puts a message on its way, `flush` sees to it that all of them have left.

        `heard` is what the Driver is to be fed for a word. Raises ValueError for what is none.
        """
        super().__init__()
        self.at_once = False
        """Whether responses of requests with an actor need not wait for the host's `resume`."""
        self._send_message = send
        self._flush = flush
        self._heard = heard
        self._orders: deque[Message] = deque()
        self._posted: dict[int, ItemT] = {}
        self._completed: dict[int, TokenT] = {}
        self._returning: list[tuple[str, int, TokenT]] = []
        self._number = 0
        self._owes = False
        self._told = False
        self._limit_ns: SimTime = 0

    def order(self, message: Message) -> None:
        """The host said something. Raises ValueError if it makes no sense."""
        if not message or message[0] not in ("feed", "move", "hear", "resume"):
            raise ValueError(f"the clock host said {message!r}")
        self._orders.append(message)

    def write(self, peer: str, due_ns: SimTime, word: object) -> None:
        """Have a word heard at another process."""
        self._tell(["letter", peer, due_ns, word])

    # What the Driver and the HTTP layer say

    def arriving(self) -> None:
        """See Timekeeper."""
        self._tell(["arriving"])

    def received(self) -> None:
        """See Timekeeper."""
        self._tell(["received"])

    def park(self, name: str | None, legs: int = 1, room: str = "") -> None:
        """See Timekeeper."""
        self._tell(["park", name, legs, room])

    def refuse(self, name: str | None, legs: int = 1, room: str = "") -> None:
        """See Timekeeper."""
        self._tell(["refuse", name, legs, room])

    def post(self, name: str | None, item: ItemT) -> None:
        """See Timekeeper."""
        self._number += 1
        self._posted[self._number] = item
        self._tell(["post", name, self._number])

    def complete(self, name: str | None, token: TokenT) -> None:
        """See Timekeeper."""
        self._number += 1
        if self.at_once and self._owes and name is not None:
            self._returning.append((name, self._number, token))
            self._tell(["returned", name])
            return
        self._completed[self._number] = token
        self._tell(["complete", name, self._number])

    def disconnect(self, name: str | None) -> None:
        """See Timekeeper."""
        self._tell(["disconnect", name])

    def glide(self, next_ns: SimTime | None) -> bool:
        """Go on to an event before the order's limit, as long as nobody had to be told."""
        if not self._owes or self._told or next_ns is None or next_ns >= self._limit_ns:
            return False
        self.jumps += 1
        self.now_ns = next_ns
        return True

    def decide(self, next_ns: SimTime | None, wall_ns: int) -> Decision[TokenT, ItemT]:
        """The host's next order; what the last one came to is reported first."""
        if self._owes:
            if self.glide(next_ns):
                return Move(self.now_ns)
            self._owes = False
            self._send_message(["done", self.now_ns, next_ns])
            if self._returning:
                self._flush()
                return Resume(self._take_returning())
        if not self._orders:
            return Wait(None, "following the clock host")
        verb, *rest = self._orders.popleft()
        if verb == "resume":
            return Resume([self._completed.pop(number) for number in _numbers(rest[0])])
        self._owes, self._told = True, False
        self.now_ns = max(self.now_ns, _time(rest[0]))
        if verb == "hear":
            self._limit_ns = _time(rest[2])
            return Feed([self._heard(word) for word in _list(rest[1])])
        if verb == "feed":
            self._limit_ns = _time(rest[2])
            return Feed([self._posted.pop(number) for number in _numbers(rest[1])])
        self.jumps += 1
        self._limit_ns = _time(rest[1])
        return Move(self.now_ns)

    def elapse(self, now_ns: SimTime) -> list[TokenT]:
        """Shutdown: everybody whose request is over may go on."""
        self.now_ns = max(self.now_ns, now_ns)
        tokens = [*self._completed.values(), *self._take_returning()]
        self._completed.clear()
        return tokens

    def _take_returning(self) -> list[TokenT]:
        """Responses that may leave, in the order of their actors."""
        returning, self._returning = self._returning, []
        returning.sort(key=_turn)
        return [token for _, _, token in returning]

    def _tell(self, message: Message) -> None:
        self._told = True
        self._send_message(message)


def _turn(entry: tuple[str, int, object]) -> tuple[str, int]:
    return entry[0], entry[1]


def _time(value: object) -> SimTime:
    if not isinstance(value, int):
        raise ValueError(f"{value!r} is not a time")
    return value


def _numbers(value: object) -> Sequence[int]:
    return _list(value)


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is not a list")
    return value
