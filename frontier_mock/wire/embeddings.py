"""Embeddings of images that vLLM servers share: who has made one, and who need not. PURE.

A producer's answer names what it has put into the store; a consumer that finds an image there does
not encode it (vLLM 0.33, ec_transfer/ec_connector/example_connector.py).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from frontier_mock.core.commands import Media
from frontier_mock.cost.specs import VisionSpec
from frontier_mock.cost.vision import image_grid
from frontier_mock.wire.images import Image
from frontier_mock.wire.tokenizer import Json

_NAME_BYTES = 32
"""Of vLLM's hashes of images: BLAKE3, 64 hex digits."""


class EmbeddingStore(Protocol):
    """What several servers keep embeddings in, by the names of images."""

    def has(self, name: str) -> bool:
        """Whether it is there."""
        ...

    def keep(self, name: str) -> None:
        """Put it there."""
        ...


class SharedMemory:
    """The store of the servers of one process."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def has(self, name: str) -> bool:
        """See `EmbeddingStore`."""
        return name in self._names

    def keep(self, name: str) -> None:
        """See `EmbeddingStore`."""
        self._names.add(name)


@dataclass(frozen=True, slots=True)
class EmbeddingPort:
    """A server's part in it. One that produces and does not consume has no language model."""

    store: EmbeddingStore
    produces: bool
    consumes: bool

    @property
    def encodes_only(self) -> bool:
        """Whether it answers without a word."""
        return not self.consumes


class Encoded(NamedTuple):
    """What a producer's answer tells: `ec_transfer_params` by the names of the images."""

    port: EmbeddingPort
    params: dict[str, Json]

    def keep(self) -> None:
        """The images are encoded: they are in the store from now on."""
        for name in self.params:
            self.port.store.keep(name)


def name_of(key: int) -> str:
    """An image's name in the store, as long as vLLM's; ours is made of our own key."""
    return hashlib.blake2b(key.to_bytes(8, "little"), digest_size=_NAME_BYTES).hexdigest()


def from_store(media: Sequence[Media], port: EmbeddingPort | None) -> tuple[Media, ...]:
    """The images of a prompt, of which those in the store need no encoder but have to be read."""
    if port is None:
        return tuple(media)
    return tuple(
        replace(item, patches=0, stored=port.consumes)
        if port.store.has(name_of(item.key))
        else item
        for item in media
    )


def encoded(images: Sequence[Image], vision: VisionSpec, port: EmbeddingPort) -> Encoded:
    """What a producer's answer says once it has computed a prompt with these images."""
    params: dict[str, Json] = {}
    places: dict[str, list[Json]] = {}
    for index, image in enumerate(images):
        name = name_of(image.key)
        if name not in places:
            places[name] = []
            metadata: dict[str, Json] = {}
            if not vision.image_size:
                # Qwen's models; what others publish is the embedding alone.
                metadata["image_grid_thw"] = [1, *image_grid(vision, image.width, image.height)]
            params[name] = {
                "modality": "image",
                "item_indices": places[name],
                "metadata": metadata,
            }
        places[name].append(index)
    return Encoded(port, params)
