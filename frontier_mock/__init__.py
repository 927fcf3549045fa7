"""frontier_mock: a drop-in mock of vLLM and SGLang over a deterministic simulated cluster."""

__version__ = "0.1.0"

__all__ = ["__version__"]
