"""Synthetic prompts that begin with images. PURE.

Images are part of a prompt's tokens, not on top of them: each takes as many as the model makes of
its size, and two that surround it. Prompts that are equal have equal images; beyond that images may
repeat by themselves, which an encoder sees and the prefix cache, to which prompts stay what they
are, does not.
"""

from collections.abc import Sequence
from dataclasses import replace

from frontier_mock.core.commands import Media
from frontier_mock.cost.vision import ImageShape
from frontier_mock.simtime import SimTime
from frontier_mock.workload.source import Item, Source, Timed
from frontier_mock.workload.specs import PromptSpec

_AROUND = 2
"""Tokens around each image."""


class NoRoomError(ValueError):
    """A prompt is too short for its images; the message has the numbers."""


class Pictured:
    """A source whose prompts begin with images of `shape`, `prompts.images` of them (`Source`)."""

    def __init__(self, source: Source, prompts: PromptSpec, shape: ImageShape) -> None:
        assert prompts.images is not None
        self.num_requests = source.num_requests
        self.releases = source.releases
        self.feeds_back = source.feeds_back
        self.lanes_apart = source.lanes_apart
        self._source = source
        self._images = prompts.images
        self._cycle = prompts.distinct_prompts
        self._begin = prompts.shared_prefix_tokens
        self._shape = shape

    def initial(self) -> Sequence[Timed]:
        """See `Source`. Raises NoRoomError for a prompt that its images do not fit into."""
        return [self._see(timed) for timed in self._source.initial()]

    def on_finish(self, item: Item, t_ns: SimTime) -> Sequence[Timed]:
        """See `Source`. Raises NoRoomError as `initial` does."""
        return [self._see(timed) for timed in self._source.on_finish(item, t_ns)]

    def _see(self, timed: Timed) -> Timed:
        count, distinct, shape = self._images.count, self._images.distinct, self._shape
        prompt = timed.item.seq if self._cycle is None else timed.item.seq % self._cycle
        step = shape.tokens + _AROUND
        if self._begin + count * step > timed.submit.prompt.num_tokens:
            tokens = timed.submit.prompt.num_tokens
            raise NoRoomError(
                f"input_tokens: a prompt of {tokens} tokens has no room for {count} images of "
                f"{step}"
            )
        media = []
        for i in range(count):
            key = prompt * count + i
            if distinct is not None:
                key %= distinct
            media.append(Media(key, self._begin + i * step + 1, shape.tokens, shape.patches))
        return timed._replace(submit=replace(timed.submit, media=tuple(media)))
