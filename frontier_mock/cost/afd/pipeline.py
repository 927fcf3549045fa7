"""When a step that ping-pongs between attention and FFN GPUs is over. PURE.

Theory of operation
1. A step takes m micro-batches through L layers. In every layer each passes four stations: the
   attention GPUs, the links to the FFN GPUs, the FFN GPUs, the links back. A station serves
   micro-batches one at a time and in order; all of them begin at time 0.
2. Attention ranks work on their own part of a micro-batch, and so do FFN ranks. An FFN rank begins
   when it has everybody's tokens, and results travel back to an attention rank when every FFN rank
   has its share: both sides wait for their slowest.
3. `simulate` plays that event by event. `pipeline_ns` is the same number, sooner: where all
   micro-batches take equally long it is a formula, else it goes layer by layer and leaps to the end
   once a layer has shifted every station by the same time, which no later layer can change.
4. Everything is integer nanoseconds, so the two are equal, not close.
"""

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import NamedTuple

ATTENTION = "attention"
TO_FFN = "a2f"
FFN = "ffn"
TO_ATTENTION = "f2a"
STATIONS = (ATTENTION, TO_FFN, FFN, TO_ATTENTION)
"""In the order in which a micro-batch passes them."""


class MicroBatch(NamedTuple):
    """What one micro-batch takes in one layer, in ns: by attention rank, but `ffn_ns` by FFN rank.

    A transfer belongs to the attention rank whose link it uses. A tuple may stand for several
    equal ranks.
    """

    attention_ns: tuple[int, ...]
    to_ffn_ns: tuple[int, ...]
    ffn_ns: tuple[int, ...]
    to_attention_ns: tuple[int, ...]


class LayerRun(NamedTuple):
    """Equal layers one after another, and what each micro-batch takes in one of them."""

    num_layers: int
    micro_batches: tuple[MicroBatch, ...]


class Span(NamedTuple):
    """One micro-batch at one rank of one station, in one layer; ns since the step began."""

    station: str
    rank: int
    layer: int
    micro_batch: int
    start_ns: int
    end_ns: int


def uniform_ns(layers: int, micro_batches: int, stages_ns: tuple[int, int, int, int]) -> int:
    """The formula for equal layers, equal micro-batches and one rank on either side.

    A critical path passes all four stations once, waits for the other micro-batches at the slowest
    of them, and in each further layer either goes round once more or waits there for all.
    """
    once, slowest = sum(stages_ns), max(stages_ns)
    period = max(once, micro_batches * slowest)
    return once + (micro_batches - 1) * slowest + (layers - 1) * period


def pipeline_ns(runs: Sequence[LayerRun]) -> int:
    """Nanoseconds from the first attention to the last result back; equal to `simulate`'s."""
    if len(runs) == 1:
        batches = runs[0].micro_batches
        first = batches[0]
        if all(len(ranks) == 1 for ranks in first) and batches.count(first) == len(batches):
            stages = (
                first.attention_ns[0],
                first.to_ffn_ns[0],
                first.ffn_ns[0],
                first.to_attention_ns[0],
            )
            return uniform_ns(runs[0].num_layers, len(batches), stages)
    return max(back for ranks in _recursion(runs) for back in ranks)


def _recursion(runs: Sequence[LayerRun]) -> list[list[int]]:
    """When each micro-batch is back at each attention rank after the last layer."""
    first = runs[0].micro_batches
    ranks = len(first[0].attention_ns)
    sides = [[0] * ranks, [0] * ranks, [0] * len(first[0].ffn_ns), [0] * ranks]
    back = [[0] * ranks for _ in first]
    for run in runs:
        left = run.num_layers
        while left:
            before = [*(list(side) for side in sides), *(list(ends) for ends in back)]
            for ends, batch in zip(back, run.micro_batches, strict=True):
                _pass(sides, ends, batch)
            left -= 1
            shift = _common_shift(before, [*sides, *back])
            if shift is not None and left:
                leap = shift * left
                for values in (*sides, *back):
                    values[:] = [value + leap for value in values]
                left = 0
    return back


def _pass(sides: list[list[int]], back: list[int], batch: MicroBatch) -> None:
    """One micro-batch through one layer; `sides` says when each station's ranks become free."""
    attention, out, ffn, home = sides
    arrived = 0
    for rank, ready in enumerate(back):
        start = attention[rank]
        end = (start if start > ready else ready) + batch.attention_ns[rank]
        attention[rank] = end
        start = out[rank]
        end = (start if start > end else end) + batch.to_ffn_ns[rank]
        out[rank] = end
        if end > arrived:
            arrived = end
    done = 0
    for rank, free in enumerate(ffn):
        end = (free if free > arrived else arrived) + batch.ffn_ns[rank]
        ffn[rank] = end
        if end > done:
            done = end
    for rank, free in enumerate(home):
        end = (free if free > done else done) + batch.to_attention_ns[rank]
        home[rank] = end
        back[rank] = end


def _common_shift(before: list[list[int]], after: list[list[int]]) -> int | None:
    """By how much every value has grown, if all have by as much."""
    shift = after[0][0] - before[0][0]
    for old, new in zip(before, after, strict=True):
        for earlier, later in zip(old, new, strict=True):
            if later - earlier != shift:
                return None
    return shift


class _Station:
    """One rank of one station: serves micro-batches in order, each when it is there and whole."""

    __slots__ = ("busy", "needs", "next_index", "parts")

    def __init__(self, needs: int) -> None:
        self.needs = needs
        self.parts: dict[int, int] = {}
        self.next_index = 0
        self.busy = False


def simulate(runs: Sequence[LayerRun]) -> list[Span]:
    """Every station's work, event by event, in the order in which it begins.

    The step is over at the largest `end_ns`. Costs time in layers x micro-batches x ranks.
    """
    first = runs[0].micro_batches
    count = len(first)
    ranks, ffn_ranks = len(first[0].attention_ns), len(first[0].ffn_ns)
    layers = [run.micro_batches for run in runs for _ in range(run.num_layers)]
    sizes = (ranks, ranks, ffn_ranks, ranks)
    # How many parts a rank of each station needs before it can begin.
    needs = (1, 1, ranks, ffn_ranks)
    stations = [
        [_Station(need) for _ in range(size)] for size, need in zip(sizes, needs, strict=True)
    ]
    spans: list[Span] = []
    ends: list[tuple[int, int, int, int]] = []

    def arrive(kind: int, rank: int, index: int, t_ns: int) -> None:
        parts = stations[kind][rank].parts
        parts[index] = parts.get(index, 0) + 1
        begin(kind, rank, t_ns)

    def begin(kind: int, rank: int, t_ns: int) -> None:
        station = stations[kind][rank]
        index = station.next_index
        if station.busy or station.parts.get(index, 0) < station.needs:
            return
        del station.parts[index]
        station.busy = True
        station.next_index = index + 1
        layer, micro_batch = divmod(index, count)
        end_ns = t_ns + layers[layer][micro_batch][kind][rank]
        spans.append(Span(STATIONS[kind], rank, layer, micro_batch, t_ns, end_ns))
        heappush(ends, (end_ns, kind, rank, index))

    for rank in range(ranks):
        for index in range(count):
            arrive(0, rank, index, 0)
    while ends:
        t_ns, kind, rank, index = heappop(ends)
        stations[kind][rank].busy = False
        if kind in (0, 3):
            following = index if kind == 0 else index + count
            if following < len(layers) * count:
                arrive((kind + 1) % 4, rank, following, t_ns)
        else:
            for target in range(sizes[kind + 1]):
                arrive(kind + 1, target, index, t_ns)
        begin(kind, rank, t_ns)
    return spans
