"""Captured sizes as vLLM 0.33 chooses them."""

import pytest

from frontier_mock.cost.cuda_graphs import default_capture_sizes, padded_size


def test_h800_defaults_end_at_512() -> None:
    sizes = default_capture_sizes(1024, 8192)
    assert sizes[:5] == (1, 2, 4, 8, 16)
    assert sizes[-3:] == (480, 496, 512)
    assert len(sizes) == 51


@pytest.mark.parametrize(
    ("max_num_seqs", "tokens", "last", "has"),
    [(1, 8192, 2, 1), (10, 8192, 16, 10), (128, 2048, 256, 128), (256, 100, 100, 96)],
)
def test_small_engines_capture_up_to_twice_their_batch(
    max_num_seqs: int, tokens: int, last: int, has: int
) -> None:
    sizes = default_capture_sizes(max_num_seqs, tokens)
    assert sizes[-1] == last
    assert has in sizes
    assert list(sizes) == sorted(set(sizes))


def test_padding_takes_the_next_captured_size_or_none() -> None:
    sizes = default_capture_sizes(256, 8192)
    assert [padded_size(sizes, n) for n in (1, 3, 9, 250, 257, 512, 513)] == [
        1,
        4,
        16,
        256,
        272,
        512,
        0,
    ]
    assert padded_size((), 1) == 0
