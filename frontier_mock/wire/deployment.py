"""What the RL control plane must know of the GPUs behind a server: sizes, links, number."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deployment:
    """One server's engine as a weight update or a sleep sees it.

    `weight_bytes` are those of one GPU. `host_bytes_per_s` is the link to host memory,
    `network_bytes_per_s` the one to other nodes, `peer_bytes_per_s` to other GPUs of the node and
    `memory_bytes_per_s` the GPU's own memory, each of one GPU in one direction. `tp`, `pp` and `dp`
    are degrees of parallelism. `sleep_mode` is --enable-sleep-mode, `weight_transfer` the backend
    of --weight-transfer-config, "" without one, `max_loras` the adapters in use at once, 0 without
    --enable-lora. With `tokens_only` the server speaks no text,
    with `trace_replay` requests may dictate their output (--enable-trace-replay).
    """

    weight_bytes: int = 0
    host_bytes_per_s: float = 64e9
    network_bytes_per_s: float = 50e9
    peer_bytes_per_s: float = 200e9
    memory_bytes_per_s: float = 3.35e12
    tp: int = 1
    pp: int = 1
    dp: int = 1
    dtype: str = "bfloat16"
    max_num_seqs: int = 1024
    sleep_mode: bool = False
    tokens_only: bool = False
    trace_replay: bool = False
    weight_transfer: str = ""
    max_loras: int = 0
    enable_prefix_caching: bool = True

    @property
    def world_size(self) -> int:
        """GPUs of one data-parallel rank."""
        return self.tp * self.pp
