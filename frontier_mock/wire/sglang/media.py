"""Images of SGLang's own /generate: `image_data`, and the places for them in a prompt. PURE.

A text has the model's own words for an image where one belongs, a prompt of ids the token that
stands for it; each is widened to as many tokens as the image takes.
"""

import base64
import binascii
from collections.abc import Sequence
from typing import Final

import numpy as np

from frontier_mock.core.commands import Media
from frontier_mock.cost.vision import image_shape
from frontier_mock.wire.images import Image, read_image
from frontier_mock.wire.media import MARK, Album, MediaPort, encode_with
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.plan import encode
from frontier_mock.wire.tokenizer import Json, TokenIds

_PLACE: Final = "<|vision_start|><|image_pad|><|vision_end|>"
"""What Qwen's chat template writes for an image."""

_Seen = tuple[TokenIds, tuple[Media, ...]]


def images_of(data: Json, index: int, single: bool) -> list[str]:
    """The images of prompt `index`. Raises ValueError for what is neither text nor a list."""
    mine: Json = data
    if not single and isinstance(data, list):
        mine = data[index] if index < len(data) else None
    listed = mine if isinstance(mine, list) else [mine] if mine is not None else []
    found = []
    for one in listed:
        url = one.get("url") if isinstance(one, dict) else one
        if not isinstance(url, str):
            raise ValueError(f"Invalid image: {one}")
        found.append(_as_url(url))
    return found


def prompt_with(prompt: str | TokenIds, urls: Sequence[str], served: ServedModel) -> _Seen:
    """Ids of a prompt with a place for each image. Raises ValueError for another number of them."""
    port = served.media
    if isinstance(prompt, str):
        return _text_with(prompt, urls, served) if urls else (encode(prompt, served), ())
    return _ids_with(prompt, urls, port) if urls and port is not None else (prompt, ())


def _text_with(text: str, urls: Sequence[str], served: ServedModel) -> _Seen:
    album = Album(served.media)
    places = text.count(_PLACE)
    if places != len(urls):
        raise ValueError(_mismatch(places, len(urls)))
    for url in urls:
        album.add({"image": url}, "image")
    marked = text.replace(MARK, "").replace(_PLACE, MARK)
    return encode_with(
        album, marked, lambda piece: encode(piece, served), served.tokenizer.vocab_size
    )


def _ids_with(ids: TokenIds, urls: Sequence[str], port: MediaPort) -> _Seen:
    """Ids with each place widened."""
    places = np.flatnonzero(ids == port.vision.token_id).tolist()
    if len(places) != len(urls):
        raise ValueError(_mismatch(len(places), len(urls)))
    if len(urls) > port.max_images:
        raise ValueError(f"At most {port.max_images} image(s) may be provided in one prompt.")
    parts: list[TokenIds] = []
    media: list[Media] = []
    done = count = 0
    for place, url in zip(places, urls, strict=True):
        image: Image = read_image(url, port.assumed)
        shape = image_shape(port.vision, image.width, image.height)
        count += place - done
        media.append(Media(image.key, count, shape.tokens, shape.patches))
        parts += [ids[done:place], np.full(shape.tokens, ids[place], dtype=ids.dtype)]
        count += shape.tokens
        done = place + 1
    return np.concatenate([*parts, ids[done:]]), tuple(media)


def _mismatch(places: int, images: int) -> str:
    return f"Mismatch: the prompt has {places} image placeholders, but {images} images were given."


def _as_url(text: str) -> str:
    """SGLang takes the bare base64 of a file as well."""
    if text.startswith(("data:", "http://", "https://", "file://")):
        return text
    try:
        base64.b64decode(text, validate=True)
    except binascii.Error:
        return text
    return f"data:image;base64,{text}"
