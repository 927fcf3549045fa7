"""The gRPC server alone: CPU seconds of its process while a client in this one reads streams."""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from tests.bench.figures import Figure
from tests.bench.server import MODEL, START_LIMIT_S, Server

METHOD = "/vllm.grpc.engine.VllmEngine/Generate"
STREAMS = 256
TOKENS = 512
ROUNDS = 3


def grpc_figures() -> list[Figure]:
    """Messages of streamed calls per CPU second of the server, the best of three rounds.

    At real time the engine has some 25k messages a second to send; a faster clock would only put
    several tokens in one.
    """
    with running_grpc_server("real") as server:
        rounds = [_round(server) for _ in range(ROUNDS)]
    best, note = max(rounds)
    return [Figure("gRPC messages, 256 streams", best, "per CPU s", 16_000, True, note)]


def _round(server: Server) -> tuple[float, str]:
    before, start = server.cpu_s(), time.perf_counter()
    messages = asyncio.run(_load(server.port))
    cpu_s, wall_s = server.cpu_s() - before, time.perf_counter() - start
    tokens = STREAMS * TOKENS / messages
    return (
        messages / cpu_s,
        f"{messages / wall_s:,.0f} per wall second; {tokens:.1f} tokens a message",
    )


async def _load(port: int) -> int:
    """Read every stream to its end; the number of messages."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        # Messages stay bytes: this side is not what is measured.
        stub = channel.unary_stream(METHOD)

        async def stream(number: int) -> int:
            request = pb.GenerateRequest(
                request_id=str(number),
                tokenized=pb.TokenizedInput(input_ids=[number, 1, 2, 3]),
                sampling_params=pb.SamplingParams(max_tokens=TOKENS, ignore_eos=True),
                stream=True,
            )
            count = 0
            async for _ in stub(request.SerializeToString()):
                count += 1
            return count

        return sum(await asyncio.gather(*(stream(i) for i in range(STREAMS))))


@contextmanager
def running_grpc_server(clock: str) -> Iterator[Server]:
    """A `frontier-mock vllm serve --grpc` that listens, until the end of the block."""
    with tempfile.TemporaryDirectory() as directory:
        ready = Path(directory) / "ready"
        command = [sys.executable, "-m", "frontier_mock", "vllm", "serve", MODEL, "--grpc"]
        command += ["--host", "127.0.0.1", "--port", "0", "--sim-clock", clock]
        command += ["--sim-ready-file", str(ready)]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not ready.exists():
                if time.perf_counter() - start > START_LIMIT_S:
                    raise TimeoutError(f"the server did not listen within {START_LIMIT_S:g} s")
                time.sleep(0.01)
            (worker,) = json.loads(ready.read_text())["workers"]
            port = int(worker["grpc_url"].rpartition(":")[2])
            yield Server(process, port, time.perf_counter() - start)
        finally:
            process.terminate()
            process.wait(timeout=20)
