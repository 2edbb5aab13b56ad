"""The tasks that are known by name: their keywords, and what the training candidates did on them.

Needs the standard library alone, so that commands of a bare client can use it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

REFERENCE_FILE = Path(__file__).with_name("reference_test.json")
KEYWORDS_FILE = Path(__file__).with_name("task_keywords.json")


@dataclass(frozen=True)
class ReferenceTask:
    """What is known of a task of the reference test.

    mean: mean accuracy of the training candidates. items: keys of the questions they were asked.
    """

    mean: float
    items: frozenset[str]


@lru_cache(maxsize=1)
def reference_tasks() -> dict[str, ReferenceTask]:
    """Read the reference test: task -> what is known of it."""
    raw = json.loads(REFERENCE_FILE.read_text(encoding="utf-8"))
    return {t: ReferenceTask(e["mean"], frozenset(e["items"])) for t, e in raw.items()}


@lru_cache(maxsize=1)
def load_task_keywords() -> dict[str, str]:
    """Return task -> its five keywords, for the tasks of the shipped test and seven others."""
    keywords: dict[str, str] = json.loads(KEYWORDS_FILE.read_text(encoding="utf-8"))
    return keywords


def keywords_of(tasks: Sequence[str]) -> list[str]:
    """Return the five keywords of each task; for an unknown task, the words of its name."""
    known = load_task_keywords()
    return [known.get(t, re.sub(r"[_\-]+", " ", t)) for t in tasks]
