"""What an engine has encoded, and when it encodes."""

import pytest

from frontier_mock.core.commands import Media, Submit
from frontier_mock.serving.encoder_cache import EncoderCache
from frontier_mock.serving.sequence import Sequence
from tests.engine import prompt


def seq(rid: int, *items: tuple[int, int, int], tokens: int = 100) -> Sequence:
    """A prompt with images given as (key, start, tokens), of four patches a token."""
    media = tuple(Media(key, start, size, 4 * size) for key, start, size in items)
    return Sequence(rid, Submit(prompt(tokens, rid, 1), 1, 1, media=media), 0)


def test_an_image_is_encoded_in_the_step_that_computes_its_first_token() -> None:
    cache = EncoderCache(64, 64)
    one = seq(0, (1, 30, 20))
    assert cache.within(one, 0, 30, 1) == 30
    assert cache.take(one, 0, 30) == ()
    assert cache.within(one, 30, 10, 2) == 10
    assert cache.take(one, 30, 10) == (80,)
    assert cache.take(one, 40, 10) == ()
    cache.check()


def test_what_is_in_the_kv_cache_needs_no_encoder_and_what_is_half_in_it_does() -> None:
    cache = EncoderCache(64, 64)
    assert cache.take(seq(0, (1, 10, 20)), 30, 10) == ()
    assert cache.take(seq(1, (1, 10, 20)), 20, 10) == (80,)


def test_a_chunk_ends_before_an_image_beyond_the_budget_of_a_step() -> None:
    cache = EncoderCache(30, 100)
    one, other = seq(0, (1, 10, 20), (2, 50, 20)), seq(1, (3, 5, 20))
    assert cache.within(one, 0, 100, 1) == 50
    assert cache.within(other, 0, 100, 1) == 5
    # Decided anew the budget is whole again, as it is in the next step.
    cache.restart(1)
    assert cache.within(other, 0, 100, 1) == 100
    assert cache.within(one, 0, 100, 2) == 50


def test_a_chunk_ends_before_an_image_that_there_is_no_room_for() -> None:
    cache = EncoderCache(100, 30)
    one = seq(0, (1, 0, 20))
    assert cache.within(one, 0, 10, 1) == 10
    assert cache.take(one, 0, 10) == (80,)
    other = seq(1, (2, 3, 20))
    assert cache.within(other, 0, 50, 2) == 3
    # The first one has computed all of its image: its output may go.
    assert cache.take(one, 10, 90) == ()
    assert cache.within(other, 3, 40, 3) == 40
    assert cache.take(other, 3, 40) == (80,)
    cache.check()
    assert cache.take(seq(2, (1, 0, 20)), 0, 20) == (80,)


def test_equal_images_are_encoded_once_and_the_longest_unused_goes_first() -> None:
    cache = EncoderCache(100, 40)
    for rid, key in enumerate((1, 2, 1)):
        expected = () if rid == 2 else (80,)
        assert cache.take(seq(rid, (key, 0, 20)), 0, 100) == expected
    assert cache.take(seq(3, (3, 0, 20)), 0, 100) == (80,)
    assert cache.take(seq(4, (1, 0, 20)), 0, 100) == ()
    assert cache.take(seq(5, (2, 0, 20)), 0, 100) == (80,)
    cache.check()


def test_an_image_that_comes_twice_is_encoded_once_and_held_for_what_has_begun() -> None:
    cache = EncoderCache(100, 20)
    one, other = seq(0, (1, 0, 20), (1, 30, 20)), seq(1, (2, 0, 20))
    assert cache.within(one, 0, 40, 1) == 40
    assert cache.take(one, 0, 40) == (80,)
    assert cache.within(other, 0, 50, 2) == 0
    assert cache.take(one, 40, 10) == ()
    assert cache.within(other, 0, 50, 3) == 50
    cache.check()


def test_a_place_further_on_holds_nothing_up() -> None:
    cache = EncoderCache(100, 20)
    one = seq(0, (1, 0, 20), (2, 20, 20), (1, 40, 20))
    for past in (0, 20, 40):
        assert cache.within(one, past, 60 - past, past) == 20
        assert cache.take(one, past, 20) == (80,)


def test_who_is_gone_holds_nothing() -> None:
    cache = EncoderCache(100, 20)
    one = seq(0, (1, 0, 20))
    cache.take(one, 0, 10)
    cache.drop(one)
    cache.drop(one)
    assert cache.within(seq(1, (2, 0, 20)), 0, 50, 1) == 50
    cache.reset()
    assert cache.take(seq(2, (1, 0, 20)), 0, 50) == (80,)


@pytest.mark.parametrize("patches", [0, 80])
def test_what_was_encoded_elsewhere_is_not_encoded_here(patches: int) -> None:
    cache = EncoderCache(100, 20)
    media = (Media(1, 0, 20, patches),)
    one = Sequence(0, Submit(prompt(50, 1, 1), 1, 1, media=media), 0)
    assert cache.take(one, 0, 50) == ((80,) if patches else ())


def test_an_engine_without_an_encoder_ignores_images() -> None:
    cache = EncoderCache(0, 0)
    assert cache.within(seq(0, (1, 10, 20)), 0, 100, 1) == 100
    assert cache.take(seq(0, (1, 10, 20)), 0, 100) == ()
