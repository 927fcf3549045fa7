"""Programs started on a virtual loop: tools hold time, conversations do not."""

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE

import pytest

from frontier_mock.drive.child_processes import program_name
from frontier_mock.drive.virtual_loop import Deadlock
from tests.drive.test_virtual_loop import run, the_loop

INSTANT_S = 1e-6
"""Less virtual time than any program could be thought to take."""


def test_tool_takes_no_virtual_time() -> None:
    async def main() -> tuple[bytes, int, float, int]:
        async with asyncio.timeout(INSTANT_S):
            tool = await asyncio.create_subprocess_exec(
                sys.executable, "-c", "print(6 * 7)", stdout=PIPE
            )
            said, _ = await tool.communicate()
            silent = await asyncio.create_subprocess_shell("exit 3", stdin=DEVNULL)
            status = await silent.wait()
        return said, status, the_loop().time(), the_loop().guesses

    assert run(main()) == (b"42\n", 3, 0.0, 0)


def test_tool_that_was_told_everything_is_waited_for() -> None:
    async def main() -> tuple[bytes, float]:
        async with asyncio.timeout(INSTANT_S):
            tool = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
            said, _ = await tool.communicate(b"hello")
        return said, the_loop().time()

    # Its input is open only while it is written, which is one instant; communicate closes it.
    assert run(main(), outside_grace_s=5.0) == (b"hello", 0.0)


def test_time_goes_on_beside_a_conversation() -> None:
    async def main() -> tuple[bytes, float]:
        server = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(b"one\n")
        said = await server.stdout.readline()
        await asyncio.sleep(3600.0)
        assert the_loop().guesses > 0
        guesses = the_loop().guesses
        server.stdin.close()
        async with asyncio.timeout(INSTANT_S):
            await server.wait()
        assert the_loop().guesses == guesses
        return said, the_loop().time()

    assert run(main(), outside_grace_s=0.001) == (b"one\n", 3600.0)


def test_tool_that_never_exits_is_named() -> None:
    async def main() -> None:
        tool = await asyncio.create_subprocess_exec("sleep", "1000")
        try:
            await tool.wait()
        finally:
            tool.kill()

    with pytest.raises(Deadlock, match=r"programs at work: sleep \(pid \d+\)"):
        run(main(), patience_s=0.05)


@pytest.mark.parametrize(
    ("program", "name"),
    [("/usr/bin/git", "git"), (b"/bin/ls", "ls"), ("grep -r x .", "grep"), ("ls", "ls")],
)
def test_programs_are_called_by_their_name(program: object, name: str) -> None:
    assert program_name(program) == name
