"""The compilers and matchers that engines use, as far as they are installed here.

llguidance comes with the dev extra. xgrammar asks for torch, which it needs for masks on a GPU and
not to match text: `pip install --no-deps xgrammar==0.2.8 apache-tvm-ffi`, which scripts/test does.
"""

import importlib
import importlib.util
import sys
import types
from typing import Any
from unittest.mock import MagicMock

import pytest


def llguidance() -> Any:
    """The module llguidance, or a skip that says what to install."""
    return pytest.importorskip("llguidance", reason="llguidance is not installed (extra: dev)")


def guided_error(kind: str, spec: str) -> str:
    """What llguidance says of a grammar, empty if it takes it."""
    module = llguidance()
    error: str = module.LLMatcher.validate_grammar(module.grammar_from(kind, spec))
    return error


def guided_match(kind: str, spec: str, text: str) -> bool:
    """Whether llguidance takes `text` for a whole sentence."""
    module = llguidance()
    tokenizer = module.LLTokenizer("byte")
    matcher = module.LLMatcher(tokenizer, module.grammar_from(kind, spec))
    took: bool = matcher.consume_tokens(tokenizer.tokenize_str(text))
    return took and matcher.is_accepting() and not matcher.get_error()


class Xgrammar:
    """xgrammar's own compiler and matcher, over a vocabulary of bytes."""

    def __init__(self, module: Any) -> None:
        self.module = module
        vocab = [*(bytes([i]) for i in range(256)), b"</s>"]
        info = module.TokenizerInfo(
            vocab, module.VocabType.RAW, vocab_size=257, stop_token_ids=[256]
        )
        self._compiler = module.GrammarCompiler(info, max_threads=1)

    def error(self, kind: str, spec: str) -> str:
        """What it says of a grammar, its time of day set to midnight; empty if it takes it."""
        try:
            self._read(kind, spec)
        except RuntimeError as error:
            text = str(error)
            return "[00:00:00]" + text[10:] if text.startswith("[") else text
        return ""

    def match(self, kind: str, spec: str, text: str) -> bool:
        """Whether it takes `text` for a whole sentence."""
        compiled = self._compiler.compile_grammar(self._read(kind, spec))
        matcher = self.module.GrammarMatcher(compiled)
        took: bool = not text or matcher.accept_string(text.encode())
        return took and bool(matcher.accept_token(256))

    def _read(self, kind: str, spec: str) -> Any:
        grammar = self.module.Grammar
        reader = getattr(grammar, f"from_{'json_schema' if kind == 'json' else kind}")
        return reader(spec)


def xgrammar() -> Xgrammar:
    """xgrammar, or a skip that says what to install."""
    wanted = ("xgrammar", "tvm_ffi", "pydantic")
    if any(importlib.util.find_spec(name) is None for name in wanted):
        pytest.skip("xgrammar is not installed: pip install --no-deps xgrammar apache-tvm-ffi")
    if "xgrammar" not in sys.modules:
        importlib.import_module("tvm_ffi")
        fakes: dict[str, Any] = {"torch": MagicMock(), "transformers": _transformers()}
        absent = [name for name in fakes if importlib.util.find_spec(name) is None]
        fakes["torch"].__spec__ = None
        sys.modules.update({name: fakes[name] for name in absent})
        try:
            importlib.import_module("xgrammar")
        finally:
            for name in absent:
                del sys.modules[name]
    return Xgrammar(sys.modules["xgrammar"])


def _transformers() -> types.ModuleType:
    module = types.ModuleType("transformers")
    for name in ("LogitsProcessor", "PreTrainedTokenizerBase", "PreTrainedTokenizerFast"):
        setattr(module, name, type(name, (), {}))
    return module
