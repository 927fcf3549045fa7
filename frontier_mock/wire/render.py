"""Response bodies: vLLM's non-streamed JSON, written by template with every key in its order."""

import json
from collections.abc import Sequence

from frontier_mock.wire.generation import CHAT, Generation, LogprobsPlan, Outcome, SequencePlan
from frontier_mock.wire.logprobs import CompletionLogprobs, chat_logprobs, prompt_logprobs
from frontier_mock.wire.request_metrics import whole_metrics
from frontier_mock.wire.tokenizer import Json

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def dumps(value: Json) -> str:
    """Compact JSON with non-ASCII characters as they are, as starlette and pydantic write it."""
    return "null" if value is None else _encode(value)


def render_response(generation: Generation, outcomes: Sequence[Outcome], created_s: int) -> bytes:
    """The body of a non-streamed response; `created_s` is unix time. Outcomes in any order."""
    ordered = sorted(outcomes, key=lambda outcome: outcome.index)
    chat = generation.kind == CHAT
    choice = _chat_choice if chat else _completion_choice
    choices = ",".join(choice(generation, outcome) for outcome in ordered)
    kind = "chat.completion" if chat else "text_completion"
    head = (
        f'{{"id":{dumps(generation.id)},"object":"{kind}","created":{created_s},'
        f'"model":{dumps(generation.model)},"choices":[{choices}],"service_tier":null,'
        f'"system_fingerprint":{dumps(generation.system_fingerprint)},'
        f'"usage":{usage_json(generation, ordered)},'
    )
    own = _chat_extras(generation) if chat else ""
    frontier = f',"frontier":{frontier_json(ordered)}' if generation.frontier else ""
    tail = (
        f'"kv_transfer_params":{handed_over(generation, ordered)},'
        f'"ec_transfer_params":{_encoded(generation)},'
        f'"metrics":{whole_metrics(ordered)}{frontier}}}'
    )
    return (head + own + tail).encode()


def handed_over(generation: Generation, ordered: Sequence[Outcome]) -> str:
    """`kv_transfer_params`: what a prefill server says of the prompt it has computed."""
    if generation.handed_over is None:
        return "null"
    params = generation.handed_over.params(ordered[0])
    return "null" if params is None else json.dumps(params, separators=(",", ":"))


def _encoded(generation: Generation) -> str:
    """`ec_transfer_params`: what a producer of embeddings says of the images it has encoded."""
    told = generation.encoded
    return "null" if told is None or not told.params else dumps(told.params)


def usage_json(generation: Generation, outcomes: Sequence[Outcome]) -> str:
    """`usage` of a non-streamed body, nulls included."""
    completion = sum(outcome.output_tokens for outcome in outcomes)
    details = "null"
    if generation.prompt_tokens_details and outcomes:
        first, last = outcomes[0], outcomes[-1]
        chat = generation.kind == CHAT
        cached = first.cached_tokens if chat else last.cached_tokens
        created = str(max(0, generation.prompt_tokens - cached)) if chat else "null"
        details = (
            f'{{"cached_tokens":{cached},"created_cache_tokens":{created},'
            '"multimodal_tokens":null}'
        )
    prompt = generation.prompt_tokens
    return (
        f'{{"prompt_tokens":{prompt},"total_tokens":{prompt + completion},'
        f'"completion_tokens":{completion},"prompt_tokens_details":{details},'
        '"completion_tokens_details":null}'
    )


def frontier_json(outcomes: Sequence[Outcome]) -> str:
    """Virtual times of the request as a whole, in nanoseconds; null for what never happened."""
    arrivals = [o.arrival_ns for o in outcomes if o.arrival_ns >= 0]
    firsts = [o.first_token_ns for o in outcomes if o.first_token_ns >= 0]
    finishes = [o.finish_ns for o in outcomes if o.finish_ns >= 0]
    return dumps(
        {
            "arrival_ns": min(arrivals, default=None),
            "first_token_ns": min(firsts, default=None),
            "finish_ns": max(finishes, default=None),
            "output_tokens": sum(o.output_tokens for o in outcomes),
            "cached_tokens": sum(o.cached_tokens for o in outcomes),
        }
    )


def weight_spans(outcome: Outcome) -> str:
    """`weight_versions` of a choice: half-open spans of output tokens, null if not asked for."""
    spans = outcome.weight_versions
    return "null" if spans is None else dumps([span._asdict() for span in spans])


def chat_message(role: str, text: str, calls: Json = None) -> str:
    """`message` of a chat choice, with the `calls` it makes if it makes any."""
    called = "" if calls is None else f'"tool_calls":{dumps(calls)},'
    return (
        f'{{"role":{dumps(role)},"content":{dumps(text)},"refusal":null,"annotations":null,'
        f'"audio":null,"function_call":null,{called}"reasoning":null}}'
    )


def chat_finish_reason(plan: SequencePlan, outcome: Outcome) -> str:
    """Of a chat choice: a call that the model chose itself is a reason of its own."""
    called = plan.call is not None and plan.call.listed
    return "tool_calls" if called and outcome.finish_reason == "stop" else outcome.finish_reason


def _message(generation: Generation, plan: SequencePlan, text: str) -> str:
    call = plan.call
    if call is None:
        return chat_message(generation.role, text)
    arguments = call.arguments(text)
    function: Json = {"name": call.name, "arguments": arguments}
    calls: list[Json] = [{"id": call.id, "type": "function", "function": function}]
    # A list that was cut short is not parsed, and so calls nobody.
    whole = not call.listed or text.endswith("}]")
    return chat_message(generation.role, "", calls if whole else [])


def prompt_ids(generation: Generation, plan: SequencePlan) -> list[int]:
    """Token ids of the choice's prompt; they must have been kept."""
    ids = generation.prompts[plan.prompt_index].ids
    assert ids is not None
    kept: list[int] = ids.tolist()
    return kept


def _output_ids(generation: Generation, plan: SequencePlan, outcome: Outcome) -> str:
    if not generation.return_token_ids:
        return "null"
    return dumps([*plan.text.ids(0, outcome.output_tokens)])


def _chat_choice(generation: Generation, outcome: Outcome) -> str:
    plan = generation.sequences[outcome.index]
    text = generation.echo_text + plan.text.piece(0, outcome.output_tokens, final=True)
    logprobs = "null"
    asked = generation.logprobs
    if asked is not None and asked.top is not None:
        ids = plan.text.ids(0, outcome.output_tokens)
        ring = plan.text.ring
        position = generation.prompts[plan.prompt_index].num_tokens
        logprobs = dumps(chat_logprobs(ids, position, asked, ring, generation.tokenizer))
    return (
        f'{{"index":{outcome.index},"message":{_message(generation, plan, text)},'
        f'"logprobs":{logprobs},'
        f'"finish_reason":"{chat_finish_reason(plan, outcome)}",'
        f'"stop_reason":{dumps(outcome.stop_reason)},'
        f'"token_ids":{_output_ids(generation, plan, outcome)},"routed_experts":null,'
        f'"weight_versions":{weight_spans(outcome)}}}'
    )


def _chat_extras(generation: Generation) -> str:
    plan = generation.sequences[0]
    asked = generation.logprobs
    figures = "null"
    if asked is not None and asked.prompt is not None:
        ids = prompt_ids(generation, plan)
        figures = dumps(prompt_logprobs(ids, asked, plan.text.ring, generation.tokenizer))
    ids_json = dumps([*prompt_ids(generation, plan)]) if generation.return_token_ids else "null"
    text = dumps(generation.prompts[0].text) if generation.return_prompt_text else "null"
    return f'"prompt_logprobs":{figures},"prompt_token_ids":{ids_json},"prompt_text":{text},'


def completion_logprobs(
    generation: Generation, plan: SequencePlan, asked: LogprobsPlan
) -> CompletionLogprobs:
    """What builds the logprobs of a completion choice, from its prompt on if that is echoed."""
    position = 0 if generation.echo else generation.prompts[plan.prompt_index].num_tokens
    return CompletionLogprobs(asked, plan.text.ring, generation.tokenizer, position)


def _completion_choice(generation: Generation, outcome: Outcome) -> str:
    plan = generation.sequences[outcome.index]
    shown = 0 if generation.prompt_only else outcome.output_tokens
    text = plan.text.piece(0, shown, final=not generation.prompt_only)
    if generation.echo:
        text = (generation.prompts[plan.prompt_index].text or "") + text
    asked = generation.logprobs
    logprobs = figures = "null"
    if asked is not None and asked.top is not None:
        echoed = prompt_ids(generation, plan) if generation.echo else []
        builder = completion_logprobs(generation, plan, asked)
        logprobs = dumps(builder.extend(echoed, plan.text.ids(0, shown)))
    if asked is not None and asked.prompt is not None:
        ids = prompt_ids(generation, plan)
        figures = dumps(prompt_logprobs(ids, asked, plan.text.ring, generation.tokenizer))
    ids_json = dumps([*prompt_ids(generation, plan)]) if generation.return_token_ids else "null"
    return (
        f'{{"index":{outcome.index},"text":{dumps(text)},"logprobs":{logprobs},'
        f'"finish_reason":"{outcome.finish_reason}","stop_reason":{dumps(outcome.stop_reason)},'
        f'"token_ids":{_output_ids(generation, plan, outcome)},"prompt_logprobs":{figures},'
        f'"prompt_token_ids":{ids_json},"routed_experts":null,'
        f'"weight_versions":{weight_spans(outcome)}}}'
    )
