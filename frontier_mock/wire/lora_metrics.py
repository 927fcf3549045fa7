"""`vllm:lora_requests_info`, which a vLLM with --enable-lora has on its /metrics; llm-d reads it.

Its labels say which adapters have running and waiting requests, and its value is when that was so,
in unix time: the newest child is the present one, and old ones stay, as in vLLM (0.33
v1/metrics/loggers.py). vLLM looks after every step, this at every scrape.
"""

from collections.abc import Iterable

from frontier_mock.wire.prometheus import Gauge, Labels

MAX_CHILDREN = 1000
"""So many combinations are kept at most, the newest; vLLM keeps all."""


class LoraInfo:
    """The family of one server, which has `max_loras` adapters in a batch."""

    __slots__ = ("_max_loras", "_seen")

    def __init__(self, max_loras: int) -> None:
        self._max_loras = str(max_loras)
        self._seen: dict[str, float] = {}

    def render(self, adapters: Iterable[str], now_s: float) -> str:
        """The exposition; `adapters` are those of all requests, in the order of these.

        An adapter with requests of either kind is named in both labels, as vLLM 0.33 does it
        (v1/metrics/stats.py LoRARequestStates).
        """
        present = ",".join(dict.fromkeys(adapters))
        self._seen.pop(present, None)
        self._seen[present] = now_s
        if len(self._seen) > MAX_CHILDREN:
            del self._seen[next(iter(self._seen))]
        children: list[Labels] = [
            {
                "max_lora": self._max_loras,
                "running_lora_adapters": names,
                "waiting_lora_adapters": names,
            }
            for names in self._seen
        ]
        family = Gauge("vllm:lora_requests_info", "Running stats on lora requests.", children)
        family.values[:] = self._seen.values()
        return family.render()
