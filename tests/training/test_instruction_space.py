"""Test that the space describes all folders, and leaves the rest of its file alone."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.bundle.training_set import FILE, load_training_set
from engine.datasets.outcomes import read_outcomes
from engine.inference.offline import score_outcomes
from tests.support import datasets
from tools.processes import BUNDLE, ROOT
from training import instruction_space


def test_space_is_of_the_embeddings_that_scoring_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [datasets.write(tmp_path / name) for name in ("one", "two")]
    out = tmp_path / "weights"
    out.mkdir()
    shutil.copy(ROOT / "pretrained" / FILE, out)
    arguments = ["--data", *map(str, folders), "--texts", "4", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["instruction_space", "--bundle", str(BUNDLE), *arguments])
    instruction_space.main()
    known, before = load_training_set(out), load_training_set(ROOT / "pretrained")
    assert known is not None
    assert before is not None
    np.testing.assert_array_equal(known.fingerprints, before.fingerprints)
    np.testing.assert_array_equal(known.surprisal, before.surprisal)
    texts = instruction_space.sample_texts(folders, 4)
    assert len(texts) == 8
    parts = []
    for folder in folders:
        outcomes = read_outcomes(folder)
        rows = [i for i, text in enumerate(outcomes.texts) if text in texts]
        parts.append(score_outcomes(BUNDLE, outcomes.take(np.array(rows))).embeddings)
    expected = np.concatenate(parts).mean(axis=0)
    space = known.instruction_space
    assert space is not None
    assert np.linalg.norm(space.mean - expected) < 0.01 * np.linalg.norm(expected)


def test_axes_make_the_spread_more_even() -> None:
    random = np.random.default_rng(0)
    rows = (random.normal(size=(500, 6)) * [9, 3, 3, 1, 1, 0.1]).astype(np.float32)
    space = instruction_space.describe_space(rows, axes=5)
    spread = (rows - space.mean) @ space.axes
    deviations = spread.std(axis=0)
    assert deviations[0] / deviations[-1] < 4
    assert abs(np.corrcoef(spread.T)[np.triu_indices(5, 1)]).max() < 0.01
