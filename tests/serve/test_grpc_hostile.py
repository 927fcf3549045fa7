"""What a gRPC port makes of clients that do not speak its language, or do not read."""

import asyncio
import json
import logging
from dataclasses import replace
from typing import Any

import pytest

grpc = pytest.importorskip("grpc")
pytest.importorskip("smg_grpc_proto")

from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from smg_grpc_proto.generated import vllm_engine_pb2_grpc as pb_grpc

from frontier_mock.config.errors import ConfigError
from frontier_mock.drive.pace import ClockSpec
from frontier_mock.drive.protocol import Flight, Ticket
from frontier_mock.serve.grpc_calls import CallSubscriber, Outbox
from frontier_mock.serve.grpc_settings import VLLM_ENGINE, GrpcSpec, open_ports
from frontier_mock.serve.up import ClusterServer
from tests.serve.grpc_live import refused, target, with_grpc
from tests.serve.live import WARP, live, serve_spec

CLIENT_HELLO = b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(range(160))


async def healthy(server: ClusterServer) -> bool:
    async with grpc.aio.insecure_channel(target(server)) as channel:
        stub = pb_grpc.VllmEngineStub(channel)
        return bool((await stub.HealthCheck(pb.HealthCheckRequest())).healthy)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        CLIENT_HELLO,
        b"\x00" * 4096,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64,
    ],
)
async def test_other_languages_end_the_connection(data: bytes) -> None:
    async with live(with_grpc(serve_spec(WARP), VLLM_ENGINE)) as server:
        host, port = target(server).split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(data)
        # Whatever grpc says before it hangs up, it is no answer to an RPC.
        said = await reader.read()
        assert b"grpc-status" not in said
        writer.close()
        assert await healthy(server)


async def test_no_traceback_for_malformed_messages(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    async with (
        live(with_grpc(serve_spec(WARP), VLLM_ENGINE)) as server,
        grpc.aio.insecure_channel(target(server)) as channel,
    ):
        await refused(channel.unary_stream(f"/{VLLM_ENGINE}/Generate")(b"\xff\xff"))
        await refused(channel.unary_unary(f"/{VLLM_ENGINE}/Nonsense")(b""))
        assert not server.driver.in_flight
    shown = "".join(capfd.readouterr())
    assert "Traceback" not in shown + caplog.text


async def test_slow_reader_gets_several_steps_in_one_message() -> None:
    class Counting:
        stream, stream_interval = True, 1

        def delta(self, position: int, first: int, last: int, cached: int) -> list[Any]:
            return [(first, last)]

    outbox = Outbox()
    subscriber: CallSubscriber[Any] = CallSubscriber(Counting(), outbox, None, None)
    ticket = Ticket([], subscriber, None, 1, 0)
    ticket.flights.append(Flight(0, 0, 0, ticket))
    subscriber.started(ticket)
    said = 0
    for token in range(1000):
        if subscriber.tokens(0, said, token + 1):
            said = token + 1
    assert 0 < len(outbox.messages) == said < 100
    outbox.messages.clear()
    assert subscriber.tokens(0, said, 1000)
    assert list(outbox.messages) == [(said, 1000)]


async def test_large_prompt_and_one_that_is_too_large() -> None:
    async with (
        live(with_grpc(serve_spec(WARP), VLLM_ENGINE)) as server,
        grpc.aio.insecure_channel(target(server)) as channel,
    ):
        stub = pb_grpc.VllmEngineStub(channel)
        many = pb.TokenizedInput(input_ids=[1] * 3_000_000)
        code, message = await refused(stub.Generate(pb.GenerateRequest(tokenized=many)))
        assert code == "INVALID_ARGUMENT"
        assert message.startswith("The decoder prompt (length 3000000) is longer than")
        assert await healthy(server)


async def test_dead_engine_says_so() -> None:
    async with (
        live(with_grpc(serve_spec(WARP), VLLM_ENGINE)) as server,
        grpc.aio.insecure_channel(target(server)) as channel,
    ):

        def explode(t_ns: int) -> None:
            raise ZeroDivisionError("engine bug")

        server.cluster.advance_to = explode  # type: ignore[method-assign]
        stub = pb_grpc.VllmEngineStub(channel)
        asked = pb.GenerateRequest(tokenized=pb.TokenizedInput(input_ids=[1]))
        assert await refused(stub.Generate(asked)) == ("INTERNAL", "engine bug")
        code, _ = await refused(stub.Generate(asked))
        assert code == "UNAVAILABLE"
        health = await stub.HealthCheck(pb.HealthCheckRequest())
        assert (health.healthy, health.message) == (False, "Engine is not alive")


async def test_shutdown_ends_calls_with_what_there_is() -> None:
    async with live(with_grpc(serve_spec(ClockSpec()), VLLM_ENGINE)) as server:
        channel = grpc.aio.insecure_channel(target(server))
        stub = pb_grpc.VllmEngineStub(channel)
        asked = pb.GenerateRequest(
            tokenized=pb.TokenizedInput(input_ids=[1]),
            stream=True,
            sampling_params=pb.SamplingParams(max_tokens=2000, ignore_eos=True),
        )
        call = stub.Generate(asked)
        assert (await call.read()).chunk.completion_tokens >= 1
    last = None
    while (message := await call.read()) is not grpc.aio.EOF:
        last = message
    assert last is not None
    assert last.complete.finish_reason == "abort"
    await channel.close()


async def test_port_in_use_is_a_configuration_error() -> None:
    async with live(with_grpc(serve_spec(WARP), VLLM_ENGINE)) as server:
        (port,) = server.grpc_ports
        assert port is not None
        spec = serve_spec(WARP)
        taken = ClusterServer(replace(spec, grpc=[GrpcSpec(port.port, (VLLM_ENGINE,))]))
        with pytest.raises(ConfigError, match="grpc-port: cannot listen"):
            await taken.start()
        await taken.stop()


async def test_ready_file_names_the_port(tmp_path: Any) -> None:
    path = tmp_path / "ready"
    spec = with_grpc(serve_spec(WARP, ready_file=str(path)), VLLM_ENGINE)
    async with live(spec) as server:
        (worker,) = json.loads(path.read_text())["workers"]
        assert worker["grpc_url"] == f"grpc://{target(server)}"
    async with live(serve_spec(WARP, ready_file=str(path))):
        (worker,) = json.loads(path.read_text())["workers"]
        assert "grpc_url" not in worker


async def test_without_grpc_nothing_is_opened() -> None:
    async with live(serve_spec(WARP)) as server:
        assert server.grpc_ports == [None]
        assert open_ports((), server, (), (), None) == [None]
