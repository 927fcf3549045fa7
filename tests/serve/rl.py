"""A server as RL drivers start it: scale-out routes, dev mode, weights that take time to move."""

from dataclasses import replace

from frontier_mock.drive.pace import ClockSpec
from frontier_mock.serve.settings import HttpSettings
from frontier_mock.serve.up import ServeSpec
from frontier_mock.wire.deployment import Deployment
from frontier_mock.wire.eos import EosModel
from tests.serve.live import WARP, serve_spec

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
    clock: ClockSpec = WARP,
    *,
    gpus: Deployment = GPUS,
    dev_mode: bool = True,
    scale_out: bool = True,
    eos: EosModel | None = None,
    workers: int = 1,
) -> ServeSpec:
    http = HttpSettings(dev_mode=dev_mode, scale_out=scale_out)
    spec = serve_spec(clock, workers=workers, http=http)
    served = [replace(model, deployment=gpus, eos=eos) for model in spec.served]
    return replace(spec, served=served)
