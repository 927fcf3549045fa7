"""`frontier-mock clock`: keep the clock of several `up` processes."""

import asyncio
import signal
from collections.abc import Sequence

from frontier_mock.cli.options import command_parser, whole
from frontier_mock.config.errors import ConfigError
from frontier_mock.drive.event_loop import new_event_loop
from frontier_mock.drive.pace import ClockSpec
from frontier_mock.serve.clock_server import ClockServer, ClockServerSpec
from frontier_mock.serve.up import log_to_stderr


def run(argv: Sequence[str]) -> int:
    """Keep time until SIGTERM or SIGINT; 1 if an engine process was lost. Raises ConfigError."""
    parser = command_parser(
        "clock", "One warp clock for several `up --clock-server URL` processes and their clients."
    )
    parser.add_argument("--host", help="address to bind; all interfaces when absent")
    parser.add_argument("--port", type=whole(0), default=9100, metavar="P", help="0: any [9100]")
    parser.add_argument("--grpc-port", type=whole(0), metavar="P", help="gRPC as well; 0: any")
    parser.add_argument("--ready-file", metavar="F", help="gets the URL once the port answers")
    parser.add_argument("--grace-ms", type=float, default=5.0, help="silence before time moves on")
    parser.add_argument(
        "--patience-s", type=float, default=1.0, help="until held leases have stalled"
    )
    parser.add_argument("--strict", action="store_true", help="a stall ends the run")
    parser.add_argument("--baton", action="store_true", help="one actor at a time")
    options = parser.parse_args(list(argv))
    clock = ClockSpec(
        mode="warp",
        grace_ms=options.grace_ms,
        patience_s=options.patience_s,
        strict=options.strict,
        baton=options.baton,
    )
    spec = ClockServerSpec(clock, options.port, options.host, options.ready_file, options.grpc_port)
    log_to_stderr()
    with asyncio.Runner(loop_factory=new_event_loop()) as runner:
        return runner.run(_serve(spec))


async def _serve(spec: ClockServerSpec) -> int:
    server = ClockServer(spec)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await server.start()
    except ConfigError:
        # uvloop does not close while somebody listens.
        await server.stop()
        raise
    waits = [asyncio.create_task(stop.wait()), asyncio.create_task(server.host.died.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    await server.stop()
    return 1 if server.host.error is not None else 0
