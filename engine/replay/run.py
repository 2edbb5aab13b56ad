"""Run a replay from end to end: log -> chunks -> workers -> arrays -> report."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.api.conversation.conversation import Conversation
from engine.api.errors import InvalidInputError, Violation
from engine.bundle.prompt import PROMPT_VERSION
from engine.datasets.rows import SourceRow, TextFormat, read_rows
from engine.replay.formats import NAMES, FormatReader, LogFormat, top_level
from engine.replay.log import PastRequest, past_request
from engine.replay.report import Sample, frontier, report
from engine.replay.scoring import (
    CandidateNames,
    ChunkResult,
    ChunkTask,
    ReplayJob,
    ResultArrays,
    Scores,
    concat,
    result_arrays,
)
from engine.replay.workers import Execute

MAX_LISTED_ROWS = 20
# (decision id, logged candidate) -> (outcome, propensity), NaN if unknown
OutcomeLookup = Callable[[str, str], tuple[float, float]]
Progress = Callable[[int, float], None]  # requests done, share of the log read


@dataclass(frozen=True)
class LogSource:
    """What is read, and how.

    columns: see engine/replay/log.py. outcome_of: looks up outcomes that the log does not hold.
    max_invalid_rows: lines that may be skipped. chunk: requests per chunk. form: format of every
    record; None detects it record by record. text: see TextFormat.
    """

    files: Sequence[Path]
    columns: Mapping[str, tuple[str, ...]]
    outcome_of: OutcomeLookup | None = None
    max_invalid_rows: int = 1000
    chunk: int = 128
    form: LogFormat | None = None
    text: TextFormat | None = None


@dataclass
class LogNotes:
    """What was met while reading the log.

    count, lines: rows that were skipped; the first MAX_LISTED_ROWS of them are listed. dropped:
    column -> values that could not be read. logged: name -> [rows, sum] of figures in the log.
    """

    count: int = 0
    lines: list[dict[str, Any]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    logged: dict[str, list[float]] = field(default_factory=dict)
    formats: Mapping[str, int] = field(default_factory=dict)
    other_records: int = 0

    def add(self, request: PastRequest) -> None:
        """Count what a request has."""
        self.dropped.update(request.dropped)
        for name in ("input_tokens", "output_tokens", "latency_s"):
            if not math.isnan(value := getattr(request, name)):
                entry = self.logged.setdefault(name, [0, 0.0])
                entry[0], entry[1] = entry[0] + 1, entry[1] + value


@dataclass(frozen=True)
class Chunk:
    """Consecutive requests of the log.

    first: number of its first request, from 0. position: share of the log read, in [0, 1].
    """

    number: int
    first: int
    requests: list[PastRequest]
    position: float


def replay(
    log: LogSource,
    job: ReplayJob,
    names: CandidateNames,
    scores: Path,
    execute: Execute,
    progress: Progress,
) -> dict[str, Any]:
    """Replay `log` and return the report; `scores` is the folder of the checkpoint.

    Raises:
        InvalidInputError: the log cannot be read, has no request, or has more than
            log.max_invalid_rows invalid lines. The scores so far are kept.
    """
    invalid, sample = LogNotes(), Sample()
    checkpoint = Checkpoint(scores, job)
    parts: dict[int, ResultArrays] = {}
    finished = 0
    for chunk, result in _process(log, invalid, checkpoint, execute):
        parts[chunk.number] = result_arrays(chunk.requests, names, result.scores, result.decisions)
        sample.add(chunk.first, result.scores)
        finished += len(chunk.requests)
        progress(finished, chunk.position)
    if not parts:
        raise empty_log_error(log, invalid)
    arrays = concat(parts)
    return {
        **report(arrays, job.policies, job.table),
        "frontier": frontier(*sample.arrays(len(arrays.logged)), job.table),
        "log": _log_summary(invalid, names),
    }


def _process(
    log: LogSource, invalid: LogNotes, checkpoint: Checkpoint, execute: Execute
) -> Iterator[tuple[Chunk, ChunkResult]]:
    """Process every chunk; a result's new scores are on disk before it is yielded."""
    waiting: dict[int, Chunk] = {}
    unsaved: dict[int, str] = {}

    def tasks() -> Iterator[ChunkTask]:
        for chunk in _chunks(log, invalid):
            waiting[chunk.number] = chunk
            conversations = tuple(r.conversation for r in chunk.requests)
            key = checkpoint.key(conversations)
            known = checkpoint.load(key, len(conversations))
            if known is None:
                unsaved[chunk.number] = key
            needs = tuple(conversation.needs for conversation in conversations)
            yield ChunkTask(chunk.number, conversations if known is None else (), needs, known)

    for result in execute(tasks()):
        chunk = waiting.pop(result.number)
        if result.number in unsaved:
            checkpoint.save(unsaved.pop(result.number), result.scores)
        yield chunk, result


def _chunks(log: LogSource, invalid: LogNotes) -> Iterator[Chunk]:
    number = first = 0
    requests: list[PastRequest] = []
    position = 0.0
    for request, position in read_requests(log, invalid):
        requests.append(request)
        if len(requests) == log.chunk:
            yield Chunk(number, first, requests, position)
            number, first, requests = number + 1, first + len(requests), []
    if requests:
        yield Chunk(number, first, requests, position)


def read_requests(log: LogSource, invalid: LogNotes) -> Iterator[tuple[PastRequest, float]]:
    """Yield every request of the log with the share of the log that was read so far.

    Raises:
        InvalidInputError: a file cannot be read, or too many rows are invalid.
    """
    needed = top_level(log.columns)
    reader = FormatReader(log.form)
    invalid.formats = reader.counts
    sizes = [file.stat().st_size for file in log.files]
    before, total = 0, max(1, sum(sizes))
    for file, size in zip(log.files, sizes, strict=True):
        for row in read_rows(file, needed, log.text):
            place = {"file": row.file, "line": row.number}
            for parsed in _parsed(row, log, reader):
                if isinstance(parsed, PastRequest):
                    invalid.add(parsed)
                    yield parsed, (before + row.position * size) / total
                else:
                    _skip(log, invalid, {**place, "problem": parsed})
        before += size
        invalid.other_records = reader.skipped


def _parsed(row: SourceRow, log: LogSource, reader: FormatReader) -> list[PastRequest | str]:
    """Read the requests of a row, or say what is wrong with each."""
    if row.record is None:
        return [row.problem]
    try:
        requests = list(reader.requests(row.record))
        return [past_request(r, log.columns, log.outcome_of, form) for form, r in requests]
    except RecursionError:
        return ["holds JSON that is nested too deeply"]


def _skip(log: LogSource, invalid: LogNotes, line: dict[str, Any]) -> None:
    invalid.count += 1
    if len(invalid.lines) < MAX_LISTED_ROWS:
        invalid.lines.append(line)
    if invalid.count > log.max_invalid_rows:
        raise InvalidInputError(
            Violation(
                "log",
                f"has more than {log.max_invalid_rows} invalid lines; --max-invalid-rows allows "
                f"more. The first:"
                f" {_first(invalid)}",
            )
        )


def empty_log_error(log: LogSource, invalid: LogNotes) -> InvalidInputError:
    """Say why no request was read."""
    files = ", ".join(map(str, log.files[:3]))
    lines = f"{invalid.count} lines are invalid, the first: {_first(invalid)}"
    if invalid.count:
        return InvalidInputError(Violation(files, f"has no request. {lines}"))
    formats = f"Formats known by name: {', '.join(NAMES)} (--format)."
    return InvalidInputError(Violation(files, f"has no request. {formats}"))


def _first(invalid: LogNotes) -> str:
    return "; ".join(f"{x['file']}:{x['line']}: {x['problem']}" for x in invalid.lines[:3])


def _log_summary(invalid: LogNotes, names: CandidateNames) -> dict[str, Any]:
    ordered = sorted(names.unknown.items(), key=lambda pair: (-pair[1], pair[0]))
    return {
        "invalid_rows": {"count": invalid.count, "first": invalid.lines},
        "formats": dict(sorted(invalid.formats.items())),
        "other_records": invalid.other_records,
        "dropped_values": dict(sorted(invalid.dropped.items())),
        "recorded": {
            name: {"rows": int(rows), "sum": total}
            for name, (rows, total) in sorted(invalid.logged.items())
        },
        "without_candidate": names.unnamed,
        "unknown_candidates": dict(ordered),
    }


class Checkpoint:
    """Scores on disk, shared by the replays of one folder; written by one process at a time."""

    def __init__(self, folder: Path, job: ReplayJob) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._shape = len(job.table.candidates)
        origin = (PROMPT_VERSION, job.manifest_hash, job.table.embeddings.shape)
        self._origin = hashlib.sha256(repr(origin).encode())
        self._origin.update(job.table.embeddings.tobytes())
        for candidate in job.table.candidates:  # for the match, which sees more than embeddings do
            self._origin.update(repr(candidate.aptitude).encode(errors="replace"))

    def key(self, conversations: Sequence[Conversation]) -> str:
        """Name the scores of these conversations."""
        digest = self._origin.copy()
        for conversation in conversations:
            encoded = repr(conversation).encode(errors="replace")
            digest.update(b"%d " % len(encoded))
            digest.update(encoded)
        return digest.hexdigest()[:32]

    def load(self, key: str, rows: int) -> Scores | None:
        """Read the scores of `key`; None if they are missing or incomplete."""
        try:
            with self._path(key).open("rb") as raw, np.load(raw) as file:
                scores = Scores(file["p"], file["input_tokens"], file["ood_score"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return scores if scores.p.shape == (rows, self._shape) else None

    def save(self, key: str, scores: Scores) -> None:
        """Write the scores of `key`, whole or not at all."""
        path = self._path(key)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, **vars(scores))
        part.replace(path)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.npz"
