"""Run tests/serving/test_scheduler.py with vLLM's own scheduler in place of ours.

Every literal in that module must be what the real scheduler does. From the repository's root:

    PYTHONPATH=. VENV/bin/python scripts/oracle/rules.py
"""

import logging
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
from cases import EOS, Arrival, Cancel, Case
from vllm_engine import VllmEngine, build_vllm_config, write_model


def arrival(item, rid: int, before: Arrival | None, block: int) -> Arrival:
    """The tokens of an Ask: what went `before`, `shared` blocks like everybody's, then its own."""
    shared = item.shared * block
    own = 10_000 * (rid + 1)
    tokens = [i + 10 if i < shared else own + i for i in range(item.prompt)]
    if before is not None:
        past = before.prompt + before.output
        tokens[: len(past)] = past
    output = [own + 5_000 + i for i in range(item.output)]
    if item.cap > item.output:
        output[-1] = EOS
    t_ns = round(item.at_ms * 1e6)
    return Arrival(t_ns, tokens, output, item.cap or item.output, item.priority)


class VllmPlays:
    """A pytest plugin: the module's `play` becomes a run of vLLM's scheduler."""

    def __init__(self, folder: Path) -> None:
        self.config = build_vllm_config(write_model(folder))
        self.plays = 0

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        rules = items[0].module
        rules.play = lambda settings, *inputs: self.play(rules, settings, inputs)

    def play(self, rules: ModuleType, settings, inputs):
        self.plays += 1
        case = Case(settings)
        asked: list[Arrival] = []
        for item in inputs:
            if isinstance(item, rules.Leave):
                case.inputs.append(Cancel(round(item.at_ms * 1e6), item.rid))
                continue
            before = None if item.after is None else asked[item.after]
            asked.append(arrival(item, len(asked), before, settings.block_size))
            case.inputs.append(asked[-1])
        run = VllmEngine(self.config, case).play()
        return rules.Story(
            [rules.describe(s.decodes, [(c.new, c.past) for c in s.chunks]) for s in run.steps],
            [(t_ns / 1e6, rid, hit) for t_ns, rid, hit, _ in run.admissions],
            [(t_ns / 1e6, rid) for t_ns, rid in run.preemptions],
            [
                (t_ns / 1e6, rid, reason, len(run.token_times.get(rid, ())))
                for t_ns, rid, reason in run.finishes
            ],
        )


def main() -> int:
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        plugin = VllmPlays(Path(folder))
        module = "tests/serving/test_scheduler.py"
        options = ["-q", "-p", "no:cacheprovider", "-W", "ignore"]
        failed = pytest.main([*options, module], plugins=[plugin])
    print(f"{plugin.plays} runs of vLLM's scheduler")
    return int(failed) or not plugin.plays


if __name__ == "__main__":
    sys.exit(main())
