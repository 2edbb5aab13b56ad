"""A candidate that is tested on tasks of one's own is chosen for instructions like their questions.

The tasks are of kinds that the weights were not trained on.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from engine.api.candidate import TEST_TASKS, Candidate, TaskResult
from engine.api.policy import Policy
from engine.aptitude.places import places_of_tasks
from engine.aptitude.questions import lettered
from engine.aptitude.selection import QuestionSet, sample_questions
from engine.bundle.arrays import load_arrays
from engine.datasets.known_tasks import load_task_keywords
from modelsat import Client
from tools.processes import BUNDLE, Server

WORDS = ("harbour", "lantern", "meadow", "copper", "violin", "saddle", "thunder", "glacier")
KINDS = ("anagrams", "brackets", "numerals", "weekdays")
SKILLS = {"wordsmith": ("anagrams", "brackets"), "calendar": ("numerals", "weekdays")}
NEW = 12  # instructions of each kind that no question equals


def instruction(kind: str, seed: int) -> str:
    draw = random.Random(f"{kind} {seed}")
    if kind == "anagrams":
        word = draw.choice(WORDS)
        letters = "".join(draw.sample(word, len(word)))
        return f"Rearrange the letters of '{letters}' so that they give an English word."
    if kind == "brackets":
        opened = "".join(draw.choice("([{<") for _ in range(draw.randint(4, 9)))
        return f"Complete the sequence of brackets so that every one is closed: {opened}"
    if kind == "numerals":
        return f"Write the number {draw.randint(40, 3000)} in Roman numerals."
    day, month = draw.randint(1, 28), draw.choice(("March", "June", "October"))
    return f"On which day of the week does {day} {month} {draw.randint(1950, 2090)} fall?"


@pytest.fixture(scope="module")
def question_set(tmp_path_factory: pytest.TempPathFactory) -> QuestionSet:
    file = tmp_path_factory.mktemp("own") / "own.jsonl"
    rows = [
        {
            "text": lettered(instruction(kind, seed), ("one", "two", "three", "four")),
            "answer": "A",
            "subtask": kind,
        }
        for kind in KINDS
        for seed in range(10)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return sample_questions(str(file), 10, (), 0)


def candidates(places: dict[str, bytes], names: dict[str, str]) -> list[Candidate]:
    """One for each of SKILLS, tested on KINDS; the other tasks have the same accuracy for both.

    places: of the tasks. names: kind -> keywords.
    """
    others = list(load_task_keywords().values())[: TEST_TASKS - len(KINDS)]
    return [
        Candidate(
            name,
            (
                *(TaskResult(task, 0.6) for task in others),
                *(
                    TaskResult(names[k], 0.95 if k in good else 0.25, place=places.get(k, b""))
                    for k in KINDS
                ),
            ),
        )
        for name, good in SKILLS.items()
    ]


def share_right(client: Client) -> float:
    """Return the share of new instructions that go to the candidate that is good at them."""
    policy = Policy(allowed_candidates=tuple(SKILLS))
    expected = {k: name for name, kinds in SKILLS.items() for k in kinds}
    right = [
        client.route(instruction(kind, 100 + i), policy, dry_run=True).selected == expected[kind]
        for kind in KINDS
        for i in range(NEW)
    ]
    return sum(right) / len(right)


def test_places_by_questions_say_who_is_good_at_an_instruction(
    question_set: QuestionSet, shared_server: Server, client: Client
) -> None:
    places = places_of_tasks(question_set, BUNDLE)
    assert set(places) == set(KINDS)
    known = load_arrays(BUNDLE).places
    assert known is not None
    assert all(known.unpack(content) is not None for content in places.values())
    names = {kind: f"Own {i}" for i, kind in enumerate(KINDS)}  # keywords that say nothing
    shares = {}
    for label, given in (("nothing", {}), ("questions", places)):
        try:
            for each in candidates(given, names):
                assert client.create_candidate(each).aptitude == each.aptitude
            shares[label] = share_right(client)
            if label == "questions":
                decision = client.route(instruction("brackets", 7), Policy())
                explained = client.explain_decision(decision.decision_id)
                own = {e.candidate: e for e in explained.candidates}
                good, bad = own["wordsmith"].match, own["calendar"].match
                assert good > 0.25 > 0 > bad
                assert good - bad > 0.5
                assert 0 < sum(task.weight for task in explained.tasks) <= 1
        finally:
            for name in SKILLS:
                client.delete_candidate(name)
    assert shares["questions"] >= 0.95
    assert shares["questions"] > shares["nothing"] + 0.2


def test_without_a_bundle_keywords_stand_in(
    question_set: QuestionSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert places_of_tasks(question_set, tmp_path) == {}
    assert "keywords" in caplog.text
