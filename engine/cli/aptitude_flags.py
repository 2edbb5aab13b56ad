"""Flags of `modelsat aptitude run`, and the endpoint and candidate that they describe."""

from __future__ import annotations

import argparse
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from engine.api.candidate import TEST_TASKS, Candidate, TaskResult, require_valid
from engine.api.errors import InvalidInputError, Violation
from engine.api.prices import in_usd_per_million
from engine.aptitude.llm import Endpoint, url_problems
from engine.aptitude.questions import FREE_TEXT_GRADERS
from engine.aptitude.selection import QUESTIONS_PER_TASK
from engine.cli import server_flags
from engine.cli.candidates import fields
from engine.client.channel import TOKEN_VARIABLE
from engine.compare.graders.answers import TOLERANCE, AnswerOptions
from engine.compare.graders.free_text import FreeTextGraders
from engine.compare.graders.program import ProgramGrader

QUESTIONS = "TIGER-Lab/MMLU-Pro"  # has the questions that the catalog's candidates answered
MINIMA = {
    "concurrency": 1,
    "max_attempts": 1,
    "max_tokens": 1,
    "timeout_s": 0.001,
    "max_retry_after": 0,
    "requests_per_minute": 0.001,
    "tokens_per_minute": 1,
}
OWN_FIELDS = {"messages", "model", "stream"}  # of a request's body, which the command sets


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of `modelsat aptitude run`."""
    _add_endpoint(command.add_argument_group("the LLM"))
    _add_test(command.add_argument_group("the test"))
    _add_candidate(command.add_argument_group("the candidate"))
    server_flags.add_credentials(command.add_argument_group("the server of --register"))


def endpoint_from(parsed: argparse.Namespace, environ: Mapping[str, str]) -> Endpoint:
    """Build the endpoint; raises InvalidInputError that lists every problem."""
    key = environ.get(parsed.api_key_env, "").strip()
    problems = [
        Violation(f"--{name.replace('_', '-')}", f"is {value:g}; expected at least {minimum:g}.")
        for name, minimum in MINIMA.items()
        if (value := getattr(parsed, name)) is not None and not value >= minimum
    ]
    problems += url_problems("--base-url", parsed.base_url, key)
    try:
        body = json.loads(parsed.extra_body)
    except ValueError:
        body = None
    if not isinstance(body, dict) or OWN_FIELDS & set(body):
        text = "is not a JSON object; give one without model, messages and stream."
        problems.append(Violation("--extra-body", text))
    if not all(0x20 < ord(c) < 0x7F for c in key):
        text = "has a space, a line break or a character beyond ASCII; it must be the key alone."
        problems.append(Violation(f"${parsed.api_key_env}", text))
    if problems:
        raise InvalidInputError(*problems)
    return Endpoint(
        base_url=parsed.base_url.rstrip("/"),
        model=parsed.model,
        key=key,
        answer_only=parsed.answer_only,
        max_tokens=parsed.max_tokens,
        extra_body=body,
        timeout_s=parsed.timeout_s,
        max_attempts=parsed.max_attempts,
        max_retry_after_s=parsed.max_retry_after,
        concurrency=parsed.concurrency,
        requests_per_minute=parsed.requests_per_minute,
        tokens_per_minute=parsed.tokens_per_minute,
    )


def candidate_from(parsed: argparse.Namespace) -> Candidate:
    """Build the candidate without its test results.

    Raises InvalidInputError now, before the test costs anything.
    """
    plain = unicodedata.normalize("NFKD", parsed.model).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9._-]+", "-", plain.lower())[:63].strip("._-")
    if not (parsed.id or slug):
        problem = f"is not set, and {parsed.model!r} has no letter for one; give --id my-model."
        raise InvalidInputError(Violation("--id", problem))
    given = {"display_name": parsed.model} | fields.given_fields(parsed)
    candidate = Candidate(parsed.id or slug, (), **given)
    candidate = in_usd_per_million(candidate, parsed.price_unit)
    placeholder = tuple(TaskResult(f"task {i}", 0.0) for i in range(TEST_TASKS))
    require_valid([replace(candidate, aptitude=placeholder)])
    return candidate


def free_text_graders(parsed: argparse.Namespace) -> FreeTextGraders:
    """Build the graders of free-text questions; raises InvalidInputError."""
    program = None
    if parsed.program:
        hidden = frozenset({parsed.api_key_env, TOKEN_VARIABLE})
        program = ProgramGrader(parsed.program, hidden=hidden)
    return FreeTextGraders(AnswerOptions(tolerance=parsed.tolerance), program)


def _add_endpoint(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--base-url",
        required=True,
        metavar="URL",
        help="base URL of an OpenAI-compatible API, up to and including /v1",
    )
    add("--model", required=True, metavar="NAME", help="model name in the requests")
    add(
        "--api-key-env",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="environment variable that holds the API key (default %(default)s)",
    )
    add(
        "--concurrency",
        type=int,
        default=8,
        metavar="N",
        help="questions in flight at a time (default %(default)s)",
    )
    add(
        "--requests-per-minute",
        type=float,
        metavar="N",
        help="rate limit on requests (default: none)",
    )
    add(
        "--tokens-per-minute",
        type=float,
        metavar="N",
        help="rate limit on input and output tokens together (default: none)",
    )
    add(
        "--timeout-s",
        type=float,
        default=120.0,
        metavar="S",
        help="seconds that one attempt may take (default %(default)g)",
    )
    add(
        "--max-attempts",
        type=int,
        default=8,
        metavar="N",
        help="attempts at one question before the run stops (default %(default)s)",
    )
    add(
        "--max-retry-after",
        type=float,
        default=300.0,
        metavar="S",
        help="longest Retry-After, in seconds, to wait for; the run stops at a longer one"
        " (default %(default)g)",
    )
    add(
        "--max-tokens",
        type=int,
        default=2048,
        metavar="N",
        help="limit on the output tokens of one answer (default %(default)s)",
    )
    add(
        "--extra-body",
        default="{}",
        metavar="JSON",
        help="object of fields to add to every request, such as temperature; null removes a field",
    )


def _add_test(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--questions",
        default=QUESTIONS,
        metavar="SOURCE",
        help="questions: a file, a data folder, or a data set of the Hugging Face hub"
        " (default %(default)s)",
    )
    add("--tasks", default="", metavar="A,B", help="test these tasks only (default: all)")
    add(
        "--questions-per-task",
        type=int,
        default=QUESTIONS_PER_TASK,
        metavar="N",
        help="questions to ask for each task (default %(default)s)",
    )
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the random choice of questions (default %(default)s)",
    )
    add(
        "--grader",
        choices=FREE_TEXT_GRADERS,
        help="how replies to questions without options are graded, where a question does not say",
    )
    add(
        "--program",
        default="",
        metavar="COMMAND",
        help="command of the grader program, as in `modelsat compare run`",
    )
    add(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        metavar="X",
        help="relative difference of numbers that count as equal (default %(default)g)",
    )
    add(
        "--answer-only",
        action="store_true",
        help="ask for the answer's letter alone, without reasoning",
    )
    add(
        "--expected-output-tokens",
        type=float,
        metavar="N",
        help="mean output tokens of an answer, for the cost estimate (default: a guess)",
    )
    add(
        "--accept-unreadable",
        action="store_true",
        help="go on, and register, although many replies choose no option",
    )
    add("--yes", action="store_true", help="start without asking for confirmation")
    add("--dry-run", action="store_true", help="print the cost estimate and exit")


def _add_candidate(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--id", default="", metavar="ID", help="candidate ID (default: made from --model)")
    fields.add_arguments(group, without=("display_name", "mean_output_tokens"))
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="JSON file for the result (default aptitude-ID.json); a picture and the journal of"
        " answers, from which a stopped run resumes, are written next to it",
    )
    add("--force", action="store_true", help="overwrite the file of --out if it is of another run")
    add(
        "--bundle",
        type=Path,
        default=Path("artifacts/bundle"),
        metavar="DIR",
        help="the server's bundle, by whose weights the places of your own tasks among instructions"
        " are computed; without it, their keywords stand in (default artifacts/bundle)",
    )
    add(
        "--register",
        dest="server",
        nargs="?",
        const=server_flags.default_server(),
        type=server_flags.server_address,
        metavar="HOST:PORT",
        help="register the candidate with this server, without an address with that of"
        f" ${server_flags.SERVER_VARIABLE} (default: only write the result)",
    )
