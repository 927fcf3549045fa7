"""Commands: everything that may enter the engine, and so everything the journal records."""

from dataclasses import dataclass

from frontier_mock.core.prompt import Prompt
from frontier_mock.core.words import Word

AUTO_WORKER = -1
"""`Submit.worker` for "let the cluster's own router choose" (offline runs)."""


TRANSFER_STYLES = ("pull", "push", "room", "deposit")


@dataclass(frozen=True, slots=True)
class Transfer:
    """How the KV cache of a prompt gets from the engine that computes it to the one that decodes.

    `key` is what both sides call it. `sends`: this sequence computes the prompt and one token, and
    keeps its blocks until they have been fetched. Otherwise its prompt's KV comes from the sender
    of the same key. Styles: "pull" (the receiver fetches from a sender that has finished: vLLM's
    NIXL), "push" (both come in either order, and it moves when both are ready: NIXL push, Mooncake,
    MoRIIO), "room" (the receiver allocates before the sender computes; prompts move chunk by
    chunk, and the first token with them: SGLang) and "deposit" (nobody receives: prompts move chunk
    by chunk into the tier of the engine `target`, where whoever comes next with such a prompt finds
    them, and the sender is over when all has moved: LMCache).

    `patience_ns` is how long one side waits for the other. With `recompute` a receiver whose
    transfer failed computes the prompt itself; else it ends with reason "error". `streams`: what is
    computed moves while the rest is being computed. `far`: the sender is in no engine of this
    cluster, and has what the receiver was told it has.

    A receiver gets the first `tokens` tokens of its prompt, 0 for all of it, unless fewer than
    `threshold` of them are missing: then it computes them. While it waits for blocks of its own,
    its sender keeps what it has for a receiver of all, and only for `patience_ns` for others.

    `peer` is where a receiver finds the process that has its sender; "" if that is this one.
    `notice` is what a depositing sender's proxy calls the request.
    """

    key: str
    sends: bool
    style: str = "pull"
    patience_ns: int = 30_000_000_000
    recompute: bool = False
    streams: bool = False
    far: bool = False
    tokens: int = 0
    threshold: int = 0
    peer: str = ""
    target: int = -1
    notice: str = ""


@dataclass(frozen=True, slots=True)
class Media:
    """An image in a prompt: `tokens` of it from token `start` on.

    It is `patches` to the model's encoder, 0 if it has been encoded already; `key` is equal for
    equal images. The embedding of one that is `stored` is read before the prompt is computed.
    """

    key: int
    start: int
    tokens: int
    patches: int
    stored: bool = False


@dataclass(frozen=True, slots=True)
class Submit:
    """One sequence to generate. A request with n choices is n of these.

    `output_tokens` is where generation will stop (at least 1), decided before submission: the
    length cap, or the sampled end-of-sequence position. `finish_reason` says which ("length" or
    "stop"); a scheduler that works ahead can foresee the former but not the latter.
    `max_tokens` is the cap the client asked for, `output_tokens <= max_tokens`.
    `output_keys` are block keys (see `core.prompt`) of the blocks that follow the prompt's last
    full block, once output tokens fill them; empty if generated text can never be a prefix.
    `worker` is an engine; of a server with data-parallel ranks it is the first one, and `rank`
    says which of them is meant, -1 if the server may choose. `transfer` is set if the prompt is
    computed on one engine and the output on another; `onward` is what becomes of the KV of a
    sequence that has received some. Without `reads_cache` all of the prompt is
    computed, whatever is cached (vLLM's `skip_reading_prefix_cache`). `media` are the images of the
    prompt, in order; its block keys tell them apart already.
    """

    prompt: Prompt
    output_tokens: int
    max_tokens: int
    finish_reason: str = "length"
    worker: int = AUTO_WORKER
    priority: int = 0
    output_keys: bytes = b""
    tag: str = ""
    rank: int = -1
    transfer: Transfer | None = None
    onward: Transfer | None = None
    reads_cache: bool = True
    media: tuple[Media, ...] = ()


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop sequence `rid` at the next step boundary; unknown or finished ids are ignored."""

    rid: int


@dataclass(frozen=True, slots=True)
class Pause:
    """Bring an engine to rest between two steps; `core.events.Controlled` says when it is.

    `mode` says what becomes of the sequences in flight. "keep": they stay where they are until
    `Resume` (vLLM's "keep", SGLang's "in_place"). "retract": those running go back to the waiting
    queue and free their blocks (SGLang's "retract"). "finish": they run to their end. "abort": they
    are aborted. In the first two modes new arrivals wait in the engine's queue, in the last two
    outside of it. With `refuse` they are rejected instead, as `Rejected` with reason "paused".
    """

    worker: int
    mode: str = "keep"
    refuse: bool = False


PAUSE_MODES = ("keep", "retract", "finish", "abort")


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on after a `Pause`; nothing if there was none."""

    worker: int


@dataclass(frozen=True, slots=True)
class Flush:
    """Forget the prefix cache, if no block is in use; `feed` returns 1 if that was done, else 0.

    `retract` sends whatever runs back to the waiting queue first, at the next boundary (vLLM's
    `reset_running_requests`); `Controlled` tells when, and `feed` returns 1. `below`: what a vLLM
    engine has below its GPU is forgotten as well, in any case and at once (`reset_external`).
    """

    worker: int
    retract: bool = False
    below: bool = False


@dataclass(frozen=True, slots=True)
class Slow:
    """From the next boundary on every step takes `extra_ns` more than it would; 0 ends it.

    A fault: SGLang's `/slow_down`.
    """

    worker: int
    extra_ns: int


@dataclass(frozen=True, slots=True)
class Storage:
    """Change what lies behind an SGLang engine's host tier; `feed` returns 1, 0 if it has none.

    `verb` is "attach", "detach" or "clear"; `policy` is the prefetch policy from now on, if not
    empty (SGLang's `/hicache/storage-backend`). Nothing waits or runs when one is attached.
    """

    worker: int
    verb: str
    policy: str = ""


Control = Pause | Resume | Flush | Slow | Storage
"""What is asked of a server, and so of every rank of it."""

CHANGES = ("fail", "recover", "leave", "join", "prefill", "decode", "link", "cut")


@dataclass(frozen=True, slots=True)
class Change:
    """Something happens to a server, the one whose first engine is `worker`.

    "fail": what is on it ends with reason "error", transfers break off, and it refuses whatever
    comes, until "recover". "leave": the cluster's own router sends it nothing more (it drains),
    until "join". "prefill", "decode": from now on that router uses it as such. "link": its links
    have `factor` of their speed, which must be said. "cut": transfers to and from it begin again.
    """

    worker: int
    what: str
    factor: float | None = None

    def __post_init__(self) -> None:
        if (self.what == "link") != (self.factor is not None):
            raise ValueError(f"change {self.what!r}: a factor goes with link, and only with that")


Command = Submit | Abort | Control | Change | Word
