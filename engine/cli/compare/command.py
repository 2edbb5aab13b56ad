"""Run `modelsat compare run`: read, draw, show the cost, ask and grade, report, record."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engine.api.candidate import Candidate
from engine.api.errors import InvalidInputError, Violation
from engine.api.policy import Policy
from engine.aptitude.journal import Journal
from engine.bundle.types import FloatArray
from engine.cli.compare import flags
from engine.cli.output import (
    confirm_start,
    progress_bar,
    replace_text,
    require_new,
    stdout_console,
)
from engine.cli.server_flags import connect
from engine.client.results import RouteDecision, RouteResult
from engine.compare.asking import journal_key
from engine.compare.costs import expected_costs, prompt_for, require_prices
from engine.compare.endpoints import PricedEndpoint
from engine.compare.graders.grading import AnswerGrader, Grader
from engine.compare.recording import record_comparisons
from engine.compare.render import print_expected, print_report
from engine.compare.report import SampleNotes, report
from engine.compare.run import JOURNAL, ComparePlan, CompareRun, run_comparisons
from engine.compare.sampling.drawing import TFIDF, DrawnSample, Novelty, draw_sample, novelty_of
from engine.compare.sampling.instructions import InstructionPool, read_pool
from engine.datasets.rows import TextFormat
from engine.replay.formats import log_format
from engine.replay.log import columns_with, expand
from engine.replay.run import LogSource


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the actions of `modelsat compare`."""
    actions = command.add_subparsers(title="actions", required=True, metavar="ACTION")
    summary = "ask several LLMs the same past requests, grade them, and record the outcomes"
    command = actions.add_parser("run", help=summary, description=f"A{summary[1:]}.")
    command.usage = "modelsat compare run --log FILE --candidates A,B --grader NAME [options]"
    flags.add_arguments(command)
    command.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> None:
    flags.check_values(parsed)
    names, judge_names = flags.listed(parsed.candidates), flags.listed(parsed.judge)
    registered = {} if parsed.dry_run else _registered(names, parsed)
    endpoints = flags.endpoints_from([*names, *judge_names], parsed, os.environ)
    endpoints = [
        _priced(endpoint, registered.get(endpoint.name), parsed.expected_output_tokens)
        for endpoint in endpoints
    ]
    candidates = endpoints[: len(names)]
    judges = flags.judges_from(parsed, endpoints[len(names) :])
    hidden = frozenset(name for name in os.environ if _holds_key(name, endpoints))
    graders = flags.graders_from(parsed, hidden)
    plan = ComparePlan((), candidates, graders, judges, parsed.budget_usd)
    if parsed.budget_usd is not None:
        judging = [judge.endpoint for judge in judges]
        require_prices([*candidates, *judging], "--budget-usd")
    pool = _pool(parsed)
    if not judges and "program" not in parsed.grader:
        _require_references(pool, graders)
    sample = _sample(pool, names, parsed)
    plan = replace(plan, instructions=sample.instructions)
    journal_file = parsed.out.with_suffix(".journal.jsonl")
    if not parsed.estimate:  # of a run that goes on from its journal, the earlier report is its own
        require_new(parsed.out, force=parsed.force or journal_file.exists())
    with Journal(journal_file, JOURNAL) as journal:
        if not _confirmed(plan, journal, parsed):
            return
        with progress_bar(len(plan.instructions)) as advance:
            run = asyncio.run(run_comparisons(plan, journal, lambda _: advance()))
    notes = SampleNotes(
        pool.requests,
        len(pool.instructions),
        TFIDF if parsed.bundle is None else f"embeddings of {parsed.bundle}",
        parsed.seed,
        pool.repeated,
        pool.invalid_rows,
        pool.left_out,
    )
    document = report(plan, run, sample.regions(parsed.regions, parsed.seed), notes)
    print_report(document, stdout_console())
    if not parsed.dry_run:
        _write(document, parsed.out)  # recording may fail, and the same command repeats it
        document["recorded"] = _record(plan, run, parsed)
    _write(document, parsed.out)
    print(f"wrote {parsed.out}")


def _registered(names: Sequence[str], parsed: argparse.Namespace) -> dict[str, Candidate]:
    """Return the candidates that the server has; raises InvalidInputError if one is missing."""
    with connect(parsed) as client:
        known = {candidate.id: candidate for candidate in client.list_candidates()}
    if missing := [name for name in names if name not in known]:
        problem = (
            f"names {', '.join(missing)}, which {parsed.server} does not have;"
            " register them, or add --dry-run to compare without recording."
        )
        raise InvalidInputError(Violation("--candidates", problem))
    return known


def _priced(
    endpoint: PricedEndpoint, candidate: Candidate | None, expected: float | None
) -> PricedEndpoint:
    """Take what the endpoint does not say from the registered candidate."""
    prices = (endpoint.input_usd_per_million, endpoint.output_usd_per_million)
    if candidate is not None and prices == (None, None):
        prices = (candidate.input_usd_per_million, candidate.output_usd_per_million)
    length = None if candidate is None else candidate.mean_output_tokens
    return replace(
        endpoint,
        input_usd_per_million=prices[0],
        output_usd_per_million=prices[1],
        mean_output_tokens=length if expected is None else expected,
    )


def _holds_key(name: str, endpoints: Sequence[PricedEndpoint]) -> bool:
    value = os.environ[name].strip()
    return bool(value) and any(value == endpoint.endpoint.key for endpoint in endpoints)


def _pool(parsed: argparse.Namespace) -> InstructionPool:
    columns = columns_with(parsed.map_column)
    form = log_format(parsed.format) if parsed.format else None
    text = TextFormat(parsed.encoding)
    limit = parsed.max_invalid_rows
    log = LogSource(expand(parsed.log), columns, None, limit, form=form, text=text)
    references = LogSource(expand(parsed.references), columns, text=text)
    return read_pool(log, references if references.files else None, parsed.seed)


def _require_references(pool: InstructionPool, graders: Sequence[Grader]) -> None:
    """Leave out what no grader can grade, before it is paid for.

    Raises:
        InvalidInputError: that would be everything.
    """
    checks = [grader for grader in graders if isinstance(grader, AnswerGrader)]
    before = len(pool.instructions)
    pool.keep(lambda i: any(c.can_grade(i) for c in checks), "have no reference for the grader")
    if not pool.instructions:
        problem = (
            f"{', '.join(c.name for c in checks)} finds no reference in {before} instructions;"
            " name the log's column, as in --map-column reference=answer, or give --references."
        )
        raise InvalidInputError(Violation("--grader", problem))


def _sample(pool: InstructionPool, names: Sequence[str], parsed: argparse.Namespace) -> DrawnSample:
    file = parsed.out.with_suffix(".sample.json")
    vectors = None
    if parsed.bundle is not None:
        from engine.compare.sampling.embedding import embed

        vectors = embed(parsed.bundle, [i.text for i in pool.instructions])
    novelty = None if parsed.dry_run else _novelty(names, parsed)
    return draw_sample(pool.instructions, parsed.sample, parsed.seed, file, vectors, novelty)


def _novelty(names: Sequence[str], parsed: argparse.Namespace) -> Novelty:
    """Ask the server what it remembers of similar instructions."""

    def novelty(texts: Sequence[str]) -> FloatArray | None:
        policy = Policy(allowed_candidates=tuple(names))
        with connect(parsed) as client:
            results = client.route_many(texts, policy, dry_run=True)
        return novelty_of([_remembered(result) for result in results])

    return novelty


def _remembered(result: RouteResult) -> float | None:
    """Mean number of outcomes that the server remembers of similar instructions; 0 if it cannot
    route this one, None if it does not say."""
    if not isinstance(result, RouteDecision):
        return 0.0
    numbers = [entry.similar_outcomes for entry in result.ranking]
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if known else None


def _confirmed(plan: ComparePlan, journal: Journal, parsed: argparse.Namespace) -> bool:
    """Show the expected cost, and ask whether to start; False if only the estimate is wanted."""
    keys = {
        c.name: {
            i.key for i in plan.instructions if journal_key(c, prompt_for(i)) in journal.replies
        }
        for c in plan.candidates
    }
    costs = expected_costs(plan.instructions, plan.candidates, plan.judges, keys)
    if answered := sum(map(len, keys.values())):
        print(f"{answered} answers are already in the journal.")
    print_expected(costs, plan.budget_usd, stdout_console())
    if parsed.estimate:
        return False
    if parsed.yes or not any(cost.requests for cost in costs):
        return True
    confirm_start("--estimate")
    return True


def _record(plan: ComparePlan, run: CompareRun, parsed: argparse.Namespace) -> dict[str, int]:
    candidates = {candidate.name: candidate for candidate in plan.candidates}
    grader = ", ".join(plan.grader_names)
    with connect(parsed) as client:
        counts = record_comparisons(
            client, run.comparisons, candidates, grader, store_text=parsed.store_text
        )
    print(f"recorded {counts['outcomes']} outcomes at {parsed.server}")
    if counts["conflicts"]:
        print(
            f"{counts['conflicts']} instructions have other scores there already, which stay; an"
            " earlier comparison was graded in another way."
        )
    return counts


def _write(document: dict[str, object], out: Path) -> None:
    replace_text(out, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
