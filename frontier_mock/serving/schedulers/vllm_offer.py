"""What vLLM's scheduler makes of the head of its waiting queue: an offer, or why there is none."""

from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import NamedTuple

from frontier_mock.serving.encoder_cache import EncoderCache
from frontier_mock.serving.kv_cache import KvCache, Match
from frontier_mock.serving.schedulers.vllm_below import Below
from frontier_mock.serving.schedulers.vllm_holdings import Holdings
from frontier_mock.serving.schedulers.vllm_pacing import PrefillPace
from frontier_mock.serving.schedulers.vllm_remote import Receivers, has_enough
from frontier_mock.serving.sequence import Sequence
from frontier_mock.serving.specs import SchedulerSpec
from frontier_mock.serving.tiers.offload import WAITS
from frontier_mock.simtime import SimTime


class Refusal(Enum):
    """Why the head of the queue is not admitted, and with it nobody after it."""

    ROOM = auto()
    """Something but the step's budget is missing: blocks, or its turn."""
    BUDGET = auto()
    """Another budget might have done."""
    ASIDE = auto()
    """It waits for a tier below the GPU, and lets others pass."""


class Offer(NamedTuple):
    """What the head of the queue gets: `new` tokens of prompt to compute, and `padding` more.

    `match` is what the GPU has cached of it, `hit` tokens; `found` tokens beyond those are in a
    tier below. With `remote` it gets blocks, and the rest from another engine.
    """

    match: Match
    hit: int
    new: int = 0
    padding: int = 0
    found: int = 0
    remote: bool = False


class Offers:
    """Sizes up the head of the queue, by what is cached, free and left of the step."""

    __slots__ = (
        "_below",
        "_block",
        "_encoder",
        "_holdings",
        "_inbound",
        "_kv",
        "_named",
        "_pace",
        "_padding",
        "_running",
        "_spec",
    )

    def __init__(
        self,
        spec: SchedulerSpec,
        kv: KvCache,
        holdings: Holdings,
        inbound: Receivers,
        below: Below | None,
        encoder: EncoderCache,
        pace: PrefillPace,
        running: Mapping[int, Sequence],
        padding: Callable[[int, int, int], int],
    ) -> None:
        """`padding(goal, computed, step)` says what a prompt gets beyond its own tokens."""
        self._spec = spec
        self._block = spec.block_size
        self._named = spec.enable_prefix_caching or below is not None
        self._kv = kv
        self._holdings = holdings
        self._inbound = inbound
        self._below = below
        self._encoder = encoder
        self._pace = pace
        self._running = running
        self._padding = padding

    def size_up(
        self, seq: Sequence, step: int, t_ns: SimTime, cap: int, left: int
    ) -> Offer | Refusal:
        """What the head of the queue gets in `step`: at most `cap` tokens, and `left` in all."""
        goal = seq.goal
        match = self._match(seq)
        hit = match.num_blocks * self._block
        new = goal - hit
        if new > cap:
            new = cap
        whole = -(-goal // self._block)
        if seq.transfer is not None and self._awaits_kv(seq, hit, t_ns):
            if not self._fits(match, whole + self._kept_free()):
                return _no_room(new, left)
            return Offer(match, hit, remote=True)
        # A prompt with but one token left to compute is no prefill to this rule.
        if self._pace.deferring and hit < goal - 1:
            return Refusal.ROOM
        if new > left:
            if not self._spec.enable_chunked_prefill:
                return Refusal.BUDGET
            new = left
        if seq.submit.media and self._below is None:
            new = self._encoder.within(seq, hit, new, step)
        padding = 0 if self._spec.speculation is None else self._padding(goal, hit, step)
        if not new or (padding and padding >= left):
            return Refusal.BUDGET
        if not self._fits(match, self._blocks_of(whole, hit + new + padding)):
            return _no_room(new, left)
        offer = Offer(match, hit, new, padding)
        return offer if self._below is None else self._look_below(seq, offer, step, t_ns, left)

    def _look_below(
        self, seq: Sequence, offer: Offer, step: int, t_ns: SimTime, left: int
    ) -> Offer | Refusal:
        """The offer with what the tier below the GPU has of the prompt."""
        below = self._below
        assert below is not None
        match, hit, new = offer.match, offer.hit, offer.new
        found = below.tier.look(seq, hit, t_ns)
        if found == WAITS:
            return Refusal.ASIDE
        if found:
            new = min(new, max(1, seq.goal - hit - found))
            whole = -(-seq.goal // self._block)
            tokens = min(hit + found + new, seq.goal)
            blocks = self._blocks_of(whole, tokens)
            if not below.in_step:
                blocks = whole + self._kept_free()
            if not self._fits(match, blocks):
                return _no_room(new, left)
        if seq.submit.media:
            # What the tier has needs no encoder.
            new = self._encoder.within(seq, hit + found, new, step)
            if not new:
                return Refusal.BUDGET
        return offer._replace(new=new, found=found)

    def _blocks_of(self, whole: int, tokens: int) -> int:
        """Blocks there have to be for a prompt of `whole` blocks, now its first `tokens` tokens."""
        blocks = self._holdings.blocks_for(tokens)
        return max(blocks, whole) if self._spec.reserve_full_isl else blocks

    def _kept_free(self) -> int:
        """Blocks that a prompt may not take which will hold its own without computing anything.

        With drafts the first step after that needs more, and what cannot have them cannot run. (An
        engine at rest keeps none free, where vLLM would let a prompt of the whole cache starve.)
        """
        drafts = self._spec.speculation
        if drafts is None or not (self._running or self._inbound.members):
            return 0
        tokens = 1 + drafts.num_drafts + drafts.lookahead
        others = sum(
            max(0, -(-(seq.goal + tokens) // self._block) - seq.held_blocks)
            for seq in self._inbound.waiting()
        )
        return -(-tokens // self._block) + others

    def _fits(self, match: Match, blocks: int) -> bool:
        """Whether there are `blocks` blocks for a prompt, those that `match` has found included."""
        required = blocks - match.num_blocks + match.num_evictable
        if self._running and self._spec.watermark > 0:
            # vLLM counts its null block among all blocks.
            required += int(self._spec.watermark * (self._kv.num_blocks + 1))
        return required <= self._kv.num_free

    def _match(self, seq: Sequence) -> Match:
        """What of the head of the queue is cached; its last token is never taken from there."""
        if not seq.keys and self._named:
            seq.keys = seq.submit.prompt.block_keys(self._block)
        if not seq.submit.reads_cache:
            return self._kv.lookup(seq.keys, 0)
        full = seq.goal // self._block
        keys = self._holdings.content_keys(seq, full) if seq.base else seq.keys
        return self._kv.lookup(keys, (seq.goal - 1) // self._block)

    def _awaits_kv(self, seq: Sequence, hit: int, t_ns: SimTime) -> bool:
        """Whether the prompt of `seq`, with `hit` tokens cached, is to come from elsewhere."""
        if seq.transfer is None or seq.transfer.sends:
            return False
        if has_enough(seq, hit):
            self._inbound.do_without(seq, t_ns)
            return False
        return True


def _no_room(new: int, left: int) -> Refusal:
    """Blocks for `new` tokens are missing; if these are all that are `left`, fewer may fit."""
    return Refusal.BUDGET if new == left else Refusal.ROOM
