"""The report for people: Markdown, and a table on the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.replay.report import policies_in

if TYPE_CHECKING:
    from rich.console import Console

Report = Mapping[str, Any]
HEADINGS = ("", "requests", "quality (estimate)", "$ per 1,000 (estimate)", "cost against used")
SHOWN = 8  # candidates of a mix, unknown names
WHAT_IS_WHAT = """\
Quality is the mean calibrated probability of what is chosen: an **estimate**, also for what was
used. Costs are estimates too: price list times input tokens and mean answer. Only the observed
quality was measured, and only of what was used. How a policy's other choices would have turned out
nobody has seen: where it chose what was used, estimate and outcome can be compared, but those
requests are no fair sample of the others. Brackets are 95 % intervals of a bootstrap over requests;
they hold the spread of the requests, not the error of the estimate itself. Figures of different
requests do not compare; what is said "against used" is of the same ones."""


def rows(report: Report) -> Iterator[tuple[str, ...]]:
    """The cells under HEADINGS."""
    for name, quality, cost in policies_in(report):
        part = report["policies"].get(name)
        ratio = "" if part is None else _percent(part["vs_logged"]["cost_ratio"])
        yield name, _requests(quality, cost), _figure(quality), _figure(cost, 1e3), ratio


def facts(report: Report) -> Iterator[str]:
    """Sentences, most important first."""
    log, used = report["log"], report["logged"]
    yield _read(report)
    if log["unknown_candidates"]:
        yield _unknown(log["unknown_candidates"])
    if log["without_candidate"]:
        yield f"{log['without_candidate']} requests do not say what was used."
    if used["logged_cost_usd"]["rows"]:
        cost = _figure(used["logged_cost_usd"], 1e3)
        yield f"Logged cost of what was used: ${cost} per 1,000 requests."
    if used["with_outcome"]:
        yield from _observed(used)
    for name, part in report["policies"].items():
        yield from _about(name, part)


def _read(report: Report) -> str:
    broken, period = report["log"]["invalid_rows"], report["period"]
    text = f"{report['requests']} requests"
    text += f" from {period['from']} to {period['to']}" if period else ""
    if broken["count"]:
        first = broken["first"][0]
        text += f"; skipped as broken: {broken['count']}, the first {first['file']}"
        text += f":{first['line']} ({first['problem'].rstrip('.')})"
    return text + "."


def _unknown(unknown: Mapping[str, int]) -> str:
    some = ", ".join(f"{name} ({count})" for name, count in list(unknown.items())[:SHOWN])
    more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
    return (
        f"{sum(unknown.values())} requests used candidates that the table does not have, so nothing"
        f" is compared there (--candidate-alias names them): {some}{more}."
    )


def _observed(used: Mapping[str, Any]) -> Iterator[str]:
    yield f"Observed quality of what was used: {_figure(used['observed_quality'])}."
    gap = used["estimate_minus_observed"]
    if gap["rows"]:
        yield (
            f"On {gap['rows']} of those requests what was used was scored too: estimate minus"
            f" outcome is {_figure(gap, signed=True)}, Brier score {used['brier']['value']:.3f}."
        )


def _about(name: str, part: Mapping[str, Any]) -> Iterator[str]:
    against, same = part["vs_logged"], part["on_agreement"]
    if against["changed"]["rows"]:
        yield (
            f"{name}: another choice on {_percent(against['changed'])} of requests; estimated"
            f" quality {_figure(against['quality_difference'], signed=True)} against what was used."
        )
    if same["observed_quality"]["rows"]:
        yield (
            f"{name}: where it chose what was used ({same['observed_quality']['rows']} with"
            f" outcome): observed {_figure(same['observed_quality'])}, estimated"
            f" {_figure(same['estimated_quality'])}."
        )
    if part["no_eligible_candidate"]:
        yield f"{name}: nobody was eligible for {part['no_eligible_candidate']} requests."
    if others := {k: n for k, n in part["kinds"].items() if k != "ranked"}:
        yield f"{name}: {', '.join(f'{k} {n}' for k, n in others.items())}."


def markdown(report: Report, plots: Sequence[str]) -> str:
    """report.md; plots: names of PNGs beside it."""
    lines = ["# Replay", "", *(f"- {fact}" for fact in facts(report)), ""]
    lines += [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    lines += [f"| {' | '.join(cells)} |" for cells in rows(report)]
    lines += ["", WHAT_IS_WHAT, "", "## Who is chosen", "", "| | share of requests |", "|---|---|"]
    for name, part in {"logged": report["logged"], **report["policies"]}.items():
        lines.append(f"| {name} | {_mix(part['selection_share'], len(part['selection_share']))} |")
    lines += ["", "## Policies", ""]
    for name, part in report["policies"].items():
        lines.append(f"- {name}: `{json.dumps(part['policy'])}`")
    if plots:
        lines += ["", "## Pictures", "", *(f"![{name}]({name})" for name in plots)]
    return "\n".join(lines) + "\n"


def print_report(report: Report, console: Console) -> None:
    """The table, what was found, and what of it is an estimate."""
    from rich.table import Table

    table = Table(*(HEADINGS[:1]))
    for heading in HEADINGS[1:]:
        table.add_column(heading, justify="right")
    for cells in rows(report):
        table.add_row(*cells)
    mixes = Table("", "who is chosen")
    for name, part in {"logged": report["logged"], **report["policies"]}.items():
        mixes.add_row(name, _mix(part["selection_share"], SHOWN // 2))
    console.print(table, mixes)
    for fact in facts(report):
        console.print(f"- {fact}")
    console.print("Only observed quality was measured; the rest are estimates, see report.md.")


def _requests(quality: Mapping[str, Any], cost: Mapping[str, Any]) -> str:
    """Over how many the two are taken: who was used may be unknown, a price too."""
    priced = "" if cost["rows"] == quality["rows"] else f" (cost: {cost['rows']})"
    return f"{quality['rows']}{priced}"


def _mix(mix: Mapping[str, int], most: int) -> str:
    total = sum(mix.values())
    shown = [f"{name} {count / total:.1%}" for name, count in list(mix.items())[:most]]
    rest = len(mix) - most
    return ", ".join(shown) + (f", {rest} others" if rest > 0 else "") or "nobody"


def _figure(estimate: Mapping[str, Any], scale: float = 1.0, *, signed: bool = False) -> str:
    """Value and interval, "unknown" where there is none."""
    if estimate["value"] is None:
        return "unknown"
    form = "+.3f" if signed else ".3f"
    value, low, high = (scale * estimate[k] for k in ("value", "low", "high"))
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _percent(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "unknown"
    return f"{estimate['value']:.1%} [{estimate['low']:.1%}, {estimate['high']:.1%}]"
