"""Measure how many choices stay the same if an instruction is written in another way.

    python -m training.evaluation.robustness --bundle artifacts/bundle --data DIR... --out FILE
    python -m training.evaluation.robustness --bundle artifacts/bundle --pairs FILE --out FILE

Test rows of --data are written with typos, in another template, and with the options of multiple
choice in another form. --pairs names a JSONL file with a question and a rewording in each line,
{"text": ..., "other": ...}. Candidates are those of the bundle's catalog, or of --catalog. The
choice is that of the cost sensitivity alone, without a guard or a session.

Shapes: B texts, M candidates.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.api.errors import InvalidInputError, ModelsatError, Violation
from engine.api.policy import Policy
from engine.datasets.outcomes import question_of, read_outcomes
from engine.datasets.rows import read_rows
from engine.registry.catalog import read_catalog
from engine.routing.utility import cost_adjusted_utility
from training.data.near_duplicates import split_folders
from training.data.reformat import reformat
from training.evaluation import metrics
from training.evaluation.texts import choose, score_texts

TEMPLATES = (
    "Please answer the following question.\n\n{}",
    "Question: {}\nAnswer:",
    "### Instruction\n{}\n\n### Response\n",
    "{}\n\nThink step by step, then state the final answer.",
    "I need some help with this:\n\n{}\n\nThank you!",
)
WORDS_PER_TYPO = 12
MIN_LETTERS = 4  # of a word that gets a typo
Rewrite = Callable[[np.random.Generator, str], str]


def add_typos(random: np.random.Generator, text: str) -> str:
    """Swap, drop or double a letter inside one of every WORDS_PER_TYPO words of the question."""
    question = question_of(text)
    words = question.split(" ")
    long = [i for i, word in enumerate(words) if len(word) >= MIN_LETTERS and word.isalpha()]
    count = min(len(long), max(1, len(words) // WORDS_PER_TYPO))
    for i in random.choice(long, count, replace=False) if long else ():
        word, at = words[i], int(random.integers(1, len(words[i]) - 1))
        kind = random.integers(3)
        if kind == 0:
            words[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        else:
            words[i] = word[:at] + (word[at] * 2 if kind == 1 else "") + word[at + 1 :]
    return " ".join(words) + text[len(question) :]


def put_in_template(random: np.random.Generator, text: str) -> str:
    """Write a text as another program would send it."""
    return TEMPLATES[int(random.integers(len(TEMPLATES)))].replace("{}", text)


REWRITES: Mapping[str, Rewrite] = {
    "typos": add_typos,
    "template": put_in_template,
    "reformatted": reformat,
}


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Read pairs of a text and its rewording.

    Raises InvalidInputError that names the first line without them.
    """
    pairs = []
    for row in read_rows(path):
        record = row.record or {}
        text, other = record.get("text"), record.get("other")
        if not isinstance(text, str) or not isinstance(other, str):
            problem = row.problem or "has no texts under the keys text and other"
            raise InvalidInputError(Violation(f"{path}, line {row.number}", f"{problem}."))
        pairs.append((text, other))
    return pairs


def measure_rewrites(
    bundle: Path,
    catalog: Path,
    rewrites: Mapping[str, tuple[Sequence[str], Sequence[str]]],
    sensitivities: Sequence[float],
) -> dict[str, dict[str, object]]:
    """Return for each kind of rewriting how many of its choices stay the same.

    rewrites: kind -> texts and the same texts rewritten. By sensitivity are `unchanged`, with its
    95 % interval, and `lost`: what the choice for the rewritten text has less in utility on the
    plain one, on average. `moved` is the mean |difference| of a probability.
    """
    candidates = read_catalog(catalog)
    result: dict[str, dict[str, object]] = {}
    for kind, (texts, others) in rewrites.items():
        p, costs = score_texts(bundle, texts, candidates)
        other_p, other_costs = score_texts(bundle, others, candidates)
        unchanged, lost = {}, {}
        rows = np.arange(len(p))
        for sensitivity in sensitivities:
            chosen, other = choose(p, costs, sensitivity), choose(other_p, other_costs, sensitivity)
            unchanged[str(sensitivity)] = _share(chosen == other)
            willingness = Policy("cost_sensitivity", sensitivity).willingness
            u = cost_adjusted_utility(p, costs, willingness)
            lost[str(sensitivity)] = float((u[rows, chosen] - u[rows, other]).mean())
        top = float(metrics.top_candidate_share(p))
        moved = float(np.abs(p - other_p).mean())
        result[kind] = {
            "texts": len(texts),
            "unchanged": unchanged,
            "lost": lost,
            "moved": moved,
            "top_candidate_share": top,
        }
    return result


def _share(same: NDArray[np.bool_]) -> dict[str, object]:
    """Return the share of true values, and its 95 % interval."""
    bounds = metrics.interval(lambda rows: float(same[rows].mean()), len(same))
    return {"share": float(same.mean()), "ci": bounds}


def main() -> None:
    """Measure, write the figures as JSON and print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/bundle"), help="bundle")
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="data folders")
    parser.add_argument("--pairs", type=Path, help="JSONL file of questions and rewordings")
    parser.add_argument("--catalog", type=Path, help="file with candidates (the bundle's own)")
    parser.add_argument("--rows", type=int, default=100, help="test rows of each folder (100)")
    text = "cost sensitivities that choices are made at (0, 0.1, 0.3)"
    parser.add_argument(
        "--sensitivities", type=float, nargs="+", default=[0.0, 0.1, 0.3], help=text
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    arguments = parser.parse_args()
    if not arguments.data and arguments.pairs is None:
        raise InvalidInputError(Violation("--data", "is missing; give data folders or --pairs."))
    random = np.random.default_rng(0)
    texts: list[str] = []
    folders = [read_outcomes(folder) for folder in arguments.data]
    for outcomes, parts in zip(folders, split_folders(folders), strict=True):
        rows = random.permutation(parts.test)[: arguments.rows]
        texts += [outcomes.texts[row] for row in rows]
    rewrites: dict[str, tuple[Sequence[str], Sequence[str]]] = {}
    for kind, rewrite in REWRITES.items() if texts else ():
        others = [rewrite(random, text) for text in texts]
        changed = [i for i, other in enumerate(others) if other != texts[i]]
        if changed:
            rewrites[kind] = ([texts[i] for i in changed], [others[i] for i in changed])
    if arguments.pairs is not None:
        plain, reworded = zip(*read_pairs(arguments.pairs), strict=True)
        rewrites["pairs"] = (plain, reworded)
    catalog = arguments.catalog or arguments.bundle / "zoo.json"
    found = measure_rewrites(arguments.bundle, catalog, rewrites, arguments.sensitivities)
    text = json.dumps(found, indent=1)
    arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
