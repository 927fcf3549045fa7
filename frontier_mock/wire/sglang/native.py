"""Answers of /generate: objects, arrays, and streams whose chunks repeat all there is so far."""

from collections.abc import Sequence

from frontier_mock.wire.render import dumps, frontier_json
from frontier_mock.wire.sglang.errors import SglangError, stream_error_frame
from frontier_mock.wire.sglang.meta import Triples, ended_meta, live_meta
from frontier_mock.wire.sglang.request import (
    Ended,
    Live,
    SglangRequest,
    SglangSequence,
    in_order,
)
from frontier_mock.wire.sse import DONE
from frontier_mock.wire.text import FixedText


def render_generate(request: SglangRequest, endings: Sequence[Ended], created_s: int) -> bytes:
    """The body of a whole answer, which does not say when it was made."""
    items = [_item(request, ended) for ended in in_order(endings)]
    text = items[0] if request.single else f"[{','.join(items)}]"
    return text.encode("utf-8", "surrogatepass")


def render_vertex(request: SglangRequest, endings: Sequence[Ended], created_s: int) -> bytes:
    """The same in the frame of Vertex AI."""
    return b'{"predictions":%b}' % render_generate(request, endings, created_s)


def _item(request: SglangRequest, ended: Ended) -> str:
    sequence = request.sequences[ended.index]
    shown = sequence.shown(ended.output_tokens)
    triples = ""
    if sequence.logprobs is not None:
        lists = Triples(request, sequence)
        lists.grow(shown)
        triples = lists.fields(0)
    meta = ended_meta(request, sequence, ended, triples)
    text = sequence.plan.text.piece(0, shown, final=True)
    ids = ",".join(map(str, sequence.plan.text.ids(0, shown)))
    return (
        f'{{"text":{dumps(text)},"output_ids":[{ids}],"meta_info":{meta}'
        f"{_prompt_ids(request, sequence)}{_frontier(request, [ended])}}}"
    )


def _prompt_ids(request: SglangRequest, sequence: SglangSequence) -> str:
    if not request.wishes.return_prompt_token_ids:
        return ""
    kept = request.prompt_of(sequence).ids
    assert kept is not None
    return f',"prompt_token_ids":[{",".join(map(str, kept.tolist()))}]'


def _frontier(request: SglangRequest, endings: Sequence[Ended]) -> str:
    if not request.wishes.frontier:
        return ""
    return f',"frontier":{frontier_json([ended.outcome for ended in endings])}'


class GenerateStream:
    """Writes the chunks of one streamed /generate. Calls follow each choice's own order.

    By default text, ids and figures of a chunk are all there is so far; with
    --incremental-streaming-output they are what is new.
    """

    __slots__ = ("_endings", "_ids", "_incremental", "_request", "_spoken", "_tails", "_triples")

    def __init__(self, request: SglangRequest, created_s: int) -> None:
        """`created_s` is for other kinds of stream."""
        self._request = request
        self._incremental = request.incremental
        sequences = request.sequences
        self._ids = [bytearray() for _ in sequences]
        self._triples = [Triples(request, s) if s.logprobs else None for s in sequences]
        self._spoken = [False] * len(sequences)
        self._tails = [
            _prompt_ids(request, s) + ("" if request.single else f',"index":{i}')
            for i, s in enumerate(sequences)
        ]
        self._endings: list[Ended] = []

    def head(self) -> bytes:
        """Nothing before there is output."""
        return b""

    def delta(self, index: int, first: int, last: int, live: Live) -> bytes:
        """A chunk once output tokens `first` to `last` (exclusive) exist, more to follow."""
        request = self._request
        sequence = request.sequences[index]
        lists = self._triples[index]
        triples = ""
        if lists is not None:
            lists.grow(last)
            triples = lists.fields(first if self._incremental else 0)
        meta = live_meta(sequence, live, triples, last)
        if not self._spoken[index]:
            self._spoken[index] = True
            meta += f',"response_sent_to_client_ts":{live.now_s!r}'
        return self._chunk(index, first, last, meta + "}", final=False)

    def finish(self, index: int, first: int, ended: Ended) -> bytes:
        """The last chunk of a choice; output tokens from `first` on ride along."""
        request = self._request
        sequence = request.sequences[index]
        self._endings.append(ended)
        last = sequence.shown(ended.output_tokens)
        lists = self._triples[index]
        triples = ""
        if lists is not None:
            lists.grow(last)
            triples = lists.fields(first if self._incremental else 0)
        meta = ended_meta(request, sequence, ended, triples)
        if request.wishes.frontier:
            self._tails[index] += _frontier(request, self._endings)
        return self._chunk(index, min(first, last), last, meta, final=True)

    def tail(self, endings: Sequence[Ended]) -> bytes:
        """The end of the stream."""
        return DONE

    def error(self, error: SglangError) -> bytes:
        """An error and the end of the stream."""
        return stream_error_frame(error.message, error.status) + DONE

    def _chunk(self, index: int, first: int, last: int, meta: str, *, final: bool) -> bytes:
        text = self._request.sequences[index].plan.text
        fresh = ",".join(map(str, text.ids(first, last)))
        if self._incremental:
            ids = bytearray(fresh.encode())
            spoken = text.piece(first, last, final)
        else:
            ids = self._ids[index]
            if fresh:
                ids += (("," if ids else "") + fresh).encode()
            spoken = text.piece(0, last, final)
        if isinstance(text, FixedText):
            # The ring's text needs no escapes in JSON.
            spoken = dumps(spoken)[1:-1]
        return (
            f'data: {{"text":"{spoken}","output_ids":['.encode("utf-8", "surrogatepass")
            + ids
            + f'],"meta_info":{meta}{self._tails[index]}}}\n\n'.encode("utf-8", "surrogatepass")
        )
