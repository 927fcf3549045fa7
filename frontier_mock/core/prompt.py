"""What a prompt is to the engine: a length and the identity of each full block of tokens.

The prefix cache never sees text or token values. It sees *block keys*: eight bytes for each full
block of `block_tokens` tokens, equal for two blocks exactly when their tokens are equal. Keys name
content only, not position; the cache compares them along a path from the root, so a chained hash
is not needed until somebody asks for KV events.
"""

from dataclasses import dataclass
from typing import Protocol

KEY_BYTES = 8
"""Width of one block key."""


class Prompt(Protocol):
    """Anything that can say how long it is and what its blocks contain."""

    @property
    def num_tokens(self) -> int:
        """Prompt length in tokens, at least 1."""
        ...

    def block_keys(self, block_tokens: int) -> bytes:
        """Keys of the `num_tokens // block_tokens` full blocks, `KEY_BYTES` bytes each.

        Raises ValueError if this prompt cannot be cut at `block_tokens`.
        """
        ...


@dataclass(frozen=True, slots=True)
class KeyedPrompt:
    """A prompt whose block keys are already computed, as the wire layer submits it."""

    num_tokens: int
    block_tokens: int
    keys: bytes

    def block_keys(self, block_tokens: int) -> bytes:
        """The stored keys; coarser blocks than the stored ones are not derivable."""
        if block_tokens != self.block_tokens:
            raise ValueError(f"keys are for blocks of {self.block_tokens}, not {block_tokens}")
        return self.keys


@dataclass(frozen=True, slots=True)
class CutPrompt:
    """A prompt cut in several ways, for whichever engine its cluster's router will choose."""

    cuts: tuple[KeyedPrompt, ...]

    @property
    def num_tokens(self) -> int:
        """Prompt length in tokens."""
        return self.cuts[0].num_tokens

    def block_keys(self, block_tokens: int) -> bytes:
        """The keys stored for blocks of that size. Raises ValueError if there are none."""
        for cut in self.cuts:
            if cut.block_tokens == block_tokens:
                return cut.keys
        return self.cuts[0].block_keys(block_tokens)
