"""Write the figures of an evaluation where they are shown.

    python -m training.evaluation.publish --report artifacts/evaluation/report.json

model.json of pretrained/ keeps them under `report`. README.md, docs/explanation/quality.md and
pretrained/README.md show them between the lines `<!-- figures: NAME -->` and `<!-- end -->`;
tools.docs.readme_pictures draws from them. Without --report the pages are written from model.json
again.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.api.errors import InvalidInputError, ModelsatError, Violation
from training.weights.adapter import MODEL

PAGES = ("README.md", "docs/explanation/quality.md", "pretrained/README.md")
COUNTS = ("instructions", "candidates", "complete_instructions", "complete_candidates")
MEASURES = (
    "pooled_auc",
    "per_instruction_auc",
    "brier",
    "ece",
    "cell_error",
    "routed_accuracy",
    "best_constant_accuracy",
    "gain_over_constant",
    "random_accuracy",
    "oracle_accuracy",
    "top_candidate_share",
    "cost_at_95",
)
MIXTURE = "all, alike"
MIXED_TASKS = "llmrouter9"  # the folder that the front page names
DRAWN = "mmlu_pro_cot"  # the folder whose calibration is drawn
ROUTING = (
    "",
    "complete rows x candidates",
    "highest p",
    "best constant",
    "gain, points",
    "random",
    "oracle",
    "most often chosen",
)
Figures = Mapping[str, Any]
_BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def summarize(report: Figures) -> dict[str, Any]:
    """Return what model.json keeps of a report: counts, figures and intervals of each folder and of
    the mixture, to four digits."""
    folders = {name: _kept(found) for name, found in report["datasets"].items()}
    if (drawn := report["datasets"].get(DRAWN)) is not None:
        bins = [[round(value, 4) for value in each] for each in drawn["reliability"]]
        folders[DRAWN]["reliability"] = bins
    return {"datasets": folders, "mixture": _kept(report["mixture"])}


def _kept(found: Figures) -> dict[str, Any]:
    kept: dict[str, Any] = {name: found[name] for name in COUNTS if name in found}
    for name in MEASURES:
        values = [found.get(name, math.nan), *found.get(f"{name}_ci", ())]
        if all(map(math.isfinite, values)):  # JSON has no other numbers
            kept[name] = round(values[0], 4)
            if values[1:]:
                kept[f"{name}_ci"] = [round(bound, 4) for bound in values[1:]]
    return kept


def number(value: float, digits: int = 3) -> str:
    """Format a share without the zero before its point; a dash if it is unknown."""
    if not math.isfinite(value):
        return "-"
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:.{digits}f}")


def with_interval(found: Figures, name: str) -> str:
    """Format a figure with its 95 % interval."""
    bounds = [number(bound) for bound in found.get(f"{name}_ci", ())]
    value = number(found.get(name, math.nan))
    return f"{value} ({' to '.join(bounds)})" if bounds else value


def points(found: Figures) -> str:
    """Format the gain over the best constant in points, with its interval."""
    if "gain_over_constant" not in found:
        return "-"
    value, *bounds = (
        100 * x for x in (found["gain_over_constant"], *found["gain_over_constant_ci"])
    )
    return f"{value:+.1f} ({' to '.join(f'{bound:+.1f}' for bound in bounds)})"


def quality_table(report: Figures) -> str:
    """Return the tables of the quality page: predictions, then routing."""
    predicted = {
        "pooled AUC": "pooled_auc",
        "AUC within an instruction": "per_instruction_auc",
        "Brier score": "brier",
        "ECE": "ece",
        "cells": "cell_error",
    }
    first, second = [["", "rows x candidates", *predicted]], [list(ROUTING)]
    for name, found in _all(report).items():
        size = f"{found['instructions']:,} x {found['candidates']}"
        first.append([name, size, *(with_interval(found, n) for n in predicted.values())])
        size = ""
        if "complete_instructions" in found:
            size = f"{found['complete_instructions']:,} x {found['complete_candidates']}"
        accuracies = [with_interval(found, f"{n}_accuracy") for n in ("routed", "best_constant")]
        bounds = [number(found.get(f"{n}_accuracy", math.nan)) for n in ("random", "oracle")]
        share = number(found["top_candidate_share"])
        second.append([name, size, *accuracies, points(found), *bounds, share])
    return _table(first) + "\n" + _table(second)


def card_table(report: Figures) -> str:
    """Return the table of the model card."""
    shown = {
        "pooled AUC": "pooled_auc",
        "within an instruction": "per_instruction_auc",
        "ECE": "ece",
        "accuracy of the highest probability": "routed_accuracy",
        "best constant": "best_constant_accuracy",
    }
    rows = [["", "rows", *shown]]
    for name, found in _all(report).items():
        cells = [number(found.get(n, math.nan)) for n in shown.values()]
        rows.append([name, f"{found['instructions']:,}", *cells])
    return _table(rows)


def choice_sentence(report: Figures) -> str:
    """Return the front page's sentences on the choice."""
    mixed, every = report["datasets"][MIXED_TASKS], report["mixture"]
    gains = {n: f.get("gain_over_constant", math.inf) for n, f in report["datasets"].items()}
    worst = min(gains, key=lambda name: gains[name])
    share, constant = (100 * mixed[n] for n in ("routed_accuracy", "best_constant_accuracy"))
    return (
        f"- **Choice.** On 14 mixed tasks the first choice succeeds on {share:.1f} % of the"
        f" instructions, the best constant one on {constant:.1f} %:\n"
        f"  {points(mixed)} points, with the 95 % interval. Over {len(gains)} data sets that count"
        f" alike it is {points(every)} points,\n"
        f"  and the worst is {worst} with {points(report['datasets'][worst])}: see the"
        " [caveats](#caveats).\n"
    )


def _all(report: Figures) -> dict[str, Figures]:
    return {**report["datasets"], MIXTURE: report["mixture"]}


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" if row[0] else f"| | {' | '.join(row[1:])} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


BLOCKS: Mapping[str, Callable[[Figures], str]] = {
    "quality": quality_table,
    "card": card_table,
    "choice": choice_sentence,
}


def fill(page: str, report: Figures) -> str:
    """Return a page with the figures of a summarized report between its markers."""
    return _BLOCK.sub(lambda m: m[1] + BLOCKS[m[2]](report) + m[3], page)


def main() -> None:
    """Keep the figures in model.json and write the pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--report", type=Path, help="report.json of training.evaluation.evaluate")
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout")
    arguments = parser.parse_args()
    path = arguments.root / "pretrained" / MODEL
    model = json.loads(path.read_text(encoding="utf-8"))
    if arguments.report is not None:
        report = json.loads(arguments.report.read_text(encoding="utf-8"))
        if "mixture" not in report or MIXED_TASKS not in report["datasets"]:
            problem = f"is not of several folders with {MIXED_TASKS} among them."
            raise InvalidInputError(Violation(str(arguments.report), problem))
        model["report"] = summarize(report)
        path.write_text(json.dumps(model, indent=1) + "\n", encoding="utf-8")
    for name in PAGES:
        page = arguments.root / name
        page.write_text(fill(page.read_text(encoding="utf-8"), model["report"]), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
