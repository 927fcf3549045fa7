"""SGLang's radix cache page by page: slow, and written without looking at the fast one.

Every page is a trie node of its own. What SGLang calls a node is a *segment* here, a record that
consecutive pages share; times, locks and hits belong to it. Eviction looks at every segment for the
one that goes first.
"""

from dataclasses import dataclass, field


@dataclass(eq=False)
class Segment:
    """What one of SGLang's nodes knows."""

    accessed: float
    created: float
    priority: int = 0
    hits: int = 0
    locks: int = 0


@dataclass(eq=False)
class Page:
    """One page of KV in the tree."""

    key: int
    parent: "Page | None"
    segment: Segment
    children: dict[int, "Page"] = field(default_factory=dict)


class RadixReference:
    """Only the tree; the caller counts pages."""

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.clock = 0.0
        self.root = Page(-1, None, Segment(-1, -1))

    def _tick(self) -> float:
        self.clock += 1.0
        return self.clock

    def _new_segment(self) -> Segment:
        accessed = self._tick()
        return Segment(accessed, self._tick())

    def _walk(self, keys: list[int]) -> list[Page]:
        """The cached pages that spell a prefix of `keys`."""
        path = []
        page = self.root
        for key in keys:
            if key not in page.children:
                break
            page = page.children[key]
            path.append(page)
        return path

    def pages_of(self, segment: Segment) -> list[Page]:
        """Top page first."""
        found = [page for page in self.everything() if page.segment is segment]
        return sorted(found, key=self.depth)

    def depth(self, page: Page) -> int:
        depth = 0
        while page.parent is not None:
            page, depth = page.parent, depth + 1
        return depth

    def everything(self) -> list[Page]:
        found, walk = [], list(self.root.children.values())
        while walk:
            page = walk.pop()
            found.append(page)
            walk.extend(page.children.values())
        return found

    def _cut_after(self, page: Page) -> None:
        """Make `page` the last one of its segment."""
        old = page.segment
        pages = self.pages_of(old)
        if pages[-1] is page:
            return
        top = self._new_segment()
        top.created, top.priority, top.hits, top.locks = (
            old.created,
            old.priority,
            old.hits,
            old.locks,
        )
        for other in pages[: pages.index(page) + 1]:
            other.segment = top
        old.accessed = self._tick()

    def _segments(self, path: list[Page]) -> list[Segment]:
        return list(dict.fromkeys(page.segment for page in path))

    def match(self, keys: list[int]) -> int:
        path = self._walk(keys)
        if path:
            self._cut_after(path[-1])
        now = self._tick()
        for segment in reversed(self._segments(path)):
            segment.accessed = now
            now -= 1e-6
        return len(path)

    def insert(self, keys: list[int], inserted: int, priority: int) -> int:
        self._tick()
        path = self._walk(keys)
        end = 0
        for segment in self._segments(path):
            segment.accessed = self._tick()
            if end + len(self.pages_of(segment)) > len(path):
                self._cut_after(path[-1])
                segment = path[-1].segment
            segment.priority = max(segment.priority, priority)
            end += len(self.pages_of(segment))
            segment.hits += end > inserted
        if len(path) < len(keys):
            fresh = self._new_segment()
            fresh.priority = priority
            fresh.hits = int(len(keys) > inserted)
            page = path[-1] if path else self.root
            for key in keys[len(path) :]:
                page.children[key] = Page(key, page, fresh)
                page = page.children[key]
        return len(path)

    def lock(self, keys: list[int], by: int) -> None:
        """Lock (1) or unlock (-1) the path that spells `keys`."""
        for segment in self._segments(self._walk(keys)):
            segment.locks += by

    def _rank(self, segment: Segment) -> tuple[float, float]:
        return {
            "lru": (0, segment.accessed),
            "lfu": (segment.hits, segment.accessed),
            "slru": (segment.hits >= 2, segment.accessed),
            "fifo": (0, segment.created),
            "filo": (0, -segment.created),
            "mru": (0, -segment.accessed),
            "priority": (segment.priority, segment.accessed),
        }[self.policy]

    def evict(self, pages: int) -> int:
        evicted = 0
        while evicted < pages:
            leaves = [
                segment
                for segment in self._segments(self.everything())
                if not segment.locks and not self.pages_of(segment)[-1].children
            ]
            if not leaves:
                break
            victim = min(leaves, key=self._rank)
            victims = self.pages_of(victim)
            parent = victims[0].parent
            assert parent is not None
            del parent.children[victims[0].key]
            evicted += len(victims)
        return evicted

    def size(self) -> int:
        return len(self.everything())

    def evictable(self) -> int:
        return sum(not page.segment.locks for page in self.everything())

    def cuts(self) -> set[tuple[tuple[int, ...], int, int]]:
        """Every segment as (path down to its end, its pages, its locks)."""
        found = set()
        for segment in self._segments(self.everything()):
            pages = self.pages_of(segment)
            path: list[int] = []
            page: Page | None = pages[-1]
            while page is not None and page.parent is not None:
                path.append(page.key)
                page = page.parent
            found.add((tuple(reversed(path)), len(pages), segment.locks))
        return found
