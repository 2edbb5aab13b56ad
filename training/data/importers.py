"""Import outcomes from other sources into a data folder for training and evaluation.

    python -m training.data.importers table outcomes.csv --out DIR           CSV or Parquet
    python -m training.data.importers routerbench routerbench_0shot.pkl --out DIR
    python -m training.data.importers embedllm train.csv --out DIR
    python -m training.data.importers lm-eval RESULTS_DIR --out DIR
    python -m training.data.importers modelsat outcomes.sqlite --out DIR

table        a row per outcome: instruction (or text, prompt), candidate (or model), score.
routerbench  withmartian/routerbench of the Hugging Face hub, a column per model. The file is a
             pickle, which can run code: import only what you trust.
embedllm     RZ412/EmbedLLM, a row per outcome.
lm-eval      what lm-evaluation-harness writes with --log_samples, a folder per model.
modelsat     outcomes that a server recorded (RecordOutcome), if their text was sent along.

Files are local; `huggingface-cli download --repo-type dataset ID` downloads them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from engine.api.errors import InvalidInputError, ModelsatError, Violation
from engine.datasets.folder import read_lines
from engine.datasets.outcomes import read_outcomes
from engine.registry.outcome_export import BENCHMARK, group_by_text
from engine.registry.stores.outcomes import read_recorded

ALIASES = {
    "text": ("instruction", "text", "prompt"),
    "candidate": ("candidate", "model", "model_name"),
    "score": ("score", "label", "outcome"),
}
METRICS = ("exact_match", "acc_norm", "acc", "prompt_level_strict_acc", "pass@1", "f1", "score")
QUESTION_KEYS = ("question", "query", "problem", "prompt", "input", "instruction", "text")


@dataclass(frozen=True)
class Outcome:
    """One candidate's score, in [0, 1], on one instruction."""

    id: str
    benchmark: str
    text: str
    candidate: str
    score: float


def from_table(path: Path) -> Iterator[Outcome]:
    """Read a table with a row per outcome; columns `benchmark` and `id` are optional."""
    frame = read_parquet(path) if path.suffix == ".parquet" else read_csv(path)
    column = {name: _column(frame, path, name) for name in ALIASES}
    for row in frame.to_dict("records"):
        text = row[column["text"]]
        identifier = row.get("id") or row.get("prompt_id") or text
        benchmark = row.get("benchmark") or row.get("category") or path.stem
        score = _number(row[column["score"]])
        yield Outcome(identifier, benchmark, text, row[column["candidate"]], score)


def _number(cell: str) -> float:
    """Read a score; an empty cell is NaN, not measured."""
    return float({"": "nan", "true": "1", "false": "0"}.get(cell.lower(), cell))


def read_csv(path: Path) -> pd.DataFrame:
    """Read every cell as text, so that "None" stays a word and an empty cell stays empty."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def read_parquet(path: Path) -> pd.DataFrame:
    """Read a Parquet file as read_csv reads CSV."""
    frame = pd.read_parquet(path)
    return frame.astype(object).where(frame.notna(), "").map(str)


def from_routerbench(path: Path) -> Iterator[Outcome]:
    """Read a table with a row per prompt, and columns {model} and {model}|total_cost."""
    frame = pd.read_pickle(path) if path.suffix == ".pkl" else pd.read_csv(path)  # noqa: S301
    models = [c.removesuffix("|total_cost") for c in frame.columns if c.endswith("|total_cost")]
    models = [m for m in models if m in frame.columns]
    if not models:
        raise InvalidInputError(
            Violation(str(path), "has no column {model}|total_cost, so it is not RouterBench's.")
        )
    for row in frame.to_dict("records"):
        for model in models:
            name, text = str(row["sample_id"]), _first(row["prompt"])
            yield Outcome(name, str(row["eval_name"]), text, model, float(row[model]))


def _first(prompt: Any) -> str:
    """Unpack a prompt; RouterBench stores some as the text of a list."""
    text = str(prompt)
    if text.startswith("["):
        try:
            return "\n".join(json.loads(text))
        except ValueError:
            return text.strip("[]'\"")
    return text


def from_lm_eval(path: Path) -> Iterator[Outcome]:
    """Read samples_{task}_{time}.jsonl of every model's folder under `path`.

    If several filters score one document, the first one counts.
    """
    for file in sorted(path.rglob("samples_*.jsonl")):
        task = file.stem.removeprefix("samples_").rsplit("_", 1)[0]
        seen: set[str] = set()
        for line in filter(str.strip, read_lines(file)):
            sample = json.loads(line)
            identifier = f"{task}/{sample['doc_id']}"
            score = _metric(sample)
            if identifier not in seen and score is not None:
                seen.add(identifier)
                yield Outcome(identifier, task, _question(sample), file.parent.name, score)


def _metric(sample: Mapping[str, Any]) -> float | None:
    named = [m for m in sample.get("metrics", ()) if m in sample]
    for metric in (*METRICS, *named):
        if isinstance(sample.get(metric), bool | int | float):
            return float(sample[metric])
    return None


def _question(sample: Mapping[str, Any]) -> str:
    """Render the document's question and options, or the whole prompt if it has no question."""
    doc = sample["doc"]
    for key in QUESTION_KEYS:
        if isinstance(doc.get(key), str) and doc[key].strip():
            options = doc.get("choices", doc.get("options", ()))
            options = options.get("text", ()) if isinstance(options, dict) else options
            lines = [f"{chr(65 + i)}. {option}" for i, option in enumerate(options)]
            return "\n".join([doc[key], *lines])
    arguments = sample["arguments"]
    return str(arguments["gen_args_0"]["arg_0"] if isinstance(arguments, dict) else arguments[0][0])


def from_modelsat(path: Path) -> Iterator[Outcome]:
    """Read what a server recorded: the mean score of each candidate on each text."""
    instructions, _ = group_by_text(read_recorded(path))
    for each in instructions:
        for candidate in each.scores:
            score = each.mean(candidate)
            yield Outcome(each.id, each.category or BENCHMARK, each.text, candidate, score)


def _column(frame: pd.DataFrame, path: Path, name: str) -> str:
    for alias in ALIASES[name]:
        if alias in frame.columns:
            return alias
    raise InvalidInputError(
        Violation(str(path), f"has no column {name}; expected one of {list(ALIASES[name])}.")
    )


def write_folder(outcomes: Iterable[Outcome], out: Path) -> tuple[int, int]:
    """Write a data folder; an earlier one is replaced.

    Returns:
        The numbers of (instructions, candidates).

    Raises:
        InvalidInputError: there is no outcome, a pair has two scores, or an id has two texts.
    """
    texts: dict[tuple[str, str], str] = {}
    scores: dict[tuple[str, tuple[str, str]], float] = {}
    for outcome in outcomes:
        key = (outcome.benchmark, outcome.id)
        short = repr(outcome.id[:60])
        if texts.setdefault(key, outcome.text) != outcome.text:
            raise InvalidInputError(Violation("outcomes", f"{short} has two different texts."))
        if (pair := (outcome.candidate, key)) in scores:
            raise InvalidInputError(
                Violation("outcomes", f"{outcome.candidate} has two scores on {short}.")
            )
        scores[pair] = outcome.score
    if not scores:
        raise InvalidInputError(Violation("source", "has no outcomes; check its format."))
    names, ids = sorted({c for c, _ in scores}), list(texts)
    column = {identifier: i for i, identifier in enumerate(ids)}
    row = {name: i for i, name in enumerate(names)}
    matrix = np.full((len(names), len(ids)), np.nan, dtype=np.float32)
    for (candidate, identifier), score in scores.items():
        matrix[row[candidate], column[identifier]] = score
    out.mkdir(parents=True, exist_ok=True)
    (out / "instructions.jsonl.gz").unlink(missing_ok=True)  # else it would be read instead
    with (out / "instructions.jsonl").open("w", encoding="utf-8") as file:
        for number, ((benchmark, _), text) in enumerate(texts.items()):
            line = {"id": f"{benchmark}/{number}", "benchmark": benchmark, "text": text}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    (out / "candidates.json").write_text(json.dumps([{"name": n} for n in names], indent=1))
    np.savez_compressed(out / "scores.npz", scores=matrix)
    return len(ids), len(names)


FORMATS: Mapping[str, Callable[[Path], Iterator[Outcome]]] = {
    "table": from_table,
    "routerbench": from_routerbench,
    "embedllm": from_table,
    "lm-eval": from_lm_eval,
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
    arguments = parser.parse_args()
    if not arguments.source.exists():
        raise InvalidInputError(Violation("source", f"{arguments.source} does not exist."))
    outcomes = FORMATS[arguments.format](arguments.source)
    instructions, candidates = write_folder(outcomes, arguments.out)
    read_outcomes(arguments.out)
    print(f"{arguments.out}: {instructions} instructions x {candidates} candidates")


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
