"""What the measured figures of a memory say of folders whose truth is known."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.adaptation.outcome_matrix import PROVENANCES
from engine.bundle.instruction_space import InstructionSpace
from engine.datasets.outcomes import Outcomes, read_outcomes
from engine.inference.offline import OfflineScores
from tests.adaptation.test_fit import World
from tests.support import datasets
from tools.processes import BUNDLE
from training.evaluation import evaluate, memory, score_cache
from training.evaluation.memory import Feedback, MemoryTrial
from training.evaluation.score_cache import score_once
from training.evaluation.unfamiliarity import Unfamiliar, errors_by_tenth


def trial(feedback: Feedback = "comparisons", rows: int = 500) -> MemoryTrial:
    drawn = World.of(1).draw(rows, 4)
    p = 1 / (1 + np.exp(-drawn.logits.astype(np.float64)))
    costs = np.broadcast_to(np.array([1.0, 2, 3, 4, 5]), p.shape)
    space = InstructionSpace.unknown(drawn.embeddings.shape[1])
    return MemoryTrial(p, drawn.scores, costs, drawn.embeddings, space, feedback, 0.5)


def test_more_comparisons_are_better_and_none_change_nothing() -> None:
    found = memory.measure_memory(trial(), [0, 50, 200, 400], draws=3)
    assert list(found) == ["0", "50", "200"]  # 400 of 500 leave too few to route
    assert found["0"]["pooled_auc"] == found["0"]["pooled_auc_before"]
    aucs = [found[n]["pooled_auc"] for n in found]
    assert aucs == sorted(aucs)
    assert found["200"]["apgr"] > found["200"]["apgr_before"] + 0.1
    assert found["200"]["guarded_gain"] > 0
    low, high = found["200"]["routed_accuracy_range"]
    assert low <= found["200"]["routed_accuracy"] <= high


@pytest.mark.parametrize("feedback", ["chosen", "explored"])
def test_one_outcome_an_instruction_comes_back_and_says_how(feedback: Feedback) -> None:
    case = trial(feedback)
    matrix = memory.remember(case, np.arange(400), np.random.default_rng(0))
    known = ~np.isnan(matrix.scores)
    assert (known.sum(axis=1) == 1).all()
    choice = case.p[:400].argmax(axis=1)
    share = float((matrix.provenance == PROVENANCES.index("explored")).any(axis=1).mean())
    assert share == 0 if feedback == "chosen" else 0.06 < share < 0.14
    drawn = (matrix.provenance == PROVENANCES.index("explored")).any(axis=1)
    assert (known.argmax(axis=1) == choice)[~drawn].all()


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_candidates_that_are_equal_on_what_is_remembered_are_one_constant(
    order: tuple[int, ...],
) -> None:
    """Kind: a gain that depends on which of two equal candidates stands first."""
    known = np.array([[1, 0, 0], [0, 1, 0]])[:, order].astype(float)  # two have half of them right
    y = np.array([[1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 0, 0]])[:, order].astype(float)  # 1, 1/4
    p = np.broadcast_to(np.array([0.9, 0.5, 0.1])[list(order)], y.shape)
    space = InstructionSpace.unknown(8)
    case = MemoryTrial(p, y, np.ones_like(y), np.zeros((4, 8), dtype=np.float32), space)
    found = memory._routing(p, p, y, case.costs, known, None, case)
    assert found["routed_gain"] == pytest.approx(1 - 0.625)


def test_a_mixture_keeps_each_folder_to_its_own_candidates() -> None:
    both = memory.mixture([trial(), trial()])
    assert both.p.shape == (1000, 10)
    found = memory.measure_memory(both, [200], draws=2)["200"]
    alone = memory.measure_memory(trial(), [200], draws=2)["200"]
    assert found["pooled_auc"] > found["pooled_auc_before"]
    assert 0 < found["routed_accuracy"] <= 1
    assert found["routed_accuracy"] == pytest.approx(alone["routed_accuracy"], abs=0.08)


def test_apgr_of_truth_chance_and_opposite() -> None:
    random = np.random.default_rng(0)
    y = np.stack([random.random(2000) < 0.8, random.random(2000) < 0.5], axis=1).astype(float)
    assert memory.apgr(y, y) > 0.9
    assert memory.apgr(random.random(y.shape), y) == pytest.approx(0.5, abs=0.05)
    assert memory.apgr(-y, y) < 0.1


def test_the_report_has_a_key_for_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = datasets.write(tmp_path / "folder")
    arguments = ["--data", str(folder), "--out", str(tmp_path / "out")]
    arguments += ["--memory", "0", "5", "1000"]
    monkeypatch.setattr(
        sys, "argv", ["evaluate", "--bundle", str(BUNDLE), *arguments, "--draws", "2"]
    )
    evaluate.main()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    found = report["datasets"]["folder"]["memory"]
    assert {"pooled_auc", "apgr", "log_loss", "ece", "guarded_gain"} <= set(found["5"])
    assert (tmp_path / "out" / "memory.png").stat().st_size > 1000
    printed = capsys.readouterr()
    assert "5 remembered: pooled_auc" in printed.out
    assert "leaving out --memory 1000, because under 40 % of its" in printed.err


def test_scores_are_kept_for_another_evaluation_of_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = read_outcomes(datasets.write(tmp_path / "folder"))
    calls = []

    def scored(bundle: Path, given: Outcomes, *, matched: bool) -> OfflineScores:
        calls.append(given)
        shape = len(given.texts), len(given.candidates)
        p = np.random.default_rng(len(calls)).random(shape).astype(np.float32)
        return OfflineScores(p, np.arange(shape[0]), p)

    monkeypatch.setattr(score_cache, "score_outcomes", scored)
    first = score_once(BUNDLE, outcomes, tmp_path / "scores")
    again = score_once(BUNDLE, outcomes, tmp_path / "scores")
    assert len(calls) == 1
    np.testing.assert_array_equal(first.p, again.p)
    fewer = outcomes.take(np.arange(len(outcomes.texts) - 1))
    stronger = replace(outcomes.test, accuracies=outcomes.test.accuracies / 2)
    for other in (fewer, replace(outcomes, test=stronger)):
        assert len(score_once(BUNDLE, other, tmp_path / "scores").p) == len(other.texts)
    score_once(BUNDLE, outcomes, tmp_path / "scores", matched=False)
    score_once(BUNDLE, outcomes, None)
    assert len(calls) == 5


def test_calibration_error_rises_with_a_score_that_knows_and_not_with_chance() -> None:
    random = np.random.default_rng(0)
    p = random.random((4000, 3))
    wrong = random.random(4000)
    y = (random.random(p.shape) < p + (1 - 2 * p) * wrong[:, None]).astype(float)
    chance = random.random(4000)
    halves = [
        Unfamiliar(p[rows], y[rows], {"knows": wrong[rows], "chance": chance[rows]})
        for rows in (slice(0, 2000), slice(2000, 4000))
    ]
    errors = errors_by_tenth(halves, "knows")
    assert errors[-1] > 0.4
    assert errors[0] < 0.08
    assert np.ptp(errors_by_tenth(halves, "chance")) < 0.1
