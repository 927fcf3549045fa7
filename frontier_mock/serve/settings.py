"""What the HTTP layer is told beyond the model: vLLM's front-end flags that change its answers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Names are vLLM's flags (`--api-key`, `--root-path`, ...) with `_` for `-`.

    `dev_mode` is VLLM_SERVER_DEV_MODE=1, `scale_out` --enable-scale-out,
    `lora_updating` VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, `response_store`
    VLLM_ENABLE_RESPONSES_API_STORE=1. `shutdown_timeout_s` is
    how long SIGTERM lets requests in flight go on before they are aborted.
    `sse_keep_alive_interval_s` is real: the silence after which a stream gets a comment, 0 for
    never. `uds` is a socket file to listen on instead of a port. `version` is what GET /version
    says.
    """

    api_key: tuple[str, ...] = ()
    root_path: str = ""
    enable_request_id_headers: bool = False
    enable_server_load_tracking: bool = False
    dev_mode: bool = False
    scale_out: bool = False
    tokens_only: bool = False
    lora_updating: bool = False
    response_store: bool = False
    enable_log_requests: bool = False
    sse_keep_alive_interval_s: float = 0.0
    allowed_origins: tuple[str, ...] = ()
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False
    uds: str | None = None
    shutdown_timeout_s: float = 0.0
    version: str = "0.33.0"


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What one server logs. `interval` is in decode steps, `stats_s` in virtual seconds.

    `batches` are SGLang's lines of batches, or vLLM's of averages; decode batches beyond
    `largest_graph` run outside of CUDA graphs. `excluded` are paths whose accesses are not logged,
    and all below them. `requests` is SGLang's --log-requests-level, -1 without --log-requests, and
    `requests_as_json` its format.
    """

    sglang: bool = False
    batches: bool = True
    interval: int = 40
    stats_s: float = 10.0
    largest_graph: int = 0
    access: bool = True
    excluded: tuple[str, ...] = ()
    requests: int = -1
    requests_as_json: bool = False
