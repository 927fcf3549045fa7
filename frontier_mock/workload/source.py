"""What drives the engine: timed submissions, and what each completion releases.

Theory of operation. A `Source` is a deterministic state machine beside the engine. `initial()`
gives everything whose time is known from the start; each time a request ends, however it ends, the
driver calls `on_finish` and feeds what comes back. Open loops put all of themselves into
`initial()`; closed loops put the first request of each lane there and the rest behind completions.
The offline loop and the load generator drive the same object, so a scenario means the same in both.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from frontier_mock.core.commands import Submit
from frontier_mock.simtime import SimTime


class Item(NamedTuple):
    """Who a request is to its source; the driver hands it back untouched in `on_finish`.

    `seq` counts the source's requests from 0 in the order of their definition and is the
    canonical order within one instant. `lane` is the closed-loop lane or the session, -1 for an
    open loop. `turn` counts within a session. `line` is the trace line the request came from, 0 if
    from none. Requests with `measured` False are warm-up and stay out of the figures.
    """

    seq: int
    measured: bool = True
    lane: int = -1
    turn: int = 0
    line: int = 0


class Timed(NamedTuple):
    """Feed `submit` at `t_ns`."""

    t_ns: SimTime
    submit: Submit
    item: Item


class Source(Protocol):
    """A workload being played; used once."""

    @property
    def num_requests(self) -> int:
        """How many requests it will submit in all, warm-up included."""
        ...

    @property
    def releases(self) -> bool:
        """Whether completions release anything, so that a client must follow them closely."""
        ...

    @property
    def feeds_back(self) -> bool:
        """Whether later prompts contain earlier outputs, so that a client must keep them."""
        ...

    @property
    def lanes_apart(self) -> bool:
        """Whether what an end releases depends on its own lane only, and is one request at most.

        A client may then tell the source of every end as it hears of it.
        """
        ...

    def initial(self) -> Sequence[Timed]:
        """What is known from the start, sorted by (t_ns, item.seq). Call once."""
        ...

    def on_finish(self, item: Item, t_ns: SimTime) -> Sequence[Timed]:
        """What the end of `item` at `t_ns` releases, sorted by time, none before `t_ns`.

        Call exactly once for each request, be it finished, rejected or aborted; in the order of
        (t_ns, item.seq) where several end at once, unless `lanes_apart`.
        """
        ...
