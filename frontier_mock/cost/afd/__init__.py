"""Attention/FFN disaggregation: the pipeline of a step, what its stages take, and memory. PURE."""
