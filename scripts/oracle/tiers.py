"""vLLM's own CPU tier (CPUOffloadingManager, both eviction policies) beside ours, random dealings.

PYTHONPATH=. /tmp/oracle/bin/python scripts/oracle/tiers.py --cases 300
"""

import argparse
import random

from vllm.v1.kv_offload.base import LookupResult, ReqContext, make_offload_key
from vllm.v1.kv_offload.cpu.manager import CPUOffloadingManager

from frontier_mock.serving.tiers.arc import ArcPool
from frontier_mock.serving.tiers.lane import Transfer
from frontier_mock.serving.tiers.lru import LruPool
from frontier_mock.serving.tiers.pool import Access, Pool


class Request:
    """One request on both sides: a path of chunks, and how much of it has been offered."""

    def __init__(self, number: int, path: list[int]) -> None:
        self.keys = b"".join(chunk.to_bytes(8, "little") for chunk in path)
        self.path = path
        self.context = ReqContext(req_id=str(number))
        self.access = Access()
        self.offered = 0
        self.load: Transfer | None = None

    def theirs(self, first: int, last: int) -> list[bytes]:
        """vLLM's keys of these chunks: hashes that spell the whole path."""
        keys = []
        for at in range(first, last):
            key = make_offload_key(self.keys[: (at + 1) * 8], 0)
            self.context.set_offload_key_position(key, (at + 1) * 16)
            keys.append(key)
        return keys


def draw_path(rng: random.Random) -> list[int]:
    """A path that shares its beginning with others, more or less."""
    path = [rng.randint(1, 2)]
    for depth in range(1, rng.randint(1, 14)):
        path.append(depth * 10 + (rng.randint(0, 2) if rng.random() < 0.3 else 0))
    return path


class Case:
    """One random sequence of dealings with both tiers."""

    def __init__(self, number: int) -> None:
        self.rng = random.Random(number)
        capacity = self.rng.randint(1, 40)
        policy = self.rng.choice(["lru", "arc"])
        self.theirs = CPUOffloadingManager(capacity, cache_policy=policy)
        self.ours: Pool = ArcPool(capacity) if policy == "arc" else LruPool(capacity)
        self.live: list[Request] = []
        self.stores: list[tuple[Request, Transfer, list[bytes]]] = []
        self.count = 0
        self.hits = 0

    def play(self) -> int:
        """All of it; returns how many chunks were found. AssertionError where the two differ."""
        for _ in range(self.rng.randint(20, 200)):
            self.rng.choice([self.arrive, self.offer, self.offer, self.store, self.end])()
            self.ours.check()
        return self.hits

    def arrive(self) -> None:
        """A request looks, and loads what both find, if nothing of it is on its way."""
        request = Request(self.count, draw_path(self.rng))
        self.count += 1
        self.theirs.on_new_request(request.context)
        self.live.append(request)
        first = self.rng.randint(0, len(request.path) - 1)
        found = pending = 0
        for key in request.theirs(first, len(request.path)):
            result = self.theirs.lookup(key, request.context)
            if result is LookupResult.MISS:
                break
            found += 1
            pending += result is not LookupResult.HIT
        reach = self.ours.reach(request.keys, first, len(request.path))
        assert reach.chunks == found
        writes = [one for one in reach.pending if any(one is store[1] for store in self.stores)]
        assert bool(writes) == bool(pending)
        if found and not reach.pending:
            request.load = Transfer(request.keys, [(first, first + found)], 0)
            self.ours.pin(request.access, request.load)
            keys = request.theirs(first, first + found)
            self.theirs.prepare_load(keys, request.context)
            request.offered = first + found
            self.hits += found

    def offer(self) -> None:
        """A request has computed more of its prompt."""
        if not self.live:
            return
        request = self.rng.choice(self.live)
        if request.load is not None:
            self.unload(request)
        first, last = request.offered, self.rng.randint(request.offered, len(request.path))
        if first == last:
            return
        request.offered = last
        keys = request.theirs(first, last)
        result = self.theirs.prepare_store(keys, request.context)
        transfer = Transfer(request.keys, (), 0)
        ranges = self.ours.offer(request.keys, first, last, request.access, transfer)
        assert (ranges is None) == (result is None)
        if ranges is None or result is None:
            return
        new = [key for begin, end in ranges for key in request.theirs(begin, end)]
        assert new == list(result.keys_to_store)
        if new:
            transfer.ranges = tuple(ranges)
            self.stores.append((request, transfer, new))

    def unload(self, request: Request) -> None:
        """Its load has ended."""
        load = request.load
        assert load is not None
        first, last = load.ranges[0]
        self.ours.unpin(load)
        self.theirs.complete_load(request.theirs(first, last), request.context)
        request.load = None

    def store(self) -> None:
        """The oldest store has ended."""
        if self.stores:
            request, transfer, keys = self.stores.pop(0)
            self.ours.stored(transfer)
            self.theirs.complete_store(keys, request.context)

    def end(self) -> None:
        """A request is over."""
        if not self.live:
            return
        request = self.live.pop(self.rng.randrange(len(self.live)))
        if request.load is not None:
            self.unload(request)
        self.ours.finish(request.keys, request.access)
        self.theirs.on_request_finished(request.context)


def main() -> None:
    """Play cases until one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    hits = 0
    for number in range(options.first, options.first + options.cases):
        try:
            hits += Case(number).play()
        except AssertionError:
            print(f"case {number} differs")
            raise
    print(f"{options.cases} cases alike, {hits} chunks found")


if __name__ == "__main__":
    main()
