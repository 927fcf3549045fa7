"""`vllm.Inference` and `vllm.Control` as vLLM's Rust front end serves them (`--grpc-port`).

vllm-router's `grpc://` workers and other gateways speak them. Statuses and answers are those of
rust/src/server/src/grpc. Methods are named by the protocol.
"""

import uuid
from typing import Any

from frontier_mock.core.commands import Flush, Pause, Resume
from frontier_mock.drive.protocol import Flight, ShutdownError, Ticket
from frontier_mock.serve.carriers import actor_and_legs
from frontier_mock.serve.grpc_calls import (
    CallSubscriber,
    Context,
    Outbox,
    carrier,
    enter,
    give_back,
    metadata_of,
    refuse,
    whole_answer,
    write_all,
)
from frontier_mock.serve.grpc_part import GrpcPart, max_running
from frontier_mock.serve.grpc_vllm import refusal
from frontier_mock.stubs import vllm_control_pb2 as control_pb
from frontier_mock.stubs import vllm_inference_pb2 as pb
from frontier_mock.wire.generation import Outcome
from frontier_mock.wire.grpc_inference import (
    InferenceCall,
    InferenceSpeech,
    carried_by,
    read_generate,
)
from frontier_mock.wire.grpc_status import (
    FAILED_PRECONDITION,
    INTERNAL,
    GrpcError,
    invalid_argument,
)

_RANK_KEY = "x-data-parallel-rank"
_API_VERSION = "vllm"
_NO_WEIGHT_TRANSFER = "weight transfer is not configured; start vLLM with --weight-transfer-config"
_NO_SLEEP = "sleep mode is not configured; start vLLM with --enable-sleep-mode"
_NO_LORA = "engine was not started with LoRA enabled"
_PAUSE_MODES = {0: "abort", 1: "abort", 2: "finish", 3: "keep"}
"""vLLM's pause modes by number, as the engine's commands name them."""


class Inference:
    """Generation."""

    def __init__(self, part: GrpcPart) -> None:
        self._part = part

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> Any:  # noqa: N802
        """One answer."""
        entered = await self._enter(request, context, stream=False)
        if entered is None:
            return pb.GenerateResponse()
        ticket, outbox = entered
        (answer,) = await whole_answer(context, outbox, lambda: self._part.left(ticket))
        return answer

    async def GenerateStream(self, request: pb.GenerateRequest, context: Context) -> None:  # noqa: N802
        """What is new, step by step."""
        entered = await self._enter(request, context, stream=True)
        if entered is None:
            return
        ticket, outbox = entered
        await write_all(context, outbox, lambda: self._part.left(ticket))

    async def _enter(
        self, request: pb.GenerateRequest, context: Context, *, stream: bool
    ) -> tuple[Ticket, Outbox] | None:
        """Submit a request, or end its call with the status why not."""
        part = self._part
        metadata = metadata_of(context)
        leased = carrier(metadata, request.request_id)
        if leased[0] is None:
            leased = actor_and_legs(carried_by(request.kv.cache_salt)[0])
        outbox = Outbox()
        try:
            try:
                call = read_generate(request, metadata.get(_RANK_KEY), stream, part.served)
            except GrpcError:
                give_back(part.driver, leased)
                raise
            subscriber = CallSubscriber(
                InferenceSpeech(call),
                outbox,
                lambda ticket, flight, reason: self._conclude(call, ticket, flight, reason),
                refusal,
            )
            ticket = enter(part.driver, call.submits(), subscriber, leased, 1)
        except GrpcError as error:
            await refuse(context, error)
            return None
        part.books.enter(ticket, call.request_id)
        return ticket, outbox

    def _conclude(
        self, call: InferenceCall, ticket: Ticket, flight: Flight, reason: str
    ) -> Outcome:
        self._part.books.count(flight.worker, flight.output_tokens)
        return call.sequence.outcome(
            flight.output_tokens,
            reason,
            flight.cached_tokens,
            ticket.arrival_ns,
            flight.first_token_ns,
            flight.finish_ns,
        )


class Control:
    """Discovery, aborts and pauses. What the worker was not started for says so."""

    def __init__(self, part: GrpcPart) -> None:
        self._part = part
        self._instance = uuid.uuid4().hex
        self._paused = False
        self._weight_version = "default"

    async def GetServerInfo(self, request: Any, context: Context) -> Any:  # noqa: N802
        """How the model is served."""
        part = self._part
        engine = part.engines[0]
        parallel = part.spec.step.parallel
        ranks = len(part.engines)
        return control_pb.ServerInfo(
            engine_version=part.version,
            api_version=_API_VERSION,
            instance_id=self._instance,
            parallelism=control_pb.ParallelismInfo(
                tensor_parallel_size=parallel.tp,
                pipeline_parallel_size=parallel.pp,
                data_parallel_size=ranks,
                decode_context_parallel_size=1,
                world_size=parallel.tp * parallel.pp,
                data_parallel_size_local=ranks,
            ),
            max_model_len=part.served.max_model_len,
            kv_block_size=engine.spec.block_size,
            total_kv_blocks=sum(one.spec.num_blocks for one in part.engines),
            max_running_requests=max_running(engine),
            max_batched_tokens=part.max_batched_tokens,
            rl_capabilities=control_pb.RlCapabilities(),
            effective_attention_block_size=engine.spec.block_size,
        )

    async def GetModelInfo(self, request: Any, context: Context) -> Any:  # noqa: N802
        """What is served."""
        served = self._part.served
        return control_pb.ModelInfo(
            model_id=served.root,
            served_model_name=served.names[0],
            served_model_aliases=served.names[1:],
            supports_text_input=True,
            supports_token_ids_input=True,
            tool_call_parser=served.tool_call_parser or "",
        )

    async def Shutdown(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Refused: the engine is not managed by whoever calls."""
        await self._refuse(context, "engine shutdown is only available for managed engines")

    async def Abort(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Abort by ids; unknown ones are ignored."""
        self._part.abort(request.request_ids)
        return control_pb.AbortResponse()

    async def LoadLora(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Refused."""
        await self._refuse(context, _NO_LORA)

    async def UnloadLora(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Refused."""
        if not request.lora_name.strip():
            await refuse(context, invalid_argument("lora_name is required"))
        await self._refuse(context, _NO_LORA)

    async def ListLoras(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Refused."""
        await self._refuse(context, _NO_LORA)

    async def GetKvEventSources(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Where each rank publishes what its cache stores and forgets; none if it does not."""
        sources = [
            control_pb.KvEventSource(
                transport="zmq",
                endpoint=config.endpoint,
                topic=config.topic,
                replay_endpoint=config.replay_endpoint or "",
                data_parallel_rank=rank,
                encoding="msgpack",
                schema_version=1,
                buffer_steps=config.buffer_steps,
                hwm=config.hwm,
                max_queue_size=config.max_queue_size,
            )
            for rank, publisher in self._part.publishers.items()
            for config in (publisher.config,)
        ]
        return control_pb.GetKvEventSourcesResponse(sources=sources)

    async def PauseGeneration(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Bring the engine to rest; unless told otherwise its cache is forgotten too."""
        mode = _PAUSE_MODES.get(request.mode)
        if mode is None:
            await refuse(context, invalid_argument("invalid pause mode"))
            return None
        worker = self._part.served.worker
        self._paused = True
        await self._operate(context, "pause_generation", Pause(worker, mode))
        if not request.HasField("clear_cache") or request.clear_cache:
            await self._operate(context, "pause_generation", Flush(worker, retract=True))
        return control_pb.PauseGenerationResponse()

    async def ResumeGeneration(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Go on."""
        self._paused = False
        worker = self._part.served.worker
        await self._operate(context, "resume_generation", Resume(worker))
        return control_pb.ResumeGenerationResponse()

    async def IsPaused(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Whether it rests."""
        return control_pb.IsPausedResponse(paused=self._paused)

    async def Sleep(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Refused."""
        await self._refuse(context, _NO_SLEEP)

    async def WakeUp(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Refused."""
        await self._refuse(context, _NO_SLEEP)

    async def IsSleeping(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Never."""
        return control_pb.IsSleepingResponse(sleeping=False)

    async def InitWeightTransferEngine(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Refused."""
        await self._refuse(context, _NO_WEIGHT_TRANSFER)

    async def StartWeightUpdate(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Refused."""
        await self._refuse(context, _NO_WEIGHT_TRANSFER)

    async def StartDraftWeightUpdate(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Refused."""
        await self._refuse(context, _NO_WEIGHT_TRANSFER)

    async def UpdateWeights(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Refused."""
        await self._refuse(context, _NO_WEIGHT_TRANSFER)

    async def FinishWeightUpdate(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Refused."""
        await self._refuse(context, _NO_WEIGHT_TRANSFER)

    async def UpdateWeightVersion(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Give the weights a name."""
        if not request.weight_version.strip():
            await refuse(context, invalid_argument("weight_version must not be empty"))
        self._weight_version = request.weight_version
        return control_pb.UpdateWeightVersionResponse()

    async def GetWeightVersion(self, request: Any, context: Context) -> Any:  # noqa: N802
        """The name of the weights."""
        return control_pb.GetWeightVersionResponse(weight_version=self._weight_version)

    async def _refuse(self, context: Context, message: str) -> None:
        await refuse(context, GrpcError(FAILED_PRECONDITION, message))

    async def _operate(self, context: Context, name: str, command: Pause | Resume | Flush) -> None:
        actor, _ = carrier(metadata_of(context), "")
        try:
            await self._part.driver.operate(command, actor=actor)
        except ShutdownError as error:
            await refuse(context, GrpcError(INTERNAL, f"{name} failed: {error}"))
