"""A replay from end to end: log -> chunks -> workers -> columns -> report."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.api.errors import InvalidInputError, Violation
from engine.bundle.prompt import PROMPT_VERSION
from engine.replay.log import PastRequest, past_request, read_lines, top_level
from engine.replay.report import Sample, frontier, report
from engine.replay.scoring import Columns, Done, Names, Plan, Scores, Work, columns_of, joined
from engine.replay.workers import Execute

SHOWN_BROKEN = 20
Score = Callable[[str, str], float]  # (decision id, candidate as logged) -> outcome or NaN
Progress = Callable[[int, float], None]  # requests done, share of the log that they end at


@dataclass(frozen=True)
class Log:
    """What is read and how. columns: see requests.COLUMNS. outcome_of: for requests that bring
    none. max_invalid_rows: lines that may be skipped."""

    files: Sequence[Path]
    columns: Mapping[str, tuple[str, ...]]
    outcome_of: Score | None = None
    max_invalid_rows: int = 1000
    chunk: int = 128


@dataclass
class Broken:
    """Lines that were skipped; the first of them by name."""

    count: int = 0
    lines: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Chunk:
    """first: number of its first request, from 0. position: share of the log read, in [0, 1]."""

    number: int
    first: int
    requests: list[PastRequest]
    position: float


def replay(
    log: Log, plan: Plan, names: Names, scores: Path, execute: Execute, progress: Progress
) -> dict[str, Any]:
    """The report; `scores` is the folder of the checkpoint.

    Raises InvalidInputError where the log cannot be read, holds no request, or more than
    log.max_invalid_rows lines are broken; what was scored until then is kept.
    """
    broken, sample = Broken(), Sample()
    kept = Checkpoint(scores, plan)
    parts: dict[int, Columns] = {}
    finished = 0
    for chunk, done in _worked(log, broken, kept, execute):
        parts[chunk.number] = columns_of(chunk.requests, names, done.scores, done.decisions)
        sample.add(chunk.first, done.scores)
        finished += len(chunk.requests)
        progress(finished, chunk.position)
    if not parts:
        raise _nothing(log, broken)
    columns = joined(parts)
    return {
        **report(columns, plan.policies, plan.table),
        "frontier": frontier(*sample.arrays(len(columns.used)), plan.table),
        "log": _about(broken, names),
    }


def _worked(
    log: Log, broken: Broken, kept: Checkpoint, execute: Execute
) -> Iterator[tuple[Chunk, Done]]:
    """Every chunk with its answer, as they come; new scores are on disk by then."""
    waiting: dict[int, Chunk] = {}
    unsaved: dict[int, str] = {}

    def works() -> Iterator[Work]:
        for chunk in _chunks(log, broken):
            waiting[chunk.number] = chunk
            instructions = tuple((r.text, r.context_chars) for r in chunk.requests)
            key = kept.key(instructions)
            known = kept.load(key, len(instructions))
            if known is None:
                unsaved[chunk.number] = key
            yield Work(chunk.number, instructions if known is None else (), known)

    for done in execute(works()):
        chunk = waiting.pop(done.number)
        if done.number in unsaved:
            kept.save(unsaved.pop(done.number), done.scores)
        yield chunk, done


def _chunks(log: Log, broken: Broken) -> Iterator[Chunk]:
    number = first = 0
    requests: list[PastRequest] = []
    position = 0.0
    for request, position in _requests(log, broken):
        requests.append(request)
        if len(requests) == log.chunk:
            yield Chunk(number, first, requests, position)
            number, first, requests = number + 1, first + len(requests), []
    if requests:
        yield Chunk(number, first, requests, position)


def _requests(log: Log, broken: Broken) -> Iterator[tuple[PastRequest, float]]:
    needed = top_level(log.columns)
    sizes = [file.stat().st_size for file in log.files]
    before, total = 0, max(1, sum(sizes))
    for file, size in zip(log.files, sizes, strict=True):
        for line in read_lines(file, needed):
            found = line.problem or past_request(line.record or {}, log.columns, log.outcome_of)
            if isinstance(found, PastRequest):
                yield found, (before + line.position * size) / total
            else:
                _skip(log, broken, {"file": line.file, "line": line.number, "problem": found})
        before += size


def _skip(log: Log, broken: Broken, line: dict[str, Any]) -> None:
    broken.count += 1
    if len(broken.lines) < SHOWN_BROKEN:
        broken.lines.append(line)
    if broken.count > log.max_invalid_rows:
        raise InvalidInputError(
            Violation(
                "log",
                f"has more than {log.max_invalid_rows} broken lines; --max-invalid-rows allows "
                f"more. The first:"
                f" {_first(broken)}",
            )
        )


def _nothing(log: Log, broken: Broken) -> InvalidInputError:
    files = ", ".join(map(str, log.files[:3]))
    why = f"{broken.count} lines are broken, the first: {_first(broken)}" if broken.count else ""
    return InvalidInputError(Violation(files, f"holds no request. {why}".strip()))


def _first(broken: Broken) -> str:
    return "; ".join(f"{x['file']}:{x['line']}: {x['problem']}" for x in broken.lines[:3])


def _about(broken: Broken, names: Names) -> dict[str, Any]:
    ordered = sorted(names.unknown.items(), key=lambda pair: (-pair[1], pair[0]))
    return {
        "invalid_rows": {"count": broken.count, "first": broken.lines},
        "without_candidate": names.unnamed,
        "unknown_candidates": dict(ordered),
    }


class Checkpoint:
    """The folder of one or more replays; written by one process at a time."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._shape = len(plan.table.candidates)
        made_by = (PROMPT_VERSION, plan.manifest_hash, plan.table.embeddings.shape)
        self._origin = hashlib.sha256(repr(made_by).encode())
        self._origin.update(plan.table.embeddings.tobytes())

    def key(self, instructions: Sequence[tuple[str, int]]) -> str:
        """Names the scores of these (text, context_chars)."""
        digest = self._origin.copy()
        for text, context_chars in instructions:
            encoded = text.encode()
            digest.update(b"%d %d " % (len(encoded), context_chars))
            digest.update(encoded)
        return digest.hexdigest()[:32]

    def load(self, key: str, rows: int) -> Scores | None:
        """The scores of `key`; None where they are not here whole."""
        try:
            with self._path(key).open("rb") as raw, np.load(raw) as file:
                found = Scores(file["p"], file["input_tokens"], file["ood_score"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return found if found.p.shape == (rows, self._shape) else None

    def save(self, key: str, scores: Scores) -> None:
        """Whole or not at all."""
        path = self._path(key)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, **vars(scores))
        part.replace(path)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.npz"
