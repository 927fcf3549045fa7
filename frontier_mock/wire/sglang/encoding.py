"""SGLang's encoder servers: what `/encode` is asked for and answers. PURE.

A language-only server sends the images of a chat to encoder servers, so many to each, and each
answers once they are encoded (SGLang 0.5.23, disaggregation/encoder/runtime.py, receiver.py).
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from frontier_mock.core.commands import Media, Submit
from frontier_mock.wire.media import MARK, Album, encode_with
from frontier_mock.wire.plan import plan_sequences
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.errors import SglangError
from frontier_mock.wire.sglang.media import images_of
from frontier_mock.wire.sglang.plan import encode, front_of
from frontier_mock.wire.sglang.request import SglangRequest
from frontier_mock.wire.tokenizer import Json

_MODALITIES: Final = ("image", "multi-images", "video", "audio")
_NUMBER_BYTES: Final = 2


class EncodeJob(NamedTuple):
    """Images to encode, as a command to the engine, and the answer's body once that is done."""

    submit: Submit
    body: bytes


def read_encode(body: bytes, served: ServedModel) -> EncodeJob:
    """What a body of `/encode` asks for. Raises SglangError with the server's own answer."""
    try:
        raw: Json = json.loads(body)
    except ValueError:
        raw = None
    if not isinstance(raw, dict):
        raise SglangError(422, "not an object", {"detail": "the body is not a JSON object"})
    wrong = _invalid(raw)
    if wrong:
        raise encode_error(400, wrong, raw.get("req_id"))
    if str(raw["modality"]).lower() not in _MODALITIES[:2]:
        raise encode_error(400, f"modality {raw['modality']} is not supported", raw["req_id"])
    items = raw["mm_items"]
    album = Album(served.media)
    try:
        for item in items if isinstance(items, list) else [items]:
            url = item.get("url") if isinstance(item, dict) else item
            album.add({"image": url}, "image")
        ids, media = encode_with(
            album,
            MARK * len(album.images),
            lambda piece: encode(piece, served, add_special_tokens=False),
            served.tokenizer.vocab_size,
        )
    except (ValueError, NotImplementedError) as error:
        raise encode_error(400, str(error), raw["req_id"]) from None
    plans = plan_sequences(ids, 0, 1, 1, {}, 0, served, media=media)
    return EncodeJob(plans[0].submit, _answer(raw, media, served))


def _invalid(raw: dict[str, Json]) -> str:
    """What is wrong with a request, "" if nothing is (`validate_encode_request`)."""
    rid, modality, items = raw.get("req_id"), raw.get("modality"), raw.get("mm_items")
    if not isinstance(rid, str) or not rid:
        return "missing or invalid req_id"
    if not isinstance(modality, str):
        return "missing or invalid modality"
    if modality.lower() not in _MODALITIES:
        return f"unsupported modality: {modality}"
    if items is None or items == []:
        return "missing or empty mm_items"
    parts, part = raw.get("num_parts"), raw.get("part_idx")
    if not isinstance(parts, int) or isinstance(parts, bool) or parts <= 0:
        return "num_parts must be a positive integer"
    if not isinstance(part, int) or isinstance(part, bool) or not 0 <= part < parts:
        return f"part_idx must be in [0, {parts})"
    return ""


def _answer(raw: dict[str, Json], media: Sequence[Media], served: ServedModel) -> bytes:
    """`null`, or with Mooncake the request with the size of what can be fetched."""
    if front_of(served).encoder.backend != "mooncake":
        return b"null"
    assert served.media is not None
    tokens, width = sum(item.tokens for item in media), served.media.vision.out_size
    told = {name: value for name, value in raw.items() if name != "mm_items"}
    told |= {
        "embedding_size": tokens * width * _NUMBER_BYTES,
        "embedding_len": tokens,
        "embedding_dim": width,
    }
    return json.dumps(told, separators=(",", ":")).encode()


def encode_error(status: int, message: str, rid: Json) -> SglangError:
    """An encoder server's way of saying no."""
    return SglangError(status, message, {"status": "error", "message": message, "req_id": rid})


def encode_requests(
    urls: Sequence[str], num_encoders: int, rid: str, first: int
) -> list[tuple[int, bytes]]:
    """Bodies for the encoders, by number: images in equal shares, one part for each encoder.

    SGLang shuffles its encoders for every request; here the shares begin with encoder `first`.
    """
    base, more = divmod(len(urls), num_encoders)
    counts = [0] * num_encoders
    for place in range(num_encoders):
        counts[(first + place) % num_encoders] = base + (place < more)
    num_parts = sum(count > 0 for count in counts)
    asked: list[tuple[int, bytes]] = []
    done = 0
    for number, count in enumerate(counts):
        if not count:
            continue
        body: Json = {
            "mm_items": [*urls[done : done + count]],
            "num_parts": num_parts,
            "part_idx": len(asked),
            "req_id": f"{rid}_local_part_{len(asked)}",
            "modality": "IMAGE",
            "prefill_host": "127.0.0.1",
            "embedding_port": None,
        }
        asked.append((number, json.dumps(body, separators=(",", ":")).encode()))
        done += count
    return asked


def received(request: SglangRequest) -> SglangRequest:
    """The request whose images others have encoded: their embeddings are on the way."""
    return replace(
        request,
        sequences=tuple(
            replace(one, plan=replace(one.plan, submit=_with_embeddings(one.plan.submit)))
            for one in request.sequences
        ),
    )


def _with_embeddings(submit: Submit) -> Submit:
    media = tuple([replace(item, patches=0, stored=True) for item in submit.media])
    return replace(submit, media=media)


def image_urls(body: bytes) -> list[str]:
    """The images of a body that has been found to be right, in their order."""
    raw: Json = json.loads(body)
    assert isinstance(raw, dict)
    found: list[str] = []
    messages = raw.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            held = part.get("image_url") if isinstance(part, dict) else None
            url = held.get("url") if isinstance(held, dict) else held
            if isinstance(url, str):
                found.append(url)
    data = raw.get("image_data")
    return found if data is None else found + images_of(data, 0, True)
