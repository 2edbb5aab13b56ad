"""Questions of one's own with free text as the answer: read, asked as they are, graded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.api.errors import InvalidInputError
from engine.aptitude.questions import read_file
from engine.aptitude.selection import sample_questions
from engine.cli.main import main
from engine.registry.catalog import read_catalog
from tests.support.fake_chat import FakeChat, chat_endpoint

SCHEMA = {"type": "object", "required": ["total"]}
QUESTIONS: list[dict[str, Any]] = [
    {"text": "What is 17 * 3?", "answer": 51, "task": "our sums", "grader": "numeric"},
    {"text": "What is 20 - 6?", "answer": [14, "fourteen"], "task": "our sums"},
    {"text": "Give the total as JSON.", "answer": SCHEMA, "task": "forms", "grader": "json-schema"},
    {"text": "Where is the invoice from?", "answer": "Ghent", "task": "places", "grader": "exact"},
    {"text": "Name a tool.", "answer": "ham+er", "task": "words", "grader": "regex"},
    {"text": "Which is even?\nA. 3\nB. 4", "answer": "B", "task": "parity"},
]
REPLIES = {
    "17": "<think>17 * 3 = 51</think>17 times 3 is **51**.",
    "20": "<think>It is 14.</think>It is 13.",
    "JSON": '```json\n{"total": 3}\n```',
    "invoice": "It is from Bruges.\n\nAnswer: Ghent",
    "tool": "A hammer.",
    "even": "The answer is B.",
}


def reply(body: dict[str, Any]) -> str:
    asked = body["messages"][-1]["content"]
    return next(text for word, text in REPLIES.items() if word in asked)


@pytest.fixture(scope="module")
def llm() -> Iterator[FakeChat]:
    with chat_endpoint(reply) as fake:
        yield fake


def write(path: Path, *questions: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(question) + "\n" for question in questions), "utf-8")
    return path


def run(llm: FakeChat, folder: Path, *flags: str, status: int = 0) -> None:
    command = ["aptitude", "run", "--base-url", llm.url, "--model", "m", "--yes", *flags]
    command += ["--questions", str(folder / "q.jsonl"), "--out", str(folder / "m.json")]
    assert main(command) == status


def test_free_text_is_asked_as_it_is_and_graded_as_its_line_says(
    llm: FakeChat,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    write(tmp_path / "q.jsonl", *QUESTIONS, QUESTIONS[0])
    run(
        llm,
        tmp_path,
        "--grader",
        "numeric",
        "--features",
        "tools,json_mode",
        "--tags",
        "ours",
        "--regions",
        "eu",
        "--modalities",
        "image",
        "--input-usd",
        "0.5",
    )
    assert "repeats 1 of its questions" in caplog.text
    (candidate,) = read_catalog(tmp_path / "m.json")
    tested = {r.task: (r.accuracy, r.questions) for r in candidate.aptitude[:5]}
    assert tested == {
        "our sums": (0.5, 2),
        **dict.fromkeys(("forms", "places", "words", "parity"), (1.0, 1)),
    }
    assert candidate.features == ("json_mode", "tools")
    assert (candidate.tags, candidate.regions) == (("ours", "partial-test"), ("eu",))
    assert (candidate.modalities, candidate.input_usd_per_million) == (("image",), 0.5)
    asked = {b["messages"][-1]["content"] for b in llm.bodies}
    assert {q["text"] for q in QUESTIONS[:5]} < asked
    assert QUESTIONS[5]["text"] not in asked, "options are asked for a letter"

    capsys.readouterr()
    before = len(llm.bodies)
    run(llm, tmp_path, "--grader", "contains")  # 13 does not contain 14, nor fourteen
    assert len(llm.bodies) == before, "replies are graded again without asking"


def test_a_program_gives_scores_in_parts(llm: FakeChat, tmp_path: Path) -> None:
    questions = [{**q, "grader": "program"} for q in QUESTIONS[:2]]
    write(tmp_path / "q.jsonl", *questions)
    program = tmp_path / "half.py"
    program.write_text(
        "import json, sys\n"
        "d = json.load(sys.stdin)\n"
        "print(.5 if d['references'][0] == '51' and '51' in d['reply'] else .25)\n"
    )
    run(llm, tmp_path, "--program", f"python3 {program}")
    assert read_catalog(tmp_path / "m.json")[0].aptitude[0].accuracy == 0.375
    program.write_text("print('no score')")
    (tmp_path / "m.json").unlink()
    run(llm, tmp_path, "--program", f"python3 {program}", status=1)
    assert not (tmp_path / "m.json").exists(), "nothing is registered that was not graded"


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"text": "Why?", "answer": "so", "task": "t"}, "a grader"),
        ({"text": "Why?", "answer": "so", "task": "t", "grader": "judge"}, "expected one of"),
        ({"text": "Why?", "answer": "so", "grader": "exact"}, "a `task`"),
        ({"text": "", "answer": "so", "task": "t", "grader": "exact"}, "a `text`"),
    ],
)
def test_a_question_that_cannot_be_graded_is_named_when_it_is_read(
    question: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match=rf"line 1: .*{words}"):
        read_file(write(tmp_path / "q.jsonl", question))


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"text": "Why?", "task": "t", "grader": "exact"}, "no reference"),
        ({"text": "How many?", "answer": "many", "task": "t", "grader": "numeric"}, "no reference"),
        ({"text": "Which?", "answer": "(", "task": "t", "grader": "regex"}, "no reference"),
        ({"text": "Why?", "answer": "so", "task": "t", "grader": "program"}, "--program"),
        ({"text": "Why?", "answer": "so", "task": "colege_physics", "grader": "exact"}, "did you"),
    ],
)
def test_nothing_is_asked_before_each_question_can_be_graded(
    question: dict[str, Any],
    words: str,
    llm: FakeChat,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "q.jsonl", *QUESTIONS[2:4], question)
    before = len(llm.bodies)
    run(llm, tmp_path, status=1)
    assert words in capsys.readouterr().err
    assert len(llm.bodies) == before


def test_a_test_may_have_known_tasks_and_others(tmp_path: Path) -> None:
    mixed = [{**QUESTIONS[0], "task": task} for task in ("College Physics", "invoices")]
    mixed[1] = mixed[1] | {"text": "What is 2 + 2?"}
    found = sample_questions(str(write(tmp_path / "q.jsonl", *mixed)), 20, [], 0)
    assert found.tasks == ["college_physics", "invoices"]


def test_a_result_is_not_overwritten_by_another_run(
    llm: FakeChat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "q.jsonl", *QUESTIONS[2:4])
    (tmp_path / "m.json").write_text("mine", "utf-8")
    run(llm, tmp_path, status=1)
    assert "add --force" in capsys.readouterr().err
    assert (tmp_path / "m.json").read_text("utf-8") == "mine"
    run(llm, tmp_path, "--force")
    run(llm, tmp_path)  # the same run goes on
    assert read_catalog(tmp_path / "m.json")[0].id == "m"


def test_an_installation_without_matplotlib_draws_no_picture(
    llm: FakeChat,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Kind: a test was refused for want of a package that it does not need."""
    monkeypatch.setattr("engine.cli.aptitude.find_spec", lambda _: None)
    write(tmp_path / "q.jsonl", QUESTIONS[0])
    run(llm, tmp_path)
    assert capsys.readouterr().out.endswith("m.json\n")
    assert read_catalog(tmp_path / "m.json")[0].aptitude[0].accuracy == 1.0
    assert not (tmp_path / "m.svg").exists()
