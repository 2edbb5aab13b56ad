"""`modelsat aptitude`: make a candidate of a live LLM's aptitude test or of published figures.

modelsat aptitude run --base-url http://127.0.0.1:8000/v1 --model NAME --register HOST:PORT
modelsat aptitude from-published figures.json --out candidates.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from engine.api.candidate import Candidate, require_valid
from engine.api.errors import AlreadyExistsError, InvalidInputError, Violation
from engine.aptitude.grading import grade, with_result
from engine.aptitude.journal import Journal, Reply
from engine.aptitude.llm import Endpoint, run
from engine.aptitude.places import places_of_tasks
from engine.aptitude.questions import Question
from engine.aptitude.report import chart, content, cost_usd, estimate, run_fingerprint, summary
from engine.aptitude.selection import QuestionSet, sample_questions
from engine.aptitude.unreadable import UnreadableReplies
from engine.cli import aptitude_flags
from engine.cli.aptitude_flags import candidate_from, endpoint_from, free_text_graders
from engine.cli.output import (
    Column,
    add_force,
    confirm_start,
    print_json,
    print_table,
    progress_bar,
    replace_text,
    require_new,
    write_text,
)
from engine.cli.server_flags import connect
from engine.client.errors import ModelsatClientError
from engine.datasets.known_tasks import load_task_keywords, reference_tasks
from engine.registry.candidate_files.published import candidate_from as candidate_of
from engine.registry.candidate_files.published import document, read_published


@dataclass(frozen=True)
class Files:
    """Output files of a run."""

    out: Path
    chart: Path
    journal: Path


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the actions of `modelsat aptitude`."""
    actions = command.add_subparsers(title="actions", required=True, metavar="ACTION")
    summary = "ask a live LLM the questions of the aptitude test, and register it if you like"
    command = actions.add_parser("run", help=summary, description=f"A{summary[1:]}.")
    command.usage = "modelsat aptitude run --base-url URL --model NAME [options]"
    aptitude_flags.add_arguments(command)
    command.set_defaults(run=_run)
    summary = "make candidates of benchmark figures that others published"
    command = actions.add_parser("from-published", help=summary, description=f"M{summary[1:]}.")
    command.add_argument(
        "file", type=Path, help="file of candidates with their figures, sources and dates"
    )
    command.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="JSON file for `modelsat candidates create` (default: only print the levels)",
    )
    add_force(command, "the file of --out")
    command.set_defaults(run=_from_published)
    summary = "list the tasks that are known by name, with their keywords"
    command = actions.add_parser("tasks", help=summary, description=f"L{summary[1:]}.")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.set_defaults(run=_tasks)


def _tasks(parsed: argparse.Namespace) -> None:
    reference = reference_tasks()
    rows = [
        (task, keywords, reference[task].mean if task in reference else None)
        for task, keywords in load_task_keywords().items()
    ]
    if parsed.json:
        print_json([{"task": t, "keywords": k, "mean_accuracy": mean} for t, k, mean in rows])
        return
    columns = [Column("task", text=True), Column("keywords", text=True), Column("mean")]
    print_table(columns, [[t, k, "" if mean is None else f"{mean:.2f}"] for t, k, mean in rows])
    print("mean: accuracy of the candidates that the weights were trained with")


def _from_published(parsed: argparse.Namespace) -> None:
    found = read_published(parsed.file)
    candidates = [candidate_of(each) for each in found]
    for each, candidate in zip(found, candidates, strict=True):
        print(
            f"{candidate.id}: level {candidate.mean_accuracy():.3f}, standard error"
            f" {candidate.level_standard_error():.3f}, from {len(each.figures)} figures"
        )
    if parsed.out:
        require_valid(candidates)
        content = json.dumps(document(found), indent=1, ensure_ascii=False)
        write_text(parsed.out, content + "\n", force=parsed.force)
        print(f"register with: modelsat candidates create {parsed.out}")


def _run(parsed: argparse.Namespace) -> None:
    candidate, endpoint = candidate_from(parsed), endpoint_from(parsed, os.environ)
    tasks = [t for t in parsed.tasks.split(",") if t]
    question_set = sample_questions(
        parsed.questions, parsed.questions_per_task, tasks, parsed.seed, parsed.grader or ""
    )
    graders = free_text_graders(parsed)
    graders.require_gradable(question_set.questions)
    if parsed.dry_run:
        _print_estimate(question_set.questions, endpoint, candidate, parsed)
        return
    if parsed.server:
        _require_free(candidate, parsed)
    files = _files(parsed.out or Path(f"aptitude-{candidate.id}.json"))
    # Of a run that goes on from its journal, the earlier result is its own.
    require_new(files.out, force=parsed.force or files.journal.exists())
    with Journal(files.journal, run_fingerprint(question_set, endpoint)) as journal:
        unreadable = UnreadableReplies(question_set.questions, endpoint.key)
        for reply in journal.replies.values():
            unreadable.add(reply)
        _ask_questions(question_set, endpoint, candidate, journal, unreadable, parsed)
        scores = graders.scores(question_set.questions, journal.replies)
        result = grade(question_set.questions, journal.replies, scores)
    places = places_of_tasks(question_set, parsed.bundle)
    candidate = with_result(candidate, result, answer_only=endpoint.answer_only, places=places)
    document = content(candidate, result, question_set, endpoint)
    replace_text(files.out, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    written = str(files.out)
    if find_spec("matplotlib") is not None:
        replace_text(files.chart, chart(candidate.display_name, result))
        written += f" and {files.chart}"
    print("\n".join(summary(result, question_set, answer_only=endpoint.answer_only)))
    print(f"wrote {written}")
    if unreadable.unreadable:
        print(unreadable.describe())
    if parsed.server:
        if unreadable.too_many and not parsed.accept_unreadable:
            raise InvalidInputError(
                Violation(
                    "--register",
                    "is refused, because too many replies are unreadable and their share would"
                    " pass for the candidate's skill; look at them, and add --accept-unreadable if"
                    f" they are right as they are, or register {files.out} yourself.",
                )
            )
        with connect(parsed) as client:
            print(f"registered {client.create_candidate(candidate).id} at {parsed.server}")


def _ask_questions(
    question_set: QuestionSet,
    endpoint: Endpoint,
    candidate: Candidate,
    journal: Journal,
    unreadable: UnreadableReplies,
    parsed: argparse.Namespace,
) -> None:
    unanswered = [q for q in question_set.questions if q.key not in journal.replies]
    if answered := len(question_set.questions) - len(unanswered):
        print(f"{answered} questions are already answered in the journal.")
    if not unanswered:
        return
    if not parsed.accept_unreadable:
        unreadable.require_few()
    _print_estimate(unanswered, endpoint, candidate, parsed)
    if not parsed.yes:
        confirm_start("--dry-run")
    with progress_bar(len(question_set.questions), answered) as advance:

        def on_reply(reply: Reply) -> None:
            advance()
            unreadable.add(reply)
            if not parsed.accept_unreadable:
                unreadable.require_few()

        asyncio.run(run(unanswered, endpoint, journal, on_reply))


def _print_estimate(
    questions: Sequence[Question],
    endpoint: Endpoint,
    candidate: Candidate,
    parsed: argparse.Namespace,
) -> None:
    tokens = estimate(questions, endpoint, parsed.expected_output_tokens)
    usd = cost_usd(tokens, candidate)
    price = "cost unknown without prices" if usd is None else f"about ${usd:.4f}"
    print(
        f"{len(questions)} questions to {endpoint.model}: about {tokens[0]:,} input tokens and"
        f" {tokens[1]:,} output tokens; {price}."
    )


def _require_free(candidate: Candidate, parsed: argparse.Namespace) -> None:
    """Check before the test that the ID is free and the server reachable."""
    with connect(parsed) as client:
        try:
            client.get_candidate(candidate.id)
        except ModelsatClientError as error:
            if error.code != "NOT_FOUND":
                raise
        else:
            raise AlreadyExistsError(
                candidate.name,
                "is already registered. To renew its results, run the test without --register, and"
                f" pass the file to `modelsat candidates update {candidate.id} --results`. To test"
                " another candidate, give an --id.",
            )


def _files(out: Path) -> Files:
    files = Files(out, out.with_suffix(".svg"), out.with_suffix(".journal.jsonl"))
    if out.suffix != ".json" or not out.parent.is_dir():
        raise InvalidInputError(
            Violation("--out", f"is {out}; expected a .json file in an existing folder.")
        )
    return files
