"""What the worker asks of a scheduler, and what a scheduler answers: steps.

The numbers of steps are explained in `serving.steps`.
"""

from typing import NamedTuple, Protocol

from frontier_mock.cost.protocol import Chunk
from frontier_mock.serving.remote_kv import Exchange
from frontier_mock.serving.schedulers.drafted_set import StepLoads
from frontier_mock.serving.sequence import Sequence
from frontier_mock.serving.tiers.stats import TierStats
from frontier_mock.simtime import SimTime


class Load(NamedTuple):
    """KV that comes from a tier during a step, in `ns`, in `layers` parts.

    Each part of the step's computing waits for its part of the load, in order.
    """

    ns: SimTime
    layers: int = 1

    def stretched(self, compute_ns: float) -> float:
        """How long a step takes that computes for `compute_ns`."""
        return max(compute_ns, self.ns + compute_ns / self.layers)


class Step(NamedTuple):
    """What one step computes: `num_decodes` decodes and the prefill `chunks`.

    `firsts` are the sequences whose last chunk this is: they get a token when it ends. `ticks` is 1
    if the step advances the decode tick and 0 if it is a prefill-only step. Steps with equal
    `num_decodes` and `kv_offset` have the same decodes; under speculative decoding `kv_offset` says
    that and nothing else, and `Scheduler.loads` has the sums. `images` are the patches of the
    images that are encoded before, `load` is what it has to wait for, if anything.
    """

    number: int
    num_decodes: int
    kv_offset: int
    chunks: tuple[Chunk, ...]
    firsts: tuple[Sequence, ...]
    ticks: int = 1
    load: Load | None = None
    images: tuple[int, ...] = ()

    @property
    def kv_tokens(self) -> int:
        """Total context of the decodes, each with the token being computed."""
        return self.kv_offset + self.num_decodes * self.number


class CachedPrefix(Protocol):
    """How much of a prompt is cached."""

    @property
    def num_blocks(self) -> int:
        """Length of the cached prefix in blocks."""
        ...


class Cache(Protocol):
    """What worker, router and tests need of any engine's KV cache. Counts are blocks."""

    @property
    def num_blocks(self) -> int:
        """All there are."""
        ...

    @property
    def num_free(self) -> int:
        """Those an allocation can get, evictable cached ones included."""
        ...

    @property
    def num_cached(self) -> int:
        """Those that a lookup could find, in use or not; may take a walk."""
        ...

    def lookup(self, keys: bytes, max_blocks: int) -> CachedPrefix:
        """The longest cached prefix of `keys`, at most `max_blocks` long. Changes nothing."""
        ...

    def reset(self) -> bool:
        """Forget everything cached; False, and nothing done, while any block is in use."""
        ...

    def check(self) -> None:
        """Assert the cache's own laws; for tests, not speed."""
        ...


class Tier(Protocol):
    """Tiers under an engine's GPU, as the cluster's clock sees them.

    Times at which something ends that a sequence waits for go to the heap `alarms`, with `owner`.
    """

    alarms: list[tuple[SimTime, int]]
    owner: int

    def advance(self, t_ns: SimTime) -> tuple[list[Sequence], list[Sequence]]:
        """What has ended by `t_ns`: whose KV has come, and who may ask again."""
        ...

    def forget_all(self, t_ns: SimTime) -> None:
        """Forget what is kept; nothing where that goes with the GPU's cache."""
        ...

    def stats(self) -> tuple[TierStats, ...]:
        """What each tier has done so far, the nearest first."""
        ...


class Scheduler(Protocol):
    """Waiting and running sequences of one engine, and the rules that move them.

    `schedule` is called once per step, in order: at the boundary before the step, or one boundary
    earlier when the engine works ahead. `coast` stands for many calls that change nothing; it may
    be used while `blocked`, which says that nothing can be admitted until something ends, arrives
    or is aborted. The worker keeps the last tick whose output has been seen in `seen_step`.
    """

    exchange: Exchange | None
    seen_step: int
    blocked: bool
    hit_tokens: int
    query_tokens: int
    preemptions: int

    @property
    def offload(self) -> Tier | None:
        """What lies under this engine's GPU, if anything does."""
        ...

    @property
    def running(self) -> dict[int, Sequence]:
        """All that run, by rid."""
        ...

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for admission, preempted ones included."""
        ...

    @property
    def num_live(self) -> int:
        """Sequences handed over and not ended, wherever they are."""
        ...

    def enqueue(self, seq: Sequence, t_ns: SimTime) -> None:
        """Put an arrival of `t_ns` in the waiting queue."""
        ...

    def abort(self, seq: Sequence, step: int) -> bool:
        """Stop `seq`, whose last token to be delivered is that of `step`.

        True if it is gone; False if the engine lets it have one more token, with which it will be
        among those that `complete` returns.
        """
        ...

    def retract_all(self, t_ns: SimTime) -> None:
        """Send all that run back to the waiting queue; nothing is in flight when this is called."""
        ...

    def received(self, seq: Sequence, step: int) -> None:
        """The KV of `seq` has come, while `step` was executing."""
        ...

    def ask_again(self, seqs: list[Sequence], t_ns: SimTime) -> None:
        """What these stood aside for, on the way to or from a tier, has ended."""
        ...

    def lost(self, seq: Sequence, t_ns: SimTime) -> None:
        """The KV of `seq` will not come: it is to compute its prompt itself."""
        ...

    def unpin(self, seq: Sequence) -> None:
        """Free what `seq`, which has ended, kept for another engine."""
        ...

    def layerwise(self, step: int) -> list[tuple[Sequence, int]]:
        """Senders that `step` computes and that send layer by layer, with tokens computed then."""
        ...

    def schedule(self, step: int, t_ns: SimTime) -> Step | None:
        """Decide the next step, tick `step` if it has decodes; None if there is nothing to do."""
        ...

    def complete(self, executed: Step, step: int, t_ns: SimTime) -> list[Sequence]:
        """Take the output of `executed`, the last of a run that ends with tick `step`.

        Logs first tokens; returns the sequences that ended, which hold nothing any more.
        """
        ...

    def begin_copies(self, t_ns: SimTime) -> None:
        """The engine is at rest: copies that would begin with its next decision begin now."""
        ...

    def went_idle(self) -> None:
        """The engine has nothing to execute and nothing in flight."""
        ...

    def next_finish(self) -> int | None:
        """The earliest tick in which some sequence produces its last token."""
        ...

    def coast_limit(self, limit: int) -> int:
        """Largest tick <= `limit` through which decodes alone certainly find their blocks."""
        ...

    def loads(self, first: int, last: int) -> StepLoads:
        """What ticks `first` to `last` compute for their decodes, if the set of them stays."""
        ...

    def coast(self, step: int) -> None:
        """Schedule every tick up to `step`, none of which changes the set of decodes."""
        ...
