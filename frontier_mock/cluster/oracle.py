"""An arrival-time oracle of the prefix cache: what each routing decision could have hit.

When a request arrives, and before it is routed, the oracle looks its prompt up on every server and
notes the best hit there is, the hit where the request then goes, and the hit where round robin
would have sent it. All three are of the same instant and the same caches, so their differences are
the decision's own doing: what follows from sending it elsewhere is not followed up.

A fourth figure needs no server: the longest prefix that any earlier prompt, with its output, had in
common with this one. A single cache of unlimited size shared by everybody, filled the moment a
request arrives, would hit that; no placement can beat it.

Cost: one lookup per engine and one in the unlimited cache for each arrival; none without an oracle.
"""

from array import array
from collections.abc import Sequence

from frontier_mock.cluster.routing import cached_by_server
from frontier_mock.core.commands import Submit
from frontier_mock.core.prompt import KEY_BYTES
from frontier_mock.serving.kv_cache import KvCache
from frontier_mock.serving.prefix_tree import common_blocks
from frontier_mock.serving.worker import Worker
from frontier_mock.simtime import SimTime

_UNLIMITED_BLOCKS = 1 << 60


class CacheOracle:
    """What could have been hit, by arrival: all columns have one entry per request, in tokens.

    `rids`, `prompts` (length), `best`, `taken` (where it went), `round_robin` and `unlimited`.
    `common_tokens` is the prefix that all requests so far share, which says nothing about routing.
    All servers must cut prompts into blocks of one size.
    """

    def __init__(self, servers: Sequence[Sequence[Worker]]) -> None:
        self.rids = array("q")
        self.prompts = array("q")
        self.best = array("q")
        self.taken = array("q")
        self.round_robin = array("q")
        self.unlimited = array("q")
        self._servers = servers
        self._server_of = {
            engine.index: number for number, server in enumerate(servers) for engine in server
        }
        self._block = servers[0][0].spec.block_size
        self._everything = KvCache(_UNLIMITED_BLOCKS, self._block, prefix_caching=True)
        self._common: bytes | None = None

    @property
    def common_tokens(self) -> int:
        """Length of the prefix that every prompt begins with, in whole blocks."""
        return len(self._common or b"") // KEY_BYTES * self._block

    def look(self, submit: Submit, now_ns: SimTime) -> list[int]:
        """Tokens of `submit`'s prompt that each server has cached at `now_ns`, the present."""
        return cached_by_server(self._servers, submit.prompt, now_ns)

    def note(self, rid: int, submit: Submit, hits: Sequence[int], worker: int) -> None:
        """`submit` went to engine `worker` as `rid`, when `hits` was what `look` found.

        One that computes no prompts is none of the oracle's business.
        """
        if worker not in self._server_of:
            return
        turn = len(self.rids) % len(self._servers)
        self.rids.append(rid)
        self.prompts.append(submit.prompt.num_tokens)
        self.best.append(max(hits))
        self.taken.append(hits[self._server_of[worker]])
        self.round_robin.append(hits[turn])
        self.unlimited.append(self._remember(submit))

    def _remember(self, submit: Submit) -> int:
        """Put a request into the unlimited cache; returns what of its prompt was there."""
        keys = submit.prompt.block_keys(self._block)
        longest = (submit.prompt.num_tokens - 1) // self._block
        mine = keys[: longest * KEY_BYTES]
        self._common = mine if self._common is None else _common_prefix(self._common, mine)
        cache = self._everything
        hit = cache.lookup(keys, longest).num_blocks
        keys += submit.output_keys
        count = len(keys) // KEY_BYTES
        table = cache.open(cache.lookup(keys, count))
        if table.num_registered < count:
            cache.take(count - table.num_registered)
            cache.commit(table, keys, count)
        cache.close(table, count, keys, count)
        return hit * self._block


def _common_prefix(one: bytes, other: bytes) -> bytes:
    if one[:KEY_BYTES] != other[:KEY_BYTES] or not one:
        return b""
    limit = min(len(one), len(other)) // KEY_BYTES
    return one[: common_blocks(other, 0, one, limit) * KEY_BYTES]
