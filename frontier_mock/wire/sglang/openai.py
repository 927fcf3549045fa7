"""Answers of chat and completions in SGLang's shapes: whole bodies, and event streams.

Key sets and order are those of SGLang 0.5.23 (`serving_chat.py`, `serving_completions.py`,
`sse_utils.py`, `usage_processor.py`). The plain case of a stream joins three byte strings.
"""

from collections.abc import Sequence
from http import HTTPStatus

from frontier_mock.wire.generation import LogprobsPlan
from frontier_mock.wire.logprobs import candidates
from frontier_mock.wire.render import dumps, frontier_json
from frontier_mock.wire.sglang.calls import arguments_of, call_deltas, call_json, progress
from frontier_mock.wire.sglang.errors import SglangError, openai_stream_error_frame
from frontier_mock.wire.sglang.meta import Triples, cached_by_tier, ended_meta, weight_metadata
from frontier_mock.wire.sglang.request import (
    CHAT,
    Ended,
    Live,
    SglangRequest,
    SglangSequence,
    finish_reason,
    in_order,
)
from frontier_mock.wire.sse import DONE
from frontier_mock.wire.text import FixedText
from frontier_mock.wire.tokenizer import Json

_PLAIN = LogprobsPlan()
_CHAT_TAIL = b'"},"logprobs":null,"finish_reason":null,"matched_stop":null}]}\n\n'
_COMPLETION_TAIL = b'","logprobs":null,"finish_reason":null,"matched_stop":null}],"usage":null}\n\n'


def render_openai(request: SglangRequest, endings: Sequence[Ended], created_s: int) -> bytes:
    """The body of a whole answer; `created_s` is unix time."""
    ordered = in_order(endings)
    chat = request.kind == CHAT
    choice = _chat_choice if chat else _completion_choice
    choices = ",".join(choice(request, ended) for ended in ordered)
    kind = "chat.completion" if chat else "text_completion"
    frontier = ""
    if request.wishes.frontier:
        frontier = f',"frontier":{frontier_json([ended.outcome for ended in ordered])}'
    sglext = _sglext(request, ordered)
    return (
        f'{{"id":{dumps(request.sequences[0].rid)},"object":"{kind}","created":{created_s},'
        f'"model":{dumps(request.model)},"choices":[{choices}],'
        f'"usage":{dumps(_usage(request, ordered))},'
        f'"metadata":{weight_metadata(ordered[0])}'
        f"{f',{chr(34)}sglext{chr(34)}:{dumps(sglext)}' if sglext else ''}{frontier}}}"
    ).encode("utf-8", "surrogatepass")


def _usage(request: SglangRequest, endings: Sequence[Ended]) -> dict[str, Json]:
    """`usage` over all choices; a prompt with n of them counts once."""
    firsts = endings[:: request.n]
    prompt = sum(request.sequences[ended.index].prompt_tokens for ended in firsts)
    completion = sum(request.sequences[ended.index].shown(ended.output_tokens) for ended in endings)
    details: Json = None
    if request.cache_report:
        details = {"cached_tokens": sum(ended.cached_tokens for ended in firsts)}
    return _usage_of(prompt, completion, details)


def _usage_of(prompt: int, completion: int, details: Json = None) -> dict[str, Json]:
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
        "prompt_tokens_details": details,
        "reasoning_tokens": 0,
        "completion_tokens_details": None,
    }


def _sglext(request: SglangRequest, endings: Sequence[Ended]) -> dict[str, Json]:
    """SGLang's own additions, which belong to the answer as a whole."""
    wishes = request.wishes
    found: dict[str, Json] = {}
    if wishes.return_cached_tokens_details and endings[0].cached_tokens:
        found["cached_tokens_details"] = cached_by_tier(endings[0])
    if wishes.return_input_ids_in_sglext:
        found["input_ids"] = _prompt_ids(request, request.sequences[0])
    if wishes.return_output_ids_in_sglext:
        found["output_ids"] = [_output_ids(request, ended) for ended in endings]
    return found


def _prompt_ids(request: SglangRequest, sequence: SglangSequence) -> list[Json]:
    kept = request.prompt_of(sequence).ids
    assert kept is not None
    return [*kept.tolist()]


def _output_ids(request: SglangRequest, ended: Ended) -> list[Json]:
    sequence = request.sequences[ended.index]
    return [*sequence.plan.text.ids(0, sequence.shown(ended.output_tokens))]


def _chat_choice(request: SglangRequest, ended: Ended) -> str:
    sequence = request.sequences[ended.index]
    shown = sequence.shown(ended.output_tokens)
    text = sequence.plan.text.piece(0, shown, final=True)
    finish = finish_reason(sequence, ended)
    wishes = request.wishes
    logprobs = dumps(_chat_logprobs(request, sequence, 0, shown)) if sequence.logprobs else "null"
    more = ""
    if wishes.return_prompt_token_ids or wishes.return_token_ids:
        more += f',"prompt_token_ids":{dumps(_prompt_ids(request, sequence))}'
    if wishes.return_token_ids:
        more += f',"response_token_ids":{dumps(_output_ids(request, ended))}'
    if wishes.return_meta_info:
        more += f',"meta_info":{_meta(request, sequence, ended, shown)}'
    calls = ""
    arguments = arguments_of(sequence.plan, text)
    if sequence.plan.call is not None and arguments is not None:
        calls = f',"tool_calls":[{dumps(call_json(sequence.plan.call, arguments))}]'
        text = ""
        if finish["type"] == "stop":
            finish = {"type": "tool_calls"}
    return (
        f'{{"index":{ended.index},"message":{{"role":"assistant","content":{dumps(text)},'
        f'"reasoning_content":null{calls}}},"logprobs":{logprobs},'
        f'"finish_reason":{dumps(finish["type"])},'
        f'"matched_stop":{dumps(finish.get("matched"))}{more}}}'
    )


def _meta(request: SglangRequest, sequence: SglangSequence, ended: Ended, shown: int) -> str:
    triples = ""
    if sequence.logprobs is not None:
        lists = Triples(request, sequence)
        lists.grow(shown)
        triples = lists.fields(0)
    return ended_meta(request, sequence, ended, triples)


def _completion_choice(request: SglangRequest, ended: Ended) -> str:
    sequence = request.sequences[ended.index]
    shown = sequence.shown(ended.output_tokens)
    text = sequence.plan.text.piece(0, shown, final=True)
    wishes = request.wishes
    if wishes.echo:
        text = (request.prompt_of(sequence).text or "") + text
    finish = finish_reason(sequence, ended)
    logprobs = "null"
    if sequence.logprobs is not None:
        logprobs = dumps(_completion_logprobs(request, sequence, 0, shown, with_prompt=True))
    more = ""
    if wishes.return_token_ids:
        more = (
            f',"token_ids":{dumps(_output_ids(request, ended))}'
            f',"prompt_token_ids":{dumps(_prompt_ids(request, sequence))}'
        )
    return (
        f'{{"index":{ended.index},"text":{dumps(text)},"logprobs":{logprobs},'
        f'"finish_reason":{dumps(finish["type"])},'
        f'"matched_stop":{dumps(finish.get("matched"))}{more}}}'
    )


def _chat_logprobs(request: SglangRequest, sequence: SglangSequence, first: int, last: int) -> Json:
    """`logprobs` of a chat choice for output tokens `first` to `last`."""
    wish = sequence.logprobs
    assert wish is not None
    spell = request.tokenizer.token_text
    content: list[Json] = []
    for i, token_id in enumerate(sequence.plan.text.ids(first, last)):
        position = sequence.prompt_tokens + first + i
        found = candidates(token_id, position, _PLAIN, wish.top, sequence.plan.text.ring)
        shown = found[: wish.top]
        top: list[Json] = [
            {"token": spell(c.token_id), "bytes": _bytes(spell(c.token_id)), "logprob": c.logprob}
            for c in shown
        ]
        text = spell(token_id)
        content.append(
            {
                "token": text,
                "bytes": _bytes(text),
                "logprob": found[0].logprob,
                "top_logprobs": top,
            }
        )
    return {"content": content}


def _bytes(text: str) -> list[Json]:
    return [*text.encode("utf-8", "replace")]


def _completion_logprobs(
    request: SglangRequest,
    sequence: SglangSequence,
    first: int,
    last: int,
    *,
    with_prompt: bool,
) -> Json:
    """The four lists of a completion choice; offsets are not supported by SGLang and say -1."""
    wish = sequence.logprobs
    assert wish is not None
    ring = sequence.plan.text.ring
    spell = request.tokenizer.token_text
    ids = sequence.plan.text.ids(first, last)
    position = sequence.prompt_tokens + first
    blanks = 0
    if with_prompt and wish.start >= 0:
        kept = request.prompt_of(sequence).ids
        assert kept is not None
        ids = [*kept.tolist(), *ids]
        position, blanks = 0, 1
    logprobs: list[Json] = []
    tops: list[Json] = []
    for i, token_id in enumerate(ids):
        found = candidates(token_id, position + i, _PLAIN, wish.top, ring)
        logprobs.append(None if i < blanks else found[0].logprob)
        if wish.top > 0:
            rows: Json = {spell(c.token_id): c.logprob for c in found[: wish.top]}
            tops.append(None if i < blanks else rows)
    return {
        "text_offset": [-1] * len(ids),
        "token_logprobs": logprobs,
        "tokens": [spell(token_id) for token_id in ids],
        "top_logprobs": tops,
    }


class OpenAiStream:
    """Writes the chunks of one streamed answer. Calls follow each choice's own order."""

    __slots__ = (
        "_chat",
        "_created_s",
        "_finished",
        "_heads",
        "_id",
        "_opened",
        "_plain",
        "_request",
    )

    def __init__(self, request: SglangRequest, created_s: int) -> None:
        """`created_s` is the unix time every chunk carries."""
        self._request = request
        self._created_s = created_s
        self._chat = request.kind == CHAT
        sequences = request.sequences
        self._heads = [self._plain_head(i, sequence) for i, sequence in enumerate(sequences)]
        wishes = request.wishes
        self._plain = not (
            wishes.continuous_usage
            or wishes.return_token_ids
            or any(sequence.logprobs for sequence in sequences)
            or any(isinstance(sequence.plan.text, FixedText) for sequence in sequences)
        )
        self._opened = [False] * len(sequences)
        self._finished: list[Ended] = []
        self._id = sequences[0].rid

    def _plain_head(self, index: int, sequence: SglangSequence) -> bytes:
        field = '"delta":{"reasoning_content":null,"content":"' if self._chat else '"text":"'
        return f'{self._chunk_head(sequence.rid)}{{"index":{index},{field}'.encode(
            "utf-8", "surrogatepass"
        )

    def _chunk_head(self, rid: str) -> str:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return (
            f'data: {{"id":{dumps(rid)},"object":"{kind}","created":{self._created_s},'
            f'"model":{dumps(self._request.model)},"choices":['
        )

    def head(self) -> bytes:
        """Nothing before there is output."""
        return b""

    def delta(self, index: int, first: int, last: int, live: Live) -> bytes:
        """A chunk with output tokens `first` to `last` (exclusive) of a choice, more to follow."""
        self._id = self._request.sequences[index].rid
        if self._opened[index] and self._plain:
            text = self._request.sequences[index].plan.text
            spoken = text.piece(first, last)
            # The ring's text needs no escapes. A chunk without any is sent by completions alone.
            if spoken or not self._chat:
                return (
                    self._heads[index]
                    + spoken.encode()
                    + (_CHAT_TAIL if self._chat else _COMPLETION_TAIL)
                )
            return b""
        return self._step(index, first, last, live.cached_tokens, None)

    def finish(self, index: int, first: int, ended: Ended) -> bytes:
        """The last text of a choice; chat says why it ended only when all choices have."""
        sequence = self._request.sequences[index]
        self._id = sequence.rid
        self._finished.append(ended)
        last = sequence.shown(ended.output_tokens)
        return self._step(index, min(first, last), last, ended.cached_tokens, ended)

    def tail(self, endings: Sequence[Ended]) -> bytes:
        """What follows the last choice: reasons (chat), additions, usage, and the end."""
        request = self._request
        frames: list[str] = []
        ordered = in_order(endings)
        if self._chat:
            # They are in the order in which the choices ended, and carry the last one's id.
            frames += [self._reason(ended) for ended in self._finished]
        frames += self._sglext_frames(ordered)
        if request.wishes.include_usage:
            usage = _usage(request, ordered)
            if not self._chat:
                usage = {name: value for name, value in usage.items() if value is not None}
            frontier = ""
            if request.wishes.frontier:
                frontier = f',"frontier":{frontier_json([ended.outcome for ended in ordered])}'
            frames.append(f'{self._chunk_head(self._id)}],"usage":{dumps(usage)}{frontier}}}\n\n')
        return "".join(frames).encode("utf-8", "surrogatepass") + DONE

    def error(self, error: SglangError) -> bytes:
        """An error and the end of the stream."""
        name = HTTPStatus(error.status).name
        return openai_stream_error_frame(error.message, name, error.status) + DONE

    def _reason(self, ended: Ended) -> str:
        sequence = self._request.sequences[ended.index]
        finish = finish_reason(sequence, ended)
        if sequence.plan.call is not None and finish["type"] == "stop":
            finish["type"] = "tool_calls"
        return (
            f'{self._chunk_head(self._id)}{{"index":{ended.index},'
            f'"delta":{{"reasoning_content":null}},"logprobs":null,'
            f'"finish_reason":{dumps(finish["type"])},'
            f'"matched_stop":{dumps(finish.get("matched"))}}}]}}\n\n'
        )

    def _sglext_frames(self, endings: Sequence[Ended]) -> list[str]:
        request = self._request
        found = _sglext(request, endings)
        if not found:
            return []
        usage = ',"usage":null'
        if not request.wishes.ids_framed:
            return [f'{self._chunk_head(self._id)}]{usage},"sglext":{dumps(found)}}}\n\n']
        named: dict[str, Json] = {
            name: found.pop(name) for name in ("input_ids", "output_ids") if name in found
        }
        frames = []
        for part, event in ((found, ""), (named, "event: sglext_ids\n")):
            if part:
                chunk = f'{self._chunk_head(self._id)}]{usage},"sglext":{dumps(part)}}}\n\n'
                frames.append(event + chunk)
        return frames

    def _step(self, index: int, first: int, last: int, cached: int, ended: Ended | None) -> bytes:
        text = (self._chat_step if self._chat else self._completion_step)(
            index, first, last, cached, ended
        )
        return text.encode("utf-8", "surrogatepass")

    def _chat_step(
        self, index: int, first: int, last: int, cached: int, ended: Ended | None
    ) -> str:
        request = self._request
        sequence = request.sequences[index]
        head = self._chunk_head(sequence.rid)
        opening = ""
        if not self._opened[index]:
            self._opened[index] = True
            opening = (
                f'{head}{{"index":{index},"delta":{{"reasoning_content":null,"role":"assistant",'
                '"content":""},"logprobs":null,"finish_reason":null,"matched_stop":null}]}\n\n'
            )
        if sequence.plan.call is not None:
            usage = self._usage_field(sequence, last, cached)
            deltas = call_deltas(sequence.plan.call, progress(sequence.plan, first, last))
            return opening + "".join(
                f'{head}{{"index":{index},"delta":{{"role":null,"content":null,'
                f'"reasoning_content":null,"tool_calls":[{dumps(delta)}]}},"logprobs":null,'
                f'"finish_reason":null,"matched_stop":null}}]{usage}}}\n\n'
                for delta in deltas
            )
        spoken = sequence.plan.text.piece(first, last, final=ended is not None)
        logprobs = "null"
        if sequence.logprobs is not None and last > first:
            logprobs = dumps(_chat_logprobs(request, sequence, first, last))
        usage = self._usage_field(sequence, last, cached)
        if not spoken and logprobs == "null" and not usage:
            return opening
        delta = f'"reasoning_content":null,"content":{dumps(spoken)}'
        if not spoken:
            delta = '"reasoning_content":null'
        return (
            f'{opening}{head}{{"index":{index},"delta":{{{delta}}},"logprobs":{logprobs},'
            f'"finish_reason":null,"matched_stop":null}}]{usage}}}\n\n'
        )

    def _usage_field(self, sequence: SglangSequence, completion: int, cached: int) -> str:
        request = self._request
        if not request.wishes.continuous_usage:
            return ""
        details: Json = {"cached_tokens": cached} if request.cache_report else None
        return f',"usage":{dumps(_usage_of(sequence.prompt_tokens, completion, details))}'

    def _completion_step(
        self, index: int, first: int, last: int, cached: int, ended: Ended | None
    ) -> str:
        request = self._request
        sequence = request.sequences[index]
        wishes = request.wishes
        opening = not self._opened[index]
        self._opened[index] = True
        spoken = sequence.plan.text.piece(first, last, final=ended is not None)
        if opening and wishes.echo:
            spoken = (request.prompt_of(sequence).text or "") + spoken
        logprobs = "null"
        with_prompt = opening and wishes.echo
        if sequence.logprobs is not None and (last > first or with_prompt):
            figures = _completion_logprobs(request, sequence, first, last, with_prompt=with_prompt)
            logprobs = dumps(figures)
        finish = None if ended is None else finish_reason(sequence, ended)
        more = ""
        if wishes.return_token_ids:
            ids: list[Json] = [*sequence.plan.text.ids(first, last)]
            more = f',"token_ids":{dumps(ids)}'
            if opening:
                more += f',"prompt_token_ids":{dumps(_prompt_ids(request, sequence))}'
        usage = '"usage":null'
        if wishes.continuous_usage:
            usage = f'"usage":{dumps(_usage_of(sequence.prompt_tokens, last))}'
        kind = None if finish is None else finish["type"]
        matched = None if finish is None else finish.get("matched")
        return (
            f'{self._chunk_head(sequence.rid)}{{"index":{index},"text":{dumps(spoken)},'
            f'"logprobs":{logprobs},"finish_reason":{dumps(kind)},'
            f'"matched_stop":{dumps(matched)}{more}}}],{usage}}}\n\n'
        )
