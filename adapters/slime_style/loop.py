"""A trainer's rollout loop in slime's manner: abort, partial resume, weight update, flush.

    python adapters/slime_style/loop.py ROUTER_URL [STEPS]

Needs httpx. The workers are those the router lists. Fails if a token or a logprob does not add up;
prints what was done, as JSON.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

SAMPLES = 16
"""Begun in each step: more than it needs, so that nobody waits for the longest ones."""

WANTED = 10
"""With so many complete samples a step is over; the others go on in the next one."""

FLUSH_TRIES = 60


@dataclass
class Sample:
    """One sequence, which may take several requests. `versions` are those of its pieces."""

    number: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    done: bool = False

    @property
    def prompt(self) -> list[int]:
        """Token ids, different for each sample."""
        return [*f"problem {self.number}: ".encode(), *range(300, 340)]

    @property
    def limit(self) -> int:
        """Its length at most: samples of one step differ a lot."""
        return 300 * (1 + self.number % SAMPLES)


async def generate(router: httpx.AsyncClient, sample: Sample) -> None:
    """Ask for the rest of a sample; an abort leaves it with what there is by then."""
    body = {
        "input_ids": sample.prompt + sample.tokens,
        "sampling_params": {
            "temperature": 1.0,
            "max_new_tokens": sample.limit - len(sample.tokens),
            "skip_special_tokens": False,
            "no_stop_trim": True,
            "spaces_between_special_tokens": False,
        },
        "return_logprob": True,
    }
    headers = {"x-smg-routing-key": str(sample.number)}
    answer = await router.post("/generate", json=body, headers=headers)
    answer.raise_for_status()
    meta = answer.json()["meta_info"]
    new = meta.get("output_token_logprobs") or []
    assert len(new) == meta["completion_tokens"]
    assert [item[1] for item in new] == answer.json()["output_ids"]
    sample.logprobs += [item[0] for item in new]
    sample.tokens += [item[1] for item in new]
    sample.versions.append(meta["weight_version"])
    sample.done = meta["finish_reason"]["type"] != "abort"


async def rollout(
    router: httpx.AsyncClient, workers: Sequence[httpx.AsyncClient], samples: Sequence[Sample]
) -> None:
    """Generate until enough are complete, then cut the others short."""
    tasks = {asyncio.create_task(generate(router, sample)) for sample in samples}
    complete = 0
    while complete < WANTED and tasks:
        done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
        complete += len(done)
    while tasks:
        for worker in workers:
            (await worker.post("/abort_request", json={"abort_all": True})).raise_for_status()
        left = [(await worker.get("/v1/loads?include=core")).json()["loads"] for worker in workers]
        busy = sum(
            load["num_running_reqs"] + load["num_waiting_reqs"] for loads in left for load in loads
        )
        if not busy:
            await asyncio.gather(*tasks)
            tasks = set()


async def update_weights(workers: Sequence[httpx.AsyncClient], version: str) -> None:
    """Between two steps: new weights, and nothing cached of the old ones."""
    for worker in workers:
        (await worker.post("/pause_generation", json={})).raise_for_status()
    for worker in workers:
        for _ in range(FLUSH_TRIES):
            if (await worker.get("/flush_cache")).status_code == 200:
                break
        else:
            raise RuntimeError("a worker does not come to rest")
    told = {"model_path": "/checkpoints/next", "weight_version": version, "flush_cache": False}
    updates = [worker.post("/update_weights_from_disk", json=told) for worker in workers]
    for answer in await asyncio.gather(*updates):
        assert answer.json()["success"], answer.text
    for worker in workers:
        (await worker.post("/continue_generation", json={})).raise_for_status()


async def workers_of(router: httpx.AsyncClient) -> list[str]:
    """The engines the router knows."""
    listed: list[dict[str, Any]] = (await router.get("/workers")).json()["workers"]
    return sorted(worker["url"] for worker in listed)


async def train(url: str, steps: int) -> dict[str, Any]:
    """All steps; then every sample that took several requests is asked for once more, at once."""
    async with httpx.AsyncClient(base_url=url, timeout=None) as router:
        urls = await workers_of(router)
        workers = [httpx.AsyncClient(base_url=one, timeout=None) for one in urls]
        pending: list[Sample] = []
        complete: list[Sample] = []
        begun = partial = 0
        for step in range(steps):
            fresh = [Sample(begun + i) for i in range(SAMPLES - len(pending))]
            begun += len(fresh)
            samples = pending + fresh
            await rollout(router, workers, samples)
            complete += [sample for sample in samples if sample.done]
            pending = [sample for sample in samples if not sample.done]
            partial += len(pending)
            await update_weights(workers, f"step-{step + 1}")
        resumed = [sample for sample in complete if len(sample.versions) > 1]
        for sample in resumed:
            again = Sample(sample.number)
            await generate(router, again)
            assert (again.tokens, again.logprobs) == (sample.tokens, sample.logprobs)
        for worker in workers:
            await worker.aclose()
    return {
        "workers": len(urls),
        "complete": len(complete),
        "partial": partial,
        "resumed": len(resumed),
        "tokens": sum(len(sample.tokens) for sample in complete),
        "versions": sorted({version for sample in complete for version in sample.versions}),
    }


def main(argv: Sequence[str]) -> int:
    """Run the loop; returns the exit code."""
    parser = argparse.ArgumentParser(description="Train in slime's manner through a router.")
    parser.add_argument("router", help="its URL")
    parser.add_argument("steps", type=int, nargs="?", default=3)
    options = parser.parse_args(argv)
    try:
        done = asyncio.run(train(options.router, options.steps))
    except httpx.ConnectError as error:
        parser.error(f"cannot reach {options.router}: {error}")
    sys.stdout.write(json.dumps(done) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
