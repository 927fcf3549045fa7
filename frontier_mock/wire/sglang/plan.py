"""From a prompt's token ids and checked sampling to the sequences SGLang's engine is given."""

from dataclasses import replace

from frontier_mock.core.commands import Media
from frontier_mock.wire.fields import Fields
from frontier_mock.wire.generation import SequencePlan
from frontier_mock.wire.plan import plan_sequences
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.sampling import Sampling
from frontier_mock.wire.sglang.served import SglangFront
from frontier_mock.wire.structured import ConstraintError, Write, sglang_writer
from frontier_mock.wire.text import FixedText, SyntheticText
from frontier_mock.wire.tokenizer import TokenIds


def front_of(served: ServedModel) -> SglangFront:
    """SGLang's settings of a model that SGLang serves."""
    front = served.sglang
    assert front is not None
    return front


def encode(text: str, served: ServedModel, add_special_tokens: bool = True) -> TokenIds:
    """Token ids of a prompt text. Raises ValueError for a text that is no Unicode."""
    try:
        return served.tokenizer.encode(text, add_special_tokens)
    except UnicodeEncodeError as error:
        raise ValueError(str(error)) from None


def check_length(ids: TokenIds, served: ServedModel) -> TokenIds:
    """The prompt, cut if the server may. Raises ValueError as SGLang does if it is too long."""
    front = front_of(served)
    count = len(ids)
    if count >= front.context_len:
        if not front.allow_auto_truncate:
            raise ValueError(
                f"The input ({count} tokens) is longer than the model's context length "
                f"({front.context_len} tokens)."
            )
    elif count < front.max_req_input_len:
        return ids
    elif not front.allow_auto_truncate:
        raise ValueError(
            f"Input length ({count} tokens) exceeds the maximum allowed length "
            f"({front.max_req_input_len} tokens). "
            "Use a shorter input or enable --allow-auto-truncate."
        )
    return ids[: front.max_req_input_len]


def clipped(asked: int | None, prompt_tokens: int, front: SglangFront) -> int:
    """`max_new_tokens` as the scheduler has it (`init_req_max_new_tokens`)."""
    room = max(0, front.max_req_len - prompt_tokens - 1)
    return room if asked is None else min(asked, room)


def plan_prompt(
    ids: TokenIds,
    prompt_index: int,
    n: int,
    sampling: Sampling,
    served: ServedModel,
    *,
    namespace: str = "",
    priority: int = 0,
    rank: int | None = None,
    resumable: int = 0,
    write: Write | None = None,
    media: tuple[Media, ...] = (),
) -> tuple[list[SequencePlan], int]:
    """The n sequences of one prompt, and the clipped cap of each.

    `namespace` keeps equal prompts apart in the cache: extra key, salt and adapter. `rank` is the
    data-parallel rank they are for, None if the server may choose. A prompt that ends with at
    least `resumable` tokens of output, if that is not 0, goes on with it (`wire.continuation`).
    `write` prescribes the text, as does a shape that `sampling` asks for. `media` are images in it.
    """
    cap = clipped(sampling.max_new_tokens, len(ids), front_of(served))
    wishes: Fields = {}
    if namespace:
        wishes["cache_salt"] = namespace
    if sampling.seed is not None:
        wishes["seed"] = sampling.seed
    if sampling.ignore_eos:
        # It turns stop tokens off as well (`_check_token_based_finish`).
        wishes["ignore_eos"] = True
    elif sampling.stop_token_ids:
        wishes["stop_token_ids"] = list(sampling.stop_token_ids)
    if sampling.min_new_tokens:
        wishes["min_tokens"] = sampling.min_new_tokens
    if sampling.stop:
        wishes["stop"] = list(sampling.stop)
    if sampling.no_stop_trim:
        wishes["include_stop_str_in_output"] = True
    if write is None and sampling.shape is not None:
        _check_backend(sampling, served)
        write = sglang_writer(sampling.shape, served.ring)
    plans = plan_sequences(
        ids,
        prompt_index,
        n,
        max(1, cap),
        wishes,
        priority,
        served,
        resumable=resumable,
        write=write,
        media=media,
    )
    if sampling.stop:
        plans = [_unheld(plan) for plan in plans]
    if rank is not None:
        plans = [replace(plan, submit=replace(plan.submit, rank=rank)) for plan in plans]
    return plans, cap


def _check_backend(sampling: Sampling, served: ServedModel) -> None:
    backend = front_of(served).server_args.get("grammar_backend")
    if backend == "none" and sampling.shape is not None and "choice" not in sampling.shape:
        raise ConstraintError(
            "Grammar-based generation (json_schema, regex, ebnf, structural_tag) is not supported "
            "when the server is launched with --grammar-backend none"
        )


def _unheld(plan: SequencePlan) -> SequencePlan:
    """SGLang keeps text back only where a stop string has really begun, which the cut sees to."""
    text = plan.text
    if isinstance(text, FixedText):
        text.hold_chars = 0
        return plan
    free = SyntheticText(text.ring, text.start, text.num_tokens, text.end_id, text.cut_chars)
    if text.cut_chars >= 0:
        # The cut may lie several tokens before the last one.
        free.plain_tokens = 0
    return replace(plan, text=free)
