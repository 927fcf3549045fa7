"""`sglang.grpc.scheduler.SglangScheduler` as `sglang serve --smg-grpc-mode` serves it, for smg.

Statuses, messages and what each call answers are those of SGLang's Python servicer
(smg-grpc-servicer 0.14.1; specs/sglang_and_routers.md section 6.2). Methods are named by the
protocol.
"""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import grpc
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import sglang_scheduler_pb2 as pb

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
from frontier_mock.serve.grpc_part import GrpcPart
from frontier_mock.serve.grpc_vllm import tokenizer_pieces
from frontier_mock.serve.sglang_app import SglangApp
from frontier_mock.serve.sglang_metrics import SglangWorkerMetrics
from frontier_mock.serve.sglang_state import InFlight
from frontier_mock.serve.sglang_streaming import ended as conclude
from frontier_mock.serve.sglang_streaming import refusal as refusal_over_http
from frontier_mock.serve.streaming import ERROR
from frontier_mock.wire.grpc_sglang import SglangSpeech, aggregate, load_message, read_generate
from frontier_mock.wire.grpc_status import GrpcError, code_of_http, invalid_argument
from frontier_mock.wire.render import dumps
from frontier_mock.wire.sglang.disaggregation import failure
from frontier_mock.wire.sglang.errors import SglangError
from frontier_mock.wire.sglang.info import rank_load, read_include, server_info
from frontier_mock.wire.sglang.plan import front_of
from frontier_mock.wire.tokenizer import Json

_FLUSH_RETRY_S = 0.05
_NO_KV_EVENTS = (
    'KV cache events not enabled. Start SGLang with --kv-events-config \'{"publisher": "zmq"}\''
)
_SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def refusal(ticket: Ticket) -> GrpcError:
    """Why the engine would not take a request."""
    error = refusal_over_http(ticket)
    return GrpcError(code_of_http(error.status), error.message)


class SglangScheduler:
    """The service of one worker. Its state is that of the worker's HTTP port."""

    def __init__(self, part: GrpcPart) -> None:
        """Raises TypeError unless the worker simulates SGLang."""
        app = part.app
        if not isinstance(app, SglangApp):
            raise TypeError(f"{part.spec.name} does not simulate SGLang")
        self._part = part
        self._app = app
        self._state = app.state
        self._ranks = [fold for fold in part.metrics if isinstance(fold, SglangWorkerMetrics)]
        self._front = front_of(part.served)
        self._profiling = False
        self._last_receive_s = time.time()

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        """Tokens in, tokens out: chunks and a last message per sequence, or that alone."""
        part, state = self._part, self._state
        leased = carrier(metadata_of(context), request.request_id)
        outbox = Outbox()
        try:
            call = read_generate(request, part.served)
            entry = _entered(self._app, call.request)
        except GrpcError as error:
            give_back(part.driver, leased)
            await refuse(context, error)
            return

        def ended(ticket: Ticket, flight: Flight, reason: str) -> Any:
            result = conclude(state, entry, ticket, flight, reason)
            if reason != ERROR:
                return result
            # A prompt's KV has not come: an abort with a status.
            sequence = call.request.sequences[flight.position]
            why = failure(state.disaggregation_mode, result.scheduled_ns >= 0, sequence)
            return replace(result, reason="abort", status=500, message=why)

        def left() -> None:
            state.leave(entry)
            if entry.ticket is not None:
                part.driver.abort(entry.ticket)

        subscriber = CallSubscriber(SglangSpeech(call), outbox, ended, refusal)
        try:
            first = self._app.first(entry, subscriber)
        except ValueError as error:
            state.leave(entry)
            give_back(part.driver, leased)
            await refuse(context, invalid_argument(str(error)))
            return
        try:
            entry.ticket = enter(
                part.driver, first.submits, first.subscriber, leased, first.choices
            )
        except GrpcError as error:
            state.leave(entry)
            await refuse(context, error)
            return
        self._last_receive_s = time.time()
        await write_all(context, outbox, left)

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> None:
        """Refused: the models served here generate."""
        if request.HasField("tokenized"):
            message = (
                "This model does not appear to be an embedding model by default. Please add "
                "`--is-embedding` when launching the server or try another model."
            )
        else:
            message = "Tokenized input must be provided"
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)

    async def HealthCheck(self, request: Any, context: Context) -> Any:
        """SGLang's probe of one token, which stays out of the engine as over HTTP."""
        if self._state.exiting:
            return pb.HealthCheckResponse(healthy=False, message="Server is shutting down")
        if self._part.driver.error is not None:
            return pb.HealthCheckResponse(healthy=False, message="Health check probe failed")
        return pb.HealthCheckResponse(healthy=True, message="Health check passed")

    async def Abort(self, request: pb.AbortRequest, context: Context) -> Any:
        """Abort whatever has an id that begins so, as SGLang's scheduler does; always a success.

        Probes clean up behind themselves.
        """
        rid = request.request_id
        success = not rid.startswith("HEALTH_CHECK")
        if success and rid:
            self._state.aborts_asked += 1
            self._app.abort_matching(rid)
        word = "aborted" if success else "not found"
        return pb.AbortResponse(success=success, message=f"Request {rid} {word}")

    async def GetModelInfo(self, request: Any, context: Context) -> Any:
        """What is served."""
        served, front, state = self._part.served, self._front, self._state
        preferred = front.preferred_sampling_params
        defaults = {**front.default_sampling_params, **(preferred or {})}
        shown = {key: defaults[key] for key in _SAMPLING_KEYS if defaults.get(key) is not None}
        return pb.GetModelInfoResponse(
            model_path=state.model_path,
            tokenizer_path=front.tokenizer_path,
            is_generation=True,
            preferred_sampling_params="" if preferred is None else dumps(dict(preferred)),
            default_sampling_params_json=dumps(shown) if shown else "",
            weight_version=state.weight_version,
            served_model_name=state.served_model_name,
            max_context_length=front.context_len,
            vocab_size=served.model_vocab_size,
            model_type=front.model_type or "",
            architectures=front.architectures or (),
            eos_token_ids=[served.tokenizer.eos_token_id],
            max_req_input_len=front.max_req_input_len,
        )

    async def GetServerInfo(self, request: Any, context: Context) -> Any:
        """Every argument, resolved, and what is going on."""
        front, part = self._front, self._part
        args = _plain(dict(front.server_args))
        args["max_running_requests"] = front.max_running_requests * front.num_dp_ranks
        server_args, scheduler_info = Struct(), Struct()
        server_args.update(args)
        info = server_info(part.served, [0.0] * len(self._ranks))
        total = info["max_total_num_tokens"]
        scheduler_info.update(
            {
                "status": "ready",
                "max_total_num_tokens": total,
                "max_req_input_len": front.max_req_input_len,
            }
        )
        started = Timestamp()
        started.FromSeconds(int(part.started_s))
        return pb.GetServerInfoResponse(
            server_args=server_args,
            scheduler_info=scheduler_info,
            active_requests=len(self._state),
            is_paused=self._state.paused,
            last_receive_timestamp=self._last_receive_s,
            uptime_seconds=time.time() - part.started_s,
            sglang_version=front.version,
            server_type="grpc",
            start_time=started,
            max_total_num_tokens=total,
        )

    async def GetLoads(self, request: pb.GetLoadsRequest, context: Context) -> Any:
        """Every rank at this moment: the entries of GET /v1/loads."""
        try:
            sections = read_include(",".join(request.include))
        except SglangError as error:
            await refuse(context, invalid_argument(error.message))
            return None
        driver = self._part.driver
        driver.catch_up()
        now_s = time.time()
        loads = [
            load_message(rank_load(self._front, rank, fold.load(driver), sections, now_s))
            for rank, fold in enumerate(self._ranks)
            if not request.HasField("dp_rank") or request.dp_rank == rank
        ]
        return pb.GetLoadsResponse(
            timestamp=datetime.now(UTC).isoformat(),
            version=self._front.version,
            dp_rank_count=len(loads),
            loads=loads,
            aggregate=aggregate(loads),
        )

    async def FlushCache(
        self, request: common_pb2.FlushCacheRequest, context: Context
    ) -> common_pb2.FlushCacheResponse:
        """Forget the radix cache; with a timeout, once nothing is in flight any more."""
        actor, _ = carrier(metadata_of(context), "")
        limit_s = request.timeout_s if math.isfinite(request.timeout_s) else 0.0
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
                return common_pb2.FlushCacheResponse(
                    success=True, message="Cache flushed successfully"
                )
            if limit_s <= 0.0:
                return common_pb2.FlushCacheResponse(message="failed")
            if time.monotonic() >= deadline_s:
                return common_pb2.FlushCacheResponse(message="Timed out waiting for idle state.")
            await asyncio.sleep(_FLUSH_RETRY_S)

    async def StartProfile(self, request: Any, context: Context) -> Any:
        """Acknowledged; there is nothing to profile, and no trace is written."""
        if self._profiling:
            message = "Profiling is already in progress. Call /stop_profile first."
            return common_pb2.ProfileResponse(message=message)
        self._profiling = True
        return common_pb2.ProfileResponse(success=True, message="Start profiling succeeded")

    async def StopProfile(self, request: Any, context: Context) -> Any:
        """As StartProfile."""
        if not self._profiling:
            message = "Profiling is not in progress. Call /start_profile first."
            return common_pb2.ProfileResponse(message=message)
        self._profiling = False
        return common_pb2.ProfileResponse(success=True, message="Stop profiling succeeded")

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

    async def LoadLoRAAdapter(self, request: Any, context: Context) -> None:
        """The Python servicer does not have it."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not implemented!")

    async def UnloadLoRAAdapter(self, request: Any, context: Context) -> None:
        """The Python servicer does not have it."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not implemented!")

    async def ListLoadedLoRAAdapters(self, request: Any, context: Context) -> None:
        """The Python servicer does not have it."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not implemented!")


def _entered(app: SglangApp, request: Any) -> InFlight:
    """Note a request's ids. Raises GrpcError if one is taken."""
    try:
        return app.state.enter(request)
    except ValueError as error:
        raise invalid_argument(str(error)) from None


def _plain(value: Json) -> Any:
    """A value as protobuf's Struct takes it."""
    return json.loads(json.dumps(value, default=str))
