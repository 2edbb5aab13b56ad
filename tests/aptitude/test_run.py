"""Run the aptitude test against a fake LLM of known skill, on a real socket."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.api.candidate import Candidate, validate
from engine.api.errors import InvalidInputError
from engine.api.policy import Policy
from engine.aptitude.answers import extract
from engine.aptitude.grading import TaskScore, grade, with_result
from engine.aptitude.hub import from_rows
from engine.aptitude.journal import Journal, Reply
from engine.aptitude.llm import retry_after_s
from engine.aptitude.questions import read_file
from engine.aptitude.report import chart
from engine.aptitude.selection import sample_questions
from engine.datasets.known_tasks import load_task_keywords, reference_tasks
from engine.registry.catalog import read_catalog
from examples.fake_llm import FakeLLM, chance, listening, specialist, write_questions
from modelsat import Client
from tools.processes import ROOT, Server

SCIENCE = (
    *("Mathematics", "Physics", "Science", "Chemistry", "Biology", "Computer Science"),
    *("Engineering", "Statistics"),
)
HUMANITIES = ("Law", "History", "Philosophy", "Politics", "Religion", "Social Science")
OF_SCIENCE = (
    "Find the limit of (1 - cos x) / x^2 as x approaches 0.",
    "Solve the quadratic equation x^2 - 5x + 6 = 0.",
    "What is the determinant of a 2 x 2 matrix whose rows are (1, 2) and (3, 4)?",
    "A ball is thrown upwards at 20 m/s. How high does it rise?",
    "Balance the equation: C3H8 + O2 -> CO2 + H2O.",
    "What is the current through a 10 ohm resistor at 5 volts?",
)
OF_HUMANITIES = (
    "Is a verbal contract for the sale of land enforceable?",
    "Which treaty ended the Thirty Years' War?",
    "What does Kant mean by the categorical imperative?",
    "How did the Reformation change the relation of church and state in Germany?",
    "Which rights does the Fourteenth Amendment protect?",
    "Explain the doctrine of consideration in contract law.",
)
OPTIONS = ("3", "4", "5", "Paris")
ANSWERS = {
    **dict.fromkeys(["B", "(B)", "b", "b.", "(b)", "B.", "**B**", "B) 4", "B. 4", "B: 4"], "B"),
    **dict.fromkeys(["The answer is **B**.", "the answer is b", "The answer is: B"], "B"),
    **dict.fromkeys(["**Answer: B**", "### Answer\nB", "ANSWER: B", '{"answer": "B"}'], "B"),
    **dict.fromkeys([r"\boxed{B}", r"Thus $\boxed{\text{B}}$.", r"$$\boxed{(B)}$$"], "B"),
    r"So the answer is $\boxed{4}$.": "B",
    **dict.fromkeys([r"\boxed{B. 4}", r"\boxed{B) 4}", r"$\boxed{\text{(B) 4}}$"], "B"),
    **dict.fromkeys(["Answer B", "**Answer B**\n\n2+2 is 4.", "Option B.", "Option B: 4"], "B"),
    **dict.fromkeys(["The answer is A, I believe.", "The answer is A and I am sure."], "A"),
    **dict.fromkeys(["The answer is B, C is wrong.", "The answer is B, A being odd."], "B"),
    "Answer: 'B'": "B",
    "The answer is “B”.": "B",
    "2+2 = 4.\n\nThe correct answer is B because 2+2 is 4.": "B",
    "Therefore, the correct choice is:\n\n(C)": "C",
    "I'd go with option (D).": "D",
    "The answer is A because 3 is odd.": "A",
    "The answer to the question is B.": "B",
    "The answer is B, a prime example": "B",
    "A. 3\nB. 4\nC. 5\nD. Paris\n\nThe answer is B.": "B",
    "A. 3\nB. 4\nC. 5\nD. Paris\n\nB": "B",
    "Option A says 3, option B says 4. The right one is B.": "B",
    "A is wrong. B is correct.": "B",
    "At first the answer is A, but on reflection the answer is C.": "C",
    "So it must be 4.\n(B)": "B",
    "<think>The answer is A.</think>\nThe answer is D.": "D",
    "hmm, A</think>B": "B",
    "The answer is Paris.": "D",
    "Paris": "D",
    **dict.fromkeys(["", "I'm sorry, I can't help with that.", "I think it depends."], None),
    **dict.fromkeys(["The answer is a bit complicated.", "Answer: I don't know."], None),
    **dict.fromkeys(["The answer is A, B.", "The answer is (A), (B)", r"\boxed{A. or B.}"], None),
    **dict.fromkeys(["The answer is A, B and C.", "Answer A or B", "Option A is wrong."], None),
    **dict.fromkeys(["The answer is A or B.", r"\boxed{A, B}", "The answer is A and C"], None),
    **dict.fromkeys(["E", "The answer is K.", "B is incorrect.", "The answer is not A."], None),
    "A. 3\nB. 4\nC. 5\nD. Paris": None,
    "<think>The answer is A": None,
}


@pytest.mark.parametrize(("reply", "letter"), ANSWERS.items())
def test_extract_finds_the_chosen_letter(reply: str, letter: str | None) -> None:
    assert extract(reply, OPTIONS) == letter


def start(url: str, questions: Path, out: Path, *more: str, **environ: str) -> Any:
    """`modelsat aptitude run`, as a process."""
    command = [sys.executable, "-m", "engine.cli.main", "aptitude", "run", "--base-url", url]
    command += ["--questions", str(questions), "--out", str(out), "--concurrency", "16", *more]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **environ}
    )


def run(url: str, questions: Path, out: Path, *more: str, status: int = 0, **environ: str) -> str:
    """What it printed, both streams."""
    with start(url, questions, out, *more, **environ) as process:
        printed, errors = process.communicate(timeout=120)
    assert process.returncode == status, printed + errors
    return str(printed + errors)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 questions for each of the standard tasks."""
    return write_questions(tmp_path_factory.mktemp("questions") / "questions.jsonl")


def test_skill_is_measured_despite_errors_and_rate_limits(questions: Path, tmp_path: Path) -> None:
    known = read_file(questions)
    skill = {t: 0.1 + 0.8 * chance("skill", t) for t in reference_tasks()}
    llm = FakeLLM(known, skill, limit_every=400, fail_every=90, drop_every=150, refuses=0.02)
    with listening(llm) as url:
        run(
            url,
            questions,
            tmp_path / "a.json",
            "--model",
            "fake",
            "--yes",
            "--input-usd-per-million",
            "1",
        )
    (candidate,) = read_catalog(tmp_path / "a.json")
    provenance = json.loads((tmp_path / "a.json").read_text())["provenance"]
    asked = [q for q in known if q.id in llm.asked]
    assert provenance["unparsed"] == sum(map(llm.refused, asked)) > 0
    assert provenance["asked"] == len(asked) == 1000
    words = load_task_keywords()
    figures = {r.task: r.accuracy for r in candidate.aptitude}
    for task in reference_tasks():
        right = [llm.knows(q) and not llm.refused(q) for q in asked if q.task == task]
        assert figures[words[task]] == sum(right) / 20, task
        bound = 4 * math.sqrt(skill[task] * (1 - skill[task]) / 20) + 0.02
        assert abs(figures[words[task]] - skill[task]) < bound, task
    mean = sum(skill.values()) / len(skill)
    assert abs(candidate.mean_accuracy() - mean) < 4 * provenance["standard_error"] + 0.02
    assert candidate.mean_output_tokens == llm.answer_tokens
    assert max(llm.asked.values()) == 1


def test_a_killed_run_resumes_and_asks_no_question_twice(questions: Path, tmp_path: Path) -> None:
    llm = FakeLLM(read_file(questions), {}, delay_s=0.05)
    journal = tmp_path / "a.journal.jsonl"
    few = ("--model", "fake", "--yes", "--questions-per-task", "8")
    with listening(llm) as url:
        with start(url, questions, tmp_path / "a.json", *few) as first:
            while not journal.exists() or journal.read_bytes().count(b"\n") < 100:
                assert first.poll() is None
                time.sleep(0.01)
            first.send_signal(signal.SIGKILL)
        lines = journal.read_bytes().splitlines()
        journal.write_bytes(b"\n".join([*lines, b'{"question": "torn'])[: -len("torn")])
        kept = {json.loads(line)["question"] for line in lines[1:]}
        identifiers = {q.key: q.id for q in llm.questions}
        before = dict(llm.asked)
        printed = run(url, questions, tmp_path / "a.json", *few)
        assert f"{len(kept)} questions are already answered in the journal" in printed
        assert all(llm.asked[identifiers[key]] == before[identifiers[key]] for key in kept)
        assert len(llm.asked) == 400
        for changed in (("--model", "other"), ("--seed", "1"), ("--answer-only",)):
            refusal = run(url, questions, tmp_path / "a.json", *few, *changed, status=1)
            assert "belongs to another run" in refusal
            assert len(refusal.splitlines()) == 1


def test_replies_in_flight_are_kept_if_the_endpoint_refuses(
    questions: Path, tmp_path: Path
) -> None:
    unknown = sample_questions(str(questions), 1, [], seed=0).questions[20]
    known = [q for q in read_file(questions) if q.id != unknown.id]
    llm = FakeLLM(known, {}, delay_s=0.3)
    few = ("--model", "fake", "--yes", "--questions-per-task", "1")
    with listening(llm) as url:
        assert "HTTP 404" in run(url, questions, tmp_path / "a.json", *few, status=1)
    lines = (tmp_path / "a.journal.jsonl").read_text().splitlines()[1:]
    identifiers = {q.key: q.id for q in known}
    assert {identifiers[json.loads(line)["question"]] for line in lines} == set(llm.asked)
    assert 16 < len(lines) < 49


def test_retry_after_pauses_all_requests(questions: Path, tmp_path: Path) -> None:
    llm = FakeLLM(read_file(questions), {}, limit_every=20)
    few = ("--model", "fake", "--yes", "--questions-per-task", "1", "--concurrency", "1")
    with listening(llm) as url:
        run(url, questions, tmp_path / "a.json", *few)
    assert (llm.requests, llm.early) == (52, 0)


def test_new_candidates_are_selected_for_their_strong_subjects(
    questions: Path, tmp_path: Path, shared_server: Server, client: Client
) -> None:
    known = read_file(questions)
    names = {"scientist": SCIENCE, "humanist": HUMANITIES}
    try:
        for name, fields in names.items():
            with listening(specialist(known, fields, seed=len(name))) as url:
                to = ("--model", name, "--yes", "--register", shared_server.address)
                run(url, questions, tmp_path / f"{name}.json", *to)
        policy = Policy(allowed_candidates=tuple(names))
        chosen = {text: client.route(text, policy).selected for text in OF_SCIENCE + OF_HUMANITIES}
        assert chosen == {
            **dict.fromkeys(OF_SCIENCE, "scientist"),
            **dict.fromkeys(OF_HUMANITIES, "humanist"),
        }
    finally:
        for name in names:
            client.delete_candidate(name)


def test_run_needs_confirmation_and_never_shows_the_key(questions: Path, tmp_path: Path) -> None:
    llm = FakeLLM(read_file(questions), {}, key="sk-right")
    out, few = tmp_path / "a.json", ("--model", "fake", "--questions-per-task", "1")
    prices = ("--input-usd-per-million", "1", "--output-usd-per-million", "2")
    with listening(llm) as url:
        printed = run(url, questions, out, *few, *prices, "--dry-run")
        assert "50 questions to fake: about" in printed
        assert "about $0.0" in printed
        assert not list(tmp_path.iterdir())
        assert "--yes: is needed without" in run(url, questions, out, *few, status=1)
        assert llm.requests == 0
        secret = {"MY_KEY": "sk-wrong"}
        keyed = (*few, "--yes", "--api-key-env", "MY_KEY")
        printed = run(url, questions, out, *keyed, status=1, **secret)
        assert "refused with HTTP 401: " in printed
        assert "[key]" in printed
        proxy = FakeLLM([], {})
        with listening(proxy) as far:
            through = {"http_proxy": far.removesuffix("/v1"), "no_proxy": ""}
            run(url, questions, out, *keyed, MY_KEY="sk-right", **through)
        assert proxy.requests == 0
        far = "http://example.invalid/v1"
        assert "unencrypted" in run(far, questions, out, *keyed, status=1, **secret)
    everything = printed + "".join(p.read_text() for p in tmp_path.iterdir())
    assert "sk-" not in everything


def test_partial_test_reports_its_uncertainty(
    questions: Path, tmp_path: Path, shared_server: Server, client: Client
) -> None:
    llm = FakeLLM(read_file(questions), {"astronomy": 1.0}, otherwise=0.0, counts_tokens=False)
    few = ("--model", "part", "--yes", "--tasks", "astronomy,anatomy", "--questions-per-task", "5")
    with listening(llm) as url:
        to = ("--register", shared_server.address)
        printed = run(url, questions, tmp_path / "a.json", *few, *to)
        taken = run(url, questions, tmp_path / "a.json", *few, *to, status=1)
    try:
        candidate = client.get_candidate("part")
        assert "This is a partial test" in printed
        assert "(10 estimated)" in printed
        assert "is already registered" in taken
        assert llm.requests == 10
        assert candidate.tags == ("partial-test",)
        assert (candidate,) == tuple(read_catalog(tmp_path / "a.json"))
        figures = {r.task: r.accuracy for r in candidate.aptitude}
        words = load_task_keywords()
        assert (figures[words["astronomy"]], figures[words["anatomy"]]) == (1.0, 0.0)
        tasks = reference_tasks()
        above = 0.5 - (tasks["astronomy"].mean + tasks["anatomy"].mean) / 2
        expected = tasks["college_physics"].mean + above
        assert figures[words["college_physics"]] == pytest.approx(expected, abs=1e-4)
    finally:
        client.delete_candidate("part")


def test_whole_test_has_small_errors_and_a_chart(questions: Path) -> None:
    question_set = sample_questions(str(questions), 20, [], seed=3)
    assert sample_questions(str(questions), 20, [], seed=3).questions == question_set.questions
    replies = {
        q.key: Reply(q.key, q.answer if i % 2 else "?", 9, 1, True, False)
        for i, q in enumerate(question_set.questions)
    }
    result = grade(question_set.questions, replies)
    assert result.accuracy == pytest.approx(0.5)
    assert result.standard_error == pytest.approx(math.sqrt(0.25 / 1000), rel=0.1)
    assert TaskScore("x", 20, 20, 0).standard_error > 0.03
    candidate = with_result(Candidate("x", ()), result)
    assert not validate(candidate)
    assert candidate.tags == ()
    drawn = chart("a <b> & $c$", result)
    assert "a &lt;b&gt; &amp; $c$: 50.0% ± 1." in drawn
    assert all(f"{s.task.replace('_', ' ')}  {s.accuracy:.0%}" in drawn for s in result.scores)
    assert drawn == chart("a <b> & $c$", result)


def test_data_folder_gives_the_items_of_its_aptitude_test() -> None:
    folder = ROOT.parent / "shared" / "data" / "mmlu_pro_cot"
    if not folder.is_dir():
        pytest.skip("no ../shared/data")
    question_set = sample_questions(str(folder), 20, [], seed=0)
    assert (len(question_set.tasks), question_set.reference_overlap) == (
        50,
        len(question_set.questions),
    )
    text = sample_questions(str(folder.with_name("mmlu_text") / "test.jsonl.gz"), 20, [], seed=0)
    assert len(text.questions) == 1000


def test_journal_refuses_another_file_and_leaves_it_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("not a journal, and no newline")
    with pytest.raises(InvalidInputError, match="is not an aptitude journal"):
        Journal(path, {"model": "x"})
    assert path.read_text() == "not a journal, and no newline"
    path.unlink()
    with (
        Journal(path, {"model": "x"}),
        pytest.raises(InvalidInputError, match="in use by another run"),
    ):
        Journal(path, {"model": "x"})


def test_journal_survives_a_full_disk_and_a_crash_in_its_first_line(tmp_path: Path) -> None:
    path, reply = tmp_path / "journal", Reply("q", "The answer is B.", 9, 1, True, False)
    path.write_text('{"ru')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path, {"model": "x"}) as journal:
        before = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
        try:
            with pytest.raises(InvalidInputError, match="cannot be written"):
                journal.add(reply)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == before
        journal.add(reply)
    with Journal(path, {"model": "x"}) as journal:
        assert journal.replies == {"q": reply}


def test_a_journal_of_version_0_1_is_continued(tmp_path: Path) -> None:
    path, reply = tmp_path / "journal", Reply("q", "The answer is B.", 9, 1, True, False)
    header = {"sitting": {"model": "x", "direct": False, "body": {}}}  # prose: ignore
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, asdict(reply))))
    with Journal(path, {"model": "x", "answer_only": False, "extra_body": {}}) as journal:
        assert journal.replies == {"q": reply}
    with pytest.raises(InvalidInputError, match="answer_only was False, is now True"):
        Journal(path, {"model": "x", "answer_only": True, "extra_body": {}})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not a readable file of JSON lines"),
        ("[]", "is not a JSON object"),
        ('{"text": "no options", "answer": "A"}', "has 0 options"),
        ('{"text": "x\\nA. 1\\nB. 2", "answer": "C"}', "has 2 options and the answer 'C'"),
    ],
)
def test_invalid_question_file_is_named(line: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InvalidInputError, match=words):
        read_file(path)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("aptitude.json", "{}", r"aptitude.json: cannot be read \(KeyError: 'items'\)"),
        ("aptitude.json", "{", "aptitude.json: cannot be read .*expected a JSON object"),
        ("aptitude.json", '{"items": ["x"]}', "aptitude.json: cannot be read"),
        ("aptitude.json", '{"items": {"a": ["x", "y"]}}', "names 2 items; expected ids of .*jsonl"),
        ("scores.npz", None, "scores.npz: cannot be read .*No such file"),
        ("scores.npz", "x", "scores.npz: cannot be read"),
        ("scores.npz", np.zeros((2, 3)), r"has shape \(2, 3\); expected \(candidates, 50\)"),
    ],
)
def test_invalid_data_folder_is_named(file: str, content: Any, words: str, tmp_path: Path) -> None:
    write_questions(tmp_path / "instructions.jsonl", each=1)
    if isinstance(content, str):
        (tmp_path / file).write_text(content)
    elif content is not None:
        np.savez(tmp_path / file, scores=content)
    with pytest.raises(InvalidInputError, match=words):
        sample_questions(str(tmp_path), 20, [], seed=0)


def test_answer_that_is_not_an_option_is_named() -> None:
    rows = [{"question": "1 + 1?", "choices": ["1", "2"], "answer": a} for a in (1, -1, 30)]
    found = from_rows(rows, "some/set")
    assert next(found).answer == "B"
    with pytest.raises(InvalidInputError, match="some/set: row 2 has the answer 30"):
        next(found)


def test_answer_only_leaves_out_the_answer_length(questions: Path, tmp_path: Path) -> None:
    llm = FakeLLM(read_file(questions), {}, answer_tokens=1)
    few = ("--model", "fake", "--yes", "--questions-per-task", "1", "--answer-only")
    with listening(llm) as url:
        assert "says nothing about usual answers" in run(url, questions, tmp_path / "a.json", *few)
    assert read_catalog(tmp_path / "a.json")[0].mean_output_tokens is None


def test_retry_after_reads_seconds_and_dates() -> None:
    date = "Thu, 01 Jan 1970 00:01:40 GMT"
    values = {"7": 7.0, "0.5": 0.5, date: 90.0, "": None, "soon": None}
    assert {v: retry_after_s({"retry-after": v}, now=10.0) for v in values} == values
