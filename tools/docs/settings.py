"""The settings page, from engine/serving/settings.py."""

from __future__ import annotations

from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from engine.serving.settings import Settings, flag
from tools.docs.markdown import cell, code, table

HEAD = """# Settings of the server

Made from engine/serving/settings.py. A flag of `modelsat serve` goes before the environment, that
before the TOML file of `--config` (or MODELSAT_CONFIG), that before the default. `--max-queue-size
64`
is MODELSAT_MAX_QUEUE_SIZE=64 in the environment and `max_queue_size = 64` in the file.
[Operations](../operations.md) says what each is good for.

"""


def page() -> str:
    """A row for each field of Settings."""
    rows = [[code(flag(f.name)), code(_default(f)), _about(f)] for f in fields(Settings)]
    return HEAD + table(["flag", "default", ""], rows)


def _about(field: Field[Any]) -> str:
    allowed = _allowed(field)
    return cell(field.metadata["about"]) + (f" ({allowed})" if allowed else "")


def _default(field: Field[Any]) -> str:
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return "" if field.default == Path() else str(field.default)


def _allowed(field: Field[Any]) -> str:
    about = field.metadata
    if about["among"]:
        return ", ".join(map(code, about["among"]))
    if isinstance(field.default, bool):
        return ""
    if isinstance(field.default, int | float):
        return f"{about['low']} to {about['high']}" if about["high"] else f"{about['low']} or more"
    return ""
