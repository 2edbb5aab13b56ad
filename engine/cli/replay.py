"""`modelsat replay`: route logged requests under other policies, without a server."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from engine.api.candidate import NAME_PREFIX, Candidate
from engine.api.errors import InvalidInputError, StoreError, Violation
from engine.bundle.manifest import read_manifest
from engine.cli import server_flags
from engine.cli.output import stdout_console
from engine.client.errors import ModelsatClientError
from engine.registry.catalog import read_catalog
from engine.registry.stores.outcomes import read_recorded
from engine.serving.settings import BUNDLE

if TYPE_CHECKING:
    from engine.replay.run import OutcomeLookup, Progress

LEARNED = (
    "warning: the server corrects probabilities by outcomes, and a replay does not; `modelsat"
    " calibrate --traffic` asks the server itself"
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of `modelsat replay`."""
    command.usage = "modelsat replay LOG [LOG ...] --out DIR [options]"
    text = "log of requests (JSONL, JSON, CSV or Parquet); file names or glob patterns"
    command.add_argument("log", nargs="+", metavar="LOG", help=text)
    text = "folder for the report and for finished chunks, from which a stopped run resumes"
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help=text)
    _add_policies(command.add_argument_group("policies and candidates"))
    _add_columns(command.add_argument_group("reading the log"))
    _add_execution(command.add_argument_group("execution"))
    about = "server whose registered candidates and prices to replay with, in place of --catalog"
    server_flags.add_optional(command, about)
    command.set_defaults(run=_run)


def _add_policies(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    text = (
        "a policy to replay, as FIELD=VALUE,... with the API's field names (repeatable):"
        " thrifty=willingness_to_pay_usd=0.05,denied_candidates=ID"
    )
    add("--policy", action="append", default=[], metavar="NAME=FIELDS", help=text)
    text = "TOML file of policies, one table [NAME] for each"
    add("--policies", type=Path, metavar="FILE", help=text)
    text = "bundle to route with (default %(default)s)"
    add("--bundle", type=Path, default=BUNDLE, metavar="DIR", help=text)
    text = "JSON file of candidates (default: the bundle's catalog)"
    add("--catalog", type=Path, metavar="FILE", help=text)


def _add_columns(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    text = (
        "where the log keeps FIELD, as in text=body.prompt (repeatable); FIELD is body, messages,"
        " text, candidate, cost, outcome, time, propensity, decision, session, input_tokens,"
        " output_tokens, latency, reference or category"
    )
    add("--map-column", action="append", default=[], metavar="FIELD=COLUMN", help=text)
    text = (
        "program that wrote the log: litellm, langfuse, helicone, openrouter, opentelemetry,"
        " modelsat or plain (default: known by each record's columns)"
    )
    add("--format", default="", metavar="NAME", help=text)
    text = "encoding of text files (default: UTF-8, or by their byte order mark)"
    add("--encoding", default="", metavar="NAME", help=text)
    text = "the candidate that the log calls LOGGED (repeatable)"
    add("--candidate-alias", action="append", default=[], metavar="LOGGED=ID", help=text)
    text = "recorded outcomes of the server, matched by the log's decision IDs"
    add("--outcomes-db", metavar="LOCATION", help=text)
    text = "skip at most this many unreadable rows, then fail (default %(default)s)"
    add("--max-invalid-rows", type=int, default=1000, metavar="N", help=text)


def _add_execution(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    text = "requests between two checkpoints (default %(default)s)"
    add("--chunk-size", type=int, default=128, metavar="N", help=text)
    text = "processes, or Ray tasks at a time; 0, the default, means one per core"
    add("--workers", type=int, default=0, metavar="N", help=text)
    text = "run on the Ray cluster at this address; `local` starts one on this machine"
    add("--ray", metavar="ADDRESS", help=text)
    add("--no-plots", action="store_true", help="write the report without pictures")


def _run(parsed: argparse.Namespace) -> None:
    from engine.datasets.rows import TextFormat
    from engine.replay import plots, policies, render, scoring, workers
    from engine.replay.formats import log_format
    from engine.replay.log import columns_with, expand
    from engine.replay.run import LogSource, replay
    from engine.replay.scoring import candidate_names

    _check_counts(parsed)
    if not parsed.no_plots:
        plots.require_matplotlib()
    score = None if parsed.outcomes_db is None else recorded(parsed.outcomes_db)
    columns = columns_with(parsed.map_column)
    log = LogSource(
        expand(parsed.log),
        columns,
        score,
        parsed.max_invalid_rows,
        parsed.chunk_size,
        log_format(parsed.format) if parsed.format else None,
        TextFormat(parsed.encoding),
    )
    table = scoring.open_table(parsed.bundle, _candidates(parsed))
    wanted = policies.read_policies(parsed.policy, parsed.policies, table)
    names = candidate_names(table, parsed.candidate_alias)
    job = scoring.make_job(parsed.bundle, table, wanted)
    pool = (
        workers.local_pool(job, parsed.workers)
        if parsed.ray is None
        else workers.ray_cluster(job, parsed.ray, parsed.workers)
    )
    try:
        with pool as execute, _progress() as progress:
            report = replay(log, job, names, parsed.out / "scores", execute, progress)
        written = _write(report, parsed.out, pictures=not parsed.no_plots)
    except OSError as error:
        raise StoreError(f"cannot write to {parsed.out} ({error}); choose another --out") from error
    render.print_report(report, stdout_console())
    print(f"wrote {', '.join(written)} to {parsed.out}")


def _candidates(parsed: argparse.Namespace) -> list[Candidate]:
    """Return those of the server or the file that the flags name."""
    read_manifest(parsed.bundle, "bundle")  # whose error says what to do
    if parsed.server is None:
        return read_catalog(parsed.catalog or parsed.bundle / "zoo.json")
    with server_flags.connect(parsed) as client:
        with suppress(ModelsatClientError):  # a token may not read it
            if client.adaptation().active:
                print(LEARNED, file=sys.stderr)
        return client.list_candidates()


def _write(report: dict[str, object], out: Path, *, pictures: bool) -> list[str]:
    """Write the report in all its forms, and return the names of the files."""
    from engine.replay import plots, render

    (out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    drawn = plots.draw(report, out) if pictures else []
    (out / "report.md").write_text(render.markdown(report, drawn), encoding="utf-8")
    return ["report.json", "report.md", *drawn]


def _check_counts(parsed: argparse.Namespace) -> None:
    minima = {"max_invalid_rows": 0, "chunk_size": 1, "workers": 0}
    problems = [
        Violation(f"--{name.replace('_', '-')}", f"is {value}; expected {minimum} or more.")
        for name, minimum in minima.items()
        if (value := getattr(parsed, name)) < minimum
    ]
    if problems:
        raise InvalidInputError(*problems)


def recorded(location: str | Path) -> OutcomeLookup:
    """Read outcomes and propensities that a server recorded, by decision ID and candidate.

    Raises StoreError.
    """
    unknown = (math.nan, math.nan)
    known = {
        (r.decision_id, r.candidate): (r.score, r.propensity or math.nan)
        for r in read_recorded(location)
    }

    def outcome_of(decision: str, candidate: str) -> tuple[float, float]:
        return known.get((decision, candidate.removeprefix(NAME_PREFIX)), unknown)

    return outcome_of


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show progress on stderr; stdout is for the report alone."""
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
