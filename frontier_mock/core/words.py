"""Words: what the two halves of a transfer say to each other when they are in different processes.

A receiver's half says `Ready`, a sender's half `Sent`, and either may say `Over`. A word is a
command to the engine that hears it, and part of a `KvTold` event of the one that says it. `key` is
the transfer's, `peer` the process that it goes to when said, and comes from when heard. Neither is
in its `repr`, from which digests are made: routers draw keys, and processes have new names each
time, so that they say nothing of what happened.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Ready:
    """A receiver has blocks for a prompt of `tokens` tokens.

    It needs `token_bytes` of each token after the first `cached_tokens`, and `window_bytes` more of
    the last `window`; its NICs take no more than `bytes_per_s`; and it waits for `patience_ns`.
    """

    key: str = field(repr=False)
    peer: str = field(repr=False)
    tokens: int
    cached_tokens: int
    token_bytes: int
    window_bytes: int
    window: int
    bytes_per_s: int
    patience_ns: int


@dataclass(frozen=True, slots=True)
class Sent:
    """All of a prompt has arrived: `num_bytes`, from `ranks` ranks.

    `ages_ns` is how long ago, when this is heard, the prompt had arrived at the sender's engine,
    was scheduled there, and was all computed.
    """

    key: str = field(repr=False)
    peer: str = field(repr=False)
    num_bytes: int
    ranks: int
    ages_ns: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Over:
    """This side is no more, because of `reason` (`core.events.KvFailed`)."""

    key: str = field(repr=False)
    peer: str = field(repr=False)
    reason: str


Word = Ready | Sent | Over


def word_to_list(word: Word) -> list[object]:
    """For JSON; `word_of` reads it back."""
    match word:
        case Ready():
            shape = [word.token_bytes, word.window_bytes, word.window]
            sizes = [word.tokens, word.cached_tokens, *shape, word.bytes_per_s, word.patience_ns]
            return ["ready", word.key, word.peer, *sizes]
        case Sent():
            return ["sent", word.key, word.peer, word.num_bytes, word.ranks, *word.ages_ns]
        case Over():
            return ["over", word.key, word.peer, word.reason]


def word_of(value: object) -> Word:
    """What `word_to_list` wrote. Raises ValueError for anything else."""
    match value:
        case ["over", str(key), str(peer), str(reason)]:
            return Over(key, peer, reason)
        case ["sent", str(key), str(peer), int(size), int(ranks), int(a), int(b), int(c)]:
            if size >= 0 and ranks > 0:
                return Sent(key, peer, size, ranks, (a, b, c))
        case ["ready", str(key), str(peer), *numbers]:
            counts = [number for number in numbers if isinstance(number, int) and number >= 0]
            if len(counts) == len(numbers) == 7 and counts[0] and counts[5] and counts[6]:
                return Ready(key, peer, *counts)
    raise ValueError(f"not a word between processes: {value!r}")
