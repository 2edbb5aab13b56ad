"""Candidates of published figures: where they are placed, how sure that is, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.api.candidate import DEFAULT_OUTPUT_TOKENS, Candidate
from engine.api.errors import InvalidInputError
from engine.cli.main import main
from engine.datasets.outcomes import read_outcomes
from engine.inference.offline import candidates_of
from engine.registry.candidate_files.published import (
    Figure,
    PublishedCandidate,
    Scale,
    candidate_from,
    estimate_level,
    read_published,
    read_scale,
)
from engine.registry.catalog import read_catalog
from tests.support.placing import mean_p
from tools.processes import ROOT
from training.data.published_scale import fit_anchor, subject_accuracies

SHIPPED = ROOT / "pretrained" / "published.json"
GPQA: dict[str, Any] = {
    "benchmark": "gpqa_diamond",
    "accuracy": 0.8,
    "source": "the model's card",
    "date": "2026-01-31",
}


def figure(benchmark: str, accuracy: float, questions: int = 0, subject: str = "") -> Figure:
    return Figure(benchmark, subject, accuracy, questions, "the model's card", "2026-01-31")


def made(*figures: Figure, scale: Scale | None = None) -> Candidate:
    return candidate_from(PublishedCandidate(Candidate("x", ()), figures), scale)


def test_subject_figures_place_a_candidate_where_its_whole_test_does() -> None:
    """Kind: 14 subject figures of MMLU-Pro, of candidates that the scale was fitted without."""
    folder = ROOT.parent / "shared" / "data" / "mmlu_pro_cot"
    if not folder.is_dir():
        pytest.skip("no ../shared/data")
    outcomes = read_outcomes(folder)
    subjects, accuracies = subject_accuracies(outcomes, "mmlu_pro")
    candidates = []
    for i in range(len(accuracies)):
        anchor, means, carried = fit_anchor(outcomes, left_out=i)
        scale = Scale({anchor.name: anchor}, means, outcomes.test.subjects, carried)
        shown = zip(subjects, accuracies[i].tolist(), strict=True)
        figures = [figure("mmlu_pro", accuracy, subject=subject) for subject, accuracy in shown]
        candidates.append(made(*figures, scale=scale))
    distance = np.abs(mean_p(candidates) - mean_p(candidates_of(outcomes)))
    assert distance.mean() < 0.03
    # The whole test's level has a standard error of .015 itself.
    assert np.mean(distance <= 0.03) > 0.8


@pytest.mark.parametrize(
    ("benchmark", "low", "high"),
    [
        ("mmlu_pro", 0.70, 0.85),
        ("gpqa_diamond", 0.50, 0.85),
        ("livecodebench", 0.35, 0.75),
        ("aime_2025", 0.20, 0.90),
        ("swe_bench_verified", 0.40, 0.75),
        ("mmmlu", 0.70, 0.85),
    ],
)
def test_a_higher_figure_is_a_higher_level_with_its_error(
    benchmark: str, low: float, high: float
) -> None:
    weak, strong = made(figure(benchmark, low)), made(figure(benchmark, high))
    assert 0.5 < weak.mean_accuracy() < strong.mean_accuracy() < 0.95
    agreeing = made(figure(benchmark, high), figure("mmlu_pro", 0.84), figure("hle", 0.2))
    assert agreeing.level_standard_error() < strong.level_standard_error()
    assert made(figure(benchmark, high, questions=10)).level_standard_error() > (
        strong.level_standard_error()
    )


def test_a_lead_in_a_subject_is_one_in_the_tasks_of_it() -> None:
    means = read_scale().subject_means
    even = [figure("mmlu_pro", a, subject=s) for s, a in means.items()]
    leading = [
        figure("mmlu_pro", a + (0.2 if s == "law" else 0), subject=s) for s, a in means.items()
    ]
    before = {r.task: r.accuracy for r in made(*even).aptitude}
    after = {r.task: r.accuracy for r in made(*leading).aptitude}
    gains = {task: after[task] - before[task] for task in before}
    assert all(gains[t] > 0.04 for t in gains if t.startswith("Law"))
    assert all(abs(gains[t]) < 0.03 for t in gains if t.startswith("Mathematics"))


def test_figures_at_the_ends_of_the_scale_make_valid_candidates() -> None:
    for accuracy in (0.0, 1.0):
        level = estimate_level([figure(b, accuracy) for b in read_scale().benchmarks], read_scale())
        assert np.isfinite([level.theta, level.error]).all()
        assert len(made(*[figure(b, accuracy) for b in read_scale().benchmarks]).aptitude) == 50


def test_the_shipped_models_are_made_of_figures_with_sources() -> None:
    published = read_published(SHIPPED)
    catalog = {c.id: c for c in read_catalog(ROOT / "pretrained" / "zoo.json")}
    assert len(published) >= 25
    for each in published:
        assert catalog[each.candidate.id].aptitude == candidate_from(each).aptitude
        assert all(f.source.startswith("https://") and f.date >= "2025" for f in each.figures)
    thinking = [
        p.candidate for p in published if {"thinking", "effort-high"} & set(p.candidate.tags)
    ]
    assert all((catalog[c.id].mean_output_tokens or 0) > DEFAULT_OUTPUT_TOKENS for c in thinking)
    priced = [catalog[p.candidate.id] for p in published]
    assert sum(c.input_usd_per_million is not None for c in priced) >= 25
    assert all(", entry " in c.price_source for c in priced if c.input_usd_per_million)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": ""}, r"figures\[0\]\.source: is missing"),
        ({"date": "January"}, r"date: is 'January'; expected the day"),
        ({"accuracy": 80}, r"in percent, give 0\.8"),
        ({"accuracy": "0.8"}, "accuracy: is '0.8'"),
        ({"accuracy": True}, "accuracy: is True"),
        ({"accuracy": float("nan")}, "accuracy: is nan"),
        ({"benchmark": "arena"}, "benchmark: is 'arena'; known are"),
        ({"subject": "law"}, "subject: is 'law'; mmlu_pro has"),
        ({"questions": -1}, "questions: is -1"),
        ({"score": 1}, "is not an object of"),
    ],
)
def test_figures_that_say_too_little_are_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    file = tmp_path / "figures.json"
    file.write_text(json.dumps({"id": "x", "figures": [GPQA | change]}))
    with pytest.raises(InvalidInputError, match=words):
        read_published(file)


@pytest.mark.parametrize("written", ["GPQA Diamond", "gpqa-diamond", " GPQA_diamond "])
def test_a_benchmark_is_known_however_it_is_written(tmp_path: Path, written: str) -> None:
    file = tmp_path / "figures.toml"
    values = "".join(f"{k} = {json.dumps(v)}\n" for k, v in (GPQA | {"benchmark": written}).items())
    file.write_text(f'id = "x"\n[[figures]]\n{values}')
    (read,) = read_published(file)
    assert read.figures[0].benchmark == "gpqa_diamond"


def test_the_command_writes_candidates_that_can_be_registered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "figures.json", tmp_path / "candidates.json"
    described = {"id": "mine", "context_window": 1000, "features": ["tools"], "figures": [GPQA]}
    file.write_text(json.dumps([described]))
    assert main(["aptitude", "from-published", str(file), "--out", str(out)]) == 0
    assert "mine: level 0.85" in capsys.readouterr().out
    (candidate,) = read_catalog(out)
    assert (candidate.id, candidate.context_window, candidate.features) == (
        "mine",
        1000,
        ("tools",),
    )
    assert {r.questions > 0 for r in candidate.aptitude} == {True}
    written = json.loads(out.read_text())["provenance"]["figures"]["mine"]
    assert written == [GPQA | {"subject": "", "questions": 0}]
    file.write_text(json.dumps([described | {"context_window": "8k", "price": 1}]))
    assert main(["aptitude", "from-published", str(file)]) == 1
    refused = capsys.readouterr().err
    assert "context_window: is '8k', a str" in refused
    assert "price: is unknown" in refused
    file.write_text(json.dumps([described | {"figures": [GPQA, GPQA]}]))
    assert main(["aptitude", "from-published", str(file)]) == 1
    assert "has gpqa_diamond twice of one source" in capsys.readouterr().err
