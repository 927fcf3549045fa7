"""Bodies of SGLang's read-only routes: models, /model_info, /server_info, /v1/loads."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from frontier_mock.serving.gauges import Gauges
from frontier_mock.wire.render import dumps
from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.sglang.errors import http_error, unknown_model
from frontier_mock.wire.sglang.plan import front_of
from frontier_mock.wire.sglang.served import SglangFront
from frontier_mock.wire.tokenizer import Json


class Identity(NamedTuple):
    """What a server is called now, which updates may change; `adapters` are (name, path)."""

    model_path: str
    served_model_name: str
    weight_version: str = "default"
    load_format: str = "auto"
    adapters: tuple[tuple[str, str], ...] = ()


class RankLoad(NamedTuple):
    """One data-parallel rank as its scheduler sees itself; rates are per second of virtual time."""

    gauges: Gauges
    waiting_tokens: int = 0
    waiting_uncached_tokens: int = 0
    gen_throughput: float = 0.0
    cache_hit_rate: float = 0.0
    prefilled_tokens: int = 0
    prefill_busy_us: int = 0
    paused: int = 0
    retracted: int = 0
    accepted_steps: tuple[int, ...] = ()
    """How many verifications accepted 0, 1, 2, ... drafts so far."""


SECTIONS = ("core", "disagg", "lora", "memory", "queues", "spec", "all")
"""What `include` of /v1/loads may name."""


def models_body(served: ServedModel, identity: Identity, created_s: int) -> bytes:
    """GET /v1/models: the model, and one card per adapter."""
    name = identity.served_model_name
    front = front_of(served)
    cards: list[Json] = [_card(name, name, None, front.context_len, created_s)]
    for adapter, path in identity.adapters:
        cards.append(_card(adapter, path, name, None, created_s))
    return _body({"object": "list", "data": cards})


def model_body(served: ServedModel, identity: Identity, name: str, created_s: int) -> bytes:
    """GET /v1/models/{name}. Raises SglangError for any other name."""
    if name != identity.served_model_name:
        raise unknown_model(name)
    return _body(_card(name, name, None, front_of(served).context_len, created_s))


def _card(
    name: str, root: str, parent: str | None, max_model_len: int | None, created_s: int
) -> Json:
    return {
        "id": name,
        "object": "model",
        "created": created_s,
        "owned_by": "sglang",
        "root": root,
        "parent": parent,
        "max_model_len": max_model_len,
    }


def model_info_body(served: ServedModel, identity: Identity) -> bytes:
    """GET /model_info."""
    front = front_of(served)
    preferred = front.preferred_sampling_params
    return _body(
        {
            "model_path": identity.model_path,
            "served_model_name": identity.served_model_name,
            "tokenizer_path": front.tokenizer_path,
            "is_generation": True,
            "preferred_sampling_params": None if preferred is None else dumps(dict(preferred)),
            "weight_version": identity.weight_version,
            "load_format": identity.load_format,
            "reasoning_parser": front.reasoning_parser,
            "tool_call_parser": front.tool_call_parser,
            "disaggregation_mode": front.disaggregation_mode,
            "has_image_understanding": front.takes_images,
            "has_audio_understanding": False,
            "model_type": front.model_type,
            "architectures": None if front.architectures is None else [*front.architectures],
        }
    )


def server_info(
    served: ServedModel, gen_throughput: Sequence[float], kv_events: Json = None
) -> dict[str, Json]:
    """GET /server_info: every resolved argument, flat, and the scheduler's state by rank.

    `kv_events` describes the publisher of KV events, None without one.
    """
    front = front_of(served)
    args = dict(front.server_args)
    startup: Json = {
        "load_weight": 0.0,
        "kv_cache_allocation": 0.0,
        "cuda_graph": {},
        "scheduler_e2e": 0.0,
        "tokenizer_e2e": 0.0,
    }
    total = front.num_pages * front.page_size
    states: list[Json] = [_internal_state(front, args, rate, startup) for rate in gen_throughput]
    return {
        **args,
        "launch_command": args.get("launch_command"),
        "status": "ready",
        "max_total_num_tokens": total,
        "max_req_input_len": front.max_req_input_len,
        "startup_time": startup,
        "kv_events": kv_events,
        "internal_states": states,
        "version": front.version,
        "frontend": "python",
    }


def _internal_state(
    front: SglangFront, args: Mapping[str, Json], rate: float, startup: Json
) -> Json:
    graphs = args.get("cuda_graph_bs_decode")
    return {
        **args,
        "world_size": front.num_accelerators * front.num_dp_ranks,
        "startup_time": startup,
        "effective_max_running_requests_per_dp": front.max_running_requests,
        "last_gen_throughput": round(rate, 2),
        "memory_usage": {
            "weight": round(front.weight_gb, 3),
            "kvcache": round(front.kv_cache_gb, 3),
            "startup_available": 0.0,
            "token_capacity": front.num_pages * front.page_size,
            "token_capacity_swa": None,
            "graph": {"decode": round(front.graph_gb, 3)},
        },
        "disaggregation_mode": front.disaggregation_mode,
        "decode_cuda_graph_bs": graphs if isinstance(graphs, list) else [],
        "decode_cuda_graph_memory_gb": round(front.graph_gb, 3),
    }


def read_include(text: str | None) -> frozenset[str] | None:
    """Sections of /v1/loads to show, None for all. Raises SglangError for an unknown one."""
    if not text:
        return None
    asked = frozenset(part.strip() for part in text.split(","))
    if "all" in asked:
        return None
    strange = asked.difference(SECTIONS)
    if strange:
        listed = "{" + ", ".join(repr(name) for name in sorted(strange)) + "}"
        raise http_error(
            f"Invalid include sections: {listed}. Valid options: {sorted(SECTIONS)}", 400
        )
    return asked


def rank_load(
    front: SglangFront, rank: int, load: RankLoad, sections: frozenset[str] | None, now_s: float
) -> dict[str, Json]:
    """One entry of /v1/loads (`LoadSnapshot.to_dict`); `now_s` is unix time."""
    gauges = load.gauges
    page = front.page_size
    used = (gauges.num_blocks - gauges.free_blocks) * page
    total = front.num_pages * page
    running_cap = front.max_running_requests
    entry: dict[str, Json] = {
        "timestamp": now_s,
        "dp_rank": rank,
        "num_running_reqs": gauges.running,
        "num_waiting_reqs": gauges.waiting,
        "num_waiting_uncached_tokens": load.waiting_uncached_tokens,
        "num_used_tokens": used,
        "num_total_tokens": used + load.waiting_tokens,
        "num_active_tokens": used + load.waiting_tokens,
        "num_prealloc_ready_tokens": 0,
        "max_total_num_tokens": total,
        "max_running_requests": running_cap,
        "token_usage": round(used / total, 4) if total else 0.0,
        "gen_throughput": round(load.gen_throughput, 2),
        "cache_hit_rate": round(load.cache_hit_rate, 4),
        "utilization": 0.0,
        "total_prefill_uncached_tokens": load.prefilled_tokens,
        "total_prefill_busy_us": load.prefill_busy_us,
        "decode_moments": None,
    }
    if sections is None or "memory" in sections:
        entry["memory"] = {
            "weight_gb": round(front.weight_gb, 3),
            "kv_cache_gb": round(front.kv_cache_gb, 3),
            "graph_gb": round(front.graph_gb, 3),
            "token_capacity": total,
        }
    calls = sum(load.accepted_steps)
    if calls and (sections is None or "spec" in sections):
        # SGLang's rate is that of the steps since its last line in the log.
        correct = sum(drafts * times for drafts, times in enumerate(load.accepted_steps))
        entry["speculative"] = {
            "accept_length": 1 + correct / calls,
            "accept_rate": correct / (calls * max(1, front.verified_tokens - 1)),
        }
    if front.enable_lora and (sections is None or "lora" in sections):
        entry["lora"] = {"slots_used": 0, "slots_total": 8, "utilization": 0.0}
    if sections is None or "disagg" in sections:
        entry["disaggregation"] = {
            "mode": front.disaggregation_mode,
            "prefill_bootstrap_queue_reqs": 0,
            "prefill_inflight_queue_reqs": 0,
            "decode_prealloc_queue_reqs": 0,
            "decode_transfer_queue_reqs": 0,
            "decode_retracted_queue_reqs": 0,
            "kv_transfer_speed_gb_s": 0.0,
            "kv_transfer_latency_ms": 0.0,
        }
    if sections is None or "queues" in sections:
        entry["queues"] = {
            "waiting": gauges.waiting,
            "grammar": 0,
            "paused": load.paused,
            "retracted": load.retracted,
            "prealloc_ready": 0,
        }
    return entry


def loads_body(front: SglangFront, entries: Sequence[dict[str, Json]], stamp: str) -> bytes:
    """GET /v1/loads; `stamp` is the time in ISO 8601."""
    return _body(
        {
            "timestamp": stamp,
            "version": front.version,
            "accelerator": front.accelerator,
            "num_accelerators": front.num_accelerators,
            "loads": [*entries],
        }
    )


_PREFIXES = {"speculative": "spec", "disaggregation": "disagg"}


def loads_prometheus(entries: Sequence[dict[str, Json]]) -> bytes:
    """GET /v1/loads?format=prometheus: every number as a gauge."""
    samples: dict[str, list[tuple[Json, Json]]] = {}
    for entry in entries:
        rank = entry["dp_rank"]
        for key, value in entry.items():
            if key == "dp_rank":
                continue
            parts = value.items() if isinstance(value, dict) else ()
            for name, number in parts:
                if isinstance(number, int | float):
                    metric = f"sglang_{_PREFIXES.get(key, key)}_{name}"
                    samples.setdefault(metric, []).append((rank, number))
            if isinstance(value, int | float):
                samples.setdefault(f"sglang_{key}", []).append((rank, value))
    lines = []
    for metric, found in samples.items():
        lines.append(f"# TYPE {metric} gauge")
        lines += [f'{metric}{{dp_rank="{rank}"}} {number}' for rank, number in found]
    return ("\n".join(lines) + "\n").encode()


def old_load_body(entries: Sequence[dict[str, Json]]) -> bytes:
    """GET /get_load of SGLang before 0.5.6, which older routers and trainers still call."""
    rows: list[Json] = []
    for entry in entries:
        running, waiting = entry["num_running_reqs"], entry["num_waiting_reqs"]
        assert isinstance(running, int)
        assert isinstance(waiting, int)
        rows.append(
            {
                "dp_rank": entry["dp_rank"],
                "num_reqs": running + waiting,
                "num_waiting_reqs": waiting,
                "num_tokens": entry["num_total_tokens"],
            }
        )
    return _body(rows)


def _body(value: Json) -> bytes:
    return dumps(value).encode("utf-8", "surrogatepass")
