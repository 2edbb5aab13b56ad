"""Show expected costs and the report of a comparison on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.compare.costs import ExpectedCost

if TYPE_CHECKING:
    from rich.console import Console

Document = Mapping[str, Any]
REGION_WIDTH, CANDIDATE_WIDTH = 36, 18  # columns of a terminal
MIN_GRADED = 5  # of a candidate in a region, below which the region says little


def print_expected(
    costs: Sequence[ExpectedCost], budget_usd: float | None, console: Console
) -> None:
    """Print what each endpoint will be asked, and the total."""
    from rich.table import Table

    table = Table("endpoint", "requests", "input tokens", "output tokens", "cost")
    for column in table.columns[1:]:
        column.justify = "right"
    for cost in costs:
        usd = "unknown" if cost.usd is None else f"${cost.usd:.4f}"
        cells = (f"{cost.requests:,}", f"{cost.input_tokens:,}", f"{cost.output_tokens:,}")
        table.add_row(cost.name, *cells, usd)
    console.print(table)
    total = sum(cost.usd or 0.0 for cost in costs)
    unpriced = _without([cost.name for cost in costs if cost.usd is None])
    requests = sum(cost.requests for cost in costs)
    console.print(f"Expected: {requests:,} requests, about ${total:.4f}{unpriced}.")
    if budget_usd is not None and total > budget_usd:
        console.print(
            f"That is more than the budget of ${budget_usd:g}; the run will stop when it is spent."
        )


def print_report(report: Document, console: Console) -> None:
    """Print the tables and what else a reader has to know."""
    from rich.table import Table

    ranked = sorted(
        report["candidates"].items(), key=lambda pair: (-(pair[1]["score"] or -1.0), pair[0])
    )
    table = Table("candidate", "score", "minus the best", "$ per 1,000", "tokens", "median s")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, entry in ranked:
        table.add_row(
            name,
            _score(entry),
            _behind(entry),
            _per_thousand(entry["cost_usd"], entry["replies"]),
            f"{entry['output_tokens'] / max(1, entry['replies']):.0f}",
            "" if entry["median_latency_s"] is None else f"{entry['median_latency_s']:.2f}",
        )
    console.print(table)
    if len(report["regions"]) > 1:
        _print_regions(report, [name for name, _ in ranked], console)
    for line in summary_lines(report):
        console.print(line)


def _print_regions(report: Document, names: Sequence[str], console: Console) -> None:
    from rich.table import Table

    # As many candidates in a table as the terminal has room for.
    fit = max(1, (console.width - REGION_WIDTH) // CANDIDATE_WIDTH)
    for start in range(0, len(names), fit):
        table = Table("region", "instructions", *(shown := names[start : start + fit]))
        for column in table.columns[1:]:
            column.justify = "right"
        for region in report["regions"]:
            scores = {n: region["candidates"][n]["score"] for n in names}
            top = max((s for s in scores.values() if s is not None), default=None)
            cells = [
                f"{_score(region['candidates'][n])}{'*' if scores[n] == top is not None else ' '}"
                for n in shown
            ]
            table.add_row(region["name"], str(region["instructions"]), *cells)
        console.print(table)


def summary_lines(report: Document) -> Iterator[str]:
    """Write human-readable summary lines."""
    sample = report["sample"]
    yield (
        f"{report['compared']} instructions, drawn from {sample['pool']} different ones of"
        f" {sample['requests']} requests; distances by {sample['vectors']}. Graded by"
        f" {', '.join(report['graders'])}. ± is half of a 95 % interval"
        + ("; * is the best of a region." if len(report["regions"]) > 1 else ".")
    )
    if sample["invalid_rows"]:
        yield f"{sample['invalid_rows']} rows of the log could not be read."
    for reason, count in sample["left_out"].items():
        yield f"{count} requests {reason}, so they are left out."
    if report["disagreement"] is not None:
        yield f"Mean disagreement of the verdicts: {report['disagreement']:.3f}."
    for name, entry in report["candidates"].items():
        for problem, count in entry["not_graded"].items():
            yield f"{name}: {count} replies have no score ({problem})."
    for name in sorted(set(report["judges"]) & set(report["candidates"])):
        yield f"{name} judges its own answers; models tend to prefer theirs."
    if report["over_budget"]:
        yield (
            f"The budget left out {report['over_budget']} instructions: replies that end at"
            " max_tokens could exceed it. A lower max_tokens lets more of them fit."
        )
    for name, entry in report["judges"].items():
        cost = "" if entry["cost_usd"] is None else f", ${entry['cost_usd']:.4f}"
        yield f"Judge {name}: {entry['replies']} verdicts{cost}."
    priced = {**report["candidates"], **report["judges"]}
    unpriced = _without([name for name, entry in priced.items() if entry["cost_usd"] is None])
    yield f"Spent in all: ${report['spent_usd']:.4f}{unpriced}."
    if any(
        0 < region["candidates"][name]["graded"] < MIN_GRADED
        for region in report["regions"]
        for name in report["candidates"]
    ):
        yield f"Regions with fewer than {MIN_GRADED} graded replies say little."


def _without(unpriced: Sequence[str]) -> str:
    return f" without {', '.join(unpriced)}, whose prices are unknown" if unpriced else ""


def _score(entry: Mapping[str, Any]) -> str:
    if entry["score"] is None:
        return "none graded"
    low, high = entry["interval"]
    return f"{entry['score']:.2f} ±{(high - low) / 2:.2f}"


def _behind(entry: Mapping[str, Any]) -> str:
    difference = entry.get("minus_best")
    if not difference:
        return ""
    low, high = difference["interval"]
    return f"{difference['difference']:+.2f} ±{(high - low) / 2:.2f}"


def _per_thousand(usd: float | None, replies: int) -> str:
    return "unknown" if usd is None else f"{1000 * usd / max(1, replies):.3f}"
