"""`vllm.Inference` and `vllm.Control` as vLLM's Rust front end serves them (`--grpc-port`).

vllm-router's `grpc://` workers and other gateways speak them. Statuses and answers are those of
rust/src/server/src/grpc. Methods are named by the protocol.
"""

import json
import uuid
from typing import Any
from urllib.parse import urlencode

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
from frontier_mock.serve.vllm_app import VllmApp
from frontier_mock.stubs import vllm_control_pb2 as control_pb
from frontier_mock.stubs import vllm_inference_pb2 as pb
from frontier_mock.wire.deployment import Deployment
from frontier_mock.wire.errors import ApiError
from frontier_mock.wire.generation import Outcome
from frontier_mock.wire.grpc_inference import (
    NO_LORA,
    InferenceCall,
    InferenceSpeech,
    carried_by,
    read_generate,
)
from frontier_mock.wire.grpc_status import (
    FAILED_PRECONDITION,
    INTERNAL,
    GrpcError,
    code_of_http,
    invalid_argument,
)

_RANK_KEY = "x-data-parallel-rank"
_API_VERSION = "vllm"
_NO_WEIGHT_TRANSFER = "weight transfer is not configured; start vLLM with --weight-transfer-config"
_NO_SLEEP = "sleep mode is not configured; start vLLM with --enable-sleep-mode"
_PAUSE_MODES = {0: "abort", 1: "abort", 2: "wait", 3: "keep"}
"""vLLM's pause modes by number."""


class Inference:
    """Generation."""

    def __init__(self, part: GrpcPart) -> None:
        self._part = part

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> Any:
        """One answer."""
        entered = await self._enter(request, context, stream=False)
        if entered is None:
            return pb.GenerateResponse()
        ticket, outbox = entered
        (answer,) = await whole_answer(context, outbox, lambda: self._part.left(ticket))
        return answer

    async def GenerateStream(self, request: pb.GenerateRequest, context: Context) -> None:
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
            ticket.adapter = request.lora_name
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
    """Discovery, aborts, and the control plane for reinforcement learning, which is HTTP's."""

    def __init__(self, part: GrpcPart) -> None:
        """Raises TypeError unless the worker simulates vLLM."""
        app = part.app
        if not isinstance(app, VllmApp):
            raise TypeError(f"{part.spec.name} does not simulate vLLM")
        self._part = part
        self._routes = app.control
        self._adapters = app.adapters
        self._lora_ids: dict[str, int] = {}
        self._instance = uuid.uuid4().hex

    async def GetServerInfo(self, request: Any, context: Context) -> Any:
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
            max_loras=self._gpus.max_loras,
            max_batched_tokens=part.max_batched_tokens,
            rl_capabilities=control_pb.RlCapabilities(
                weight_transfer_enabled=bool(self._gpus.weight_transfer),
                weight_transfer_backend=self._gpus.weight_transfer,
                sleep_mode_enabled=self._gpus.sleep_mode,
            ),
            effective_attention_block_size=engine.spec.block_size,
        )

    async def GetModelInfo(self, request: Any, context: Context) -> Any:
        """What is served."""
        served = self._part.served
        return control_pb.ModelInfo(
            model_id=served.root,
            served_model_name=served.names[0],
            served_model_aliases=served.names[1:],
            supports_text_input=True,
            supports_token_ids_input=True,
            supports_lora=self._gpus.max_loras > 0,
            tool_call_parser=served.tool_call_parser or "",
        )

    async def Shutdown(self, request: Any, context: Context) -> Any:
        """Refused: the engine is not managed by whoever calls."""
        await self._refuse(context, "engine shutdown is only available for managed engines")

    async def Abort(self, request: Any, context: Context) -> Any:
        """Abort by ids; unknown ones are ignored."""
        self._part.abort(request.request_ids)
        return control_pb.AbortResponse()

    async def LoadLora(self, request: Any, context: Context) -> Any:
        """Serve an adapter; there are no files to read."""
        name = await self._lora_name(request, context)
        if not request.source_path.strip():
            await refuse(context, invalid_argument("source_path is required"))
        try:
            self._adapters.load(name, request.source_path, in_place=False)
        except ApiError as error:
            await refuse(context, GrpcError(code_of_http(error.status), error.message))
        return control_pb.LoadLoraResponse(adapter=self._lora(name, request.source_path))

    async def UnloadLora(self, request: Any, context: Context) -> Any:
        """Serve it no more."""
        name = await self._lora_name(request, context)
        try:
            path = self._adapters.unload(name)
        except ApiError as error:
            await refuse(context, GrpcError(code_of_http(error.status), error.message))
            raise
        return control_pb.UnloadLoraResponse(adapter=self._lora(name, path))

    async def ListLoras(self, request: Any, context: Context) -> Any:
        """Which are served."""
        await self._need(context, self._gpus.max_loras > 0, NO_LORA)
        adapters = self._part.served.adapters.items()
        return control_pb.ListLorasResponse(adapters=[self._lora(*one) for one in adapters])

    async def _lora_name(self, request: Any, context: Context) -> str:
        """The adapter a request is about; ends the call if there can be none."""
        name: str = request.lora_name
        if not name.strip():
            await refuse(context, invalid_argument("lora_name is required"))
        await self._need(context, self._gpus.max_loras > 0, NO_LORA)
        return name

    def _lora(self, name: str, path: str) -> control_pb.LoraAdapter:
        number = self._lora_ids.setdefault(name, len(self._lora_ids) + 1)
        return control_pb.LoraAdapter(lora_id=number, lora_name=name, source_path=path)

    async def GetKvEventSources(self, request: Any, context: Context) -> Any:
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

    async def PauseGeneration(self, request: Any, context: Context) -> Any:
        """Bring the engine to rest."""
        mode = await self._mode(request.mode, context)
        await self._ask(context, "pause_generation", "POST", f"/pause?mode={mode}")
        return control_pb.PauseGenerationResponse()

    async def ResumeGeneration(self, request: Any, context: Context) -> Any:
        """Go on."""
        await self._ask(context, "resume_generation", "POST", "/resume")
        return control_pb.ResumeGenerationResponse()

    async def IsPaused(self, request: Any, context: Context) -> Any:
        """Whether it rests."""
        said = await self._ask(context, "is_paused", "GET", "/is_paused")
        return control_pb.IsPausedResponse(paused=said["is_paused"])

    async def Sleep(self, request: Any, context: Context) -> Any:
        """Free the GPU's memory."""
        await self._need(context, self._gpus.sleep_mode, _NO_SLEEP)
        mode = await self._mode(request.mode, context)
        level = request.level if request.HasField("level") else 1
        await self._ask(context, "sleep", "POST", f"/sleep?level={level}&mode={mode}")
        return control_pb.SleepResponse()

    async def WakeUp(self, request: Any, context: Context) -> Any:
        """Take it back, in part if tags say so."""
        await self._need(context, self._gpus.sleep_mode, _NO_SLEEP)
        tags = urlencode([("tags", tag) for tag in request.tags])
        await self._ask(context, "wake_up", "POST", f"/wake_up?{tags}")
        return control_pb.WakeUpResponse()

    async def IsSleeping(self, request: Any, context: Context) -> Any:
        """Whether it is freed."""
        said = await self._ask(context, "is_sleeping", "GET", "/is_sleeping")
        return control_pb.IsSleepingResponse(sleeping=said["is_sleeping"])

    async def InitWeightTransferEngine(self, request: Any, context: Context) -> Any:
        """Meet the trainer."""
        await self._need(context, bool(self._gpus.weight_transfer), _NO_WEIGHT_TRANSFER)
        body = await self._object(context, "init_info", request.init_info_json)
        name = "init_weight_transfer_engine"
        await self._ask(context, name, "POST", f"/{name}", body)
        return control_pb.InitWeightTransferEngineResponse()

    async def StartWeightUpdate(self, request: Any, context: Context) -> Any:
        """Weights are about to come."""
        await self._need(context, bool(self._gpus.weight_transfer), _NO_WEIGHT_TRANSFER)
        await self._ask(context, "start_weight_update", "POST", "/start_weight_update")
        return control_pb.StartWeightUpdateResponse()

    async def StartDraftWeightUpdate(self, request: Any, context: Context) -> Any:
        """There is no draft model here."""
        await self._need(context, bool(self._gpus.weight_transfer), _NO_WEIGHT_TRANSFER)
        await self._refuse(
            context, "draft weight updates require a configured speculative draft model"
        )

    async def UpdateWeights(self, request: Any, context: Context) -> Any:
        """Take weights, for as long as that takes."""
        await self._need(context, bool(self._gpus.weight_transfer), _NO_WEIGHT_TRANSFER)
        body = await self._object(context, "update_info", request.update_info_json)
        await self._ask(context, "update_weights", "POST", "/update_weights", body)
        return control_pb.UpdateWeightsResponse()

    async def FinishWeightUpdate(self, request: Any, context: Context) -> Any:
        """All weights are here."""
        await self._need(context, bool(self._gpus.weight_transfer), _NO_WEIGHT_TRANSFER)
        body = b""
        if request.HasField("weight_version"):
            version = await self._version(context, request.weight_version)
            body = json.dumps({"weight_version": version}).encode()
        await self._ask(context, "finish_weight_update", "POST", "/finish_weight_update", body)
        return control_pb.FinishWeightUpdateResponse()

    async def UpdateWeightVersion(self, request: Any, context: Context) -> Any:
        """Give the weights a name."""
        version = await self._version(context, request.weight_version)
        body = json.dumps({"new_version": version}).encode()
        name = "update_weight_version"
        await self._ask(context, name, "POST", f"/{name}", body)
        return control_pb.UpdateWeightVersionResponse()

    async def GetWeightVersion(self, request: Any, context: Context) -> Any:
        """The name of the weights."""
        said = await self._ask(context, "get_weight_version", "GET", "/weight_info")
        return control_pb.GetWeightVersionResponse(weight_version=said["weight_version"])

    @property
    def _gpus(self) -> Deployment:
        return self._part.served.deployment

    async def _need(self, context: Context, given: bool, message: str) -> None:
        """End the call unless the worker was started for it."""
        if not given:
            await self._refuse(context, message)

    async def _refuse(self, context: Context, message: str) -> None:
        await refuse(context, GrpcError(FAILED_PRECONDITION, message))

    async def _mode(self, number: int, context: Context) -> str:
        mode = _PAUSE_MODES.get(number)
        if mode is None:
            await refuse(context, invalid_argument("invalid pause mode"))
        return mode or ""

    async def _version(self, context: Context, version: str) -> str:
        if not version.strip():
            await refuse(context, invalid_argument("weight_version must not be empty"))
        return version

    async def _object(self, context: Context, name: str, data: bytes) -> bytes:
        """A payload as the HTTP route takes it; ends the call if it is no JSON object."""
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            message = f"{name}_json must contain valid JSON: {error}"
            await refuse(context, invalid_argument(message))
        if not isinstance(value, dict):
            message = f"{name}_json must contain a JSON object"
            await refuse(context, invalid_argument(message))
        return json.dumps({name: value}).encode()

    async def _ask(
        self, context: Context, name: str, method: str, target: str, body: bytes = b""
    ) -> dict[str, Any]:
        """The answer of the HTTP route that does the same; ends the call if it refuses."""
        actor, _ = carrier(metadata_of(context), "")
        try:
            answer = await self._routes.ask(method, target, body, actor)
        except ApiError as error:
            give_back(self._part.driver, (actor, 1))
            await refuse(context, GrpcError(code_of_http(error.status), error.message))
            raise
        except ShutdownError as error:
            await refuse(context, GrpcError(INTERNAL, f"{name} failed: {error}"))
            raise
        said: dict[str, Any] = json.loads(answer.body) if answer.body else {}
        if answer.status != 200:
            message = said.get("error", {}).get("message", "")
            await refuse(context, GrpcError(INTERNAL, f"{name} failed: {message}"))
        return said
