"""The standard test: the 50 tasks, the questions that the zoo's candidates sat, and how the
training candidates did (written by training/standard_test.py)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

FILE = Path(__file__).parent / "standard_test.json"


@dataclass(frozen=True)
class StandardTask:
    """mean: accuracy of the training candidates. items: keys of the questions they sat."""

    mean: float
    items: frozenset[str]


@lru_cache(maxsize=1)
def standard_tasks() -> dict[str, StandardTask]:
    """Task -> what is known of it."""
    raw = json.loads(FILE.read_text(encoding="utf-8"))
    return {t: StandardTask(e["mean"], frozenset(e["items"])) for t, e in raw.items()}
