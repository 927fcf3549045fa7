"""What format a model's weights have: the checkpoint's, or what a flag makes of it.

A scenario's `quantization` is one word for every engine; each engine's `--quantization` has its own
(vLLM 0.33.0, layers/quantization/__init__.py; SGLang 0.5.23, arg_groups/choices.py).
"""

from collections.abc import Mapping
from typing import Final

from frontier_mock.config.errors import ConfigError

VLLM_WEIGHTS: Final[Mapping[str, str]] = {
    "fp8": "fp8",
    "fp8_per_tensor": "fp8",
    "fp8_per_channel": "fp8",
    "fp8_per_block": "fp8_block",
    "awq": "int4",
    "awq_marlin": "int4",
    "gptq": "int4",
    "gptq_marlin": "int4",
    "mxfp4": "mxfp4",
}
"""vLLM's --quantization values that are simulated, and the format each means."""

SGLANG_WEIGHTS: Final[Mapping[str, str]] = {
    "fp8": "fp8",
    "w8a8_fp8": "fp8",
    "modelopt_fp8": "fp8",
    "awq": "int4",
    "awq_marlin": "int4",
    "gptq": "int4",
    "gptq_marlin": "int4",
    "mxfp4": "mxfp4",
}
"""SGLang's; it has no word that makes blocks of 128 out of bf16."""

SCENARIO_WORDS: Final = ("none", "fp8", "fp8_block", "int4", "mxfp4")
"""Weight formats as scenarios name them."""


def weight_format(checkpoint: str, flag: str | None, meanings: Mapping[str, str]) -> str:
    """The format served: a flag turns bf16 into something smaller, and changes nothing else."""
    return checkpoint if flag is None or checkpoint != "bf16" else meanings[flag]


def engine_word(word: str, meanings: Mapping[str, str]) -> str | None:
    """The engine's own value for a scenario's `word`; None for "none".

    Raises ConfigError if it has none.
    """
    if word == "none":
        return None
    for value, meaning in meanings.items():
        if meaning == word:
            return value
    allowed = ", ".join(("none", *dict.fromkeys(meanings.values())))
    raise ConfigError(f"the engine cannot quantize to {word}; allowed: {allowed}")
