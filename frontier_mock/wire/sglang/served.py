"""What SGLang's HTTP layer knows of the worker behind it beyond `wire.served.ServedModel`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from frontier_mock.wire.compat import DEFAULT_COMPAT
from frontier_mock.wire.sglang.disaggregation import Disaggregation
from frontier_mock.wire.tokenizer import Json


@dataclass(frozen=True, slots=True)
class Http2:
    """What a server that speaks HTTP/2 tells its clients: how much of it they may have at once."""

    max_concurrent_streams: int = 200
    window_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class RouteNames:
    """Paths that SGLang takes from its environment, and their defaults.

    `root` is where a server says that Ollama is running; None: it says at / that SGLang is.
    """

    root: str | None = None
    ollama_chat: str = "/api/chat"
    ollama_generate: str = "/api/generate"
    ollama_tags: str = "/api/tags"
    ollama_show: str = "/api/show"
    vertex: str = "/vertex_generate"


@dataclass(frozen=True, slots=True)
class EncoderFront:
    """A server's part in encoder disaggregation: it encodes only, or asks those at `urls`."""

    encodes_only: bool = False
    urls: tuple[str, ...] = ()
    backend: str = "zmq_to_scheduler"


@dataclass(frozen=True, slots=True)
class SglangFront:
    """SGLang's own settings under its names (SGLang 0.5.23 ServerArgs), lengths in tokens.

    `context_len` is the model's context; `max_req_len` bounds prompt plus output and
    `max_req_input_len` a prompt. `server_args` are all resolved arguments, as /server_info shows
    them. `verified_tokens` and `draft_steps` are those of speculative decoding, 0 without.
    `model_type` and `architectures` come from the model's configuration, None if unknown.
    """

    context_len: int
    max_req_len: int
    max_req_input_len: int
    num_pages: int
    page_size: int = 1
    max_running_requests: int = 0
    chunked_prefill_size: int = -1
    num_dp_ranks: int = 1
    server_args: Mapping[str, Json] = field(default_factory=dict)
    api_key: str | None = None
    admin_api_key: str | None = None
    stream_interval: int = 1
    incremental_streaming_output: bool = False
    stream_response_default_include_usage: bool = False
    enable_cache_report: bool = False
    enable_metrics: bool = False
    enable_response_store: bool = False
    enable_priority_scheduling: bool = False
    enable_strict_thinking: bool = False
    enable_custom_logit_processor: bool = False
    enable_return_hidden_states: bool = False
    enable_lora: bool = False
    skip_tokenizer_init: bool = False
    skip_server_warmup: bool = False
    allow_auto_truncate: bool = False
    trust_request_chat_template: bool = False
    disaggregation_mode: str = "null"
    disaggregation: Disaggregation | None = None
    encoder: EncoderFront = EncoderFront()
    takes_images: bool = False
    host_tier: bool = False
    storage_backend: str = ""
    storage_class: str = ""
    tokenizer_path: str = ""
    weight_version: str = "default"
    load_format: str = "auto"
    preferred_sampling_params: Mapping[str, Json] | None = None
    default_sampling_params: Mapping[str, Json] = field(default_factory=dict)
    reasoning_parser: str | None = None
    tool_call_parser: str | None = None
    extra_metric_labels: Mapping[str, str] = field(default_factory=dict)
    model_type: str | None = None
    architectures: tuple[str, ...] | None = None
    num_layers: int = 0
    experts_per_token: int = 0
    weight_gb: float = 0.0
    kv_cache_gb: float = 0.0
    graph_gb: float = 0.0
    accelerator: str = ""
    num_accelerators: int = 1
    largest_graph: int = 0
    verified_tokens: int = 0
    draft_steps: int = 0
    health_generates: bool = True
    health_timeout_s: int = 20
    """How /health finds out: by waiting for output, so long; or not at all."""
    version: str = "0.5.23"
    routes: RouteNames = RouteNames()
    http2: Http2 | None = None
    compat: tuple[str, ...] = DEFAULT_COMPAT
    """What it still does that 0.5.23 does not (`wire.compat`)."""
