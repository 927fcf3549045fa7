"""From a resolved cluster to what its HTTP servers are told."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from random import getrandbits

from frontier_mock.config.ec_transfer import embedding_port
from frontier_mock.config.errors import ConfigError
from frontier_mock.config.lmcache import with_receivers
from frontier_mock.config.resolve import ResolvedCluster, ResolvedWorker
from frontier_mock.config.sglang_front import sglang_front
from frontier_mock.config.tokenizers import load_tokenizer
from frontier_mock.config.vision_config import image_size
from frontier_mock.config.vllm_flags import VllmArgs
from frontier_mock.cost.specs import ParallelSpec
from frontier_mock.serving.specs import SchedulerSpec
from frontier_mock.simtime import from_seconds
from frontier_mock.wire.compat import OLD_METRIC_NAMES
from frontier_mock.wire.deployment import Deployment
from frontier_mock.wire.embeddings import EmbeddingStore
from frontier_mock.wire.eos import EosModel
from frontier_mock.wire.kv_transfer import KvPort
from frontier_mock.wire.media import MediaPort
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.text import TextRing
from frontier_mock.wire.tokenizer import Tokenizer

_VERSION_4 = 4 << 76 | 2 << 62
_FREE_BITS = ~(0xF << 76 | 3 << 62)


def served_models(
    cluster: ResolvedCluster, eos: EosModel | None, environment: Mapping[str, str]
) -> list[ServedModel]:
    """What each worker serves, in order. Equal workers share one tokenizer and one text.

    `environment` is read for the limits vLLM takes from VLLM_* variables. Raises ConfigError if a
    tokenizer cannot be loaded or a variable is not a number.
    """
    tokenizers: dict[str | None, Tokenizer] = {}
    rings: dict[tuple[str | None, int], TextRing] = {}
    models: list[ServedModel] = []
    stores: dict[str, EmbeddingStore] = {}
    for worker in cluster.workers:
        source = tokenizer_source(worker.args)
        if source not in tokenizers:
            tokenizers[source] = load_tokenizer(source)
        tokenizer = tokenizers[source]
        key = (source, worker.spec.scheduler.block_size)
        if key not in rings:
            rings[key] = _ring(tokenizer, key[1])
        model = _served(worker, tokenizer, rings[key], eos, environment, stores)
        model = replace(
            model,
            kv=_kv_port(worker, len(models), environment),
            old_metric_names=OLD_METRIC_NAMES in worker.compat,
        )
        if worker.sglang is not None:
            name = worker.sglang.served_model_name or worker.sglang.model_path
            front = sglang_front(worker, environment)
            model = replace(model, names=(name,), system_fingerprint=None, sglang=front)
        models.append(model)
    peers = frozenset(model.kv.engine_id for model in models if model.kv is not None)
    ports = with_receivers([model.kv for model in models], cluster.workers)
    return [
        model if port is None else replace(model, kv=replace(port, peers=peers))
        for model, port in zip(models, ports, strict=True)
    ]


def _kv_port(worker: ResolvedWorker, number: int, environment: Mapping[str, str]) -> KvPort | None:
    """What a vLLM worker's connector says of itself; ports count up with the workers."""
    args, connector = worker.args.kv_transfer_config, worker.spec.connector
    if args is None or connector is None:
        return None
    parallel = worker.spec.step.parallel
    limit = _limit_reader(environment)
    first = limit("VLLM_NIXL_SIDE_CHANNEL_PORT", 5600)
    bootstrap = None
    if connector.name == "MooncakeConnector" and worker.spec.role != "decode":
        bootstrap = limit("VLLM_MOONCAKE_BOOTSTRAP_PORT", 8998) + worker.place
        bootstrap = bootstrap if worker.spec.port else 0
    return KvPort(
        connector=connector.name,
        style=connector.style,
        engine_id=args.engine_id if args.engine_id and not worker.place else _random_id(),
        host=environment.get("VLLM_NIXL_SIDE_CHANNEL_HOST", "localhost"),
        port=first + number,
        tp=parallel.tp,
        pp=parallel.pp,
        block_tokens=worker.spec.scheduler.block_size,
        patience_ns=from_seconds(connector.patience_s),
        recompute=connector.recompute,
        streams=connector.streams,
        descriptor_bytes=worker.memory.bytes_per_block
        * parallel.pp
        / worker.spec.step.model.num_layers,
        back_patience_ns=from_seconds(args.back_s()),
        threshold=args.threshold(),
        bootstrap_port=bootstrap,
    )


def _told_drafts(worker: ResolvedWorker) -> int:
    """How many drafts a step verifies, if answers are to say what became of them."""
    drafting = worker.spec.scheduler.speculation
    if worker.args.per_request_spec_decode_metrics == "none" or drafting is None:
        return 0
    return drafting.num_drafts


def tokenizer_source(args: VllmArgs) -> str | None:
    """Directory of the tokenizer: --tokenizer, or the model if it is one; None for our own."""
    if args.tokenizer is not None:
        return args.tokenizer
    return args.model if (Path(args.model) / "tokenizer.json").is_file() else None


def _ring(tokenizer: Tokenizer, block_tokens: int) -> TextRing:
    try:
        return TextRing(tokenizer, block_tokens)
    except ValueError as error:
        raise ConfigError(f"tokenizer: {error}") from None


def _served(
    worker: ResolvedWorker,
    tokenizer: Tokenizer,
    ring: TextRing,
    eos: EosModel | None,
    environment: Mapping[str, str],
    stores: dict[str, EmbeddingStore],
) -> ServedModel:
    args = worker.args
    limit = _limit_reader(environment)
    vision = worker.spec.step.model.vision
    return ServedModel(
        names=args.served_model_name or (args.model,),
        root=args.model,
        max_model_len=worker.spec.scheduler.max_model_len,
        tokenizer=tokenizer,
        ring=ring,
        vocab_size=worker.spec.step.model.vocab_size,
        seed=args.seed,
        data_parallel_size=worker.spec.dp_size,
        keeps_tokens=worker.spec.scheduler.enable_kv_cache_events,
        eos=eos,
        system_fingerprint=fingerprint(worker),
        new_id=_random_id,
        stream_interval=args.stream_interval,
        max_logprobs=args.max_logprobs,
        told_drafts=_told_drafts(worker),
        max_new_tokens=args.max_new_tokens,
        max_stop_strings=limit("VLLM_MAX_STOP_STRINGS", 4),
        max_n_sequences=limit("VLLM_MAX_N_SEQUENCES", 16384),
        max_completion_prompts=limit("VLLM_MAX_COMPLETION_PROMPTS", 1024),
        enable_prompt_tokens_details=args.enable_prompt_tokens_details,
        enable_force_include_usage=args.enable_force_include_usage,
        return_tokens_as_token_ids=args.return_tokens_as_token_ids,
        trust_request_chat_template=args.trust_request_chat_template,
        enable_auto_tool_choice=args.enable_auto_tool_choice,
        tool_call_parser=args.tool_call_parser,
        structured_backend=args.structured_outputs_backend,
        deployment=_deployment(worker),
        adapters=dict(_adapter(text) for text in args.lora_modules),
        media=None
        if vision is None
        else MediaPort(
            vision, args.max_images, embeddings=embedding_port(args.ec_transfer_config, stores)
        ),
    )


def sized(models: Sequence[ServedModel], text: str) -> list[ServedModel]:
    """The models, told how large linked images are, as WIDTHxHEIGHT. Raises ConfigError."""
    assumed = image_size(text)
    return [
        replace(model, media=replace(model.media, assumed=assumed)) if model.media else model
        for model in models
    ]


def _adapter(text: str) -> tuple[str, str]:
    """(name, path) of one entry of --lora-modules. Raises ConfigError."""
    name, found, path = text.partition("=")
    if text.lstrip().startswith("{"):
        try:
            described = json.loads(text)
        except ValueError:
            described = {}
        name, path = str(described.get("name", "")), str(described.get("path", ""))
        found = "=" if name and path else ""
    if not found or not name:
        raise ConfigError(
            f"argument --lora-modules: {text!r} is neither name=path nor JSON with name and path"
        )
    return name, path


def _deployment(worker: ResolvedWorker) -> Deployment:
    args, step = worker.args, worker.spec.step
    hardware = step.hardware
    return Deployment(
        weight_bytes=worker.memory.weights_bytes,
        host_bytes_per_s=hardware.pcie_bytes_per_s,
        network_bytes_per_s=hardware.nic_bytes_per_s or hardware.pcie_bytes_per_s,
        peer_bytes_per_s=hardware.nvlink_bytes_per_s or hardware.pcie_bytes_per_s,
        memory_bytes_per_s=hardware.hbm_bytes_per_s,
        tp=step.parallel.tp,
        pp=step.parallel.pp,
        dp=worker.spec.dp_size,
        max_num_seqs=worker.spec.scheduler.max_num_seqs
        if isinstance(worker.spec.scheduler, SchedulerSpec)
        else worker.spec.scheduler.max_running_requests,
        sleep_mode=args.enable_sleep_mode,
        tokens_only=args.tokens_only,
        trace_replay=args.enable_trace_replay,
        weight_transfer=args.weight_transfer_backend,
        max_loras=args.max_loras if args.enable_lora else 0,
        enable_prefix_caching=worker.spec.scheduler.enable_prefix_caching,
    )


def fingerprint(worker: ResolvedWorker) -> str | None:
    """vLLM's system_fingerprint: version, parallelism and 8 hex digits of the configuration.

    The shape is vLLM's (--fingerprint-mode), the digits are a hash of our own arguments.
    """
    args = worker.args
    if args.fingerprint_mode == "none":
        return None
    if args.fingerprint_mode == "custom":
        return args.fingerprint_value
    text = json.dumps(asdict(args), sort_keys=True)
    digits = hashlib.sha256(text.encode()).hexdigest()[:8]
    ranks = (
        _ranks(worker.spec.step.parallel, worker.spec.dp_size)
        if args.fingerprint_mode == "full"
        else ""
    )
    return f"vllm-{worker.spec.step.engine.version}{ranks}-{digits}"


def _ranks(parallel: ParallelSpec, dp_size: int) -> str:
    degrees = (("tp", parallel.tp), ("dp", dp_size))
    spread = "-ep" if parallel.ep > 1 else ""
    return "".join(f"-{name}{degree}" for name, degree in degrees if degree > 1) + spread


def _limit_reader(environment: Mapping[str, str]) -> Callable[[str, int], int]:
    def limit(name: str, default: int) -> int:
        text = environment.get(name)
        if not text:
            return default
        if not text.isdecimal() or len(text) > 18:
            raise ConfigError(f"environment variable {name}: {text!r} is not a whole number")
        return int(text)

    return limit


def _random_id() -> str:
    """As `uuid4().hex`, without its system call and its object."""
    return f"{getrandbits(128) & _FREE_BITS | _VERSION_4:032x}"
