"""A mean that forgets, beside the mean of the beginning: do today's decisions look like those?"""

from __future__ import annotations

WINDOW = 1000  # decisions


class Drift:
    """mean: over all values until there are WINDOW, then exponentially weighted, 1 / WINDOW each.
    baseline: the mean of the first WINDOW values. Both None before the first. For one thread."""

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._seen = 0
        self.mean: float | None = None
        self.baseline: float | None = None

    def add(self, value: float) -> None:
        """Take one more value into account."""
        if self.mean is None:
            self.mean = value
        else:
            self.mean += (value - self.mean) / min(self._seen + 1, self._window)
        self._seen += 1
        if self._seen <= self._window:
            self.baseline = self.mean
