"""What the Ollama routes answer: one object, or one a line.

Keys, order and oddities are those of SGLang 0.5.23 (`entrypoints/ollama/serving.py`): whatever
ended a generation is called "stop", and what the last token says is not in a stream.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from frontier_mock.wire.render import dumps, frontier_json
from frontier_mock.wire.sglang.errors import SglangError
from frontier_mock.wire.sglang.request import (
    OLLAMA_CHAT,
    Ended,
    Live,
    SglangRequest,
)
from frontier_mock.wire.tokenizer import Json

NDJSON = "application/x-ndjson"


def timestamp(now_s: float) -> str:
    """Unix time as Ollama writes it."""
    return datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def render_ollama(request: SglangRequest, endings: Sequence[Ended], created_s: int) -> bytes:
    """The body of a whole answer. Durations are virtual nanoseconds."""
    (ended,) = endings
    (sequence,) = request.sequences
    shown = sequence.shown(ended.output_tokens)
    text = sequence.plan.text.piece(0, shown, final=True)
    took_ns = ended.finish_ns - ended.arrival_ns
    counts = (took_ns, sequence.prompt_tokens, shown)
    answer = whole_answer(request.kind, request.model, ended.now_s, text, counts)
    if request.wishes.frontier:
        return _with_frontier(answer, ended)
    return dumps(answer).encode("utf-8", "surrogatepass")


def whole_answer(
    kind: str,
    model: str,
    now_s: float,
    text: str,
    counts: tuple[int, int, int] | None,
) -> dict[str, Json]:
    """An answer as one object; `counts` are its nanoseconds, prompt and output tokens."""
    took_ns, prompt_tokens, output_tokens = counts or (None, None, None)
    answer = _head(kind, model, now_s, text)
    answer |= {"done": True, "done_reason": "stop"}
    if kind != OLLAMA_CHAT:
        answer["context"] = None
    return answer | {
        "total_duration": took_ns,
        "load_duration": None,
        "prompt_eval_count": prompt_tokens,
        "prompt_eval_duration": None,
        "eval_count": output_tokens,
        "eval_duration": None,
    }


class OllamaStream:
    """Lines of one stream; see `GenerateStream` for who calls what, when."""

    __slots__ = ("_before", "_request")

    def __init__(self, request: SglangRequest, created_s: int) -> None:
        """`created_s` is for other kinds of stream: every line has its own time."""
        self._request = request
        self._before = ""

    def head(self) -> bytes:
        """Nothing before there is output."""
        return b""

    def delta(self, index: int, first: int, last: int, live: Live) -> bytes:
        """A line with the text of output tokens [first, last)."""
        request = self._request
        text = request.sequences[0].plan.text.piece(first, last, final=False)
        if request.incremental:
            # The handler takes a chunk for all there is so far, whatever the server was told.
            before, self._before = self._before, text
            text = text[len(before) :]
        return _line(_head(request.kind, request.model, live.now_s, text), done=False)

    def finish(self, index: int, first: int, ended: Ended) -> bytes:
        """The last line, which says nothing more."""
        request = self._request
        answer = _head(request.kind, request.model, ended.now_s, "")
        if request.wishes.frontier:
            answer |= {"done": True, "done_reason": "stop"}
            return _with_frontier(answer, ended) + b"\n"
        return _line(answer, done=True)

    def tail(self, endings: Sequence[Ended]) -> bytes:
        """The stream just ends."""
        return b""

    def error(self, error: SglangError) -> bytes | None:
        """Nobody catches it: the connection breaks off."""
        return None


def _head(kind: str, model: str, now_s: float, text: str) -> dict[str, Json]:
    said: dict[str, Json] = {"response": text}
    if kind == OLLAMA_CHAT:
        said = {"message": {"role": "assistant", "content": text, "images": None}}
    return {"model": model, "created_at": timestamp(now_s), **said}


def _line(answer: dict[str, Json], *, done: bool) -> bytes:
    answer |= {"done": done, "done_reason": "stop" if done else None}
    return (dumps(answer) + "\n").encode("utf-8", "surrogatepass")


def _with_frontier(answer: dict[str, Json], ended: Ended) -> bytes:
    text = f'{dumps(answer)[:-1]},"frontier":{frontier_json([ended.outcome])}}}'
    return text.encode("utf-8", "surrogatepass")
