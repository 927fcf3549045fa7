"""Which batch sizes run as CUDA graphs, and what a batch is padded to. PURE.

Sizes and caps as in vLLM 0.33 (vllm.md section 8.5): 1, 2, 4, then every 8 below 256, then every
16, up to twice the largest batch and no further than 512; the largest batch itself is added.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

MAX_DEFAULT_CAPTURE: Final = 512


def default_capture_sizes(
    max_num_seqs: int, max_num_batched_tokens: int, max_capture_size: int | None = None
) -> tuple[int, ...]:
    """Captured sizes for an engine that was not told any, ascending.

    `max_capture_size` is vLLM's --max-cudagraph-capture-size.
    """
    largest = max_capture_size or min(2 * max_num_seqs, MAX_DEFAULT_CAPTURE)
    largest = min(largest, max_num_batched_tokens)
    sizes = [size for size in (1, 2, 4) if size <= largest]
    sizes += range(8, min(largest + 1, 256), 8)
    sizes += range(256, largest + 1, 16)
    sizes += [exact for exact in (max_num_seqs, max_num_batched_tokens) if exact <= largest]
    return tuple(sorted(set(sizes)))


def widened(sizes: Sequence[int], width: int) -> tuple[int, ...]:
    """Captured sizes where every sequence has `width` tokens: multiples of it (vLLM 0.33).

    Those that would pass the largest size are dropped; if none is left, there is one of `width`.
    """
    if not sizes:
        return ()
    rounded = {-(-size // width) * width for size in sizes}
    fitting = tuple(sorted(size for size in rounded if size <= max(sizes)))
    return fitting or (width,)


def padded_size(sizes: Sequence[int], tokens: int) -> int:
    """The smallest captured size that holds `tokens`, or 0 if none does."""
    index = bisect_left(sizes, tokens)
    return sizes[index] if index < len(sizes) else 0
