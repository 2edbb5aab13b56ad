"""Steps without outcomes: synthetic candidates whose figures are true, tasks of many folders.

What a router must do with a test of unseen tasks is to find the instruction's own task by its
keywords and to take that figure. Here that alone decides: a candidate's probability on an
instruction is its accuracy on the task that the instruction was drawn from.

Shapes: T tasks, B instructions, M candidates, N instructions of all folders, E encoder width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from research.many_folders.data.folders import Folder

Ints = NDArray[np.int64]
QUESTIONS = (10, 20, 50)
LEAST = 4  # rows of a task
PROSE, PROSE_SHARE = "prose", 0.3  # it has the most kinds


@dataclass(frozen=True)
class TaskSet:
    """vectors: (T, E). members: T arrays of (folder, row) pairs."""

    folder: str
    vectors: Tensor
    members: list[Ints]


@dataclass(frozen=True)
class Scene:
    """vectors: (T, E). figures: (M, T) as shown. own: (B,) each instruction's task. truth: (B, M).
    asked: (B,) of (folder, row)."""

    vectors: Tensor
    figures: Tensor
    own: Tensor
    truth: Tensor
    asked: list[tuple[str, int]]


class SceneSampler:
    """Draws scenes from the training rows of some folders."""

    def __init__(self, folders: Mapping[str, Folder], names: list[str], seed: int) -> None:
        self._random = np.random.default_rng([seed, 7])
        self._device = next(iter(folders.values())).tokens.device
        self._of: dict[str, list[TaskSet]] = {}
        for name in names:
            folder = folders[name]
            found = []
            for test in folder.tests[1:]:
                group = test.group.cpu().numpy()
                rows = folder.rows(0)
                members = [rows[group[rows] == t] for t in range(len(test.vectors))]
                found.append(TaskSet(name, test.vectors, members))
            if found:
                self._of[name] = found

    def scene(self, size: int, candidates: int) -> Scene:
        """`size` instructions of the tasks of one task set, or of several folders' task sets."""
        random = self._random
        names = list(self._of)
        count = 1 if random.random() < 0.5 else int(random.integers(2, 5))
        parts = [str(n) for n in random.permutation(names)[:count]]
        if PROSE in self._of and PROSE not in parts and random.random() < PROSE_SHARE:
            parts[0] = PROSE
        vectors, members = [], []
        for name in parts:
            task_set = self._of[name][random.integers(len(self._of[name]))]
            usable = [t for t, m in enumerate(task_set.members) if len(m) >= LEAST]
            most = 50 // count
            chosen = random.permutation(usable)[: random.integers(2, most + 1)]
            vectors.append(task_set.vectors[torch.from_numpy(chosen).to(self._device)])
            members += [(name, task_set.members[t]) for t in chosen]
        own = random.integers(len(members), size=size)
        asked = [(members[t][0], int(random.choice(members[t][1]))) for t in own]
        figures, shown = self._figures(len(members), candidates)
        at = torch.from_numpy(own).to(self._device)
        return Scene(torch.cat(vectors), shown, at, figures[:, at].T, asked)

    def _figures(self, tasks: int, candidates: int) -> tuple[Tensor, Tensor]:
        """(M, T) true and shown: a level, tasks easy or hard for all, strengths of one's own."""
        random = self._random
        level = random.normal(0.3, 1.0, (candidates, 1))
        hard = random.normal(0, random.choice([0.0, 0.7, 1.5]), (1, tasks))
        own = random.normal(0, 1, (candidates, tasks)) * random.choice([0.2, 0.7, 1.5])
        p = 1 / (1 + np.exp(-(level + hard + own)))
        n = random.choice(QUESTIONS)
        shown = random.binomial(n, p) / n if random.random() < 0.5 else p
        pair = torch.from_numpy(np.stack([p, shown]).astype(np.float32)).to(self._device)
        return pair[0], pair[1]


def gathered(
    folders: Mapping[str, Folder], asked: list[tuple[str, int]], extra: int
) -> tuple[Tensor, Tensor]:
    """tokens (B, L), lengths (B,) of instructions of several folders; L as Folder.batch has it."""
    device = next(iter(folders.values())).tokens.device
    lengths = [int(folders[n].lengths[0, r]) for n, r in asked]
    longest = -(-(max(lengths) + extra) // 8) * 8 - extra
    tokens = torch.zeros(len(asked), longest, dtype=torch.int64, device=device)
    for i, (name, row) in enumerate(asked):
        start = int(folders[name].starts[0, row])
        tokens[i, : lengths[i]] = folders[name].tokens[start : start + lengths[i]]
    return tokens, torch.tensor(lengths, device=device)
