"""Responses that a server keeps: to be looked up, cancelled, and gone on with.

Both engines keep them in memory and never forget one (vLLM 0.33 `openai/responses/serving.py`,
SGLang 0.5.23 `openai/serving_responses.py`); whoever turns a store on accepts that.
"""

from typing import NamedTuple

from frontier_mock.wire.tokenizer import Json

Response = dict[str, Json]
"""A response object, as a client sees it."""

_OPEN = ("queued", "in_progress")
_SETTLED = ("completed", "cancelled")


class Record(NamedTuple):
    """What is to be kept of a request: its id, and the conversation up to and with its input.

    `background`: the client gets its answer at once, and asks later how it went.
    """

    name: str
    history: tuple[Json, ...]
    background: bool = False


class ResponseStore:
    """All responses of one server."""

    __slots__ = ("_histories", "_responses")

    def __init__(self) -> None:
        self._responses: dict[str, Response] = {}
        self._histories: dict[str, tuple[Json, ...]] = {}

    def get(self, name: str) -> Response | None:
        """The response as it is now, None if nobody knows it."""
        return self._responses.get(name)

    def history(self, name: str) -> tuple[Json, ...]:
        """The conversation that a response belongs to."""
        return self._histories.get(name, ())

    def begin(self, record: Record, response: Response | None = None) -> None:
        """The request is in; `response` is what there is of it for those who ask already."""
        self._histories[record.name] = record.history
        if response is not None:
            self._responses[record.name] = response

    def finish(self, name: str, response: Response, more: tuple[Json, ...] = ()) -> None:
        """The response is complete, and `more` belongs to its conversation, unless cancelled."""
        kept = self._responses.get(name)
        if kept is None or kept["status"] != "cancelled":
            self._responses[name] = response
            self._histories[name] = (*self._histories.get(name, ()), *more)

    def fail(self, name: str) -> None:
        """There will be no response."""
        kept = self._responses.get(name)
        if kept is not None and kept["status"] not in _SETTLED:
            kept["status"] = "failed"

    def cancel(self, name: str) -> bool:
        """Whether the response could still be cancelled, and now is."""
        kept = self._responses[name]
        if kept["status"] not in _OPEN:
            return False
        kept["status"] = "cancelled"
        return True
