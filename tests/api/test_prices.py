"""Prices that were entered per token or per thousand tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.api.candidate import TEST_TASKS, Candidate
from engine.api.errors import InvalidInputError
from engine.api.prices import in_usd_per_million
from engine.cli.main import main
from engine.registry.catalog import read_catalog


def priced(price: float, output: float | None = None) -> Candidate:
    return Candidate("x", (), input_usd_per_million=price, output_usd_per_million=output)


@pytest.mark.parametrize(
    ("price", "unit", "advice"),
    [
        (0.000003, "per token", "Give 3,"),
        (1.5e-7, "per token", "Give 0.15,"),
        (0.00006, "per token", "Give 60,"),
        (0.0015, "per thousand", "Give 1.5,"),
        (0.003, "per thousand", "Give 3,"),
    ],
)
def test_a_price_of_another_unit_is_named_with_what_to_type(
    price: float, unit: str, advice: str
) -> None:
    with pytest.raises(InvalidInputError, match=rf"--input-usd-per-million.*{unit}.*{advice}"):
        in_usd_per_million(priced(price), None)
    with pytest.raises(InvalidInputError, match="output-usd-per-million"):
        in_usd_per_million(priced(3, price), None)


def test_real_prices_and_stated_units_are_taken() -> None:
    for price in (0.0, 0.005, 0.02, 0.15, 75.0):
        assert in_usd_per_million(priced(price), None) == priced(price)
    assert in_usd_per_million(priced(3e-6, 1.5e-5), "token") == priced(3.0, 15.0)
    assert in_usd_per_million(priced(0.003), "thousand") == priced(3.0)
    assert in_usd_per_million(priced(0.0001), "million") == priced(0.0001)


def test_files_and_flags_ask_for_the_unit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    aptitude = {f"task {i}": 0.5 for i in range(TEST_TASKS)}
    entry = {"id": "x", "aptitude": aptitude, "input_usd_per_million": 0.0000025}
    path = tmp_path / "x.json"
    path.write_text(json.dumps([entry]))
    with pytest.raises(InvalidInputError, match=r"input_usd_per_million: is 2.5e-06.*Give 2.5"):
        read_catalog(path)
    assert read_catalog(path, "token")[0].input_usd_per_million == 2.5
    assert main(["candidates", "create", str(path), "--server", "127.0.0.1:1"]) == 1
    assert "per token" in capsys.readouterr().err
    flags = ["aptitude", "run", "--base-url", "http://127.0.0.1:9/v1", "--model", "m"]
    assert main([*flags, "--output-usd-per-million", "0.00001"]) == 1
    assert "--output-usd-per-million: is 1e-05" in capsys.readouterr().err
    assert main(["route", "hi", "--max-input-usd-per-million", "0.000003"]) == 1
    assert "--max-input-usd-per-million: is 3e-06" in capsys.readouterr().err
