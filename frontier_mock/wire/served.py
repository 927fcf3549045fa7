"""What the HTTP layer knows of the worker behind it: names, limits, tokenizer and server flags."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from frontier_mock.core.commands import AUTO_WORKER
from frontier_mock.wire.deployment import Deployment
from frontier_mock.wire.eos import EosModel
from frontier_mock.wire.kv_transfer import KvPort
from frontier_mock.wire.media import MediaPort
from frontier_mock.wire.sglang.served import SglangFront
from frontier_mock.wire.text import TextRing
from frontier_mock.wire.tokenizer import Tokenizer


def counting_ids() -> Callable[[], str]:
    """A source of request ids that counts from 0, 32 hex digits each, for tests and replays."""
    count = -1

    def next_id() -> str:
        nonlocal count
        count += 1
        return f"{count:032x}"

    return next_id


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One served model. Field names are vLLM's flags with `_` for `-` where there is one.

    `names` are the served names, of which the first is what responses carry, whichever alias the
    client used. `root` is the model path. `vocab_size` is the model's, which may exceed the
    tokenizer's; ids below either are valid in prompts. `new_id` makes the base of a request id when
    the client brings none; servers pass `lambda: uuid4().hex`. `eos` is None for a model that
    never stops by itself. `keeps_tokens` has prompts remember their ids, for KV events. `worker` is
    the one requests are submitted to, by its number. `adapters` are the paths of LoRA adapters by
    their names. `deployment` is what weight updates and sleep take their time from.
    `old_metric_names` adds families that vLLM gave up to /metrics. `sglang` has SGLang's own
    settings if that is the engine, `kv` what its connector tells other engines, if it has one.
    `media` is what images the model takes, None for a model of text alone.
    `told_drafts` is how many drafts a step verifies, if answers say what became of them, else 0.
    """

    names: tuple[str, ...]
    root: str
    max_model_len: int
    tokenizer: Tokenizer
    ring: TextRing
    vocab_size: int = 0
    seed: int = 0
    eos: EosModel | None = field(default_factory=EosModel)
    system_fingerprint: str | None = None
    new_id: Callable[[], str] = field(default_factory=counting_ids)
    data_parallel_size: int = 1
    old_metric_names: bool = False
    stream_interval: int = 1
    max_logprobs: int = 20
    max_new_tokens: int | None = None
    max_stop_strings: int = 4
    max_n_sequences: int = 16384
    max_completion_prompts: int = 1024
    enable_prompt_tokens_details: bool = False
    enable_force_include_usage: bool = False
    return_tokens_as_token_ids: bool = False
    trust_request_chat_template: bool = False
    enable_auto_tool_choice: bool = False
    tool_call_parser: str | None = None
    structured_backend: str = "auto"
    worker: int = AUTO_WORKER
    keeps_tokens: bool = False
    deployment: Deployment = field(default_factory=Deployment)
    adapters: Mapping[str, str] = field(default_factory=dict)
    sglang: SglangFront | None = None
    kv: KvPort | None = None
    media: MediaPort | None = None
    told_drafts: int = 0

    @property
    def block_tokens(self) -> int:
        """KV block size in tokens, the one the ring's output keys are cut at."""
        return self.ring.block_tokens

    @property
    def num_token_ids(self) -> int:
        """Prompt token ids must be below this."""
        return max(self.vocab_size, self.tokenizer.vocab_size)

    @property
    def model_vocab_size(self) -> int:
        """Bound of stop tokens and biases, which index the model's logits."""
        return self.vocab_size or self.tokenizer.vocab_size
