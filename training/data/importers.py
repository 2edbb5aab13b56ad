"""Outcomes from elsewhere as a data folder that training and evaluation read.

    python -m training.data.importers table outcomes.csv --out DIR           CSV or Parquet
    python -m training.data.importers routerbench routerbench_0shot.pkl --out DIR
    python -m training.data.importers embedllm train.csv --out DIR
    python -m training.data.importers lm-eval RESULTS_DIR --out DIR
    python -m training.data.importers modelsat outcomes.sqlite --out DIR

table: columns instruction (or text, prompt), candidate (or model), score; a row for each outcome.
routerbench: withmartian/routerbench on the Hugging Face hub, a column for each model. The file is a
pickle, which can run code: import only what you trust. embedllm: RZ412/EmbedLLM, a row for each
outcome. lm-eval: what lm-evaluation-harness writes with --log_samples, a folder for each model.
modelsat: what a server recorded (RecordOutcome), as far as its text was sent.
Files are local; `huggingface-cli download --repo-type dataset ID` brings them.
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
from engine.datasets.folder import lines_of
from engine.datasets.outcomes import read_outcomes
from engine.registry.recorded import BENCHMARK, join
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
    """A row for each outcome; `benchmark` and `id` columns are optional."""
    frame = read_parquet(path) if path.suffix == ".parquet" else read_csv(path)
    column = {name: _column(frame, path, name) for name in ALIASES}
    for row in frame.to_dict("records"):
        text = row[column["text"]]
        identifier = row.get("id") or row.get("prompt_id") or text
        benchmark = row.get("benchmark") or row.get("category") or path.stem
        score = _number(row[column["score"]])
        yield Outcome(identifier, benchmark, text, row[column["candidate"]], score)


def _number(cell: str) -> float:
    """NaN, not measured, where the cell is empty."""
    return float({"": "nan", "true": "1", "false": "0"}.get(cell.lower(), cell))


def read_csv(path: Path) -> pd.DataFrame:
    """Every cell as text, so that "None" stays a word and an empty cell is empty."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def read_parquet(path: Path) -> pd.DataFrame:
    """The same of a Parquet file."""
    frame = pd.read_parquet(path)
    return frame.astype(object).where(frame.notna(), "").map(str)


def from_routerbench(path: Path) -> Iterator[Outcome]:
    """A row for each prompt, a score column for each model beside {model}|total_cost."""
    frame = pd.read_pickle(path) if path.suffix == ".pkl" else pd.read_csv(path)  # noqa: S301
    models = [c.removesuffix("|total_cost") for c in frame.columns if c.endswith("|total_cost")]
    models = [m for m in models if m in frame.columns]
    if not models:
        raise InvalidInputError(
            Violation(str(path), "has no column {model}|total_cost; is it RouterBench's table?")
        )
    for row in frame.to_dict("records"):
        for model in models:
            name, text = str(row["sample_id"]), _first(row["prompt"])
            yield Outcome(name, str(row["eval_name"]), text, model, float(row[model]))


def _first(prompt: Any) -> str:
    """RouterBench stores some prompts as a list in words."""
    text = str(prompt)
    if text.startswith("["):
        try:
            return "\n".join(json.loads(text))
        except ValueError:
            return text.strip("[]'\"")
    return text


def from_lm_eval(path: Path) -> Iterator[Outcome]:
    """samples_{task}_{time}.jsonl of every model's folder below `path`; of several filters of one
    document, the first."""
    for file in sorted(path.rglob("samples_*.jsonl")):
        task = file.stem.removeprefix("samples_").rsplit("_", 1)[0]
        seen: set[str] = set()
        for line in filter(str.strip, lines_of(file)):
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
    """The document's question and its options; the whole prompt where it names none."""
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
    """The mean score of each candidate on each text."""
    instructions, _ = join(read_recorded(path))
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
    """Write the folder in place of one that is there; returns (instructions, candidates). Raises
    InvalidInputError where there is no outcome, a pair has two scores, or an id two texts."""
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
        raise InvalidInputError(Violation("outcomes", "are none; is this the right source?"))
    names, ids = sorted({c for c, _ in scores}), list(texts)
    place = {identifier: i for i, identifier in enumerate(ids)}
    row = {name: i for i, name in enumerate(names)}
    matrix = np.full((len(names), len(ids)), np.nan, dtype=np.float32)
    for (candidate, identifier), score in scores.items():
        matrix[row[candidate], place[identifier]] = score
    out.mkdir(parents=True, exist_ok=True)
    (out / "instructions.jsonl.gz").unlink(missing_ok=True)  # it would be read in its place
    with (out / "instructions.jsonl").open("w", encoding="utf-8") as file:
        for number, ((benchmark, _), text) in enumerate(texts.items()):
            line = {"id": f"{benchmark}/{number}", "benchmark": benchmark, "text": text}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    (out / "candidates.json").write_text(json.dumps([{"name": n} for n in names], indent=1))
    np.savez_compressed(out / "scores.npz", scores=matrix)
    return len(ids), len(names)


FORMS: Mapping[str, Callable[[Path], Iterator[Outcome]]] = {
    "table": from_table,
    "routerbench": from_routerbench,
    "embedllm": from_table,
    "lm-eval": from_lm_eval,
    "modelsat": from_modelsat,
}


def main() -> None:
    """Import --out from a source, then read it as training would, so that problems show now."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("form", choices=FORMS)
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if not given.source.exists():
        raise InvalidInputError(Violation("source", f"{given.source} does not exist."))
    instructions, candidates = write_folder(FORMS[given.form](given.source), given.out)
    read_outcomes(given.out)
    print(f"{given.out}: {instructions} instructions x {candidates} candidates")


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
