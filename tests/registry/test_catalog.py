"""Catalogs of candidates: made from a data folder, written, and read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.api.candidate import Candidate, TaskResult, validate
from engine.api.errors import InvalidInputError
from engine.bundle.arrays import TaskNorms, load_arrays
from engine.datasets.outcomes import read_outcomes
from engine.inference.offline import candidates_of
from engine.registry.catalog import read_catalog, require_readable_test
from engine.registry.onnx_encoder import load_encoder
from tests.support import datasets
from tools.processes import ROOT
from training.data.catalog import catalog_of, id_for, refresh, task_results, write

BUNDLE = ROOT / "artifacts" / "bundle"
SHIPPED = ROOT / "pretrained" / "zoo.json"


@given(
    st.lists(st.one_of(st.just(np.nan), st.floats(0, 1)), min_size=1, max_size=70).filter(
        lambda figures: not np.isnan(figures).all()
    ),
    st.integers(1, 8),
)
def test_any_aptitude_test_makes_valid_task_results(accuracies: list[float], words: int) -> None:
    keywords = [", ".join([f"task {t}", *["word"] * (words - 1)]) for t in range(len(accuracies))]
    figures = task_results(keywords, np.array(accuracies, dtype=np.float32))
    assert not validate(Candidate("c", figures))
    kept = np.array(accuracies)[~np.isnan(accuracies)][:50]
    mean = np.mean([f.accuracy for f in figures])
    unequal = len(kept) / 50 * 0.25 if 50 % len(kept) else 0  # spread of a remainder over 50
    assert abs(mean - kept.mean()) <= unequal + 1e-4


@pytest.mark.skipif(not (BUNDLE / "manifest.json").is_file(), reason="needs artifacts/bundle")
def test_short_aptitude_test_is_embedded_close_to_training(tmp_path: Path) -> None:
    outcomes = read_outcomes(datasets.write(tmp_path / "data", aptitude=False, subjects=2))
    encoder = load_encoder(BUNDLE, load_arrays(BUNDLE))
    seen = np.stack([encoder.encode(c) for c in candidates_of(outcomes)])
    served = np.stack([encoder.encode(c) for c in catalog_of(outcomes, [])])
    # A training run of one's own knows the means of its tasks.
    means = dict(
        zip(outcomes.test.keywords, np.nanmean(outcomes.test.accuracies, axis=0), strict=True)
    )
    norms = TaskNorms(np.zeros(1, dtype=np.float32), means)
    (served_tasks,) = {tuple(r.task for r in c.aptitude) for c in catalog_of(outcomes, [])}
    assert not np.isnan(norms.of(served_tasks)).any()
    spread = np.linalg.norm(seen - seen.mean(axis=0), axis=-1).mean()
    assert np.linalg.norm(seen - served, axis=-1).max() < 0.15 * spread


def test_catalog_keeps_metadata_of_known_candidates(tmp_path: Path) -> None:
    outcomes = read_outcomes(datasets.write(tmp_path / "data"))
    figures = (TaskResult("old", 0.5),) * 50
    known = [
        Candidate("elsewhere", figures),
        Candidate("second", figures, "c1", input_usd_per_million=2.0),
    ]
    every = catalog_of(outcomes, known)
    assert [c.id for c in every] == ["c0", "second", "c2", "c3"]
    assert every[1].input_usd_per_million == 2.0
    again = refresh(known, outcomes)
    assert again == [known[0], every[1]]
    write(every, "made up", tmp_path / "zoo.json")
    assert read_catalog(tmp_path / "zoo.json") == every


def test_names_become_ids_and_duplicates_are_refused(tmp_path: Path) -> None:
    assert id_for("Llama-3.1-405B-Inst@sambanova") == "llama-3.1-405b-inst-sambanova"
    folder = datasets.write(tmp_path / "data", aptitude=False)
    names = [{"name": n} for n in ("A/B", "a b", "C", "D")]
    (folder / "candidates.json").write_text(json.dumps(names))
    with pytest.raises(InvalidInputError, match="names are unique"):
        catalog_of(read_outcomes(folder), [])


def test_shipped_catalog_has_the_format_that_is_written(tmp_path: Path) -> None:
    about = json.loads(SHIPPED.read_text(encoding="utf-8"))["about"]
    write(read_catalog(SHIPPED), about, tmp_path / "zoo.json")
    assert (tmp_path / "zoo.json").read_text() == SHIPPED.read_text()


def test_catalog_of_version_0_1_is_read(tmp_path: Path) -> None:
    candidate = read_catalog(ROOT / "pretrained" / "zoo.json")[0]
    entry = json.loads((ROOT / "pretrained" / "zoo.json").read_text())["candidates"][0]
    entry.pop("mean_output_tokens", None)
    (tmp_path / "zoo.json").write_text(json.dumps([entry | {"mean_answer_tokens": 321}]))
    (read,) = read_catalog(tmp_path / "zoo.json")
    assert read.mean_output_tokens == 321
    assert read.id == candidate.id


@pytest.mark.parametrize(
    ("provenance", "words"),
    [
        ({"asked": 0}, "without a graded question"),
        ({"asked": 5, "tasks": {"t": {"asked": 0}}}, "without a graded question"),
        ({"asked": 5, "incomplete": 5}, "without a graded question"),
        ({"asked": float("nan")}, "without a graded question"),
        ({"asked": 100, "unparsed": 4, "incomplete": 3}, "7 unreadable replies of 100"),
    ],
)
def test_a_report_that_says_little_is_not_registered(
    provenance: dict[str, Any], words: str
) -> None:
    path = Path("report.json")
    with pytest.raises(InvalidInputError, match=words):
        require_readable_test({"candidates": [], "provenance": provenance}, path)
    few = {"candidates": [], "provenance": {"asked": 100, "unparsed": 5}}
    require_readable_test(few, path)
    many = {"candidates": [], "provenance": {"asked": 9, "unparsed": 9}}
    require_readable_test(many, path, accept_unreadable=True)


@pytest.mark.parametrize(
    ("accuracy", "advice"),
    [("NaN", "ask its questions again"), ("85", "in percent, give 0.85"), ("-0.1", "a share")],
)
def test_an_accuracy_that_is_no_share_says_what_to_do(
    accuracy: str, advice: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    tasks = ", ".join(f'"task {i}": {accuracy if i == 3 else 0.5}' for i in range(50))
    path.write_text(f'{{"id": "x", "aptitude": {{{tasks}}}}}')
    with pytest.raises(InvalidInputError, match=advice):
        read_catalog(path)
