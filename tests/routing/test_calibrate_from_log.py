"""`modelsat calibrate` from single outcomes of a server that explores, against the outcomes of all
candidates, which the simulation knows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engine.api.errors import InvalidInputError
from engine.cli.main import main as modelsat
from engine.datasets.outcomes import read_outcomes
from engine.inference.offline import OfflineScores
from engine.routing import calibration, tradeoff
from engine.routing.calibration import CalibrationTarget
from tests.support import datasets
from tools.processes import BUNDLE

NAMES = ["a", "b", "c", "d"]
TARGET = CalibrationTarget(0.85, None)
Traffic = tuple[np.ndarray, np.ndarray, np.ndarray]


def traffic(rows: int, seed: int = 0) -> Traffic:
    """p, outcomes of all candidates, and costs; the expensive candidates are better, and p is
    noisy and too low."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1, (rows, 1)) + np.array([-1.0, -0.3, 0.3, 1.0])
    outcomes = (random.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
    p = 1 / (1 + np.exp(-logits - random.normal(0, 0.5, logits.shape) + 0.7))
    costs = np.array([1.0, 2.0, 10.0, 40.0]) * random.uniform(0.5, 2, (rows, 1)) * 1e-5
    return p, outcomes, costs


def log_of(made: Traffic, share: float, seed: int = 1, times: int = 1) -> Traffic:
    """(outcomes, propensities, texts' number) as a server records them that takes the highest p or,
    with `share`, one of the others; each text is routed `times` times."""
    p, outcomes, _ = made
    random = np.random.default_rng(seed)
    rows, others = np.arange(len(p)), p.shape[1] - 1
    best = p.argmax(axis=1)
    weight = np.zeros(p.shape)
    for _ in range(times):
        drawn = (best + random.integers(1, others + 1, len(p))) % (others + 1)
        explored = random.random(len(p)) < share
        chosen = np.where(explored, drawn, best)
        weight[rows, chosen] += 1 / np.where(explored, share / others, 1 - share)
    chosen_once = weight > 0
    logged = np.where(chosen_once, outcomes, np.nan)
    propensities = np.where(chosen_once, times / np.where(chosen_once, weight, 1), np.nan)
    return logged, propensities, rows


@pytest.mark.parametrize("estimator", ["inverse-propensity", "doubly-robust"])
@pytest.mark.parametrize("times", [1, 3])
def test_the_curve_is_that_of_the_outcomes_of_all_candidates(
    estimator: calibration.Estimator, times: int
) -> None:
    made = traffic(6000)
    p, outcomes, costs = made
    logged, propensities, _ = log_of(made, 0.5, times=times)
    found = calibration.recommend_from_log(p, logged, propensities, costs, NAMES, TARGET, estimator)
    truth = tradeoff.curve(p, outcomes, costs)
    for point, true in zip(found.points, truth, strict=True):
        assert point.standard_error is not None
        assert 0 < point.standard_error < 0.05
        assert point.accuracy == pytest.approx(true.accuracy, abs=4.5 * point.standard_error)
        assert point.cost == pytest.approx(true.cost)
        np.testing.assert_allclose(point.shares, true.shares)
    assert found.best == "d"
    whole = calibration.recommend(p, outcomes, costs, NAMES, TARGET)
    assert found.point is not None
    assert whole.point is not None
    assert found.point.cost == pytest.approx(whole.point.cost, rel=0.35)


def test_probabilities_that_are_wrong_mislead_neither_estimate() -> None:
    """The model's own opinion of its choices is far off here, and outcomes correct it."""
    made = traffic(6000)
    p, outcomes, costs = made
    logged, propensities, _ = log_of(made, 0.5)
    selected = tradeoff.select(p, costs, 10.0)
    rows = np.arange(len(p))
    truth = outcomes[rows, selected].mean()
    assert abs(p[rows, selected].mean() - truth) > 0.05
    found = calibration.estimate_choices(p, logged, propensities, selected)
    assert found.doubly_robust.value == pytest.approx(truth, abs=0.03)
    assert found.inverse_propensity.value == pytest.approx(truth, abs=0.03)


def test_a_candidate_that_was_hardly_drawn_is_neither_best_nor_recommended() -> None:
    p, outcomes, costs = traffic(300)
    outcomes = outcomes.copy()
    outcomes[:, 0] = 1.0  # the cheapest is always right, but only ten outcomes say so
    logged, propensities = np.full(p.shape, np.nan), np.full(p.shape, np.nan)
    for column, rows in ((3, slice(0, 290)), (0, slice(290, 300))):
        logged[rows, column], propensities[rows, column] = outcomes[rows, column], 0.5
    found = calibration.recommend_from_log(
        p, logged, propensities, costs, NAMES, CalibrationTarget(0.1, None), "doubly-robust"
    )
    assert found.best == "d"
    assert found.point is None or (found.point.effective_outcomes or 0) >= 30
    with pytest.raises(InvalidInputError, match=r"at most 10 outcomes of one .* 30 and 50%"):
        calibration.recommend_from_log(
            p[290:], logged[290:], propensities[290:], costs[290:], NAMES, TARGET, "doubly-robust"
        )


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder as an exploring server's outcomes are exported, scored in no time."""
    path = datasets.write(tmp_path / "own")
    random = np.random.default_rng(2)
    scores = np.nan_to_num(np.load(path / "scores.npz")["scores"].astype(np.float32))
    chosen = random.integers(len(scores), size=scores.shape[1])
    one = chosen == np.arange(len(scores))[:, None]
    np.savez(
        path / "scores.npz",
        scores=np.where(one, scores, np.nan),
        propensities=np.where(one, 0.25, np.nan),
    )
    base = json.loads((BUNDLE / "zoo.json").read_text())["candidates"][0]
    prices = {f"c{i}": float(i + 1) for i in range(len(scores))}
    catalog = [
        base
        | {"id": name, "display_name": name, "price_source": "test"}
        | {"input_usd_per_million": usd, "output_usd_per_million": 2 * usd}
        for name, usd in prices.items()
    ]
    (tmp_path / "zoo.json").write_text(json.dumps({"candidates": catalog}))
    monkeypatch.setattr(
        calibration,
        "score_outcomes",
        lambda _, outcomes: OfflineScores(
            traffic(len(outcomes.texts))[0].astype(np.float32),
            np.arange(1, len(outcomes.texts) + 1),
            np.zeros((len(outcomes.texts), 2), np.float32),
        ),
    )
    monkeypatch.setattr(calibration, "MIN_EFFECTIVE_OUTCOMES", 10)
    monkeypatch.setattr(calibration, "MIN_COVERAGE", 0.3)
    return path


def test_calibrate_prints_standard_errors_of_estimates(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    arguments = ["calibrate", "--data", str(folder), "--catalog", str(folder.parent / "zoo.json")]
    arguments += ["--min-accuracy-ratio", "0.5", "--estimator", "doubly-robust"]
    modelsat([*arguments, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["best_single"]["candidate"] in ("c2", "c3")
    for point in found["curve"]:
        assert point["standard_error"] > 0
        assert 1 <= point["effective_outcomes"] <= datasets.INSTRUCTIONS
        assert point["coverage"] == pytest.approx(1, abs=0.5)
    modelsat(arguments)
    said = capsys.readouterr().out
    assert "standard error" in said
    assert "worth outcomes" in said
    assert "covered" in said


def test_a_folder_without_propensities_names_the_setting_that_gives_them(folder: Path) -> None:
    scores = np.load(folder / "scores.npz")["scores"]
    np.savez(folder / "scores.npz", scores=scores)
    assert read_outcomes(folder).propensities is None
    with pytest.raises(InvalidInputError, match=r"has no propensities; .*--exploration-share"):
        calibration.calibrate(BUNDLE, folder, folder.parent / "zoo.json", TARGET, "doubly-robust")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p[:, 1:], r"propensities is \(4, 79\), expected \(4, 80\)"),
        (lambda p: np.where(np.isnan(p), p, 0.0), "a propensity is 0, negative or infinite"),
        (lambda p: np.where(np.isnan(p), p, np.inf), "a propensity is 0, negative or infinite"),
        (lambda p: -p, "a propensity is 0, negative or infinite"),
    ],
)
def test_propensities_that_are_none_are_refused(folder: Path, change: object, words: str) -> None:
    arrays = dict(np.load(folder / "scores.npz"))
    arrays["propensities"] = change(arrays["propensities"])  # type: ignore[operator]
    np.savez(folder / "scores.npz", **arrays)
    with pytest.raises(InvalidInputError, match=words):
        read_outcomes(folder)


def test_propensities_follow_their_instructions_and_candidates(folder: Path) -> None:
    outcomes = read_outcomes(folder)
    assert outcomes.propensities is not None
    assert outcomes.propensities.shape == outcomes.scores.shape
    np.testing.assert_array_equal(np.isnan(outcomes.propensities), np.isnan(outcomes.scores))
    part = outcomes.take(np.array([3, 1])).take_candidates(np.array([2, 0]))
    assert part.propensities is not None
    np.testing.assert_array_equal(part.propensities, outcomes.propensities[np.ix_([2, 0], [3, 1])])
