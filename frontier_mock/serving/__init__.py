"""One engine instance minus the GPU: scheduler, KV blocks, prefix cache, worker. PURE."""
