"""Which weights made which token: versions, and who lived through their changes."""

from frontier_mock.drive.driver import Driver
from frontier_mock.drive.protocol import Flight

Spans = tuple[tuple[str, int, int], ...]
"""(version, first token, token after the last) of an answer's output."""


class WeightVersions:
    """The versions of one server's weights.

    A change is noted for every sequence in flight that has output already: what it has is of the
    version before. `spans_of` is asked once, when a sequence has ended.
    """

    def __init__(self, driver: Driver, worker: int, version: str) -> None:
        """`worker` is the server's first engine."""
        self._driver = driver
        self._worker = worker
        self._version = version
        self._past: dict[int, list[tuple[str, int]]] = {}

    @property
    def current(self) -> str:
        """The version of the next token."""
        return self._version

    def change(self, version: str) -> None:
        """From now on tokens are of `version`."""
        if version == self._version:
            return
        driver = self._driver
        ranks = driver.engine.ranks(self._worker)
        for rid, flight in driver.delivery.flights.items():
            if flight.worker not in ranks:
                continue
            tokens = driver.engine.tokens(rid)
            past = self._past.get(rid)
            if tokens > (past[-1][1] if past else 0):
                self._past.setdefault(rid, []).append((self._version, tokens))
        self._version = version

    def spans_of(self, flight: Flight) -> Spans:
        """Of a sequence that has ended; empty if one version made all of it."""
        past = self._past.pop(flight.rid, None)
        if past is None:
            return ()
        spans = []
        start = 0
        for version, end in past:
            spans.append((version, start, end))
            start = end
        return (*spans, (self._version, start, flight.output_tokens))
