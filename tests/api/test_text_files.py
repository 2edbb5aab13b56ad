"""Likely slips in files that people write: a byte order mark is read, another encoding is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.api.errors import InvalidInputError
from engine.registry.catalog import read_catalog
from engine.replay.policies import _toml
from engine.serving.auth.tokens import read_tokens
from engine.serving.extproc.gateway import _read_models
from engine.serving.settings import resolve

TOKEN = {"sha256": "ab" * 32, "role": "route", "name": "gateway"}
Read = Callable[[Path], Any]
FILES: dict[str, tuple[Read, str]] = {
    "--config": (lambda path: resolve({}, {}, path).settings, "max_queue_size = 64\n"),
    "--auth-tokens-file": (read_tokens, json.dumps({"tokens": [TOKEN]})),
    "--extproc-model-map": (_read_models, '{"gpt-4o": "openai/gpt-4o"}'),
    "policies of replay": (_toml, "[thrifty]\ncost_sensitivity = 0.3\n"),
    "candidates": (read_catalog, json.dumps([{"id": "a", "aptitudes": {}}])),
}


def outcome(read: Read, path: Path) -> Any:
    """What a reader returns, or the problems that it names besides the path."""
    try:
        return read(path)
    except InvalidInputError as error:
        return str(error).replace(str(path), "")


@pytest.mark.parametrize("name", FILES)
def test_a_byte_order_mark_of_utf_8_is_no_part_of_a_file_or_is_named(
    name: str, tmp_path: Path
) -> None:
    read, text = FILES[name]
    plain, marked = tmp_path / "plain", tmp_path / "marked"
    plain.write_text(text, encoding="utf-8")
    marked.write_text(text, encoding="utf-8-sig")
    if read is read_tokens:  # the one file of which nothing is forgiven
        with pytest.raises(InvalidInputError, match="byte order mark"):
            read(marked)
        return
    assert outcome(read, marked) == outcome(read, plain)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("name", FILES)
def test_another_encoding_is_named_by_its_byte_order_mark(
    name: str, encoding: str, tmp_path: Path
) -> None:
    read, text = FILES[name]
    path = tmp_path / "file"
    path.write_text(text, encoding=encoding)
    with pytest.raises(InvalidInputError, match=f"byte order mark .BOM. of {encoding.upper()}"):
        read(path)
