"""Trace readers and synthetic workloads: timed commands. PURE."""
