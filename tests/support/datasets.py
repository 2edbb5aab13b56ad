"""Small data folders with outcomes that depend on the text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

CANDIDATES, INSTRUCTIONS, TASKS = 4, 80, 50


def write(folder: Path, *, aptitude: bool = True, seed: int = 0, subjects: int = 1) -> Path:
    """Write a data folder. Easy instructions say Yes, hard ones No; candidate c3 is the best."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    easy = random.random(INSTRUCTIONS) < 0.5
    skill = np.linspace(0.1, 0.9, CANDIDATES)
    scores = (random.random((CANDIDATES, INSTRUCTIONS)) < skill[:, None]) | easy
    scores = scores.astype(np.float16)
    scores[0, :5] = np.nan
    rows = [
        {
            "id": f"q{i}",
            "benchmark": "made-up",
            "subtask": f"subject {i % subjects}",
            "text": f"{'Yes' if easy[i] else 'No'} " * 3 + f"{i} of {folder.name}",
        }
        for i in range(INSTRUCTIONS)
    ]
    (folder / "instructions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names = [f"c{i}" for i in range(CANDIDATES)]
    (folder / "candidates.json").write_text(json.dumps([{"name": n} for n in names]))
    np.savez(folder / "scores.npz", scores=scores)
    if aptitude:
        tasks = [f"task_{t}" for t in range(TASKS)]
        accuracies = {
            n: (s + 0.1 * random.random(TASKS)).tolist() for n, s in zip(names, skill, strict=True)
        }
        test = {"tasks": tasks, "items": {"task_0": ["q7"]}, "scores": accuracies}
        (folder / "aptitude.json").write_text(json.dumps(test))
    return folder
