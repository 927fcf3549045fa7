"""GET /server_info: the part of vLLM's configuration that clients are known to read."""

from frontier_mock.wire.served import ServedModel
from frontier_mock.wire.tokenizer import Json


def server_config(served: ServedModel) -> dict[str, Json]:
    """`vllm_config` as an object, under the names of vLLM 0.33's configuration classes."""
    gpus = served.deployment
    transfer: Json = {"backend": gpus.weight_transfer} if gpus.weight_transfer else None
    return {
        "model_config": {
            "model": served.root,
            "tokenizer": served.root,
            "dtype": f"torch.{gpus.dtype}",
            "seed": served.seed,
            "max_model_len": served.max_model_len,
            "served_model_name": served.names[0],
            "max_logprobs": served.max_logprobs,
            "enable_sleep_mode": gpus.sleep_mode,
        },
        "cache_config": {
            "block_size": served.block_tokens,
            "enable_prefix_caching": gpus.enable_prefix_caching,
        },
        "parallel_config": {
            "pipeline_parallel_size": gpus.pp,
            "tensor_parallel_size": gpus.tp,
            "data_parallel_size": gpus.dp,
            "world_size": gpus.world_size,
        },
        "scheduler_config": {"max_num_seqs": gpus.max_num_seqs},
        "weight_transfer_config": transfer,
    }
