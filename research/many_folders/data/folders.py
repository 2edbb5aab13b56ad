"""A packed folder (research/many_folders/data/pack.py) on the device.

Shapes: N instructions, M candidates, B instructions of a batch, L tokens of the longest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from research.many_folders.data.candidates import Test

Ints = NDArray[np.int64]
BUCKET = 64


@dataclass(frozen=True)
class Folder:
    """tokens: one after another; starts, lengths: (2, N) of the plain and the reworded form, the
    latter 0 long where there is none. scores: (M, N). part: (N,) 0 training, 1 validation, 2 test.
    clean, fresh: (N,) see research/many_folders/data/near_duplicates.py. vectors: (N, E). tests:
    the official one
    first. measured: candidates that count in figures."""

    name: str
    tokens: Tensor
    starts: Ints
    lengths: Ints
    scores: Tensor
    part: NDArray[np.int8]
    clean: NDArray[np.bool_]
    fresh: NDArray[np.bool_]
    vectors: Tensor
    tests: list[Test]
    measured: int
    benchmark: NDArray[np.int16]

    def rows(self, part: int) -> Ints:
        """Row numbers of the training (0), validation (1) or test (2) part."""
        return np.flatnonzero(self.part == part)

    def batch(self, rows: Ints, form: Ints, extra: int) -> tuple[Tensor, Tensor]:
        """tokens (B, L), lengths (B,) of `rows` in a form (B,) each; L and `extra` other rows
        make a multiple of 8, which attention kernels want."""
        device = self.tokens.device
        lengths = self.lengths[form, rows]
        longest = -(-(int(lengths.max()) + extra) // 8) * 8 - extra
        both = torch.from_numpy(np.stack([self.starts[form, rows], lengths])).to(device)
        steps = torch.arange(longest, device=device)
        index = (both[0][:, None] + steps).clamp(max=len(self.tokens) - 1)
        inside = steps < both[1][:, None]
        return self.tokens[index].long() * inside, both[1]

    def in_batches(self, rows: Ints, size: int, random: np.random.Generator | None) -> list[Ints]:
        """`rows` in batches of about equal length; in length order where nothing is random."""
        if random is None:
            ordered = rows[np.argsort(self.lengths[0, rows], kind="stable")]
            return [ordered[i : i + size] for i in range(0, len(ordered), size)]
        shuffled = random.permutation(rows)
        found = []
        for start in range(0, len(shuffled), size * BUCKET):
            bucket = shuffled[start : start + size * BUCKET]
            ordered = bucket[np.argsort(self.lengths[0, bucket], kind="stable")]
            found += [ordered[i : i + size] for i in range(0, len(ordered), size)]
        return [found[i] for i in random.permutation(len(found))]


def load_pack(path: Path, device: torch.device) -> dict[str, Folder]:
    """Every folder of a pack, by name."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    names = [entry["name"] for entry in json.loads(str(arrays["meta"]))]
    return {name: _folder(name, arrays, device) for name in names}


def _folder(name: str, arrays: Mapping[str, Any], device: torch.device) -> Folder:
    def of(key: str) -> Any:
        return arrays[f"{name}/{key}"]

    both = np.concatenate([of("tokens"), of("other_tokens")]).astype(np.int32)
    starts = np.stack([of("starts")[:-1], of("other_starts")[:-1] + len(of("tokens"))])
    lengths = np.stack([np.diff(of("starts")), np.diff(of("other_starts"))])
    scores = torch.from_numpy(of("scores").astype(np.float32)).to(device)
    part = of("part")
    vectors = of("vectors").astype(np.float32) * of("scale")
    tests = [_test(arrays, f"{name}/test{i}", scores, part, device) for i in range(of("task_sets"))]
    return Folder(
        name,
        torch.from_numpy(both).to(device),
        starts,
        lengths,
        scores,
        part,
        of("clean"),
        of("fresh"),
        torch.from_numpy(vectors).to(device),
        tests,
        int(of("measured")),
        of("benchmark"),
    )


def _test(
    arrays: Mapping[str, Any],
    prefix: str,
    scores: Tensor,
    part: NDArray[np.int8],
    device: torch.device,
) -> Test:
    def on(value: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(value)).to(device)

    group = arrays[f"{prefix}/group"].astype(np.int64)
    vectors = on(arrays[f"{prefix}/vectors"].astype(np.float32))
    means = on(arrays[f"{prefix}/means"])
    stated = f"{prefix}/item_scores" in arrays
    groups = int(group.max()) + 1
    if stated:
        subject = arrays[f"{prefix}/item_group"].astype(np.int64)
        groups = max(groups, int(subject.max()) + 1)
        items, task = on(arrays[f"{prefix}/item_scores"].astype(np.float32)), None
        task = on(arrays[f"{prefix}/item_task"].astype(np.int64))
        figures, counts = on(arrays[f"{prefix}/figures"]), on(arrays[f"{prefix}/counts"])
        row_of, weight = torch.full((len(subject),), -1, device=device), None
        subject = on(subject)
    else:
        rows = np.flatnonzero((part == 0) & (group >= 0))
        items, row_of = scores[:, on(rows)], on(rows)
        subject = task = on(group[rows])
        figures = counts = None
        rate = items.nanmean(dim=0).nan_to_num(0.5)
        weight = rate * (1 - rate) + 0.01
    group = on(np.where(group < 0, groups, group))
    return Test(
        vectors, means, group, groups, items, task, subject, weight, row_of, figures, counts
    )
