"""What one run leaves behind, in terms that both engines can fill in."""

from dataclasses import dataclass, field
from typing import NamedTuple

_keys: dict[tuple[int, ...], bytes] = {}


def content_key(tokens: tuple[int, ...]) -> bytes:
    """An eight-byte key for a block's content: equal tokens, equal key."""
    return _keys.setdefault(tokens, (len(_keys) + 1).to_bytes(8, "little"))


class Chunk(NamedTuple):
    """`new` prompt tokens of request `rid` after `past` computed ones."""

    rid: int
    new: int
    past: int


class StepRecord(NamedTuple):
    """One scheduled step: when it was decided, what it computes, and the blocks left free.

    With speculative decoding `kv_tokens` are the tokens computed for its decodes: where they stand
    vLLM does not know under async scheduling.
    """

    decided_ns: int
    decodes: int
    kv_tokens: int
    chunks: tuple[Chunk, ...]
    free_blocks: int


@dataclass
class Run:
    """Everything compared, and when vLLM first cached a second copy of a block (decision 0001)."""

    steps: list[StepRecord] = field(default_factory=list)
    admissions: list[tuple[int, int, int, bool]] = field(default_factory=list)
    preemptions: list[tuple[int, int]] = field(default_factory=list)
    token_times: dict[int, list[int]] = field(default_factory=dict)
    finishes: list[tuple[int, int, str]] = field(default_factory=list)
    final_queue: list[bytes | None] = field(default_factory=list)
    duplicated_ns: int | None = None

    def settle(self) -> "Run":
        """Put aborts of one instant in one order: vLLM cancels a set of requests at a time."""
        aborts = sorted(end for end in self.finishes if end[2] == "abort")
        rest = [end for end in self.finishes if end[2] != "abort"]
        self.finishes = sorted(aborts + rest, key=lambda end: end[0])
        return self
