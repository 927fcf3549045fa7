"""What all tests share.

Hypothesis draws fresh examples on a developer's machine and the same ones in CI. A new
counterexample is a developer's find, to be reduced and fixed; it must not turn an unrelated change
red. No example has a deadline: a busy machine is no bug.
"""

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("here", deadline=None)
settings.register_profile("ci", derandomize=True, print_blob=True, deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    """A command run in this process logs to the stderr of its moment, which the test closes."""
    yield
    for name in ("frontier_mock", "frontier_mock.uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
