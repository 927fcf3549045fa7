"""What a sequence holds of vLLM's KV cache: its block table, and keys for what is in it."""

from typing import Final

from frontier_mock.core.prompt import KEY_BYTES
from frontier_mock.serving.kv_cache import KvCache, Match
from frontier_mock.serving.sequence import Sequence
from frontier_mock.serving.specs import SchedulerSpec

_UNSHARED: Final = 1 << 63


class Holdings:
    """Gives sequences their blocks, caches what they compute, and takes back what they leave."""

    __slots__ = ("_block", "_caching", "_kv", "_longest", "_lookahead")

    def __init__(self, kv: KvCache, spec: SchedulerSpec) -> None:
        self._kv = kv
        self._block = spec.block_size
        self._caching = spec.enable_prefix_caching
        self._longest = spec.max_model_len
        self._lookahead = 0 if spec.speculation is None else spec.speculation.lookahead

    def blocks_for(self, tokens: int) -> int:
        """Blocks for the first `tokens` tokens of a prompt, and the drafter's slots behind them."""
        if self._lookahead:
            tokens = min(tokens + self._lookahead, self._longest)
        return -(-tokens // self._block)

    def open(self, seq: Sequence, match: Match, num_blocks: int) -> None:
        """Give a sequence that holds nothing `num_blocks` blocks, of which `match` is cached."""
        seq.table = self._kv.open(match)
        if num_blocks > match.num_blocks:
            self._kv.take(num_blocks - match.num_blocks)
        seq.held_blocks = num_blocks

    def grow(self, seq: Sequence, tokens: int) -> None:
        """Give `seq` blocks for its first `tokens` tokens, which are computed and cached now."""
        held = self.blocks_for(tokens) if self._lookahead else -(-tokens // self._block)
        if held > seq.held_blocks:
            self._kv.take(held - seq.held_blocks)
            seq.held_blocks = held
        if self._caching and seq.table is not None:
            full = tokens // self._block
            self._kv.writer = seq.submit
            self._kv.commit(seq.table, self.content_keys(seq, full), full)

    def widen(self, seq: Sequence, tokens: int) -> None:
        """Give `seq` blocks for its first `tokens` tokens."""
        more = self.missing(seq, tokens)
        if more > 0:
            self._kv.take(more)
            seq.held_blocks += more

    def missing(self, seq: Sequence, tokens: int) -> int:
        """Blocks that `seq` lacks for its first `tokens` tokens; below 0 if it has more."""
        return self.blocks_for(tokens) - seq.held_blocks

    def commit(self, seq: Sequence, tokens: int) -> None:
        """The first `tokens` tokens of `seq` are computed: cache their full blocks."""
        table = seq.table
        assert table is not None
        full = tokens // self._block
        self._kv.writer = seq.submit
        self._kv.commit(table, self.content_keys(seq, full), full)

    def free(self, seq: Sequence, context: int, known: int) -> None:
        """Free what `seq` holds, blocks for at least `context` tokens.

        The full blocks of its first `known` tokens are cached.
        """
        table = seq.table
        if table is None:
            return
        full = known // self._block
        held = max(seq.held_blocks, -(-context // self._block))
        self._kv.writer = seq.submit
        self._kv.close(table, held, self.content_keys(seq, full), full)
        seq.table = None
        seq.held_blocks = 0

    def pin(self, seq: Sequence, context: int, known: int) -> None:
        """Keep the blocks of a sequence that has ended, and cache them as `free` does."""
        seq.pinned = context
        seq.held_blocks = max(seq.held_blocks, -(-context // self._block))
        self.commit(seq, known)

    def drop(self, seq: Sequence) -> None:
        """Free all blocks, of which no more than now are cached."""
        assert seq.table is not None
        self._kv.writer = seq.submit
        self._kv.close(seq.table, seq.held_blocks, seq.keys, 0)
        seq.table = None
        seq.held_blocks = 0

    def content_keys(self, seq: Sequence, num_blocks: int) -> bytes:
        """Keys of the first `num_blocks` blocks; output nobody can ask for gets keys of its own."""
        keys = seq.keys
        missing = num_blocks - len(keys) // KEY_BYTES
        if missing > 0 and self._caching:
            tail = seq.submit.output_keys
            have = len(tail) // KEY_BYTES
            if have < missing:
                # Nothing is found beyond a first block that nobody else can name.
                first = _UNSHARED + (seq.rid << 24) + have
                padding = bytes(KEY_BYTES * (missing - have - 1))
                tail += first.to_bytes(KEY_BYTES, "little") + padding
            return keys + tail
        return keys
