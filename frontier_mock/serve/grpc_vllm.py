"""`vllm.grpc.engine.VllmEngine` as `vllm serve --grpc` serves it, for smg.

Statuses, messages and what each call answers are those of smg-grpc-servicer 0.14.1
(specs/sglang_and_routers.md section 6.3). Methods are named by the protocol.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import grpc
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from frontier_mock.core.commands import Flush
from frontier_mock.drive.protocol import Flight, ShutdownError, Ticket
from frontier_mock.serve.grpc_calls import (
    CallSubscriber,
    Context,
    Outbox,
    carrier,
    enter,
    give_back,
    metadata_of,
    refuse,
    write_all,
)
from frontier_mock.serve.grpc_kv import stream_kv_events
from frontier_mock.serve.grpc_part import GrpcPart, max_running
from frontier_mock.serve.streaming import refusal as refusal_over_http
from frontier_mock.serve.tokenizer_bundle import pieces
from frontier_mock.wire.generation import Outcome
from frontier_mock.wire.grpc_status import GrpcError, code_of_http
from frontier_mock.wire.grpc_vllm import VllmCall, VllmSpeech, read_generate

_KV_ROLES = {"prefill": "kv_producer", "decode": "kv_consumer"}
_FLUSH_RETRY_S = 0.05
_NO_KV_EVENTS = (
    "KV cache events not enabled. Start vLLM with --kv-events-config "
    '\'{"enable_kv_cache_events": true, "publisher": "zmq"}\''
)


def refusal(ticket: Ticket) -> GrpcError:
    """Why the engine would not take a request."""
    error = refusal_over_http(ticket)
    return GrpcError(code_of_http(error.status), error.message)


class VllmEngine:
    """The service of one worker."""

    def __init__(self, part: GrpcPart) -> None:
        self._part = part
        self._books = part.books

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        """Tokens in, tokens out: chunks and a last message per sequence, or that alone."""
        part = self._part
        leased = carrier(metadata_of(context), request.request_id)
        outbox = Outbox()
        try:
            call = read_generate(request, part.served)
        except GrpcError as error:
            give_back(part.driver, leased)
            await refuse(context, error)
            return
        subscriber = CallSubscriber(
            VllmSpeech(call),
            outbox,
            lambda ticket, flight, reason: self._conclude(call, ticket, flight, reason),
            refusal,
        )
        try:
            ticket = enter(part.driver, call.submits(), subscriber, leased, len(call.sequences))
        except GrpcError as error:
            await refuse(context, error)
            return
        self._books.enter(ticket, call.request_id)
        await write_all(context, outbox, lambda: part.left(ticket))

    def _conclude(self, call: VllmCall, ticket: Ticket, flight: Flight, reason: str) -> Outcome:
        self._books.count(flight.worker, flight.output_tokens)
        return call.sequences[flight.position].outcome(
            flight.output_tokens,
            reason,
            flight.cached_tokens,
            ticket.arrival_ns,
            flight.first_token_ns,
            flight.finish_ns,
        )

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> None:
        """Refused: the models served here generate."""
        if not request.HasField("tokenized"):
            message = "EmbedRequest requires tokenized input"
        else:
            message = "Unsupported task: 'embed' Supported tasks: ('generate',)"
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)

    async def HealthCheck(self, request: Any, context: Context) -> pb.HealthCheckResponse:
        """A flag: the engine runs, or it does not."""
        healthy = self._part.driver.error is None
        message = "Health" if healthy else "Engine is not alive"
        return pb.HealthCheckResponse(healthy=healthy, message=message)

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortResponse:
        """Abort by ids; unknown ones are ignored."""
        self._part.abort(request.request_ids)
        return pb.AbortResponse()

    async def GetModelInfo(self, request: Any, context: Context) -> pb.GetModelInfoResponse:
        """What is served."""
        served = self._part.served
        return pb.GetModelInfoResponse(
            model_path=served.root,
            is_generation=True,
            max_context_length=served.max_model_len,
            vocab_size=served.model_vocab_size,
            served_model_name=served.names[0],
            tokenizer_path=self._part.tokenizer_dir or served.root,
            eos_token_ids=[served.tokenizer.eos_token_id],
            max_req_input_len=served.max_model_len,
        )

    async def GetServerInfo(self, request: Any, context: Context) -> pb.GetServerInfoResponse:
        """How it is served: what a router pairs and bounds workers by."""
        part = self._part
        step = part.spec.step
        dtype = "torch.bfloat16"
        kv = part.served.kv
        return pb.GetServerInfoResponse(
            active_requests=len(self._books.active),
            last_receive_timestamp=self._books.last_receive_s,
            uptime_seconds=time.time() - part.started_s,
            server_type="vllm-grpc",
            kv_connector="" if kv is None else kv.connector,
            kv_role="" if kv is None else _KV_ROLES.get(part.spec.role, "kv_both"),
            kv_engine_id="" if kv is None else kv.engine_id,
            data_parallel_size=len(part.engines),
            kv_cache_dtype="fp8" if step.precision.kv == "fp8" else "auto",
            block_size=part.served.block_tokens,
            model_dtype=dtype,
            max_num_seqs=max_running(part.engines[0]),
            constrained_decoding_start="first_token",
        )

    async def GetLoads(self, request: Any, context: Context) -> pb.GetLoadsResponse:
        """Every rank at this moment."""
        loads = [
            pb.SchedulerLoad(
                dp_rank=load.rank,
                num_running_reqs=load.running,
                num_waiting_reqs=load.waiting,
                num_total_reqs=load.running + load.waiting,
                num_used_tokens=load.used_tokens,
                max_total_num_tokens=load.capacity_tokens,
                token_usage=load.usage,
                gen_throughput=load.throughput,
                cache_hit_rate=load.hit_rate,
                utilization=load.running / load.max_running,
                max_running_requests=load.max_running,
                num_waiting_uncached_tokens=load.uncached_tokens,
            )
            for load in self._part.loads()
        ]
        return pb.GetLoadsResponse(
            timestamp=datetime.now(UTC).isoformat(),
            version=self._part.version,
            dp_rank_count=len(loads),
            loads=loads,
        )

    async def FlushCache(
        self, request: common_pb2.FlushCacheRequest, context: Context
    ) -> common_pb2.FlushCacheResponse:
        """Forget the prefix cache; with a timeout, once nothing is in flight any more."""
        limit_s = request.timeout_s
        if not math.isfinite(limit_s) or limit_s < 0:
            context.set_code(grpc.StatusCode.INVALID_ARGUMENT)
            context.set_details("timeout_s must be finite and non-negative")
            return common_pb2.FlushCacheResponse(message="Invalid timeout_s")
        actor, _ = carrier(metadata_of(context), "")
        deadline_s = time.monotonic() + limit_s
        while True:
            try:
                flush = Flush(self._part.served.worker)
                done = await self._part.driver.operate(flush, actor=actor)
            except ShutdownError as error:
                context.set_code(grpc.StatusCode.INTERNAL)
                context.set_details(f"Flush cache failed: {error}")
                return common_pb2.FlushCacheResponse(message=f"Flush cache failed: {error}")
            if done.result:
                message = "Local KV prefix cache flushed successfully"
                return common_pb2.FlushCacheResponse(success=True, message=message)
            if limit_s == 0:
                message = "KV prefix cache reset refused; requests may be in flight"
                return common_pb2.FlushCacheResponse(message=message)
            if time.monotonic() >= deadline_s:
                message = "Flush cache timed out; the engine may still complete an issued reset"
                context.set_code(grpc.StatusCode.DEADLINE_EXCEEDED)
                context.set_details(message)
                return common_pb2.FlushCacheResponse(message=message)
            await asyncio.sleep(_FLUSH_RETRY_S)

    async def StartProfile(
        self, request: common_pb2.StartProfileRequest, context: Context
    ) -> common_pb2.ProfileResponse:
        """Refused: vLLM profiles only if it was launched with a profiler, and this was not."""
        options = ("output_dir", "start_step", "num_steps", "with_stack", "record_shapes")
        named = [name for name in options if request.HasField(name)]
        named += ["activities"] * bool(request.activities)
        named += ["profile_by_stage"] * request.profile_by_stage
        if named:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"StartProfile options {', '.join(named)} cannot be set per request on this "
                "engine: its profiler's directory and options are its launch configuration; "
                "send a start with no options",
            )
        return await self._no_profiler(context, "Start profiling")

    async def StopProfile(self, request: Any, context: Context) -> common_pb2.ProfileResponse:
        """As StartProfile."""
        return await self._no_profiler(context, "Stop profiling")

    async def _no_profiler(self, context: Context, what: str) -> common_pb2.ProfileResponse:
        reason = "Profiling is not enabled. Please set --profiler-config"
        await context.abort(grpc.StatusCode.INTERNAL, f"{what} failed: {reason}")
        return common_pb2.ProfileResponse(message=f"{what} failed")

    async def GetTokenizer(
        self, request: Any, context: Context
    ) -> AsyncIterator[common_pb2.GetTokenizerChunk]:
        """The tokenizer's directory."""
        async for piece in tokenizer_pieces(self._part, context):
            yield piece

    async def SubscribeKvEvents(
        self, request: common_pb2.SubscribeKvEventsRequest, context: Context
    ) -> None:
        """What the caches store and forget, if the worker was started to tell."""
        first = request.start_sequence_number
        await stream_kv_events(self._part, first, context, _NO_KV_EVENTS)


async def tokenizer_pieces(
    part: GrpcPart, context: Context
) -> AsyncIterator[common_pb2.GetTokenizerChunk]:
    """The tokenizer's archive in messages, or the status INTERNAL if there is none."""
    try:
        archive = await part.archive()
    except OSError as error:
        await context.abort(grpc.StatusCode.INTERNAL, str(error))
        return
    for piece in pieces(archive):
        yield piece
