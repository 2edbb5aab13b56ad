"""Render the report of a replay as Markdown and as a table on the terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.replay.report import policies_in

if TYPE_CHECKING:
    from rich.console import Console

Report = Mapping[str, Any]
HEADINGS = (
    "",
    "requests",
    "quality (estimate)",
    "$ per 1,000 (estimate)",
    "cost relative to logged",
)
MAX_LISTED = 8  # candidates of a selection, unknown names
WIDE = 104  # columns of a terminal in which a row of the table has one line
FULL_COVERAGE = 0.9  # of a policy's choices by the log; above it the rest changes little
NOTES = """\
Quality is the mean calibrated probability of the selected candidates: an **estimate**, also for the
log. Costs are estimates too: list prices times input tokens and mean output. Only the observed
quality was measured, and only for the logged candidates. The outcomes of a policy's other
selections are unknown. If a policy selects the logged candidate, estimate and outcome can be
compared, but those requests are not a fair sample of the others. Brackets are 95 % intervals of a
bootstrap over requests; they cover the spread of the requests, not the error of the estimate
itself. Values over different requests do not compare; those relative to the log cover the same
requests. Off-policy estimates need a log of a server that explores; they are measured on the
choices that the log shares with the policy, weighted by the reciprocal of their propensity."""


def rows(report: Report) -> Iterator[tuple[str, ...]]:
    """Iterate over the rows of the table, cells under HEADINGS."""
    for name, quality, cost in policies_in(report):
        part = report["policies"].get(name)
        ratio = "" if part is None else _percent(part["vs_logged"]["cost_ratio"])
        yield name, _requests(quality, cost), _estimate(quality), _estimate(cost, 1e3), ratio


def summary_lines(report: Report) -> Iterator[str]:
    """Write human-readable summary lines, the most important first."""
    log, logged = report["log"], report["logged"]
    yield _read(report)
    if log["unknown_candidates"]:
        yield _unknown(log["unknown_candidates"])
    if log["dropped_values"]:
        counts = ", ".join(f"{column} ({n})" for column, n in log["dropped_values"].items())
        yield f"Values that could not be read were left out, the requests kept: {counts}."
    if log["other_records"]:
        yield f"{log['other_records']} records are no requests to an LLM, so they are skipped."
    if log["without_candidate"]:
        yield f"{log['without_candidate']} requests have no candidate in the log."
    if logged["logged_cost_usd"]["rows"]:
        cost = _estimate(logged["logged_cost_usd"], 1e3)
        yield f"Cost according to the log: ${cost} per 1,000 requests."
    if logged["with_outcome"]:
        yield from _observed(logged)
    for name, part in report["policies"].items():
        yield from _about_policy(name, part)


def _read(report: Report) -> str:
    invalid, period = report["log"]["invalid_rows"], report["period"]
    text = f"{report['requests']} requests"
    text += f" from {period['from']} to {period['to']}" if period else ""
    if count := invalid["count"]:
        first = invalid["first"][0]
        rows = "1 invalid row" if count == 1 else f"{count} invalid rows"
        text += f"; {rows} skipped, the first {first['file']}:{first['line']}"
        text += f" ({first['problem'].rstrip('.')})"
    return text + "."


def _unknown(unknown: Mapping[str, int]) -> str:
    some = ", ".join(f"{name} ({count})" for name, count in list(unknown.items())[:MAX_LISTED])
    more = f" and {len(unknown) - MAX_LISTED} more" if len(unknown) > MAX_LISTED else ""
    return (
        f"{sum(unknown.values())} requests used candidates that the table does not have, so they"
        f" are not compared (--candidate-alias maps them): {some}{more}."
    )


def _observed(logged: Mapping[str, Any]) -> Iterator[str]:
    yield f"Observed quality of the logged candidates: {_estimate(logged['observed_quality'])}."
    gap = logged["estimate_minus_observed"]
    if gap["rows"]:
        yield (
            f"On {gap['rows']} of those requests the logged candidate was scored too: estimate"
            f" minus outcome is {_estimate(gap, signed=True)}, Brier score"
            f" {logged['brier']['value']:.3f}."
        )


def _about_policy(name: str, part: Mapping[str, Any]) -> Iterator[str]:
    versus, same = part["vs_logged"], part["on_agreement"]
    if versus["changed"]["rows"]:
        gain = _estimate(versus["quality_difference"], signed=True)
        yield (
            f"{name}: another choice on {_percent(versus['changed'])} of requests; estimated"
            f" quality {gain} relative to the logged candidates."
        )
    if same["observed_quality"]["rows"]:
        yield (
            f"{name}: on agreement with the log ({same['observed_quality']['rows']} requests with"
            f" outcome): observed {_estimate(same['observed_quality'])}, estimated"
            f" {_estimate(same['estimated_quality'])}."
        )
    if (off_policy := part["off_policy"]) is not None:
        yield from _about_off_policy(name, off_policy)
    if part["no_eligible_candidate"]:
        yield f"{name}: {part['no_eligible_candidate']} requests had no eligible candidate."
    if others := {k: n for k, n in part["kinds"].items() if k != "ranked"}:
        yield f"{name}: {', '.join(f'{k} {n}' for k, n in others.items())}."


def _about_off_policy(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    robust, weighted = found["doubly_robust"], found["inverse_propensity"]
    yield (
        f"{name}: quality by the logged outcomes and propensities ({robust['rows']} requests):"
        f" {_estimate(robust)} doubly robust, {_estimate(weighted)} by inverse propensity, worth"
        f" {found['effective_outcomes']:.0f} outcomes."
    )
    if found["coverage"] < FULL_COVERAGE:
        yield (
            f"{name}: the log can hold {found['coverage']:.0%} of its choices. For the others the"
            " doubly robust estimate is the model's, and inverse propensity leaves them out."
        )


def markdown(report: Report, plots: Sequence[str]) -> str:
    """Render report.md; plots: file names of PNGs in the same folder."""
    lines = ["# Replay", "", *(f"- {line}" for line in summary_lines(report)), ""]
    lines += [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    lines += [f"| {' | '.join(cells)} |" for cells in rows(report)]
    lines += ["", NOTES, "", "## Selection share", "", "| | share of requests |", "|---|---|"]
    for name, part in {"logged": report["logged"], **report["policies"]}.items():
        lines.append(
            f"| {name} | {_shares(part['selection_share'], len(part['selection_share']))} |"
        )
    lines += ["", "## Policies", ""]
    for name, part in report["policies"].items():
        lines.append(f"- {name}: `{json.dumps(part['policy'])}`")
    if plots:
        lines += ["", "## Plots", "", *(f"![{name}]({name})" for name in plots)]
    return "\n".join(lines) + "\n"


def print_report(report: Report, console: Console) -> None:
    """Print the table, the summary, and a note on what is an estimate."""
    from rich.table import Table

    table = Table(*(HEADINGS[:1]))
    for heading in HEADINGS[1:]:
        table.add_column(heading, justify="right")
    for cells in rows(report):
        # Intervals are below their values if the terminal has no room for both in a line.
        table.add_row(
            *(c if console.width >= WIDE else re.sub(r" (?=[\[(])", "\n", c) for c in cells)
        )
    shares = Table("", "selection share")
    for name, part in {"logged": report["logged"], **report["policies"]}.items():
        shares.add_row(name, _shares(part["selection_share"], MAX_LISTED // 2))
    console.print(table, shares)
    for line in summary_lines(report):
        console.print(f"- {line}")
    console.print("Only observed quality was measured; the rest are estimates, see report.md.")


def _requests(quality: Mapping[str, Any], cost: Mapping[str, Any]) -> str:
    """Count the requests of both means; the candidate may be unknown, and so may its price."""
    priced = "" if cost["rows"] == quality["rows"] else f" (cost: {cost['rows']})"
    return f"{quality['rows']}{priced}"


def _shares(counts: Mapping[str, int], most: int) -> str:
    total = sum(counts.values())
    listed = [f"{name} {count / total:.1%}" for name, count in list(counts.items())[:most]]
    rest = len(counts) - most
    return ", ".join(listed) + (f", {rest} others" if rest > 0 else "") or "none"


def _estimate(estimate: Mapping[str, Any], scale: float = 1.0, *, signed: bool = False) -> str:
    """Format value and interval; "unknown" if there is no value."""
    if estimate["value"] is None:
        return "unknown"
    form = "+.3f" if signed else ".3f"
    value, low, high = (scale * estimate[k] for k in ("value", "low", "high"))
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _percent(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "unknown"
    return f"{estimate['value']:.1%} [{estimate['low']:.1%}, {estimate['high']:.1%}]"
