"""Chunks of a tier as a tree of runs that live and die together; paths spell their content.

As in `serving.prefix_tree`, cost follows the number of distinct prefixes. Unlike there a run need
not be *held*: a tier may lose the head of a prompt and keep its tail. Such a run stays in the tree,
without space, as long as something below it is held. A run that is not held has a child.
"""

from collections.abc import Iterator

from frontier_mock.core.prompt import KEY_BYTES
from frontier_mock.serving.prefix_tree import common_blocks
from frontier_mock.serving.tiers.lane import Transfer


class Run:
    """`count` chunks that end `end` chunks below the root.

    `writing` is the transfer that brings them, None once they are there; `reading` the last one
    that fetches them, `readers` how many do. `rank` orders held runs by recency; `guard` is for
    whoever walks the tree to mark them.
    """

    __slots__ = (
        "children",
        "count",
        "end",
        "guard",
        "held",
        "keys",
        "parent",
        "rank",
        "readers",
        "reading",
        "writing",
    )

    parent: "Run"

    def __init__(self, keys: bytes, end: int, parent: "Run | None") -> None:
        self.keys = keys
        self.count = len(keys) // KEY_BYTES
        self.end = end
        self.parent = self if parent is None else parent
        self.children: dict[bytes, Run] = {}
        self.held = False
        self.writing: Transfer | None = None
        self.reading: Transfer | None = None
        self.readers = 0
        self.rank = 0
        self.guard = 0

    @property
    def idle(self) -> bool:
        """Held, and nothing moves it: it may go."""
        return self.held and self.writing is None and not self.readers


class RunTree:
    """The tree, and the ways down it. `num_runs` counts what hangs below `root`."""

    __slots__ = ("num_runs", "root")

    def __init__(self) -> None:
        self.root = Run(b"", 0, None)
        self.num_runs = 0

    def clear(self) -> None:
        """Forget everything."""
        self.root.children.clear()
        self.num_runs = 0

    def split(self, run: Run, chunks: int) -> Run:
        """Cut the first `chunks` chunks off `run` as its new parent, and return that."""
        cut = chunks * KEY_BYTES
        keys = run.keys
        top = Run(keys[:cut], run.end - run.count + chunks, run.parent)
        top.held, top.writing, top.reading = run.held, run.writing, run.reading
        top.readers, top.rank, top.guard = run.readers, run.rank, run.guard
        top.parent.children[keys[:KEY_BYTES]] = top
        top.children[keys[cut : cut + KEY_BYTES]] = run
        run.keys = keys[cut:]
        run.count -= chunks
        run.parent = top
        self.num_runs += 1
        return top

    def walk(self, keys: bytes, last: int) -> Iterator[tuple[Run, int]]:
        """Runs along `keys` to chunk `last`, each with the place where the two part or it ends."""
        run, at = self.root, 0
        while at < last:
            start = at * KEY_BYTES
            child = run.children.get(keys[start : start + KEY_BYTES])
            if child is None:
                return
            common = common_blocks(keys, start, child.keys, min(child.count, last - at))
            whole = common == child.count
            at += common
            yield child, at
            if not whole:
                return
            run = child

    def between(self, keys: bytes, first: int, last: int) -> list[Run]:
        """The runs of exactly chunks `first` to `last` of `keys`, as far as there are any.

        A run that the range begins or ends within is cut there.
        """
        found: list[Run] = []
        for run, at in self.walk(keys, last):
            if at <= first:
                continue
            begin = run.end - run.count
            piece = self.split(run, at - begin) if at < run.end else run
            if begin < first:
                self.split(piece, first - begin)
            found.append(piece)
        return found

    def extend(self, keys: bytes, first: int, last: int) -> Run:
        """Hang chunks `first` to `last` of `keys`, none of which is there, where they belong."""
        parent, at = self.root, 0
        for run, end in self.walk(keys, first):
            parent, at = run, end
            if at < run.end:
                parent = self.split(run, at - run.end + run.count)
        if at < first:
            parent = self._hang(parent, keys, at, first)
        return self._hang(parent, keys, first, last)

    def _hang(self, parent: Run, keys: bytes, first: int, last: int) -> Run:
        run = Run(keys[first * KEY_BYTES : last * KEY_BYTES], last, parent)
        parent.children[run.keys[:KEY_BYTES]] = run
        self.num_runs += 1
        return run

    def prune(self, run: Run) -> None:
        """Take `run` out if it is not held and has no children, and so on upwards."""
        while not (run.held or run.children or run is self.root):
            parent = run.parent
            del parent.children[run.keys[:KEY_BYTES]]
            self.num_runs -= 1
            run = parent
