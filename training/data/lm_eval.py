"""Read the samples of lm-evaluation-harness: one file for each model, task and run.

A sample holds the benchmark's document, the prompts that were made of it (`arguments`), the
replies, and a score by each metric. A document appears once for each filter, that is for each way
to find the answer in a reply.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.api.errors import InvalidInputError, Violation
from engine.datasets.cells import CellError, decode, is_missing
from engine.datasets.rows import SourceRow, known_suffix
from training.data.imported import ColumnError, ImportOptions, Outcome, read_score, read_text

METRICS = ("exact_match", "acc_norm", "acc", "prompt_level_strict_acc", "pass@1", "f1", "score")
QUESTION_KEYS = ("question", "query", "problem", "prompt", "input", "instruction", "text")
# What a question is about; benchmarks keep it apart from the question.
CONTEXT_KEYS = (
    *("narrative", "passage", "context", "article", "story", "paragraph", "background", "support"),
    *("premise", "dialogue", "conversation", "document", "abstract", "scenario", "table"),
)
ANSWER_KEYS = re.compile(
    "answer|target|solution|explanation|rationale|gold|label|correct|output|response|cot|reason"
)
OPTION_KEYS = ("choices", "options", "endings", "mc1_targets")
OPTION_SERIES = re.compile(r"(choice|option|sol|answer|op|ending|)[_ ]?([0-9]|[a-j])")
TEMPLATE_KEYS = ("template", "template_id", "template_name", "prompt_template", "prompt_name")
SHOWN_CHARS = 40  # a shorter field may be in a prompt by chance


@dataclass(frozen=True)
class _Sample:
    filter: str
    template: str
    outcome: Outcome


def from_lm_eval(path: Path, options: ImportOptions | None = None) -> Iterator[Outcome]:
    """Read samples_{task}_{time}.jsonl of every model's folder under `path`, or one such file.

    Raises:
        InvalidInputError: a task has several filters, templates or runs and none is chosen, or a
            sample cannot be read.
    """
    options = options or ImportOptions()
    for model, task, file in _files(path, options.run):
        samples = list(_samples(file, model, task, options))
        samples = _chosen_template(samples, task, options.template)
        yield from _chosen_filter(samples, task, options.filters)
        _report_equal_texts(samples, task, options)


def _files(path: Path, run: str) -> Iterator[tuple[str, str, Path]]:
    """Yield (model, task, file); of several runs the chosen one: a time, "latest", or any."""
    found = [path] if path.is_file() else sorted(path.rglob("samples_*.json*"))
    runs: dict[tuple[str, str], dict[str, Path]] = {}
    for file in found:
        if known_suffix(file.name):
            stem = re.sub(r"\.jsonl?(\.\w+)?$", "", file.name).removeprefix("samples_")
            task, _, time = stem.rpartition("_")
            runs.setdefault((file.parent.name, task or stem), {})[time] = file
    for (model, task), files in runs.items():
        times = sorted(files)
        if run and run != "latest" and not [t for t in times if t.startswith(run)]:
            continue
        chosen = [t for t in times if run not in ("", "latest") and t.startswith(run)] or times[-1:]
        if len(chosen) > 1 or (len(times) > 1 and not run):
            raise _choose("--run", f"{model}, {task}", "runs", times)
        yield model, task, files[chosen[0]]


def _choose(flag: str, task: str, kind: str, names: Iterable[str]) -> InvalidInputError:
    listed = ", ".join(sorted(names))
    return InvalidInputError(Violation(flag, f"{task} has several {kind}: {listed}; choose one."))


def _samples(file: Path, model: str, task: str, options: ImportOptions) -> Iterator[_Sample]:
    for row in options.rows(file):
        sample = row.record or {}
        try:
            measured = _score(sample, options.metric)
            if measured is None:
                options.problems.dropped[f"{task}: a sample has no score"] += 1
                continue
            doc = _decoded(sample.get("doc"), "doc")
            if not isinstance(doc, dict):
                raise ColumnError("doc", "is no JSON object")
            text = _prompt(sample) if options.prompt else _text(doc, sample)
        except ColumnError as error:
            options.problems.skip(row, error.column, str(error))
            continue
        keys = [k for k in TEMPLATE_KEYS if isinstance(sample.get(k) or doc.get(k), str | int)]
        template = str(sample.get(keys[0]) or doc[keys[0]]) if keys else ""
        filter_name = sample.get("filter")
        yield _Sample(
            filter_name if isinstance(filter_name, str) else "none",
            template,
            Outcome(_identifier(sample, row, task), task, text, model, measured, _place(row)),
        )


def _place(row: SourceRow) -> str:
    return f"{row.file}, row {row.number}"


def _identifier(sample: Mapping[str, Any], row: SourceRow, task: str) -> str:
    for key in ("doc_id", "doc_hash"):
        if isinstance(sample.get(key), str | int):
            return f"{task}/{sample[key]}"
    return f"{task}/row {row.number}"


def _score(sample: Mapping[str, Any], wanted: str) -> float | None:
    """Return the score by the wanted metric, else by the first known one; None if there is none."""
    named = sample.get("metrics")
    listed = [m for m in named if isinstance(m, str)] if isinstance(named, list) else []
    for metric in (wanted,) if wanted else (*METRICS, *listed):
        value = sample.get(metric)
        if isinstance(value, bool | int | float | str) and not is_missing(value):
            return read_score(value, metric)
    return None


def _chosen_template(samples: list[_Sample], task: str, wanted: str) -> list[_Sample]:
    """Keep the samples of one template. Raises InvalidInputError if several have documents in
    common and none is wanted, or the task has others only."""
    templates = {s.template for s in samples}
    if len(templates) < 2:
        return samples
    if wanted in templates:
        return [s for s in samples if s.template == wanted]
    if not wanted and len(templates) == len(samples):
        return samples  # a name for each document, so no template
    raise _choose("--template", task, "templates", templates)


def _chosen_filter(samples: list[_Sample], task: str, wanted: Sequence[str]) -> Iterator[Outcome]:
    filters = {s.filter for s in samples}
    of_task = [w.partition("=")[2] for w in wanted if w.startswith(f"{task}=")]
    of_all = [w for w in wanted if "=" not in w]
    chosen = [f for f in (*of_task, *of_all) if f in filters]
    if len(filters) > 1 and not chosen:
        raise _choose("--filter", task, "filters", filters)
    taken = chosen[0] if chosen else next(iter(filters), "")
    yield from (s.outcome for s in samples if s.filter == taken)


def _report_equal_texts(samples: list[_Sample], task: str, options: ImportOptions) -> None:
    documents = {s.outcome.id for s in samples}
    texts = {s.outcome.text for s in samples}
    if len(documents) > 1 and 2 * len(texts) <= len(documents):
        what = f"{task}: a document has the same text as another; --text prompt may tell them apart"
        options.problems.dropped[what] += len(documents) - len(texts)


# --- the text --------------------------------------------------------------------------------


def _decoded(value: Any, column: str) -> Any:
    try:
        return decode(value)
    except CellError as error:
        raise ColumnError(column, str(error)) from None


def _text(doc: Mapping[str, Any], sample: Mapping[str, Any]) -> str:
    """Render the document's context, question and options, or the prompt if it has no question."""
    fields = {str(key).lower(): (key, value) for key, value in doc.items()}
    question = ""
    for key in QUESTION_KEYS:
        column, value = fields.get(key, ("", None))
        if isinstance(value, str | list) and not is_missing(value):
            question = read_text(value, f"doc.{column}")
            break
    if not question:
        return _prompt(sample)
    context = _context(doc, fields, question, sample)
    lines = [f"{chr(65 + i)}. {option}" for i, option in enumerate(_options(fields))]
    return "\n".join([*context, question, *lines])


def _context(
    doc: Mapping[str, Any],
    fields: Mapping[str, tuple[Any, Any]],
    question: str,
    sample: Mapping[str, Any],
) -> list[str]:
    """List the texts that the question is about: fields with a known name, and long ones that the
    prompt shows."""
    found = []
    for key in CONTEXT_KEYS:
        column, value = fields.get(key, ("", None))
        if isinstance(value, str | list | dict) and not is_missing(value):
            text = read_text(value, f"doc.{column}")
            if text not in question and question not in text:
                found.append(text)
    try:
        prompt = _prompt(sample)
    except ColumnError:
        return found
    for key, value in doc.items():
        if not isinstance(value, str) or ANSWER_KEYS.search(str(key).lower()):
            continue
        text = value.strip()
        shown = len(text) >= SHOWN_CHARS and text in prompt
        if shown and not any(text in known or known in text for known in (*found, question)):
            found.append(text)
    return found


def _options(fields: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """List the options of a multiple-choice question; none if it is no such question."""
    for key in OPTION_KEYS:
        column, value = fields.get(key, ("", None))
        if not is_missing(value):
            return _listed(_decoded(value, f"doc.{column}"), f"doc.{column}")
    series: dict[str, list[str]] = {}
    for key in sorted(fields):
        part = OPTION_SERIES.fullmatch(key)
        if part and isinstance(fields[key][1], str | int | float):
            series.setdefault(part[1], []).append(str(fields[key][1]))
    return next((found for found in series.values() if len(found) > 1), [])


def _listed(value: Any, column: str) -> list[str]:
    if isinstance(value, dict):
        texts = next((value[k] for k in ("text", "texts", "choices") if k in value), None)
        value = _decoded(texts, column) if texts is not None else list(value.values())
    if isinstance(value, str):
        lines = [line.strip() for line in value.splitlines() if line.strip()]
        if len(lines) > 1:
            return [re.sub(r"^[(\[]?[A-Ja-j][).:\]]\s+", "", line) for line in lines]
    if not isinstance(value, list) or not value:
        raise ColumnError(column, "is no list of options")
    options = []
    for option in value:
        text = option.get("text", option.get("content")) if isinstance(option, dict) else option
        if isinstance(text, bool | int | float):
            text = str(text)
        options.append(read_text(text, column))
    return options


def _prompt(sample: Mapping[str, Any]) -> str:
    """Return the prompt that the model was given, which is the same for each option.

    Raises ColumnError if there is none, or several.
    """
    arguments = _decoded(sample.get("arguments"), "arguments")
    calls = list(arguments.values()) if isinstance(arguments, dict) else arguments
    prompts: dict[str, None] = {}
    for call in calls if isinstance(calls, list) else []:
        arguments_of = _decoded(call, "arguments")
        first = arguments_of.get("arg_0") if isinstance(arguments_of, dict) else arguments_of
        if isinstance(first, list) and first and not isinstance(first[0], dict):
            first = first[0]
        if not is_missing(first):
            prompts[read_text(first, "arguments")] = None
    if len(prompts) != 1:
        problem = f"holds {len(prompts)} different prompts, expected one"
        raise ColumnError("arguments", problem)
    return next(iter(prompts))
