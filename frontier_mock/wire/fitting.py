"""Prescribed texts in tokens: written to a planned length, and ended as the rules say."""

from collections.abc import Sequence

from frontier_mock.wire.grammar.author import Sentence
from frontier_mock.wire.stops import Ending, StopRules
from frontier_mock.wire.structured import Write
from frontier_mock.wire.text import FixedText, TextRing
from frontier_mock.wire.tokenizer import Tokenizer

_MOST_PLANNED_TOKENS = 8192
"""A sentence that might go on for ever is not planned to be longer."""

_ROUNDS = 4
_TOLERANCE = 0.1


def fitted_ending(
    write: Write,
    ring: TextRing,
    tokenizer: Tokenizer,
    seed: int,
    identity: int,
    choice: int,
    rules: StopRules,
) -> Ending:
    """The text of a choice that has a prescribed shape, and how it ends.

    A sentence that has come to its end allows nothing but the end token, so it ends there even
    where the client ignores ends; the cap or a stop rule may cut it before. `rules.eos_tokens` is
    the length to aim at, 0 for the cap.
    """
    planned = min(rules.eos_tokens or rules.max_tokens, rules.max_tokens, _MOST_PLANNED_TOKENS)
    wanted = max(1, planned - 1, rules.min_tokens)
    chars = wanted
    for _ in range(_ROUNDS):
        sentence = write(seed, identity, choice, chars)
        ids: list[int] = tokenizer.encode(sentence.text).tolist()
        too_long = len(ids) > max(wanted, min(wanted * (1 + _TOLERANCE), rules.max_tokens - 1))
        too_short = len(ids) < wanted * (1 - _TOLERANCE)
        # A text much shorter or longer than asked for has no other length to offer.
        free = len(sentence.text) * 0.9 <= chars <= len(sentence.text) * 1.2 + 2
        if not (too_long or too_short) or not free or not ids:
            break
        chars = max(1, chars * wanted // len(ids))
    return ended(sentence, ids, ring, tokenizer, rules)


def ended(
    sentence: Sentence, ids: list[int], ring: TextRing, tokenizer: Tokenizer, rules: StopRules
) -> Ending:
    """Where a sentence of these tokens ends: at a stop rule, its own end, or the cap."""
    pieces = token_pieces(ids, sentence.text, tokenizer)
    tokens = [i for i in rules.stop_token_ids if i != ring.end_id]
    first = next((i for i in range(rules.min_tokens, len(ids)) if ids[i] in tokens), len(ids))
    stop = _first_stop(pieces, rules)
    hold = 0 if rules.include_stop else max((len(s) for s in rules.stop), default=1) - 1
    if stop is not None and stop[0] <= min(first, rules.max_tokens):
        count, cut, matched = stop
        return Ending(FixedText(ring, ids, pieces, count, -1, cut, hold), "stop", matched)
    if first < min(len(ids), rules.max_tokens):
        end_id = -1 if rules.include_stop else ids[first]
        return Ending(FixedText(ring, ids, pieces, first + 1, end_id, -1, hold), "stop", ids[first])
    if len(ids) + 1 > rules.max_tokens or not sentence.whole:
        count = max(1, min(len(ids), rules.max_tokens))
        return Ending(FixedText(ring, ids, pieces, count, -1, -1, hold), "length", None)
    text = FixedText(ring, ids, pieces, len(ids) + 1, ring.end_id, -1, hold)
    return Ending(text, "stop", None)


def dictated_ending(
    ring: TextRing, tokenizer: Tokenizer, ids: Sequence[int], max_tokens: int
) -> Ending:
    """The ending of a choice whose tokens are given: with the last of them, as by a cap."""
    pieces = [tokenizer.decode([token_id]) for token_id in ids]
    text = FixedText(ring, ids, pieces, min(len(ids), max_tokens))
    return Ending(text, "length", None)


def token_pieces(ids: Sequence[int], text: str, tokenizer: Tokenizer) -> list[str]:
    """What each token adds to the text; a character of several tokens comes with its last one."""
    pieces = [tokenizer.token_text(token_id) for token_id in ids]
    if "".join(pieces) == text:
        return pieces
    pieces, first = [], 0
    for i in range(len(ids)):
        spoken = tokenizer.decode(ids[first : i + 1], skip_special_tokens=False)
        if spoken.endswith("\N{REPLACEMENT CHARACTER}") and i - first < _LONGEST_CHARACTER:
            pieces.append("")
            continue
        pieces.append(spoken)
        first = i + 1
    return pieces if "".join(pieces) == text else [text, *[""] * (len(ids) - 1)]


_LONGEST_CHARACTER = 4
"""Most tokens that one character takes."""


def _first_stop(pieces: Sequence[str], rules: StopRules) -> tuple[int, int, str] | None:
    """(output tokens, characters kept, string) of the stop string that completes first."""
    if not rules.stop:
        return None
    text = "".join(pieces)
    exempt = len("".join(pieces[: rules.min_tokens]))
    best: tuple[int, str] | None = None
    for stop in rules.stop:
        at = text.find(stop, max(0, exempt - len(stop) + 1))
        if at >= 0 and (best is None or at + len(stop) < best[0]):
            best = at + len(stop), stop
    if best is None:
        return None
    end, stop = best
    cut = end if rules.include_stop else end - len(stop)
    chars = 0
    for i, piece in enumerate(pieces):
        chars += len(piece)
        if chars >= end:
            return i + 1, cut, stop
    raise AssertionError("a stop string ends within its text")
