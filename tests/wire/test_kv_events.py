"""KV events as consumers read them: decoders written to vLLM's and SGLang's schemas."""

import json
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from frontier_mock.cluster.observed import KvBatch
from frontier_mock.core.commands import Submit
from frontier_mock.core.prompt import KEY_BYTES, KeyedPrompt
from frontier_mock.serving.kv_recording import Change, Cleared, Removed, Stored
from frontier_mock.wire.completions import parse_completion
from frontier_mock.wire.kv_events import (
    DIALECTS,
    AllCleared,
    BlocksRemoved,
    BlocksStored,
    KvEventMapper,
    KvEventWriter,
    path_ids,
)
from frontier_mock.wire.kv_hashes import (
    PLAIN,
    BlockHasher,
    Namespace,
    SglangHasher,
    VllmHasher,
)
from frontier_mock.wire.kv_tokens import block_ids
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.text import TextRing
from frontier_mock.wire.tokenizer import ByteTokenizer

BLOCK = 4


def submit_of(
    prompt: str | list[int], output: int, headers: dict[str, str] | None = None, **more: object
) -> Submit:
    tokenizer = ByteTokenizer()
    served = ServedModel(
        ("m",),
        "m",
        4096,
        tokenizer,
        TextRing(tokenizer, BLOCK),
        eos=None,
        keeps_tokens=True,
        adapters={"poet": "/adapters/poet"},
    )
    body = {"model": "m", "prompt": prompt, "max_tokens": output, **more}
    return parse_completion(json.dumps(body).encode(), headers or {}, served).sequences[0].submit


def keys_of(submit: Submit) -> bytes:
    return submit.prompt.block_keys(BLOCK) + submit.output_keys


def mapped(hasher: BlockHasher, *batches: tuple[Change, ...]) -> list[object]:
    mapper = KvEventMapper(hasher, BLOCK, merges=isinstance(hasher, SglangHasher))
    events: list[object] = []
    for changes in batches:
        events += mapper.events(KvBatch(0, 0, changes))
    return events


def test_token_ids_are_those_of_prompt_and_output() -> None:
    ids = list(range(100, 110))
    submit = submit_of(ids, 11)
    keys = keys_of(submit)
    assert len(keys) == 5 * KEY_BYTES
    rows = block_ids(submit, keys, 0, BLOCK)
    flat = [token for row in rows for token in row]
    assert [len(row) for row in rows] == [BLOCK] * 5
    assert flat[:10] == ids
    text = submit.prompt.text
    assert flat[10:] == text.ids(0, 10)
    assert block_ids(submit, keys, 3, BLOCK) == rows[3:]


def test_prompts_without_tokens_have_made_up_ones() -> None:
    one = Submit(KeyedPrompt(8, BLOCK, b"aaaaaaaabbbbbbbb"), 1, 1)
    other = Submit(KeyedPrompt(8, BLOCK, b"aaaaaaaacccccccc"), 1, 1)
    first = block_ids(one, one.prompt.block_keys(BLOCK), 0, BLOCK)
    second = block_ids(other, other.prompt.block_keys(BLOCK), 0, BLOCK)
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert all(0 <= token < 1 << 15 for row in first for token in row)


def test_vllm_events_have_vllms_hashes() -> None:
    ids = list(range(12))
    submit = submit_of(ids, 1, cache_salt="s")
    keys = keys_of(submit)
    hasher = VllmHasher("sha256_cbor")
    expected = []
    before = hasher.root(PLAIN)
    for i in range(3):
        before = hasher.next(before, ids[4 * i : 4 * i + 4], Namespace("s"), first=i == 0)
        expected.append(before)
    events = mapped(
        hasher,
        (Stored(keys[:16], 0, submit),),
        (Stored(keys, 2, submit), Removed(keys, 1)),
        (Cleared(),),
    )
    assert events == [
        BlocksStored(expected[:2], None, ids[:8], BLOCK, "s"),
        BlocksStored(expected[2:], expected[1], ids[8:], BLOCK, "s"),
        BlocksRemoved([expected[2]]),
        BlocksRemoved([expected[1]]),
        AllCleared(),
    ]


def test_session_of_a_request() -> None:
    """vLLM 0.33 `entrypoints/generate/base/serving._get_session_id`, in its order."""
    ids, header = list(range(8)), {"x-session-id": "of the header"}
    extra = {"vllm_xargs": {"session_id": "extra"}}
    for submit, session in (
        (submit_of(ids, 1), None),
        (submit_of(ids, 1, header, session_id="of the body", **extra), "of the body"),
        (submit_of(ids, 1, header, **extra), "of the header"),
        (submit_of(ids, 1, **extra), "extra"),
    ):
        (event,) = mapped(VllmHasher(), (Stored(keys_of(submit), 0, submit),))
        assert isinstance(event, BlocksStored)
        assert event.session_id == session
        payload = KvEventWriter(VllmHasher(), "vllm-map").payload(0.0, [event], 0)
        (stored,) = msgspec.msgpack.decode(payload, type=VllmBatch)[1]
        assert isinstance(stored, VllmStored)
        assert stored.session_id == session
        assert (b"session_id" in payload) == (session is not None)


def test_blocks_of_an_adapter_are_its_own() -> None:
    ids = list(range(8))
    plain, tuned = submit_of(ids, 1), submit_of(ids, 1, model="poet", cache_salt="s")
    assert keys_of(plain) != keys_of(tuned)
    for hasher in (VllmHasher(), SglangHasher()):
        changes = tuple(Stored(keys_of(submit), 0, submit) for submit in (plain, tuned))
        one, other = mapped(hasher, changes)
        assert isinstance(one, BlocksStored)
        assert isinstance(other, BlocksStored)
        assert (one.adapter, other.adapter) == (None, "poet")
        assert set(one.hashes).isdisjoint(other.hashes)
    payload = KvEventWriter(VllmHasher(), "vllm-map").payload(0.0, [other], 0)
    (stored,) = msgspec.msgpack.decode(payload, type=VllmBatch)[1]
    assert isinstance(stored, VllmStored)
    assert (stored.lora_name, stored.extra_keys) == ("poet", [("poet", "s"), ("poet",)])


def test_sglang_merges_what_continues() -> None:
    ids = list(range(16))
    submit = submit_of(ids, 1)
    other = submit_of(ids[:4] + list(range(50, 58)), 1)
    keys, others = keys_of(submit), keys_of(other)
    events = mapped(
        SglangHasher(),
        (
            Stored(keys[:16], 0, submit),
            Stored(keys, 2, submit),
            Stored(others, 1, other),
            Removed(keys, 2),
            Removed(others, 1),
        ),
    )
    assert [type(event) for event in events] == [BlocksStored, BlocksStored, BlocksRemoved]
    first, second, gone = events
    assert isinstance(first, BlocksStored)
    assert isinstance(second, BlocksStored)
    assert isinstance(gone, BlocksRemoved)
    assert first.token_ids == ids
    assert second.parent == first.hashes[0]
    assert gone.hashes == first.hashes[2:] + second.hashes


def test_path_ids_tell_paths_apart() -> None:
    rng = np.random.default_rng(1)
    # Keys as traces have them: small numbers in the upper half, the lower half almost empty.
    paths = {
        rng.integers(0, 64, size=6, dtype=np.uint64).astype("<u8").tobytes() for _ in range(4000)
    }
    ids = {path_ids(path)[-1] for path in paths}
    assert len(ids) == len(paths)
    path = b"".join((i << 32).to_bytes(8, "little") for i in range(9))
    assert path_ids(path)[:4] == path_ids(path[:32])


# Decoders as consumers have them.


class VllmStored(msgspec.Struct, tag="BlockStored", forbid_unknown_fields=True):
    block_hashes: list[int | bytes]
    parent_block_hash: int | bytes | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[str, ...] | None] | None = None
    group_idx: int | None = None
    session_id: str | None = None


class VllmRemoved(msgspec.Struct, tag="BlockRemoved", forbid_unknown_fields=True):
    block_hashes: list[int | bytes]
    medium: str | None
    group_idx: int | None = None


class VllmCleared(msgspec.Struct, tag="AllBlocksCleared", forbid_unknown_fields=True):
    pass


class ArrayStored(msgspec.Struct, tag="BlockStored", array_like=True):
    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None


class ArrayRemoved(msgspec.Struct, tag="BlockRemoved", array_like=True):
    block_hashes: list[int]
    medium: str | None


class ArrayCleared(msgspec.Struct, tag="AllBlocksCleared", array_like=True):
    pass


class SglangStored(msgspec.Struct, tag="BlockStored", forbid_unknown_fields=True):
    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None = None
    cache_salt: str | None = None
    session_id: str | None = None
    lora_name: str | None = None


class SglangRemoved(msgspec.Struct, tag="BlockRemoved", forbid_unknown_fields=True):
    block_hashes: list[int]
    medium: str | None = None


VllmBatch = tuple[float, list[VllmStored | VllmRemoved | VllmCleared], int]
ArrayBatch = tuple[float, list[ArrayStored | ArrayRemoved | ArrayCleared], int]
SglangBatch = tuple[float, list[SglangStored | SglangRemoved | VllmCleared], int]

A, B, C = b"\x90" + b"a" * 31, b"\x10" + b"b" * 23 + b"\xff" * 8, b"c" * 32
EVENTS = [
    BlocksStored([A, B], None, list(range(8)), 4, "s"),
    BlocksStored([C], B, list(range(4)), 4),
    BlocksRemoved([C]),
    AllCleared(),
]


def test_vllm_map() -> None:
    hasher = VllmHasher()
    payload = KvEventWriter(hasher, "vllm-map").payload(1.5, EVENTS, 3)
    seconds, events, rank = msgspec.msgpack.decode(payload, type=VllmBatch)
    a, b, c = (int.from_bytes(digest[-8:], "big") for digest in (A, B, C))
    assert (seconds, rank) == (1.5, 3)
    assert events == [
        VllmStored([a, b], None, list(range(8)), 4, None, "GPU", None, [("s",), None], 0),
        VllmStored([c], b, list(range(4)), 4, None, "GPU", None, [None], 0),
        VllmRemoved([c], "GPU", 0),
        VllmCleared(),
    ]
    first = msgspec.msgpack.decode(payload)[1][0]
    assert list(first)[:8] == [
        "type",
        "block_hashes",
        "parent_block_hash",
        "token_ids",
        "block_size",
        "lora_id",
        "medium",
        "lora_name",
    ]
    raw = KvEventWriter(hasher, "vllm-map", as_bytes=True).payload(0.0, EVENTS, 0)
    assert msgspec.msgpack.decode(raw)[1][0]["block_hashes"] == [A, B]


def test_array() -> None:
    payload = KvEventWriter(VllmHasher(), "array").payload(0.0, EVENTS, 0)
    events = msgspec.msgpack.decode(payload, type=ArrayBatch)[1]
    c = int.from_bytes(C[-8:], "big")
    assert events[2:] == [ArrayRemoved([c], "GPU"), ArrayCleared()]
    assert msgspec.msgpack.decode(payload)[1][2] == ["BlockRemoved", [c], "GPU"]


def test_sglang_map() -> None:
    payload = KvEventWriter(SglangHasher(), "sglang-map").payload(0.0, EVENTS, 0)
    events = msgspec.msgpack.decode(payload, type=SglangBatch)[1]
    a, b, c = (int.from_bytes(digest[:8], "big", signed=True) for digest in (A, B, C))
    assert a < 0 < b
    assert events == [
        SglangStored([a, b], None, list(range(8)), 4, None, "GPU", "s"),
        SglangStored([c], b, list(range(4)), 4, None, "GPU"),
        SglangRemoved([c], "GPU"),
        VllmCleared(),
    ]
    assert "cache_salt" not in msgspec.msgpack.decode(payload)[1][1]


def test_unknown_dialect() -> None:
    with pytest.raises(ValueError, match="'xml': one of vllm-map, sglang-map, array"):
        KvEventWriter(VllmHasher(), "xml")
    assert len(DIALECTS) == 3


def test_mapper_counts_blocks() -> None:
    submit = submit_of(list(range(12)), 1)
    keys = keys_of(submit)
    mapper = KvEventMapper(VllmHasher(), BLOCK, merges=False)
    mapper.events(KvBatch(0, 0, (Stored(keys, 0, replace(submit)),)))
    assert (mapper.num_blocks, len(set(mapper.event_hashes()))) == (3, 3)
    mapper.events(KvBatch(0, 0, (Removed(keys, 2),)))
    assert mapper.num_blocks == 2
