"""Texts without outcomes: rewritten ones, pairs, and RouterArena's items."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.api.errors import InvalidInputError
from engine.datasets.outcomes import question_of
from tools.processes import ROOT
from training.evaluation import robustness, routerarena
from training.evaluation.texts import choose

BUNDLE = ROOT / "artifacts" / "bundle"


@given(st.text(max_size=200), st.integers(0, 2**32 - 1))
def test_typos_stay_in_the_question(text: str, seed: int) -> None:
    other = robustness.add_typos(np.random.default_rng(seed), text + "\nA. First\nB. Second")
    assert other.endswith("\nA. First\nB. Second")
    assert len(other.split(" ")) == len((text + "\nA. First\nB. Second").split(" "))
    assert abs(len(other) - len(text) - 20) <= len(text.split(" ")) + 1


def test_some_words_of_a_long_text_get_one_typo_each() -> None:
    words = ["steamboat", "of", "quite", "ancient", "make"] * 24
    found = robustness.add_typos(np.random.default_rng(0), " ".join(words)).split(" ")
    changed = [(a, b) for a, b in zip(words, found, strict=True) if a != b]
    assert 6 <= len(changed) <= len(words) // robustness.WORDS_PER_TYPO
    assert all(abs(len(a) - len(b)) <= 1 and a[0] == b[0] for a, b in changed)
    assert question_of("a\nA. b") == "a"


def test_a_template_holds_the_text_as_it_is() -> None:
    random = np.random.default_rng(0)
    found = {robustness.put_in_template(random, "f'{x}' {} ?") for _ in range(60)}
    assert len(found) == len(robustness.TEMPLATES)
    assert all("f'{x}' {} ?" in text for text in found)


def test_pairs_are_read_or_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"text": "a", "other": "b"}\n{"text": "c"}\n')
    with pytest.raises(InvalidInputError, match="line 2: has no texts under the keys"):
        robustness.read_pairs(path)
    path.write_text('{"text": "a", "other": "b"}\n{"text": "c", "other": "d"}\n')
    assert robustness.read_pairs(path) == [("a", "b"), ("c", "d")]


def test_choices_without_a_price_go_by_probability() -> None:
    p, unknown = np.array([[0.2, 0.9], [0.8, 0.1]]), np.full((2, 2), np.nan)
    assert choose(p, unknown, 0.5).tolist() == [1, 0]
    dear = np.array([[1e-6, 1.0], [1e-6, 1.0]])
    assert choose(p, dear, 30.0).tolist() == [0, 0]
    assert choose(p, dear, 0.0).tolist() == [1, 0]
    assert choose(p, dear, 0.001).tolist() == [1, 0], "a success is worth $10"


def test_unchanged_choices_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """c0 is chosen unless the text says so; one pair of four changes sides."""

    def scores(_: Path, texts: list[str], __: list[object]) -> tuple[np.ndarray, np.ndarray]:
        p = np.array([[0.1, 0.9] if "other" in text else [0.9, 0.1] for text in texts])
        return p, np.full_like(p, np.nan)

    monkeypatch.setattr(robustness, "score_texts", scores)
    pairs = [("a", "b"), ("c", "other"), ("other", "another"), ("d", "e")]
    path, out = tmp_path / "pairs.jsonl", tmp_path / "out.json"
    path.write_text("\n".join(json.dumps({"text": a, "other": b}) for a, b in pairs))
    words = ["--bundle", str(BUNDLE), "--pairs", str(path), "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["robustness", *words, "--sensitivities", "0"])
    robustness.main()
    capsys.readouterr()
    found = json.loads(out.read_text())["pairs"]
    assert found["unchanged"]["0.0"]["share"] == 0.75
    assert found["lost"]["0.0"] == pytest.approx(0.2)
    assert found["moved"] == pytest.approx(0.2)
    assert found["top_candidate_share"] == 0.75


def test_predictions_have_routerarenas_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [c["id"] for c in json.loads((BUNDLE / "zoo.json").read_text())["candidates"][:2]]
    dataset, models = tmp_path / "split.json", tmp_path / "models.json"
    items = [
        {"global index": "Made_1", "prompt_formatted": "Add 2 and 3.", "prompt": "2, 3"},
        {"global index": "Made_2", "prompt": "名前を一つ挙げてください。"},
    ]
    dataset.write_text(json.dumps(items))
    models.write_text(json.dumps({"arena-a": ids[0], "arena-b": ids[1]}))
    words = ["--bundle", str(BUNDLE), "--dataset", str(dataset), "--models", str(models)]
    monkeypatch.setattr(
        "sys.argv", ["routerarena", *words, "--name", "own", "--out", str(tmp_path)]
    )
    routerarena.main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["items"] == 2
    config = json.loads((tmp_path / "config" / "own.json").read_text())["pipeline_params"]
    assert (config["router_name"], config["models"]) == ("own", ["arena-a", "arena-b"])
    found = json.loads((tmp_path / "predictions" / "own.json").read_text())
    assert [entry["global index"] for entry in found] == ["Made_1", "Made_2"]
    assert [entry["prompt"] for entry in found] == ["Add 2 and 3.", items[1]["prompt"]]
    for entry in found:
        assert entry["prediction"] in config["models"]
        assert [entry[k] for k in ("generated_result", "cost", "accuracy")] == [None] * 3
        assert entry["for_optimality"] is False
    models.write_text(json.dumps({"arena-a": "unknown-id"}))
    with pytest.raises(InvalidInputError, match="unknown-id"):
        routerarena.main()
    dataset.write_text(json.dumps([{"prompt": "no index"}]))
    with pytest.raises(InvalidInputError, match="item 0"):
        routerarena.main()
