"""Block hashes against digests computed with the engines' own code.

vLLM's are from vLLM 0.33's `utils/hashing.py` with cbor2 and xxhash.
"""

import pytest

from frontier_mock.wire.kv_hashes import (
    ALGORITHMS,
    PLAIN,
    Namespace,
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
    root = hasher.root(PLAIN)
    digest = hasher.next(root, FIRST, PLAIN, first=True)
    assert digest.hex() == first
    assert hasher.next(digest, SECOND, PLAIN, first=False).hex() == second
    assert hasher.next(root, FIRST, Namespace(SALT), first=True).hex() == salted
    assert hasher.event_hash(digest) == int(first, 16) & (1 << 64) - 1


@pytest.mark.parametrize(
    ("algorithm", "first", "second"),
    [
        (
            "sha256",
            "5762d943b587aea1fe567b82e6d9e7c2ed96647074014f235824dfc7265c36a5",
            "e2ff6d780af090b187992da8098029254a0415c3cbabdbbb24966f66b47473be",
        ),
        (
            "sha256_cbor",
            "11b93d3eb35df1715ccfe29332b49f6d34bcb06a7d17a51c5a27499014401ba2",
            "db3f38886166001bb7e95d133405e2d12817c335f5769735b9bd6530ee9b12ea",
        ),
    ],
)
def test_adapters_equal_to_vllm(algorithm: str, first: str, second: str) -> None:
    """The same tokens twice, for an adapter, and a salt that only the first block knows of."""
    hasher = VllmHasher(algorithm)
    namespace = Namespace(SALT, ("poet", "/adapters/poet"))
    digest = hasher.next(hasher.root(namespace), FIRST, namespace, first=True)
    assert digest.hex() == first
    assert hasher.next(digest, FIRST, namespace, first=False).hex() == second


def test_every_algorithm_is_covered() -> None:
    assert {row[0] for row in GOLDEN} == set(ALGORITHMS)
    with pytest.raises(ValueError, match="unknown hash 'md5': one of sha256"):
        VllmHasher("md5")


# From SGLang 0.5.23's own `mem_cache/cpp_utils/hash_binding.cpp`, compiled: two pages of 16 tokens,
# three of one token, and two pages under the digest of a cache salt.
SGLANG_PAGES = [
    "77d735ce838418aa151bd96b5b1e78ee63860892e0a95c00fe34178442be9b07",
    "ccf2eec4321a12d02904dba2ce9c6c57d39806c197bf3d173bf76b4d0a4c5b65",
]
SGLANG_TOKENS = [
    "67abdd721024f0ff4e0b3f4c2fc13bc5bad42d0b7851d456d88d203d15aaa450",
    "e95092c4b38d42d1363b9e9b06bc5d6377af1cd06651a9fedac8b36dc9e56114",
    "65a83b157c6cfe60e7f2b2dbc81912f32c87b62f180abb0b8b40bf4b5259ae86",
]
SGLANG_SALTED = [
    "2a343177c0d83b669ec3a1b9805ee05b9bed7015628321fbbb07a94ea53d523f",
    "bc6e18cfd83603305a47e75752a0771f90d1e437aba4fa338e100a2c5bf5a40b",
]


@pytest.mark.parametrize(
    ("pages", "salt", "digests"),
    [
        ([FIRST, SECOND], None, SGLANG_PAGES),
        ([[1], [2], [3]], None, SGLANG_TOKENS),
        ([FIRST, SECOND], SALT, SGLANG_SALTED),
    ],
)
def test_equal_to_sglang(pages: list[list[int]], salt: str | None, digests: list[str]) -> None:
    hasher = SglangHasher()
    digest = hasher.root(Namespace(salt))
    for page, expected in zip(pages, digests, strict=True):
        digest = hasher.next(digest, page, Namespace(salt), first=False)
        assert digest.hex() == expected
        assert hasher.event_hash(digest) == int(expected[:16], 16)
    assert as_signed(hasher.event_hash(digest)) == int.from_bytes(digest[:8], "big", signed=True)


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
