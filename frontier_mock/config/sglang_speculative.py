"""SGLang's `--speculative-*` flags, and what they come to.

Defaults, aliases and messages are those of SGLang 0.5.23 (arg_groups/speculative_hook.py,
mem_cache/allocation_sizing.py).
"""

from collections.abc import Mapping
from typing import Any, Final

from frontier_mock.config.errors import ConfigError, nearest, shown
from frontier_mock.config.speculative import MOST_DRAFTS, DraftArgs
from frontier_mock.wire.tokenizer import Json

ALGORITHMS: Final = ("EAGLE", "EAGLE3", "NEXTN", "STANDALONE", "NGRAM")
"""What is simulated, under SGLang's names."""

_UNSIMULATED: Final = ("DFLASH", "DSPARK", "FROZEN_KV_MTP", "UNO")

MAX_RUNNING_REQUESTS: Final = 48
"""The largest batch with drafts, where none is given."""

_NGRAM_TOKENS: Final = 12
_NGRAM_BREADTH: Final = 10

_LLAMA_PARAMETERS: Final = (5, 4, 8)
_PARAMETERS: Final = (3, 1, 4)
"""(steps, branches, verified tokens) for Llama and for others."""


def read_speculative(given: Mapping[str, Any], model_path: str) -> DraftArgs | None:
    """What the flags say; None without an algorithm. Raises ConfigError."""
    algorithm = given.get("speculative_algorithm")
    if algorithm is None:
        return None
    name = str(algorithm).upper()
    if name not in ALGORITHMS:
        known = (*ALGORITHMS, *_UNSIMULATED)
        what = "is not simulated" if name in _UNSIMULATED else f"is unknown{nearest(name, known)}"
        raise ConfigError(
            f"argument --speculative-algorithm: {shown(algorithm)} {what}; "
            f"allowed: {', '.join(ALGORITHMS)}"
        )
    path = given.get("speculative_draft_model_path")
    method = _method(name, path)
    if method == "ngram":
        breadth = given.get("speculative_ngram_max_bfs_breadth", _NGRAM_BREADTH)
        tokens = _count(given, "speculative_num_draft_tokens") or _NGRAM_TOKENS
        steps, branches = tokens - 1, breadth
    else:
        steps, branches, tokens = _parameters(given, name, model_path)
    if not 2 <= tokens <= MOST_DRAFTS:
        raise ConfigError(
            f"argument --speculative-num-draft-tokens: {tokens} is not in 2..{MOST_DRAFTS}"
        )
    return DraftArgs(
        method=method,
        num_drafts=min(steps, tokens - 1),
        model=path,
        quantization=given.get("speculative_draft_model_quantization"),
        branches=branches,
        verified=tokens,
    )


def _method(name: str, path: object) -> str:
    """The method, as vLLM calls it. EAGLE without a model of its own is the target's MTP layer."""
    if name == "NGRAM":
        return "ngram"
    if name == "STANDALONE":
        if path is None:
            raise ConfigError(
                "argument --speculative-algorithm: STANDALONE needs --speculative-draft-model-path"
            )
        return "draft_model"
    if name == "EAGLE3":
        if path is None:
            raise ConfigError(
                "argument --speculative-algorithm: EAGLE3 needs --speculative-draft-model-path"
            )
        return "eagle3"
    return "mtp" if path is None or name == "NEXTN" else "eagle"


def _parameters(given: Mapping[str, Any], name: str, model_path: str) -> tuple[int, int, int]:
    """(steps, branches, verified tokens): all three given, or none."""
    steps = _count(given, "speculative_num_steps")
    branches = _count(given, "speculative_eagle_topk")
    tokens = _count(given, "speculative_num_draft_tokens")
    if steps is None:
        if branches is not None or tokens is not None:
            raise ConfigError(
                "argument --speculative-num-steps: is missing beside --speculative-eagle-topk and "
                "--speculative-num-draft-tokens; allowed: all three, or none"
            )
        llama = "llama" in model_path.rsplit("/", 1)[-1].lower()
        return _LLAMA_PARAMETERS if llama and name != "STANDALONE" else _PARAMETERS
    branches = branches or 1
    if branches == 1:
        return steps, 1, steps + 1
    if tokens is None:
        raise ConfigError(
            "argument --speculative-num-draft-tokens: is needed with --speculative-eagle-topk "
            f"{branches}"
        )
    return steps, branches, tokens


def _count(given: Mapping[str, Any], name: str) -> int | None:
    value = given.get(name)
    if value is not None and not 1 <= value <= MOST_DRAFTS:
        option = "--" + name.replace("_", "-")
        raise ConfigError(f"argument {option}: {value} is not in 1..{MOST_DRAFTS}")
    return value


def shown_drafts(algorithm: str, args: DraftArgs) -> dict[str, Json]:
    """What /server_info shows of them: aliases and defaults as SGLang resolves them."""
    name = algorithm.upper()
    by_look_up = args.method == "ngram"
    return {
        "speculative_algorithm": "EAGLE" if name == "NEXTN" else name,
        "speculative_num_steps": args.verified // args.branches if by_look_up else args.num_drafts,
        "speculative_eagle_topk": args.branches,
        "speculative_num_draft_tokens": args.verified,
    }


def reserve_tokens(args: DraftArgs, page: int) -> int:
    """Tokens that a sequence has places for beyond its committed ones.

    Twice what one verification may need: a branch of a tree has pages of its own.
    """
    steps, branches = args.num_drafts, args.branches
    if args.method == "ngram" or page == 1 or branches == 1:
        drafted = branches if args.method == "ngram" else steps * branches
        return 2 * max(drafted, args.verified)
    pages = -(-(page - 1 + steps) // page)
    return 2 * max(pages * page * branches, args.verified)
