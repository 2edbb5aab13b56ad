"""`modelsat replay`: past requests under other policies, without a server."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from engine.api.candidate import PREFIX
from engine.api.errors import InvalidInputError, StoreError, Violation
from engine.cli.calibrate import BUNDLE
from engine.registry.catalog import read_zoo
from engine.registry.stores.outcomes import read_recorded

if TYPE_CHECKING:
    from engine.replay.run import Progress, Score

HELP = "route past requests under other policies; report mix, cost and quality"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `modelsat replay`."""
    add = command.add_argument
    add("log", nargs="+", metavar="LOG", help=".jsonl, .jsonl.gz or .parquet; globs too")
    add("--out", type=Path, required=True, help="folder of the report and of finished work")
    add("--bundle", type=Path, default=BUNDLE, help="folder that `make export` wrote")
    add("--zoo", type=Path, help="JSON file of candidates; the bundle's own by default")
    policy = "FIELD=VALUE,... by the API's names (repeatable): "
    policy += "thrifty=cost_sensitivity=0.3,denied_candidates=ID"
    add("--policy", action="append", default=[], metavar="NAME=SPEC", help=policy)
    add("--policies", type=Path, metavar="TOML", help="policies as tables [NAME]")
    add("--outcomes-db", type=Path, help="the server's file, joined by the log's decision_id")
    column = "where the log has it: text=body.prompt; FIELD is messages, text, candidate, cost,"
    column += " outcome, time or decision (repeatable)"
    add("--map-column", action="append", default=[], metavar="FIELD=COLUMN", help=column)
    alias = "what the log calls a candidate (repeatable)"
    add("--candidate-alias", action="append", default=[], metavar="LOGGED=ID", help=alias)
    add(
        "--max-invalid-rows",
        type=int,
        default=1000,
        metavar="N",
        help="lines to skip before giving up",
    )
    add("--chunk-size", type=int, default=128, metavar="N", help="requests between two checkpoints")
    add("--workers", type=int, default=0, metavar="N", help="0 = one per core")
    add("--ray", metavar="ADDRESS", help="run on a Ray cluster; `local` starts one here")
    add("--no-plots", action="store_true", help="report without pictures")
    command.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> None:
    from engine.replay import plots, policies, scoring, workers
    from engine.replay.log import columns_with, expand
    from engine.replay.run import Log, replay
    from engine.replay.scoring import names_of

    _check_counts(parsed)
    if not parsed.no_plots:
        plots.require_matplotlib()
    score = None if parsed.outcomes_db is None else recorded(parsed.outcomes_db)
    columns = columns_with(parsed.map_column)
    log = Log(expand(parsed.log), columns, score, parsed.max_invalid_rows, parsed.chunk_size)
    table = scoring.open_table(parsed.bundle, read_zoo(parsed.zoo or parsed.bundle / "zoo.json"))
    wanted = policies.read_policies(parsed.policy, parsed.policies, table)
    names = names_of(table, parsed.candidate_alias)
    plan = scoring.make_plan(parsed.bundle, table, wanted)
    pool = (
        workers.on_this_machine(plan, parsed.workers)
        if parsed.ray is None
        else workers.on_ray(plan, parsed.ray, parsed.workers)
    )
    try:
        with pool as execute, _progress() as progress:
            found = replay(log, plan, names, parsed.out / "scores", execute, progress)
        _write(found, parsed.out, pictures=not parsed.no_plots)
    except OSError as error:
        raise StoreError(
            f"{parsed.out} cannot be written ({error}); give another --out."
        ) from error


def _write(found: dict[str, object], out: Path, *, pictures: bool) -> None:
    from rich.console import Console

    from engine.replay import plots, render

    (out / "report.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    drawn = plots.draw(found, out) if pictures else []
    (out / "report.md").write_text(render.markdown(found, drawn), encoding="utf-8")
    render.print_report(found, Console(highlight=False, markup=False))
    print(f"wrote {', '.join(['report.json', 'report.md', *drawn])} to {out}")


def _check_counts(parsed: argparse.Namespace) -> None:
    least = {"max_invalid_rows": 0, "chunk_size": 1, "workers": 0}
    problems = [
        Violation(f"--{name.replace('_', '-')}", f"is {value}; expected {low} or more.")
        for name, low in least.items()
        if (value := getattr(parsed, name)) < low
    ]
    if problems:
        raise InvalidInputError(*problems)


def recorded(file: Path) -> Score:
    """The outcomes in the server's file, by decision id and candidate; raises StoreError."""
    scores = {(r.decision_id, r.candidate): r.score for r in read_recorded(file)}

    def outcome_of(decision: str, candidate: str) -> float:
        return scores.get((decision, candidate.removeprefix(PREFIX)), math.nan)

    return outcome_of


@contextmanager
def _progress() -> Iterator[Progress]:
    """On stderr, so that the report alone is on stdout."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("replay"), BarColumn(), TextColumn("{task.fields[done]} requests"))
    clocks = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *clocks, console=Console(stderr=True)) as bar:
        task = bar.add_task("replay", total=1.0, done=0)
        furthest = 0.0

        def show(done: int, position: float) -> None:
            nonlocal furthest
            furthest = max(furthest, position)
            bar.update(task, completed=furthest, done=done)

        yield show
