"""The kernel: commands in, events out, the calendar between them. PURE."""
