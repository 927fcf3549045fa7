"""A server as RL drivers start it: scale-out routes, dev mode, weights that take time to move."""

from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec

import httpx

from frontier_mock.client.wrap import with_actor
from frontier_mock.cluster.specs import ranks_of
from frontier_mock.drive.pace import ClockSpec
from frontier_mock.serve.settings import HttpSettings
from frontier_mock.serve.up import ClusterServer, ServeSpec
from frontier_mock.testing import run_virtual
from frontier_mock.wire.deployment import Deployment
from frontier_mock.wire.eos import EosModel
from tests.serve.live import serve_spec

ArgsT = ParamSpec("ArgsT")

GENERATE = "/inference/v1/generate"
PROMPT = [*b"<|im_start|>user hello\n"]
GIGABYTE = 10**9
GPUS = Deployment(
    weight_bytes=8 * GIGABYTE,
    host_bytes_per_s=50e9,
    network_bytes_per_s=40e9,
    tp=2,
    sleep_mode=True,
    weight_transfer="nccl",
)


def rl_spec(
    clock: ClockSpec | None = None,
    *,
    gpus: Deployment = GPUS,
    dev_mode: bool = True,
    scale_out: bool = True,
    eos: EosModel | None = None,
    ranks: int = 1,
) -> ServeSpec:
    """One server, of `ranks` data-parallel ranks."""
    http = HttpSettings(dev_mode=dev_mode, scale_out=scale_out)
    spec = serve_spec(clock or ClockSpec(), http=http)
    (model,) = spec.served
    served = replace(model, deployment=gpus, eos=eos, data_parallel_size=ranks)
    workers = ranks_of(replace(spec.cluster.workers[0], dp_size=ranks))
    return replace(
        spec,
        served=[served],
        cluster=replace(spec.cluster, workers=workers),
        costs=[spec.costs[0] for _ in workers],
    )


def in_virtual_time(
    test: Callable[ArgsT, Coroutine[Any, Any, None]],
) -> Callable[ArgsT, None]:
    """A test whose client and server share a loop that never waits."""

    @wraps(test)
    def run(*args: ArgsT.args, **kwargs: ArgsT.kwargs) -> None:
        run_virtual(test(*args, **kwargs))

    return run


def client_of(server: ClusterServer) -> httpx.AsyncClient:
    """A client whose requests come in the order of the tasks that make them."""
    return with_actor(httpx.AsyncClient(base_url=server.urls[0], timeout=None))


async def generate(
    client: httpx.AsyncClient, max_tokens: int = 40, prompt: list[int] | None = None, **more: Any
) -> dict[str, Any]:
    """What the inference route answers to `prompt`, with the logprob of each token."""
    params = {"max_tokens": max_tokens, "logprobs": 0, **more}
    asked = {"token_ids": PROMPT if prompt is None else prompt, "sampling_params": params}
    body: dict[str, Any] = (await client.post(GENERATE, json=asked)).json()
    return body
