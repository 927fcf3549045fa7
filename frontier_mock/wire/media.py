"""Images in chat messages: where they stand in a prompt, and what they are to the engine. PURE.

While a conversation is being rendered each image is a mark in its text. Encoding cuts the text at
the marks and puts the image's tokens there, between the two that surround it. Their ids are all the
same; what the prefix cache compares is made of the image's content, as in both engines (vLLM hashes
it with the block, SGLang pads the prompt with it).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from frontier_mock.core.commands import Media
from frontier_mock.cost.specs import VisionSpec
from frontier_mock.cost.vision import image_shape
from frontier_mock.wire.embeddings import EmbeddingPort, from_store
from frontier_mock.wire.images import Image, read_image
from frontier_mock.wire.tokenizer import Json, TokenIds

MARK: Final = "\ue0f1"
"""What an image is while its prompt is text: a character of private use."""
_ID_BITS: Final = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class MediaPort:
    """What a server takes: images of at most `max_images` a prompt, for `vision`.

    `assumed` is the width and height of images that are not sent along but linked. `embeddings` is
    what the server shares of them with others, if it does.
    """

    vision: VisionSpec
    max_images: int = 999
    assumed: tuple[int, int] = (1024, 1024)
    embeddings: EmbeddingPort | None = None


class TooManyError(ValueError):
    """More items of a modality than the server takes; the text is vLLM's."""


@dataclass(slots=True)
class Album:
    """The images of one prompt, in the order in which they were found."""

    port: MediaPort | None
    images: list[Image] = field(default_factory=list)

    @property
    def encodes_only(self) -> bool:
        """Whether the server runs no language model, and every answer ends with its prompt."""
        port = None if self.port is None else self.port.embeddings
        return port is not None and port.encodes_only

    def add(self, part: Json, kind: str) -> str:
        """Take in an image part of a message; the text that stands for it.

        Raises ValueError in vLLM's words for what is no image, or one too many.
        """
        if self.port is None or len(self.images) >= self.port.max_images:
            most = 0 if self.port is None else self.port.max_images
            raise TooManyError(f"At most {most} image(s) may be provided in one prompt.")
        self.images.append(read_image(_url_of(part, kind), self.port.assumed))
        return MARK


def _url_of(part: Json, kind: str) -> str:
    held = part.get(kind) if isinstance(part, dict) else None
    url = held.get("url") if isinstance(held, dict) else held
    if not isinstance(url, str):
        raise ValueError(f"'{kind}' has no url")
    return url


def encode_with(
    album: Album, text: str, encode: Callable[[str], TokenIds], num_ids: int
) -> tuple[TokenIds, tuple[Media, ...]]:
    """Token ids of a prompt with images, below `num_ids`, and where these are.

    Raises ValueError for images that cannot be resized, and for a text with marks of its own.
    """
    port = album.port
    if port is None or not album.images:
        return encode(text), ()
    pieces = text.split(MARK)
    if len(pieces) != len(album.images) + 1:
        at = min(len(album.images), len(pieces)) - 1
        raise ValueError(f"Failed to apply prompt replacement for mm_items['image'][{at}]")
    vision = port.vision
    before, each, after = (
        number if number < num_ids else 0
        for number in (vision.start_id, vision.token_id, vision.end_id)
    )
    parts: list[TokenIds] = [encode(pieces[0])] if pieces[0] else []
    count = sum(map(len, parts))
    media = []
    for image, piece in zip(album.images, pieces[1:], strict=True):
        shape = image_shape(vision, image.width, image.height)
        media.append(Media(image.key, count + 1, shape.tokens, shape.patches))
        parts.append(np.full(shape.tokens + 2, each, dtype=np.uint32))
        parts[-1][0], parts[-1][-1] = before, after
        count += shape.tokens + 2
        if piece:
            parts.append(encode(piece))
            count += len(parts[-1])
    return np.concatenate(parts), from_store(media, port.embeddings)


def content_ids(ids: TokenIds, media: tuple[Media, ...]) -> TokenIds:
    """Ids that are equal for equal prompts only: those of images are made of their content."""
    if not media:
        return ids
    content = ids.copy()
    for item in media:
        places = np.arange(item.tokens, dtype=np.uint64) + np.uint64(item.key & _ID_BITS)
        content[item.start : item.start + item.tokens] = places & np.uint64(_ID_BITS)
    return content
