"""Many small draws from one: splitmix64, seeded from a named stream."""

from frontier_mock import rng

_MASK = (1 << 64) - 1


class Dice:
    """A sequence of draws of its own for (seed, stream)."""

    __slots__ = ("_state",)

    def __init__(self, seed: int, stream: str) -> None:
        self._state = rng.draw_u64(seed, stream, 0)

    def below(self, count: int) -> int:
        """A number of 0 to `count` - 1, each about as likely."""
        # Constants and shifts of splitmix64 (Steele, Lea, Flood 2014).
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return (z ^ (z >> 31)) % count

    def between(self, low: int, high: int) -> int:
        """A number of `low` to `high`, both included."""
        return low + self.below(high - low + 1)
