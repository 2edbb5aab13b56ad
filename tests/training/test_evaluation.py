"""Figures, trade-offs and baselines on outcomes whose truth is known."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from sklearn.metrics import roc_auc_score

from engine.api.errors import InvalidInputError
from engine.api.policy import Policy
from engine.cli import calibrate as calibrate_command
from engine.cli.main import main as modelsat
from engine.datasets.aptitude_test import AptitudeTest
from engine.datasets.outcomes import Outcomes
from engine.inference.offline import OfflineScores
from engine.routing import calibration, tradeoff
from engine.routing.calibration import CalibrationTarget
from engine.routing.ranking import rank
from research import baselines, releases
from research.baselines import Rows
from tests.support import datasets
from tools.processes import ROOT
from training.evaluation import evaluate, metrics, mixture
from training.evaluation.scored import ScoredDataset

BUNDLE = ROOT / "artifacts" / "bundle"
EMBEDDINGS = np.empty((0, 0), np.float32)  # not read by these figures


def made_up(rows: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p, outcomes drawn from p, and costs, of four candidates; the dear ones are better."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (rows, 1)) + np.array([-1.0, -0.5, 0.3, 1.0])
    p = 1 / (1 + np.exp(-logits - random.normal(0, 0.8, (rows, 4))))
    outcomes = (random.random(p.shape) < p).astype(float)
    costs = np.array([1.0, 2.0, 10.0, 40.0]) * random.uniform(0.5, 2, (rows, 1)) * 1e-5
    return p, outcomes, costs


def scored(
    p: np.ndarray,
    y: np.ndarray,
    costs: np.ndarray | None = None,
    training: np.ndarray | None = None,
    benchmarks: list[str] | None = None,
) -> ScoredDataset:
    """A folder of one benchmark, with candidates c0, c1, ..."""
    names, texts = [f"c{i}" for i in range(p.shape[1])], ["q"] * len(p)
    test = AptitudeTest([], [], np.zeros((len(names), 0), np.float32), None)
    kinds = benchmarks or ["b"] * len(p)
    outcomes = Outcomes("made-up", texts, kinds, kinds, names, y.T.astype(np.float32), test)
    known = np.full_like(y, np.nan) if costs is None else costs
    return ScoredDataset(outcomes, p, y, known, EMBEDDINGS, training)


def write_catalog(path: Path, prices: dict[str, float]) -> Path:
    """Candidates with these US dollars per million input tokens, twice that for output."""
    base = json.loads((BUNDLE / "zoo.json").read_text())["candidates"][0]
    catalog = [
        base
        | {"id": name, "display_name": name, "price_source": "test"}
        | {"input_usd_per_million": usd, "output_usd_per_million": 2 * usd}
        for name, usd in prices.items()
    ]
    path.write_text(json.dumps({"candidates": catalog}))
    return path


def printed(found: calibration.Recommendation) -> str:
    """What `modelsat calibrate` shows of it."""
    console = Console(file=io.StringIO(), width=120, highlight=False, markup=False)
    calibrate_command.print_recommendation(found, console)
    return console.file.getvalue()


def test_per_instruction_auc_is_the_mean_over_rows() -> None:
    p, outcomes, _ = made_up(60)
    outcomes[0, 0] = np.nan
    expected = []
    for row, truth in zip(p, outcomes, strict=True):
        known = ~np.isnan(truth)
        if len(set(truth[known])) == 2:
            expected.append(roc_auc_score(truth[known], row[known]))
    assert metrics.per_instruction_auc(p, outcomes) == pytest.approx(np.mean(expected))
    flat = np.full_like(p, 0.5)
    assert metrics.per_instruction_auc(flat, outcomes) == 0.5


def test_true_probabilities_are_calibrated() -> None:
    p, outcomes, _ = made_up(20000)
    assert metrics.ece(p, outcomes) < 0.01
    assert metrics.ece(p**2, outcomes) > 0.05
    assert metrics.brier(p, outcomes) < metrics.brier(p**2, outcomes)
    low, high = metrics.interval(lambda r: metrics.brier(p[r], outcomes[r]), 500)
    assert low < metrics.brier(p[:500], outcomes[:500]) < high


@given(st.integers(0, 2**32 - 1))
def test_complete_subset_has_no_missing_outcome(seed: int) -> None:
    random = np.random.default_rng(seed)
    outcomes = random.random((12, 5))
    outcomes[random.random(outcomes.shape) < random.random()] = np.nan
    block = tradeoff.largest_complete_subset(outcomes)
    assert not np.isnan(outcomes[np.ix_(block.rows, block.candidates)]).any()
    whole = (~np.isnan(outcomes)).all(axis=1).sum() * 5
    assert len(block.rows) * len(block.candidates) >= whole


def test_complete_subset_keeps_two_candidates() -> None:
    """Two candidates with few common rows are judged before one with many."""
    apart = np.full((30, 3), np.nan)
    apart[np.arange(30), np.arange(30) % 3] = 1.0
    assert tradeoff.largest_complete_subset(apart).candidates.size == 0
    often = np.full((30, 3), np.nan)
    often[:, 0], often[:4, 1], often[4:8, 2] = 1.0, 1.0, 1.0
    often[3:5, 1:] = 0.0
    assert tradeoff.largest_complete_subset(often).rows.tolist() == [3, 4]
    assert tradeoff.largest_complete_subset(often[:, :1]).rows.size == 30  # there is only this one
    assert tradeoff.largest_complete_subset(often[:0]).rows.size == 0


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([math.inf, 10.0, 2.0]))
def test_curve_breaks_ties_by_cost_as_the_policy_does(seed: int, value: float) -> None:
    random = np.random.default_rng(seed)
    p, costs = random.integers(0, 3, (20, 4)) / 10, random.choice([1.0, 2.0, np.nan], (20, 4))
    for i in range(20):
        known = [None if np.isnan(c) else c for c in costs[i]]
        taken = rank(["a", "b", "c", "d"], p[i], known, Policy("willingness_to_pay_usd", value))
        found = tradeoff.operating_point(p[[i]], p[[i]], costs[[i]], value)
        assert int(found.shares.argmax()) == taken.order[0]


@pytest.mark.parametrize("seed", range(6))
def test_best_accuracy_is_reached_despite_rounding(seed: int) -> None:
    """Outcomes are float32 shares; who is always taken is as accurate as always taking it."""
    y = np.random.default_rng(seed).random((1000, 3)).astype(np.float32)
    y[:, 2] = (y[:, 2] + 2) / 3
    p, costs = np.tile([0.1, 0.2, 0.9], (1000, 1)), np.tile([1.0, 2.0, 3.0], (1000, 1))
    accuracy, _ = tradeoff.single_candidate_baselines(y, costs)
    assert tradeoff.cheapest_at(tradeoff.curve(p, y, costs), float(accuracy.max())) is not None


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1e3))
def test_curve_selects_as_the_policy_does(seed: int, value: float) -> None:
    p, outcomes, costs = made_up(5, seed)
    ids = ["a", "b", "c", "d"]
    policy = Policy("willingness_to_pay_usd", value)
    taken = [rank(ids, p[i], list(costs[i]), policy).order[0] for i in range(5)]
    found = tradeoff.operating_point(p, outcomes, costs, value)
    rows = np.arange(5)
    assert found.accuracy == pytest.approx(outcomes[rows, taken].mean())
    assert found.cost == pytest.approx(costs[rows, taken].mean())


def test_mixture_of_two_costs_the_interpolated_price() -> None:
    accuracies, costs = np.array([0.5, 0.6, 0.9]), np.array([1.0, 5.0, 9.0])
    # Half of the requests at 1, half at 9.
    assert tradeoff.cheapest_mixture_cost(accuracies, costs, 0.7) == pytest.approx(5.0)
    assert tradeoff.cheapest_mixture_cost(accuracies, costs, 0.95) == np.inf
    assert tradeoff.cheapest_mixture_cost(accuracies, costs, 0.4) == 1.0


def test_calibrate_reports_the_savings_of_good_probabilities() -> None:
    p, outcomes, costs = made_up(4000)
    names = ["a", "b", "c", "d"]
    found = calibration.recommend(p, outcomes, costs, names, CalibrationTarget(0.97, None))
    assert found.best == "d"
    assert found.point is not None
    assert found.point.accuracy >= 0.97 * found.accuracy
    assert found.point.cost < 0.6 * found.cost
    cheap = calibration.recommend(p, outcomes, costs, names, CalibrationTarget(None, 0.3)).point
    assert cheap is not None
    assert cheap.cost <= 0.3 * found.cost
    assert (
        calibration.recommend(p, outcomes, costs, names, CalibrationTarget(2.0, None)).point is None
    )


def test_max_cost_ratio_tolerates_rounding_and_wastes_nothing() -> None:
    names, whole = ["dear", "cheap"], CalibrationTarget(None, 1.0)
    costs = np.random.default_rng(0).random((1000, 2)) * [1.0, 1e-3]
    p, y = np.tile([0.9, 0.1], (1000, 1)), np.tile([1.0, 0.0], (1000, 1))
    always = tradeoff.operating_point(p, y, costs, math.inf).cost
    assert always > tradeoff.single_candidate_baselines(y, costs)[1][0]
    found = calibration.recommend(p, y, costs, names, whole).point
    assert found is not None
    assert found.accuracy == 1.0
    alike = np.tile([0.9, 0.89], (1000, 1))
    found = calibration.recommend(alike, np.ones_like(y), costs, names, whole).point
    assert found is not None
    assert found.cost == pytest.approx(costs[:, 1].mean(), rel=0.1)


def test_share_of_zero_is_a_dash() -> None:
    p, y, costs = made_up(50)
    y[:, 3], costs[:, 3] = 1.0, 0.0
    free = calibration.recommend(p, y, costs, ["a", "b", "c", "d"], CalibrationTarget(0.9, None))
    assert free.best == "d"
    wrong = calibration.recommend(
        p, np.zeros_like(y), costs, ["a", "b", "c", "d"], CalibrationTarget(0.9, None)
    )
    for found in (free, wrong):
        first = printed(found).splitlines()[3].split("│")
        assert [cell.strip() for cell in first].count("-") == 1, first


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder whose probabilities are made up, in no time."""
    monkeypatch.setattr(
        calibration,
        "score_outcomes",
        lambda _, outcomes: OfflineScores(
            made_up(len(outcomes.texts))[0],
            np.arange(1, len(outcomes.texts) + 1),
            np.zeros((len(outcomes.texts), 2), np.float32),
        ),
    )
    return datasets.write(tmp_path / "own")


def test_calibrate_names_the_candidates_that_its_value_is_for(
    recorded: Path, tmp_path: Path
) -> None:
    prices = {"c0": 1.0, "c1": 2.0, "c2": 3.0, "c3": 4.0}
    catalog, target = tmp_path / "zoo.json", CalibrationTarget(0.5, None)
    found = calibration.calibrate(
        BUNDLE, recorded, write_catalog(catalog, prices | {"mean": 3.9}), target
    )
    assert found.unevaluated_most_expensive is None
    assert "warning" not in printed(found)
    prices |= {"gold": 5.0, "silver": 4.5}
    found = calibration.calibrate(BUNDLE, recorded, write_catalog(catalog, prices), target)
    assert calibration.as_dict(found)["unevaluated_most_expensive"] == "gold"
    lines = printed(found).splitlines()
    assert "this holds for the evaluated candidates: c0, c1, c2, c3" in lines
    assert any(x.startswith("warning: gold of the catalog costs more than all") for x in lines)


def test_calibrate_refuses_a_single_candidate(recorded: Path, tmp_path: Path) -> None:
    """As recorded traffic is: one outcome an instruction."""
    scores = np.load(recorded / "scores.npz")["scores"]
    one = np.arange(scores.shape[1]) % datasets.CANDIDATES == np.arange(len(scores))[:, None]
    np.savez(recorded / "scores.npz", scores=np.where(one, np.nan_to_num(scores), np.nan))
    catalog = write_catalog(tmp_path / "zoo.json", {"c0": 1.0, "c1": 2.0, "c2": 3.0, "c3": 4.0})
    with pytest.raises(InvalidInputError, match="has 0 instructions measured for two or more of"):
        calibration.calibrate(BUNDLE, recorded, catalog, CalibrationTarget(0.5, None))


def test_metrics_of_no_rows_are_nan() -> None:
    nothing = np.zeros((0, 3))
    assert np.isnan(list(metrics.report(nothing, nothing).values())).all()
    assert np.isnan(metrics.interval(lambda r: metrics.brier(nothing[r], nothing[r]), 0)).all()
    alone = np.full((40, 2), np.nan)
    alone[:20, 0], alone[20:, 1] = 1.0, 0.0
    found = evaluate.measure(scored(made_up(40)[0][:, :2], alone, alone))
    assert np.isnan(
        [found["routed_gain"], *found["routed_gain_ci"], found["per_instruction_auc"]]
    ).all()


def test_resample_that_misses_the_accuracy_counts() -> None:
    assert metrics.interval(lambda r: 1.0 if 0 in r else np.inf, 50) == (1.0, np.inf)
    assert metrics.interval(lambda _: np.inf, 50) == (np.inf, np.inf)


def test_cost_metrics_come_from_one_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    p, y, costs = made_up(60)
    calls = []
    real = tradeoff.curve
    monkeypatch.setattr(metrics, "RESAMPLES", 40)
    monkeypatch.setattr(tradeoff, "curve", lambda *a: calls.append(1) or real(*a))
    found = evaluate.measure_routing(scored(1 - p, y, costs))
    assert len(calls) == 1 + metrics.RESAMPLES
    assert found["cost_at_100"] == found["cost_at_100_ci"][1] == np.inf
    low, high = found["area_ci"]
    assert low < found["area"] < high


def test_the_best_constant_is_chosen_on_training_rows() -> None:
    """c0 is better in training, c1 on the test rows; c2 is measured on too few to be compared."""
    y = np.tile([0.0, 1.0, 0.0], (50, 1))
    training = np.tile([1.0, 0.0, np.nan], (100, 1))
    training[:3] = [0.0, 0.0, 1.0]
    found = evaluate.measure_routing(scored(np.tile([0.2, 0.8, 0.1], (50, 1)), y, None, training))
    assert found["best_constant"] == "c0"
    assert found["best_constant_accuracy"] == 0.0
    assert found["gain_over_constant"] == found["best_single_accuracy"] == 1.0
    assert found["routed_gain"] == 0.0
    none = evaluate.measure_routing(scored(np.tile([0.2, 0.8], (50, 1)), y[:, :2], None, y[:0, :2]))
    assert none["best_constant"] == "c1"  # a folder of a few rows may have no training part


def test_costs_are_shares_of_the_best_constants_cost() -> None:
    p = np.tile([0.9, 0.5], (40, 1))
    y, costs = np.ones((40, 2)), np.tile([3.0, 6.0], (40, 1))
    for best, share in ((0, 1.0), (1, 0.5)):
        assert evaluate.cost_metrics(p, y, costs, best)[:2] == [share, share]


def test_cells_part_benchmarks_and_candidates() -> None:
    """Errors that cancel in the mean of a candidate do not cancel in its cells."""
    p, y = np.full((80, 2), 0.5), np.zeros((80, 2))
    y[:40, 0], y[:, 1] = 1.0, np.nan
    y[:19, 1] = 1.0
    assert metrics.cell_errors(p, y, ["a"] * 80).tolist() == [0.0]
    assert metrics.cell_errors(p, y, ["a"] * 40 + ["b"] * 40).tolist() == [0.5, 0.5]


def test_folders_count_alike_in_the_mixture() -> None:
    """A folder of 400 rows weighs no more than one of 40, and choices are within a folder."""
    large = scored(np.tile([0.9, 0.1], (400, 1)), np.tile([1.0, 0.0], (400, 1)))
    wrong = np.tile([0.9, 0.1], (40, 1))
    small = scored(wrong, 1 - np.round(wrong), None, 1 - np.round(wrong))
    found = mixture.measure_mixture([large, small])
    assert found["routed_accuracy"] == 0.5
    assert found["best_constant_accuracy"] == 1.0
    assert found["gain_over_constant"] == -0.5
    assert found["top_candidate_share"] == 1.0
    assert found["ece"] == pytest.approx(0.4)  # -.1 and .9 in one bin
    worst = mixture.describe_worst({"large": 0.0, "small": -1.0, "none": np.nan})
    assert worst == {"worst_folder": "small", "worst_gain_over_constant": -1.0}


def test_a_new_candidate_joins_the_five_best_before_it() -> None:
    """Candidates arrive from the weakest to the strongest; the router always takes the newest."""
    levels = np.linspace(0.1, 0.9, 9)
    random = np.random.default_rng(0)
    y, training = ((random.random((400, 9)) < levels).astype(float) for _ in range(2))
    folder = scored(np.tile(levels, (400, 1)), y, None, training)
    months = {r"c[0-3]$": "2024-01", r"c[4-7]$": "2024-02", r"c8$": "2024-03"}
    order = releases.release_order(folder.outcomes.candidates, months)
    assert order.tolist() == list(range(9))
    assert releases.release_order(["b", "x", "a"], {"[ab]": "2024-01"}).tolist() == [2, 0]
    steps = releases.arrivals(folder, order)
    assert [step["newest"] for step in steps] == ["c5", "c6", "c7", "c8"]
    assert all(step["best_constant"] == step["newest"] for step in steps)
    found = releases.summary(steps)
    assert found["mean_gain"] == found["worst_gain"] == 0.0
    assert found["share_when_best"] == 1.0
    behind = releases.arrivals(scored(np.tile(-levels, (400, 1)), y, None, training), order)
    members = y[:, [0, 1, 2, 3, 4, 5]]
    expected = (members[:, 0] - members[:, 5]).mean()
    assert behind[0]["gain"] == pytest.approx(expected)
    assert releases.summary(behind)["steps_below_by_half_a_point"] == 4


def test_a_candidate_of_hard_instructions_is_not_worse_for_that() -> None:
    scores = np.array([[1.0, 1.0, np.nan]] * 10 + [[0.0, np.nan, 0.4], [0.0, np.nan, 0.4]])
    found = releases.levels(scores)
    assert found[2] > found[1] == 0.0 > found[0]
    assert np.isnan(releases.levels(np.full((2, 1), np.nan))).all()


def test_report_has_every_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = {"instructions": 9, "candidates": 2}
    cost = {"cost_at_95": np.inf, "cost_at_95_ci": (0.5, np.inf)}
    table = evaluate.as_markdown({"a": size, "b": size | cost})
    assert "| cost_at_95 |  | none (0.500 to none) |" in table
    words = ["--data", str(tmp_path / "a" / "own"), str(tmp_path / "b" / "own")]
    monkeypatch.setattr("sys.argv", ["evaluate", *words, "--out", str(tmp_path / "out")])
    with pytest.raises(InvalidInputError, match=r"a/own and .*b/own, both named 'own'"):
        evaluate.main()


def test_prices_come_from_the_evaluated_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, given = datasets.write(tmp_path / "own"), []
    words = ["--bundle", str(tmp_path), "--data", str(data), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["evaluate", *words])
    monkeypatch.setattr(evaluate, "score_dataset", lambda *a, **_: given.append(a[2]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate.main()
    assert given == [tmp_path / "zoo.json"]


def rows_of(seed: int, count: int) -> Rows:
    """Candidates 0 and 1 do well where the first, or the second, coordinate is positive."""
    random = np.random.default_rng(seed)
    x = random.normal(0, 1, (count, 8)).astype(np.float32)
    p = 1 / (1 + np.exp(-4 * x[:, :2].T))
    scores = np.concatenate([p, p[::-1]])
    drawn = (random.random(scores.shape) < scores).astype(np.float32)
    drawn[0, :5] = np.nan
    return Rows(x, drawn, ["left" if v > 0 else "right" for v in x[:, 0]])


def test_baselines_learn_a_simple_rule() -> None:
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


def test_folder_is_evaluated_through_the_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that `make evaluate` runs, then `modelsat calibrate` on the same folder."""
    # Resamples have a higher calibration error than all rows, so with another seed its interval may
    # lie above it.
    data = datasets.write(tmp_path / "own", aptitude=False, subjects=2, seed=1)
    names = [f"c{i}" for i in range(datasets.CANDIDATES)]
    prices = dict(zip(names, (1.0, 2.0, 3.0, 4.0), strict=True))
    catalog = write_catalog(tmp_path / "zoo.json", prices)
    out = tmp_path / "out"
    words = ["--bundle", str(BUNDLE), "--data", str(data), "--catalog", str(catalog)]
    monkeypatch.setattr("sys.argv", ["evaluate", *words, "--out", str(out)])
    evaluate.main()
    capsys.readouterr()
    found = json.loads((out / "report.json").read_text())["datasets"]["own"]
    for figure in (
        "pooled_auc",
        "per_instruction_auc",
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
    target = ["--min-accuracy-ratio", "0.5", "--json"]
    assert modelsat(["calibrate", *words, *target]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["recommended"]["accuracy_ratio"] >= 0.5
    assert modelsat(["calibrate", *words, "--max-cost-ratio", "0.5"]) == 0
    assert "-> --willingness-to-pay-usd" in capsys.readouterr().out
    assert modelsat(["calibrate", *words[:4], "--min-accuracy-ratio", "0.9"]) == 1
    assert "at least 2 are needed" in capsys.readouterr().err


def test_long_task_keywords_are_cut_and_a_repeated_data_flag_adds(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bundle = ROOT / "artifacts" / "bundle"
    if not bundle.is_dir():
        pytest.skip("no artifacts/bundle")
    for name in ("one", "two"):
        folder = datasets.write(tmp_path / name)
        test = json.loads((folder / "aptitude.json").read_text())
        long = " ".join(["thermodynamics"] * 700)
        test["tasks"][3], test["items"] = long, {}
        test["scores"]["c0"] = []
        (folder / "aptitude.json").write_text(json.dumps(test))
    words = ["evaluate", "--bundle", str(bundle), "--data", str(tmp_path / "one")]
    monkeypatch.setattr(
        "sys.argv", [*words, "--data", str(tmp_path / "two"), "--out", str(tmp_path / "out")]
    )
    evaluate.main()
    report = json.loads((tmp_path / "out" / "report.json").read_text())["datasets"]
    assert set(report) == {"one", "two"}
    assert report["one"]["candidates"] == 3
    assert report["two"]["dropped_candidates"] == {"c0": "aptitude.json has no accuracy"}
    assert "thermodynamics" in caplog.text


def test_a_command_for_one_folder_refuses_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        modelsat(["calibrate", "--data", "a", "--data", "b", "--min-accuracy-ratio", "0.9"])
    assert "--data is given twice, a and b; give one" in capsys.readouterr().err
