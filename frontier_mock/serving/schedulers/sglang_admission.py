"""What one prefill pass of SGLang may admit: its PrefillAdder, as arithmetic.

Theory of operation. A pass forms one prefill batch. It has three budgets, in tokens:

1. *Memory*: what is available or evictable, less what was promised. Every running request is
   promised the output it may still produce (clipped to CLIP_MAX_NEW_TOKENS) times the new-token
   ratio, every request admitted in this pass its extension, one page, and its whole output.
2. *Input*: `max_prefill_tokens`. The request that crosses it is the last one of the pass.
3. *Chunk*: `chunked_prefill_size`. The request that does not fit is cut to what is left, down to a
   page boundary, and becomes the one chunked request, which the next pass resumes first.

A request is admitted if `extension + its output + one page < memory left`, measured with its own
cached prefix locked. Running decodes that ride along (mixed chunk) are charged a token each.

Source: SGLang 0.5.23, managers/schedule_policy.py (PrefillAdder) and mem_cache/prefill_budget.py;
`classic` rules from 0.5.9.
"""

from collections.abc import Iterable
from enum import Enum, auto
from typing import Final

from frontier_mock.serving.radix_cache import RadixCache, RadixNode
from frontier_mock.serving.sequence import Sequence
from frontier_mock.serving.specs import SglangSchedulerSpec
from frontier_mock.serving.tiers.host_radix import HostMatch, HostRadixCache

CLIP_MAX_NEW_TOKENS: Final = 4096
"""Output counted at most per request (SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION)."""

_RESERVE_PER_REQUEST: Final = 1
"""Tokens kept free per request when every output length is known (IGNORE_EOS_RESERVE_TOKENS)."""


class Verdict(Enum):
    """Whether the pass goes on: to the next request, not for memory, or not for other limits."""

    CONTINUE = auto()
    NO_TOKEN = auto()
    OTHER = auto()


class Admission:
    """One pass. `grants` lists (sequence, new tokens), in batch order; `cut` is a new chunked one;
    `fetched` has the pages that come from the host, by sequence.

    `total_offset` is what was promised of the memory, `current_offset` what of it is needed now.
    """

    __slots__ = (
        "_kv",
        "_page",
        "_spec",
        "_states",
        "current_offset",
        "cut",
        "fetched",
        "grants",
        "rem_chunk",
        "rem_input",
        "total_offset",
    )

    def __init__(
        self, kv: RadixCache, spec: SglangSchedulerSpec, promised: float, mixed_decodes: int
    ) -> None:
        """`promised` is the output of running requests by the new-token ratio, in tokens."""
        self._kv = kv
        self._spec = spec
        self._page = spec.page_size
        self._states: list[tuple[float, int]] | None = None
        chunk = spec.chunked_prefill_size
        self.rem_input = spec.max_prefill_tokens - mixed_decodes
        self.rem_chunk = chunk - mixed_decodes if chunk > 0 else None
        self.total_offset = mixed_decodes + promised
        self.current_offset = mixed_decodes
        self.grants: list[tuple[Sequence, int]] = []
        self.cut: Sequence | None = None
        self.fetched: dict[int, int] = {}

    @property
    def rem_total(self) -> float:
        """Memory left after all promises."""
        return self._kv.num_free * self._page - self.total_offset

    @property
    def rem_current(self) -> int:
        """Memory left after what this pass itself will allocate."""
        return self._kv.num_free * self._page - self.current_offset

    def verdict(self) -> Verdict:
        """Whether another request may be looked at."""
        free = self._kv.num_free * self._page
        if free <= self.total_offset or free <= self.current_offset:
            return Verdict.NO_TOKEN
        if self.rem_input <= 0 or (self.rem_chunk is not None and self.rem_chunk <= 0):
            return Verdict.OTHER
        return Verdict.CONTINUE

    def resume(self, seq: Sequence) -> bool:
        """Give the chunked request its next chunk; True if it is still not its last.

        Where promises leave no memory it gets a full chunk all the same, as far as there are pages;
        with no page at all it is granted nothing (SGLang would fail there).
        """
        assert self.rem_chunk is not None
        limit = min(self.rem_chunk, int(self.rem_total))
        if limit <= 0:
            limit = self.rem_chunk
        limit = min(limit, self._kv.num_free * self._page + -seq.computed % self._page)
        if limit <= 0:
            return True
        extension = seq.goal - seq.computed
        new = min(extension, limit)
        truncated = extension > limit
        self._charge(seq, new, 0 if truncated else min(seq.max_new, CLIP_MAX_NEW_TOKENS))
        return truncated

    def add(
        self, seq: Sequence, node: RadixNode, hit: int, below: HostMatch | None = None
    ) -> Verdict:
        """Try to admit `seq`, of which `hit` tokens are cached down to `node`.

        If it is admitted, `node` is locked and `grants` has grown. What `below` has found on the
        host is brought back then, if that is worth while and possible, and locked as well.
        """
        if self._is_complete():
            return Verdict.OTHER
        extension = seq.goal - hit
        output = min(max(seq.max_new - seq.base, 0), CLIP_MAX_NEW_TOKENS)
        classic = self._spec.classic
        needed = extension + output + (0 if classic else self._page)
        kv = self._kv
        kv.lock(node)
        fetched = 0 if below is None else below.pages * self._page
        new = self._select(extension - fetched, hit + fetched, needed)
        if fetched and not isinstance(new, Verdict):
            assert below is not None
            if self._bring_back(seq, node, below):
                extension -= fetched
                node = below.node
            else:
                new = self._select(extension, hit, needed)
        if isinstance(new, Verdict):
            kv.unlock(node)
            return new
        whole = new == extension
        if not whole:
            self.cut = seq
        self._charge(seq, new, min(seq.max_new, CLIP_MAX_NEW_TOKENS) if whole else 0)
        return self.verdict()

    def _bring_back(self, seq: Sequence, node: RadixNode, below: HostMatch) -> bool:
        """Load what is on the host, and lock down to there instead of to `node`."""
        kv = self._kv
        assert isinstance(kv, HostRadixCache)
        if not kv.load_back(below):
            return False
        kv.lock(below.node)
        kv.unlock(node)
        seq.node = below.node
        seq.computed += below.pages * self._page
        self.fetched[seq.rid] = below.pages
        return True

    def _is_complete(self) -> bool:
        limit = self._spec.prefill_max_requests
        return 0 < limit <= len(self.grants)

    def _select(self, extension: int, hit: int, needed: int) -> int | Verdict:
        """How many tokens to compute now, or why none."""
        page = self._page
        if needed >= self.rem_total:
            return Verdict.NO_TOKEN
        paged = -(-extension // page) * page
        capped = self.rem_chunk is None or self._spec.classic
        if capped and self.grants and paged >= self.rem_input:
            return Verdict.OTHER
        if self.rem_chunk is None or paged <= self.rem_chunk:
            return extension
        new = self.rem_chunk // page * page
        new = (hit + new) // page * page - hit
        return new if new > 0 else Verdict.OTHER

    def _charge(self, seq: Sequence, new: int, output: int) -> None:
        page = self._page
        paged = -(-new // page) * page
        now = paged + (0 if self._spec.classic else page)
        self.total_offset += now + output
        self.current_offset += now
        self.rem_input -= paged
        if self.rem_chunk is not None:
            self.rem_chunk -= paged
        self.grants.append((seq, new))

    def add_of_fixed_length(
        self, seq: Sequence, running: Iterable[tuple[Sequence, int]], ratio: float
    ) -> Verdict:
        """Try to admit a request that ignores EOS, on an engine without a radix cache.

        Then output lengths are known, and SGLang plays the batch to its end instead of adding up:
        requests finish in order of what they still produce, each freeing what it holds. `running`
        pairs each running sequence with the output it has produced; `ratio` is for those that may
        end early.
        """
        if self._is_complete():
            return Verdict.OTHER
        page = self._page
        extension = seq.goal
        paged = -(-extension // page) * page + page
        if paged > min(self.rem_current, self.rem_total):
            return Verdict.NO_TOKEN
        if self._states is None:
            states = [self._state(other, produced, ratio) for other, produced in running]
            states += [self._state(other, other.base, ratio) for other, _ in self.grants]
            states.append(self._state(seq, seq.base, ratio))
            self._states = sorted(state for state in states if state[0] > 0)
        else:
            self._insert(self._state(seq, seq.base, ratio))
        free = float(self.rem_current - paged)
        left = len(self._states)
        for tokens_left, occupied in self._states:
            if free - tokens_left * left <= _RESERVE_PER_REQUEST * left:
                return Verdict.NO_TOKEN
            free += occupied
            left -= 1
        output = min(seq.max_new, CLIP_MAX_NEW_TOKENS)
        if self.rem_chunk is None or extension <= self.rem_chunk:
            self._charge(seq, extension, output)
        elif self.rem_chunk <= 0 or self.cut is not None:
            # SGLang would lose track of the request it cut first.
            return Verdict.OTHER
        else:
            self.cut = seq
            self._charge(seq, self.rem_chunk, 0)
        return self.verdict()

    @staticmethod
    def _state(seq: Sequence, produced: int, ratio: float) -> tuple[float, int]:
        """(tokens still to come, tokens held) of one request."""
        expected = seq.max_new * (1.0 if seq.fixed_length else ratio)
        return expected - produced, seq.prompt_tokens + produced

    def _insert(self, state: tuple[float, int]) -> None:
        """Before the first request that is not shorter, or else before the last, as SGLang does."""
        states = self._states
        assert states is not None
        if state[0] <= 0:
            return
        place = next((i for i, (left, _) in enumerate(states) if state[0] <= left), None)
        if place is None:
            place = max(len(states) - 1, 0)
        states.insert(place, state)
