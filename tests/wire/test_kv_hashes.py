"""Block hashes against digests computed with vLLM 0.33's own `utils/hashing.py` and cbor2."""

import hashlib
import struct

import pytest

from frontier_mock.wire.kv_hashes import (
    ALGORITHMS,
    SglangHasher,
    VllmHasher,
    as_signed,
    canonical_cbor,
)

FIRST = list(range(1, 17))
SECOND = [128000, 255, 256, 65535, 65536, 24, 23, 0] * 2
SALT = "tenant-ä"

# (algorithm, seed, hash of FIRST, hash of SECOND behind it, hash of FIRST with the cache salt)
GOLDEN = [
    (
        "sha256",
        "vllm-none-hash",
        "7b255da405e1d722823892e4fef187b4d8ac78215d7f0dd2137bb037547f4caf",
        "b7c250b05fba73e976287ccc362b7ca5db5646738cb4ab9c91e58dbf690754f4",
        "e33d4284eeb28fd481178a05a822f8c228c3837238bd59dc1ef3c689232193fa",
    ),
    (
        "sha256",
        "0",
        "bea72b7d33de03c1aa715efbb492d0e0d3801f00c1f985756896072ae8b31325",
        "b42816c1074824c8d05af997bd5b87d46fd655e1ae9d60374792f359e1f2a990",
        "5730875e94d33b567d198e18ccaee345285a6d8dc11be06c5357273306cce6d1",
    ),
    (
        "sha256_cbor",
        "vllm-none-hash",
        "cd7c51bc5a8fc8643f383a2b9e01522fba7473c669e9270c7b0bf7bf7fd01682",
        "d8e428930b83b7a96c332d3ef0a58c15a77044abc8cf57ab375af8b7086a6a02",
        "a1db3fd71f539f2942b041fc3e83169b348dbdd2b35757aae4f7edd059f81b1c",
    ),
    (
        "sha256_cbor",
        "0",
        "202da172482d928bbc42ab25b0151e2b895f13f41002e27b2ceabcfae6d332ea",
        "72c62e7c16b6086b8b785005fc902673edae21a2ed76acb6973c9b471b3a2457",
        "35f014a7b393c5694c20ad04e151da81c0139204b871c3f54f8b3035710598da",
    ),
    (
        "xxhash",
        "vllm-none-hash",
        "c3ef62aeb627e1dbb7d10298670cdfde",
        "08a895b868bb5815b2a3490b5ca49674",
        "690c913ba54716690516e17b53c9f16d",
    ),
    (
        "xxhash",
        "0",
        "6ba7d7fc1608e5f0a4612b1b0c87458f",
        "23a32216e91977988e96b6888d00c2a3",
        "8373cabb9976aa0096452cedee7e79bd",
    ),
    (
        "xxhash_cbor",
        "vllm-none-hash",
        "94bdea02d195af01562671ef4f8c323f",
        "9e80d47d056a5eceb74100393c9f8ab7",
        "210dfc549cacb50777e532163d7bf51a",
    ),
    (
        "xxhash_cbor",
        "0",
        "c2d7a75070fc6d6b0c3fb0af456c1009",
        "566ce4a6f1ccc4e691f4c74beb5887f5",
        "1364e7afaa025279865751745f7b7143",
    ),
]


@pytest.mark.parametrize(("algorithm", "seed", "first", "second", "salted"), GOLDEN)
def test_equal_to_vllm(algorithm: str, seed: str, first: str, second: str, salted: str) -> None:
    if algorithm.startswith("xxhash"):
        pytest.importorskip("xxhash", reason="pip install 'frontier-mock[kv-events]'")
    hasher = VllmHasher(algorithm, seed)
    root = hasher.root(None)
    digest = hasher.next(root, FIRST, None)
    assert digest.hex() == first
    assert hasher.next(digest, SECOND, None).hex() == second
    assert hasher.next(root, FIRST, SALT).hex() == salted
    assert hasher.event_hash(digest) == int(first, 16) & (1 << 64) - 1


def test_every_algorithm_is_covered() -> None:
    assert {row[0] for row in GOLDEN} == set(ALGORITHMS)
    with pytest.raises(ValueError, match="unknown hash 'md5': one of sha256"):
        VllmHasher("md5")


def test_sglang_chain() -> None:
    """Its own C++ (`mem_cache/cpp_utils/hash_binding.cpp`): SHA-256 over what is packed here."""
    hasher = SglangHasher()
    first = hashlib.sha256(struct.pack("<16I", *FIRST)).digest()
    second = hashlib.sha256(first + struct.pack("<16I", *SECOND)).digest()
    assert hasher.next(hasher.root(None), FIRST, None) == first
    assert hasher.next(first, SECOND, None) == second
    assert first.hex() == "77d735ce838418aa151bd96b5b1e78ee63860892e0a95c00fe34178442be9b07"
    assert as_signed(hasher.event_hash(second)) == struct.unpack(">q", second[:8])[0]
    salted = hashlib.sha256(b"sglang-cache-salt-v1\x00" + SALT.encode()).digest()
    assert hasher.root(SALT) == salted


def test_cbor_is_canonical() -> None:
    """Examples of RFC 8949 appendix A."""
    for value, encoded in [
        (0, "00"),
        (23, "17"),
        (24, "1818"),
        (100, "1864"),
        (1000, "1903e8"),
        (1000000, "1a000f4240"),
        (1000000000000, "1b000000e8d4a51000"),
        (None, "f6"),
        (bytes.fromhex("01020304"), "4401020304"),
        ("ü", "62c3bc"),
        ([1, (2, 3), [4, 5]], "8301820203820405"),
    ]:
        assert canonical_cbor(value).hex() == encoded
    for wrong in (True, 1.5, 1 << 64, -1):
        with pytest.raises(TypeError):
            canonical_cbor(wrong)
