"""How vLLM's scheduler admits a prompt of which a tier below the GPU has a part.

The tier is asked once there is room for the prompt as it is. (vLLM asks first, so that there a
prompt that does not fit may step aside for others; here it would do so at times that depend on how
many steps are taken at once.)
"""

from frontier_mock.core.events import EventLog, Fetched
from frontier_mock.serving.schedulers.protocol import Load
from frontier_mock.serving.schedulers.vllm_holdings import Holdings
from frontier_mock.serving.schedulers.vllm_remote import Receivers
from frontier_mock.serving.sequence import Sequence
from frontier_mock.serving.tiers.offload import Offload
from frontier_mock.serving.tiers.specs import OffloadSpec
from frontier_mock.simtime import SimTime


class Below:
    """See the top of this module. `in_step` says whether steps wait for what they admit."""

    __slots__ = (
        "_block",
        "_holdings",
        "_inbound",
        "_load_ns",
        "_log",
        "_worker",
        "in_step",
        "tier",
    )

    def __init__(
        self,
        spec: OffloadSpec,
        block_tokens: int,
        holdings: Holdings,
        inbound: Receivers,
        log: EventLog,
        worker: int,
    ) -> None:
        self.tier = Offload(spec, block_tokens, holdings.content_keys)
        self.in_step = spec.blocking
        self._block = block_tokens
        self._holdings = holdings
        self._inbound = inbound
        self._log = log
        self._worker = worker
        self._load_ns: SimTime = 0

    def count(self, seq: Sequence, hit: int, found: int) -> None:
        """Note a first admission: `hit` tokens from the GPU, `found` from here."""
        if seq.submit.reads_cache:
            self.tier.query_tokens += seq.goal - hit
            self.tier.hit_tokens += found
        seq.cached_tokens = min(hit + found, seq.goal - self.in_step)

    def fetch(self, seq: Sequence, hit: int, found: int, t_ns: SimTime) -> None:
        """Let `seq`, which has its blocks, wait aside for `found` tokens beyond `hit`."""
        self._inbound.load(seq, hit + found)
        self._begin(seq, hit, found, t_ns)

    def load(self, seq: Sequence, hit: int, found: int, t_ns: SimTime) -> int:
        """Let the step being scheduled wait for them; the tokens `seq` has then.

        The last token of a prompt is computed all the same.
        """
        self._load_ns += self._begin(seq, hit, found, t_ns)
        seq.computed = min(hit + found, seq.goal - 1)
        self._holdings.grow(seq, hit + found)
        return seq.computed

    def _begin(self, seq: Sequence, hit: int, found: int, t_ns: SimTime) -> SimTime:
        num_bytes = found // self._block * self.tier.spec.block_bytes
        self._log.append(Fetched(t_ns, self._worker, seq.rid, "cpu", found, num_bytes))
        return self.tier.fetch(seq, hit, found, t_ns)

    def take_load(self) -> Load | None:
        """What the step that has been scheduled waits for."""
        if not self._load_ns:
            return None
        load = Load(self._load_ns)
        self._load_ns = 0
        return load
