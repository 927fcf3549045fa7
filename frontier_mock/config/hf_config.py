"""Model shapes out of a Hugging Face `config.json`: dense, experts, latent attention, windows.

Keys are those of transformers' configuration classes and of the models' own. An architecture that
is not listed is refused, since a shape read half would give wrong prices in silence.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.vision_config import vision_of
from frontier_mock.cost.specs import ExpertsSpec, LatentSpec, ModelSpec

_GROUPED: Final = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "phi3",
    "granite",
    "olmo2",
    "exaone4",
    "seed_oss",
    "glm4",
    "smollm3",
    "internlm3",
    "baichuan",
    "gemma2",
    "gemma3_text",
    "ministral",
    "mistral3",
    "arcee",
)
_GROUPED_EXPERTS: Final = (
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "gpt_oss",
    "glm4_moe",
    "minimax_m2",
    "step3_text",
    "granitemoe",
    "olmoe",
    "ernie4_5_moe",
)
_TEXT_OF: Final = {
    "qwen2_5_vl": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
"""The text models of models that take images."""

_LATENT: Final = (
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "kimi_k2",
    "glm_moe_dsa",
)

_NUM_EXPERTS: Final = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
)
_FP32_ROUTERS: Final = ("minimax_m2", "glm4_moe")
"""Models whose router vLLM multiplies in fp32 (its models/minimax_m2.py and glm4_moe.py)."""

_TOP_K: Final = ("num_experts_per_tok", "moe_top_k", "moe_k")
_LINEAR_ATTENTION: Final = ("linear_num_value_heads", "attn_type_list", "mamba_d_state")


def read_config(name: str, path: Path) -> ModelSpec:
    """The model described by the file `path`. Raises ConfigError with one line."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"model: cannot read {name!r}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"model: {name!r} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"model: {name!r} is not a JSON object")
    return model_from_config(name, config, path.parent)


def model_from_config(
    name: str, config: Mapping[str, Any], folder: Path | None = None
) -> ModelSpec:
    """The model described by these keys, of a file in `folder`.

    Of a larger model the text model counts, and the image encoder if it is a known one.
    """
    vision = vision_of(name, config, folder)
    text = config.get("text_config")
    if isinstance(text, dict):
        outer = {key: config[key] for key in ("quantization_config",) if key in config}
        config = {**outer, **text}
    kind = _kind(name, config)
    keys = _Keys(name, config)
    heads, hidden = keys.integer("num_attention_heads"), keys.integer("hidden_size")
    layers = keys.integer("num_hidden_layers")
    if min(heads, hidden, layers) < 1:
        raise ConfigError(f"model: {name!r} has no layers, heads or hidden units")
    latent = _latent(keys) if kind in _LATENT else None
    head_dim = keys.integer("head_dim", hidden // heads)
    if latent is not None:
        head_dim = latent.nope_size + latent.rope_size
    groups = keys.integer("num_attention_groups", keys.integer("num_key_value_heads", heads))
    experts = _experts(keys, layers) if kind not in _GROUPED else None
    window, sliding = _window(config, kind, layers)
    inner = keys.integer("intermediate_size", experts.intermediate_size if experts else None)
    return ModelSpec(
        name=name,
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=inner,
        num_heads=heads,
        num_kv_heads=groups,
        head_dim=head_dim,
        vocab_size=keys.integer("vocab_size"),
        max_position_embeddings=keys.integer("max_position_embeddings"),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", kind.startswith("gemma"))),
        eos_token_id=keys.integer("eos_token_id", 0),
        source=f"config.json at {name}",
        qk_norm=kind.startswith("qwen3") or bool(config.get("use_qk_norm", False)),
        qk_norm_wide=kind == "minimax_m2",
        qkv_bias=kind.startswith("qwen2") or bool(config.get("attention_bias", False)),
        checkpoint_weights=_weights(name, config),
        experts=experts,
        latent=latent,
        q_rank=keys.integer("q_lora_rank", keys.integer("share_q_dim", 0)),
        sliding_window=window,
        sliding_layers=sliding,
        vision=vision,
    )


class _Keys:
    """Whole numbers out of a configuration, or one line about the key that is none."""

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self._name = name
        self._config = config

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._config.get(key, default)
        if value is None and default is not None:
            value = default
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ConfigError(
                f"model: {self._name!r} key {key} is {value!r}; allowed: a whole number"
            )
        return value

    def first(self, names: Sequence[str]) -> int:
        """The first of `names` that is there."""
        return self.integer(next((name for name in names if name in self._config), names[0]))

    def text(self, key: str) -> str:
        return str(self._config.get(key, ""))


def _kind(name: str, config: Mapping[str, Any]) -> str:
    """The model type; without one a dense decoder is assumed unless keys say otherwise."""
    kind = config.get("model_type") or ""
    kind = _TEXT_OF.get(kind, kind)
    known = (*_GROUPED, *_GROUPED_EXPERTS, *_LATENT)
    if kind and kind not in known:
        raise ConfigError(
            f"model: {name!r} has model_type {kind!r}, which is not simulated; "
            f"allowed: {', '.join(sorted(known))}"
        )
    for key in _LINEAR_ATTENTION:
        if config.get(key):
            raise ConfigError(
                f"model: {name!r} has {key}; linear and state-space layers are not simulated"
            )
    has_experts = next((key for key in _NUM_EXPERTS if config.get(key)), None)
    if has_experts and kind in (*_GROUPED, ""):
        raise ConfigError(
            f"model: {name!r} has {has_experts} and model_type {kind!r}; allowed with experts: "
            f"{', '.join(sorted((*_GROUPED_EXPERTS, *_LATENT)))}"
        )
    return kind or "llama"


def _latent(keys: _Keys) -> LatentSpec:
    return LatentSpec(
        kv_rank=keys.integer("kv_lora_rank"),
        rope_size=keys.integer("qk_rope_head_dim"),
        nope_size=keys.integer("qk_nope_head_dim"),
        value_size=keys.integer("v_head_dim"),
        index_top_k=keys.integer("index_topk", 0),
        index_heads=keys.integer("index_n_heads", 0),
        index_size=keys.integer("index_head_dim", 0),
    )


def _experts(keys: _Keys, layers: int) -> ExpertsSpec:
    count = keys.first(_NUM_EXPERTS)
    top_k = keys.first(_TOP_K)
    if not 1 <= top_k <= count:
        raise ConfigError(f"model: {top_k} experts a token of {count} are not possible")
    inner = keys.integer("moe_intermediate_size", keys.integer("intermediate_size", 0))
    shared = keys.integer("shared_expert_intermediate_size", keys.integer("share_expert_dim", 0))
    shared = shared or keys.integer("n_shared_experts", 0) * inner
    listed = keys.text("moe_layers_enum")
    dense = keys.integer("first_k_dense_replace", 0)
    if listed:
        dense = layers - len(listed.split(","))
    fp32 = keys.text("model_type") in _FP32_ROUTERS
    groups = keys.integer("topk_group", 0)
    limited = groups if keys.integer("n_group", 0) > groups else 0
    return ExpertsSpec(count, top_k, inner, shared, dense, fp32, limited)


def _window(config: Mapping[str, Any], kind: str, layers: int) -> tuple[int, int]:
    """The window and how many layers have it."""
    window = config.get("sliding_window")
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        return 0, 0
    if config.get("use_sliding_window") is False:
        return 0, 0
    types = config.get("layer_types")
    if isinstance(types, list):
        return window, sum(1 for layer in types if layer == "sliding_attention")
    if kind in ("gpt_oss", "gemma2"):
        return window, layers // 2
    if kind == "gemma3_text":
        every = config.get("sliding_window_pattern", 6)
        return window, layers - layers // every
    if kind.startswith("qwen"):
        return window, max(0, layers - int(config.get("max_window_layers", layers)))
    return window, layers


_METHODS: Final = {
    "fbgemm_fp8": "fp8",
    "modelopt": "fp8",
    "awq": "int4",
    "gptq": "int4",
    "awq_marlin": "int4",
    "gptq_marlin": "int4",
    "mxfp4": "mxfp4",
}


def _weights(name: str, config: Mapping[str, Any]) -> str:
    """What the checkpoint holds, from its quantization_config."""
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict):
        return "bf16"
    method = str(quantization.get("quant_method", ""))
    if method == "fp8":
        return "fp8_block" if quantization.get("weight_block_size") else "fp8"
    if method == "compressed-tensors":
        return "int4" if "pack" in str(quantization.get("format", "")) else "fp8"
    if method not in _METHODS:
        allowed = ", ".join(sorted({*_METHODS, "fp8", "compressed-tensors"}))
        raise ConfigError(
            f"model: {name!r} has quant_method {method!r}, which is not simulated; "
            f"allowed: {allowed}"
        )
    return _METHODS[method]
