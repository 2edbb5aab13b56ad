"""Importers on cells, files and samples in the forms that other programs write: read right, or
refused with file, row and column, and never with a traceback."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.api.errors import InvalidInputError, ModelsatError
from engine.datasets.rows import TextFormat
from training.data.imported import ImportOptions, Outcome, Problems, without_repeats
from training.data.importers import FORMATS, from_routerbench, from_table
from training.data.lm_eval import from_lm_eval

MUSR = {
    "narrative": "A long story. Mark had a motive.",
    "question": "Who is the most likely murderer?",
    "choices": "['Mark', 'Ana']",
}
MUSR_TEXT = "A long story. Mark had a motive.\nWho is the most likely murderer?\nA. Mark\nB. Ana"
PASSAGE = "The bridge over the river was closed for repairs in the spring of that year."


def samples(
    folder: Path, *of: Mapping[str, Any], task: str = "t", time: str = "2026-05-01"
) -> Path:
    """Write a samples file of one model; doc_id counts the documents."""
    folder = folder / "org__model"
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"doc_id": i, "acc": 1.0, **sample}) for i, sample in enumerate(of)]
    (folder / f"samples_{task}_{time}.jsonl").write_text("\n".join(lines))
    return folder.parent


def table(folder: Path, content: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- lm-evaluation-harness -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("doc", "text"),
    [
        (MUSR, MUSR_TEXT),
        ({"question": "Which?", "choices": "['one' 'two'\n 'x']"}, "Which?\nA. one\nB. two\nC. x"),
        (
            {"question": "Which?", "choices": "{'text': array(['x', 'y'], dtype=object)}"},
            "Which?\nA. x\nB. y",
        ),
        ({"Question": "Which?", "A": "x", "B": "y", "C": "z"}, "Which?\nA. x\nB. y\nC. z"),
        ({"question": "Which?", "choices": ["1", 2, True]}, "Which?\nA. 1\nB. 2\nC. True"),
        ({"question": "Which?", "options": "A) x\nB) y"}, "Which?\nA. x\nB. y"),
        ({"passage": PASSAGE, "question": "When?"}, f"{PASSAGE}\nWhen?"),
        ({"facts": PASSAGE, "question": "When?"}, f"{PASSAGE}\nWhen?"),  # as the prompt shows it
        ({"question": "When?", "answer_text": PASSAGE}, "When?"),
        (
            {"premise": "It rained.", "choice1": "x", "choice2": "y", "question": "cause"},
            "It rained.\ncause\nA. x\nB. y",
        ),
        ({"goal": "Open a jar", "sol1": "x", "sol2": "y"}, f"{PASSAGE} Answer:"),
        ('{"question": "As text?"}', "As text?"),
    ],
)
def test_document_is_read_with_its_context_and_options(tmp_path: Path, doc: Any, text: str) -> None:
    prompt = {"gen_args_0": {"arg_0": f"{PASSAGE} Answer:", "arg_1": ""}}
    (found,) = from_lm_eval(samples(tmp_path, {"doc": doc, "arguments": prompt}))
    assert found.text == text


@pytest.mark.parametrize(
    ("sample", "column"),
    [
        ({"doc": {"question": "Which?", "choices": "['Mark', 'An"}}, "doc.choices"),
        ({"doc": {"question": "Which?", "choices": 3}}, "doc.choices"),
        ({"doc": {"question": "Which?", "choices": [{"id": 1}]}}, "doc.choices"),
        ({"doc": {"question": "['Which?", "choices": []}}, "doc.question"),
        ({"doc": "not JSON"}, "doc"),
        ({"doc": {"goal": "x"}, "arguments": "[[1"}, "arguments"),
        ({"doc": {"goal": "x"}, "arguments": [["a", "x"], ["b", "x"]]}, "arguments"),
        ({"doc": {"question": "Which?"}, "acc": 40}, "acc"),
    ],
)
def test_unreadable_sample_is_refused_with_its_place(
    tmp_path: Path, sample: dict[str, Any], column: str
) -> None:
    folder = samples(tmp_path, {"doc": MUSR}, sample)
    with pytest.raises(InvalidInputError, match=f"05-01.jsonl, row 2, column {column}: "):
        list(from_lm_eval(folder))
    options = ImportOptions(Problems(max_invalid_rows=1))
    assert [o.text for o in from_lm_eval(folder, options)] == [MUSR_TEXT]


def test_torn_last_line_is_reported_and_the_rest_kept(tmp_path: Path) -> None:
    folder = samples(tmp_path, *[{"doc": {"question": f"Q{i}?"}} for i in range(3)])
    (path,) = (folder / "org__model").iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    options = ImportOptions()
    assert [o.text for o in from_lm_eval(folder, options)] == ["Q0?", "Q1?"]
    (line,) = options.problems.summary()
    assert "2026-05-01.jsonl, row 3: not valid JSON" in line


def test_of_several_filters_templates_and_runs_one_is_chosen_by_flag(tmp_path: Path) -> None:
    doc = {"question": "Sum?"}
    scores = {"strict": 0, "loose": 1}
    both = [{"doc": doc, "doc_id": 7, "filter": f, "acc": a} for f, a in scores.items()]
    folder = samples(tmp_path, *both)
    with pytest.raises(InvalidInputError, match="--filter: t has several filters: loose, strict"):
        list(from_lm_eval(folder))
    with pytest.raises(InvalidInputError, match="--filter: t has several"):
        list(from_lm_eval(folder, ImportOptions(filters=("other", "u=strict"))))
    for chosen, score in (("strict", 0.0), ("t=loose", 1.0)):
        (found,) = from_lm_eval(folder, ImportOptions(filters=(chosen,)))
        assert found.score == score
    templates = [{"doc": doc, "doc_id": i, "template": t} for i in (1, 2) for t in ("p0", "p1")]
    folder = samples(tmp_path, *templates)
    with pytest.raises(InvalidInputError, match="--template: t has several templates: p0, p1"):
        list(from_lm_eval(folder))
    assert len(list(from_lm_eval(folder, ImportOptions(template="p1")))) == 2
    samples(tmp_path, {"doc": doc, "acc": 0.25}, time="2026-06-01")
    with pytest.raises(InvalidInputError, match="--run: org__model, t has several runs: 2026-05"):
        list(from_lm_eval(folder))
    for run in ("latest", "2026-06"):
        assert [o.score for o in from_lm_eval(folder, ImportOptions(run=run))] == [0.25]


def test_metric_and_prompt_are_chosen_by_flag(tmp_path: Path) -> None:
    chat = json.dumps([{"role": "user", "content": "All of\nthe prompt"}])
    arguments = {f"gen_args_{i}": {"arg_0": chat, "arg_1": f" {i}"} for i in range(4)}
    sample = {"doc": MUSR, "arguments": arguments, "acc": 0.0, "acc_norm": 1.0}
    folder = samples(tmp_path, sample)
    options = ImportOptions(metric="acc", prompt=True)
    assert [(o.text, o.score) for o in from_lm_eval(folder, options)] == [
        ("All of\nthe prompt", 0.0)
    ]


# --- tables ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("\"['Write a poem.', 'Now shorten\\nit.']\"", "Write a poem.\nNow shorten\nit."),
        ('"[""One."", ""Two.""]"', "One.\nTwo."),
        ("\"['One.' 'Two.']\"", "One.\nTwo."),
        ('"[{""role"": ""user"", ""content"": ""Hi""}]"', "Hi"),
        ("Plain [1] text", "Plain [1] text"),
    ],
)
def test_routerbench_prompts_that_are_lists_as_text(tmp_path: Path, cell: str, text: str) -> None:
    header = "sample_id,prompt,eval_name,a,a|total_cost\n"
    (found,) = from_routerbench(table(tmp_path, f"{header}m.1,{cell},mtbench,1.0,0.01\n"))
    assert found == Outcome("m.1", "mtbench", text, "a", 1.0)


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ('m.1,"[\'torn",e,1.0,0.1', "column prompt: "),
        ("m.1,,e,1.0,0.1", "column prompt: is empty"),
        ("m.1,Hi,e,[1.0],0.1", "column a: is not a number"),
        ("m.1,Hi,e,7,0.1", "column a: is 7, expected 0 to 1"),
    ],
)
def test_routerbench_row_is_refused_with_its_place(tmp_path: Path, line: str, place: str) -> None:
    path = table(tmp_path, f"sample_id,prompt,eval_name,a,a|total_cost\n{line}\nm.2,Hi,e,1,0\n")
    with pytest.raises(InvalidInputError, match=r"t\.csv, row 1, ") as refused:
        list(from_routerbench(path))
    assert place in str(refused.value)


def test_pickle_of_something_else_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, b"no pickle", "routerbench.pkl")
    with pytest.raises(InvalidInputError, match="cannot be read as a pickled table"):
        list(from_routerbench(path))
    pd.Series([1]).to_pickle(path)
    with pytest.raises(InvalidInputError, match="cannot be read as a pickled table"):
        list(from_routerbench(path))


@pytest.mark.parametrize(
    ("score", "value"), [("85%", 0.85), ('"0,5"', 0.5), ("87.5 %", 0.875), ("yes", 1.0)]
)
def test_score_in_other_notations(tmp_path: Path, score: str, value: float) -> None:
    path = table(tmp_path, f"Instruction,Model,Score\nHi,m,{score}\n")
    assert [o.score for o in from_table(path)] == [pytest.approx(value)]


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (
            "instruction,candidate,score\nCafé?,m,1\n".encode("cp1252"),
            "row 1, column instruction: is not UTF-8",
        ),
        ("instruction,candidate,score\nA,m,1\nB,m,high\n", "row 2, column score: is not a number"),
        ("instruction,candidate,score\nA,,1\n", "row 1, column candidate: is empty"),
        ("instruction,candidate,score\nA,m,1\nB,m\nC,m,1\n", "row 2: has 2 of 3 cells"),
        ("instruction,candidate,score\nA,m,8500%\n", "row 1, column score: is 85"),
    ],
)
def test_table_is_refused_with_file_row_and_column(
    tmp_path: Path, content: str | bytes, place: str
) -> None:
    path = table(tmp_path, content)
    command = [sys.executable, "-m", "training.data.importers", "table", str(path)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"error: {path}, {place}" in done.stderr
    assert "Traceback" not in done.stderr


def test_tables_of_other_programs(tmp_path: Path) -> None:
    """Semicolons with decimal commas, line breaks in cells, UTF-16, cp1252 and JSONL."""
    for name, content in {
        "a.csv": 'instruction;model;score\n"Two\nlines; one cell";m;0,5\n',
        "b.csv": "instruction\tmodel\tscore\nTwo\\nlines\tm\t50%\n".encode("utf-16"),
        "c.jsonl": '{"messages": [{"content": "Two"}], "model": "m", "score": 0.5}\n',
    }.items():
        (found,) = from_table(table(tmp_path, content, name))
        assert found.text.startswith("Two")
        assert (found.candidate, found.score) == ("m", 0.5)
    path = table(tmp_path, "instruction,model,score\nCafé,m,1\n".encode("cp1252"))
    (found,) = from_table(path, ImportOptions(text=TextFormat("cp1252")))
    assert found.text == "Café"


def test_optional_columns_never_cost_the_row(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "instruction": ["A", "B", "C"],
            "candidate": ["m"] * 3,
            "score": [1.0, None, 0.5],
            "benchmark": [["a", "b"], None, ["c"]],
            "id": [1.5, 2.0, None],
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    options = ImportOptions()
    found = list(from_table(tmp_path / "t.parquet", options))
    assert [o.benchmark for o in found] == ["t"] * 3
    assert [o.text for o in found] == ["A", "B", "C"]
    (line,) = options.problems.summary()
    assert line == "2 times: column benchmark was not usable, so 't' was taken"


def test_logs_with_outcomes(tmp_path: Path) -> None:
    """Scores of Langfuse, as its traces hold them; equal texts are one instruction."""
    lines = [
        {
            "type": "GENERATION",
            "usageDetails": {},
            "input": json.dumps([{"role": "user", "content": text}]),
            "model": model,
            "scores": [{"name": "correct", "value": value}] if value is not None else [],
        }
        for text, model, value in [("A", "m", 1), ("A", "m", 0), ("A", "n", 1), ("B", "m", None)]
    ]
    path = table(tmp_path, "\n".join(map(json.dumps, lines)), "t.jsonl")
    options = ImportOptions()
    found = list(FORMATS["log"](path, options))
    assert [(o.text, o.candidate, o.score) for o in found] == [("A", "m", 0.5), ("A", "n", 1.0)]
    assert options.problems.summary() == [
        "1 times: a request has no text, no candidate or no outcome"
    ]
    with pytest.raises(InvalidInputError, match=r"t\.jsonl, row 1: has no instruction"):
        list(FORMATS["log"](path, ImportOptions(log_format="helicone")))


def test_repeated_rows_count_once_and_contradictions_are_refused() -> None:
    rows = [Outcome("1", "b", "t", "m", s, f"x, row {i}") for i, s in enumerate((1.0, 1.0, 0.5))]
    problems = Problems()
    assert list(without_repeats(rows[:2], problems)) == rows[:1]
    assert problems.summary() == ["1 times: a row repeats another one, so it is left out"]
    with pytest.raises(InvalidInputError, match=r"x, row 2: m has two scores on '1': 1 \(x, row 0"):
        list(without_repeats(rows, Problems()))


CELLS = st.sampled_from(["Hi", "", "n/a", "['a'", "[1]", "{", '"{}"', "85%", "1,5", "\ud800"])
VALUES = st.recursive(
    CELLS | st.none() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CELLS, inner, max_size=3),
    max_leaves=6,
)
KEYS = ["doc", "question", "choices", "arguments", "acc", "metrics", "filter", "doc_id", "template"]
RECORDS = st.dictionaries(
    st.sampled_from([*KEYS, "prompt", "text", "score", "model", "id"]), VALUES
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(RECORDS | RECORDS.map(lambda r: {"doc": r, "acc": 1, **r}), max_size=3),
    form=st.sampled_from(["table", "lm-eval", "routerbench", "log"]),
)
def test_any_row_is_imported_or_refused(
    tmp_path: Path, records: list[dict[str, Any]], form: str
) -> None:
    path = table(tmp_path, "\n".join(map(json.dumps, records)), "samples_t_1.jsonl")
    try:
        found = list(FORMATS[form](path, ImportOptions(Problems(max_invalid_rows=9))))
    except ModelsatError:
        return
    for outcome in found:
        assert outcome.text.encode().strip()
        assert math.isnan(outcome.score) or 0 <= outcome.score <= 1
