"""Images that `replay` sends, read as a decoder of PNG files would."""

import base64
import struct
import zlib

import pytest

from frontier_mock.client.endpoint import Endpoint, EndpointSpec
from frontier_mock.client.pictures import picture_url
from frontier_mock.core.commands import Media, Submit
from frontier_mock.wire.images import image_size, read_image
from frontier_mock.workload.prompts import Piece, StreamPrompt


@pytest.mark.parametrize(("width", "height"), [(1024, 768), (1, 1), (3, 50), (65, 2)])
def test_a_picture_is_a_png_file_of_its_size(width: int, height: int) -> None:
    url = picture_url(1 << 63 | 5, width, height)
    assert len(url) < 1200
    content = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    assert image_size(content) == (width, height)
    at, names, pixels = 8, [], b""
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        body = content[at + 4 : at + 8 + size]
        assert struct.unpack(">I", content[at + 8 + size : at + 12 + size]) == (zlib.crc32(body),)
        names.append(body[:4])
        if body[:4] == b"IDAT":
            pixels = zlib.decompress(body[4:])
        at += 12 + size
    assert names == [b"IHDR", b"IDAT", b"IEND"]
    row_bytes = 1 + -(-width // 8)
    assert len(pixels) == height * row_bytes
    # Every row says that it is not filtered, and the first pixel is the key's first bit.
    assert not any(pixels[::row_bytes])
    assert pixels[1] & 0x80


def test_pictures_are_equal_where_their_keys_are() -> None:
    keys = [read_image(picture_url(key, 9, 9), (0, 0)).key for key in (1, 2, 1)]
    assert keys[0] == keys[2] != keys[1]


def test_a_prompts_images_are_parts_of_its_message() -> None:
    prompt = StreamPrompt(1, (Piece(0, 40),))
    media = (Media(7, 5, 10, 40), Media(8, 17, 10, 40))
    endpoint = Endpoint(EndpointSpec("http://127.0.0.1:1", "m", api="chat", picture=(28, 28)))
    body = endpoint._body(Submit(prompt=prompt, output_tokens=3, max_tokens=3, media=media), {})
    endpoint.http.close()
    text = prompt.text({})
    for key in (7, 8):
        assert picture_url(key, 28, 28).encode() in body
    # Between the images there is nothing; before and after what is not theirs.
    assert f'[{{"type":"text","text":"{text[:4]}"}},{{"type":"image_url"'.encode() in body
    assert f'{{"type":"text","text":"{text[28:]}"}}]'.encode() in body
    assert body.count(b'"type":"text"') == 2
