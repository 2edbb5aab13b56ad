"""Test how everyday prompts and texts that are no instructions are learned."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from engine.api.errors import BundleError
from engine.bundle.arrays import load_arrays
from engine.bundle.task_places import load_task_places, normalized
from tests.support import datasets
from tools.processes import BUNDLE, ROOT
from training.difficulty import fit


def places(kind: int, count: int, seed: int) -> np.ndarray:
    noise = 0.3 * np.random.default_rng(seed).standard_normal((count, 16))
    return normalized((np.eye(16)[kind] + noise).astype(np.float32))


def test_a_classifier_knows_new_places_of_its_kind_and_weighs_kinds_not_rows() -> None:
    found = fit.classify(
        places(0, 300, 0), [(places(1, 20, 1), 2000.0), (places(2, 900, 2), 200.0)], 0.1
    )
    share = {k: 1 / (1 + np.exp(-(places(k, 200, 9) @ found[:-1] + found[-1]))) for k in range(3)}
    assert share[0].mean() > 0.9
    assert max(share[1].mean(), share[2].mean()) < 0.1


def test_few_known_instructions_are_far_after_calibration() -> None:
    known = np.concatenate([places(kind, 400, kind) for kind in range(1, 6)])
    found = fit.calibrate(fit.classify(places(0, 300, 0), [(known, 2000.0)], 0.1), known)
    share = 1 / (1 + np.exp(-(known @ found[:-1] + found[-1])))
    assert (share > fit.FAR).mean() == pytest.approx(1 - fit.KNOWN_SHARE, abs=0.001)


def test_options_are_taken_off_questions() -> None:
    question = "Which of these cities lies on the river Main?"
    texts = [f"{question}\nA. Bonn\nB. Frankfurt", f"{question}\nOptions: Bonn", question]
    assert fit.without_options(texts) == [question, question]


def test_the_bundle_has_the_shipped_classifiers() -> None:
    shipped, served = load_task_places(ROOT / "pretrained"), load_arrays(BUNDLE).places
    assert shipped is not None
    assert served is not None
    for one, other in ((shipped.everyday, served.everyday), (shipped.unusual, served.unusual)):
        assert one is not None
        assert other is not None
        assert (one == other).all()


def test_the_command_adds_to_the_places_of_tasks_and_refuses_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = datasets.write(tmp_path / "one", subjects=2)
    monkeypatch.setattr(fit, "everyday_prompts", lambda: ["Hello!", "How are you?", "2 + 2?"])
    monkeypatch.setattr(fit, "other_prompts", lambda: ["Prove it.", "Integrate sin(x) / x."])
    monkeypatch.setattr(fit, "unusual_texts", lambda: ["00 ff 3a 9c", "a1 b2 c3 d4"])
    arguments = ["--bundle", str(BUNDLE), "--data", str(folder), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["fit", *arguments])
    with pytest.raises(BundleError, match=r"no task_places\.npz"):
        fit.main()
    before = load_task_places(ROOT / "pretrained")
    assert before is not None
    fit.save_task_places(tmp_path, before)
    fit.main()
    after = load_task_places(tmp_path)
    assert after is not None
    assert after.id == before.id
    assert after.everyday is not None
    assert before.everyday is not None
    assert after.everyday.shape == before.everyday.shape
    assert not np.allclose(after.everyday, before.everyday)
