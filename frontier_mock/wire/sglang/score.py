"""POST /v1/score, and what a server without an embedding model answers on the routes for one.

Each item is a prompt of its own, of which only the next token's probabilities are wanted: a request
that generates nothing (SGLang 0.5.23 `tokenizer_manager_score_mixin.py`).
"""

import math
from collections.abc import Mapping, Sequence

from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.fields import (
    Check,
    Fields,
    boolean,
    check_fields,
    flag_field,
    float_field,
    number,
    string,
    text_field,
)
from frontier_mock.wire.generation import LogprobsPlan, PromptText
from frontier_mock.wire.logprobs import candidates
from frontier_mock.wire.plan import Headers, actor_of
from frontier_mock.wire.render import dumps
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.bodies import load_object
from frontier_mock.wire.sglang.errors import SglangError, openai_error, validation_error
from frontier_mock.wire.sglang.generate import read_ids
from frontier_mock.wire.sglang.openai_fields import anything
from frontier_mock.wire.sglang.plan import check_length, encode, plan_prompt
from frontier_mock.wire.sglang.request import (
    SCORE,
    Ended,
    Routing,
    Scoring,
    SglangRequest,
    SglangSequence,
    in_order,
)
from frontier_mock.wire.sglang.sampling import Sampling
from frontier_mock.wire.tokenizer import Json, TokenIds

_FIELDS: Mapping[str, Check] = {
    "query": anything,
    "items": anything,
    "label_token_ids": anything,
    "apply_softmax": boolean,
    "temperature": number,
    "return_token_logprobs": boolean,
    "item_first": boolean,
    "return_pooled_hidden_states": boolean,
    "model": string,
}

NO_EMBEDDINGS = (
    "This model does not appear to be an embedding model by default. Please add `--is-embedding` "
    "when launching the server or try another model."
)
"""What /v1/embeddings, /v1/classify, /v1/rerank, /encode and /classify say of any model here."""

_NOTHING = Sampling(max_new_tokens=0)


def parse_score(body: bytes, headers: Headers, served: ServedModel) -> SglangRequest:
    """The prompts to compute. Raises SglangError if the request is bad."""
    try:
        raw = load_object(body)
        fields = check_fields(raw, _FIELDS)
    except ApiError as error:
        raise validation_error(error) from None
    try:
        return _plan(raw, fields, served)
    except ValueError as error:
        raise openai_error(str(error)) from None


def _plan(raw: dict[str, Json], fields: Fields, served: ServedModel) -> SglangRequest:
    temperature = float_field(fields, "temperature", 1.0)
    softmax = flag_field(fields, "apply_softmax")
    if not math.isfinite(temperature) or temperature <= 0:
        raise ValueError("temperature must be finite and greater than zero")
    if temperature != 1.0 and not softmax:
        raise ValueError("temperature requires apply_softmax=True")
    if fields.get("label_token_ids") is None:
        raise ValueError("label_token_ids is required for generation (CausalLM) models.")
    if fields.get("items") is None:
        raise ValueError("items must be provided")
    if flag_field(fields, "return_pooled_hidden_states"):
        raise ValueError("return_pooled_hidden_states is not supported for CausalLM models.")
    items = fields["items"]
    texts: list[Json] = [items] if isinstance(items, str) else []
    if isinstance(items, list):
        texts = items
    if not texts:
        raise ValueError("items must be provided")
    labels = _labels(fields["label_token_ids"], len(texts), served)
    sequences: list[SglangSequence] = []
    prompts: list[PromptText] = []
    for i, item in enumerate(texts):
        ids = check_length(_prompt(fields, item, served), served)
        plans, cap = plan_prompt(ids, i, 1, _NOTHING, served)
        prompts.append(PromptText(len(ids), None, None))
        sequences.append(SglangSequence(served.new_id(), plans[0], cap, len(ids)))
    return SglangRequest(
        kind=SCORE,
        sequences=tuple(sequences),
        prompts=tuple(prompts),
        tokenizer=served.tokenizer,
        stream=False,
        stream_interval=1,
        single=len(texts) == 1,
        model=text_field(fields, "model") or "default",
        routing=Routing(actor=actor_of(raw.get("metadata"))),
        scoring=Scoring(labels, softmax, temperature, flag_field(fields, "return_token_logprobs")),
    )


def _labels(given: Json, count: int, served: ServedModel) -> tuple[tuple[int, ...], ...]:
    """Candidates of each item. Raises ValueError in SGLang's words."""
    if not isinstance(given, list) or not given:
        raise ValueError("label_token_ids must be a nonempty list")
    many: list[Json] = given if isinstance(given[0], list) else [given] * count
    if len(many) != count:
        raise ValueError("label_token_ids must have one list per item")
    found = []
    for labels in many:
        if not isinstance(labels, list) or not labels:
            raise ValueError("each item must have a nonempty candidate list")
        ids = [label for label in labels if type(label) is int and label >= 0]
        if len(ids) != len(labels):
            raise ValueError("label_token_ids must contain nonnegative integers")
        if len(set(ids)) != len(ids):
            raise ValueError("label_token_ids must not contain duplicate tokens")
        size = served.tokenizer.vocab_size
        for label in ids:
            if label >= size:
                raise ValueError(f"Token ID {label} is out of vocabulary (vocab size: {size})")
        found.append(tuple(ids))
    return tuple(found)


def _prompt(fields: Fields, item: Json, served: ServedModel) -> TokenIds:
    query = fields.get("query")
    first = flag_field(fields, "item_first")
    if isinstance(item, str):
        asked = query if isinstance(query, str) else ""
        ids = encode(item + asked if first else asked + item, served)
        if len(ids) == 0:
            raise ValueError("texts cannot be empty and tokenizer must be initialized")
        return ids
    before = query if isinstance(query, list) else []
    own = item if isinstance(item, list) else []
    return read_ids([*own, *before] if first else [*before, *own])


def render_score(request: SglangRequest, endings: Sequence[Ended], created_s: int) -> bytes:
    """The body of an answer; the figures are made up, as log-probabilities are."""
    scoring = request.scoring
    assert scoring is not None
    scores: list[Json] = []
    logprobs: list[Json] = []
    for ended in in_order(endings):
        sequence = request.sequences[ended.index]
        labels = scoring.labels[ended.index]
        ring = sequence.plan.text.ring
        (next_id,) = sequence.plan.text.ids(0, 1)
        plan = LogprobsPlan(token_ids=labels)
        found = candidates(next_id, sequence.prompt_tokens, plan, 0, ring)
        by_id = {one.token_id: one.logprob for one in found}
        figures = [by_id[label] for label in labels]
        logprobs.append([*figures])
        weights = [math.exp(figure / scoring.temperature) for figure in figures]
        total = sum(weights) if scoring.softmax else 1.0
        scores.append([weight / total for weight in weights])
    prompt = sum(sequence.prompt_tokens for sequence in request.sequences)
    body: Json = {
        "scores": scores,
        "pooled_hidden_states": None,
        "token_logprobs": logprobs if scoring.logprobs else None,
        "model": request.model,
        "usage": {
            "prompt_tokens": prompt,
            "total_tokens": prompt,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
            "reasoning_tokens": 0,
            "completion_tokens_details": None,
        },
        "object": "scoring",
    }
    return dumps(body).encode("utf-8", "surrogatepass")


def refuse_embeddings(body: bytes) -> SglangError:
    """The answer to whatever asks for embeddings: first that the body is none, then that."""
    try:
        load_object(body)
    except ApiError as error:
        return validation_error(error)
    return openai_error(NO_EMBEDDINGS)
