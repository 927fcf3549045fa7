"""Loading and unloading LoRA adapters at run time: routes of HTTP, and what gRPC asks for.

Names and refusals are vLLM 0.33's (`openai/models/serving.py`). There are no files to read: any
path will do, and loading takes no time.
"""

from collections.abc import Callable, Mapping

from frontier_mock.serve.answers import Answer
from frontier_mock.serve.connection import Exchange
from frontier_mock.serve.http1 import Request
from frontier_mock.serve.routing import Table
from frontier_mock.wire.errors import bad_adapter, unknown_adapter
from frontier_mock.wire.fields import (
    Fields,
    boolean,
    check_fields,
    flag_field,
    load_object,
    string,
    text_field,
)
from frontier_mock.wire.served import ServedModel


class AdapterRoutes:
    """One per server. `serve` gives what is served, after changing its adapters if it is told to.

    The routes are for VLLM_ALLOW_RUNTIME_LORA_UPDATING=1.
    """

    def __init__(
        self,
        serve: Callable[[Mapping[str, str] | None], ServedModel],
        check_json: Callable[[Request], None],
    ) -> None:
        self._serve = serve
        self._check_json = check_json

    def table(self) -> Table:
        """Handlers by (method, path)."""
        return {
            ("POST", "/v1/load_lora_adapter"): self._load,
            ("POST", "/v1/unload_lora_adapter"): self._unload,
        }

    def _fields(self, exchange: Exchange, *required: str) -> Fields:
        self._check_json(exchange.request)
        table = {"lora_name": string, "lora_path": string, "load_inplace": boolean}
        return check_fields(load_object(exchange.request.body), table, required)

    def _load(self, exchange: Exchange) -> Answer:
        fields = self._fields(exchange, "lora_name", "lora_path")
        name, path = text_field(fields, "lora_name"), text_field(fields, "lora_path")
        self.load(name or "", path or "", in_place=flag_field(fields, "load_inplace"))
        return _said(f"Success: LoRA adapter '{name}' added successfully.")

    def load(self, name: str, path: str, *, in_place: bool) -> None:
        """Serve an adapter. Raises ApiError, in vLLM's words, if it cannot be."""
        served = self._serve(None)
        if not name or not path:
            raise bad_adapter("Both 'lora_name' and 'lora_path' must be provided.")
        if name in served.names:
            raise bad_adapter(f"The lora adapter '{name}' conflicts with a served base model.")
        if name in served.adapters and not in_place:
            raise bad_adapter(
                f"The lora adapter '{name}' has already been loaded. If you want to load the "
                "adapter in place, set 'load_inplace' to True."
            )
        self._serve({**served.adapters, name: path})

    def _unload(self, exchange: Exchange) -> Answer:
        name = text_field(self._fields(exchange, "lora_name"), "lora_name")
        self.unload(name or "")
        return _said(f"Success: LoRA adapter '{name}' removed successfully.")

    def unload(self, name: str) -> str:
        """Serve an adapter no more; gives its path. Raises ApiError if it is unknown."""
        if not name:
            raise bad_adapter("'lora_name' needs to be provided to unload a LoRA adapter.")
        adapters = dict(self._serve(None).adapters)
        path = adapters.pop(name, None)
        if path is None:
            raise unknown_adapter(name)
        self._serve(adapters)
        return path


def _said(text: str) -> Answer:
    return Answer(200, text.encode(), "")
