"""`--kv-transfer-config`: what is refused, and how long blocks are kept."""

import json

import pytest

from frontier_mock.config.errors import ConfigError
from frontier_mock.config.kv_transfer import read_kv_transfer

NIXL = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("kv_lease_duration", "0"),
        ("kv_lease_duration", "NaN"),
        ("kv_lease_duration", "true"),
        ("decoder_kv_blocks_ttl", '"long"'),
        ("kv_recompute_threshold", "Infinity"),
        ("kv_recompute_threshold", "-1"),
    ],
)
def test_numbers_out_of_range_are_named(key: str, text: str) -> None:
    config = NIXL | {"kv_connector_extra_config": json.loads(f'{{"{key}": {text}}}')}
    with pytest.raises(ConfigError, match=f"{key}: .*; allowed: a number from"):
        read_kv_transfer(config)


def test_a_decode_server_keeps_blocks_only_if_both_directions_are_asked_for() -> None:
    one_way = read_kv_transfer(NIXL)
    both = read_kv_transfer(NIXL | {"kv_connector_extra_config": {"bidirectional_kv_xfer": True}})
    assert one_way is not None
    assert both is not None
    assert (one_way.back_s(), both.back_s()) == (0.0, 480.0)
    spec = both.spec()
    assert spec is not None
    assert spec.patience_s == 30.0
