"""Flags of `modelsat compare run`, and the graders that they describe."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.api.candidate import NAME_PREFIX
from engine.api.errors import InvalidInputError, Violation
from engine.api.text_files import read_utf8
from engine.cli import server_flags
from engine.cli.output import add_force
from engine.client.channel import TOKEN_VARIABLE
from engine.compare.costs import JudgePlan
from engine.compare.endpoints import KEY_VARIABLE, PricedEndpoint, read_endpoints
from engine.compare.graders.answers import ANSWER_GRADERS, TOLERANCE, AnswerOptions, answer_check
from engine.compare.graders.grading import AnswerGrader, Grader
from engine.compare.graders.judges import DEFAULT_RUBRIC
from engine.compare.graders.program import ProgramGrader

JUDGES = ("judge", "pairwise")
GRADERS = (*ANSWER_GRADERS, *JUDGES, "program")
SMALLEST = (
    *(("sample", 1), ("regions", 1), ("tolerance", 0), ("budget_usd", 0)),
    *(("max_invalid_rows", 0), ("expected_output_tokens", 0)),
)
SHARED = ("base_url", "api_key_env", "max_tokens", "concurrency", "timeout_s")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of `modelsat compare run`."""
    _add_instructions(command.add_argument_group("instructions"))
    _add_candidates(command.add_argument_group("candidates"))
    _add_graders(command.add_argument_group("graders"))
    _add_run(command.add_argument_group("the run"))
    group = server_flags.add_arguments(command, "the server that records the comparisons")
    text = "let the server keep the instructions' text (default: embeddings and scores alone)"
    group.add_argument("--store-text", action="store_true", help=text)


def _add_instructions(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    text = "logs of requests, in any format that `modelsat replay` reads; names or glob patterns"
    add("--log", nargs="+", required=True, metavar="FILE", help=text)
    text = "instructions to draw (default %(default)s)"
    add("--sample", type=int, default=200, metavar="N", help=text)
    add("--seed", type=int, default=0, metavar="N", help="seed of the draw (default %(default)s)")
    text = "rows with an instruction's text and its reference, if the log has no references"
    add("--references", nargs="+", default=[], metavar="FILE", help=text)
    text = (
        "where the log keeps FIELD, such as reference=labels.answer (repeatable); the fields are"
        " those of `modelsat replay`"
    )
    add("--map-column", action="append", default=[], metavar="FIELD=COLUMN", help=text)
    add("--format", default="", metavar="NAME", help="program that wrote the log; see replay")
    add("--encoding", default="", metavar="NAME", help="encoding of text files; see replay")
    text = "skip at most this many unreadable rows, then fail (default %(default)s)"
    add("--max-invalid-rows", type=int, default=1000, metavar="N", help=text)
    text = "bundle whose embeddings spread the draw (default: TF-IDF vectors, which need none)"
    add("--bundle", type=Path, metavar="DIR", help=text)
    text = "regions of the report (default: the log's categories, else a number by the sample)"
    add("--regions", type=int, metavar="N", help=text)


def _add_candidates(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    text = "IDs of two or more registered candidates, separated by commas"
    add("--candidates", required=True, metavar="A,B,C", help=text)
    text = (
        "TOML file with a table for each candidate and judge: base_url, model, api_key_env,"
        " max_tokens, prices and more; [defaults] holds for all"
    )
    add("--endpoints", type=Path, metavar="FILE", help=text)
    text = "base URL of the OpenAI-compatible API of those without one in --endpoints"
    add("--base-url", metavar="URL", help=text)
    text = f"environment variable that holds its API key (default {KEY_VARIABLE})"
    add("--api-key-env", metavar="NAME", help=text)
    text = "limit on the output tokens of one answer (default 2048)"
    add("--max-tokens", type=int, metavar="N", help=text)
    text = "requests in flight at a time, for each endpoint (default 8)"
    add("--concurrency", type=int, metavar="N", help=text)
    add("--timeout-s", type=float, metavar="S", help="seconds for one attempt (default 120)")


def _add_graders(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    text = (
        f"how answers are graded (repeatable, the score is the mean): {', '.join(GRADERS)}; judge"
        " gives each answer a score, pairwise compares two in both orders"
    )
    add("--grader", action="append", required=True, choices=GRADERS, metavar="NAME", help=text)
    text = "LLMs that grade, by their names in --endpoints, separated by commas"
    add("--judge", default="", metavar="NAMES", help=text)
    text = "text file that tells judges what a good answer is (default: correct, complete, to form)"
    add("--rubric", type=Path, metavar="FILE", help=text)
    text = "compare the others with this candidate alone in --grader pairwise, at less cost"
    add("--baseline", default="", metavar="ID", help=text)
    text = (
        "command of --grader program; it reads a JSON object with instruction, references and reply"
        " and prints a score from 0 to 1"
    )
    add("--program", default="", metavar="COMMAND", help=text)
    text = "regular expression of --grader regex (default: the reference)"
    add("--pattern", default="", metavar="RE", help=text)
    text = "JSON schema of --grader json-schema (default: the reference)"
    add("--schema", type=Path, metavar="FILE", help=text)
    text = "relative difference of numbers that count as equal (default %(default)g)"
    add("--tolerance", type=float, default=TOLERANCE, metavar="X", help=text)


def _add_run(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    text = (
        "JSON file for the report (default %(default)s); the journal of answers, from which a"
        " stopped run resumes, is written next to it"
    )
    add("--out", type=Path, default=Path("compare.json"), metavar="FILE", help=text)
    add_force(group, "a report of another run")
    text = "stop before more than this is spent, earlier runs of the journal included"
    add("--budget-usd", type=float, metavar="USD", help=text)
    text = "mean output tokens of an answer, for the estimate (default: the candidate's own)"
    add("--expected-output-tokens", type=float, metavar="N", help=text)
    add("--yes", action="store_true", help="start without asking for confirmation")
    add("--estimate", action="store_true", help="print the expected cost and exit")
    add("--dry-run", action="store_true", help="write the report and record nothing")


def listed(names: str) -> list[str]:
    """Split a list of names at commas; each name once."""
    bare = (name.strip().removeprefix(NAME_PREFIX) for name in names.split(","))
    return list(dict.fromkeys(name for name in bare if name))


def check_values(parsed: argparse.Namespace) -> None:
    """Raise InvalidInputError that lists what is wrong with the flags themselves."""
    problems = []
    names = listed(parsed.candidates)
    if len(names) < 2:
        problems.append(Violation("--candidates", "names fewer than two; there is no comparison."))
    for name, minimum in SMALLEST:
        value = getattr(parsed, name)
        if value is not None and not value >= minimum:
            flag = f"--{name.replace('_', '-')}"
            problems.append(Violation(flag, f"is {value:g}; expected at least {minimum}."))
    needs_judge = [name for name in parsed.grader if name in JUDGES]
    if needs_judge and not listed(parsed.judge):
        problems.append(Violation("--judge", f"is needed by --grader {needs_judge[0]}."))
    if listed(parsed.judge) and not needs_judge:
        problems.append(Violation("--judge", "grades nothing; add --grader judge or pairwise."))
    if ("program" in parsed.grader) != bool(parsed.program.strip()):
        problems.append(Violation("--program", "and --grader program need each other."))
    try:
        shlex.split(parsed.program)
    except ValueError as error:
        problems.append(Violation("--program", f"is not a command ({error})."))
    if parsed.baseline and parsed.baseline not in names:
        problems.append(Violation("--baseline", f"is {parsed.baseline}, which is no candidate."))
    if parsed.out.suffix != ".json" or not parsed.out.parent.is_dir():
        text = f"is {parsed.out}; expected a .json file in an existing folder."
        problems.append(Violation("--out", text))
    if problems:
        raise InvalidInputError(*problems)


def endpoints_from(
    names: Sequence[str], parsed: argparse.Namespace, environ: Mapping[str, str]
) -> list[PricedEndpoint]:
    """Read the endpoints of candidates or judges; raises InvalidInputError."""
    shared = {name: v for name in SHARED if (v := getattr(parsed, name)) is not None}
    return read_endpoints(names, parsed.endpoints, shared, environ)


def graders_from(parsed: argparse.Namespace, hidden: frozenset[str]) -> list[Grader]:
    """Build the graders that ask no LLM. hidden: variables that programs do not get.

    Raises:
        InvalidInputError: a pattern or schema is invalid.
    """
    schema = None if parsed.schema is None else _json_object(parsed.schema)
    options = AnswerOptions(parsed.pattern, schema, parsed.tolerance)
    graders: list[Grader] = [
        AnswerGrader(name, answer_check(name, options))
        for name in dict.fromkeys(parsed.grader)
        if name in ANSWER_GRADERS
    ]
    if "program" in parsed.grader:
        graders.append(ProgramGrader(parsed.program, hidden=hidden | {TOKEN_VARIABLE}))
    return graders


def judges_from(parsed: argparse.Namespace, endpoints: Sequence[PricedEndpoint]) -> list[JudgePlan]:
    """Build a plan for each judge and each way of judging."""
    rubric = DEFAULT_RUBRIC
    if parsed.rubric is not None:
        try:
            rubric = read_utf8(parsed.rubric).strip()
        except (OSError, ValueError) as error:
            raise InvalidInputError(Violation("--rubric", f"cannot be read ({error}).")) from error
    return [
        JudgePlan(endpoint, kind, rubric, parsed.baseline if kind == "pairwise" else "")
        for kind in ("judge", "pairwise")
        if kind in parsed.grader
        for endpoint in endpoints
    ]


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_utf8(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInputError(Violation(str(path), f"cannot be read ({error}).")) from error
    if not isinstance(value, dict):
        raise InvalidInputError(Violation(str(path), "is not a JSON object."))
    return value
