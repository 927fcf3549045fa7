"""Scheduling policies, one engine family per module. PURE."""
