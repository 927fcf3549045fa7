"""Loading and unloading LoRA adapters at run time (VLLM_ALLOW_RUNTIME_LORA_UPDATING=1).

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
    """One per port. `serve` gives what is served, after changing its adapters if it is told to."""

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
        served = self._serve(None)
        if not name or not path:
            raise bad_adapter("Both 'lora_name' and 'lora_path' must be provided.")
        if name in served.names:
            raise bad_adapter(f"The lora adapter '{name}' conflicts with a served base model.")
        if name in served.adapters and not flag_field(fields, "load_inplace"):
            raise bad_adapter(
                f"The lora adapter '{name}' has already been loaded. If you want to load the "
                "adapter in place, set 'load_inplace' to True."
            )
        self._serve({**served.adapters, name: path})
        return _said(f"Success: LoRA adapter '{name}' added successfully.")

    def _unload(self, exchange: Exchange) -> Answer:
        name = text_field(self._fields(exchange, "lora_name"), "lora_name")
        if not name:
            raise bad_adapter("'lora_name' needs to be provided to unload a LoRA adapter.")
        adapters = dict(self._serve(None).adapters)
        if adapters.pop(name, None) is None:
            raise unknown_adapter(name)
        self._serve(adapters)
        return _said(f"Success: LoRA adapter '{name}' removed successfully.")


def _said(text: str) -> Answer:
    return Answer(200, text.encode(), "")
