"""How long forwards take here, from those that were run: what admission reckons with."""

from __future__ import annotations

from collections import deque
from statistics import median

WINDOW = 15  # forwards; the median follows a change after 8 of them, and no single stall moves it
FORGET_S = 5.0


class Pace:
    """Seconds a row (a token or a candidate of one request, no padding) takes: the median of the
    last forwards. For one thread."""

    def __init__(self) -> None:
        self._rates: deque[float] = deque(maxlen=WINDOW)
        self._measured = 0.0
        self.row_s = 0.0  # 0 until something was measured

    def measure(self, rows: int, seconds: float, now: float) -> None:
        """Take in a forward of `rows` that ended at `now` and took `seconds`."""
        self._rates.append(seconds / max(rows, 1))
        self._measured = now
        self.row_s = median(self._rates)

    def forget(self, now: float) -> None:
        """Call it when nothing runs. What is long ago is forgotten: too high an estimate refuses
        everything, and then no forward would ever correct it."""
        if self.row_s and now - self._measured > FORGET_S:
            self._rates.clear()
            self.row_s = 0.0
