"""Random workloads for the comparison: settings of one engine, and what arrives when.

A case is drawn from its number alone. Token ids are small integers; equal content means equal ids,
so that vLLM's block hashes and our block keys can be derived from the same lists.
"""

import random
from dataclasses import dataclass, field, replace

from frontier_mock.serving.specs import SchedulerSpec
from frontier_mock.serving.speculation import SpeculationSpec

MODEL_LEN = 256
EOS = 2
STEP_NS = 1_000_000


@dataclass(frozen=True)
class Arrival:
    """One request: what it asks, and the tokens it will get (the last one EOS if it stops)."""

    t_ns: int
    prompt: list[int]
    output: list[int]
    max_tokens: int
    priority: int = 0
    then: "Arrival | None" = None
    """What the client sends next, its `t_ns` counted from when this one finished."""

    @property
    def stops(self) -> bool:
        return self.output[-1] == EOS


@dataclass(frozen=True)
class Cancel:
    """The client of request `rid` goes away."""

    t_ns: int
    rid: int


@dataclass
class Case:
    """Settings and inputs of one run; `inputs` are in time order, no two at the same instant.

    A request's number is its place among the arrivals. Whoever plays a case first adds the
    follow-ups to `inputs` when they arrive.
    """

    spec: SchedulerSpec
    inputs: list[Arrival | Cancel] = field(default_factory=list)

    @property
    def arrivals(self) -> list[Arrival]:
        return [item for item in self.inputs if isinstance(item, Arrival)]


def draw_spec(rng: random.Random) -> SchedulerSpec:
    """Settings small enough that blocks, tokens and seats all run out.

    The last of the pool sizes is one block short of a round number, where a watermark tells whether
    the null block counts.
    """
    block = rng.choice([1, 4, 16, 16])
    seats = rng.randint(1, 12)
    chunked = rng.random() < 0.85
    pool = MODEL_LEN // block
    return SchedulerSpec(
        max_num_seqs=seats,
        max_num_batched_tokens=rng.randint(seats, 96) if chunked else MODEL_LEN,
        max_model_len=MODEL_LEN,
        block_size=block,
        num_blocks=pool + rng.choice([0, 1, pool // 4, pool, 3 * pool, (19 - pool) % 20]),
        enable_prefix_caching=rng.random() < 0.7,
        enable_chunked_prefill=chunked,
        long_prefill_token_threshold=rng.choice([0, 0, 0, 8, 40]),
        policy=rng.choice(["fcfs", "fcfs", "priority"]),
        async_scheduling=rng.random() < 0.6,
        watermark=rng.choice([0.0, 0.0, 0.05, 0.1]),
        reserve_full_isl=rng.random() < 0.7,
    )


def with_limits(spec: SchedulerSpec, rng: random.Random) -> SchedulerSpec:
    """The same settings with vLLM's further limits on a step, in half of the cases."""
    if rng.random() < 0.5:
        return spec
    seats, budget = spec.max_num_seqs, spec.max_num_batched_tokens
    fewer = max(seats, budget * 2 // 3) if spec.enable_chunked_prefill else 0
    adaptive = rng.random() < 0.5
    return replace(
        spec,
        max_num_active_seqs=rng.choice([0, 0, max(1, seats // 2)]),
        max_num_scheduled_tokens=rng.choice([0, 0, fewer]),
        prefill_schedule_interval=rng.choice([1, 1, 2, 3, 7, 16]),
        long_prefill_token_threshold_adaptive=adaptive,
        long_prefill_token_threshold=rng.choice([4, 8, 20, 40])
        if adaptive
        else spec.long_prefill_token_threshold,
    )


def with_drafts(case: "Case", number: int) -> "Case":
    """The same case with speculative decoding; look-up that finds nothing only without async."""
    rng = random.Random(f"drafts {number}")
    spec = case.spec
    budget = min(spec.max_num_batched_tokens, spec.max_num_scheduled_tokens or MODEL_LEN)
    # With less than a verification needs, vLLM waits for ever once a prompt has one token left;
    # with a threshold below it, it trips over an assertion of its own.
    most = min(budget, spec.long_prefill_token_threshold or MODEL_LEN) - 1
    drafts = max(1, min(rng.randint(1, 5), most))
    if budget == 1:
        spec = replace(spec, max_num_batched_tokens=2, max_num_scheduled_tokens=0)
    rates = sorted((rng.choice([0.0, 0.3, 0.7, 0.9, 1.0]) for _ in range(drafts)), reverse=True)
    speculation = SpeculationSpec(
        drafts,
        tuple(rates),
        seed=number,
        proposed=1.0 if case.spec.async_scheduling else rng.choice([1.0, 0.5]),
        lookahead=rng.choice([0, drafts]),
    )
    return Case(replace(spec, speculation=speculation), case.inputs)


class Writer:
    """Writes prompts and outputs, with fresh tokens wherever nothing is to be shared."""

    def __init__(self, rng: random.Random, block: int) -> None:
        self.rng = rng
        self.block = block
        self.last_token = 1000

    def fresh(self, count: int) -> list[int]:
        self.last_token += count
        return list(range(self.last_token - count + 1, self.last_token + 1))

    def opening(self) -> list[int]:
        """What a conversation begins with: alone, or the same as others."""
        kind = self.rng.random()
        if kind < 0.5:
            return list(range(10, 10 + self.rng.choice([2, 5, 9]) * self.block))[:150]
        if kind < 0.65:
            start = 300 + 200 * self.rng.randint(0, 2)
            return list(range(start, start + self.rng.choice([48, 96, 97])))
        return self.fresh(self.rng.randint(1, 60))

    def arrival(self, t_ns: int, past: list[int], turns: int) -> Arrival:
        """A request that goes on from `past`, and up to `turns - 1` more after it."""
        rng = self.rng
        prompt = (past + self.fresh(rng.choice([0, 1, 7, 30, 60])))[:180]
        output = self.fresh(rng.randint(1, 60 if rng.random() < 0.8 else 76))
        cap = len(output)
        if rng.random() < 0.4:
            output[-1] = EOS
            cap = min(cap + rng.choice([0, 1, 9]), MODEL_LEN - len(prompt))
        then = None
        if turns > 1:
            delay = rng.choice([1, 900_000, 20_000_000]) + rng.randint(0, 99_999)
            then = self.arrival(delay, prompt + output, turns - 1)
        return Arrival(t_ns, prompt, output, cap, rng.randint(0, 2), then)


def draw_case(number: int) -> Case:
    """Case `number`."""
    rng = random.Random(number)
    limits = random.Random(f"limits {number}")
    case = Case(with_limits(draw_spec(rng), limits))
    writer = Writer(rng, case.spec.block_size)
    cancels = rng.random() < 0.4
    gaps = rng.choice([[0, 200_000], [0, 700_000, 3_000_000], [5_000_000, 40_000_000]])
    now = arrivals = 0
    for _ in range(rng.randint(1, 24)):
        now += rng.choice(gaps) + rng.randint(1, 99_999)
        if cancels and arrivals and rng.random() < 0.2:
            case.inputs.append(Cancel(now, rng.randrange(arrivals)))
            continue
        case.inputs.append(writer.arrival(now, writer.opening(), rng.choice([1, 1, 1, 2, 3])))
        arrivals += 1
    return case
