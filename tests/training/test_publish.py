"""Figures of an evaluation reach the pages by one command."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.api.errors import InvalidInputError
from training.evaluation import publish


def measured(gain: float) -> dict[str, Any]:
    found: dict[str, Any] = {"instructions": 1048, "candidates": 29, "top_candidate_share": 0.51234}
    found |= {"complete_instructions": 683, "complete_candidates": 29}
    for name in publish.MEASURES[:-2]:
        found |= {name: 0.75, f"{name}_ci": [0.7, 0.81]}
    gains = [gain, gain - 0.01, gain + 0.01]
    found |= {"gain_over_constant": gains[0], "gain_over_constant_ci": gains[1:]}
    return found | {"by_candidate": {"c0": {"auc": 0.5}}, "reliability": [[0.11111, 0.2, 1.0]]}


def report() -> dict[str, Any]:
    without = measured(math.nan) | {
        "routed_accuracy": math.nan,
        "routed_accuracy_ci": [math.nan] * 2,
    }
    datasets = {"llmrouter9": measured(0.0512), "mmlu_pro_cot": measured(-0.02), "few": without}
    return {"datasets": datasets, "mixture": measured(0.004)}


PAGE = "before\n<!-- figures: {} -->\nold\n<!-- end -->\nafter\n"


def test_the_command_keeps_the_figures_and_writes_every_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for page, block in zip(publish.PAGES, ("choice", "quality", "card"), strict=True):
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / page).write_text(PAGE.format(block))
    model = tmp_path / "pretrained" / "model.json"
    model.write_text(json.dumps({"layers": 6, "report": {}}))
    (tmp_path / "report.json").write_text(json.dumps(report()))
    arguments = ["--report", str(tmp_path / "report.json"), "--root", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["publish", *arguments])
    publish.main()
    kept = json.loads(model.read_text())
    assert kept["layers"] == 6
    assert kept["report"]["datasets"]["llmrouter9"]["pooled_auc_ci"] == [0.7, 0.81]
    assert kept["report"]["datasets"]["mmlu_pro_cot"]["reliability"] == [[0.1111, 0.2, 1.0]]
    assert "by_candidate" not in kept["report"]["datasets"]["few"]
    front, quality, card = ((tmp_path / page).read_text() for page in publish.PAGES)
    assert "+5.1 (+4.1 to +6.1) points" in front
    assert "the worst is mmlu_pro_cot with -2.0 (-3.0 to -1.0)" in front.replace("\n ", "")
    assert "| llmrouter9 | 1,048 x 29 | .750 (.700 to .810) |" in quality
    assert "| few | 683 x 29 | - | .750 (.700 to .810) | - | .750 | .750 | .512 |" in quality
    assert "| all, alike | 1,048 | .750 |" in card
    for content in (front, quality, card):
        assert content.startswith("before\n<!-- figures: ")
        assert content.endswith("<!-- end -->\nafter\n")
        assert "old" not in content
        assert publish.fill(content, kept["report"]) == content  # a second time changes nothing


def test_a_report_of_one_folder_is_no_report_of_the_shipped_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained" / "model.json").write_text("{}")
    (tmp_path / "report.json").write_text(json.dumps({"datasets": {"mine": measured(0.1)}}))
    arguments = ["--report", str(tmp_path / "report.json"), "--root", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["publish", *arguments])
    with pytest.raises(InvalidInputError, match="is not of several folders"):
        publish.main()
    assert (tmp_path / "pretrained" / "model.json").read_text() == "{}"


def test_numbers_have_no_zero_before_the_point() -> None:
    assert [publish.number(x) for x in (0.5, -0.25, 1.0, math.nan, math.inf)] == [
        ".500",
        "-.250",
        "1.000",
        "-",
        "-",
    ]
