"""Files of candidates that people write: forms, tasks, partial tests, published figures."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.api.candidate import TEST_TASKS, Candidate
from engine.api.errors import InvalidInputError
from engine.datasets.known_tasks import load_task_keywords, reference_tasks
from engine.registry.candidate_files.notes import notes
from engine.registry.candidate_files.template import template
from engine.registry.catalog import document_of, parse_catalog, read_catalog

KEYWORDS = load_task_keywords()
FIGURE = {"benchmark": "mmlu_pro", "accuracy": 0.84, "source": "a card", "date": "2026-03-01"}


def one(**fields: Any) -> Candidate:
    (candidate,) = parse_catalog({"id": "mine", **fields})
    return candidate


def test_the_template_is_read_in_every_form(tmp_path: Path) -> None:
    document = tomllib.loads(template())
    for name, text in (
        ("a.toml", template()),
        ("a.json", template("json")),
        ("a.yaml", yaml.safe_dump(document, sort_keys=False)),
        ("a.yml", yaml.safe_dump(document, sort_keys=False)),
        ("toml", template()),  # no suffix: JSON or TOML
        ("json", template("json")),
    ):
        (tmp_path / name).write_text(text, "utf-8")
        assert read_catalog(tmp_path / name) == parse_catalog(document), name
    assert all(f"{task} = [" in template() for task in KEYWORDS), "it lists every known task"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", '{"id": "a", "id": "b"}', "'id' is there twice"),
        ("a.json", '{"id": "a", "aptitude": {"x": 1, "x": 0}}', "'x' is there twice"),
        ("a.yaml", "id: a\nid: b\n", "'id' is there twice"),
        ("a.yaml", "id: a\naptitude: {philosophy: 0.5, philosophy: 0.6}", "'philosophy' is there"),
        ("a.toml", 'id = "a"\nid = "b"\n', "readable TOML"),
        ("a.yaml", "id: [", "readable YAML"),
        ("a.yaml", "!!python/object/apply:os.getcwd []", "readable YAML"),
        ("a.json", "id: a", "readable JSON"),
        ("a", "id: a: b", "readable JSON"),  # nor TOML, nor YAML
        ("a", "only words", "readable JSON"),
        ("a.json", "[" * 100_000, "readable JSON"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(
    name: str, text: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(InvalidInputError, match=words):
        read_catalog(tmp_path / name)


def test_a_date_without_quotes_in_yaml_is_text(tmp_path: Path) -> None:
    figures = "\n".join(
        f"  - {{benchmark: {b}, accuracy: 0.8, source: s, date: 2026-03-01}}"
        for b in ("mmlu_pro", "gpqa_diamond")
    )
    (tmp_path / "a.yaml").write_text(f"id: a\nfigures:\n{figures}\n", "utf-8")
    assert read_catalog(tmp_path / "a.yaml")[0].level_standard_error() < 0.03


@pytest.mark.parametrize(
    ("written", "task"),
    [
        ("college_physics", "college_physics"),
        ("College Physics", "college_physics"),
        ("high-school-world-history", "high_school_world_history"),
        (" philosophy ", "philosophy"),
        (KEYWORDS["econometrics"], "econometrics"),
        (KEYWORDS["econometrics"].lower(), "econometrics"),
    ],
)
def test_a_known_task_is_known_however_it_is_written(written: str, task: str) -> None:
    assert one(aptitude={written: [0.5, 20]}).aptitude[0].task == KEYWORDS[task]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("colege_physics", "college_physics"),
        ("physics_college", "college_physics"),
        ("highschool_statistics", "high_school_statistics"),
        ("professional lav", "professional_law"),
        ("Anatomi", "anatomy"),
        ("econometric", "econometrics"),
        ("formal-logics", "formal_logic"),
    ],
)
def test_a_name_like_that_of_a_known_task_is_refused(written: str, meant: str) -> None:
    with pytest.raises(InvalidInputError, match=f"did you mean {meant}"):
        one(aptitude={"philosophy": 0.4, written: [0.5, 20]})


@pytest.mark.parametrize(
    "written",
    ["invoices", "physics", "college_history", "marking", "sql_joins", "law", "Übersetzung"],
)
def test_a_task_of_ones_own_keeps_its_name(written: str) -> None:
    assert one(aptitude={written: 0.5}).aptitude[0].task == written.replace("_", " ")


@pytest.mark.parametrize("count", [1, 3, 20, 49, 50])
def test_any_part_of_the_test_is_completed_at_its_level(count: int) -> None:
    reference = reference_tasks()
    given = dict(list(reference.items())[-count:])
    candidate = one(aptitude={t: [entry.mean + 0.05, 40] for t, entry in given.items()}, tags=["x"])
    assert len(candidate.aptitude) == TEST_TASKS
    # A constant lead over the training candidates in what was tested is one in everything.
    level = sum(entry.mean for entry in reference.values()) / TEST_TASKS + 0.05
    assert candidate.mean_accuracy() == pytest.approx(level, abs=1e-4)
    assert [r.questions for r in candidate.aptitude] == [40] * count + [1] * (TEST_TASKS - count)
    assert candidate.tags == (("partial-test", "x") if count < TEST_TASKS else ("x",))
    fewer = one(aptitude={t: [entry.mean + 0.05, 5] for t, entry in given.items()})
    assert fewer.level_standard_error() > candidate.level_standard_error()


def test_forms_of_a_result_are_equal() -> None:
    expected = one(aptitude={"philosophy": [0.5, 20], "law cases": [0.25, 0]})
    assert one(aptitude={"philosophy": {"accuracy": 0.5, "questions": 20}, "law cases": 0.25}) == (
        expected
    )
    listed = [{"task": "philosophy", "accuracy": 0.5, "questions": 20}]
    assert one(aptitude=[*listed, {"task": "law cases", "accuracy": 0.25}]) == expected
    assert parse_catalog(document_of([expected])) == [expected]


def test_a_file_may_have_published_figures_and_results() -> None:
    published = one(figures=[FIGURE], context_window=1000)
    both = one(figures=[FIGURE], aptitude={"invoices": [0.6, 50], "philosophy": [0.1, 50]})
    assert published.context_window == 1000
    assert len(both.aptitude) == TEST_TASKS
    assert [r.accuracy for r in both.aptitude[:2]] == [0.6, 0.1]
    assert abs(published.mean_accuracy() - both.mean_accuracy()) < 0.03, "50 tasks, two of its own"
    assert not both.tags


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "neither results nor published figures"),
        ({"aptitude": {}}, "modelsat candidates template"),
        ({"figures": []}, "not a list of figures"),
        ({"figures": [{**FIGURE, "source": ""}]}, "with where it was published"),
        ({"figures": [{**FIGURE, "benchmark": "mmlu_pr"}]}, "known are"),
        ({"aptitude": {"law cases": 85}}, "give 0.85"),
        ({"aptitude": {"law cases": True}}, "expected a number"),
        ({"aptitude": {"law cases": "half"}}, "expected a number"),
        ({"aptitude": {"law cases": [0.5, 1.5]}}, "whole number"),
        ({"aptitude": {"law cases": {"accuracies": 0.5}}}, "accuracies"),
        ({"aptitude": [{"accuracy": 0.5}]}, "names no task"),
        ({"aptitude": {"philosophy": 0.5, "Philosophy": 0.6}}, "repeats"),
        ({"aptitude": {"a b": 0.5}, "context_window": "128k"}, "128k"),
        ({"aptitude": {"a b": 0.5}, "input_usd_per_million": "1 USD"}, "1 USD"),
        ({"aptitude": {"a b": 0.5}, "output_usd_per_million": True}, "expected a number"),
        ({"aptitude": {"a b": 0.5}, "features": "tools"}, "list of words"),
    ],
)
def test_a_slip_in_a_file_is_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        one(**fields)


def test_a_price_per_token_is_recognized_in_every_form(tmp_path: Path) -> None:
    text = 'id = "a"\ninput_usd_per_million = 5e-7\n[aptitude]\nphilosophy = 0.5\n'
    (tmp_path / "a.toml").write_text(text, "utf-8")
    (tmp_path / "a.json").write_text(json.dumps(tomllib.loads(text)), "utf-8")
    for name in ("a.toml", "a.json"):
        with pytest.raises(InvalidInputError, match="price per token"):
            read_catalog(tmp_path / name)
        assert read_catalog(tmp_path / name, "token")[0].input_usd_per_million == 0.5


@pytest.mark.parametrize(
    ("label", "word", "meant"),
    [
        ("features", "function_calling", "tools"),
        ("features", "tool-use", "tools"),
        ("features", "json", "json_mode"),
        ("features", "structured_outputs", "json_mode"),
        ("features", "openai_chat", "openai.chat"),
        ("features", "anthropic.message", "anthropic.messages"),
        ("modalities", "vision", "image"),
        ("modalities", "images", "image"),
        ("modalities", "pdf", "file"),
    ],
)
def test_a_word_that_no_request_asks_for_is_noted_with_the_one_meant(
    label: str, word: str, meant: str
) -> None:
    (note,) = notes(one(aptitude={"philosophy": 0.5}, **{label: [word]}))
    assert note == f"mine: {label} has {word!r}; requests ask for {meant!r}"


@pytest.mark.parametrize(
    "word",
    ["tools", "json_mode", "openai.responses", "ollama", "long-context", "reasoning", "fast"],
)
def test_other_words_are_not_noted(word: str) -> None:
    assert not list(notes(one(aptitude={"philosophy": 0.5}, features=[word])))


def test_a_level_by_tasks_of_ones_own_alone_is_noted() -> None:
    (note,) = notes(one(aptitude={"invoices": [0.9, 20], "sql joins": 0.8}))
    assert "rests on tasks of your own alone" in note
    assert not list(notes(one(aptitude={"invoices": [0.9, 20], "philosophy": 0.5})))
    assert not list(notes(one(aptitude={"invoices": [0.9, 20]}, figures=[FIGURE])))
