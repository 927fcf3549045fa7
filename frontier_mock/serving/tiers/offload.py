"""A CPU tier under a vLLM engine: what is stored, what is found again, and when it is here.

Theory of operation
1. Chunks of the prompt (and of the output, if asked to) are offered when a step has computed them,
   from the first on that this request has not offered; those the tier lacks move to it when that
   step has ended. One that is being moved is in the tier, but cannot be read yet.
2. A request that is about to be admitted asks how far the tier continues what the GPU has. If some
   of that is still being written, or read by another request, it stands aside until that has ended,
   and asks again. Else it gets its blocks, waits for the load, and goes on.
3. Transfers of one direction follow each other (`lane`), so every end is known when it begins. Only
   ends that a sequence waits for are events; of the others the tier hears when it is next asked.
4. A step's stores are decided after its admissions. A request's use of the tier is complete with
   its end.

Simplified: a load waits with blocks for all of its prompt, not only for what comes. Output is
offered when its sequence ends, not block by block, and that end counts before what the next step
stores. Blocks that are being stored may be reused at once (vLLM makes the step wait that would
overwrite them).

Source: vLLM 0.33.0, kv_connector/v1/offloading/scheduler.py and v1/kv_offload/cpu.
"""

from collections.abc import Callable, Iterable
from heapq import heappop, heappush

from frontier_mock.core.prompt import KEY_BYTES, Prompt
from frontier_mock.serving.sequence import Sequence
from frontier_mock.serving.tiers.arc import ArcPool
from frontier_mock.serving.tiers.chunks import OfferCounts, chunk_keys
from frontier_mock.serving.tiers.lane import Lane, Transfer
from frontier_mock.serving.tiers.lru import LruPool
from frontier_mock.serving.tiers.pool import Access, Pool
from frontier_mock.serving.tiers.specs import OffloadSpec
from frontier_mock.serving.tiers.stats import TierStats
from frontier_mock.simtime import SimTime

WAITS = -1
"""What `Offload.look` answers for a request that has to ask again."""


class _Use:
    """One request's dealings with the tier: chunk `keys` so far, and the next one to offer."""

    __slots__ = ("access", "keys", "next")

    def __init__(self) -> None:
        self.access = Access()
        self.keys = b""
        self.next = 0


class Offload:
    """See the theory of operation at the top of this module.

    `deferred` are the sequences that stand aside. Whenever somebody waits for an end, that time
    and `owner` go to the heap `alarms`, and whoever has the clock calls `advance` then.
    `query_tokens` and `hit_tokens` are counted by whoever admits; bytes are one GPU's.
    """

    def __init__(
        self, spec: OffloadSpec, block_tokens: int, content_keys: Callable[[Sequence, int], bytes]
    ) -> None:
        """`content_keys` gives the keys of a sequence's first blocks."""
        self.spec = spec
        self._chunk = block_tokens * spec.blocks_per_chunk
        self._content_keys = content_keys
        arc = spec.eviction_policy == "arc"
        self.pool: Pool = ArcPool(spec.num_chunks) if arc else LruPool(spec.num_chunks)
        self._loads, self._stores = Lane(spec.load), Lane(spec.store)
        self._block_tokens = block_tokens
        self._counts = OfferCounts(spec.store_threshold, spec.max_tracker_size)
        self._uses: dict[int, _Use] = {}
        self._unbooked: list[tuple[int, Transfer]] = []
        self._storing: list[tuple[SimTime, int, Transfer]] = []
        self._loading: list[tuple[SimTime, int, Transfer, Sequence]] = []
        self.alarms: list[tuple[SimTime, int]] = []
        self.owner = 0
        self._woken: list[Sequence] = []
        self.deferred: dict[int, Sequence] = {}
        self.query_tokens = 0
        self.hit_tokens = 0
        self.num_loads = 0
        self.num_stores = 0
        self.failed_chunks = 0

    # Admission -------------------------------------------------------------------------------

    def look(self, seq: Sequence, hit: int, t_ns: SimTime) -> int:
        """Tokens of `seq` that the tier has beyond the first `hit`, or `WAITS`."""
        use = self._uses.get(seq.rid)
        if use is None:
            use = self._uses[seq.rid] = _Use()
        use.next = 0
        chunk = self._chunk
        if not seq.submit.reads_cache:
            return 0
        keys = self._keys(seq, use, seq.goal // chunk)
        last = min(seq.goal // chunk, len(keys) // KEY_BYTES)
        if last * chunk - hit < chunk:
            return 0
        self._settle(t_ns)
        first = 0 if self.spec.whole_prefix else hit // chunk
        chunks, pending = self.pool.reach(keys, first, last)
        found = (first + chunks) * chunk - hit
        if found < (1 if self.spec.whole_prefix else chunk):
            return 0
        if pending:
            self._defer(seq, pending)
            return WAITS
        return found

    def _defer(self, seq: Sequence, pending: list[Transfer]) -> None:
        """Let `seq` stand aside until the last of `pending`, as far as is known, has ended."""
        last = max(pending, key=lambda transfer: (transfer.end_ns < 0, transfer.end_ns))
        last.waiters.append(seq)
        if last.end_ns >= 0:
            self._ring_at(last.end_ns)
        self.deferred[seq.rid] = seq

    def fetch(self, seq: Sequence, hit: int, found: int, t_ns: SimTime) -> SimTime:
        """Load what `look` found, `seq` having its blocks.

        Returns how long that takes if it is for the step that admits to wait for it, else 0.
        """
        use = self._uses[seq.rid]
        chunk = self._chunk
        first, last = hit // chunk, (hit + found) // chunk
        num_bytes = found // self._block_tokens * self.spec.block_bytes
        transfer = Transfer(use.keys, [(first, last)], num_bytes)
        self.pool.pin(use.access, transfer)
        use.next = last
        self.num_loads += 1
        if self.spec.blocking:
            self.pool.unpin(transfer)
            return self._loads.carry(num_bytes)
        transfer.end_ns = self._loads.book(t_ns, num_bytes)
        heappush(self._loading, (transfer.end_ns, self.num_loads, transfer, seq))
        self._ring_at(transfer.end_ns)
        return 0

    def forget(self, seq: Sequence) -> bool:
        """`seq` is over: whether it stood aside."""
        return self.deferred.pop(seq.rid, None) is not None

    # What has ended --------------------------------------------------------------------------

    def _ring_at(self, t_ns: SimTime) -> None:
        heappush(self.alarms, (t_ns, self.owner))

    def advance(self, t_ns: SimTime) -> tuple[list[Sequence], list[Sequence]]:
        """What has ended by `t_ns`: whose loads, and who may ask again."""
        self._settle(t_ns)
        loaded = []
        while self._loading and self._loading[0][0] <= t_ns:
            _, _, transfer, seq = heappop(self._loading)
            self.pool.unpin(transfer)
            loaded.append(seq)
            self._woken += transfer.waiters
        again = [seq for seq in self._woken if self.deferred.pop(seq.rid, None) is not None]
        self._woken = []
        return loaded, again

    def _settle(self, t_ns: SimTime) -> None:
        """What is stored by `t_ns` can be read."""
        while self._storing and self._storing[0][0] <= t_ns:
            transfer = heappop(self._storing)[2]
            self.pool.stored(transfer)
            self._woken += transfer.waiters

    # Storing ---------------------------------------------------------------------------------

    def offer(self, step: int, computed: Iterable[Sequence]) -> None:
        """Of what `step` computes, store what the tier lacks."""
        for seq in computed:
            transfer = self._offer(seq, seq.computed)
            if transfer is not None:
                self._unbooked.append((step, transfer))

    def _offer(self, seq: Sequence, tokens: int) -> Transfer | None:
        use = self._uses.get(seq.rid)
        if use is None or not self.spec.stores:
            return None
        if self.spec.offload_prompt_only:
            tokens = min(tokens, seq.prompt_tokens)
        keys = self._keys(seq, use, tokens // self._chunk)
        last = min(tokens // self._chunk, len(keys) // KEY_BYTES)
        if last <= use.next:
            return None
        transfer = Transfer(keys, (), 0)
        new: list[tuple[int, int]] = []
        for begin, end in self._counts.admitted(keys, use.next, last, self.pool):
            ranges = self.pool.offer(keys, begin, end, use.access, transfer)
            if ranges is None:
                self.failed_chunks += end - begin
            else:
                new += ranges
        use.next = last
        if not new:
            return None
        transfer.ranges = tuple(new)
        chunks = sum(end - begin for begin, end in new)
        transfer.num_bytes = chunks * self.spec.blocks_per_chunk * self.spec.block_bytes
        return transfer

    def computed(self, step: int, t_ns: SimTime) -> None:
        """`step` has ended: what it computed moves."""
        unbooked = self._unbooked
        while unbooked and unbooked[0][0] <= step:
            self._book(unbooked.pop(0)[1], t_ns)

    def _book(self, transfer: Transfer, t_ns: SimTime) -> None:
        transfer.end_ns = self._stores.book(t_ns, transfer.num_bytes)
        self.num_stores += 1
        heappush(self._storing, (transfer.end_ns, self.num_stores, transfer))
        if transfer.waiters:
            self._ring_at(transfer.end_ns)

    def ended(self, seq: Sequence, tokens: int, t_ns: SimTime) -> None:
        """`seq` is over, and its first `tokens` tokens are computed."""
        if seq.rid not in self._uses:
            return
        transfer = self._offer(seq, tokens)
        if transfer is not None:
            self._book(transfer, t_ns)
        use = self._uses.pop(seq.rid)
        self.pool.finish(use.keys, use.access)

    # What others deposit ---------------------------------------------------------------------

    def held_tokens(self, prompt: Prompt) -> int:
        """How much of a prompt, from its first token on, is here."""
        keys = self._prompt_keys(prompt)
        return self.pool.reach(keys, 0, len(keys) // KEY_BYTES).chunks * self._chunk

    def deposit(self, prompt: Prompt) -> None:
        """All of a prompt has come from another engine: keep its full chunks."""
        keys = self._prompt_keys(prompt)
        access, transfer = Access(), Transfer(keys, (), 0)
        chunks = len(keys) // KEY_BYTES
        new = self.pool.offer(keys, 0, chunks, access, transfer) if chunks else []
        if new is None:
            self.failed_chunks += chunks
        elif new:
            transfer.ranges = tuple(new)
            self.num_stores += 1
            size = self.spec.blocks_per_chunk * self.spec.block_bytes
            self._stores.num_bytes += size * sum(end - begin for begin, end in new)
            self.pool.stored(transfer)
        self.pool.finish(keys, access)

    def _prompt_keys(self, prompt: Prompt) -> bytes:
        return chunk_keys(prompt.block_keys(self._block_tokens), self.spec.blocks_per_chunk)

    def forget_all(self, t_ns: SimTime) -> None:
        """Forget all that is stored. What is being loaded still comes; who waits may ask again."""
        self.pool.clear()
        gone = [transfer for _, _, transfer in self._storing]
        gone += [transfer for _, transfer in self._unbooked]
        self._storing.clear()
        self._unbooked.clear()
        for transfer in gone:
            self._woken += transfer.waiters
        if self._woken:
            self._ring_at(t_ns + 1)
        for use in self._uses.values():
            use.next = 0

    def stats(self) -> tuple[TierStats, ...]:
        """What the tier has done so far."""
        chunk = self._chunk
        return (
            TierStats(
                "cpu",
                self.query_tokens,
                self.hit_tokens,
                self.num_loads,
                self._loads.num_bytes,
                self._loads.busy_ns,
                self.num_stores,
                self._stores.num_bytes,
                self._stores.busy_ns,
                (self.failed_chunks + self._counts.skipped) * chunk,
                self.pool.num_held * chunk,
                self.pool.capacity * chunk,
            ),
        )

    def _keys(self, seq: Sequence, use: _Use, chunks: int) -> bytes:
        """Keys of the first `chunks` chunks of `seq`, as far as there are any, or of more."""
        if len(use.keys) < chunks * KEY_BYTES:
            per_chunk = self.spec.blocks_per_chunk
            use.keys = chunk_keys(self._content_keys(seq, chunks * per_chunk), per_chunk)
        return use.keys
