"""Bytes to commands and events to bytes, exactly as the impersonated engine. PURE."""
