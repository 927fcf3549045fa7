"""Images as clients send them: how large one is, from the first bytes of its file. PURE.

Engines decode images; all that matters here is their size in pixels and whether two are the same.
What is behind a URL of another host is not fetched: such an image has a size that the server was
told to assume, and is the same as another behind the same URL.
"""

import base64
import binascii
import hashlib
from collections.abc import Callable
from typing import Final, NamedTuple
from urllib.parse import urlsplit

UNREADABLE: Final = "Failed to load image: cannot identify image file <_io.BytesIO object>"
"""What Pillow says of bytes that are no image, in vLLM's words, less the object's address."""


class Image(NamedTuple):
    """Size in pixels, and a key that is equal for equal images."""

    width: int
    height: int
    key: int


def read_image(url: str, assumed: tuple[int, int]) -> Image:
    """The image behind a `data:` or other URL; `assumed` is the size of what is not fetched.

    Raises ValueError, in vLLM's words, for what is no image or not allowed, and NotImplementedError
    where vLLM does.
    """
    if url.startswith("data:"):
        head, _, data = url[len("data:") :].partition(",")
        _, mark, encoding = head.rpartition(";")
        if not mark or encoding != "base64":
            raise NotImplementedError("Only base64 data URLs are supported for now.")
        try:
            content = base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise ValueError(str(error)) from None
        width, height = image_size(content)
        return Image(width, height, _key(content))
    scheme = urlsplit(url).scheme
    if scheme == "file":
        raise ValueError("Cannot load local files without `--allowed-local-media-path`.")
    if scheme not in ("http", "https"):
        raise ValueError("The URL must be either a HTTP, data or file URL.")
    return Image(*assumed, _key(url.encode()))


def source_url(source: object) -> str:
    """The URL of what Anthropic's API calls an image's source; "" for anything else."""
    match source:
        case {"type": "base64", "media_type": str(kind), "data": str(data)}:
            return f"data:{kind};base64,{data}"
        case {"type": "url", "url": str(url)}:
            return url
        case _:
            return ""


def image_size(content: bytes) -> tuple[int, int]:
    """Width and height of a PNG, JPEG, GIF, WebP or BMP file. Raises ValueError for others."""
    for magic, reader in _READERS:
        if content.startswith(magic):
            try:
                width, height = reader(content)
            except IndexError:
                break
            if width > 0 and height > 0:
                return width, height
            break
    raise ValueError(UNREADABLE)


def _key(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1


def _big(content: bytes, at: int, size: int) -> int:
    if at + size > len(content):
        raise IndexError(at)
    return int.from_bytes(content[at : at + size], "big")


def _little(content: bytes, at: int, size: int) -> int:
    if at + size > len(content):
        raise IndexError(at)
    return int.from_bytes(content[at : at + size], "little")


def _png(content: bytes) -> tuple[int, int]:
    return _big(content, 16, 4), _big(content, 20, 4)


def _gif(content: bytes) -> tuple[int, int]:
    return _little(content, 6, 2), _little(content, 8, 2)


def _bmp(content: bytes) -> tuple[int, int]:
    height = _little(content, 22, 4)
    # Negative heights are of images stored from the top.
    return _little(content, 18, 4), min(height, (1 << 32) - height)


def _jpeg(content: bytes) -> tuple[int, int]:
    """The frame header: the first marker SOF0 to SOF15 that is none of DHT, JPG and DAC."""
    at = 2
    while True:
        while _big(content, at, 1) != 0xFF:
            at += 1
        while _big(content, at, 1) == 0xFF:
            at += 1
        marker = content[at]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return _big(content, at + 6, 2), _big(content, at + 4, 2)
        at += 1
        if marker != 0x01 and not 0xD0 <= marker <= 0xD8:
            at += max(2, _big(content, at, 2))


def _webp(content: bytes) -> tuple[int, int]:
    kind = content[12:16]
    if kind == b"VP8X":
        return _little(content, 24, 3) + 1, _little(content, 27, 3) + 1
    if kind == b"VP8L":
        bits = _little(content, 21, 4)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return _little(content, 26, 2) & 0x3FFF, _little(content, 28, 2) & 0x3FFF


_READERS: Final[tuple[tuple[bytes, Callable[[bytes], tuple[int, int]]], ...]] = (
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"\xff\xd8\xff", _jpeg),
    (b"GIF8", _gif),
    (b"RIFF", _webp),
    (b"BM", _bmp),
)
