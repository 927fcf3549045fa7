"""The price of a step, as the worker asks for it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


class DecodeLine(NamedTuple):
    """Duration of a pure decode step as a straight line in the batch's total context.

    A step over a fixed number of sequences whose context lengths sum to `kv` tokens (each counted
    with the token being computed) takes `base_ns + slope_ns * kv`, for `kv <= kv_max`. Beyond it
    ask again. The line is what lets a run of thousands of steps be one event.
    """

    base_ns: float
    slope_ns: float
    kv_max: int


class Chunk(NamedTuple):
    """One sequence's share of a prefill: `new` tokens computed after `past` cached ones."""

    new: int
    past: int


class RankBatch(NamedTuple):
    """What one rank of attention does in a step it shares with others; all zero when idle.

    Its decodes compute `drafts` tokens beyond one each, whose context is in `kv_tokens`. `images`
    are the patches of each image it encodes first.
    """

    num_decodes: int
    kv_tokens: int
    chunks: Sequence[Chunk] = ()
    drafts: int = 0
    images: Sequence[int] = ()


class LockstepRun(NamedTuple):
    """Durations of a run of joint decode steps: `first_ns`, then `growth_ns` more for each.

    It holds for `steps` steps, at least one; then, or when a batch changes, ask again.
    """

    first_ns: float
    growth_ns: float
    steps: int


class StepCost(Protocol):
    """Prices steps for one worker; a pure function of its arguments."""

    def decode(self, num_seqs: int, kv_tokens: int) -> DecodeLine:
        """The line that holds at `kv_tokens` for a batch of `num_seqs` one-token decodes."""
        ...

    def mixed(self, num_decodes: int, decode_kv_tokens: int, chunks: Sequence[Chunk]) -> int:
        """Nanoseconds for a step with prefill chunks in it, beside `num_decodes` decodes.

        Every chunk needs its own attention; the linear layers see all tokens together.
        """
        ...


@runtime_checkable
class EncodingCost(StepCost, Protocol):
    """Also prices the image encoder of the model."""

    def encode_ns(self, images: Sequence[int]) -> int:
        """Nanoseconds of encoding images of so many patches each, all in one call."""
        ...


@runtime_checkable
class LockstepCost(StepCost, Protocol):
    """Also prices the steps of ranks that wait for each other in every expert layer."""

    def lockstep(self, batches: Sequence[RankBatch]) -> int:
        """Nanoseconds of one step of all ranks, idle ones among them."""
        ...

    def lockstep_run(self, batches: Sequence[RankBatch]) -> LockstepRun:
        """The steps from this one on while every rank goes on decoding what it decodes now."""
        ...


@runtime_checkable
class StagedCost(StepCost, Protocol):
    """Also prices a step stage by stage, for an engine with pipeline parallelism.

    `gap_ns` passes before each step on the first stage where steps are scheduled ahead.
    """

    stages: tuple[StepCost, ...]
    gap_ns: float

    def cpu_ns(self, rows: int) -> float:
        """The engine core's own work on a step with so many sequences in it."""
        ...

    def hop_ns(self, stage: int, tokens: int) -> float:
        """The way from `stage` to the next one of what so many tokens are by then."""
        ...


@runtime_checkable
class DraftedCost(StepCost, Protocol):
    """Also prices steps in which decodes verify drafts, and have new ones made."""

    def drafted(self, batch: RankBatch) -> int:
        """Nanoseconds of one step, whatever is in it."""
        ...

    def drafted_run(
        self, seqs: NDArray[np.int64], tokens: NDArray[np.int64], kv_tokens: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Nanoseconds of each step of a run without chunks.

        In step i `seqs[i]` sequences compute `tokens[i]` tokens over `kv_tokens[i]` of context.
        What a step takes depends on its own figures only.
        """
        ...
