"""Figures, trade-offs and baselines on outcomes whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from bench.process import ROOT
from engine import calibrate, tradeoff
from engine.calibrate import Target
from engine.cli import main as modelsat
from engine.policy import Policy, choose
from tests import folders
from training import baselines, evaluate, metrics
from training.baselines import Rows

BUNDLE = ROOT / "artifacts" / "bundle"


def made_up(rows: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p, outcomes drawn from p, and costs, of four candidates; the dear ones are better."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (rows, 1)) + np.array([-1.0, -0.5, 0.3, 1.0])
    p = 1 / (1 + np.exp(-logits - random.normal(0, 0.8, (rows, 4))))
    outcomes = (random.random(p.shape) < p).astype(float)
    costs = np.array([1.0, 2.0, 10.0, 40.0]) * random.uniform(0.5, 2, (rows, 1)) * 1e-5
    return p, outcomes, costs


def test_within_auc_is_the_mean_of_each_row() -> None:
    p, outcomes, _ = made_up(60)
    outcomes[0, 0] = np.nan
    expected = []
    for row, truth in zip(p, outcomes, strict=True):
        known = ~np.isnan(truth)
        if len(set(truth[known])) == 2:
            expected.append(roc_auc_score(truth[known], row[known]))
    assert metrics.within_auc(p, outcomes) == pytest.approx(np.mean(expected))
    flat = np.full_like(p, 0.5)
    assert metrics.within_auc(flat, outcomes) == 0.5


def test_probabilities_that_tell_the_truth_are_calibrated() -> None:
    p, outcomes, _ = made_up(20000)
    assert metrics.ece(p, outcomes) < 0.01
    assert metrics.ece(p**2, outcomes) > 0.05
    assert metrics.brier(p, outcomes) < metrics.brier(p**2, outcomes)
    low, high = metrics.interval(lambda r: metrics.brier(p[r], outcomes[r]), 500)
    assert low < metrics.brier(p[:500], outcomes[:500]) < high


@given(st.integers(0, 2**32 - 1))
def test_the_full_block_has_no_gap(seed: int) -> None:
    random = np.random.default_rng(seed)
    outcomes = random.random((12, 5))
    outcomes[random.random(outcomes.shape) < random.random()] = np.nan
    block = tradeoff.full_block(outcomes)
    assert not np.isnan(outcomes[np.ix_(block.rows, block.candidates)]).any()
    whole = (~np.isnan(outcomes)).all(axis=1).sum() * 5
    assert len(block.rows) * len(block.candidates) >= whole


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(0, 20))
def test_the_curve_takes_whom_the_policy_takes(seed: int, value: float) -> None:
    p, outcomes, costs = made_up(5, seed)
    ids = ["a", "b", "c", "d"]
    policy = Policy("cost_sensitivity", value)
    taken = [choose(ids, p[i], list(costs[i]), policy).order[0] for i in range(5)]
    found = tradeoff.point(p, outcomes, costs, value)
    rows = np.arange(5)
    assert found.accuracy == pytest.approx(outcomes[rows, taken].mean())
    assert found.cost == pytest.approx(costs[rows, taken].mean())


def test_a_mix_of_two_costs_what_the_line_between_them_says() -> None:
    accuracies, costs = np.array([0.5, 0.6, 0.9]), np.array([1.0, 5.0, 9.0])
    assert tradeoff.mix_cost(accuracies, costs, 0.7) == pytest.approx(5.0)  # half of 1, half of 9
    assert tradeoff.mix_cost(accuracies, costs, 0.95) == np.inf
    assert tradeoff.mix_cost(accuracies, costs, 0.4) == 1.0


def test_good_probabilities_save_money_and_calibrate_says_how_much() -> None:
    p, outcomes, costs = made_up(4000)
    names = ["a", "b", "c", "d"]
    found = calibrate.recommend(p, outcomes, costs, names, Target(0.97, None))
    assert found.best == "d"
    assert found.point is not None
    assert found.point.accuracy >= 0.97 * found.accuracy
    assert found.point.cost < 0.6 * found.cost
    cheap = calibrate.recommend(p, outcomes, costs, names, Target(None, 0.3)).point
    assert cheap is not None
    assert cheap.cost <= 0.3 * found.cost
    assert calibrate.recommend(p, outcomes, costs, names, Target(2.0, None)).point is None


def rows_of(seed: int, count: int) -> Rows:
    """Candidates 0 and 1 do well where the first, or the second, coordinate is positive."""
    random = np.random.default_rng(seed)
    x = random.normal(0, 1, (count, 8)).astype(np.float32)
    p = 1 / (1 + np.exp(-4 * x[:, :2].T))
    scores = np.concatenate([p, p[::-1]])
    drawn = (random.random(scores.shape) < scores).astype(np.float32)
    drawn[0, :5] = np.nan
    return Rows(x, drawn, ["left" if v > 0 else "right" for v in x[:, 0]])


def test_baselines_learn_what_there_is_to_learn() -> None:
    train, validation, test = rows_of(0, 1500), rows_of(1, 200), rows_of(2, 400)
    figures = np.eye(2, dtype=np.float32)[[0, 1, 1, 0]]
    found = baselines.seen_baselines(train, validation, test, figures)
    auc = {name: metrics.pooled_auc(p, test.scores.T) for name, p in found.items()}
    assert abs(auc["random"] - 0.5) < 0.06
    assert abs(auc["candidate mean"] - 0.5) < 0.1
    assert auc["subject mean"] > 0.65
    for name in ("kNN", "logistic regression", "MLP", "bilinear"):
        assert auc[name] > 0.8, name
    seen = Rows(train.x, train.scores[:2], train.subjects)
    held = Rows(validation.x, validation.scores[:2], validation.subjects)
    unseen = baselines.unseen_baselines(seen, held, test, figures[:2], figures[2:])
    for name in ("bilinear", "aptitude-weighted kNN"):
        assert metrics.pooled_auc(unseen[name], test.scores[2:].T) > 0.8, name


def test_a_folder_is_evaluated_through_the_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that `make evaluate` runs, then `modelsat calibrate` on the same folder."""
    data = folders.write(tmp_path / "own", aptitude=False, subjects=2)
    names = [f"c{i}" for i in range(folders.CANDIDATES)]
    base = json.loads((BUNDLE / "zoo.json").read_text())["candidates"][0]
    price = {"input_usd_per_million": 1.0, "output_usd_per_million": 2.0, "price_source": "test"}
    zoo = [base | price | {"id": n, "display_name": n} for n in names]
    (tmp_path / "zoo.json").write_text(json.dumps({"candidates": zoo}))
    out = tmp_path / "out"
    words = ["--bundle", str(BUNDLE), "--data", str(data), "--zoo", str(tmp_path / "zoo.json")]
    monkeypatch.setattr("sys.argv", ["evaluate", *words, "--out", str(out)])
    evaluate.main()
    capsys.readouterr()
    found = json.loads((out / "report.json").read_text())["datasets"]["own"]
    for figure in (
        "pooled_auc",
        "within_auc",
        "brier",
        "ece",
        "routed_accuracy",
        "best_single_accuracy",
        "random_accuracy",
        "oracle_accuracy",
        "cost_at_95",
    ):
        low, high = found[f"{figure}_ci"]
        assert low <= found[figure] <= high or np.isnan(found[figure]), figure
    assert found["random_accuracy"] <= found["best_single_accuracy"] <= found["oracle_accuracy"]
    assert set(found["by_candidate"]) == set(names)
    for name in ("report.md", "own-reliability.png", "own-cost.png"):
        assert (out / name).stat().st_size > 0
    target = ["--min-quality", "0.5", "--json"]
    assert modelsat(["calibrate", *words, *target]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["recommended"]["quality"] >= 0.5
    assert modelsat(["calibrate", *words, "--max-cost", "1.0"]) == 0
    assert "-> cost sensitivity" in capsys.readouterr().out
    assert modelsat(["calibrate", *words[:4], "--min-quality", "0.9"]) == 1
    assert "at least 2 are needed" in capsys.readouterr().err
