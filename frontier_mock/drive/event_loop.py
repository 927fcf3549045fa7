"""Which event loop servers and load generators run in."""

import asyncio
from typing import Protocol


class LoopFactory(Protocol):
    """As `asyncio.Runner` wants it."""

    def __call__(self) -> asyncio.AbstractEventLoop:
        """A new event loop."""
        ...


def new_event_loop() -> LoopFactory:
    """uvloop if it is installed, else asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    factory: LoopFactory = uvloop.new_event_loop
    return factory
