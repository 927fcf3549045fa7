"""SubscribeKvEvents: what a worker's caches store and forget, to whoever listens now.

As the engines' servicers do it (smg-grpc-servicer 0.14.1): a subscription begins with the present,
every rank's batches come in one stream under that rank's own numbers, and a subscriber that cannot
keep up is told so (DATA_LOSS) and begins anew.
"""

import asyncio
from collections import deque
from collections.abc import Callable

import grpc
from smg_grpc_proto.generated import common_pb2

from frontier_mock.serve.grpc_calls import Context
from frontier_mock.serve.grpc_part import GrpcPart
from frontier_mock.serve.kv_events import Told
from frontier_mock.simtime import NS_PER_S
from frontier_mock.wire.grpc_kv import KvBatchMaker

_BEHIND_BATCHES = 10_000
"""What servicers' publishers keep for late readers (`buffer_steps`)."""


class _Inbox:
    """Batches of all ranks that the subscriber has not been sent yet."""

    def __init__(self, part: GrpcPart) -> None:
        self.batches: deque[common_pb2.KvEventBatch] = deque()
        self.lost = False
        self.news = asyncio.Event()
        self._began_s = part.started_s
        self._ends: list[Callable[[], None]] = []
        sglang = part.served.sglang is not None
        for rank, publisher in part.publishers.items():
            maker = KvBatchMaker(rank, publisher.mapper.hasher.event_hash, with_medium=not sglang)
            self._ends.append(publisher.listen(self._listener(maker)))

    def close(self) -> None:
        """Listen no more."""
        for end in self._ends:
            end()

    def _listener(self, maker: KvBatchMaker) -> Callable[[Told], None]:
        def hear(told: Told) -> None:
            if len(self.batches) >= _BEHIND_BATCHES:
                self.lost = True
            else:
                seconds = self._began_s + told.t_ns / NS_PER_S
                self.batches.append(maker.batch(told.number, seconds, told.events))
            self.news.set()

        return hear


async def stream_kv_events(part: GrpcPart, start: int, context: Context, not_enabled: str) -> None:
    """Write batches until the subscriber is gone. `not_enabled` says what to start an engine with.

    `start` is the number asked for; nothing is kept between calls to go on from.
    """
    if not part.publishers:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, not_enabled)
    if start:
        await context.abort(
            grpc.StatusCode.OUT_OF_RANGE,
            "KV event replay cursors are per subscription; resubscribe with zero and rebuild",
        )
    inbox = _Inbox(part)
    try:
        await context.send_initial_metadata(())
        while not inbox.lost:
            while inbox.batches:
                await context.write(inbox.batches.popleft())
            inbox.news.clear()
            await inbox.news.wait()
    finally:
        inbox.close()
    await context.abort(
        grpc.StatusCode.DATA_LOSS, f"more than {_BEHIND_BATCHES} KV event batches were not read"
    )
