"""Speculative decoding as users write it: vLLM's `--speculative-config`, and what it comes to.

Names, rules and messages are those of vLLM 0.33.0 (config/speculative.py, engine/arg_utils.py).
What only a simulator has to be told, how many drafts are accepted, comes from vLLM's own keys for
synthetic acceptance, from a scenario's `speculation`, or from published figures (`acceptance`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from frontier_mock.cluster.specs import WorkerSpec
from frontier_mock.config.acceptance import CURVES, curve_named, rates_of_curve
from frontier_mock.config.document import Value
from frontier_mock.config.errors import ConfigError, nearest, shown
from frontier_mock.config.keys import Key, listing, number, open_section, optional, string
from frontier_mock.config.profiles import load_model
from frontier_mock.cost.afd.spec import AfdSpec
from frontier_mock.cost.specs import DraftSpec, ModelSpec, ParallelSpec
from frontier_mock.serving.speculation import SpeculationSpec, rates_of_length

_FLAG: Final = "argument --speculative-config"

METHODS: Final = ("ngram", "ngram_gpu", "draft_model", "eagle", "eagle3", "mtp")
"""What is simulated, under vLLM's names."""

_UNSIMULATED: Final = ("suffix", "custom_class", "extract_hidden_states", "dflash", "dspark")

_FAMILY_SUFFIX: Final = "_mtp"
"""vLLM's names of one model family's MTP mean mtp."""

_ACTING: Final = (
    "method",
    "model",
    "num_speculative_tokens",
    "rejection_sample_method",
    "synthetic_acceptance_rates",
    "synthetic_acceptance_length",
    "quantization",
)

IDLE: Final = (
    "attention_backend",
    "code_revision",
    "disable_eagle_block_drop",
    "disable_lookahead_block_hashes",
    "disable_padded_drafter_batch",
    "draft_lm_head_quantization",
    "draft_sample_method",
    "draft_tensor_parallel_size",
    "enforce_eager",
    "index_share_for_mtp_iteration",
    "kv_cache_dtype",
    "max_model_len",
    "moe_backend",
    "prompt_lookup_max",
    "prompt_lookup_min",
    "revision",
    "use_heterogeneous_vocab",
    "use_local_argmax_reduction",
)
"""Keys that are accepted without effect."""

_REFUSED: Final = (
    "draft_load_config",
    "dspark_draft_topk",
    "enable_adaptive_verification",
    "fly_entropy_threshold",
    "fly_entropy_top_k",
    "fly_window_size",
    "num_speculative_tokens_per_batch_size",
    "parallel_drafting",
    "suffix_decoding_max_cached_requests",
    "suffix_decoding_max_spec_factor",
    "suffix_decoding_max_tree_depth",
    "suffix_decoding_min_token_prob",
    "tensor_parallel_size",
    "xpress_topc",
)

MOST_DRAFTS: Final = 128
"""More drafts than anybody verifies; a step's tokens fit in a byte."""

_MTP_FAMILIES: Final = (
    "deepseek-r1",
    "deepseek-v3",
    "glm-4.5",
    "glm-4.6",
    "glm-5",
    "mimo",
    "qwen3-next",
    "qwen3.5",
)
"""Checkpoints with MTP layers, in lower case, by how their own names begin."""

_NGRAM_S: Final = 0.2e-3
"""CPU time of a look-up: 0.1 to 0.3 ms (cost_model.md section 1.10, an inference)."""

_EAGLE3_VOCAB: Final = 32000
"""EAGLE-3 heads propose from so many frequent tokens (draft_vocab_size of published heads)."""


@dataclass(frozen=True, slots=True)
class DraftArgs:
    """Drafts as an engine's flags ask for them.

    `method` is one of METHODS. Of `num_drafts` drafts made in `passes` passes, `verified` tokens
    are verified together with the last accepted one: more than the drafts of a chain, if they are a
    tree of `branches`. `rates` are given ones, or empty; `proposed` is the share of steps in which
    there is anything to propose.
    """

    method: str
    num_drafts: int
    model: str | None = None
    rates: tuple[float, ...] = ()
    quantization: str | None = None
    branches: int = 1
    verified: int = 0
    proposed: float = 1.0


def read_speculative(given: Mapping[str, Any]) -> DraftArgs | None:
    """What `--speculative-config` and its short forms say; None without. Raises ConfigError."""
    config = given.get("speculative_config")
    if config is not None and not isinstance(config, dict):
        raise ConfigError(f"{_FLAG}: {shown(config)} is not a JSON object")
    keys = {str(key).replace("-", "_"): value for key, value in (config or {}).items()}
    for name, key in (
        ("spec_method", "method"),
        ("spec_model", "model"),
        ("spec_tokens", "num_speculative_tokens"),
    ):
        value = given.get(name)
        if value is None:
            continue
        if key in keys:
            option = name.replace("_", "-")
            raise ConfigError(
                f"--{option} and --speculative-config['{key}'] are mutually exclusive"
            )
        keys[key] = value
    if config is None and not keys:
        return None
    _check_keys(keys)
    method = _method(keys)
    drafts = _num_drafts(keys, method)
    return DraftArgs(
        method=method,
        num_drafts=drafts,
        model=keys.get("model") if method not in ("ngram", "ngram_gpu") else None,
        rates=_synthetic(keys, drafts),
        quantization=keys.get("quantization"),
        verified=drafts + 1,
    )


def drafts_of(recorded: Mapping[str, Any]) -> DraftArgs:
    """Drafts as a journal's head has them."""
    return DraftArgs(**{**recorded, "rates": tuple(recorded["rates"])})


def _check_keys(keys: Mapping[str, Any]) -> None:
    known = (*_ACTING, *IDLE, *_REFUSED)
    for key, value in keys.items():
        if key not in known:
            raise ConfigError(f"{_FLAG}: unknown key {shown(key)}{nearest(key, known)}")
        if key in _REFUSED and value not in (None, False):
            raise ConfigError(f"{_FLAG}: {key}: {shown(value)} is not simulated; leave it out")
    for key in ("method", "model", "quantization"):
        value = keys.get(key)
        if value is not None and (not isinstance(value, str) or not value):
            raise ConfigError(f"{_FLAG}: {key}: {shown(value)} is not a name")


def _method(keys: Mapping[str, Any]) -> str:
    """The method under its proper name."""
    method = keys.get("method")
    if method is None:
        return "ngram" if keys.get("model") in ("ngram", "[ngram]") else "draft_model"
    if method == "[ngram]":
        return "ngram"
    if method.endswith(_FAMILY_SUFFIX):
        return "mtp"
    if method not in METHODS:
        known = (*METHODS, *_UNSIMULATED)
        what = (
            "is not simulated" if method in _UNSIMULATED else f"is unknown{nearest(method, known)}"
        )
        allowed = ", ".join(METHODS)
        raise ConfigError(f"{_FLAG}: method: {shown(method)} {what}; allowed: {allowed}")
    return str(method)


def _num_drafts(keys: Mapping[str, Any], method: str) -> int:
    drafts = keys.get("num_speculative_tokens")
    if drafts is None and method == "mtp":
        return 1
    if drafts is None:
        raise ConfigError(f"{_FLAG}: num_speculative_tokens was not provided")
    if type(drafts) is not int or not 1 <= drafts <= MOST_DRAFTS:
        raise ConfigError(
            f"{_FLAG}: num_speculative_tokens: {shown(drafts)} is not in 1..{MOST_DRAFTS}"
        )
    if method in ("draft_model", "eagle", "eagle3") and keys.get("model") is None:
        raise ConfigError("num_speculative_tokens was provided but without speculative model.")
    return drafts


def _synthetic(keys: Mapping[str, Any], drafts: int) -> tuple[float, ...]:
    """The rates of synthetic acceptance, checked in vLLM's words; empty without."""
    rejection = keys.get("rejection_sample_method", "standard")
    rates = keys.get("synthetic_acceptance_rates")
    length = keys.get("synthetic_acceptance_length")
    if rejection not in ("standard", "block", "synthetic"):
        what = "is not simulated" if rejection == "fly" else "is unknown"
        raise ConfigError(
            f"{_FLAG}: rejection_sample_method: {shown(rejection)} {what}; "
            "allowed: standard, block, synthetic"
        )
    if rejection != "synthetic":
        if rates is not None or length is not None:
            raise ConfigError(
                "synthetic_acceptance_rates / synthetic_acceptance_length "
                "are only valid with rejection_sample_method='synthetic'."
            )
        return ()
    if (rates is None) == (length is None):
        raise ConfigError(
            "rejection_sample_method='synthetic' requires exactly one of "
            "synthetic_acceptance_rates or synthetic_acceptance_length."
        )
    if rates is None:
        try:
            return rates_of_length(_number("synthetic_acceptance_length", length), drafts)
        except ValueError as error:
            raise ConfigError(f"synthetic_acceptance_length {error}.") from None
    listed = rates if isinstance(rates, list) else [rates]
    numbers = tuple(_number("synthetic_acceptance_rates", rate) for rate in listed)
    if len(numbers) != drafts:
        raise ConfigError(f"synthetic_acceptance_rates must have length {drafts}, got {listed}.")
    if not all(0.0 <= rate <= 1.0 for rate in numbers):
        raise ConfigError(f"synthetic_acceptance_rates entries must be in [0, 1], got {listed}.")
    if any(after > before for before, after in pairwise(numbers)):
        raise ConfigError(f"synthetic_acceptance_rates must be non-increasing, got {listed}.")
    return numbers


def _number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{_FLAG}: {key}: {shown(value)} is not a number")
    return float(value)


def speculation_of(
    args: DraftArgs, *, ahead: bool, lookahead: bool, reserve: int = 0
) -> SpeculationSpec:
    """What the scheduler is told, with rates of the method's curve unless others are given.

    `ahead`: steps are decided ahead, and `lookahead`: the engine keeps slots for the drafter
    beyond those of a step.
    """
    rates = args.rates or rates_of_curve(curve_named(CURVES[args.method]), args.num_drafts)
    proposed = args.proposed
    if ahead and proposed < 1:
        # Drafts are placeholders when such a step is decided: without a match all are rejected.
        rates, proposed = tuple(rate * proposed for rate in rates), 1.0
    has_cache = args.method not in ("ngram", "ngram_gpu")
    return SpeculationSpec(
        num_drafts=args.num_drafts,
        rates=rates,
        proposed=proposed,
        lookahead=args.num_drafts if lookahead and has_cache else 0,
        extra_slots=1 if lookahead and args.method == "draft_model" else 0,
        reserve=reserve,
        width=args.verified,
    )


def check_drafts(parallel: ParallelSpec, afd: AfdSpec | None) -> None:
    """Raises ConfigError for engines that are not simulated with drafts."""
    if parallel.pp > 1:
        raise ConfigError(
            f"speculative decoding with pipeline parallelism ({parallel.pp} stages) is not "
            "simulated; allowed: one of the two"
        )
    if afd is not None:
        raise ConfigError(
            "speculative decoding with attention and FFN apart is not simulated; allowed: one of "
            "the two"
        )


def seeded(worker: WorkerSpec, seed: int) -> WorkerSpec:
    """The same engine, drawing how many drafts are accepted by `seed`."""
    speculation = worker.scheduler.speculation
    if speculation is None:
        return worker
    drawn = replace(worker.scheduler, speculation=replace(speculation, seed=seed))
    return replace(worker, scheduler=drawn)


SPECULATION_RATES = Key(
    "acceptance_rates",
    optional(listing("a list of numbers from 0 to 1")),
    None,
    "chance that the first, the first two, ... drafts are all accepted",
)
SPECULATION_LENGTH = Key(
    "acceptance_length", optional(number(1)), None, "mean tokens of a verification, in their place"
)
SPECULATION_CURVE = Key(
    "acceptance_curve", optional(string()), None, "a published curve of profiles/acceptance.yaml"
)
SPECULATION_PROPOSED = Key(
    "proposed", number(0, 1), 1.0, "share of steps in which there is anything to propose"
)
SPECULATION_KEYS: tuple[Key[Any], ...] = (
    SPECULATION_RATES,
    SPECULATION_LENGTH,
    SPECULATION_CURVE,
    SPECULATION_PROPOSED,
)


def accepting(drafts: DraftArgs | None, value: Value | None) -> DraftArgs | None:
    """The same drafts, accepted as a worker's `speculation` says. Raises ConfigError."""
    if value is None:
        return drafts
    if drafts is None:
        raise value.error("its engine_args have no speculative decoding")
    keys = open_section(value, SPECULATION_KEYS)
    listed, length = keys.get(SPECULATION_RATES), keys.get(SPECULATION_LENGTH)
    curve = keys.get(SPECULATION_CURVE)
    if sum(given is not None for given in (listed, length, curve)) > 1:
        raise value.error("at most one of acceptance_rates, acceptance_length and acceptance_curve")
    rates, count = drafts.rates, drafts.num_drafts
    try:
        if listed is not None:
            rates = tuple(number(0, 1).read(rate) for rate in listed)
            SpeculationSpec(count, rates)
        if length is not None:
            rates = rates_of_length(length, count)
        if curve is not None:
            rates = rates_of_curve(curve_named(curve), count)
    except ConfigError:
        raise
    except ValueError as error:
        raise value.error(str(error)) from None
    return replace(drafts, rates=rates, proposed=keys.get(SPECULATION_PROPOSED))


def draft_of(
    args: DraftArgs, target: ModelSpec, weights: str, graph_sizes: tuple[int, ...] | None = None
) -> DraftSpec:
    """What the price of drafting depends on. `weights` are the target's. Raises ConfigError."""
    made = DraftSpec(
        args.method,
        args.verified,
        passes=args.num_drafts,
        branches=args.branches,
        graph_sizes=graph_sizes,
    )
    if args.method in ("ngram", "ngram_gpu"):
        return replace(made, passes=0, lookup_s=_NGRAM_S)
    if args.method == "draft_model":
        assert args.model is not None
        own = load_model(args.model)
        if own.vocab_size != target.vocab_size:
            raise ConfigError(
                "Target and draft model should have the same vocabulary size. "
                f"Target model vocab_size={target.vocab_size}. "
                f"Draft model vocab_size={own.vocab_size}. "
                "Using models with different tokenizers can cause out-of-bounds errors during "
                "speculative decoding."
            )
        quantized = "fp8" if args.quantization else own.checkpoint_weights
        return replace(made, model=own, weights=quantized)
    if args.method == "mtp":
        return replace(made, model=_mtp_layer(target), weights=weights, inputs=2, shared_tables=2)
    eagle3 = args.method == "eagle3"
    return replace(
        made,
        model=_eagle_head(args.model, target, eagle3),
        inputs=3 if eagle3 else 2,
        shared_tables=1 if eagle3 else 2,
    )


def _mtp_layer(target: ModelSpec) -> ModelSpec:
    """One more layer like the target's last. Raises ConfigError for a model without."""
    own_name = target.name.rsplit("/", 1)[-1].lower()
    if not own_name.startswith(_MTP_FAMILIES) and not Path(target.name).exists():
        raise ConfigError(f"speculative decoding: {target.name} has no MTP layer")
    experts = None if target.experts is None else replace(target.experts, dense_layers=0)
    return replace(
        target, name=f"{target.name} (MTP)", num_layers=1, experts=experts, sliding_layers=0
    )


def _eagle_head(name: str | None, target: ModelSpec, eagle3: bool) -> ModelSpec:
    """The head in that file or profile; else one dense layer of the target's shape."""
    if name is not None and Path(name).exists():
        return load_model(name)
    vocab = min(target.vocab_size, _EAGLE3_VOCAB) if eagle3 else target.vocab_size
    return replace(
        target,
        name=name or f"{target.name} (EAGLE)",
        num_layers=1,
        experts=None,
        sliding_layers=0,
        vocab_size=vocab,
        checkpoint_weights="bf16",
    )
