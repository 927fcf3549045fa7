"""Loops around the pure core: clocks, the driver, the journal."""
