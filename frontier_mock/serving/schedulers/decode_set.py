"""The decodes of a step as a few numbers, whatever their count.

A decode's context in step `s` is `offset + s`. So step `s` computes `num_decodes` sequences with a
total context of `kv_offset + num_decodes * s`, and a histogram of `offset mod block` says how many
of them begin a block in it: those whose context is 1 modulo the block size.
"""

import numpy as np

from frontier_mock.serving.schedulers.drafted_set import UNBOUNDED, StepLoads
from frontier_mock.serving.sequence import Sequence


class DecodeSet:
    """The sequences that decode in every step, as sums. Blocks are of `block` tokens.

    `decided` is the last step that has been decided.
    """

    __slots__ = ("_block", "_phases", "decided", "kv_offset", "num_decodes")

    def __init__(self, block: int) -> None:
        self._block = block
        self._phases = [0] * block
        self.decided = 0
        self.num_decodes = 0
        self.kv_offset = 0

    def count(self, seq: Sequence) -> None:
        """`seq` decodes from the next step on."""
        seq.counted = True
        self.num_decodes += 1
        self.kv_offset += seq.offset
        self._phases[seq.offset % self._block] += 1

    def uncount(self, seq: Sequence) -> None:
        """`seq`, whose offset has not changed since it was counted, decodes no more."""
        seq.counted = False
        self.num_decodes -= 1
        self.kv_offset -= seq.offset
        self._phases[seq.offset % self._block] -= 1

    def wants(self, seq: Sequence, step: int) -> tuple[int, int]:
        """(tokens, new blocks) that `seq` needs in `step`."""
        if not seq.counted:
            return 0, 0
        block = self._block
        return 1, 1 if (seq.offset + step) % block == 1 % block else 0

    def tokens_of(self, step: int) -> int:
        """Tokens that `step` takes from its budget for them."""
        return self.num_decodes

    def loads(self, first: int, last: int) -> StepLoads:
        """What steps `first` to `last` compute for them."""
        steps = np.arange(first, last + 1, dtype=np.int64)
        seqs = np.full_like(steps, self.num_decodes)
        return StepLoads(seqs, seqs, self.kv_offset + self.num_decodes * steps)

    def blocks_of(self, step: int) -> int:
        """Blocks that begin in `step`."""
        return self._phases[(1 - step) % self._block]

    def blocks_of_run(self, first: int, last: int) -> int:
        """Blocks that begin in steps `first` to `last`."""
        block = self._block
        cycles, rest = divmod(last - first + 1, block)
        blocks = cycles * self.num_decodes
        for step in range(first, first + rest):
            blocks += self._phases[(1 - step) % block]
        return blocks

    def last_within(self, first: int, limit: int, blocks: int, tokens: int = UNBOUNDED) -> int:
        """Largest step <= `limit` such that `blocks` suffice for steps `first` to there.

        Each of them may take `tokens` tokens, which always suffice for one token each.
        """
        n = self.num_decodes
        block = self._block
        count = limit - first + 1
        if count <= 0 or n * -(-count // block) <= blocks:
            return limit
        cycles = blocks // n
        step = first + cycles * block
        left = blocks - cycles * n
        while step <= limit:
            left -= self._phases[(1 - step) % block]
            if left < 0:
                break
            step += 1
        return min(step - 1, limit)
