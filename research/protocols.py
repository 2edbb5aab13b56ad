"""Run the five protocols of docs/explanation/quality.md: Model-SAT against simple routers.

    python -m research.protocols --protocol-bundle DIR --bundle DIR --data DIR --out DIR

The protocol bundle was trained on the MMLU-Pro rows of mmlu_pro_cot without the candidates that
UNSEEN names. It is used for P1 (seen candidates), P2 (unseen candidates), P3 (unseen benchmarks)
and P5 (catalogs, and candidates that arrive one by one). The shipped bundle, which was trained on
the training rows of llmrouter9 among others, is used for P4 (mixed tasks). --data holds both
folders.

Shapes: B test rows, M candidates.
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
from engine.datasets.outcomes import Outcomes, read_outcomes
from research.baselines import Rows, embed, seen_baselines, unseen_baselines
from training.data.near_duplicates import split_folders
from training.evaluation import metrics
from training.evaluation.evaluate import measure, score_dataset
from training.evaluation.plots import plot_dataset, plot_lines
from training.evaluation.scored import ScoredDataset

UNSEEN = "qwen|gemini|phi|jamba|command-r|mathstral"
OTHER_BENCHMARKS = ("gsm8k", "crux", "math_l5")
INITIAL_CATALOG_SIZE = 5  # candidates to begin P5 with
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
MIDDLE = (
    "Llama-2-13b-hf",
    "Yi-34B",
    "Mixtral-8x7B-v0.1",
    "Mixtral-8x7B-Instruct-v0.1",
    "c4ai-command-r-v01",
    "DeepSeek-Coder-V2",
    "gemini-1.5-flash-002",
)
CATALOGS = {
    "under 10B": UNDER_10B,
    "large": tuple(n for n in RELEASES if n not in (*UNDER_10B, "Llama-2-13b-hf")),
    # The paper's mixed sets: small or middle ones with one strong candidate.
    "smaller and one strong": (*UNDER_10B, "gemini-1.5-pro-002"),
    "middle and one strong": (*MIDDLE, "gemini-1.5-pro-002"),
    "mixed": tuple(RELEASES),
}


def part(scored: ScoredDataset, rows: Int64Array, candidates: Int64Array) -> ScoredDataset:
    """Select rows and candidates."""
    at = np.ix_(rows, candidates)
    outcomes = scored.outcomes.take(rows).take_candidates(candidates)
    return ScoredDataset(
        outcomes, scored.p[at], scored.scores[at], scored.costs[at], scored.embeddings[at]
    )


def compared(scored: ScoredDataset, baselines: Mapping[str, FloatArray]) -> dict[str, Any]:
    """Measure the model, each baseline, and the lead over the best of them, with intervals."""
    result: dict[str, Any] = {"model": measure(scored), "baselines": {}}
    for name, p in baselines.items():
        result["baselines"][name] = metrics.report(p, scored.scores)
    auc = {name: values["pooled_auc"] for name, values in result["baselines"].items()}
    best = max(auc, key=lambda name: auc[name])
    y, mine, other = scored.scores, scored.p, baselines[best]

    def lead(rows: Int64Array) -> float:
        return metrics.pooled_auc(mine[rows], y[rows]) - metrics.pooled_auc(other[rows], y[rows])

    result["best_baseline"] = best
    result["lead"] = lead(np.arange(len(y)))
    result["lead_ci"] = metrics.interval(lead, len(y))
    return result


class ProtocolData:
    """One folder, its embeddings and splits, and a bundle's predictions for its test rows."""

    def __init__(
        self,
        outcomes: Outcomes,
        other: Outcomes,
        bundle: Path,
        catalog: Path,
        benchmarks: tuple[str, ...],
    ) -> None:
        """other: a folder whose near-duplicates are no test rows either."""
        self.outcomes = outcomes
        self.x = embed(self.outcomes.texts, EMBEDDINGS)
        parts, _ = split_folders([outcomes, other])
        self.test = parts.test
        self.train = self.among(parts.train, benchmarks)
        self.validation = self.among(parts.validation, benchmarks)
        self.scored = score_dataset(bundle, self.outcomes.take(self.test), catalog)

    def among(self, rows: Int64Array, benchmarks: tuple[str, ...]) -> Int64Array:
        """Select the rows of these benchmarks; all of them if none is named."""
        names = self.outcomes.benchmarks
        return np.array([i for i in rows if not benchmarks or names[i] in benchmarks], dtype=int)

    def rows(self, rows: Int64Array, candidates: Int64Array) -> Rows:
        """Collect what a baseline reads."""
        names = [self.outcomes.subjects[i] for i in rows]
        return Rows(self.x[rows], self.outcomes.scores[np.ix_(candidates, rows)], names)

    def tested(self, benchmarks: tuple[str, ...]) -> tuple[Int64Array, Int64Array]:
        """Find the test rows of these benchmarks: (row numbers, positions among the test rows)."""
        rows = self.among(self.test, benchmarks)
        return rows, np.flatnonzero(np.isin(self.test, rows))


def seen_protocol(
    bench: ProtocolData, candidates: Int64Array, benchmarks: tuple[str, ...]
) -> dict[str, Any]:
    """Compare on held-out rows of candidates that training saw."""
    rows, at = bench.tested(benchmarks)
    found = seen_baselines(
        bench.rows(bench.train, candidates),
        bench.rows(bench.validation, candidates),
        bench.rows(rows, candidates),
        bench.outcomes.test.accuracies[candidates],
    )
    return compared(part(bench.scored, at, candidates), found)


def unseen_protocol(
    bench: ProtocolData, known: Int64Array, scored: Int64Array, benchmarks: tuple[str, ...]
) -> dict[str, Any]:
    """Compare on candidates that are known by their accuracies alone."""
    rows, at = bench.tested(benchmarks)
    test = bench.outcomes.test.accuracies
    found = unseen_baselines(
        bench.rows(bench.train, known),
        bench.rows(bench.validation, known),
        bench.rows(rows, scored),
        test[known],
        test[scored],
    )
    return compared(part(bench.scored, at, scored), found)


def catalog_growth(bench: ProtocolData, out: Path) -> dict[str, Any]:
    """P5: named catalogs, and candidates added one by one in order of release, without training."""
    _, at = bench.tested(("mmlu_pro",))
    names = bench.outcomes.candidates

    def routed(members: list[str]) -> dict[str, float]:
        columns = np.array([names.index(n) for n in members])
        chosen = part(bench.scored, at, columns)
        return metrics.report(chosen.p, chosen.scores)

    catalogs = {
        catalog: routed([n for n in names if n in members]) for catalog, members in CATALOGS.items()
    }
    order = sorted((n for n in names if n in RELEASES), key=lambda n: (RELEASES[n], n))
    added = order[INITIAL_CATALOG_SIZE - 1 :]
    steps = [routed(order[: INITIAL_CATALOG_SIZE + i]) for i in range(len(added))]
    keys = {"routed": "routed_accuracy", "best single so far": "best_single_accuracy"}
    lines = {label: [s[key] for s in steps] for label, key in keys.items()}
    plot_lines(lines, added, "accuracy", out / "p5-release.png")
    gaps = np.array([s["routed_accuracy"] - s["best_single_accuracy"] for s in steps])
    return {
        "catalogs": catalogs,
        "steps": dict(zip(added, steps, strict=True)),
        "min_gain": float(gaps.min()),
        "mean_gain": float(gaps.mean()),
    }


def main() -> None:
    """Run every protocol, write protocols.json and plots, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    required = {
        "--protocol-bundle": "bundle trained with training/configs/protocol.json",
        "--bundle": "the shipped bundle",
        "--data": "folder that holds mmlu_pro_cot and llmrouter9",
        "--out": "folder for report and plots",
    }
    for flag, text in required.items():
        parser.add_argument(flag, type=Path, required=True, help=text)
    parser.add_argument(
        "--catalog", type=Path, default=Path("pretrained/zoo.json"), help="file with prices"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    pro = ("mmlu_pro",)
    first, second = (read_outcomes(arguments.data / n) for n in ("mmlu_pro_cot", "llmrouter9"))
    catalog = arguments.catalog
    mmlu_pro = ProtocolData(first, second, arguments.protocol_bundle, catalog, pro)
    names = mmlu_pro.outcomes.candidates
    unseen = np.array([bool(re.search(UNSEEN, n, re.IGNORECASE)) for n in names])
    known, new, everyone = np.flatnonzero(~unseen), np.flatnonzero(unseen), np.arange(len(names))
    mixed = ProtocolData(second, first, arguments.bundle, catalog, ())
    report = {
        "P1": seen_protocol(mmlu_pro, known, pro),
        "P2": unseen_protocol(mmlu_pro, known, new, pro),
        "P3": unseen_protocol(mmlu_pro, known, everyone, OTHER_BENCHMARKS),
        "P4": seen_protocol(mixed, np.arange(len(mixed.outcomes.candidates)), ()),
        "P5": catalog_growth(mmlu_pro, arguments.out),
    }
    _, at = mmlu_pro.tested(pro)
    cost = part(mmlu_pro.scored, at, everyone)
    report["cost"] = measure(cost)
    plot_dataset(cost.p, cost.scores, cost.costs, arguments.out / "p1-all")
    text = json.dumps(report, indent=1)
    (arguments.out / "protocols.json").write_text(text + "\n", encoding="utf-8")
    table = as_markdown(report)
    (arguments.out / "protocols.md").write_text(table, encoding="utf-8")
    print(table)


def as_markdown(report: Mapping[str, Any]) -> str:
    """Render a table for each protocol, the model first."""
    lines = []
    for name in ("P1", "P2", "P3", "P4"):
        found = report[name]
        low, high = found["lead_ci"]
        lines += [
            f"**{name}**, lead over {found['best_baseline']} {found['lead']:+.4f}"
            f" ({low:+.3f} to {high:+.3f})",
            "",
            "| | AUC | AUC per instruction | ECE | routed | best single | top candidate share |",
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
    growth = report["P5"]
    lines += [
        f"**P5**, release by release: mean gain {growth['mean_gain']:+.4f}, smallest"
        f" {growth['min_gain']:+.4f}",
        "",
        "| catalog | routed | best single |",
        "|---|---|---|",
    ]
    for catalog, row in growth["catalogs"].items():
        lines.append(
            f"| {catalog} | {row['routed_accuracy']:.4f} | {row['best_single_accuracy']:.4f} |"
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
