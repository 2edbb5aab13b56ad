"""A server that learns that its favourite fails at SQL stops sending it SQL, and nothing else.

Over a real socket, with the real bundle and the real fit: comparisons are recorded, choices move,
and a reset brings everything back.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from engine.cli.main import main as cli
from modelsat import Client, RouteDecision
from tools.processes import serving

TABLES = {
    "orders": ("customer_id", "total", "placed_at"),
    "employees": ("department", "salary", "hired_on"),
    "flights": ("airline", "delay_minutes", "departs_at"),
    "patients": ("ward", "age", "admitted_on"),
    "tickets": ("assignee", "priority", "closed_at"),
    "songs": ("artist", "duration", "released_on"),
    "sensors": ("site", "temperature", "read_at"),
    "payments": ("account", "amount", "booked_on"),
    "lectures": ("room", "seats", "starts_at"),
    "parcels": ("depot", "weight", "delivered_at"),
}
SQL = (
    "Write an SQL query that returns the ten rows of {t} with the highest {b}.",
    "Write a SQL statement that counts the rows of the table {t} by {a}.",
    "In SQL, how do I select the average {b} for every {a} in the table {t}?",
    "Given the table {t}({a}, {b}, {c}), write a query for the newest row of each {a}.",
    "Which SQL query finds every {a} in {t} whose {b} is above the average?",
    "Write an SQL query that joins {t} with itself to compare {b} on consecutive {c}.",
    "Fix this SQL: SELECT {a}, SUM({b}) FROM {t} WHERE {c} > '2024-01-01' ORDER BY {a};",
    "Write a PostgreSQL query with a window function that ranks {t} by {b} within {a}.",
    "Rewrite as SQL with a common table expression: for each {a} in {t}, the median {b}.",
    "Write SQL that deletes from {t} all rows with a null {b} and a {c} before 2020.",
    "Explain what this returns: SELECT {a}, COUNT(*) FROM {t} GROUP BY {a} HAVING MAX({b}) > 5.",
    "Write a MySQL query that adds an index on {a} and {c} of the table {t}.",
    "Create an SQL view on {t} that shows {a}, the sum of {b} and the last {c}.",
    "Translate to SQL: how many {t} had a {b} of more than 100 in each month of {c}?",
    "Write an SQL update that raises {b} by ten percent for one {a} in {t}.",
    "Write an SQL query that finds duplicates in {t} by {a} and {c}.",
    "Show me a SQL query that pivots {t} to one column for each {a} with the total {b}.",
    "In SQLite, select from {t} every {a} that has no row after 2023 by {c}.",
    "Write an SQL query for a running total of {b} in {t}, ordered by {c}.",
    "Write an SQL query that returns {a} from {t} where {b} is between the quartiles.",
    "Write SQL to copy last year's rows of {t}, by {c}, into an archive table.",
    "What does an SQL left join of {t} with a table of {a} return if a {a} is missing?",
    "Write a T-SQL procedure that returns the {t} of one {a} with their {b}.",
    "Write an SQL query for the share of each {a} in the total {b} of {t}.",
    "Write an SQL query that lists the gaps of more than a week between {c} in {t}.",
)
TOPICS = ("photosynthesis", "the French Revolution", "inflation", "black holes", "vaccines",
          "plate tectonics", "jazz", "the Silk Road", "glaciers", "supply and demand")  # fmt: skip
OTHER = (
    "Explain {t} to a child of ten.",
    "Write a haiku about {t}.",
    "Translate into Spanish: I would like to read a book about {t}.",
    "What are three common misconceptions about {t}?",
    "Write a formal email that invites a colleague to a talk on {t}.",
    "A lecture on {t} has {n} listeners, and a third leave early. How many stay?",
    "Who was the most important person in the history of {t}?",
    "Summarize what is known about {t} in two sentences.",
    "Write a Python function that counts how often {t!r} occurs in a text.",
    "Give me five quiz questions on {t} with answers.",
    "If {n} students each read {n} pages about {t} a day, how many pages is that in a week?",
    "Compose the opening of a mystery novel in which {t} matters.",
    "What would a skeptic say about {t}?",
    "List the steps to prepare a school lesson on {t}.",
    "Is the following true or false: {t} was not understood before 1900?",
    "Correct the grammar: Them books about {t} was wrote badly.",
    "Solve for x: {n}x + 7 = {n} times 9.",
    "What is the chemical or physical basis of {t}, if there is one?",
    "Recommend a diet for somebody who studies {t} all night.",
    "Name the capital of the country that comes to mind first with {t}.",
)
COMPARISONS = 200


def sql_prompts() -> list[str]:
    """250 prompts about SQL, in an order that is always the same."""
    prompts = [
        template.format(t=table, a=a, b=b, c=c)
        for template, (table, (a, b, c)) in itertools.product(SQL, TABLES.items())
    ]
    random.Random(17).shuffle(prompts)
    return prompts


def other_prompts() -> list[str]:
    """200 prompts about anything else."""
    numbered = itertools.product(OTHER, enumerate(TOPICS))
    return [template.format(t=topic, n=3 + i) for template, (i, topic) in numbered]


def choices(client: Client, prompts: Sequence[str]) -> list[RouteDecision]:
    results = client.route_many(prompts)
    decisions = [result for result in results if isinstance(result, RouteDecision)]
    assert len(decisions) == len(prompts), results
    return decisions


def until_learned(client: Client, instructions: int) -> None:
    deadline = time.monotonic() + 60
    while client.adaptation().instructions != instructions:
        assert time.monotonic() < deadline, client.adaptation()
        time.sleep(0.1)


@dataclass(frozen=True)
class Taught:
    """A server that learns."""

    address: str
    client: Client


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Taught]:
    folder = tmp_path_factory.mktemp("sql")
    flags = ["--outcomes-db", str(folder / "outcomes.sqlite"), "--max-queue-size", "1000"]
    with serving(folder / "c.sqlite", *flags) as server, Client(server.address, 60) as client:
        yield Taught(server.address, client)


def test_comparisons_move_sql_away_from_one_candidate_and_nothing_else(
    taught: Taught, capsys: pytest.CaptureFixture[str]
) -> None:
    client = taught.client
    sql, others = sql_prompts(), other_prompts()
    taught_on, held_out = sql[:COMPARISONS], sql[COMPARISONS:]
    before, before_others = choices(client, held_out), choices(client, others)
    favourite, count = Counter(d.selected for d in before).most_common(1)[0]
    assert count >= 0.6 * len(held_out), "there is a favourite to move away from"
    rivals = [r.candidate for r in before[0].ranking if r.candidate != favourite][:4]

    for prompt in taught_on:
        scores = {favourite: 0.0} | dict.fromkeys(rivals, 1.0)
        assert client.record_comparison(scores, text=prompt, category="sql") == len(scores)
    until_learned(client, COMPARISONS)
    learned = client.adaptation()
    assert learned.active, learned.reason
    assert learned.outcomes["comparison"] == COMPARISONS * (1 + len(rivals))

    after, after_others = choices(client, held_out), choices(client, others)
    assert sum(d.selected == favourite for d in after) <= 0.05 * len(held_out)
    moved = [
        prompt
        for prompt, old, new in zip(others, before_others, after_others, strict=True)
        if old.selected != new.selected
    ]
    assert len(moved) < 0.01 * len(others), moved
    assert {d.adaptation_id for d in after} == {learned.id}
    failing = next(r for r in after[0].ranking if r.candidate == favourite)
    assert failing.base_probability is not None
    assert failing.probability < failing.base_probability - 0.2
    explained = client.explain_decision(after[0].decision_id)
    part = next(e for e in explained.candidates if e.candidate == favourite)
    assert part.relative + part.offset < -0.5
    assert {n.category for n in explained.neighbors} == {"sql"}

    assert cli(["route", held_out[0], "--server", taught.address]) == 0
    shown = capsys.readouterr().out
    assert "before" in shown
    assert learned.id in shown
    info = client.server_info()
    assert (info.adaptation_id, info.remembered_instructions) == (learned.id, COMPARISONS)

    client.reset_adaptation()
    assert client.adaptation().instructions == 0
    for old, new in zip(before + before_others, choices(client, [*held_out, *others]), strict=True):
        assert (new.selected, new.adaptation_id) == (old.selected, "")
        assert [r.probability for r in new.ranking] == pytest.approx(
            [r.probability for r in old.ranking], abs=1e-5
        )
