"""Which bytes answer a generation: one renderer of bodies and one of streams for each kind."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from frontier_mock.wire.anthropic_render import (
    MessagesStream,
    anthropic_error,
    anthropic_error_event,
    render_messages,
)
from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.generation import (
    CHAT,
    COMPLETION,
    INFERENCE,
    MESSAGES,
    RESPONSES,
    Generation,
    Outcome,
)
from frontier_mock.wire.inference_render import InferenceStream, render_inference
from frontier_mock.wire.render import render_response
from frontier_mock.wire.responses_render import (
    ResponsesStream,
    render_responses,
    responses_error_event,
)
from frontier_mock.wire.sse import StreamRenderer, error_frames


class StreamWriter(Protocol):
    """Writes the chunks of one streamed generation. Calls must follow each choice's own order."""

    def head(self) -> bytes:
        """What is said before there is any output."""
        ...

    def delta(self, index: int, first: int, last: int) -> bytes:
        """A chunk with output tokens `first` to `last` (exclusive) of a choice, more to follow."""
        ...

    def finish(self, index: int, first: int, outcome: Outcome) -> bytes:
        """The last chunk of a choice; output tokens from `first` on ride along."""
        ...

    def tail(self, outcomes: Sequence[Outcome]) -> bytes:
        """The end of the stream."""
        ...

    def error(self, error: ApiError) -> bytes:
        """An error in mid-stream, and the end of the stream."""
        ...


class Dialect(NamedTuple):
    """How one kind of generation is answered, whole or as a stream; both are told the unix time."""

    whole: Callable[[Generation, Sequence[Outcome], int], bytes]
    stream: Callable[[Generation, int], StreamWriter]


def late_error(error: ApiError, kind: str) -> bytes:
    """The error as the whole of a `kind` stream that has begun already."""
    if kind == RESPONSES:
        return responses_error_event(error)
    return anthropic_error_event(error) if kind == MESSAGES else error_frames(error, kind)


def error_body(error: ApiError, kind: str) -> bytes:
    """The error as the body of an answer on a route of that kind."""
    return anthropic_error(error) if kind == MESSAGES else error.body()


DIALECTS: Mapping[str, Dialect] = {
    CHAT: Dialect(render_response, StreamRenderer),
    COMPLETION: Dialect(render_response, StreamRenderer),
    INFERENCE: Dialect(render_inference, InferenceStream),
    MESSAGES: Dialect(render_messages, MessagesStream),
    RESPONSES: Dialect(render_responses, ResponsesStream),
}
"""By `Generation.kind`."""
