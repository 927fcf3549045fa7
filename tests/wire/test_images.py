"""Images in prompts: how large they are, where they stand, and what engines say of bad ones."""

import base64
import json
import struct
from dataclasses import replace

import pytest

from frontier_mock.config.profiles import load_model
from frontier_mock.core.commands import Submit
from frontier_mock.wire.anthropic import parse_messages
from frontier_mock.wire.chat import parse_chat
from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.images import UNREADABLE, image_size
from frontier_mock.wire.media import MediaPort
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.chat import parse_chat as parse_sglang
from frontier_mock.wire.sglang.errors import SglangError
from frontier_mock.wire.sglang.generate import parse_generate
from frontier_mock.wire.sglang.late import LateError
from frontier_mock.wire.tokenize import tokenize_body
from tests.serve.sglang_live import sglang_model

VISION = load_model("Qwen/Qwen2.5-VL-7B-Instruct").vision
assert VISION is not None
PORT = MediaPort(VISION, max_images=3, assumed=(280, 280))


def png(width: int, height: int, color: int = 0) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + head + bytes([color])


def url_of(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def body_of(*urls: str, text: str = "What is this?", **fields: object) -> bytes:
    parts: list[dict[str, object]] = [{"type": "text", "text": text}]
    parts += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    messages = [{"role": "user", "content": parts}]
    return json.dumps({"messages": messages, "max_tokens": 4, **fields}).encode()


@pytest.fixture
def seeing(served: ServedModel) -> ServedModel:
    return replace(served, media=PORT, max_model_len=4096)


def submit_of(served: ServedModel, *urls: str, text: str = "What is this?") -> Submit:
    return parse_chat(body_of(*urls, text=text), {}, served).sequences[0].submit


JPEG = b"\xff\xd8\xff\xe0\x00\x04ab\xff\xff\xc4\x00\x03x\xff\xc2\x00\x11\x08" + struct.pack(
    ">HH", 480, 640
)


@pytest.mark.parametrize(
    "content",
    [
        png(640, 480)[:24],
        JPEG,
        b"GIF89a" + struct.pack("<HH", 640, 480),
        b"BM" + bytes(16) + struct.pack("<ii", 640, -480),
        b"RIFF\0\0\0\0WEBPVP8X" + bytes(8) + b"\x7f\x02\x00\xdf\x01\x00",
        b"RIFF\0\0\0\0WEBPVP8L" + bytes(5) + struct.pack("<I", 639 | 479 << 14),
        b"RIFF\0\0\0\0WEBPVP8 " + bytes(10) + struct.pack("<HH", 640, 480),
    ],
    ids=["png", "jpeg", "gif", "bmp", "webp", "webp-lossless", "webp-lossy"],
)
def test_files_say_how_large_their_image_is(content: bytes) -> None:
    assert image_size(content) == (640, 480)
    for end in range(len(content)):
        with pytest.raises(ValueError, match="cannot identify image file"):
            image_size(content[:end])


def test_an_image_is_as_many_tokens_as_its_size_makes(seeing: ServedModel) -> None:
    text = submit_of(replace(seeing, media=None), text="What is this?").prompt.num_tokens
    submit = submit_of(seeing, url_of(png(280, 560)), "https://example.org/a.png")
    first, second = submit.media
    assert (first.tokens, first.patches) == (200, 800)
    # What is linked is not fetched: it is as large as the server was told.
    assert (second.tokens, second.patches) == (100, 400)
    # Each is joined to the text by a line break and stands between two tokens of its own.
    assert submit.prompt.num_tokens == text + 2 * 3 + 300
    assert second.start == first.start + 200 + 3


def test_what_the_prefix_cache_compares_is_the_image(seeing: ServedModel) -> None:
    def keys(content: bytes) -> bytes:
        return submit_of(seeing, url_of(content)).prompt.block_keys(seeing.block_tokens)

    one, same, other = keys(png(280, 280)), keys(png(280, 280)), keys(png(280, 280, 1))
    assert one == same
    assert one != other
    assert len(one) == len(other)
    before = 8 * (submit_of(seeing, url_of(png(280, 280))).media[0].start // seeing.block_tokens)
    assert one[:before] == other[:before]


def test_all_routes_that_take_chats_take_images(seeing: ServedModel) -> None:
    image = url_of(png(280, 560))
    whole = submit_of(seeing, image)
    told = json.loads(tokenize_body(body_of(image, model="mock"), seeing))
    assert told["count"] == whole.prompt.num_tokens
    source = {"type": "base64", "media_type": "image/png", "data": image.partition(",")[2]}
    content = [{"type": "text", "text": "What is this?"}, {"type": "image", "source": source}]
    asked = {"model": "mock", "max_tokens": 4, "messages": [{"role": "user", "content": content}]}
    spoken = parse_messages(json.dumps(asked).encode(), {}, seeing)
    assert spoken.sequences[0].submit.media == whole.media


REFUSED = [
    ("data:image/png;base64,AAAA", 400, UNREADABLE),
    ("data:image/png;base64,AA", 400, "Incorrect padding"),
    ("data:image/png,AAAA", 501, "Only base64 data URLs are supported for now."),
    ("file:///etc/hosts", 400, "Cannot load local files without `--allowed-local-media-path`."),
    ("ftp://example.org/a", 400, "The URL must be either a HTTP, data or file URL."),
    (url_of(png(3000, 10)), 400, "absolute aspect ratio must be smaller than 200, got 300.0"),
    (url_of(png(2000, 2000)), 400, "is longer than the maximum model length of 4096."),
]


@pytest.mark.parametrize(("url", "status", "words"), REFUSED)
def test_a_bad_image_is_refused_in_vllms_words(
    url: str, status: int, words: str, seeing: ServedModel
) -> None:
    with pytest.raises(ApiError) as caught:
        parse_chat(body_of(url), {}, seeing)
    assert caught.value.status == status
    assert words in caught.value.message


def test_one_image_too_many_and_marks_of_the_users_own_are_refused(seeing: ServedModel) -> None:
    image = url_of(png(28, 28))
    with pytest.raises(ApiError, match=r"At most 3 image\(s\) may be provided in one prompt"):
        parse_chat(body_of(*[image] * 4), {}, seeing)
    with pytest.raises(ApiError, match=r"prompt replacement for mm_items\['image'\]\[0\]"):
        parse_chat(body_of(image, text="\ue0f1"), {}, seeing)


@pytest.mark.parametrize("kind", ["video_url", "audio_url", "input_audio"])
def test_other_media_are_refused_as_ever(kind: str, seeing: ServedModel) -> None:
    part = {"type": kind, kind: {"url": "https://example.org/x"}}
    body = {"messages": [{"role": "user", "content": [part]}], "max_tokens": 4}
    with pytest.raises(ApiError, match=r"At most 0 (video|audio)\(s\) may be provided"):
        parse_chat(json.dumps(body).encode(), {}, seeing)


def test_a_model_of_text_alone_takes_no_image(served: ServedModel) -> None:
    with pytest.raises(ApiError, match=r"At most 0 image\(s\) may be provided in one prompt"):
        parse_chat(body_of("https://example.org/a.png"), {}, served)
    with pytest.raises(SglangError, match="Model only supports text input"):
        parse_sglang(body_of("https://example.org/a.png", model="mock"), {}, sglang_model())


def test_sglang_takes_the_same_images() -> None:
    served = replace(sglang_model(), media=PORT)
    request = parse_sglang(body_of(url_of(png(280, 280)), model="mock"), {}, served)
    (item,) = request.sequences[0].plan.submit.media
    assert (item.tokens, item.patches) == (100, 400)
    assert request.sequences[0].prompt_tokens > 100
    with pytest.raises(SglangError, match="Failed to load image"):
        parse_sglang(body_of("data:image/png;base64,AAAA", model="mock"), {}, served)


PLACE = "<|vision_start|><|image_pad|><|vision_end|>"


def generate(served: ServedModel, **fields: object) -> list[Submit]:
    body = json.dumps({"sampling_params": {"max_new_tokens": 4}, **fields}).encode()
    return [one.plan.submit for one in parse_generate(body, {}, served).sequences]


def test_sglangs_generate_takes_images_with_text_and_with_ids() -> None:
    served = replace(sglang_model(), media=PORT)
    image, bare = url_of(png(280, 280)), base64.b64encode(png(280, 560)).decode()
    (submit,) = generate(served, text=f"Look: {PLACE}{PLACE} well?", image_data=[image, bare])
    assert [item.tokens for item in submit.media] == [100, 200]
    assert submit.media[0].start == len("Look: ") + 1
    assert VISION is not None
    ids = [5, 6, VISION.token_id, 7]
    (submit,) = generate(replace(served, vocab_size=152064), input_ids=ids, image_data=image)
    assert submit.prompt.num_tokens == 3 + 100
    assert [(item.start, item.tokens) for item in submit.media] == [(2, 100)]
    several = generate(served, text=[f"{PLACE}a", "b"], image_data=[[image], None])
    assert [len(submit.media) for submit in several] == [1, 0]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text": "no place", "image_data": "x"}, "0 image placeholders, but 1 images"),
        ({"input_ids": [1, 2], "image_data": ["x", "y"]}, "0 image placeholders, but 2 images"),
        ({"text": PLACE, "image_data": "not base64!"}, "must be either a HTTP, data or file URL"),
        ({"text": PLACE, "image_data": "AAAA"}, "Failed to load image"),
        ({"text": PLACE, "image_data": [3]}, "Invalid image: 3"),
        ({"text": "a", "video_data": "x"}, "video_data is given, but the model"),
    ],
)
def test_what_sglangs_generate_cannot_see_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises((LateError, SglangError, ValueError)) as caught:
        generate(replace(sglang_model(), media=PORT), **fields)
    assert words in str(getattr(caught.value, "message", caught.value))
