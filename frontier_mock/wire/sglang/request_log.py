"""What SGLang logs of a request under --log-requests, when it comes and when it is over.

`Receive: obj=GenerateReqInput(...)` and `Finish: obj=GenerateReqInput(...), out={...}`, or JSON
objects. Levels say what is left out: 0 prompts, outputs and sampling parameters, 1 prompts and
outputs, 2 the middle of what is longer than 2048, 3 nothing.

Source: SGLang 0.5.23 utils/request_logger.py, managers/io_struct.py (GenerateReqInput). What this
keeps nothing of is left at its default: of an OpenAI request the prompt and all sampling parameters
but one (from level 2 on its body is logged as it came).
"""

import json
from collections.abc import Mapping
from typing import Final

from frontier_mock.wire.sglang.native import render_generate
from frontier_mock.wire.sglang.request import GENERATE, Ended, SglangRequest
from frontier_mock.wire.tokenizer import Json

_INPUT: Final[Mapping[str, Json]] = {
    **dict.fromkeys(("rid", "session_id", "text", "input_ids", "input_embeds", "image_data")),
    **dict.fromkeys(("video_data", "audio_data", "mm_hashes", "mm_content_hashes")),
    "use_audio_in_video": False,
    **dict.fromkeys(("video_config", "sampling_params", "watermark")),
    "return_logprob": False,
    "logprob_start_len": -1,
    "top_logprobs_num": 0,
    "token_ids_logprob": None,
    "return_sampling_mask": False,
    "sampling_logprobs_mode": None,
    "return_text_in_logprobs": False,
    "return_flat_raw_top_logprobs": False,
    "return_flat_raw_output_top_logprobs": False,
    "return_flat_raw_top_logprobs_b64": False,
    "stream": False,
    "log_metrics": True,
    "return_hidden_states": False,
    "return_routed_experts": False,
    "routed_experts_start_len": 0,
    "return_indexer_topk": False,
    **dict.fromkeys(("modalities", "session_params", "lora_path", "lora_id")),
    **dict.fromkeys(("custom_logit_processor", "positional_embed_overrides", "bootstrap_host")),
    **dict.fromkeys(("bootstrap_port", "bootstrap_room", "bootstrap_pair_key", "decode_tp_size")),
    **dict.fromkeys(("routed_dp_rank", "data_parallel_rank", "disagg_prefill_dp_rank")),
    **dict.fromkeys(("routing_key", "conversation_id", "http_worker_ipc")),
    "background": False,
    "require_reasoning": False,
    **dict.fromkeys(("max_thinking_tokens", "priority", "extra_key")),
    "no_logs": False,
    "custom_labels": None,
    "return_bytes": False,
    "return_entropy": False,
    "return_prompt_token_ids": False,
    **dict.fromkeys(("external_trace_header", "received_time", "need_wait_for_mm_inputs")),
    **dict.fromkeys(("num_items_assigned", "encoder_urls", "max_dynamic_patch")),
    **dict.fromkeys(("min_dynamic_patch", "image_max_dynamic_patch", "video_max_dynamic_patch")),
    **dict.fromkeys(("images_config", "mm_processor_kwargs", "multi_item_delimiter_indices")),
    **dict.fromkeys(("token_indices_to_pool", "cache_salt", "kv_hints")),
}
"""Fields in their order, and what they are where a single request is silent."""

_MEDIA: Final = ("image_data", "audio_data", "video_data")
_PROMPT: Final = frozenset(("text", "input_ids", "input_embeds", *_MEDIA, "lora_path"))
_OUTPUT: Final = frozenset(("text", "output_ids", "embedding"))
_SHORT: Final = 2048
_LONG: Final = 1 << 30


class RequestLines:
    """Makes the lines at `level`, as JSON objects if `as_json`."""

    def __init__(self, level: int, *, as_json: bool = False) -> None:
        self.level = level
        self._as_json = as_json
        self._limit = _SHORT if level == 2 else _LONG
        self._left_out = _PROMPT if level < 2 else frozenset()
        if level == 0:
            self._left_out |= {"sampling_params"}
        self._out_left_out = _OUTPUT if level < 2 else frozenset()

    def received(self, request: SglangRequest, body: bytes, stamp: str) -> list[str]:
        """The lines of a request with this body; `stamp` is the time in ISO 8601."""
        lines = []
        raw = _object(body)
        if request.kind != GENERATE and self.level >= 2:
            limit = self._limit
            if self._as_json:
                told = {"obj": _cut({k: v for k, v in raw.items() if v is not None}, limit)}
                lines.append(_json("request.received.openai", stamp, told))
            else:
                lines.append(f"Receive OpenAI: obj={_text(raw, limit)}")
        obj = self._input(request, raw, None)
        if self._as_json:
            told = {"rid": obj["rid"], "obj": _cut(obj, self._limit, self._left_out)}
            lines.append(_json("request.received", stamp, told))
        else:
            lines.append(f"Receive: obj={self._shown(obj)}")
        return lines

    def finished(self, request: SglangRequest, body: bytes, ended: Ended, stamp: str) -> str:
        """The line of one sequence that is over."""
        obj = self._input(request, _object(body), ended.index)
        out = json.loads(render_generate(request, [ended], 0))
        out = out[0] if isinstance(out, list) else out
        if self._as_json:
            told = {"rid": obj["rid"], "obj": _cut(obj, self._limit, self._left_out)}
            told["out"] = _cut(out, self._limit, self._out_left_out)
            return _json("request.finished", stamp, told)
        said = _text(out, self._limit, self._out_left_out)
        return f"Finish: obj={self._shown(obj)}, out={said}"

    def _shown(self, obj: Mapping[str, Json]) -> str:
        fields = [
            f"{name}={_text(value, self._limit)}"
            for name, value in obj.items()
            if name not in self._left_out
        ]
        return f"GenerateReqInput({', '.join(fields)})"

    def _input(
        self, request: SglangRequest, raw: Mapping[str, Json], index: int | None
    ) -> dict[str, Json]:
        """The object of a whole request, or of one of its sequences."""
        rids: list[Json] = [sequence.rid for sequence in request.sequences]
        obj = dict(_INPUT) | {"stream": request.stream}
        if request.kind == GENERATE:
            given = {name: raw[name] for name in _INPUT if raw.get(name) is not None}
            obj |= {"sampling_params": {}} | given
        else:
            obj["sampling_params"] = {"max_new_tokens": request.sequences[0].cap}
        single = len(rids) == 1 and request.single
        if index is None:
            obj["rid"] = rids[0] if single else rids
            return obj
        obj["rid"] = rids[index]
        if not single:
            prompt = request.sequences[index].plan.prompt_index
            for name in ("text", "input_ids", "sampling_params"):
                value = obj[name]
                # A list of lists, or of anything but ids, has an item for each prompt.
                many = isinstance(value, list) and not any(isinstance(one, int) for one in value)
                if isinstance(value, list) and many and prompt < len(value):
                    obj[name] = value[prompt]
        return obj


def _object(body: bytes) -> dict[str, Json]:
    raw = json.loads(body)
    return raw if isinstance(raw, dict) else {}


def _json(event: str, stamp: str, told: Mapping[str, Json]) -> str:
    return json.dumps({"timestamp": stamp, "event": event, **told}, ensure_ascii=False)


def _text(value: Json, limit: int, left_out: frozenset[str] = frozenset()) -> str:
    """Python's own text of a value, the middle of long strings and lists left out."""
    half = limit // 2
    if isinstance(value, str):
        if len(value) > limit:
            return f"{value[:half]!r} ... {value[-half:]!r}"
        return repr(value)
    if isinstance(value, list):
        return f"{value[:half]} ... {value[-half:]}" if len(value) > limit else str(value)
    if isinstance(value, dict):
        parts = [f"'{k}': {_text(v, limit)}" for k, v in value.items() if k not in left_out]
        return "{" + ", ".join(parts) + "}"
    return str(value)


def _cut(value: Json, limit: int, left_out: frozenset[str] = frozenset()) -> Json:
    """The same of a value that is to be JSON."""
    half = limit // 2
    if isinstance(value, str):
        return f"{value[:half]}...{value[-half:]}" if len(value) > limit else value
    if isinstance(value, list):
        if len(value) <= limit:
            return [_cut(one, limit) for one in value]
        ends = [_cut(one, limit) for one in value[:half]], [_cut(o, limit) for o in value[-half:]]
        return [*ends[0], "...", *ends[1]]
    if isinstance(value, dict):
        return {k: _cut(v, limit) for k, v in value.items() if k not in left_out}
    return value
