"""What the HTTP layer is told, out of a resolved cluster."""

import pytest

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.resolve import resolve_single
from frontier_mock.config.served import served_models
from frontier_mock.config.vllm_flags import parse_serve
from frontier_mock.wire.served import ServedModel

LLAMA8 = "meta-llama/Llama-3.1-8B-Instruct"


def served(*flags: str) -> ServedModel:
    args = parse_serve([LLAMA8, *flags], {})
    (model,) = served_models(resolve_single(args.vllm, "h800", "vllm-0.33", 0), None, {})
    return model


def test_adapters_are_named_in_two_ways() -> None:
    model = served("--lora-modules", "sql=/ckpt/sql", '{"name": "chat", "path": "/ckpt/chat"}')
    assert model.adapters == {"sql": "/ckpt/sql", "chat": "/ckpt/chat"}


@pytest.mark.parametrize("text", ["sql", "=/ckpt", "{", '{"name": "a"}'])
def test_a_nameless_adapter_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--lora-modules: .* is neither name=path nor JSON"):
        served("--lora-modules", text)


def test_the_deployment_is_that_of_the_resolved_gpus() -> None:
    config = '{"backend": "ipc"}'
    model = served("-tp", "2", "--enable-sleep-mode", "--weight-transfer-config", config)
    gpus = model.deployment
    assert (gpus.tp, gpus.world_size, gpus.dp) == (2, 2, 1)
    assert 7e9 < gpus.weight_bytes < 9e9
    assert (gpus.sleep_mode, gpus.weight_transfer) == (True, "ipc")
    assert gpus.peer_bytes_per_s > gpus.network_bytes_per_s
    assert served("--weight-transfer-config", "{}").deployment.weight_transfer == "nccl"
    assert served("--max-loras", "3").deployment.max_loras == 0
    assert served("--max-loras", "3", "--enable-lora").deployment.max_loras == 3


@pytest.mark.parametrize("config", ["[]", '{"backend": 5}', '{"backend": ""}'])
def test_a_weight_transfer_without_a_backend_is_refused(config: str) -> None:
    with pytest.raises(ConfigError, match="--weight-transfer-config"):
        served("--weight-transfer-config", config)


def test_the_backend_of_structured_outputs() -> None:
    assert served().structured_backend == "auto"
    config = '{"backend": "xgrammar"}'
    assert served("--structured-outputs-config", config).structured_backend == "xgrammar"
    with pytest.raises(ConfigError, match="backend: 'yacc'; allowed: auto, xgrammar, guidance"):
        served("--structured-outputs-config", '{"backend": "yacc"}')
