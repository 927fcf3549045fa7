"""Log-probabilities in vLLM's shapes. The figures are made up, deterministic and plausible.

The sampled token always ranks first; the others follow in falling order. A token's figure depends
on the token and its place in the whole sequence: it is the same as output, in a resumed prompt and
among a prompt's logprobs. Shapes and the number of
candidates are those of vLLM 0.33 (`_create_chat_logprobs`, `_create_completion_logprobs`).
"""

from collections.abc import Sequence
from typing import NamedTuple

from frontier_mock.wire.generation import LogprobsPlan
from frontier_mock.wire.text import TextRing
from frontier_mock.wire.tokenizer import Json, Tokenizer

_SPREAD = 1.2
_STEP = 0.7
_UNLIKELY = -6.0


class Candidate(NamedTuple):
    """One token the model might have chosen, natural log of its probability, rank from 1."""

    token_id: int
    logprob: float
    rank: int


def candidates(
    token_id: int, position: int, plan: LogprobsPlan, top: int, ring: TextRing
) -> list[Candidate]:
    """The sampled token, then those asked for by number (`top`, -1 for all) or by id."""
    noise = (token_id * 2654435761 + position * 40503 & 0xFFFF) / 0x10000
    sampled = round(-0.02 - _SPREAD * noise, 6)
    found = [Candidate(token_id, sampled, 1)]
    if plan.token_ids:
        others = [other for other in plan.token_ids if other != token_id]
        return found + [
            Candidate(other, round(_UNLIKELY - noise - 0.1 * i, 6), i + 2)
            for i, other in enumerate(others)
        ]
    words = ring.words
    count = len(words) if top == -1 else top
    first = (token_id + position) % len(words)
    for i in range(len(words)):
        if len(found) >= count:
            break
        other = words[(first + i) % len(words)]
        if other != token_id:
            rank = len(found) + 1
            found.append(Candidate(other, round(sampled - _STEP * (rank - 1), 6), rank))
    return found


def token_name(token_id: int, plan: LogprobsPlan, tokenizer: Tokenizer) -> str:
    """The token's text, or "token_id:N" where the client wants ids."""
    return f"token_id:{token_id}" if plan.as_token_ids else tokenizer.token_text(token_id)


def chat_logprobs(
    ids: Sequence[int], position: int, plan: LogprobsPlan, ring: TextRing, tokenizer: Tokenizer
) -> Json:
    """`logprobs` of a chat choice for tokens of which the first is at `position` of the whole."""
    top = plan.top or 0
    content: list[Json] = []
    for i, token_id in enumerate(ids):
        found = candidates(token_id, position + i, plan, top, ring)
        shown = found if plan.token_ids or top == -1 else found[:top]
        content.append(
            {
                "token": token_name(token_id, plan, tokenizer),
                "logprob": found[0].logprob,
                "bytes": _bytes(tokenizer.token_text(token_id)),
                "top_logprobs": [_chat_candidate(c, plan, tokenizer) for c in shown],
            }
        )
    return {"content": content}


def _chat_candidate(candidate: Candidate, plan: LogprobsPlan, tokenizer: Tokenizer) -> Json:
    name = token_name(candidate.token_id, plan, tokenizer)
    return {"token": name, "logprob": candidate.logprob, "bytes": _bytes(name)}


def _bytes(text: str) -> list[Json]:
    return list(text.encode(errors="replace"))


class CompletionLogprobs:
    """Builds the four parallel lists of a completion choice, chunk after chunk."""

    __slots__ = ("_offset", "_plan", "_position", "_ring", "_tokenizer")

    def __init__(
        self, plan: LogprobsPlan, ring: TextRing, tokenizer: Tokenizer, position: int = 0
    ) -> None:
        """Starts at text offset 0, before the echoed prompt if there is one.

        `position` is the first token's, counted from the beginning of the prompt.
        """
        self._plan = plan
        self._ring = ring
        self._tokenizer = tokenizer
        self._offset = 0
        self._position = position

    def extend(self, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> Json:
        """The lists for the next tokens; `prompt_ids` are echoed ones, the first without figures.

        With `prompt_ids` this must be the first call: they come before everything else.
        """
        plan, tokenizer = self._plan, self._tokenizer
        top = plan.top or 0
        offsets: list[Json] = []
        logprobs: list[Json] = []
        tokens: list[Json] = []
        tops: list[Json] = []
        for i, token_id in enumerate([*prompt_ids, *output_ids]):
            name = token_name(token_id, plan, tokenizer)
            offsets.append(self._offset)
            self._offset += len(name)
            tokens.append(name)
            if i == 0 and prompt_ids:
                logprobs.append(None)
                tops.append(None)
                continue
            found = candidates(token_id, self._position + i, plan, top, self._ring)
            shown = found if plan.token_ids or top == -1 else found[: top + 1]
            logprobs.append(found[0].logprob)
            tops.append({token_name(c.token_id, plan, tokenizer): c.logprob for c in shown})
        self._position += len(tokens)
        return {
            "text_offset": offsets,
            "token_logprobs": logprobs,
            "tokens": tokens,
            "top_logprobs": tops,
        }


def prompt_logprobs(
    ids: Sequence[int], plan: LogprobsPlan, ring: TextRing, tokenizer: Tokenizer
) -> Json:
    """`prompt_logprobs`: null for the first token, then a map from token id to its figures."""
    entries: list[Json] = [None]
    for i, token_id in enumerate(ids[1:], 1):
        found = candidates(token_id, i, LogprobsPlan(), plan.prompt or 0, ring)
        entries.append(
            {
                str(c.token_id): {
                    "logprob": c.logprob,
                    "rank": c.rank,
                    "decoded_token": tokenizer.token_text(c.token_id),
                }
                for c in found
            }
        )
    return entries
