"""The flags of `modelsat aptitude run`, and what they say about the LLM and the candidate."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from engine.api.candidate import TEST_TASKS, Candidate, TaskResult, require_valid
from engine.api.errors import InvalidInputError, Violation
from engine.aptitude.llm import LOOPBACK, Endpoint
from engine.aptitude.selection import QUESTIONS_PER_TASK

QUESTIONS = "TIGER-Lab/MMLU-Pro"  # holds the questions that the zoo's candidates sat
AT_LEAST = {  # the smallest sensible value of each
    "concurrency": 1,
    "max_attempts": 1,
    "max_tokens": 1,
    "timeout": 0.001,
    "max_retry_after": 0,
    "requests_per_minute": 0.001,
    "tokens_per_minute": 1,
}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """All of them but those of the server."""
    _add_endpoint(command.add_argument_group("the LLM"))
    _add_test(command.add_argument_group("the test"))
    _add_candidate(command.add_argument_group("the candidate"))


def endpoint_from(parsed: argparse.Namespace, environ: Mapping[str, str]) -> Endpoint:
    """Raises InvalidInputError that lists every problem."""
    key = environ.get(parsed.api_key_env, "").strip()
    problems = [
        Violation(f"--{name.replace('_', '-')}", f"is {value:g}; expected at least {least:g}.")
        for name, least in AT_LEAST.items()
        if (value := getattr(parsed, name)) is not None and not value >= least
    ]
    problems += _url_problems(parsed.base_url, key)
    try:
        body = json.loads(parsed.extra_body)
    except ValueError:
        body = None
    if not isinstance(body, dict) or {"messages", "model", "stream"} & set(body):
        text = "is no JSON object without model, messages and stream, which this command sets."
        problems.append(Violation("--extra-body", text))
    if not all(0x20 < ord(c) < 0x7F for c in key):
        text = "holds more than one word of printable ASCII; it must be the key alone."
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
        timeout_s=parsed.timeout,
        max_attempts=parsed.max_attempts,
        max_retry_after_s=parsed.max_retry_after,
        concurrency=parsed.concurrency,
        requests_per_minute=parsed.requests_per_minute,
        tokens_per_minute=parsed.tokens_per_minute,
    )


def _url_problems(url: str, key: str) -> list[Violation]:
    try:
        parts = urlsplit(url)
        plain = parts.scheme == "http" and parts.hostname not in LOOPBACK
        spaced = any(c <= " " or c > "~" for c in url) or parts.port == 0
    except ValueError:
        return [Violation("--base-url", "is no URL; expected one like https://HOST/v1.")]
    extras = parts.username or parts.password or parts.query or parts.fragment
    if parts.scheme not in {"http", "https"} or not parts.hostname or extras or spaced:
        text = (
            "is no plain URL; expected one like https://HOST/v1, without user, query or fragment."
        )
        return [Violation("--base-url", text)]
    if key and plain:
        text = "is http: the key would cross the network in plain text; use https, or no key."
        return [Violation("--base-url", text)]
    return []


def candidate_from(parsed: argparse.Namespace) -> Candidate:
    """The candidate but for its figures. Raises InvalidInputError before anything is paid for."""
    slug = re.sub(r"[^a-z0-9._-]+", "-", parsed.model.lower())[:63].strip("._-")
    candidate = Candidate(
        id=parsed.id or slug,
        aptitude=(),
        display_name=parsed.model,
        context_window=parsed.context_window,
        input_usd_per_million=parsed.input_usd_per_million,
        output_usd_per_million=parsed.output_usd_per_million,
        price_source=parsed.price_source,
    )
    figures = tuple(TaskResult(f"task {i}", 0.0) for i in range(TEST_TASKS))
    require_valid([replace(candidate, aptitude=figures)])
    return candidate


def _add_endpoint(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--base-url", required=True, metavar="URL", help="up to and with /v1")
    add("--model", required=True, metavar="NAME")
    add("--api-key-env", default="OPENAI_API_KEY", metavar="NAME", help="variable with the key")
    add("--concurrency", type=int, default=8, metavar="N", help="questions at a time (8)")
    add("--requests-per-minute", type=float, metavar="N")
    add("--tokens-per-minute", type=float, metavar="N", help="read and written")
    add("--timeout", type=float, default=120.0, metavar="S", help="of one try (120)")
    add("--max-attempts", type=int, default=8, metavar="N", help="of one question (8)")
    add("--max-retry-after", type=float, default=300.0, metavar="S", help="for Retry-After (300)")
    add("--max-tokens", type=int, default=2048, metavar="N", help="of a reply (2048)")
    add(
        "--extra-body",
        default="{}",
        metavar="JSON",
        help="fields of each request; null removes one",
    )


def _add_test(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--questions", default=QUESTIONS, metavar="FILE", help="file, data folder, or hub id")
    add("--tasks", default="", metavar="A,B", help="only these")
    add(
        "--questions-per-task",
        type=int,
        default=QUESTIONS_PER_TASK,
        metavar="N",
        help=f"questions ({QUESTIONS_PER_TASK})",
    )
    add("--seed", type=int, default=0, metavar="N", help="of the choice of questions (0)")
    add("--answer-only", action="store_true", help="ask for the letter alone, without reasoning")
    add("--expected-answer-tokens", type=float, metavar="N", help="for the estimate")
    add("--yes", action="store_true", help="do not ask for confirmation")
    add("--dry-run", action="store_true", help="print the estimate and end")


def _add_candidate(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--id", default="", help="made of the model's name where it is not given")
    add("--input-usd-per-million", type=float, metavar="USD", help="per million tokens read")
    add("--output-usd-per-million", type=float, metavar="USD", help="per million tokens written")
    add("--price-source", default="", metavar="TEXT", help="where and when it was listed")
    add("--context-window", type=int, metavar="TOKENS")
    add("--out", type=Path, metavar="FILE", help="result (aptitude-ID.json); picture and journal")
