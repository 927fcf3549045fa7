"""Events: everything the engine says. The event log is a list of these, and its digest is a law.

Tuples rather than frozen dataclasses, because a run makes five per request and a NamedTuple costs
a third. Each begins with (t_ns, worker, rid): when, on which worker, for which sequence. `rid` is
the number of the Submit command, counted from 0 in the order in which they were fed. The prefill
leg that the cluster's own router makes of Submit `rid` is `prefill_leg(rid)`, a number below -1.
"""

import hashlib
from typing import NamedTuple

from frontier_mock.core.words import Word
from frontier_mock.simtime import SimTime


def prefill_leg(rid: int) -> int:
    """What the prefill leg of Submit `rid` is called; its own inverse."""
    return -2 - rid


class Submitted(NamedTuple):
    """A sequence arrived at a worker's front end."""

    t_ns: SimTime
    worker: int
    rid: int
    prompt_tokens: int
    max_tokens: int


class Queued(NamedTuple):
    """The front end handed the sequence to the scheduler (vLLM's QUEUED)."""

    t_ns: SimTime
    worker: int
    rid: int


class Scheduled(NamedTuple):
    """First admission of the sequence into the running batch, `cached_tokens` from the cache.

    Emitted again with `resumed=True` after a preemption. `t_ns` is when the scheduler decided,
    one step before execution under async scheduling.
    """

    t_ns: SimTime
    worker: int
    rid: int
    cached_tokens: int
    resumed: bool


class FirstToken(NamedTuple):
    """The step that produced the sequence's first output token ended."""

    t_ns: SimTime
    worker: int
    rid: int


class Preempted(NamedTuple):
    """Evicted from the running batch after `output_tokens`; its blocks are free."""

    t_ns: SimTime
    worker: int
    rid: int
    output_tokens: int


class Finished(NamedTuple):
    """The sequence ended: `reason` is "stop", "length", "abort" or "error" (a failed transfer).

    `spans` are its output tokens as (first step, number of consecutive steps), one token each or,
    after a `Drafted` event, as many as that says; the time of each is the end of that step, see
    `serving.timeline`.
    """

    t_ns: SimTime
    worker: int
    rid: int
    reason: str
    output_tokens: int
    spans: tuple[tuple[int, int], ...]


class Drafted(NamedTuple):
    """What speculative decoding came to, for a sequence whose `Finished` event follows.

    `bursts` are the output tokens of each step of its spans, so many at once and not one each.
    `accepted_steps[a]` of its verifications accepted `a` drafts, of `draft_tokens` in all.
    """

    t_ns: SimTime
    worker: int
    rid: int
    bursts: bytes
    accepted_steps: tuple[int, ...]
    draft_tokens: int


class Rejected(NamedTuple):
    """Refused on arrival.

    `reason`: "prompt_too_long", "queue_full", "backlog_full", "paused" or "failed".
    """

    t_ns: SimTime
    worker: int
    rid: int
    reason: str


class Controlled(NamedTuple):
    """The engine followed, or finished following, a command that is about no sequence (rid -1).

    `what`: "pause" when told to, "rest" when a paused engine executes nothing any more (at once,
    if it did not), "resume", "flush" when the prefix cache has been forgotten, "slow",
    or what a `Change` says.
    """

    t_ns: SimTime
    worker: int
    rid: int
    what: str


class Fetched(NamedTuple):
    """`tokens` tokens of the sequence's prompt, beyond what the GPU has, come from a tier below it.

    `tier` is "cpu" or "storage"; `num_bytes` are one GPU's. Said at admission, before `Scheduled`.
    """

    t_ns: SimTime
    worker: int
    rid: int
    tier: str
    tokens: int
    num_bytes: int


class KvReceived(NamedTuple):
    """The KV of the sequence's prompt has come from another engine, `num_bytes` of it.

    The first `cached_tokens` tokens needed not come.

    When the prompt arrived at that engine, was first scheduled there and was all computed, and when
    this sequence had blocks for it: what its time to first token was spent on.
    """

    t_ns: SimTime
    worker: int
    rid: int
    arrived_ns: SimTime
    scheduled_ns: SimTime
    computed_ns: SimTime
    allocated_ns: SimTime
    num_bytes: int
    cached_tokens: int


class KvReleased(NamedTuple):
    """The sequence's blocks, kept for another engine, are free.

    `reason`: "sent", "expired" (nobody came for them in time) or "abandoned" (the other side is
    gone).
    """

    t_ns: SimTime
    worker: int
    rid: int
    reason: str


class KvFailed(NamedTuple):
    """The sequence's prompt did not come or could not be sent.

    `reason`: "unknown" (no such sender), "expired", "timeout", "abandoned" (the other side is gone)
    or "broken" (the transfer).
    """

    t_ns: SimTime
    worker: int
    rid: int
    reason: str


class MediaReceived(NamedTuple):
    """The sequence's images, encoded elsewhere, are all there: `num_items`, of `num_bytes`.

    When its front end asked for them, and when the last one had been encoded.
    """

    t_ns: SimTime
    worker: int
    rid: int
    asked_ns: SimTime
    encoded_ns: SimTime
    num_items: int
    num_bytes: int


class KvTold(NamedTuple):
    """Half of a transfer has a word for the other half, in another process.

    It is heard there at `due_ns`. `rid` is the sequence on this side, -1 if there is none.
    """

    t_ns: SimTime
    worker: int
    rid: int
    due_ns: SimTime
    word: Word


Event = (
    Submitted
    | Queued
    | Scheduled
    | FirstToken
    | Preempted
    | Finished
    | Drafted
    | Rejected
    | Controlled
    | Fetched
    | KvReceived
    | KvReleased
    | KvFailed
    | KvTold
    | MediaReceived
)


class EventLog:
    """All events in order, and the digest of everything appended so far.

    `events` holds what has not been dropped; `append` is its bound method, so that the hot path
    pays for a list append only.
    """

    __slots__ = ("_dropped", "_hash", "_hashed", "append", "events")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.append = self.events.append
        self._hash = hashlib.blake2b(digest_size=16)
        self._hashed = 0
        self._dropped = 0

    def __len__(self) -> int:
        """Number of events ever appended."""
        return self._dropped + len(self.events)

    def digest(self) -> str:
        """Hex digest of every event appended so far."""
        self._absorb()
        return self._hash.hexdigest()

    def drop(self, count: int) -> None:
        """Forget the first `count` events still held, keeping them in the digest."""
        self._absorb()
        del self.events[:count]
        self._hashed -= count
        self._dropped += count

    def _absorb(self) -> None:
        events = self.events
        start = self._hashed
        if start < len(events):
            text = "".join([f"{type(e).__name__}{tuple(e)}\n" for e in events[start:]])
            self._hash.update(text.encode())
            self._hashed = len(events)
