"""Import outcomes from other sources into a data folder for training and evaluation.

    python -m training.data.importers table outcomes.csv --out DIR           CSV, JSONL or Parquet
    python -m training.data.importers routerbench routerbench_0shot.pkl --out DIR
    python -m training.data.importers embedllm train.csv --out DIR
    python -m training.data.importers lm-eval RESULTS_DIR --out DIR [--filter NAME]
    python -m training.data.importers log traces.jsonl --out DIR
    python -m training.data.importers modelsat outcomes.sqlite --out DIR

table        a row per outcome: instruction (or text, prompt), candidate (or model), score.
routerbench  withmartian/routerbench of the Hugging Face hub, a column per model. The file is a
             pickle, which can run code: import only what you trust. CSV and Parquet are safe.
embedllm     RZ412/EmbedLLM, a row per outcome.
lm-eval      what lm-evaluation-harness writes with --log_samples, a folder per model.
log          logs that hold outcomes, of LiteLLM, Langfuse, Helicone, OpenTelemetry and others, as
             `modelsat replay` reads them; the mean score of each candidate on each text.
modelsat     outcomes that a server recorded (RecordOutcome), if their text was sent along.

A cell that holds a list, JSON or chat messages as text is decoded. What cannot be read is refused
with its file, row and column; rows are counted from 1, without the header.

Files are local; `huggingface-cli download --repo-type dataset ID` downloads them.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.api.errors import InvalidInputError, ModelsatError, Violation
from engine.datasets.outcomes import read_outcomes
from engine.datasets.rows import SourceRow, TextFormat
from engine.registry.outcome_export import BENCHMARK, group_by_text
from engine.registry.stores.outcomes import read_recorded
from engine.replay.formats import COLUMNS, FormatReader, log_format
from engine.replay.log import past_request
from training.data.imported import (
    ColumnError,
    ImportOptions,
    Outcome,
    Problems,
    read_name,
    read_score,
    read_text,
    without_repeats,
    write_folder,
)
from training.data.lm_eval import from_lm_eval

ALIASES = {
    "text": ("instruction", "text", "prompt", "question", "query", "messages"),
    "candidate": ("candidate", "model", "model_name", "llm"),
    "score": ("score", "label", "outcome", "correct", "accuracy"),
}
COST = "|total_cost"


def from_table(path: Path, options: ImportOptions | None = None) -> Iterator[Outcome]:
    """Read a table with a row per outcome; columns `benchmark` and `id` are optional."""
    options = options or ImportOptions()
    for row in options.rows(path):
        record = {str(name).strip().lower(): value for name, value in (row.record or {}).items()}
        column = {name: _column(record, path, name) for name in ALIASES}
        problems, stem = options.problems, path.name.split(".")[0]
        try:
            text = read_text(record[column["text"]], column["text"])
            candidate = read_text(record[column["candidate"]], column["candidate"]).strip()
            measured = read_score(record[column["score"]], column["score"])
        except ColumnError as error:
            problems.skip(row, error.column, str(error))
            continue
        benchmark = record.get("benchmark") or record.get("category")
        identifier = record.get("id") or record.get("prompt_id")
        yield Outcome(
            read_name(identifier, text, "id", problems),
            read_name(benchmark, stem, "benchmark", problems),
            text,
            candidate,
            measured,
            f"{row.file}, row {row.number}",
        )


def _column(record: Mapping[str, Any], path: Path, name: str) -> str:
    for alias in ALIASES[name]:
        if alias in record:
            return alias
    raise InvalidInputError(
        Violation(str(path), f"has no column {name}; expected one of {list(ALIASES[name])}.")
    )


def from_routerbench(path: Path, options: ImportOptions | None = None) -> Iterator[Outcome]:
    """Read a table with a row per prompt, and columns {model} and {model}|total_cost."""
    options = options or ImportOptions()
    models: list[str] = []
    for row in _pickled(path, options) if path.suffix == ".pkl" else options.rows(path):
        record = row.record or {}
        if not models:
            models = [str(c).removesuffix(COST) for c in record if str(c).endswith(COST)]
            models = [m for m in models if m in record]
            if not models:
                problem = "has no column {model}|total_cost, so it is not RouterBench's."
                raise InvalidInputError(Violation(str(path), problem))
        problems, place = options.problems, f"{row.file}, row {row.number}"
        try:
            text = read_text(record.get("prompt"), "prompt")
            scores = {model: read_score(record.get(model), model) for model in models}
        except ColumnError as error:
            problems.skip(row, error.column, str(error))
            continue
        name = read_name(record.get("sample_id"), text, "sample_id", problems)
        benchmark = read_name(record.get("eval_name"), "routerbench", "eval_name", problems)
        for model, measured in scores.items():
            yield Outcome(name, benchmark, text, model, measured, place)


def _pickled(path: Path, options: ImportOptions) -> Iterator[SourceRow]:
    """Yield the rows of a pickled pandas frame."""
    import pandas as pd

    try:
        frame = pd.read_pickle(path)  # noqa: S301
        records = [{str(k): v for k, v in r.items()} for r in frame.to_dict("records")]
    except Exception as error:
        problem = f"cannot be read as a pickled table ({type(error).__name__})."
        raise InvalidInputError(Violation(str(path), problem)) from error
    for number, record in enumerate(records, start=1):
        yield SourceRow(str(path), number, record, "", number / len(records))
    options.problems.check()


def from_log(path: Path, options: ImportOptions | None = None) -> Iterator[Outcome]:
    """Read a log as replay does: the mean outcome of each candidate on each text.

    A request without candidate or outcome is counted and left out.
    """
    options = options or ImportOptions()
    reader = FormatReader(log_format(options.log_format) if options.log_format else None)
    means: dict[tuple[str, str], list[float]] = {}
    for row in options.rows(path):
        for form, record in reader.requests(row.record or {}):
            request = past_request(record, COLUMNS, None, form)
            if isinstance(request, str):
                options.problems.skip(row, "", request.removesuffix("."))
            elif not (request.text and request.candidate) or math.isnan(request.outcome):
                what = "a request has no text, no candidate or no outcome"
                options.problems.dropped[what] += 1
            else:
                key = (request.text, request.candidate)
                means.setdefault(key, []).append(request.outcome)
    for (text, candidate), scores in means.items():
        yield Outcome(text, BENCHMARK, text, candidate, math.fsum(scores) / len(scores))


def from_modelsat(path: Path, options: ImportOptions | None = None) -> Iterator[Outcome]:
    """Read what a server recorded: the mean score of each candidate on each text."""
    instructions, without_text = group_by_text(read_recorded(path))
    if without_text and options is not None:
        options.problems.dropped["an outcome has no text"] += without_text
    for each in instructions:
        for candidate in each.scores:
            score = each.mean(candidate)
            yield Outcome(each.id, each.category or BENCHMARK, each.text, candidate, score)


FORMATS: Mapping[str, Callable[..., Iterator[Outcome]]] = {
    "table": from_table,
    "routerbench": from_routerbench,
    "embedllm": from_table,
    "lm-eval": from_lm_eval,
    "log": from_log,
    "modelsat": from_modelsat,
}


def main() -> None:
    """Import a source into --out, then read it as training does, so that problems show now."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("format", choices=FORMATS, help="format of the source")
    parser.add_argument("source", type=Path, help="file or folder to read")
    parser.add_argument("--out", type=Path, required=True, help="data folder to write")
    _add_reading(parser)
    arguments = parser.parse_args()
    if not arguments.source.exists():
        raise InvalidInputError(Violation("source", f"{arguments.source} does not exist."))
    problems = Problems(arguments.max_invalid_rows)
    options = ImportOptions(
        problems,
        TextFormat(arguments.encoding, arguments.delimiter),
        tuple(arguments.filter),
        arguments.template,
        arguments.metric,
        arguments.run,
        arguments.text == "prompt",
        arguments.log_format,
    )
    outcomes = FORMATS[arguments.format](arguments.source, options)
    try:
        instructions, candidates = write_folder(without_repeats(outcomes, problems), arguments.out)
    except InvalidInputError:
        problems.invalid.clear()  # the error names them
        problems.count = 0
        raise
    finally:
        for line in problems.summary():
            print(f"warning: {line}", file=sys.stderr)
    read_outcomes(arguments.out)
    print(f"{arguments.out}: {instructions} instructions x {candidates} candidates")


def _add_reading(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "leave out at most this many unreadable rows, then refuse (default %(default)s)"
    add("--max-invalid-rows", type=int, default=0, metavar="N", help=text)
    add("--encoding", default="", metavar="NAME", help="of text files (default: UTF-8, or its BOM)")
    text = "of CSV files (default: the one that gives the header most columns)"
    add("--delimiter", default="", metavar="CHAR", help=text)
    text = "log: the program that wrote it, as in `modelsat replay --format`"
    add("--log-format", default="", metavar="NAME", help=text)
    text = "lm-eval: the filter whose scores count, also as TASK=NAME (repeatable)"
    add("--filter", action="append", default=[], metavar="NAME", help=text)
    add("--template", default="", metavar="NAME", help="lm-eval: the prompt template that counts")
    add("--metric", default="", metavar="NAME", help="lm-eval: the metric that counts")
    text = "lm-eval: the run that counts, as the beginning of its time, or latest"
    add("--run", default="", metavar="TIME", help=text)
    text = "lm-eval: read the document's question, or the whole prompt (default %(default)s)"
    add("--text", choices=("question", "prompt"), default="question", help=text)


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
