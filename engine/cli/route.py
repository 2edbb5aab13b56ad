"""`modelsat route`: print one decision, as a table or as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from engine.api.candidate import NAME_PREFIX
from engine.api.errors import LISTED_CANDIDATES, InvalidInputError
from engine.api.policy import OBJECTIVES, Policy, Session
from engine.api.prices import price_problem
from engine.cli import server_flags
from engine.cli.output import Column, print_table, stdout_console
from engine.cli.server_flags import connect
from engine.client.results import RouteDecision

if TYPE_CHECKING:
    from rich.console import Console

OOD_WARNING = 0.98  # out-of-distribution score from which the table carries a warning


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of `modelsat route`."""
    command.usage = "modelsat route TEXT [options]"
    add = command.add_argument
    add("text", metavar="TEXT", help='the instruction to route; "-" reads the standard input')
    add("--json", action="store_true", help="print one JSON object instead of a table")
    add("--dry-run", action="store_true", help="decide as usual, but record nothing")
    _add_objective(command.add_argument_group("objective (at most one)"))
    text = "standard errors by which another candidate must be better than the one that is best on"
    text += " average (default: that of the server)"
    command.add_argument("--confidence", type=float, metavar="Z", help=text)
    _add_constraints(command.add_argument_group("constraints"))
    _add_default(command.add_argument_group("default candidate"))
    _add_session(command.add_argument_group("session"))
    server_flags.add_arguments(command)
    command.set_defaults(run=_run)


def _add_objective(group: argparse._ArgumentGroup) -> None:
    objective = group.add_mutually_exclusive_group()
    for flag, metavar, text in (
        (
            "--willingness-to-pay-usd",
            "USD",
            "what a success is worth, 0.001 to 1 for chats: choose the highest probability less"
            " cost / this (default: that of the server)",
        ),
        (
            "--target-probability",
            "P",
            "choose the cheapest candidate that answers well with at least this probability",
        ),
        ("--budget-usd", "USD", "choose the best candidate whose expected cost is at most this"),
        ("--cost-sensitivity", "X", "the earlier form: a willingness to pay of $0.01 / X"),
    ):
        objective.add_argument(flag, type=float, metavar=metavar, help=text)


def _add_constraints(group: argparse._ArgumentGroup) -> None:
    for flag, metavar, text in (
        ("--allow", "ID", "choose among these candidates only"),
        ("--deny", "ID", "never choose this candidate"),
        ("--modality", "WORD", "input that the candidate must read, such as image"),
        ("--feature", "WORD", "feature that the candidate must have, such as tools or json_mode"),
        ("--tag", "WORD", "tag that the candidate must have"),
        ("--region", "WORD", "region that the candidate may run in; any of those given"),
    ):
        group.add_argument(
            flag, action="append", default=[], metavar=metavar, help=f"{text} (repeatable)"
        )
    text = "API that the candidate must answer in, such as openai.chat or anthropic.messages"
    group.add_argument("--api", default="", metavar="NAME", help=text)
    text = "smallest context window that the candidate may have"
    group.add_argument("--min-context-window", type=int, default=0, metavar="TOKENS", help=text)
    text = "longest expected time until the last token; excludes candidates of unknown latency"
    group.add_argument("--max-latency-ms", type=float, metavar="MS", help=text)
    for direction in ("input", "output"):
        text = f"highest list price per million {direction} tokens"
        flag = f"--max-{direction}-usd-per-million"
        group.add_argument(flag, type=float, metavar="USD", help=text)


def _add_default(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    text = "use the default candidate if no probability reaches this"
    add("--abstain-below-probability", type=float, default=0.0, metavar="P", help=text)
    text = "use the default candidate if the out-of-distribution score is above this"
    add("--max-ood-score", type=float, metavar="SCORE", help=text)
    text = "the default candidate (default: that of the server)"
    add("--default-candidate", default="", metavar="ID", help=text)


def _add_session(group: argparse._ArgumentGroup) -> None:
    text = "session ID; its requests stick to one candidate"
    group.add_argument("--session", metavar="ID", help=text)
    text = "minimum utility gain before the session switches candidates"
    group.add_argument("--switching-margin", type=float, metavar="U", help=text)


def _run(parsed: argparse.Namespace) -> None:
    session = None
    if parsed.session is not None:
        session = Session(parsed.session, parsed.switching_margin)
    text = sys.stdin.read().removesuffix("\n") if parsed.text == "-" else parsed.text
    with connect(parsed) as client:
        decision = client.route(text, _policy_from(parsed), session=session, dry_run=parsed.dry_run)
    if parsed.json:
        print(json.dumps(as_json(decision), ensure_ascii=False))
    else:
        print_decision(decision, stdout_console())


def _policy_from(parsed: argparse.Namespace) -> Policy:
    limits = ("max_input_usd_per_million", "max_output_usd_per_million")
    flags = [(getattr(parsed, name), f"--{name.replace('_', '-')}") for name in limits]
    if problems := [p for price, flag in flags if (p := price_problem(price, flag, "."))]:
        raise InvalidInputError(*problems)
    chosen = [name for name in OBJECTIVES if getattr(parsed, name) is not None]
    objective = chosen[0] if chosen else Policy.objective
    return Policy(
        objective,
        getattr(parsed, objective) or 0.0,
        allowed_candidates=tuple(i.removeprefix(NAME_PREFIX) for i in parsed.allow),
        denied_candidates=tuple(i.removeprefix(NAME_PREFIX) for i in parsed.deny),
        required_modalities=tuple(parsed.modality),
        required_features=tuple(parsed.feature),
        required_tags=tuple(parsed.tag),
        required_api=parsed.api,
        allowed_regions=tuple(parsed.region),
        min_context_window=parsed.min_context_window,
        max_input_usd_per_million=parsed.max_input_usd_per_million,
        max_output_usd_per_million=parsed.max_output_usd_per_million,
        abstain_below_probability=parsed.abstain_below_probability,
        max_ood_score=parsed.max_ood_score,
        default_candidate=parsed.default_candidate.removeprefix(NAME_PREFIX),
        confidence=parsed.confidence,
        max_latency_ms=parsed.max_latency_ms,
    )


def as_json(decision: RouteDecision) -> dict[str, Any]:
    """Convert a decision to what --json prints: candidates by ID, costs in US dollars or null if
    unknown, times in milliseconds."""
    fields = asdict(decision)
    timing_s = fields.pop("timing_s")
    return fields | {"timing_ms": {phase: s * 1e3 for phase, s in timing_s.items()}}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def print_decision(decision: RouteDecision, console: Console) -> None:
    """Print a decision as a table, with a line that explains it and one about the request."""
    learned = decision.adaptation_id != ""
    headings = ("probability", *(("before", "error") if learned else ()), "cost", "utility")
    rows = []
    for ranked in decision.ranking:
        cost = ranked.expected_cost_usd
        row = (
            "->" if ranked.candidate == decision.selected else "",
            ranked.candidate,
            f"{ranked.probability:.3f}",
            *(map(_number, (ranked.base_probability, ranked.standard_error)) if learned else ()),
            "unknown" if cost is None else f"${cost:.6f}",
            "last" if cost is None and ranked.utility < -1 else f"{ranked.utility:.3f}",
        )
        rows.append(row)
    columns = [Column(""), Column("candidate", text=True), *map(Column, headings)]
    print_table(columns, rows, console)
    by_reason: dict[str, list[str]] = {}
    for candidate, reason in decision.excluded.items():
        by_reason.setdefault(reason, []).append(candidate)
    for reason, names in by_reason.items():
        more = len(names) - LISTED_CANDIDATES
        listed = ", ".join(names[:LISTED_CANDIDATES]) + (f" and {more} more" if more > 0 else "")
        console.print(f"excluded: {listed}: {reason}")
    console.print(f"-> {decision.reason}")
    adapted = f", adaptation {decision.adaptation_id}" if learned else ""
    console.print(f"{decision.kind}, decision {decision.decision_id}{adapted}")
    times = ", ".join(f"{phase} {1e3 * s:.2f}" for phase, s in decision.timing_s.items())
    truncated = ", truncated in the middle" if decision.truncated else ""
    warning = ""
    if decision.ood_score is not None and decision.ood_score >= OOD_WARNING:
        percentile = f"{100 * decision.ood_score:.0f}th percentile"
        warning = f"; out of distribution ({percentile}), treat with caution"
    console.print(
        f"revision {decision.revision}; {decision.input_tokens} tokens{truncated}{warning};"
        f" ms: {times}"
    )
