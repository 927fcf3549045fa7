"""Server-sent events: the chunks of a streamed response as bytes, by template.

Key sets and order are what pydantic writes for vLLM 0.33 with `exclude_unset` (spec: vllm.md §2.7
and §2.8). The plain case, which is nearly every chunk, joins three byte strings.
"""

import json
from collections.abc import Sequence

from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.generation import (
    CHAT,
    COMPLETION,
    Generation,
    Outcome,
    SequencePlan,
    ToolCall,
)
from frontier_mock.wire.logprobs import CompletionLogprobs, chat_logprobs
from frontier_mock.wire.render import (
    chat_finish_reason,
    completion_logprobs,
    dumps,
    frontier_json,
    prompt_ids,
    weight_spans,
)
from frontier_mock.wire.request_metrics import last_metrics

EVENT_STREAM = "text/event-stream; charset=utf-8"
"""The media type of what this module writes."""

DONE = b"data: [DONE]\n\n"
"""The frame that ends every stream, after an error too."""

KEEP_ALIVE = b": keep-alive\n\n"
"""The comment frame of `--sse-keep-alive-interval`."""

_PLAIN_CHAT_TAIL = (
    b'"},"logprobs":null,"finish_reason":null,"token_ids":null}],"kv_transfer_params":null}\n\n'
)
_PLAIN_COMPLETION_TAIL = (
    b'","logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,'
    b'"token_ids":null,"weight_versions":null}],"kv_transfer_params":null}\n\n'
)


def error_frames(error: ApiError, kind: str) -> bytes:
    """The error as a frame of a `kind` stream, and the end of that stream."""
    # Completions serialise errors with json.dumps and its spaces, chat with pydantic.
    text = dumps(error.payload()) if kind == CHAT else json.dumps(error.payload())
    return f"data: {text}\n\n".encode() + DONE


def _call_delta(plan: SequencePlan, call: ToolCall, first: int, last: int) -> str:
    """What tokens `first` to `last` add to a call: its name first, then pieces of its arguments."""
    before = call.arguments(plan.text.piece(0, first))
    after = call.arguments(plan.text.piece(0, last))
    new = after[len(before) :]
    if not after:
        return "{}"
    if not before:
        head = f'"index":0,"id":{dumps(call.id)},"type":"function"'
        function = f'{{"name":{dumps(call.name)},"arguments":{dumps(new)}}}'
        return f'{{"tool_calls":[{{{head},"function":{function}}}]}}'
    return (
        f'{{"tool_calls":[{{"index":0,"function":{{"arguments":{dumps(new)}}}}}]}}' if new else "{}"
    )


class StreamRenderer:
    """Writes the chunks of one streamed generation. Calls must follow each choice's own order."""

    __slots__ = (
        "_completion_logprobs",
        "_generation",
        "_head",
        "_opened",
        "_plain",
        "_plain_heads",
        "_plain_tail",
        "_seen",
        "_texts",
    )

    def __init__(self, generation: Generation, created_s: int) -> None:
        """`created_s` is the unix time every chunk carries."""
        self._generation = generation
        chat = generation.kind == CHAT
        kind = "chat.completion.chunk" if chat else "text_completion"
        self._head = (
            f'data: {{"id":{dumps(generation.id)},"object":"{kind}","created":{created_s},'
            f'"model":{dumps(generation.model)},"choices":['
        )
        field = '"delta":{"content":"' if chat else '"text":"'
        self._texts = [plan.text for plan in generation.sequences]
        self._plain_heads = [
            f'{self._head}{{"index":{i},{field}'.encode() for i in range(len(self._texts))
        ]
        self._plain_tail = _PLAIN_CHAT_TAIL if chat else _PLAIN_COMPLETION_TAIL
        asked = generation.logprobs
        wants_logprobs = asked is not None and asked.top is not None
        self._plain = not (
            wants_logprobs or generation.return_token_ids or generation.continuous_usage
        )
        self._opened = False
        self._seen = [not (generation.echo or generation.return_token_ids)] * len(self._texts)
        self._completion_logprobs: list[CompletionLogprobs] = []
        if asked is not None and wants_logprobs and not chat:
            self._completion_logprobs = [
                completion_logprobs(generation, plan, asked) for plan in generation.sequences
            ]

    def head(self) -> bytes:
        """Nothing before there is output."""
        return b""

    def delta(self, index: int, first: int, last: int) -> bytes:
        """A chunk with output tokens `first` to `last` (exclusive) of a choice, more to follow."""
        text = self._texts[index]
        if self._opened and self._plain and self._seen[index] and last <= text.plain_tokens:
            ring = text.ring
            begin = (text.start + first) % ring.period
            end = begin + last - first
            if end - begin <= ring.period:
                offsets = ring.offsets
                return (
                    self._plain_heads[index]
                    + ring.data[offsets[begin] : offsets[end]]
                    + self._plain_tail
                )
        return self._opening() + self._chunk(index, first, last, None)

    def finish(self, index: int, first: int, outcome: Outcome) -> bytes:
        """The last chunk of a choice; output tokens from `first` on ride along."""
        return self._opening() + self._chunk(index, first, outcome.output_tokens, outcome)

    def tail(self, outcomes: Sequence[Outcome]) -> bytes:
        """The usage chunk if the client asked for one, and the end of the stream."""
        generation = self._generation
        if not generation.include_usage:
            return DONE
        ordered = sorted(outcomes, key=lambda outcome: outcome.index)
        usage = self._usage(sum(outcome.output_tokens for outcome in ordered), nulls=False)
        if generation.prompt_tokens_details and ordered:
            cached = ordered[0].cached_tokens
            created = max(0, generation.prompt_tokens - cached)
            extra = f',"created_cache_tokens":{created}' if generation.kind == CHAT else ""
            usage += f',"prompt_tokens_details":{{"cached_tokens":{cached}{extra}}}'
        fingerprint = ""
        if generation.system_fingerprint is not None:
            fingerprint = f',"system_fingerprint":{dumps(generation.system_fingerprint)}'
        frontier = f',"frontier":{frontier_json(ordered)}' if generation.frontier else ""
        metrics = last_metrics(ordered)
        text = f'{self._head}],"usage":{{{usage}}}{fingerprint}{metrics}{frontier}}}\n\n'
        return text.encode() + DONE

    def error(self, error: ApiError) -> bytes:
        """An error in mid-stream, and the end of the stream."""
        return error_frames(error, self._generation.kind)

    def _opening(self) -> bytes:
        """Role chunks of every choice, and what chat echoes; sent once, with the first token."""
        if self._opened:
            return b""
        self._opened = True
        generation = self._generation
        if generation.kind == COMPLETION:
            return b""
        usage = self._usage_field(0, 0)
        plan = generation.sequences[0]
        ids = dumps([*prompt_ids(generation, plan)]) if generation.return_token_ids else "null"
        text = dumps(generation.prompts[0].text) if generation.return_prompt_text else "null"
        frames = []
        for i in range(len(generation.sequences)):
            frames.append(
                f'{self._head}{{"index":{i},"delta":{{"role":{dumps(generation.role)},'
                f'"content":""}},"logprobs":null,"finish_reason":null}}]{usage},'
                f'"prompt_token_ids":{ids},"prompt_text":{text}}}\n\n'
            )
        if generation.echo_text:
            for i in range(len(generation.sequences)):
                frames.append(
                    f'{self._head}{{"index":{i},"delta":{{"content":'
                    f'{dumps(generation.echo_text)}}},"logprobs":null,"finish_reason":null}}]'
                    f"{usage}}}\n\n"
                )
        return "".join(frames).encode()

    def _chunk(self, index: int, first: int, last: int, outcome: Outcome | None) -> bytes:
        generation = self._generation
        chat = generation.kind == CHAT
        choice = (self._chat_choice if chat else self._completion_choice)(
            index, first, last, outcome
        )
        fingerprint = ""
        if (
            outcome is not None
            and not generation.include_usage
            and generation.system_fingerprint is not None
        ):
            fingerprint = f',"system_fingerprint":{dumps(generation.system_fingerprint)}'
        usage = self._usage_field(index, last)
        text = f'{self._head}{choice}]{usage}{fingerprint},"kv_transfer_params":null}}\n\n'
        return text.encode()

    def _chat_choice(self, index: int, first: int, last: int, outcome: Outcome | None) -> str:
        generation = self._generation
        text = self._texts[index]
        ending = outcome is not None
        plan = generation.sequences[index]
        if plan.call is not None:
            delta = _call_delta(plan, plan.call, first, last)
        else:
            content = dumps(text.piece(first, last, ending))
            delta = f'{{"content":{content}}}' if last or not ending else "{}"
        asked = generation.logprobs
        logprobs = "null"
        if asked is not None and asked.top is not None:
            ids = text.ids(first, last)
            position = generation.prompt_tokens + first
            logprobs = dumps(chat_logprobs(ids, position, asked, text.ring, generation.tokenizer))
        token_ids = dumps([*text.ids(first, last)]) if generation.return_token_ids else "null"
        if outcome is None:
            return (
                f'{{"index":{index},"delta":{delta},"logprobs":{logprobs},"finish_reason":null,'
                f'"token_ids":{token_ids}}}'
            )
        return (
            f'{{"index":{index},"delta":{delta},"logprobs":{logprobs},'
            f'"finish_reason":"{chat_finish_reason(plan, outcome)}",'
            f'"stop_reason":{dumps(outcome.stop_reason)},"token_ids":{token_ids},'
            f'"weight_versions":{weight_spans(outcome)}}}'
        )

    def _completion_choice(self, index: int, first: int, last: int, outcome: Outcome | None) -> str:
        generation = self._generation
        plan = generation.sequences[index]
        text = plan.text
        first_chunk = not self._seen[index]
        self._seen[index] = True
        shown = first if generation.prompt_only else last
        content = text.piece(first, shown, outcome is not None and not generation.prompt_only)
        echoed: list[int] = []
        if first_chunk and generation.echo:
            content = (generation.prompts[plan.prompt_index].text or "") + content
            echoed = prompt_ids(generation, plan)
        logprobs = "null"
        if self._completion_logprobs:
            builder = self._completion_logprobs[index]
            logprobs = dumps(builder.extend(echoed, text.ids(first, shown)))
        prompt = dumps([*prompt_ids(generation, plan)]) if first_chunk else "null"
        token_ids = dumps([*text.ids(first, last)]) if generation.return_token_ids else "null"
        finish_reason = None if outcome is None else outcome.finish_reason
        stop_reason = None if outcome is None else outcome.stop_reason
        versions = "null" if outcome is None else weight_spans(outcome)
        return (
            f'{{"index":{index},"text":{dumps(content)},"logprobs":{logprobs},'
            f'"finish_reason":{dumps(finish_reason)},"stop_reason":{dumps(stop_reason)},'
            f'"prompt_token_ids":{prompt},"token_ids":{token_ids},"weight_versions":{versions}}}'
        )

    def _usage_field(self, index: int, completion: int) -> str:
        """`usage` of a chunk that is not the last, if the client wants it in every one."""
        generation = self._generation
        if not generation.continuous_usage:
            return ""
        if generation.kind == CHAT:
            return f',"usage":{{{self._usage(completion, nulls=True)}}}'
        prompt = generation.prompts[generation.sequences[index].prompt_index].num_tokens
        return (
            f',"usage":{{"prompt_tokens":{prompt},"total_tokens":{prompt + completion},'
            f'"completion_tokens":{completion}}}'
        )

    def _usage(self, completion: int, nulls: bool) -> str:
        prompt = self._generation.prompt_tokens
        details = ',"completion_tokens_details":null' if nulls else ""
        return (
            f'"prompt_tokens":{prompt},"total_tokens":{prompt + completion},'
            f'"completion_tokens":{completion}{details}'
        )
