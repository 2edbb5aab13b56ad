"""Each importer on a small file in its source's real form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from engine.api.errors import InvalidInputError
from engine.datasets.outcomes import Outcomes, read_outcomes
from training.data.importers import FORMATS, Outcome, from_table, write_folder

PROMPTS = [f"{'What is the capital of' if i % 2 else 'Add up'} {i} and so on?" for i in range(80)]
MODELS = ("alpha", "beta", "gamma")


def score(model: str, i: int) -> float:
    return float((i * 7 + MODELS.index(model) * 3) % 5 > MODELS.index(model))


def imported(form: str, source: Path, out: Path, *more: str) -> Outcomes:
    command = [
        sys.executable,
        "-m",
        "training.data.importers",
        form,
        str(source),
        "--out",
        str(out),
        *more,
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "80 instructions x 3 candidates" in done.stdout
    return read_outcomes(out)


def check(outcomes: Outcomes) -> None:
    """Every row has the score that its text and candidate have in the source."""
    assert outcomes.candidates == list(MODELS)
    assert len(outcomes.texts) > 50
    for column, text in enumerate(outcomes.texts):
        i = next(i for i, prompt in enumerate(PROMPTS) if text.startswith(prompt))
        assert [score(m, i) for m in MODELS] == outcomes.scores[:, column].tolist()


def long_table() -> pd.DataFrame:
    rows = [(p, m, score(m, i)) for i, p in enumerate(PROMPTS) for m in MODELS]
    return pd.DataFrame(rows, columns=["instruction", "candidate", "score"])


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_table(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine.{suffix}"
    frame = long_table()
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    check(imported("table", path, tmp_path / "out"))


def test_embedllm(tmp_path: Path) -> None:
    rows = [
        (i, MODELS.index(m), i % 2, int(score(m, i)), p, m, ["maths", "places"][i % 2])
        for i, p in enumerate(PROMPTS)
        for m in MODELS
    ]
    columns = ["prompt_id", "model_id", "category_id", "label", "prompt", "model_name", "category"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "train.csv", index=False)
    outcomes = imported("embedllm", tmp_path / "train.csv", tmp_path / "out")
    check(outcomes)
    assert set(outcomes.benchmarks) == {"maths", "places"}


def test_routerbench(tmp_path: Path) -> None:
    rows = []
    for i, p in enumerate(PROMPTS):
        row = {"sample_id": f"s.{i}", "prompt": json.dumps([p]), "eval_name": f"eval-{i % 2}"}
        row |= {m: score(m, i) for m in MODELS}
        row |= {f"{m}|model_response": json.dumps(["an answer"]) for m in MODELS}
        row |= {f"{m}|total_cost": 0.001 for m in MODELS}
        rows.append(row | {"oracle_model_to_route_to": "alpha"})
    pd.DataFrame(rows).to_pickle(tmp_path / "routerbench_0shot.pkl")
    check(imported("routerbench", tmp_path / "routerbench_0shot.pkl", tmp_path / "out"))


@pytest.mark.parametrize("old", [False, True])
def test_lm_evaluation_harness(tmp_path: Path, old: bool) -> None:
    """Old logs hold arguments as lists; a document appears once for each filter."""
    for model in MODELS:
        folder = tmp_path / "results" / model
        folder.mkdir(parents=True)
        for task in ("arc_challenge", "gsm8k"):
            lines = []
            for i, prompt in enumerate(PROMPTS):
                if (i % 2 == 0) != (task == "gsm8k"):
                    continue
                argument = f"Question: {prompt}\nAnswer:"
                sample = {
                    "doc_id": i,
                    "doc": {"question": prompt, "answer": "#### 7"},
                    "target": "7",
                    "arguments": [[argument, {"until": []}]]
                    if old
                    else {"gen_args_0": {"arg_0": argument, "arg_1": {"until": []}}},
                    "resps": [["7"]],
                    "filtered_resps": ["7"],
                    "doc_hash": "0" * 64,
                    "prompt_hash": "1" * 64,
                    "target_hash": "2" * 64,
                }
                if task == "gsm8k":
                    sample |= {"filter": "strict-match", "metrics": ["exact_match"]}
                    sample["exact_match"] = score(model, i)
                    lines += [sample, sample | {"filter": "flexible-extract", "exact_match": 0.5}]
                else:
                    sample["doc"] = {
                        "question": prompt,
                        "choices": {"text": ["x", "y"], "label": ["A", "B"]},
                    }
                    lines.append(sample | {"acc": 0.5, "acc_norm": score(model, i)})
            path = folder / f"samples_{task}_2026-11-01T10-00-00.000000.jsonl"
            path.write_text("\n".join(map(json.dumps, lines)))
    outcomes = imported(
        "lm-eval", tmp_path / "results", tmp_path / "out", "--filter", "strict-match"
    )
    check(outcomes)
    assert set(outcomes.benchmarks) == {"arc_challenge", "gsm8k"}
    assert any(text.endswith("\nA. x\nB. y") for text in outcomes.texts)


def test_import_errors_are_named(tmp_path: Path) -> None:
    long_table().rename(columns={"score": "stars"}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InvalidInputError, match="no column score"):
        list(from_table(tmp_path / "t.csv"))
    with pytest.raises(InvalidInputError, match="two scores"):
        write_folder([Outcome("1", "b", "t", "m", 1.0)] * 2, tmp_path / "out")
    with pytest.raises(InvalidInputError, match="total_cost"):
        list(FORMATS["routerbench"](tmp_path / "t.csv"))
    with pytest.raises(InvalidInputError, match="'1' has two different texts"):
        write_folder([Outcome("1", "b", t, t, 1.0) for t in "tu"], tmp_path / "out")
    with pytest.raises(InvalidInputError, match="source: has no outcomes"):
        write_folder(FORMATS["lm-eval"](tmp_path), tmp_path / "out")
    with_gap = [Outcome(str(i), "b", f"t{i}", "m", 0.5) for i in range(3)]
    write_folder([*with_gap, Outcome("0", "b", "t0", "n", 1.0)], tmp_path / "gap")
    assert np.isnan(np.load(tmp_path / "gap" / "scores.npz")["scores"]).sum() == 2


def test_cells_are_read_as_text(tmp_path: Path) -> None:
    """Ids may repeat across benchmarks, "None" is a word, and an empty cell is not measured."""
    path = tmp_path / "t.csv"
    path.write_text(
        "id,benchmark,instruction,candidate,score\n"
        "1,sums,2 + 2?,m,True\n1,capitals,None,m,0.5\n2,,Where?,m,\n"
    )
    found = list(from_table(path))
    assert [(o.benchmark, o.text) for o in found] == [
        ("sums", "2 + 2?"),
        ("capitals", "None"),
        ("t", "Where?"),
    ]
    out = tmp_path / "out"
    out.mkdir()
    (out / "instructions.jsonl.gz").write_bytes(b"of an earlier import")
    assert write_folder(found, out) == (3, 1)
    assert np.load(out / "scores.npz")["scores"].tolist()[0][:2] == [1.0, 0.5]
    assert np.isnan(np.load(out / "scores.npz")["scores"][0, 2])
    assert not (out / "instructions.jsonl.gz").exists()


def test_line_separator_within_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    sample = {"doc_id": 1, "doc": {"question": "first\u2028second"}, "acc": 1.0}
    (tmp_path / "m").mkdir()
    path = tmp_path / "m" / "samples_task_2026-11-01T10-00-00.jsonl"
    path.write_text(json.dumps(sample, ensure_ascii=False) + "\n", encoding="utf-8")
    (found,) = FORMATS["lm-eval"](tmp_path)
    assert found.text == "first\u2028second"
