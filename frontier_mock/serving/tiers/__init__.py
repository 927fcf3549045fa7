"""Where KV goes beyond the GPU: host memory, and what lies behind it. PURE."""
