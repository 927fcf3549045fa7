"""What an engine has encoded: the outputs of its image encoder that it still has. PURE.

Theory of operation, as in vLLM 0.33 (v1/core/encoder_cache_manager.py, and the encoder's part of
v1/core/sched/scheduler.py).

An engine that does not ask `within` may hold more than there is room for, while it does (SGLang,
whose chunks are not cut for images).

1. An item is encoded in the step that computes its first token, unless its output is here. What of
   a prompt is in the KV cache already needs no encoder.
2. A step encodes no more than a budget of tokens. A prompt's chunk ends before an item that does
   not fit, or for whose output there is no room. Budget and room are no less than any one item.
3. An output is held while a sequence has tokens of it to compute, and may be evicted afterwards,
   the one longest out of use first.
"""

from frontier_mock.core.commands import Media
from frontier_mock.serving.sequence import Sequence


class EncoderCache:
    """See the top of this module. `budget_tokens` bounds one step, `room_tokens` all outputs."""

    __slots__ = (
        "_budget",
        "_free",
        "_held",
        "_holds",
        "_idle",
        "_left",
        "_planned",
        "_step",
        "_touched",
    )

    def __init__(self, budget_tokens: int, room_tokens: int) -> None:
        self._budget = budget_tokens
        self._free = room_tokens
        self._step = -1
        self._left = budget_tokens
        self._planned: dict[int, int] = {}
        """Tokens of outputs that `within` has allowed and `take` has not asked for, by key."""
        self._touched: dict[int, None] = {}
        """Idle outputs that `within` has found."""
        self._idle: dict[int, int] = {}
        """Tokens of outputs nobody holds, by key, the longest out of use first."""
        self._held: dict[int, dict[int, int]] = {}
        """Who holds an output: its tokens by sequence, by key."""
        self._holds: dict[int, list[Media]] = {}
        """Items whose outputs a sequence holds."""

    def within(self, seq: Sequence, past: int, new: int, step: int) -> int:
        """How many of the next `new` tokens after `past` the encoder can serve in `step`.

        Budget and room are reserved for them; `restart` takes that back.
        """
        if not self._budget:
            return new
        if step != self._step:
            self.restart(step)
        for item in _overlapping(seq, past, new):
            if item.key in self._held or item.key in self._planned:
                continue
            if item.key in self._idle:
                self._touched[item.key] = None
                continue
            if item.tokens > self._left or not self._has_room(item.tokens):
                return max(0, item.start - past)
            if item.patches:
                self._left -= item.tokens
            self._planned[item.key] = item.tokens
        return new

    def restart(self, step: int) -> None:
        """Decide `step`, or decide it anew."""
        self._step = step
        self._left = self._budget
        self._planned.clear()
        self._touched.clear()

    def take(self, seq: Sequence, past: int, new: int) -> tuple[int, ...]:
        """Patches of each item to encode for these tokens, which `within` should have allowed."""
        if not self._budget:
            return ()
        rid = seq.rid
        encoded = []
        for item in _overlapping(seq, past, new):
            holders = self._held.get(item.key)
            if holders is None:
                holders = self._held[item.key] = {}
                self._planned.pop(item.key, None)
                if self._idle.pop(item.key, None) is None:
                    self._free -= item.tokens
                    self._evict()
                    if item.patches:
                        encoded.append(item.patches)
            holders[rid] = item.tokens
            places = self._holds.setdefault(rid, [])
            if item not in places:
                places.append(item)
        if rid in self._holds:
            self._let_go(seq, past + new)
        return tuple(encoded)

    def drop(self, seq: Sequence) -> None:
        """A sequence has ended, or begins again."""
        if seq.rid in self._holds:
            self._let_go(seq, seq.prompt_tokens)

    def reset(self) -> None:
        """Forget all outputs that nobody holds."""
        self._free += sum(self._idle.values())
        self._idle.clear()

    def check(self) -> None:
        """Assert the cache's laws: an output is held by somebody or idle, and has its room."""
        assert not self._held.keys() & self._idle.keys()
        assert all(self._held.values())
        assert self._free >= 0 or not self._idle

    def _has_room(self, tokens: int) -> bool:
        """Make room for one more output, if that is possible."""
        spare = self._free - sum(self._planned.values())
        old = [key for key in self._idle if key not in self._touched]
        if spare + sum([self._idle[key] for key in old]) < tokens:
            return False
        for key in old:
            if spare >= tokens:
                break
            freed = self._idle.pop(key)
            self._free += freed
            spare += freed
        return True

    def _evict(self) -> None:
        while self._free < 0 and self._idle:
            self._free += self._idle.pop(next(iter(self._idle)))

    def _let_go(self, seq: Sequence, end: int) -> None:
        """Release the outputs of which a sequence has computed every token it has begun with."""
        rid = seq.rid
        places = self._holds.pop(rid)
        kept = [item for item in places if item.start + item.tokens > end]
        needed = {item.key for item in kept}
        for item in places:
            holders = self._held.get(item.key, {})
            if item.key in needed or holders.pop(rid, None) is None:
                continue
            if not holders:
                del self._held[item.key]
                self._idle[item.key] = item.tokens
        if kept:
            self._holds[rid] = kept
        self._evict()


def _overlapping(seq: Sequence, past: int, new: int) -> list[Media]:
    """The items of which some token is among the `new` ones after `past`."""
    end = past + new
    media = seq.submit.media
    return [item for item in media if item.start < end and item.start + item.tokens > past]
