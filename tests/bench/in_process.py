"""Agents on the openai SDK and the engine, in one process: CPU seconds for an hour of theirs."""

import gc
import time
from dataclasses import dataclass

from frontier_mock.cluster.build import build_cluster
from frontier_mock.core.commands import Submit
from frontier_mock.core.events import Finished
from frontier_mock.drive.offline import run as run_offline
from frontier_mock.testing import MockSpec, open_cluster, play, run_virtual
from frontier_mock.testing.cluster import resolve
from frontier_mock.workload.build import build_source
from frontier_mock.workload.source import Source
from frontier_mock.workload.specs import (
    ExponentialDelay,
    FixedTokens,
    PromptSpec,
    SessionsSpec,
    UniformTokens,
)
from tests.bench.figures import Figure

AGENTS = 100
CLUSTER = MockSpec(
    model="meta-llama/Llama-3.1-70B-Instruct",
    workers=2,
    flags=("--tensor-parallel-size", "4", "--quantization", "fp8"),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    digest: str
    virtual_s: float
    requests: int
    tokens: int
    cpu_s: float


def agents(sessions: int, concurrency: int = AGENTS) -> Source:
    """Sessions of ten turns: a tool's output in, 275 tokens out, seconds until the next tool's."""
    spec = SessionsSpec(
        PromptSpec(UniformTokens(50, 250), UniformTokens(150, 400), shared_prefix_tokens=1000),
        num_sessions=sessions,
        turns=FixedTokens(10),
        concurrency=concurrency,
        first_input_tokens=FixedTokens(200),
        tool_time=ExponentialDelay(8.6),
        tool_fraction=1.0,
    )
    return build_source(spec, seed=0)


def in_process(source: Source, spec: MockSpec = CLUSTER) -> Outcome:
    """Play it with the openai SDK over the direct transport."""

    async def main() -> Outcome:
        async with open_cluster(spec) as cluster:
            client = cluster.openai()

            async def ask(submit: Submit, prompt: str) -> str:
                tokens = submit.output_tokens
                reply = await client.completions.create(
                    model=cluster.model,
                    prompt=prompt,
                    max_tokens=tokens,
                    extra_body={"min_tokens": tokens, "ignore_eos": True},
                )
                return reply.choices[0].text

            await play(source, ask)
            ended = [e.output_tokens for e in cluster.events if isinstance(e, Finished)]
            return Outcome(cluster.digest(), cluster.now_s, len(ended), sum(ended), 0.0)

    gc.collect()
    start = time.process_time()
    outcome = run_virtual(main())
    cpu_s = time.process_time() - start
    return Outcome(outcome.digest, outcome.virtual_s, outcome.requests, outcome.tokens, cpu_s)


def offline_digest(source: Source, spec: MockSpec = CLUSTER) -> str:
    """The same without a client."""
    resolved, _ = resolve(spec)
    cluster = build_cluster(resolved.spec, resolved.costs)
    run_offline(cluster, source)
    return cluster.log.digest()


def in_process_figures() -> list[Figure]:
    """One virtual hour of a hundred tool-using agents, in CPU seconds."""
    outcome = in_process(agents(2_912))
    same = outcome.digest == offline_digest(agents(2_912))
    verdict = "same digest as offline" if same else "NOT THE DIGEST OF OFFLINE"
    note = (
        f"{outcome.virtual_s:,.0f} virtual s, {outcome.requests:,} requests, "
        f"{outcome.tokens / 1e6:.1f} M tokens; {verdict}"
    )
    return [
        Figure("100 agents on the openai SDK, one hour", outcome.cpu_s, "CPU s", 45, False, note),
        Figure(
            "requests in process, openai SDK",
            outcome.requests / outcome.cpu_s,
            "requests per CPU s",
            600,
            True,
        ),
    ]
