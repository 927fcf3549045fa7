"""From a resolved SGLang worker to what its HTTP layer is told, all of ServerArgs included."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from frontier_mock.config.errors import ConfigError, shown
from frontier_mock.config.flags import Flag
from frontier_mock.config.hicache import STORAGE_CLASSES
from frontier_mock.config.resolve import ResolvedWorker
from frontier_mock.config.sglang_flags import SglangArgs, sglang_flags
from frontier_mock.config.sglang_speculative import shown_drafts
from frontier_mock.serving.specs import SglangSchedulerSpec
from frontier_mock.simtime import from_seconds
from frontier_mock.wire.sglang.disaggregation import Disaggregation
from frontier_mock.wire.sglang.served import EncoderFront, Http2, RouteNames, SglangFront
from frontier_mock.wire.tokenizer import Json

_INPUT_MARGIN_TOKENS = 5
"""`max_req_len - max_req_input_len` (SGLang 0.5.23 managers/tp_worker.py)."""

_PORTS = 30000


def sglang_front(worker: ResolvedWorker, environment: Mapping[str, str]) -> SglangFront:
    """SGLang's own settings of a worker, SGLANG_... variables of `environment` among them.

    The longest request of the scheduler is `max_req_len - 1` of SGLang. Raises ConfigError for a
    flag that ought to be JSON, or a variable that ought to be something else.
    """
    args, spec = worker.sglang, worker.spec
    assert args is not None
    scheduler = spec.scheduler
    assert isinstance(scheduler, SglangSchedulerSpec)
    given = dict(args.given)
    step = spec.step
    model, parallel = step.model, step.parallel
    max_req_len = scheduler.context_length + 1
    verified = 0 if step.draft is None else step.draft.verified
    labels = _object(given, "extra_metric_labels") or {}
    return SglangFront(
        context_len=args.context_length or model.max_position_embeddings,
        max_req_len=max_req_len,
        max_req_input_len=max_req_len - _INPUT_MARGIN_TOKENS,
        num_pages=scheduler.num_pages,
        host_tier=scheduler.host_tier is not None,
        storage_backend=_storage_backend(scheduler),
        storage_class=STORAGE_CLASSES.get(_storage_backend(scheduler), ""),
        page_size=scheduler.page_size,
        max_running_requests=scheduler.max_running_requests,
        chunked_prefill_size=scheduler.chunked_prefill_size,
        num_dp_ranks=spec.dp_size,
        server_args=server_args(worker),
        api_key=args.api_key,
        admin_api_key=args.admin_api_key,
        stream_interval=max(1, _whole(given, "stream_interval", 1)),
        incremental_streaming_output=_flag(given, "incremental_streaming_output"),
        stream_response_default_include_usage=_flag(given, "stream_response_default_include_usage"),
        enable_cache_report=_flag(given, "enable_cache_report"),
        enable_metrics=_flag(given, "enable_metrics"),
        enable_response_store=_flag(given, "enable_response_store")
        and args.disaggregation_mode == "null",
        enable_priority_scheduling=scheduler.enable_priority_scheduling,
        enable_strict_thinking=_flag(given, "enable_strict_thinking"),
        enable_custom_logit_processor=_flag(given, "enable_custom_logit_processor"),
        enable_return_hidden_states=_flag(given, "enable_return_hidden_states"),
        enable_lora=_flag(given, "enable_lora"),
        allow_auto_truncate=_flag(given, "allow_auto_truncate"),
        trust_request_chat_template=_flag(given, "trust_request_chat_template"),
        disaggregation_mode=args.disaggregation_mode,
        takes_images=model.vision is not None,
        disaggregation=_disaggregation(worker, environment),
        encoder=EncoderFront(
            args.encoder_only,
            args.encoder_urls if args.language_only else (),
            _encoder_backend(given),
        ),
        tokenizer_path=args.tokenizer_path or args.model_path,
        weight_version=str(given.get("weight_version", "default")),
        load_format=str(given.get("load_format", "auto")),
        preferred_sampling_params=_object(given, "preferred_sampling_params"),
        reasoning_parser=_text(given, "reasoning_parser"),
        tool_call_parser=_text(given, "tool_call_parser"),
        extra_metric_labels={name: str(value) for name, value in labels.items()},
        num_layers=model.num_layers,
        experts_per_token=0 if model.experts is None else model.experts.top_k,
        weight_gb=worker.memory.weights_bytes / (1 << 30),
        kv_cache_gb=worker.memory.kv_bytes / (1 << 30),
        accelerator=step.hardware.name,
        num_accelerators=parallel.gpus // parallel.dp,
        largest_graph=max(step.cudagraph_sizes, default=0) // (verified or 1),
        verified_tokens=verified,
        draft_steps=0 if step.draft is None else step.draft.passes,
        health_generates=_truth(environment, "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"),
        health_timeout_s=_seconds(environment, "SGLANG_HEALTH_CHECK_TIMEOUT", 20),
        version=step.engine.version,
        routes=_route_names(environment),
        compat=worker.compat,
        http2=_http2(given),
    )


def _encoder_backend(given: Mapping[str, object]) -> str:
    """`auto` is what SGLang takes for every model that is known here."""
    asked = str(given.get("encoder_transfer_backend", "auto"))
    return "zmq_to_scheduler" if asked == "auto" else asked


def _disaggregation(
    worker: ResolvedWorker, environment: Mapping[str, str]
) -> Disaggregation | None:
    """Its part in prefill/decode disaggregation. Several servers of one host count up the port.

    A prefill server waits for its other half to be found, a decode server for its prompt. Raises
    ConfigError for an environment variable that is no number of seconds.
    """
    args, connector = worker.sglang, worker.spec.connector
    if args is None or connector is None:
        return None
    wait = "BOOTSTRAP" if args.disaggregation_mode == "prefill" else "WAITING"
    patience_s = _seconds(
        environment, f"SGLANG_DISAGGREGATION_{wait}_TIMEOUT", round(connector.patience_s)
    )
    beat_s = max(2, _seconds(environment, "SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL", 5))
    beats = max(1, _seconds(environment, "SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE", 2))
    parallel = worker.spec.step.parallel
    policy = args.load_balance_method
    return Disaggregation(
        mode=args.disaggregation_mode,
        backend=args.disaggregation_transfer_backend,
        port=args.disaggregation_bootstrap_port + worker.place if worker.spec.port else 0,
        patience_ns=max(1, from_seconds(patience_s)),
        page_size=worker.spec.scheduler.block_size,
        tp=parallel.tp,
        pp=parallel.pp,
        kv_cache_dtype=args.kv_cache_dtype,
        load_balance_method="follow_bootstrap_room" if policy == "auto" else policy,
        heartbeat_s=float(beat_s * beats),
    )


def server_args(worker: ResolvedWorker) -> dict[str, Json]:
    """Every field of ServerArgs that has a flag, as resolution leaves it."""
    args, spec = worker.sglang, worker.spec
    assert args is not None
    scheduler = spec.scheduler
    assert isinstance(scheduler, SglangSchedulerSpec)
    given = dict(args.given)
    fields: dict[str, Json] = {
        # No release has the flags of AFD yet, so nobody sees them who has not given them.
        flag.name: _value(flag, given)
        for flag in sglang_flags()
        if flag.name in given or not flag.name.startswith("afd_")
    }
    attention_ranks = spec.step.parallel.dp
    # Graphs are sized by tokens here, and by sequences in SGLang.
    width = 1 if args.drafts is None else args.drafts.verified
    graphs = [size // width for size in spec.step.cudagraph_sizes]
    if args.drafts is not None:
        fields |= shown_drafts(str(given["speculative_algorithm"]), args.drafts)
    fields |= {
        "model_path": args.model_path,
        "served_model_name": args.served_model_name or args.model_path,
        "tokenizer_path": args.tokenizer_path or args.model_path,
        "host": args.host or "127.0.0.1",
        "port": spec.port or _PORTS,
        "api_key": args.api_key,
        "admin_api_key": args.admin_api_key,
        "tp_size": args.tp_size,
        "disaggregation_mode": args.disaggregation_mode,
        "encoder_only": args.encoder_only,
        "language_only": args.language_only,
        "disaggregation_bootstrap_port": args.disaggregation_bootstrap_port + worker.place,
        "dp_size": spec.dp_size if attention_ranks == 1 else 1,
        "attn_dp_size": attention_ranks,
        "enable_dp_attention": attention_ranks > 1,
        "random_seed": args.random_seed,
        "context_length": args.context_length,
        "page_size": scheduler.page_size,
        "chunked_prefill_size": scheduler.chunked_prefill_size,
        "max_running_requests": scheduler.max_running_requests * attention_ranks,
        "schedule_conservativeness": scheduler.schedule_conservativeness,
        "cuda_graph_bs_decode": [*graphs],
        "cuda_graph_max_bs_decode": max(graphs, default=0),
        "launch_command": _launch_command(args),
    }
    if args.encoder_only or args.language_only:
        fields["encoder_transfer_backend"] = _encoder_backend(given)
    return fields


def _launch_command(args: SglangArgs) -> str:
    words = ["sglang", "serve"]
    for name, value in args.given:
        words.append("--" + name.replace("_", "-"))
        if isinstance(value, tuple):
            words += [str(item) for item in value]
        elif value is not True:
            words.append(str(value))
    return shlex.join(words)


def _value(flag: Flag, given: Mapping[str, object]) -> Json:
    """What the flag's field holds: the value given, else its default with the right type."""
    if flag.name in given:
        value: Any = given[flag.name]
        return [*value] if isinstance(value, tuple) else value
    kind = flag.kind.partition(":")[0]
    default = flag.default
    if kind in ("flag", "switch"):
        return default == "True"
    if default in ("-", ""):
        return None if default == "-" else ""
    if kind in ("int", "human", "float"):
        try:
            number = float(default)
        except ValueError:
            return None
        return number if kind == "float" else int(number)
    return default


def _flag(given: Mapping[str, object], name: str) -> bool:
    value = given.get(name, False)
    return value is True or str(value).lower() == "true"


def _whole(given: Mapping[str, object], name: str, default: int) -> int:
    value = given.get(name)
    return value if isinstance(value, int) else default


def _text(given: Mapping[str, object], name: str) -> str | None:
    value = given.get(name)
    return value if isinstance(value, str) else None


def _object(given: Mapping[str, object], name: str) -> dict[str, Json] | None:
    text = _text(given, name)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        option = "--" + name.replace("_", "-")
        raise ConfigError(f"argument {option}: {shown(text)} is not a JSON object")
    return value


def _http2(given: Mapping[str, object]) -> Http2 | None:
    """--enable-http2 and its bounds. Raises ConfigError."""
    if not _flag(given, "enable_http2"):
        return None
    streams = _whole(given, "http2_max_concurrent_streams", 200)
    window = _whole(given, "http2_initial_connection_window_size", 1 << 20)
    for option, value, low, high in (
        ("--http2-max-concurrent-streams", streams, 1, 2**32 - 1),
        ("--http2-initial-connection-window-size", window, 1024, 2**31 - 1),
    ):
        if not low <= value <= high:
            raise ConfigError(f"argument {option}: {value}; allowed: {low} to {high}")
    return Http2(streams, window)


def _route_names(environment: Mapping[str, str]) -> RouteNames:
    named = {field: environment.get(name) for field, name in _ROUTE_VARIABLES.items()}
    for field, path in named.items():
        if path is not None and not path.startswith("/"):
            name = _ROUTE_VARIABLES[field]
            raise ConfigError(
                f"environment variable {name}: {shown(path)}; allowed: a path that begins with /"
            )
    return RouteNames(**{field: path for field, path in named.items() if path is not None})


_ROUTE_VARIABLES = {
    "root": "SGLANG_OLLAMA_ROOT_ROUTE",
    "ollama_chat": "SGLANG_OLLAMA_CHAT_ROUTE",
    "ollama_generate": "SGLANG_OLLAMA_GENERATE_ROUTE",
    "ollama_tags": "SGLANG_OLLAMA_TAGS_ROUTE",
    "ollama_show": "SGLANG_OLLAMA_SHOW_ROUTE",
    "vertex": "AIP_PREDICT_ROUTE",
}


def _truth(environment: Mapping[str, str], name: str) -> bool:
    """A variable that is true unless it says otherwise."""
    value = environment.get(name, "1").lower()
    if value not in ("1", "true", "0", "false"):
        raise ConfigError(
            f"environment variable {name}: {shown(value)}; allowed: 0, 1, true, false"
        )
    return value in ("1", "true")


def _seconds(environment: Mapping[str, str], name: str, default: int) -> int:
    value = environment.get(name, str(default))
    if not value.isascii() or not value.isdecimal():
        raise ConfigError(f"environment variable {name}: {shown(value)}; allowed: whole seconds")
    return int(value)


def _storage_backend(scheduler: SglangSchedulerSpec) -> str:
    """The kind of storage behind the host tier; empty without one."""
    tier = scheduler.host_tier
    return "" if tier is None or tier.storage is None else tier.storage.backend
