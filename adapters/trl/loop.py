"""TRL's own clients against a mock vLLM: rollouts, scores, and weight updates without tensors.

    python adapters/trl/loop.py URL [STEPS]

Needs trl 1.16 (which brings torch) and requests, but neither vLLM nor a GPU. Fails if a token or a
logprob does not add up.
"""

import json
import sys
from collections.abc import Sequence

from accelerate import PartialState
from trl.experimental.async_grpo.vllm_client import VLLMClient as ControlClient
from trl.generation import vllm_client

# TRL asks for vLLM in its own process for the weights' sake; the rest is HTTP.
vllm_client.is_vllm_available = lambda *_args, **_kwargs: True
vllm_client._HAS_RESET_PREFIX_CACHE_SUCCESS = True

PROMPTS = [[*f"problem {number}\n".encode()] for number in range(8)]
SAMPLES = 4
MAX_TOKENS = 120
ALL_PARAMETERS = {"update_info": {}}


def main(argv: Sequence[str]) -> int:
    """Run the loop; returns the exit code."""
    url, steps = argv[0], int(argv[1]) if len(argv) > 1 else 3
    PartialState()  # a trainer's; accelerate's loggers, which the clients use, insist on one
    client = vllm_client.VLLMClient(base_url=url, connection_timeout=60)
    control = ControlClient(url, server_timeout=60)
    control.wait_for_server_ready()
    server = {
        "world_size": control.get_world_size(),
        "dtype": control.get_dtype(),
        "max_model_len": control.get_max_model_len(),
    }
    control.init_weight_transfer_engine({"world_size": server["world_size"] + 1})
    tokens = scored = 0
    for _ in range(steps):
        made = client.generate(PROMPTS, n=SAMPLES, max_tokens=MAX_TOKENS, temperature=1.0)
        assert made["prompt_ids"] == PROMPTS
        ids, logprobs = made["completion_ids"], made["logprobs"]
        assert [[token for (token,) in one] for one in made["logprob_token_ids"]] == ids
        tokens += sum(map(len, ids))
        whole = [PROMPTS[i // SAMPLES] + one for i, one in enumerate(ids)]
        lengths = [len(PROMPTS[i // SAMPLES]) for i in range(len(ids))]
        teacher = client.get_sequence_logprobs(whole, lengths, top_logprobs=2)
        for own, seen in zip(logprobs, teacher["actual_logprobs"], strict=True):
            assert own == seen
            scored += len(own)
        control.pause()
        control.start_weight_update()
        control.update_weights(ALL_PARAMETERS["update_info"])
        control.finish_weight_update()
        client.reset_prefix_cache()
        control.resume()
    sys.stdout.write(json.dumps({**server, "tokens": tokens, "scored": scored}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
