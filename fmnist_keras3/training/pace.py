"""How many steps go to the device at once."""

from __future__ import annotations

CHUNK_SECONDS = 1.0  # a stop waits for the chunk that is on the device


class Pace:
    """Chooses chunk lengths so that each takes about `CHUNK_SECONDS`; bits do not depend on it."""

    def __init__(self, most: int, first: int = 1) -> None:
        self.most, self.first, self.rate = most, first, 0.0

    def steps(self, left: int) -> int:
        """Return the next chunk's length, at most ``left``; the very first is ``first`` steps."""
        wanted = round(self.rate * CHUNK_SECONDS) if self.rate else self.first
        return max(1, min(left, self.most, wanted))

    def measured(self, count: int, seconds: float) -> None:
        """Learn from a chunk; a short one says little, so the rate at most quadruples."""
        rate = count / max(seconds, 1e-9)
        self.rate = min(rate, 4 * self.rate) if self.rate else rate
