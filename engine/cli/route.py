"""`modelsat route`: one decision, as a table for people or as JSON."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from engine.api.candidate import PREFIX
from engine.api.policy import Objective, Policy, Session
from engine.cli import server_flags
from engine.cli.server_flags import connect
from engine.pb.router_service_pb2 import DecisionKind, RouteResponse, Timing

if TYPE_CHECKING:
    from rich.console import Console

HELP = "choose a candidate for an instruction"
STRANGE = 0.98  # ood_score from which a person is told
PHASES = tuple(field.name for field in Timing.DESCRIPTOR.fields)
OBJECTIVES: tuple[Objective, ...] = ("cost_sensitivity", "target_probability", "budget_usd")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `modelsat route`."""
    add = command.add_argument
    add("text", help="the instruction")
    server_flags.add_arguments(command)
    add("--json", action="store_true", help="one JSON object in place of the table")
    goal = command.add_mutually_exclusive_group()
    goal.add_argument("--cost-sensitivity", type=float, metavar="X", help="0 = quality alone")
    goal.add_argument(
        "--target-probability", type=float, metavar="P", help="cheapest of at least P"
    )
    goal.add_argument("--budget-usd", type=float, metavar="USD", help="best of at most USD")
    _add_constraints(command)
    add("--abstain-below-probability", type=float, default=0.0, metavar="P", help="abstain below P")
    add("--max-ood-score", type=float, metavar="U", help="abstain above U")
    add("--default-candidate", default="", metavar="ID", help="chosen on abstention")
    add("--session", metavar="NAME", help="stay with the candidate that NAME has")
    add("--switching-margin", type=float, metavar="U", help="utility that ends the session's")
    add("--dry-run", action="store_true", help="decide as always and remember nothing")
    command.set_defaults(run=_run)


def _add_constraints(command: argparse.ArgumentParser) -> None:
    def listed(name: str, metavar: str, about: str) -> None:
        command.add_argument(
            name, action="append", default=[], metavar=metavar, help=f"{about} (repeatable)"
        )

    listed("--allow", "ID", "only these")
    listed("--deny", "ID", "not these")
    listed("--modality", "WORD", "must read it: image")
    listed("--feature", "WORD", "must have it: tools")
    listed("--tag", "WORD", "must have it")
    listed("--region", "WORD", "must be in one of these")
    add = command.add_argument
    add(
        "--min-context-window",
        type=int,
        default=0,
        metavar="TOKENS",
        help="that its window must hold",
    )
    add("--max-input-usd-per-million", type=float, metavar="USD", help="per million input tokens")
    add("--max-output-usd-per-million", type=float, metavar="USD", help="per million output tokens")


def _run(parsed: argparse.Namespace) -> None:
    name, margin = parsed.session, parsed.switching_margin
    session = None if name is None else Session(name, margin)
    with connect(parsed) as client:
        response = client.route(
            parsed.text, _policy(parsed), session=session, dry_run=parsed.dry_run
        )
    if parsed.json:
        print(json.dumps(as_json(response), ensure_ascii=False))
    else:
        from rich.console import Console

        print_decision(response, Console(highlight=False, markup=False))


def _policy(parsed: argparse.Namespace) -> Policy:
    given = [o for o in OBJECTIVES if getattr(parsed, o) is not None]
    objective = given[0] if given else OBJECTIVES[0]
    return Policy(
        objective,
        getattr(parsed, objective) or 0.0,
        allowed_candidates=tuple(i.removeprefix(PREFIX) for i in parsed.allow),
        denied_candidates=tuple(i.removeprefix(PREFIX) for i in parsed.deny),
        required_modalities=tuple(parsed.modality),
        required_features=tuple(parsed.feature),
        required_tags=tuple(parsed.tag),
        allowed_regions=tuple(parsed.region),
        min_context_window=parsed.min_context_window,
        max_input_usd_per_million=parsed.max_input_usd_per_million,
        max_output_usd_per_million=parsed.max_output_usd_per_million,
        abstain_below_probability=parsed.abstain_below_probability,
        max_ood_score=parsed.max_ood_score,
        default_candidate=parsed.default_candidate.removeprefix(PREFIX),
    )


def as_json(response: RouteResponse) -> dict[str, Any]:
    """A decision as --json prints it; costs in US dollars, null where unknown; times in ms."""
    return {
        "selected": response.selected,
        "kind": DecisionKind.Name(response.kind).removeprefix("DECISION_KIND_").lower(),
        "decision_id": response.decision_id,
        "reason": response.reason,
        "revision": response.revision,
        "ranking": [
            {
                "candidate": r.candidate,
                "probability": r.probability,
                "expected_cost_usd": r.expected_cost_usd
                if r.HasField("expected_cost_usd")
                else None,
            }
            for r in response.ranking
        ],
        "excluded": {e.candidate: e.reason for e in response.excluded},
        "input_tokens": response.input_tokens,
        "truncated": response.truncated,
        "ood_score": response.ood_score if response.HasField("ood_score") else None,
        "timing_ms": {
            phase: getattr(response.timing, phase).ToNanoseconds() / 1e6 for phase in PHASES
        },
    }


def print_decision(response: RouteResponse, console: Console) -> None:
    """A decision as a table for people."""
    from rich.table import Table

    shown = as_json(response)
    table = Table()
    for heading in ("", "candidate"):
        table.add_column(heading)
    for heading in ("probability", "expected cost"):
        table.add_column(heading, justify="right")
    for row in shown["ranking"]:
        cost = row["expected_cost_usd"]
        table.add_row(
            "->" if row["candidate"] == shown["selected"] else "",
            row["candidate"].removeprefix(PREFIX),
            f"{row['probability']:.3f}",
            "unknown" if cost is None else f"${cost:.6f}",
        )
    for name, why in shown["excluded"].items():
        table.add_row("", name.removeprefix(PREFIX), "excluded", why, style="dim")
    console.print(table)
    console.print(f"-> {shown['reason']}")
    console.print(f"{shown['kind']}, decision {shown['decision_id']}")
    times = ", ".join(f"{phase} {ms:.2f}" for phase, ms in shown["timing_ms"].items())
    console.print(
        f"revision {shown['revision']}; {shown['input_tokens']} tokens"
        f"{', middle unread' if shown['truncated'] else ''}{_strange(shown)}; ms: {times}"
    )


def _strange(shown: dict[str, Any]) -> str:
    ood_score = shown["ood_score"]
    if ood_score is None or ood_score < STRANGE:
        return ""
    return f"; unlike {ood_score:.0%} of the training instructions, so with caution"
