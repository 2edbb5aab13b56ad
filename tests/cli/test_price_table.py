"""Prices of a file of candidates are renewed from a wheel of LiteLLM."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from engine.cli.catalog.price_table import IN_WHEEL
from engine.cli.main import main
from engine.registry.catalog import read_catalog

TABLE: dict[str, Any] = {
    "vendor/model-5": {
        "mode": "chat",
        "input_cost_per_token": 1.25e-06,
        "output_cost_per_token": 1e-05,
        "max_input_tokens": 272000,
        "supports_function_calling": True,
        "supports_vision": True,
        "supports_response_schema": False,
    },
    "free": {"mode": "chat", "input_cost_per_token": 0.0, "output_cost_per_token": 0.0},
    "pictures": {"mode": "image_generation", "input_cost_per_token": 1e-06},
}


def wheel(folder: Path, table: Any = TABLE) -> Path:
    path = folder / "litellm-9.8.7-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(IN_WHEEL, json.dumps(table))
    return path


def entry(identifier: str, **fields: Any) -> dict[str, Any]:
    results = {f"task {i}": [0.5, 7] for i in range(50)}
    return {"id": identifier, **fields, "aptitude": results}


def test_prices_limits_and_abilities_are_those_of_the_named_entry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "candidates.json"
    candidates = [
        entry(
            "model-5-high",
            input_usd_per_million=9.0,
            output_usd_per_million=9.0,
            price_source="somewhere, entry vendor/model-5",
            features=["json_mode", "own-word"],
        ),
        entry("unknown", input_usd_per_million=3.0, price_source="a page, 2024-01-01"),
        entry("free"),
        entry("paid", input_usd_per_million=2.0, price_source="my contract, entry free"),
        entry("pictures"),
    ]
    content = json.dumps({"about": "mine", "candidates": candidates})
    file.write_text("\ufeff" + content, encoding="utf-8")
    before = file.read_text(encoding="utf-8")
    command = ["catalog", "update", str(file), "--wheel", str(wheel(tmp_path))]
    assert main([*command, "--dry-run"]) == 0
    assert file.read_text(encoding="utf-8") == before
    assert "model-5-high: $9 / $9 -> $1.25 / $10" in capsys.readouterr().out
    assert main(command) == 0
    high, unknown, free, paid, pictures = read_catalog(file)
    assert (high.input_usd_per_million, high.output_usd_per_million) == (1.25, 10.0)
    assert (high.context_window, high.modalities) == (272000, ("image",))
    assert high.features == ("own-word", "tools")
    assert "litellm 9.8.7" in high.price_source
    assert high.price_source.endswith(", entry vendor/model-5")
    assert unknown.price_source == "a page, 2024-01-01"
    assert (free.input_usd_per_million, pictures.input_usd_per_million) == (None, None)
    assert (paid.input_usd_per_million, paid.price_source) == (2.0, "my contract, entry free")
    assert {r.questions for r in high.aptitude} == {7}
    assert json.loads(file.read_text())["about"] == "mine"
    once = file.read_text()
    assert main(command) == 0
    assert file.read_text() == once


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_a_file_that_is_no_wheel_changes_nothing(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    file, broken = tmp_path / "candidates.json", tmp_path / "litellm-1-py3.whl"
    file.write_text(json.dumps([entry("model")]))
    broken.write_bytes(content)
    before = file.read_text()
    assert main(["catalog", "update", str(file), "--wheel", str(broken)]) == 1
    assert "is not a wheel of LiteLLM" in capsys.readouterr().err
    assert file.read_text() == before
