"""Programs that a virtual loop has started, and which of them its time waits for.

A program that was started without a pipe to its standard input, or whose pipe has been closed, is
a tool: it works until it exits, and takes no virtual time, like everything that runs on a CPU here.
One that can still be written to holds a conversation; what it does next depends on what it is told,
so it is only something outside.
"""

import asyncio
import os
import sys

_STDIN = 0


class ChildProcesses:
    """All of one loop's."""

    def __init__(self) -> None:
        self._running: dict[asyncio.SubprocessTransport, str] = {}

    def started(self, transport: asyncio.SubprocessTransport, name: str) -> None:
        """A program runs."""
        self._running[transport] = f"{name} (pid {transport.get_pid()})"

    def at_work(self) -> list[str]:
        """Tools that have not exited."""
        if not self._running:
            return []
        return sorted(name for one, name in self._still_running() if not _can_be_told(one))

    def in_conversation(self) -> list[str]:
        """Those that can be written to."""
        if not self._running:
            return []
        return sorted(name for one, name in self._still_running() if _can_be_told(one))

    def _still_running(self) -> list[tuple[asyncio.SubprocessTransport, str]]:
        for transport in list(self._running):
            if transport.get_returncode() is not None:
                del self._running[transport]
        return list(self._running.items())


def program_name(program: object) -> str:
    """What to call it: the program's file name, or the beginning of a shell's command line."""
    if isinstance(program, bytes):
        program = program.decode(sys.getfilesystemencoding(), "replace")
    if isinstance(program, str) and " " in program:
        return program.split(" ", 1)[0]
    return os.path.basename(str(program))


def _can_be_told(transport: asyncio.SubprocessTransport) -> bool:
    pipe = transport.get_pipe_transport(_STDIN)
    return pipe is not None and not pipe.is_closing()
