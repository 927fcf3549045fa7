"""The pytest plugin: the `mock_cluster` fixture, and virtual time for the tests that use it.

Loaded by pytest in every environment that has frontier_mock, so it imports nothing heavy until a
test asks for something (docs/testing.md).
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import pytest

if TYPE_CHECKING:
    from frontier_mock.testing import MockCluster

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def _async_fixture(function: FunctionT) -> FunctionT:
    """A fixture that pytest-asyncio runs, in whatever mode; an ordinary one where it is missing."""
    try:
        import pytest_asyncio
    except ImportError:
        return cast(FunctionT, pytest.fixture(function))
    return cast(FunctionT, pytest_asyncio.fixture(function))


_FIXTURE = "mock_cluster"
_MARK = "virtual_time"
_MARK_HELP = (
    f"{_MARK}(limit_s=..., patience_s=...): run the test on a VirtualTimeLoop, whose time may go "
    "as far as limit_s (default 30 days) and which a thread may hold up for patience_s real "
    "seconds (default 60). Implied by the mock_cluster fixture."
)
_LIMIT_S = 30 * 86400.0
_OPTIONS = ("limit_s", "patience_s", "outside_grace_s")

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class StartCluster(Protocol):
    """What the fixture gives: start a cluster, to be stopped when the test ends."""

    def __call__(self, scenario: str | None = None, **options: Any) -> Awaitable[MockCluster]:
        """`options` are the fields of `frontier_mock.testing.MockSpec`."""
        ...


def pytest_configure(config: pytest.Config) -> None:
    """Called by pytest."""
    config.addinivalue_line("markers", _MARK_HELP)


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Generator[None, Mapping[str, LoopFactory] | None, Mapping[str, LoopFactory]]:
    """Called by pytest-asyncio: which loop a test runs on. All other tests keep theirs."""
    others = yield
    mark = item.get_closest_marker(_MARK)
    if mark is not None or _FIXTURE in getattr(item, "fixturenames", ()):
        return {"virtual": functools.partial(_virtual_loop, mark)}
    return others or {"default": asyncio.new_event_loop}


def _virtual_loop(mark: pytest.Mark | None) -> asyncio.AbstractEventLoop:
    from frontier_mock.drive.virtual_loop import VirtualTimeLoop

    options = {} if mark is None else mark.kwargs
    for option in options:
        if option not in _OPTIONS:
            allowed = ", ".join(_OPTIONS)
            raise pytest.UsageError(f"{_MARK}: {option} is no option of it; allowed: {allowed}")
    return VirtualTimeLoop(**{"limit_s": _LIMIT_S, **options})


@_async_fixture
async def mock_cluster() -> AsyncIterator[StartCluster]:
    """Starts clusters in the test's own process: `cluster = await mock_cluster(workers=2)`."""
    from frontier_mock.testing import MockSpec, open_cluster

    async with AsyncExitStack() as stack:

        async def start(scenario: str | None = None, **options: Any) -> MockCluster:
            if not isinstance(options.get("flags", ""), str):
                options["flags"] = tuple(options["flags"])
            spec = MockSpec(scenario=scenario, **options)
            return await stack.enter_async_context(open_cluster(spec))

        yield start
