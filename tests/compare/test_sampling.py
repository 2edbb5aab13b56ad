"""Instructions are read from logs, drawn far apart, and grouped by what they are about."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from engine.api.errors import InvalidInputError
from engine.compare.sampling.drawing import draw_sample, novelty_of
from engine.compare.sampling.embedding import embed
from engine.compare.sampling.instructions import LoggedInstruction, read_pool
from engine.compare.sampling.spread import draw_spread, find_regions
from engine.compare.sampling.vectors import tfidf, unit
from engine.replay.formats import COLUMNS
from engine.replay.log import columns_with
from engine.replay.run import LogSource
from tools.processes import BUNDLE

TOPICS = {
    "sql": "Write a SQL query that joins table {} with table orders and groups by customer",
    "poem": "Compose a short poem about the moon, the night and number {} in gentle rhymes",
    "law": "Is a verbal contract enforceable in court if clause {} was never signed?",
}


def log_of(tmp_path: Path, *records: dict[str, object], columns: object = COLUMNS) -> LogSource:
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return LogSource([file], columns)  # type: ignore[arg-type]


def test_a_conversation_is_asked_up_to_the_humans_turn(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "What is 6 x 7?"},
        {"role": "assistant", "content": "It is 41."},
    ]
    pool = read_pool(log_of(tmp_path, {"messages": turns, "expected": 42, "category": "sums"}))
    (instruction,) = pool.instructions
    assert instruction.messages == tuple(turns[:4])
    assert (instruction.text, instruction.references) == ("What is 6 x 7?", ("42",))
    assert instruction.category == "sums"


def test_requests_that_cannot_be_compared_are_counted_by_reason(tmp_path: Path) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    ask = {"role": "user", "content": "What is it?"}
    form = {"type": "json_object"}
    pool = read_pool(
        log_of(
            tmp_path,
            {"body": {"messages": [ask]}},
            {"body": {"messages": [ask]}},
            {
                "body": {
                    "messages": [
                        {"role": "user", "content": [image, {"type": "text", "text": "?"}]}
                    ]
                }
            },
            {"body": {"messages": [ask], "tools": [tool]}},
            {"body": {"input": "Go on", "previous_response_id": "r1"}},
            {"body": {"messages": [ask], "response_format": form}},
        )
    )
    assert (pool.requests, pool.repeated) == (6, 1)
    assert pool.left_out == {
        "need image": 1,
        "need tools": 1,
        "refer to a history that the log does not hold": 1,
    }
    assert [i.extra_body for i in pool.instructions] == [{}, {"response_format": form}]


def test_references_come_from_a_file_by_text(tmp_path: Path) -> None:
    log = log_of(tmp_path, {"prompt": "1 + 1?"}, {"prompt": "1 + 2?", "reference": "4"})
    file = tmp_path / "right.csv"
    file.write_text("text,answer\n1 + 1?,2\n1 + 2?,3\n")
    right = LogSource([file], columns_with(["reference=answer"]))
    assert [i.references for i in read_pool(log, right).instructions] == [("2",), ("3",)]
    nothing = LogSource([file], COLUMNS)
    with pytest.raises(InvalidInputError, match="--references: holds no reference"):
        read_pool(log, nothing)


def test_a_log_without_an_instruction_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="has no request"):
        read_pool(log_of(tmp_path))
    tools = {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]}
    with pytest.raises(InvalidInputError, match="can be compared: 1 need tools"):
        read_pool(log_of(tmp_path, {"body": tools}))


def test_a_long_log_is_sampled_evenly(tmp_path: Path) -> None:
    log = log_of(tmp_path, *({"prompt": f"Question {i}"} for i in range(2000)))
    numbers = [int(i.text.split()[1]) for i in read_pool(log, seed=3, size=500).instructions]
    assert len(set(numbers)) == 500
    assert np.mean(numbers) == pytest.approx(1000, abs=4 * 577 / np.sqrt(500))


def instructions(*counts: int) -> list[LoggedInstruction]:
    return [
        LoggedInstruction(text.format(n), ({"role": "user", "content": text.format(n)},))
        for text, count in zip(TOPICS.values(), counts, strict=True)
        for n in range(count)
    ]


def topic_of(text: str) -> str:
    return next(name for name, form in TOPICS.items() if text.startswith(form[:8]))


def test_a_small_topic_is_drawn_as_often_as_a_large_one() -> None:
    generator = np.random.default_rng(0)
    centers = np.repeat(np.eye(3), (900, 80, 20), axis=0)
    points = unit((centers + 0.1 * generator.normal(size=centers.shape)).astype(np.float32))
    for seed in range(10):
        drawn = draw_spread(points, 3, seed)
        assert sorted(int(points[row].argmax()) for row in drawn) == [0, 1, 2]
    assert len(set(draw_spread(points, 200, seed=1))) == 200
    assert draw_spread(points, 10, seed=2) == draw_spread(points, 20, seed=2)[:10]


def test_texts_that_are_all_alike_are_drawn_at_random() -> None:
    topics = np.repeat(np.eye(4, 8, dtype=np.float32), 50, axis=0)
    counts = Counter(row // 50 for row in draw_spread(topics, 100, seed=0))
    assert all(counts[topic] > 12 for topic in range(4))


def test_new_regions_come_first() -> None:
    generator = np.random.default_rng(0)
    centers = np.repeat(np.eye(3, 16), 100, axis=0)
    points = unit((centers + 0.2 * generator.normal(size=centers.shape)).astype(np.float32))
    known = [0.0 if row >= 200 else 30.0 for row in range(300)]
    counts = Counter(row // 100 for row in draw_spread(points, 30, 0, novelty_of(known)))
    assert counts[2] > 4 * max(counts[0], counts[1])
    even = Counter(row // 100 for row in draw_spread(points, 30, 0))
    assert max(even.values()) < 2 * min(even.values())
    assert novelty_of([1.0, None]) is None


def test_regions_are_topics_named_by_their_words() -> None:
    pool = instructions(30, 30, 30)
    texts = [i.text for i in pool]
    regions = find_regions(tfidf(texts), texts, [""] * len(texts), 3)
    for label, name in enumerate(regions.names):
        topics = {topic_of(t) for t, at in zip(texts, regions.labels, strict=True) if at == label}
        assert len(topics) == 1, name
        assert all(word in TOPICS[topics.pop()].lower() for word in name.split(", ")[:1])
    named = find_regions(tfidf(texts), texts, [topic_of(t) for t in texts])
    assert named.names == ("law", "poem", "sql")
    assert find_regions(tfidf(texts), texts, ["sql"] * len(texts)).names == ("sql",)
    alike = tfidf(texts[:1] * 40)
    assert find_regions(alike, texts[:1] * 40, [""] * 40).names == ("all",)


def test_a_bundle_embeds_instructions_by_what_they_ask() -> None:
    texts = [form.format(n) for form in TOPICS.values() for n in (3, 17)]
    embeddings = embed(BUNDLE, texts)
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx(1.0, abs=1e-5)
    cosines = embeddings @ embeddings.T - 2 * np.eye(len(texts))
    assert cosines.argmax(axis=1).tolist() == [1, 0, 3, 2, 5, 4]


def test_a_draw_is_repeated_from_its_file_and_renewed_for_another_log(tmp_path: Path) -> None:
    pool, file = instructions(20, 20, 20), tmp_path / "x.sample.json"
    first = draw_sample(pool, 10, 0, file, novelty=lambda texts: np.ones(len(texts)))

    def changed(texts: object) -> np.ndarray:
        raise AssertionError("the draw is kept")

    again = draw_sample(pool, 10, 0, file, novelty=changed)
    assert again.instructions == first.instructions
    assert (again.vectors == first.vectors).all()
    assert len(draw_sample(pool[:30], 10, 0, file).instructions) == 10
    assert len(draw_sample(pool, 100, 0, file).instructions) == 60
    assert "Write a SQL" not in file.read_text()
