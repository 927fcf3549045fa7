"""POST /v1/completions: from bytes to a request, with SGLang 0.5.23's checks in its order."""

from dataclasses import replace

from frontier_mock.wire.errors import ApiError, Problem, schema_error
from frontier_mock.wire.fields import (
    Fields,
    check_fields,
    flag_field,
    int_field,
    optional_int_field,
    text_field,
)
from frontier_mock.wire.generation import PromptText
from frontier_mock.wire.plan import Headers
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.bodies import load_object
from frontier_mock.wire.sglang.errors import openai_error, validation_error
from frontier_mock.wire.sglang.generate import (
    Prompts,
    make_rids,
    namespace_of,
    read_bootstrap,
    read_dp_rank,
    read_ids,
)
from frontier_mock.wire.sglang.late import refused_constraint
from frontier_mock.wire.sglang.openai_fields import (
    COMPLETION_FIELDS,
    adapter_in,
    common_wishes,
    lacks_schema,
    routing_of,
    sampling_dict,
)
from frontier_mock.wire.sglang.plan import check_length, encode, front_of, plan_prompt
from frontier_mock.wire.sglang.request import (
    COMPLETION,
    LogprobWish,
    SglangRequest,
    SglangSequence,
)
from frontier_mock.wire.sglang.sampling import check_samples, read_sampling
from frontier_mock.wire.structured import ConstraintError
from frontier_mock.wire.tokenizer import Json, TokenIds

DEFAULT_MAX_TOKENS = 16


def parse_completion(body: bytes, headers: Headers, served: ServedModel) -> SglangRequest:
    """The request that a completion body asks for. Raises SglangError if it is bad.

    LateError for a stream whose grammar fails.
    """
    try:
        raw = load_object(body)
        fields = check_fields(raw, COMPLETION_FIELDS, ("prompt",))
        cap = int_field(fields, "max_tokens", DEFAULT_MAX_TOKENS)
        if cap <= 0:
            message = "Value error, max_tokens must be positive"
            context: dict[str, Json] = {"error": "max_tokens must be positive"}
            raise schema_error(
                [Problem("value_error", ("body", "max_tokens"), message, cap, context)]
            )
    except ApiError as error:
        raise validation_error(error) from None
    prompt = fields["prompt"]
    if not prompt or (isinstance(prompt, list) and not any(prompt)):
        raise openai_error("Prompt cannot be empty")
    try:
        prompts = _prompts(prompt)
        if lacks_schema(fields):
            raise ValueError("schema_ is required for json_schema response format request.")
    except ValueError as error:
        raise openai_error(str(error), "BadRequest") from None
    try:
        return _plan(raw, fields, headers, prompts, cap, served)
    except ConstraintError as error:
        raise refused_constraint(error, flag_field(fields, "stream")) from None
    except ValueError as error:
        raise openai_error(str(error)) from None


def _prompts(prompt: Json) -> Prompts:
    if isinstance(prompt, str):
        return Prompts(texts=(prompt,))
    if not isinstance(prompt, list):
        raise ValueError("prompt must be a string, a list of strings, or token ids.")
    if isinstance(prompt[0], int):
        return Prompts(ids=(read_ids(prompt),))
    if isinstance(prompt[0], str):
        return Prompts(texts=tuple(str(item) for item in prompt), single=False)
    return Prompts(ids=tuple(read_ids(item) for item in prompt), single=False)


def _plan(
    raw: dict[str, Json],
    fields: Fields,
    headers: Headers,
    prompts: Prompts,
    asked: int,
    served: ServedModel,
) -> SglangRequest:
    front = front_of(served)
    params = sampling_dict(fields, front, asked)
    if fields.get("json_schema") is not None:
        params["json_schema"] = fields["json_schema"]
    sampling = read_sampling(params, served.model_vocab_size)
    n = max(1, int_field(fields, "n", 1))
    check_samples(len(prompts), n)
    name = text_field(fields, "model") or "default"
    adapter = adapter_in(name, served.names[0])
    if adapter is not None:
        fields["lora_path"] = adapter
    rank = read_dp_rank(fields, headers, served)
    single = prompts.single and n == 1
    count = len(prompts)
    rids = make_rids(fields.get("rid"), count, prompts.single, served)
    echo = flag_field(fields, "echo")
    top = optional_int_field(fields, "logprobs")
    wish = None
    if top is not None:
        wish = LogprobWish(0 if echo and top else -1, top, (), True)
    wishes = replace(common_wishes(raw, fields, front), echo=echo)
    sequences: list[SglangSequence] = []
    kept: list[PromptText] = []
    for i in range(count):
        ids = prompts.ids[i] if prompts.ids else encode(prompts.texts[i], served)
        ids = check_length(ids, served)
        plans, cap = plan_prompt(
            ids,
            i,
            n,
            sampling,
            served,
            namespace=namespace_of(fields, i),
            priority=int_field(fields, "priority", 0),
            rank=rank,
            resumable=bool(prompts.ids),
        )
        keep = wishes.return_token_ids or (wish is not None and wish.start >= 0)
        text = _echo(prompts, i, ids, served) if echo else None
        kept.append(PromptText(len(ids), ids if keep else None, text))
        for plan in plans:
            rid = served.new_id() if n > 1 else rids[i]
            where = read_bootstrap(fields, plan.index, not single)
            sequences.append(SglangSequence(rid, plan, cap, len(ids), wish, where))
    return SglangRequest(
        kind=COMPLETION,
        sequences=tuple(sequences),
        prompts=tuple(kept),
        tokenizer=served.tokenizer,
        stream=flag_field(fields, "stream"),
        stream_interval=sampling.stream_interval or front.stream_interval,
        n=n,
        single=single,
        model=name,
        incremental=front.incremental_streaming_output,
        cache_report=front.enable_cache_report,
        metrics=front.enable_metrics,
        wishes=wishes,
        routing=routing_of(raw, fields, headers, rank),
    )


def _echo(prompts: Prompts, index: int, ids: TokenIds, served: ServedModel) -> str:
    return prompts.texts[index] if prompts.texts else served.tokenizer.decode(ids)
