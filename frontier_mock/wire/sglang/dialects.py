"""Which bytes answer a request to SGLang: one renderer of bodies and one of streams for each kind.

The same table as `wire.dialects` has for vLLM.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from frontier_mock.wire.sglang.anthropic_answer import MessagesStream, render_messages
from frontier_mock.wire.sglang.errors import SglangError, anthropic_error, nested_error
from frontier_mock.wire.sglang.native import GenerateStream, render_generate, render_vertex
from frontier_mock.wire.sglang.ollama_answer import NDJSON, OllamaStream, render_ollama
from frontier_mock.wire.sglang.openai import OpenAiStream, render_openai
from frontier_mock.wire.sglang.request import (
    CHAT,
    COMPLETION,
    GENERATE,
    MESSAGES,
    OLLAMA_CHAT,
    OLLAMA_GENERATE,
    RESPONSES,
    SCORE,
    VERTEX,
    Ended,
    Live,
    SglangRequest,
)
from frontier_mock.wire.sglang.responses_answer import ResponsesStream, render_responses
from frontier_mock.wire.sglang.score import render_score
from frontier_mock.wire.sse import EVENT_STREAM


class StreamWriter(Protocol):
    """Writes the chunks of one streamed answer. Calls follow each choice's own order."""

    def head(self) -> bytes:
        """What is said before there is any output."""
        ...

    def delta(self, index: int, first: int, last: int, live: Live) -> bytes:
        """A chunk once output tokens `first` to `last` (exclusive) exist, more to follow."""
        ...

    def finish(self, index: int, first: int, ended: Ended) -> bytes:
        """The last chunk of a choice; output tokens from `first` on ride along."""
        ...

    def tail(self, endings: Sequence[Ended]) -> bytes:
        """The end of the stream."""
        ...

    def error(self, error: SglangError) -> bytes | None:
        """An error and the end of the stream; None if the connection just breaks off."""
        ...


class Dialect(NamedTuple):
    """How one kind of request is answered, whole or as a stream; both are told the unix time.

    `at_once`: the status of a stream leaves as soon as the request is in; else it waits for the
    first chunk, so that a refusal can still be a plain error. `refused_in_chunk`: what the
    scheduler would not take is told in a last chunk like any other end. `headers` are lines of
    their own that a stream has.
    """

    whole: Callable[[SglangRequest, Sequence[Ended], int], bytes]
    stream: Callable[[SglangRequest, int], StreamWriter]
    media_type: str = EVENT_STREAM
    at_once: bool = True
    refused_in_chunk: bool = False
    headers: str = ""


_OPENAI = Dialect(render_openai, OpenAiStream, at_once=False)
_OLLAMA = Dialect(render_ollama, OllamaStream, NDJSON, refused_in_chunk=True)

DIALECTS: Mapping[str, Dialect] = {
    GENERATE: Dialect(render_generate, GenerateStream, refused_in_chunk=True),
    VERTEX: Dialect(render_vertex, GenerateStream, refused_in_chunk=True),
    CHAT: _OPENAI,
    COMPLETION: _OPENAI,
    SCORE: Dialect(render_score, OpenAiStream),
    MESSAGES: Dialect(render_messages, MessagesStream),
    RESPONSES: Dialect(
        render_responses,
        ResponsesStream,
        headers="cache-control: no-cache\r\nconnection: keep-alive\r\n",
    ),
    OLLAMA_CHAT: _OLLAMA,
    OLLAMA_GENERATE: _OLLAMA,
}
"""By `SglangRequest.kind`."""


def in_envelope(error: SglangError, kind: str) -> SglangError:
    """The same error in the envelope of a route of that kind."""
    if kind == MESSAGES:
        return anthropic_error(error.message, error.status)
    if kind == RESPONSES:
        # The handler answers whatever it catches with a 400 that says what it was.
        message = error.message if error.status == 400 else f"{error.status}: {error.message}"
        return nested_error(message, "invalid_request_error", 400)
    return error
