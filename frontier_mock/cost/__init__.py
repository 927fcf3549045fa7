"""What hardware takes: the price of a step and the memory plan. PURE."""
