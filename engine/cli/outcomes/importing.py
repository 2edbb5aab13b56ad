"""`modelsat outcomes import`: record outcomes of a data folder, of a file, or of another server's
store as comparisons. What is recorded already is not scored or stored again, so an import that was
interrupted can be repeated."""

from __future__ import annotations

import argparse
import gzip
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.api.errors import InvalidInputError, Violation
from engine.cli import server_flags
from engine.cli.output import progress_bar
from engine.client.errors import ModelsatClientError
from engine.client.sync import Client
from engine.datasets.folder import read_folder
from engine.datasets.outcomes import circular_eval
from engine.registry.outcome_export import group_by_text
from engine.registry.stores.outcomes import read_recorded

CONCURRENT = 8  # calls at a time: the server scores a few texts in one forward pass
MAX_WAIT_S = 120.0  # for a server that is busy or away, in all attempts of one instruction
DEFAULT_WAIT_S = 1.0
LINE_FORMAT = '{"text": ..., "scores": {CANDIDATE: 0..1, ...}, "category": ...}'


@dataclass(frozen=True)
class MeasuredInstruction:
    """An instruction with the scores of candidates, by their names in the source."""

    text: str
    category: str
    scores: Mapping[str, float]


@dataclass
class ImportSummary:
    """Counts of an import. unknown: name -> outcomes of candidates that are not registered."""

    instructions: int = 0
    recorded: int = 0
    present: int = 0
    conflicts: int = 0
    unknown: Counter[str] = field(default_factory=Counter)


def add_arguments(action: argparse.ArgumentParser) -> None:
    """Add the options of `modelsat outcomes import`."""
    source = action.add_mutually_exclusive_group(required=True)
    text = "data folder of outcomes"
    source.add_argument("--data", type=Path, metavar="DIR", help=text)
    text = f"JSON lines (.jsonl, .jsonl.gz) of {LINE_FORMAT}, or an SQLite file of outcomes"
    source.add_argument("file", nargs="?", type=Path, metavar="FILE", help=text)
    text = "the candidate NAME of the source is the registered candidate ID; may be repeated"
    alias = {"action": "append", "default": [], "metavar": "NAME=ID", "help": text}
    action.add_argument("--candidate-alias", **alias)  # type: ignore[arg-type]
    text = "let the server keep the texts, so that they can be exported for training"
    action.add_argument("--store-text", action="store_true", help=text)
    text = "record at most this many instructions, the first ones"
    action.add_argument("--limit", type=int, metavar="N", help=text)
    server_flags.add_arguments(action)
    action.set_defaults(run=_import)


def _import(parsed: argparse.Namespace) -> None:
    source = parsed.data or parsed.file
    instructions = list(read_instructions(source))[: parsed.limit]
    with server_flags.connect(parsed) as client, progress_bar(len(instructions)) as advance:
        registered = {candidate.id for candidate in client.list_candidates()}
        names = Names(registered, aliases_from(parsed.candidate_alias))
        grader = f"import {source.name}"[:200]
        summary = import_outcomes(client, instructions, names, parsed.store_text, grader, advance)
    print(
        f"{source}: {summary.recorded} outcomes of {summary.instructions} instructions recorded,"
        f" {summary.present} were there"
    )
    if parsed.store_text and summary.present:
        print("--store-text adds no text to outcomes that were there")
    if summary.conflicts:
        print(f"kept the recorded scores of {summary.conflicts} instructions, which differ")
    for name, count in sorted(summary.unknown.items()):
        print(f"skipped {count} outcomes of {name}, which is not registered")


class Names:
    """Finds registered candidates by the names of a source."""

    def __init__(self, registered: set[str], aliases: Mapping[str, str]) -> None:
        """Raise InvalidInputError if an alias is for a candidate that is not registered."""
        for name, identifier in aliases.items():
            if identifier not in registered:
                problem = f"{name}={identifier}: {identifier} is not registered."
                raise InvalidInputError(Violation("--candidate-alias", problem))
        self._registered = registered
        self._aliases = aliases

    def find(self, name: str) -> str:
        """Return the ID for a name: its alias, itself, or itself spelled as an ID; "" for none."""
        spelled = re.sub(r"[^a-z0-9._-]+", "-", name.rpartition("/")[2].lower()).strip("-._")
        for identifier in (self._aliases.get(name, ""), name, spelled):
            if identifier in self._registered:
                return identifier
        return ""


def aliases_from(texts: Iterable[str]) -> dict[str, str]:
    """Parse NAME=ID; raises InvalidInputError."""
    aliases = {}
    for text in texts:
        name, separator, identifier = text.rpartition("=")
        if not (separator and name and identifier):
            raise InvalidInputError(
                Violation("--candidate-alias", f"is {text!r}; expected NAME=ID.")
            )
        aliases[name] = identifier
    return aliases


def read_instructions(source: Path) -> Iterator[MeasuredInstruction]:
    """Yield the instructions of a data folder, of JSON lines, or of a store of outcomes.

    Raises InvalidInputError or StoreError.
    """
    if source.is_dir():
        yield from _from_folder(source)
    elif source.name.endswith((".jsonl", ".jsonl.gz")):
        yield from _from_lines(source)
    else:
        grouped, _ = group_by_text(read_recorded(source))
        for each in grouped:
            scores = {name: each.mean(name) for name in each.scores}
            yield MeasuredInstruction(each.text, each.category, scores)


def _from_folder(folder: Path) -> Iterator[MeasuredInstruction]:
    data = read_folder(folder)
    kept, scores, _ = circular_eval(data.records, data.scores)
    for place, row in enumerate(kept):
        record = data.records[row]
        measured = {
            name: float(score)
            for name, score in zip(data.candidates, scores[:, place], strict=True)
            if not math.isnan(score)
        }
        category = str(record.get("subtask") or record["benchmark"])[:200]
        yield MeasuredInstruction(str(record["text"]), category, measured)


def _from_lines(file: Path) -> Iterator[MeasuredInstruction]:
    opened = gzip.open if file.name.endswith(".gz") else open
    try:
        with opened(file, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                yield _parse(line, f"{file}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(Violation(str(file), f"is not readable ({error}).")) from error


def _parse(line: str, place: str) -> MeasuredInstruction:
    try:
        content = json.loads(line)
        scores = {str(name): float(score) for name, score in content["scores"].items()}
        text, category = content["text"], str(content.get("category", ""))[:200]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"is not an object as {LINE_FORMAT} ({type(error).__name__}: {error})."
        raise InvalidInputError(Violation(place, problem)) from error
    if not isinstance(text, str) or not all(0 <= score <= 1 for score in scores.values()):
        problem = f"is not an object as {LINE_FORMAT}: text must be a string, scores in [0, 1]."
        raise InvalidInputError(Violation(place, problem))
    return MeasuredInstruction(text, category, scores)


def import_outcomes(
    client: Client,
    instructions: Iterable[MeasuredInstruction],
    names: Names,
    store_text: bool,
    grader: str,
    advance: Callable[[], None] = lambda: None,
) -> ImportSummary:
    """Record every instruction, and wait for a busy server; raises ModelsatClientError."""
    summary = ImportSummary()

    def one(instruction: MeasuredInstruction) -> tuple[Counter[str], int, int | None]:
        unknown: Counter[str] = Counter()
        scores: dict[str, float] = {}
        for name, score in instruction.scores.items():
            if identifier := names.find(name):
                scores.setdefault(identifier, score)
            else:
                unknown[name] += 1
        recorded = _record(client, instruction, scores, store_text, grader) if scores else None
        advance()
        return unknown, len(scores), recorded

    with ThreadPoolExecutor(CONCURRENT) as threads:
        for unknown, count, recorded in threads.map(one, instructions):
            summary.unknown += unknown
            summary.instructions += bool(count)
            if recorded is None:
                summary.conflicts += bool(count)
            else:
                summary.recorded += recorded
                summary.present += count - recorded
    return summary


def _record(
    client: Client,
    instruction: MeasuredInstruction,
    scores: Mapping[str, float],
    store_text: bool,
    grader: str,
) -> int | None:
    """Record one instruction; None if other scores are recorded."""
    common: dict[str, Any] = {"text": instruction.text, "category": instruction.category}
    common["store_text"] = store_text
    deadline = time.monotonic() + MAX_WAIT_S
    while True:
        try:
            if len(scores) == 1:
                ((candidate, score),) = scores.items()
                return int(client.record_outcome("", candidate, score, **common))
            return client.record_comparison(scores, grader=grader, **common)
        except ModelsatClientError as error:
            if error.code == "ALREADY_EXISTS":
                return None
            wait_s = error.retry_after_s or DEFAULT_WAIT_S
            is_busy = error.code in ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED")
            if not is_busy or time.monotonic() + wait_s > deadline:
                raise
            time.sleep(wait_s)
