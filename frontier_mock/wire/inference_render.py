"""What /inference/v1/generate answers: bodies and chunks of token ids, with every key in its order.

Shapes are those of `scale_out/token_in_token_out/protocol.py` in vLLM 0.33.
"""

import json
from collections.abc import Sequence

from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.generation import Generation, LogprobsPlan, Outcome, SequencePlan
from frontier_mock.wire.logprobs import candidates, prompt_logprobs, token_name
from frontier_mock.wire.render import (
    chat_message,
    dumps,
    frontier_json,
    handed_over,
    prompt_ids,
    usage_json,
    weight_spans,
)
from frontier_mock.wire.request_metrics import last_metrics, whole_metrics
from frontier_mock.wire.tokenizer import Json

_DONE = b"data: [DONE]\n\n"


def render_inference(generation: Generation, outcomes: Sequence[Outcome], created_s: int) -> bytes:
    """The body of a response that is not streamed; nulls are kept."""
    ordered = sorted(outcomes, key=lambda outcome: outcome.index)
    choices = ",".join(_whole_choice(generation, outcome) for outcome in ordered)
    plan = generation.sequences[0]
    asked = generation.logprobs
    figures = "null"
    if asked is not None and asked.prompt is not None:
        ids = prompt_ids(generation, plan)
        figures = dumps(prompt_logprobs(ids, asked, plan.text.ring, generation.tokenizer))
    ids_json = dumps([*prompt_ids(generation, plan)]) if generation.return_token_ids else "null"
    frontier = f',"frontier":{frontier_json(ordered)}' if generation.frontier else ""
    text = (
        f'{{"request_id":{dumps(generation.id)},"model":{dumps(generation.model)},'
        f'"created":{created_s},"usage":{usage_json(generation, ordered)},'
        f'"prompt_logprobs":{figures},"prompt_token_id_logprobs":null,'
        f'"prompt_token_ids":{ids_json},"mm_placeholders":null,'
        f'"metrics":{whole_metrics(ordered)},'
        f'"kv_transfer_params":{handed_over(generation, ordered)},"ec_transfer_params":null,'
        f'"output_mode":"{generation.output_mode}","choices":[{choices}]{frontier}}}'
    )
    return text.encode()


class InferenceStream:
    """Writes the chunks of one streamed generation."""

    __slots__ = ("_generation", "_head", "_seen")

    def __init__(self, generation: Generation, created_s: int) -> None:
        """Chunks carry no time; `created_s` is what every renderer is told."""
        self._generation = generation
        self._head = f'data: {{"request_id":{dumps(generation.id)},"usage":'
        self._seen = not generation.return_token_ids

    def head(self) -> bytes:
        """Nothing before there is output."""
        return b""

    def delta(self, index: int, first: int, last: int) -> bytes:
        """A chunk with output tokens `first` to `last` (exclusive) of a choice, more to follow."""
        return self._chunk(index, first, last, None)

    def finish(self, index: int, first: int, outcome: Outcome) -> bytes:
        """The last chunk of a choice; output tokens from `first` on ride along."""
        return self._chunk(index, first, outcome.output_tokens, outcome)

    def tail(self, outcomes: Sequence[Outcome]) -> bytes:
        """The usage chunk if the client asked for one, and the end of the stream."""
        generation = self._generation
        if not generation.include_usage:
            return _DONE
        ordered = sorted(outcomes, key=lambda outcome: outcome.index)
        usage = _usage(generation, sum(outcome.output_tokens for outcome in ordered))
        if generation.prompt_tokens_details and ordered:
            usage += f',"prompt_tokens_details":{{"cached_tokens":{ordered[0].cached_tokens}}}'
        frontier = f',"frontier":{frontier_json(ordered)}' if generation.frontier else ""
        mode = generation.output_mode
        metrics = last_metrics(ordered)
        text = (
            f'{self._head}{{{usage}}},"output_mode":"{mode}","choices":[]{metrics}{frontier}}}\n\n'
        )
        return text.encode() + _DONE

    def error(self, error: ApiError) -> bytes:
        """An error in mid-stream, and the end of the stream."""
        return f"data: {json.dumps(error.payload())}\n\n".encode() + _DONE

    def _chunk(self, index: int, first: int, last: int, outcome: Outcome | None) -> bytes:
        generation = self._generation
        usage, ids = "null", ""
        if generation.continuous_usage:
            nulls = ',"prompt_tokens_details":null,"completion_tokens_details":null'
            usage = f"{{{_usage(generation, last)}{nulls}}}"
        if not self._seen:
            self._seen = True
            ids = f',"prompt_token_ids":{dumps([*prompt_ids(generation, generation.sequences[0])])}'
        choice = _choice(generation, index, first, last, outcome)
        text = (
            f'{self._head}{usage}{ids},"output_mode":"{generation.output_mode}",'
            f'"choices":[{choice}]}}\n\n'
        )
        return text.encode()


def _usage(generation: Generation, completion: int) -> str:
    prompt = generation.prompt_tokens
    return (
        f'"prompt_tokens":{prompt},"total_tokens":{prompt + completion},'
        f'"completion_tokens":{completion}'
    )


def _whole_choice(generation: Generation, outcome: Outcome) -> str:
    return _choice(generation, outcome.index, 0, outcome.output_tokens, outcome)


def _choice(
    generation: Generation, index: int, first: int, last: int, outcome: Outcome | None
) -> str:
    plan = generation.sequences[index]
    ids = [*plan.text.ids(first, last)]
    reason = None if outcome is None else outcome.finish_reason
    stop = None if outcome is None else outcome.stop_reason
    versions = "null" if outcome is None else weight_spans(outcome)
    own = ""
    mode = generation.output_mode
    if mode == "text":
        own = f'"text":{dumps(plan.text.piece(first, last, outcome is not None))},'
    elif mode == "derender":
        message = chat_message("assistant", plan.text.piece(first, last, outcome is not None))
        own = f'"message":{message},'
    return (
        f'{{"index":{index},"finish_reason":{dumps(reason)},"stop_reason":{dumps(stop)},'
        f'"token_ids":{dumps([*ids])},"routed_experts":null,"sampling_mask":null,'
        f'"weight_versions":{versions},{own}"logprobs":{_logprobs(generation, plan, ids, first)}}}'
    )


def _logprobs(generation: Generation, plan: SequencePlan, ids: Sequence[int], first: int) -> str:
    """One entry per token: ids and ranks in tokens mode, text and bytes otherwise."""
    asked = generation.logprobs
    if asked is None or asked.top is None:
        return "null"
    position = generation.prompts[plan.prompt_index].num_tokens + first
    write = _id_entry if generation.output_mode == "tokens" else _text_entry
    content: list[Json] = []
    for i, token_id in enumerate(ids):
        found = candidates(token_id, position + i, asked, asked.top, plan.text.ring)
        tops = [write(c.token_id, c.logprob, c.rank, asked, generation) for c in found]
        head = write(token_id, found[0].logprob, found[0].rank, asked, generation)
        content.append({**head, "top_logprobs": [*tops]})
    return dumps({"content": content})


def _id_entry(
    token_id: int, logprob: float, rank: int, plan: LogprobsPlan, generation: Generation
) -> dict[str, Json]:
    return {"token_id": token_id, "logprob": logprob, "rank": rank}


def _text_entry(
    token_id: int, logprob: float, rank: int, plan: LogprobsPlan, generation: Generation
) -> dict[str, Json]:
    name = token_name(token_id, plan, generation.tokenizer)
    data = None if plan.as_token_ids else [*name.encode(errors="replace")]
    return {"token": name, "logprob": logprob, "bytes": data}
