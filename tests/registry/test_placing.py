"""Candidates are placed by their results, however few questions these rest on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine.registry.catalog import read_catalog
from tests.support.placing import mean_p
from tools.processes import BUNDLE

CATALOG = read_catalog(BUNDLE / "zoo.json")[:15]


@pytest.mark.parametrize("questions", [3, 5, 20])
def test_few_questions_a_task_place_a_candidate_as_its_whole_test_does(questions: int) -> None:
    """Kind: a candidate whose accuracies rest on few questions."""
    draw = np.random.default_rng(questions)
    drawn = []
    for candidate in CATALOG:
        shares = [draw.binomial(questions, r.accuracy) / questions for r in candidate.aptitude]
        results = tuple(
            replace(r, accuracy=share, questions=questions)
            for r, share in zip(candidate.aptitude, shares, strict=True)
        )
        drawn.append(replace(candidate, aptitude=results))
    distance = np.abs(mean_p(drawn) - mean_p(CATALOG))
    assert distance.mean() < 0.05
    # The level of 150 questions alone has a standard error of .04.
    assert np.quantile(distance, 0.9) < 0.1
