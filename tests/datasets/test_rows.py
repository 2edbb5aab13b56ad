"""Files of rows: encodings, delimiters and torn ends. What can be read is kept."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.api.errors import InvalidInputError
from engine.datasets.rows import SourceRow, TextFormat, read_rows, undecoded

ROWS = [{"a": "Café?", "b": "x"}, {"a": "two\nlines, and a comma", "b": ""}]


def records(path: Path, text: TextFormat | None = None) -> list[dict[str, Any]]:
    rows = list(read_rows(path, text=text))
    assert not [row.problem for row in rows if row.problem]
    return [row.record or {} for row in rows]


def as_csv(delimiter: str) -> str:
    quoted = [[f'"{cell}"' for cell in row.values()] for row in ROWS]
    return "\r\n".join(delimiter.join(line) for line in [["a", "b"], *quoted]) + "\r\n"


def as_jsonl() -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".jsonl.gz", ".csv.xz"])
def test_encoding_is_known_by_its_first_bytes(tmp_path: Path, encoding: str, suffix: str) -> None:
    data = (as_csv(",") if "csv" in suffix else as_jsonl()).encode(encoding)
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(Path(suffix).suffix, bytes)
    (tmp_path / f"t{suffix}").write_bytes(pack(data))
    assert records(tmp_path / f"t{suffix}") == ROWS


def test_other_encodings_are_said_and_can_be_named(tmp_path: Path) -> None:
    for name, text in (("t.csv", as_csv(",")), ("t.jsonl", as_jsonl())):
        path = tmp_path / name
        path.write_bytes(text.encode("cp1252"))
        first = next(iter(read_rows(path)))
        assert "byte 0xe9 at character 4" in undecoded((first.record or {})["a"])
        assert records(path, TextFormat("cp1252")) == ROWS
    with pytest.raises(InvalidInputError, match="--encoding: is 'klingon'"):
        list(read_rows(tmp_path / "t.csv", text=TextFormat("klingon")))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiter_is_the_one_of_the_header(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(as_csv(delimiter), encoding="utf-8", newline="")
    assert records(path) == ROWS
    path.write_text(f"sep={delimiter}\r\n{as_csv(delimiter)}", encoding="utf-8", newline="")
    assert records(path) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("t.jsonl", b'{"a": 1}\n{"a": 2}\n{"a": "thr', "not valid JSON"),
        ("t.json", b'[{"a": 1}, {"a": 2}, {"a": ', "not valid JSON"),
        ("t.csv", b"a,b\n1,x\n2,y\n3", "has 1 of 2 cells"),
        ("t.csv", b'a,b\n1,x\n2,y\n3,"z', "a quote is not closed"),
        ("t.jsonl.gz", gzip.compress(b'{"a": 1}\n{"a": 2}\n' * 1, mtime=0)[:-8], "cut off"),
    ],
)
def test_torn_end_is_named_and_the_rest_kept(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    (tmp_path / name).write_bytes(content)
    *good, torn = read_rows(tmp_path / name)
    assert [(row.record or {})["a"] in (1, 2, "1", "2") for row in good] == [True, True]
    assert (torn.torn, torn.record, torn.number) == (True, None, 3)
    assert problem in torn.problem


def test_bad_row_in_the_middle_is_not_torn(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"a": 1}\nnothing\n[1]\n{"a": 2}\n')
    (tmp_path / "t.csv").write_text('a,b\n1,x\n2\n"3"4,y\n5,z,w\n6,y\n')
    for name, bad in (("t.jsonl", [2, 3]), ("t.csv", [2, 3, 4])):
        rows = list(read_rows(tmp_path / name))
        assert [row.number for row in rows if row.problem] == bad
        assert not any(row.torn for row in rows)


@pytest.mark.parametrize(
    "content",
    [
        '[\n {"a": 1},\n {"a": 2}\n]\n',
        '{\n "a": 1\n}\n{\n "a": 2\n}\n',
        '{"a": 1}\n{"a": 2}\n',
        '{"data": [{"a": 1}, {"a": 2}], "meta": {"page": 1}}',
    ],
)
def test_json_files_hold_lists_values_lines_or_pages(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.json").write_text(content)
    assert records(tmp_path / "t.json") == [{"a": 1}, {"a": 2}]


def test_files_that_cannot_be_read_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").touch()
    (tmp_path / "t.parquet").write_bytes(b"PAR1 cut off")
    (tmp_path / "t.csv").write_text("a,b,a\n1,2,3\n")
    (tmp_path / "u.csv").write_text("a,b\n1,2\n" + '"3,4\n' + "5,6\n" * 299)
    (tmp_path / "t.csv.gz").write_bytes(b"a,b\n1,2\n")
    for name, problem in {
        "t.xlsx": "t.xlsx: has an unknown format; expected .jsonl",
        "t.parquet": "t.parquet: cannot be read after row 0",
        "t.csv": "names columns twice: a",
        "u.csv": "row 2: opens a quote that is not closed, so 300 lines are not rows",
        "t.csv.gz": "cannot be read after row 0 .the file is cut off or damaged",
    }.items():
        with pytest.raises(InvalidInputError, match=problem):
            list(read_rows(tmp_path / name))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".csv", ".json", ".jsonl.gz"]))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    path.write_bytes(content)
    try:
        rows = list(read_rows(path))
    except InvalidInputError:
        return
    assert all(
        isinstance(row, SourceRow) and (row.record is None) == bool(row.problem) for row in rows
    )
