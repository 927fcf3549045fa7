"""What an engine says of prompts that are computed on one engine and decoded on another.

Theory of operation. A transfer has two sequences: the *sender* computes the prompt and one token,
the *receiver* produces the output. Each belongs to its own engine; what lies between them is an
`Exchange`, which hears of both:

1. `arrives`: handed over by the front end. It says whether the engine may have the sequence yet
   (SGLang's prefill engine waits until the receiver has allocated).
2. `allocated`: the receiver has blocks for its whole prompt, some of them cached already.
3. `computing`, `computed`: so much of the sender's prompt is being made, or exists. `finished`:
   all of it, and the sender has ended; its blocks are pinned.
4. `gone`: aborted, or otherwise ended before its part was done.

The exchange answers later, never at the same nanosecond: `Worker.admit`, `received`, `lost`,
`release`. So a boundary and what it causes elsewhere never meet in one instant, and the order of
workers within an instant cannot matter.
"""

from typing import Protocol

from frontier_mock.serving.sequence import Sequence
from frontier_mock.simtime import SimTime


class Exchange(Protocol):
    """See the theory of operation at the top of this module."""

    def arrives(self, seq: Sequence, t_ns: SimTime) -> bool:
        """The front end handed it over; False if it must wait outside for `Worker.admit`."""
        ...

    def allocated(self, seq: Sequence, cached_tokens: int, t_ns: SimTime) -> None:
        """A receiver has its blocks; the first `cached_tokens` tokens need not come."""
        ...

    def scheduled(self, seq: Sequence, t_ns: SimTime) -> None:
        """A sender's prompt begins to be computed."""
        ...

    def computing(self, seq: Sequence, tokens: int, t_ns: SimTime, until_ns: SimTime) -> None:
        """From `t_ns` to `until_ns` a step brings a sender's prompt to `tokens` tokens.

        Said of those that send each layer as it is done.
        """
        ...

    def computed(self, seq: Sequence, tokens: int, t_ns: SimTime) -> None:
        """The first `tokens` tokens of a sender's prompt are in its blocks."""
        ...

    def finished(self, seq: Sequence, t_ns: SimTime) -> None:
        """A sender's prompt is computed and its blocks are pinned."""
        ...

    def gone(self, seq: Sequence, t_ns: SimTime) -> None:
        """It ended in another way."""
        ...


def sends(seq: Sequence) -> bool:
    """Whether its blocks are for another engine."""
    return seq.transfer is not None and seq.transfer.sends
