"""The prose linter finds planted words wherever text can stand; code and quotes are left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.ci import prose

VOCABULARY = prose.load_vocabulary()


def findings(folder: Path, name: str, text: str) -> list[tuple[int, str]]:
    """(line, word) of each finding in a file of that name."""
    path = folder / Path(name).name
    path.write_text(text, encoding="utf-8")
    return [(f.line, f.word) for f in prose.check_file(path, name, VOCABULARY)]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("docs/page.md", "Fine.\n\nBuild it anew.\n", [(3, "anew")]),
        ("docs/page.md", "thirty-two made\ncandidates a step\n", [(1, "made candidates")]),
        ("engine/a.py", '"""Whom to take."""\n', [(1, "Whom")]),
        ("engine/a.py", "x = 1  # nobody asks\n", [(1, "nobody")]),
        ("engine/a.py", 'raise ValueError(f"{x} was told twice")\n', [(1, "told")]),
        ("engine/a.py", "max_unlikeness = 1\n", [(1, "unlikeness")]),
        ("engine/a.py", "class WishesReader: ...\n", [(1, "Wishes")]),
        ("proto/a.proto", "optional double unlikeness = 9;\n", [(1, "unlikeness")]),
        ("cpp_ext/a.cc", "// beside the table\n", [(1, "beside")]),
        ("Makefile", "lock: ## resolve anew\n", [(1, "anew")]),
        ("deploy/grafana/a.json", '{"title": "The dearest candidate"}\n', [(1, "dearest")]),
    ],
)
def test_a_planted_word_is_found(
    tmp_path: Path, name: str, text: str, expected: list[tuple[int, str]]
) -> None:
    assert findings(tmp_path, name, text) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("docs/page.md", "Model-SAT, satisfied, stepping, `unlikeness`\n\n```\nwishes\n```\n"),
        ("docs/page.md", "[the page](told.md), https://example.com/beside\n"),
        ("docs/adr/0001-x.md", "what did not pay\n"),
        ("engine/a.py", "class ModelSat: ...\nspace = saturation = 1\n"),
        ("engine/a.py", 'HEADER = "sat"  # prose: ignore\n'),
        ("engine/pb/a_pb2.py", "unlikeness = 1\n"),
        ("research/data.json", '{"question": "Whom?"}\n'),
    ],
)
def test_other_words_code_and_history_are_left_alone(tmp_path: Path, name: str, text: str) -> None:
    assert findings(tmp_path, name, text) == []


def test_the_command_fails_on_a_banned_or_misspelt_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.md", tmp_path / "bad.md"
    good.write_text("Candidates are ranked by utility.\n", encoding="utf-8")
    bad.write_text("The dearest one.\nIt is recieved late.\n", encoding="utf-8")
    assert prose.main([str(good)]) == 0
    assert capsys.readouterr().out == ""
    assert prose.main([str(good), str(bad)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "bad.md:1: dearest -> most expensive",
        "bad.md:2: recieved -> received",
    ]


def test_a_line_of_the_list_that_says_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("[prose]\nanew again\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"words\.txt:2: expected"):
        prose.load_vocabulary(path)
