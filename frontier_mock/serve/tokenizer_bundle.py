"""GetTokenizer: the tokenizer's directory as a ZIP archive, in pieces.

A router that speaks gRPC gets its tokenizer from its workers this way. Which files are in it, the
size of a piece and the fingerprint on the last one are those of smg-grpc-servicer 0.14.1.
"""

import hashlib
import io
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from smg_grpc_proto.generated import common_pb2

from frontier_mock.config.tokenizers import write_byte_tokenizer

_PIECE_BYTES = 64 << 10
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "tiktoken.model",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
_PATTERNS = ("*.tiktoken", "*.jinja", "*.model")
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Date of every file in an archive, so that equal directories make equal archives."""


def build_archive(directory: str | None, max_model_len: int) -> bytes:
    """The ZIP archive of a tokenizer directory, or of our own byte-level one for None.

    Raises FileNotFoundError if there is no tokenizer in the directory.
    """
    if directory is not None:
        return _zip(Path(directory))
    with tempfile.TemporaryDirectory() as made:
        return _zip(write_byte_tokenizer(made, max_model_len))


def _zip(directory: Path) -> bytes:
    names = [name for name in _FILES if (directory / name).is_file()]
    found = {path.name for pattern in _PATTERNS for path in directory.glob(pattern)}
    names += sorted(found.difference(names))
    if not names:
        raise FileNotFoundError(f"No tokenizer files found in {directory}")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, (directory / name).read_bytes())
    return buffer.getvalue()


def pieces(archive: bytes) -> Iterator[common_pb2.GetTokenizerChunk]:
    """The archive in messages; the last one has its SHA-256."""
    for start in range(0, len(archive), _PIECE_BYTES):
        end = start + _PIECE_BYTES
        fingerprint = hashlib.sha256(archive).hexdigest() if end >= len(archive) else ""
        yield common_pb2.GetTokenizerChunk(data=archive[start:end], sha256=fingerprint)
