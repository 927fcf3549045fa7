"""The load generator and what clients need to live in virtual time."""
