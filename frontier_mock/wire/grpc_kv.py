"""KV events as `SubscribeKvEvents` streams them: one protobuf batch per batch of an engine.

Fields are those that the engines' servicers fill in (smg-grpc-servicer 0.14.1 `kv_relay`). smg
makes hashes of its own from the token ids; the engine's, as signed numbers, are only names.
"""

from collections.abc import Callable, Iterator, Sequence

from smg_grpc_proto.generated import common_pb2 as pb

from frontier_mock.wire.kv_events import GPU, BlocksRemoved, BlocksStored, KvEvent
from frontier_mock.wire.kv_hashes import as_signed

EventHash = Callable[[bytes], int]
"""The number events call a block by, from its digest: unsigned, 64 bits."""


class KvBatchMaker:
    """Makes the batches of one rank; events are numbered from 1 for each subscriber.

    `with_medium` is vLLM's way of saying where blocks are, beside the tier.
    """

    __slots__ = ("_event_hash", "_events", "_rank", "_with_medium")

    def __init__(self, rank: int, event_hash: EventHash, *, with_medium: bool) -> None:
        self._rank = rank
        self._event_hash = event_hash
        self._with_medium = with_medium
        self._events = 0

    def batch(self, number: int, seconds: float, events: Sequence[KvEvent]) -> pb.KvEventBatch:
        """The batch with the engine's own `number`, at `seconds` of unix time."""
        return pb.KvEventBatch(
            sequence_number=number,
            timestamp=seconds,
            events=list(self._made(events)),
            dp_rank=self._rank,
        )

    def _made(self, events: Sequence[KvEvent]) -> Iterator[pb.KvCacheEvent]:
        for event in events:
            self._events += 1
            made = pb.KvCacheEvent(event_id=self._events)
            if isinstance(event, BlocksStored):
                made.stored.CopyFrom(self._stored(event))
            elif isinstance(event, BlocksRemoved):
                made.removed.CopyFrom(self._removed(event))
            else:
                made.cleared.CopyFrom(pb.KvCacheCleared())
            yield made

    def _stored(self, event: BlocksStored) -> pb.KvBlocksStored:
        size = event.block_tokens
        stored = pb.KvBlocksStored(
            blocks=[
                pb.KvBlock(
                    block_hash=self._name(digest),
                    token_ids=event.token_ids[i * size : (i + 1) * size],
                    block_size=size,
                    cache_level=0,
                )
                for i, digest in enumerate(event.hashes)
            ],
            tier=pb.KV_CACHE_TIER_DEVICE,
        )
        if event.parent is not None:
            stored.parent_block_hash = self._name(event.parent)
        if event.cache_salt is not None:
            stored.cache_salt = event.cache_salt
        if event.session_id is not None:
            stored.session_id = event.session_id
        if self._with_medium:
            stored.medium = GPU
        return stored

    def _removed(self, event: BlocksRemoved) -> pb.KvBlocksRemoved:
        removed = pb.KvBlocksRemoved(
            block_hashes=[self._name(digest) for digest in event.hashes],
            cache_level=0,
            tier=pb.KV_CACHE_TIER_DEVICE,
        )
        if self._with_medium:
            removed.medium = GPU
        return removed

    def _name(self, digest: bytes) -> int:
        return as_signed(self._event_hash(digest))
