"""What a sequence holds of SGLang's KV cache: its path in the tree, and pages of its own."""

from typing import Final

import numpy as np

from frontier_mock.core.prompt import KEY_BYTES
from frontier_mock.serving.radix_cache import RadixCache
from frontier_mock.serving.sequence import Sequence

_UNSHARED: Final = 1 << 63


class Holdings:
    """Enters what sequences compute in the tree, and takes back what they leave.

    A sequence's first `protected` pages are the tree's, down to its `node`; the rest up to
    `held_blocks` are its own.
    """

    __slots__ = ("_kv", "_page", "_parts_prompt")

    def __init__(self, kv: RadixCache, parts_prompt: bool) -> None:
        """`parts_prompt` says whether leaves are split where the prompt ends."""
        self._kv = kv
        self._page = kv.block_tokens
        self._parts_prompt = parts_prompt

    def checkpoint(self, seq: Sequence, tokens: int) -> None:
        """Enter the full pages of the first `tokens` tokens in the tree and lock them."""
        pages = tokens // self._page
        if not pages or not self._kv.enabled:
            return
        if pages > seq.held_blocks:
            seq.held_blocks = pages
        self._kv.writer = seq.submit
        seq.node = self._kv.checkpoint(
            seq.node or self._kv.root,
            seq.protected,
            self._keys_between(seq, seq.protected, pages),
            seq.prompt_tokens // self._page if self._parts_prompt else 0,
            seq.inserted,
            seq.priority,
        )
        seq.protected = pages
        seq.inserted = max(seq.inserted, pages)

    def release(self, seq: Sequence, context: int) -> None:
        """Give back all that `seq`, of `context` tokens, holds beyond the tree's, and its lock."""
        held = max(seq.held_blocks, -(-context // self._page))
        self._kv.give(held - seq.protected)
        if seq.node is not None:
            self._kv.unlock(seq.node)
        seq.node = None
        seq.held_blocks = seq.protected = seq.inserted = 0

    def content_keys(self, seq: Sequence, num_pages: int) -> bytes:
        """Keys of the first `num_pages` pages, or more."""
        keys = seq.keys
        if not keys:
            keys = seq.keys = seq.submit.prompt.block_keys(self._page)
        have = len(keys) // KEY_BYTES
        return keys if num_pages <= have else keys + _output_keys(seq, 0, num_pages - have)

    @staticmethod
    def _keys_between(seq: Sequence, first: int, last: int) -> bytes:
        """Keys of pages `first` to `last`."""
        keys = seq.keys
        have = len(keys) // KEY_BYTES
        if last <= have:
            return keys[first * KEY_BYTES : last * KEY_BYTES]
        if first >= have:
            return _output_keys(seq, first - have, last - have)
        return keys[first * KEY_BYTES :] + _output_keys(seq, 0, last - have)


def _output_keys(seq: Sequence, first: int, last: int) -> bytes:
    """Keys after the prompt's last full page; what nobody can ask for gets keys of its own."""
    given = seq.submit.output_keys
    have = len(given) // KEY_BYTES
    if last <= have:
        return given[first * KEY_BYTES : last * KEY_BYTES]
    start = _UNSHARED + (seq.rid << 24)
    own = np.arange(start + max(first, have), start + last, dtype=np.uint64).tobytes()
    return given[first * KEY_BYTES :] + own if first < have else own
