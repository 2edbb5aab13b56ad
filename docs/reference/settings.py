"""The settings page, from engine/serving/settings.py."""

from __future__ import annotations

from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from docs.reference.markdown import cell, code, table
from engine.serving.settings import Settings, flag

HEAD = """# Settings of the server

Made from engine/serving/settings.py. A flag of `modelsat serve` goes before the environment, that
before the TOML file of `--config` (or MODELSAT_CONFIG), that before the default. `--max-waiting 64`
is MODELSAT_MAX_WAITING=64 in the environment and `max_waiting = 64` in the file.
[Operations](../operations.md) says what each is good for.

"""


def page() -> str:
    """A row for each field of Settings."""
    rows = [
        [
            code(flag(f.name)),
            code(_default(f)),
            code(_allowed(f)),
            cell(f.metadata["about"]),
        ]
        for f in fields(Settings)
    ]
    return HEAD + table(["flag", "default", "allowed", ""], rows)


def _default(field: Field[Any]) -> str:
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return "" if field.default == Path() else str(field.default)


def _allowed(field: Field[Any]) -> str:
    about = field.metadata
    if about["among"]:
        return ", ".join(about["among"])
    if isinstance(field.default, bool):
        return "true, false"
    if isinstance(field.default, int | float):
        return f"{about['low']} to {about['high']}" if about["high"] else f">= {about['low']}"
    return ""
