"""The five protocols of docs/explanation/quality.md: Model-SAT against simple routers on the same
rows.

    python -m research.protocols --protocol-bundle DIR --bundle DIR --data DIR --out DIR

The protocol bundle was trained on the MMLU-Pro rows of mmlu_pro_cot without the candidates that
UNSEEN names; it answers P1 (seen candidates), P2 (unseen ones), P3 (unseen benchmarks) and P5
(zoos, and candidates that arrive one by one). P4 (mixed tasks) is answered by the shipped bundle,
which was trained on the training rows of llmrouter9 among others. --data holds both folders.

Letters: B test rows, M candidates.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.bundle.types import FloatArray, Int64Array
from engine.datasets.outcomes import Outcomes, read_outcomes, split
from research.baselines import Rows, embed, seen_baselines, unseen_baselines
from training.evaluation import metrics
from training.evaluation.evaluate import Judged, figures, judge
from training.evaluation.plots import plot_dataset, plot_lines

UNSEEN = "qwen|gemini|phi|jamba|command-r|mathstral"
ELSEWHERE = ("gsm8k", "crux", "math_l5")
FIRST_ZOO = 5  # candidates to begin P5 with
EMBEDDINGS = Path("artifacts/embeddings")
RELEASES = {
    "Llama-2-7b-hf": "2023-07",
    "Llama-2-13b-hf": "2023-07",
    "Llama-2-70b-hf": "2023-07",
    "Mistral-7B-v0.1": "2023-09",
    "Mistral-7B-Instruct-v0.1": "2023-09",
    "Yi-34B": "2023-11",
    "Yi-6B": "2023-11",
    "Yi-6b-Chat": "2023-11",
    "Mixtral-8x7B-v0.1": "2023-12",
    "Mixtral-8x7B-Instruct-v0.1": "2023-12",
    "Mistral-7B-Instruct-v0.2": "2023-12",
    "Qwen1.5-72B-Chat": "2024-02",
    "Qwen1.5-7B-Chat": "2024-02",
    "gemma-7b": "2024-02",
    "c4ai-command-r-v01": "2024-03",
    "Mistral-7B-v0.2-hf": "2024-03",
    "Meta-Llama-3-8B": "2024-04",
    "Meta-Llama-3-70B": "2024-04",
    "Phi-3-mini-4k-instruct": "2024-04",
    "Qwen1.5-110B": "2024-04",
    "DeepSeek-Coder-V2": "2024-06",
    "mathstral-7B": "2024-07",
    "Meta-Llama-3_1-8B": "2024-07",
    "Meta-Llama-3_1-8B-Instruct": "2024-07",
    "Meta-Llama-3_1-70B": "2024-07",
    "Meta-Llama-3_1-70B-Instruct": "2024-07",
    "jamba-1.5-large": "2024-08",
    "gemini-1.5-flash-002": "2024-09",
    "gemini-1.5-pro-002": "2024-09",
}
UNDER_10B = (
    "Llama-2-7b-hf",
    "Mistral-7B-v0.1",
    "Mistral-7B-Instruct-v0.1",
    "Mistral-7B-Instruct-v0.2",
    "Mistral-7B-v0.2-hf",
    "Yi-6B",
    "Yi-6b-Chat",
    "Qwen1.5-7B-Chat",
    "gemma-7b",
    "Meta-Llama-3-8B",
    "Phi-3-mini-4k-instruct",
    "mathstral-7B",
    "Meta-Llama-3_1-8B",
    "Meta-Llama-3_1-8B-Instruct",
)
ZOOS = {
    "under 10B": UNDER_10B,
    "large": tuple(n for n in RELEASES if n not in (*UNDER_10B, "Llama-2-13b-hf")),
    "mixed": tuple(RELEASES),
}


def part(judged: Judged, rows: Int64Array, candidates: Int64Array) -> Judged:
    """These rows and candidates alone."""
    at = np.ix_(rows, candidates)
    outcomes = judged.outcomes.take(rows).only(candidates)
    return Judged(outcomes, judged.p[at], judged.scores[at], judged.costs[at])


def compared(judged: Judged, baselines: Mapping[str, FloatArray]) -> dict[str, Any]:
    """The model's figures, each baseline's, and the lead over the best of them, with intervals."""
    result: dict[str, Any] = {"model": figures(judged), "baselines": {}}
    for name, p in baselines.items():
        result["baselines"][name] = metrics.report(p, judged.scores)
    auc = {name: found["pooled_auc"] for name, found in result["baselines"].items()}
    best = max(auc, key=lambda name: auc[name])
    y, mine, other = judged.scores, judged.p, baselines[best]

    def lead(rows: Int64Array) -> float:
        return metrics.pooled_auc(mine[rows], y[rows]) - metrics.pooled_auc(other[rows], y[rows])

    result["best_baseline"] = best
    result["lead"] = lead(np.arange(len(y)))
    result["lead_ci"] = metrics.interval(lead, len(y))
    return result


class Bench:
    """One folder, its embeddings and splits, and a bundle's answers to its test rows."""

    def __init__(self, folder: Path, bundle: Path, zoo: Path, benchmarks: tuple[str, ...]) -> None:
        self.outcomes: Outcomes = read_outcomes(folder)
        self.x = embed(self.outcomes.texts, EMBEDDINGS)
        train, validation, self.test = split(self.outcomes.texts)
        self.train, self.validation = (self.among(r, benchmarks) for r in (train, validation))
        self.judged = judge(bundle, self.outcomes.take(self.test), zoo)

    def among(self, rows: Int64Array, benchmarks: tuple[str, ...]) -> Int64Array:
        """The rows of these benchmarks; all where none is named."""
        names = self.outcomes.benchmarks
        return np.array([i for i in rows if not benchmarks or names[i] in benchmarks], dtype=int)

    def rows(self, rows: Int64Array, candidates: Int64Array) -> Rows:
        """What a baseline reads."""
        names = [self.outcomes.subjects[i] for i in rows]
        return Rows(self.x[rows], self.outcomes.scores[np.ix_(candidates, rows)], names)

    def tested(self, benchmarks: tuple[str, ...]) -> tuple[Int64Array, Int64Array]:
        """(row numbers in the folder, positions among the test rows) of these benchmarks."""
        rows = self.among(self.test, benchmarks)
        return rows, np.flatnonzero(np.isin(self.test, rows))


def seen_protocol(
    bench: Bench, candidates: Int64Array, benchmarks: tuple[str, ...]
) -> dict[str, Any]:
    """Candidates that training saw, on held-out rows."""
    rows, at = bench.tested(benchmarks)
    found = seen_baselines(
        bench.rows(bench.train, candidates),
        bench.rows(bench.validation, candidates),
        bench.rows(rows, candidates),
        bench.outcomes.test.figures[candidates],
    )
    return compared(part(bench.judged, at, candidates), found)


def unseen_protocol(
    bench: Bench, known: Int64Array, judged: Int64Array, benchmarks: tuple[str, ...]
) -> dict[str, Any]:
    """Candidates that are known by their figures alone."""
    rows, at = bench.tested(benchmarks)
    test = bench.outcomes.test.figures
    found = unseen_baselines(
        bench.rows(bench.train, known),
        bench.rows(bench.validation, known),
        bench.rows(rows, judged),
        test[known],
        test[judged],
    )
    return compared(part(bench.judged, at, judged), found)


def stories(bench: Bench, out: Path) -> dict[str, Any]:
    """P5: named zoos, and candidates added one by one in order of release, nothing retrained."""
    _, at = bench.tested(("mmlu_pro",))
    names = bench.outcomes.candidates

    def routed(members: list[str]) -> dict[str, float]:
        columns = np.array([names.index(n) for n in members])
        chosen = part(bench.judged, at, columns)
        return metrics.report(chosen.p, chosen.scores)

    zoos = {zoo: routed([n for n in names if n in members]) for zoo, members in ZOOS.items()}
    order = sorted((n for n in names if n in RELEASES), key=lambda n: (RELEASES[n], n))
    added = order[FIRST_ZOO - 1 :]
    steps = [routed(order[: FIRST_ZOO + i]) for i in range(len(added))]
    keys = {"routed": "routed_accuracy", "best single so far": "best_single_accuracy"}
    lines = {label: [s[key] for s in steps] for label, key in keys.items()}
    plot_lines(lines, added, "accuracy", out / "p5-release.png")
    gaps = np.array([s["routed_accuracy"] - s["best_single_accuracy"] for s in steps])
    return {
        "zoos": zoos,
        "steps": dict(zip(added, steps, strict=True)),
        "least_gain": float(gaps.min()),
        "mean_gain": float(gaps.mean()),
    }


def main() -> None:
    """Run every protocol; write protocols.json, plots, and print the table of
    docs/explanation/quality.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("protocol-bundle", "bundle", "data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--catalog", type=Path, default=Path("pretrained/zoo.json"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    pro = ("mmlu_pro",)
    main_bench = Bench(given.data / "mmlu_pro_cot", given.protocol_bundle, given.catalog, pro)
    names = main_bench.outcomes.candidates
    unseen = np.array([bool(re.search(UNSEEN, n, re.IGNORECASE)) for n in names])
    known, new, everyone = np.flatnonzero(~unseen), np.flatnonzero(unseen), np.arange(len(names))
    mixed = Bench(given.data / "llmrouter9", given.bundle, given.catalog, ())
    report = {
        "P1": seen_protocol(main_bench, known, pro),
        "P2": unseen_protocol(main_bench, known, new, pro),
        "P3": unseen_protocol(main_bench, known, everyone, ELSEWHERE),
        "P4": seen_protocol(mixed, np.arange(len(mixed.outcomes.candidates)), ()),
        "P5": stories(main_bench, given.out),
    }
    _, at = main_bench.tested(pro)
    cost = part(main_bench.judged, at, everyone)
    report["cost"] = figures(cost)
    plot_dataset(cost.p, cost.scores, cost.costs, given.out / "p1-all")
    text = json.dumps(report, indent=1)
    (given.out / "protocols.json").write_text(text + "\n", encoding="utf-8")
    table = as_markdown(report)
    (given.out / "protocols.md").write_text(table, encoding="utf-8")
    print(table)


def as_markdown(report: Mapping[str, Any]) -> str:
    """One table a protocol, the model first."""
    lines = []
    for name in ("P1", "P2", "P3", "P4"):
        found = report[name]
        low, high = found["lead_ci"]
        lines += [
            f"**{name}**, lead over {found['best_baseline']} {found['lead']:+.4f}"
            f" ({low:+.3f} to {high:+.3f})",
            "",
            "| | pooled AUC | within AUC | ECE | routed | best single | top share |",
            "|---|---|---|---|---|---|---|",
        ]
        for label, row in {"Model-SAT": found["model"], **found["baselines"]}.items():
            keys = (
                "pooled_auc",
                "per_instruction_auc",
                "ece",
                "routed_accuracy",
                "best_single_accuracy",
                "top_candidate_share",
            )
            lines.append(f"| {label} | " + " | ".join(f"{row[k]:.4f}" for k in keys) + " |")
        lines.append("")
    stories = report["P5"]
    lines += [
        f"**P5**, release by release: mean gain {stories['mean_gain']:+.4f}, least"
        f" {stories['least_gain']:+.4f}",
        "",
        "| zoo | routed | best single |",
        "|---|---|---|",
    ]
    for zoo, row in stories["zoos"].items():
        lines.append(
            f"| {zoo} | {row['routed_accuracy']:.4f} | {row['best_single_accuracy']:.4f} |"
        )
    cost = report["cost"]
    lines += [
        "",
        f"Cost at 95 % of the best single candidate's accuracy: {cost['cost_at_95']:.3f} of its"
        f" cost, {cost['mix_at_95']:.3f} of the cheapest random mix's.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
