"""Text and keys of a prompt must agree on which blocks are equal."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontier_mock.workload.prompts import HashedPrompt, Piece, StreamPrompt, TextPrompt, salt_of

BLOCKS = st.sampled_from([1, 4, 8, 12, 16, 48, 64, 512, 1024])


def hashed(ids: list[int], num_tokens: int, id_tokens: int = 512) -> HashedPrompt:
    return HashedPrompt(salt_of("trace"), np.array(ids, np.int64), id_tokens, num_tokens)


def text_blocks(prompt: TextPrompt, block_tokens: int) -> list[str]:
    text = prompt.text({})
    assert len(text) == prompt.num_tokens
    assert text.isascii()
    return [
        text[i : i + block_tokens]
        for i in range(0, prompt.num_tokens - block_tokens + 1, block_tokens)
    ]


def key_blocks(prompt: TextPrompt, block_tokens: int) -> list[bytes]:
    keys = prompt.block_keys(block_tokens)
    assert len(keys) == prompt.num_tokens // block_tokens * 8
    return [keys[i : i + 8] for i in range(0, len(keys), 8)]


def assert_same_equalities(prompts: list[TextPrompt], block_tokens: int) -> None:
    """Over all blocks of all prompts, text -> key is a one-to-one function."""
    key_of: dict[str, bytes] = {}
    for prompt in prompts:
        texts = text_blocks(prompt, block_tokens)
        for text, key in zip(texts, key_blocks(prompt, block_tokens), strict=True):
            assert key_of.setdefault(text, key) == key
    assert len(set(key_of.values())) == len(key_of)


@st.composite
def hash_chains(draw: st.DrawFn) -> list[TextPrompt]:
    id_tokens = draw(st.sampled_from([16, 64, 100, 512]))
    prompts: list[TextPrompt] = []
    for _ in range(draw(st.integers(1, 4))):
        ids = draw(st.lists(st.integers(0, 5) | st.integers(0, 1 << 40), min_size=1, max_size=5))
        cut = draw(st.integers(0, id_tokens - 1))
        prompts.append(hashed(ids, len(ids) * id_tokens - cut, id_tokens))
    return prompts


@given(hash_chains(), BLOCKS)
def test_hashed_prompts_have_equal_keys_where_they_have_equal_text(
    prompts: list[TextPrompt], block_tokens: int
) -> None:
    assert_same_equalities(prompts, block_tokens)


@st.composite
def conversations(draw: st.DrawFn) -> list[TextPrompt]:
    lengths = draw(st.lists(st.integers(1, 200), min_size=4, max_size=12))
    pieces = [Piece(stream, tokens) for stream, tokens in enumerate(lengths)]
    prompts: list[TextPrompt] = [StreamPrompt(7, pieces[: i + 1]) for i in range(len(pieces))]
    prompts.append(StreamPrompt(7, [pieces[0], Piece(99, draw(st.integers(1, 200)))]))
    prompts.append(StreamPrompt(7, [Piece(100, draw(st.integers(1, 200)))]))
    return prompts


@given(conversations(), BLOCKS)
def test_growing_prompts_have_equal_keys_where_they_have_equal_text(
    prompts: list[TextPrompt], block_tokens: int
) -> None:
    assert_same_equalities(prompts, block_tokens)


@given(conversations(), st.sampled_from([16, 48]))
def test_a_longer_conversation_keeps_the_keys_of_the_shorter(
    prompts: list[TextPrompt], block_tokens: int
) -> None:
    turns = prompts[:-2]
    for shorter, longer in combinations(turns, 2):
        keys = shorter.block_keys(block_tokens)
        assert longer.block_keys(block_tokens)[: len(keys)] == keys


@given(conversations(), st.sampled_from([8, 12, 16, 48]), st.integers(1, 5))
def test_growing_a_prompt_gives_the_keys_of_making_it_whole(
    prompts: list[TextPrompt], block_tokens: int, first: int
) -> None:
    whole = prompts[-3]
    assert isinstance(whole, StreamPrompt)
    grown = StreamPrompt(7, whole.pieces[:first])
    for piece in whole.pieces[first:]:
        grown = grown.grown((piece,))
    assert grown.pieces == whole.pieces
    assert grown.block_keys(block_tokens) == whole.block_keys(block_tokens)
    assert grown.block_keys(16) == whole.block_keys(16)
    assert grown.text({}) == whole.text({})


def test_siblings_differ_in_their_first_engine_block() -> None:
    children = [hashed([0, child], 1024) for child in range(1, 2000)]
    second = {key_blocks(child, 16)[32] for child in children}
    assert len(second) == len(children)
    assert len({child.text({})[512:528] for child in children}) == len(children)


def test_a_partial_tail_shares_the_full_blocks_before_its_end() -> None:
    whole, cut = hashed([4, 9], 1024), hashed([4, 9], 700)
    assert whole.block_keys(16).startswith(cut.block_keys(16))
    assert whole.text({}).startswith(cut.text({}))
    assert len(cut.block_keys(16)) == 43 * 8


def test_the_workload_name_changes_every_key() -> None:
    ids = np.arange(4)
    one = HashedPrompt(salt_of("a"), ids, 512, 2048)
    other = HashedPrompt(salt_of("b"), ids, 512, 2048)
    assert not set(key_blocks(one, 16)) & set(key_blocks(other, 16))
    assert one.text({}) != other.text({})


def test_what_was_said_replaces_an_output_stream() -> None:
    prompt = StreamPrompt(1, [Piece(1, 5), Piece(2, 3), Piece(3, 4)])
    text = prompt.text({})
    assert prompt.text({2: "abc", 9: "unused"}) == text[:5] + "abc" + text[8:]
    with pytest.raises(ValueError, match="stream 2: 2 characters for 3 tokens"):
        prompt.text({2: "ab"})


@pytest.mark.parametrize("ids", [[1], [1, 2, 3]])
def test_hash_ids_must_cover_the_prompt(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="do not cover 1000 tokens"):
        hashed(ids, 1000)


@pytest.mark.parametrize("piece", [Piece(-1, 5), Piece(1 << 27, 5), Piece(1, 0), Piece(1, 1 << 25)])
def test_streams_that_cannot_be_told_apart_are_refused(piece: Piece) -> None:
    with pytest.raises(ValueError, match="out of range"):
        StreamPrompt(1, [piece])
