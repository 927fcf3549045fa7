"""Play a workload source in process: one task per request, whoever's client does the asking."""

import asyncio
from collections.abc import Awaitable, Callable

from frontier_mock.client.endpoint import render_prompt
from frontier_mock.client.wrap import speaking_as
from frontier_mock.core.commands import Submit
from frontier_mock.drive.virtual_loop import VirtualTimeLoop
from frontier_mock.simtime import to_seconds
from frontier_mock.workload.build import output_stream
from frontier_mock.workload.prompts import StreamPrompt
from frontier_mock.workload.source import Item, Source, Timed

Ask = Callable[[Submit, str], Awaitable[str]]
"""Send one request, whose prompt has this text, and return the text of the answer."""


async def play(source: Source, ask: Ask) -> None:
    """Send every request of `source` when it is due, and what their completions release.

    The source's time 0 is the present. Requests carry their number as their actor, so that those of
    one instant reach the engine in the source's own order: with a model that never stops by itself,
    the run is that of `drive.offline.run`, to the digest. What `ask` raises ends the run.
    """
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    await _Play(loop, source, ask).run()


class _Play:
    def __init__(self, loop: VirtualTimeLoop, source: Source, ask: Ask) -> None:
        self._loop = loop
        self._source = source
        self._ask = ask
        self._start_ns = loop.now_ns()
        self._width = len(str(source.num_requests))
        self._spoken: dict[int, str] = {}
        self._ended: list[Item] = []
        self._left = source.num_requests
        self._group = asyncio.TaskGroup()
        self._done = asyncio.Event()

    async def run(self) -> None:
        async with self._group:
            for timed in self._source.initial():
                self._group.create_task(self._one(timed))
            if self._left:
                # Releases come from idle callbacks, between which the group may be empty.
                self._group.create_task(self._wait())

    async def _wait(self) -> None:
        await self._done.wait()

    async def _one(self, timed: Timed) -> None:
        due_s = to_seconds(self._start_ns + timed.t_ns)
        if due_s > self._loop.time():
            await asyncio.sleep(due_s - self._loop.time())
        submit, item = timed.submit, timed.item
        with speaking_as(f"{item.seq:0{self._width}d}"):
            text = await self._ask(submit, self._prompt(submit))
        if self._source.feeds_back:
            self._spoken[output_stream(item.seq)] = text
        if not self._ended:
            self._loop.call_when_idle(self._release)
        self._ended.append(item)

    def _prompt(self, submit: Submit) -> str:
        """The prompt's text. Inputs are made once, not again in every later turn."""
        prompt, spoken = submit.prompt, self._spoken
        if self._source.feeds_back and isinstance(prompt, StreamPrompt):
            for piece in prompt.pieces:
                if piece.stream not in spoken:
                    spoken[piece.stream] = StreamPrompt(prompt.salt, (piece,)).text({})
        return render_prompt(submit, spoken)

    def _release(self) -> None:
        """Tell the source what ended at this instant, in its own order."""
        ended, self._ended = self._ended, []
        self._left -= len(ended)
        now_ns = self._loop.now_ns() - self._start_ns
        for item in sorted(ended, key=lambda one: one.seq):
            for timed in self._source.on_finish(item, now_ns):
                self._group.create_task(self._one(timed))
        if self._left == 0:
            self._done.set()
