"""Whether a prompt ends with output: what a client resubmits goes on where it was cut off.

Drivers that interrupt a rollout send the prompt with the partial output behind it. A model that
samples with the same seed would not notice the cut; here the output of such a prompt is the rest of
the first output, and as long as that rest. No memory is needed for it: output is the ring read from
a place that the prompt's content decides, so a prompt is a resumed one exactly if its last tokens
are what some shorter beginning of it would have said. The longest such tail counts. Choices beyond
the first are told apart from `text.DISTINCT_TOKENS` tokens on.
"""

from typing import NamedTuple

import numpy as np

from frontier_mock.wire.block_keys import Keys, content_key
from frontier_mock.wire.text import Positions, TextRing
from frontier_mock.wire.tokenizer import TokenIds

MAX_CHOICES = 64
"""The choices of an interrupted request that are looked for, from the first."""

RESUMABLE_TOKENS = 16
"""Output that no prompt ends with by chance, for wires on which every prompt is token ids."""

_WINDOW = 16
"""Tokens that are looked up in the ring at once; shorter tails are tried one by one."""
_MAX_TRIALS = 256


class Resumed(NamedTuple):
    """A prompt that is another prompt and `done` tokens of its output.

    `identity` is the content key of that other prompt, `choice` whose output it was, `start` the
    ring position at which the output goes on.
    """

    identity: int
    choice: int
    done: int
    start: int


def find_resumed(
    ids: TokenIds, keys: Keys, salt: int, seed: int, ring: TextRing, least: int = 1
) -> Resumed | None:
    """The prompt and output that `ids` are made of, None if they are a prompt of their own.

    `keys` are those of the full blocks of `ids`, the first of them salted. Output of less than
    `least` tokens, which a prompt may end with by chance, is not looked for.
    """
    if int(ids[-1]) not in ring.id_set:
        return None
    size = ring.block_tokens
    short = [(done, -1) for done in _short_tails(ids, ring) if done >= least]
    trials = _long_tails(ids, ring) + short
    for done, start in trials[:_MAX_TRIALS]:
        cut = len(ids) - done
        blocks = cut // size
        identity = content_key(keys[:blocks], ids[blocks * size : cut], salt)
        places = ring.starts_for(seed, identity, MAX_CHOICES)
        choice = _choice(places, start, ids[cut:], ring)
        if choice >= 0:
            return Resumed(identity, choice, done, (int(places[choice]) + done) % ring.period)
    return None


def _choice(places: Positions, start: int, tail: TokenIds, ring: TextRing) -> int:
    """The first choice whose output begins with `tail`, -1 if none does.

    `start` is where the tail is known to stand in the ring, -1 if it is still to be compared.
    """
    if start >= 0:
        found = np.flatnonzero(places == start)
        return int(found[0]) if len(found) else -1
    for choice in np.flatnonzero(ring.ids[places] == tail[0]).tolist():
        if np.array_equal(ring.slice_ids(int(places[choice]), 0, len(tail)), tail):
            return int(choice)
    return -1


def _short_tails(ids: TokenIds, ring: TextRing) -> list[int]:
    """Lengths of tails up to a window that begin as outputs may begin, longest first."""
    longest = min(_WINDOW, len(ids) - 1)
    for known in (_WINDOW // 4, _WINDOW // 2, _WINDOW):
        if known <= longest and not ring.windows(known).ends_of(ids[-known:]):
            longest = known - 1
            break
    tail = ids[len(ids) - longest :].tolist()
    return [longest - i for i, token in enumerate(tail) if token in ring.start_ids]


def _long_tails(ids: TokenIds, ring: TextRing) -> list[tuple[int, int]]:
    """(length, ring position) of tails longer than a window that can be outputs, longest first."""
    if len(ids) <= _WINDOW:
        return []
    tails = []
    for end in ring.windows(_WINDOW).ends_of(ids[-_WINDOW:]):
        longest = len(ids) - 1
        same = ring.slice_ids((end - longest) % ring.period, 0, longest) == ids[1:]
        differ = np.flatnonzero(~same)
        run = longest - (int(differ[-1]) + 1 if len(differ) else 0)
        begins = (end - np.arange(run, _WINDOW, -1)) % ring.period
        for at in np.flatnonzero(ring.is_start[begins])[:_MAX_TRIALS].tolist():
            tails.append((run - at, int(begins[at])))
    tails.sort(reverse=True)
    return tails
