"""Sessions played by a real SDK in process are the sessions played by nobody offline."""

from pathlib import Path

import pytest

from frontier_mock.cli.main import main as cli
from frontier_mock.cluster.build import build_cluster
from frontier_mock.core.commands import Submit
from frontier_mock.core.events import Submitted
from frontier_mock.drive.offline import run
from frontier_mock.testing import MockCluster, MockSpec, open_cluster, play, run_virtual
from frontier_mock.testing.cluster import resolve
from frontier_mock.workload.build import build_source
from frontier_mock.workload.source import Source
from frontier_mock.workload.specs import (
    BurstSpec,
    ClosedLoopSpec,
    ExponentialDelay,
    FixedTokens,
    OpenLoopSpec,
    PromptSpec,
    SessionsSpec,
    UniformTokens,
    WorkloadSpec,
)

TWO = MockSpec(workers=2, flags=("--max-num-seqs", "8"))
LENGTHS = PromptSpec(UniformTokens(20, 200), UniformTokens(5, 60), shared_prefix_tokens=64)
WORKLOADS: dict[str, WorkloadSpec] = {
    "sessions": SessionsSpec(
        LENGTHS, 12, FixedTokens(4), concurrency=6, think_time=ExponentialDelay(0.5)
    ),
    "sessions without pause": SessionsSpec(LENGTHS, 12, FixedTokens(4), concurrency=6),
    "closed loop": ClosedLoopSpec(LENGTHS, 8, num_requests=40),
    "open loop": OpenLoopSpec(LENGTHS, "poisson", 20.0, num_requests=40),
    "burst": BurstSpec(LENGTHS, 30),
}


async def play_with_sdk(cluster: MockCluster, source: Source, transport: str) -> None:
    client = cluster.openai(transport)

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


@pytest.mark.parametrize("transport", ["direct", "tcp"])
@pytest.mark.parametrize("workload", list(WORKLOADS))
def test_in_process_is_offline(workload: str, transport: str, tmp_path: Path) -> None:
    spec = WORKLOADS[workload]

    async def main() -> tuple[str, int]:
        async with open_cluster(TWO) as cluster:
            await play_with_sdk(cluster, build_source(spec, seed=1), transport)
            return cluster.digest(), sum(isinstance(e, Submitted) for e in cluster.events)

    digest, submitted = run_virtual(main())
    resolved, _ = resolve(TWO)
    cluster = build_cluster(resolved.spec, resolved.costs)
    source = build_source(spec, seed=1)
    run(cluster, source)
    assert submitted == source.num_requests
    assert digest == cluster.log.digest()


def test_a_journal_written_in_process_replays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "journal.jsonl"
    spec = MockSpec(workers=2, flags=("--max-num-seqs", "8"), journal=str(path))

    async def main() -> str:
        async with open_cluster(spec) as cluster:
            source = build_source(WORKLOADS["sessions"], seed=1)
            await play_with_sdk(cluster, source, "direct")
            return cluster.digest()

    digest = run_virtual(main())
    assert cli(["journal", "replay", str(path)]) == 0
    assert digest in capsys.readouterr().out


def test_an_error_of_the_asker_ends_the_play() -> None:
    async def main() -> None:
        async with open_cluster() as cluster:

            async def ask(submit: Submit, prompt: str) -> str:
                raise LookupError(prompt[:3])

            del cluster
            await play(build_source(WORKLOADS["closed loop"], seed=1), ask)

    with pytest.raises(ExceptionGroup) as caught:
        run_virtual(main())
    assert all(isinstance(error, LookupError) for error in caught.value.exceptions)
