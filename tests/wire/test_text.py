"""Synthetic text counts exactly, is cut anywhere, and its keys are those of its tokens."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontier_mock.wire.block_keys import content_key, hash_blocks, hash_windows, salt_hash
from frontier_mock.wire.text import SyntheticText, TextRing, output_keys
from frontier_mock.wire.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()


class ShortWords(ByteTokenizer):
    """The byte tokenizer with a period of a few tokens, so that every test wraps round."""

    __slots__ = ()

    def generated_words(self) -> list[int]:
        return list(b"ab cde ")


LONG = TextRing(TOKENIZER, 16)
SHORT = TextRing(ShortWords(), 4)
RINGS = st.sampled_from([LONG, SHORT])


def reference(ring: TextRing, start: int, count: int) -> str:
    """The text of `count` tokens, token by token."""
    return "".join(chr(ring.ids[(start + i) % ring.period]) for i in range(count))


@given(RINGS, st.integers(0, 10**9), st.integers(1, 300), st.data())
def test_pieces_join_to_exactly_counted_text(
    ring: TextRing, seed: int, count: int, data: st.DataObject
) -> None:
    start = ring.start_for(seed, 7, 0)
    text = SyntheticText(ring, start, count)
    cuts = sorted({0, count, *data.draw(st.lists(st.integers(0, count), max_size=5))})
    pieces = [text.piece(i, j) for i, j in itertools.pairwise(cuts)]
    whole = "".join(pieces)
    assert whole == reference(ring, start, count)
    assert TOKENIZER.encode(whole).tolist() == text.ids(0, count)
    assert len(TOKENIZER.encode(whole)) == count
    for i, j in itertools.pairwise(cuts):
        assert TOKENIZER.encode(text.piece(i, j)).tolist() == text.ids(i, j)


@given(RINGS, st.integers(0, 6), st.integers(2, 60), st.integers(1, 4), st.data())
def test_end_token_has_no_text(
    ring: TextRing, start: int, count: int, step: int, data: st.DataObject
) -> None:
    text = SyntheticText(ring, start, count, end_id=258)
    assert text.ids(0, count)[-1] == 258
    assert text.piece(0, count) == reference(ring, start, count - 1)
    streamed = "".join(text.piece(i, min(i + step, count)) for i in range(0, count, step))
    assert streamed == text.piece(0, count)
    stop = data.draw(st.integers(0, count - 1))
    assert text.ids(0, stop) == ring.slice_ids(start, 0, stop).tolist()


@given(RINGS, st.integers(1, 6), st.integers(0, 40))
def test_held_back_text_arrives_in_the_end(ring: TextRing, stop_chars: int, kept: int) -> None:
    count = kept + stop_chars
    text = SyntheticText(ring, 0, count, cut_chars=kept, hold_chars=stop_chars - 1)
    streamed = "".join(text.piece(i, i + 1) for i in range(count))
    assert streamed == text.piece(0, count) == reference(ring, 0, count)[:kept]
    aborted = count // 2
    early = "".join(text.piece(i, i + 1, final=i + 1 == aborted) for i in range(aborted))
    assert early == reference(ring, 0, aborted)[:kept]


def test_piece_keeps_back_what_may_become_a_stop_string() -> None:
    text = SyntheticText(SHORT, 0, 7, hold_chars=2)
    assert [text.piece(i, i + 1) for i in range(7)] == ["", "", "a", "b", " ", "c", "de "]


def test_starts_are_word_starts_and_depend_on_every_argument() -> None:
    assert SHORT.starts == [0, 3]
    starts = [
        LONG.start_for(seed, key, choice)
        for seed, key, choice in ((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2))
    ]
    assert len(set(starts)) == 4
    assert starts[0] == LONG.start_for(1, 1, 1)
    assert all(LONG.text[start - 1] == " " for start in LONG.starts if start)


@given(RINGS, st.integers(0, 40), st.integers(0, 200))
def test_output_keys_are_the_keys_of_prompt_and_output(
    ring: TextRing, prompt_tokens: int, count: int
) -> None:
    size = ring.block_tokens
    prompt = np.arange(1000, 1000 + prompt_tokens, dtype=np.uint32)
    start = 3
    together = np.concatenate([prompt, ring.slice_ids(start, 0, count)])
    full = prompt_tokens // size
    expected = hash_blocks(together, size)[full:].tobytes()
    tail = prompt[full * size :]
    assert output_keys(ring, start, count, tail, 0) == expected
    salted = output_keys(ring, start, count, tail, 12345)
    assert salted[8:] == expected[8:]
    assert not expected or salted[:8] != expected[:8]


def test_windows_and_blocks_agree() -> None:
    ids = np.arange(100, dtype=np.uint32)
    assert hash_windows(ids, 16)[::16][:6].tolist() == hash_blocks(ids, 16).tolist()
    assert len(hash_windows(ids[:3], 16)) == 3


@given(st.lists(st.integers(0, 200_000), min_size=32, max_size=32), st.integers(0, 31))
def test_keys_change_with_any_token(tokens: list[int], where: int) -> None:
    ids = np.array(tokens, np.uint32)
    changed = ids.copy()
    changed[where] += 1
    before, after = hash_blocks(ids, 16), hash_blocks(changed, 16)
    assert before[where // 16] != after[where // 16]
    assert before[1 - where // 16] == after[1 - where // 16]
    swapped = ids[::-1].copy()
    if swapped.tolist() != tokens:
        assert content_key(before, ids[:0], 0) != content_key(hash_blocks(swapped, 16), ids[:0], 0)


def test_keys_are_fixed_for_ever() -> None:
    ids = np.arange(16, dtype=np.uint32)
    assert hash_blocks(ids, 16).tolist() == [17344835704412634589]


def test_salts_and_adapters_separate() -> None:
    assert salt_hash(None) == 0
    assert len({salt_hash(None), salt_hash("a"), salt_hash("b"), salt_hash("a", "b")}) == 4


@pytest.mark.parametrize("size", [0, 1025])
def test_block_sizes_have_bounds(size: int) -> None:
    with pytest.raises(ValueError, match="block size"):
        hash_blocks(np.arange(10, dtype=np.uint32), size)


@pytest.mark.parametrize("words", [b"", b'say "x"', b"back\\slash", "ü".encode()])
def test_unsuitable_words_are_refused(words: bytes) -> None:
    class Words(ByteTokenizer):
        __slots__ = ()

        def generated_words(self) -> list[int]:
            return list(words)

    with pytest.raises(ValueError, match="printable ASCII"):
        TextRing(Words(), 16)


def test_unstable_words_are_refused() -> None:
    class Merging(ByteTokenizer):
        __slots__ = ()

        def token_text(self, token_id: int) -> str:
            return "xy"

    with pytest.raises(ValueError, match="does not encode back"):
        TextRing(Merging(), 16)
