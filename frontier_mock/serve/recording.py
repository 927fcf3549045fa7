"""An event stream that is written for later: whoever comes reads it from where they like."""

from collections.abc import Callable

from frontier_mock.serve.answers import Answer
from frontier_mock.serve.connection import Exchange
from frontier_mock.serve.http1 import Request

_LAST = (b"event: response.completed\n", b"event: response.incomplete\n")
"""How the event begins that readers leave with (vLLM 0.33 `responses_background_stream_generator`).
A stream that ends otherwise, by a cancel or an error, keeps them waiting, as there."""


class Recording(Exchange):
    """Takes the place of the connection that a stream is written to."""

    __slots__ = ("_frames", "_readers")

    def __init__(self, request: Request) -> None:
        super().__init__(request, None)
        self._frames: list[bytes] = []
        self._readers: dict[Exchange, int] = {}

    def read(
        self, exchange: Exchange, first: int, on_lost: Callable[[], object] | None = None
    ) -> None:
        """Send events from number `first` on, now and as they come.

        `on_lost` is called if the reader leaves before the last one.
        """

        def lost() -> None:
            self._readers.pop(exchange, None)
            if on_lost is not None:
                on_lost()

        self._readers[exchange] = max(0, first)
        exchange.on_lost = lost
        self._tell(exchange)

    def reply(self, answer: Answer) -> None:
        """A refusal of the engine: nobody ever reads it."""

    def begin(self, content_type: str, extra: str = "") -> None:
        """Readers have their own."""

    def write(self, data: bytes) -> None:
        """Events, each ended by an empty line."""
        if data:
            self._frames += [frame + b"\n\n" for frame in data.split(b"\n\n")[:-1]]
            for reader in list(self._readers):
                self._tell(reader)

    def end(self, data: bytes = b"") -> None:
        """The last events."""
        self.write(data)

    def is_lost(self) -> bool:
        """It never is."""
        return False

    def _tell(self, exchange: Exchange) -> None:
        frames, at = self._frames, self._readers[exchange]
        if at < len(frames):
            self._readers[exchange] = len(frames)
            exchange.write(b"".join(frames[at:]))
            if frames[-1].startswith(_LAST):
                del self._readers[exchange]
                exchange.end()
