"""Write the tables of settings and metrics into the reference pages, from the code.

    python -m tools.docs.tables

docs/reference/configuration.md and metrics.md hold each table between two comments, so that the
pages can also be read in the repository; tests/docs/test_site.py compares them with the code.
"""

from __future__ import annotations

import re
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from engine.serving.settings import Settings, flag
from engine.serving.telemetry.metrics import METRICS
from tools.docs.markdown import cell, code, table

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"
PLACE = re.compile(r"(<!-- table of .*? -->\n).*?(<!-- end of table -->)", re.DOTALL)


def settings_table() -> str:
    """Return a row for each setting of `modelsat serve`."""
    rows = [
        [code(flag(f.name)), code(_default(f)), _allowed(f), cell(f.metadata["about"])]
        for f in fields(Settings)
    ]
    return table(["flag", "default", "values", "meaning"], rows)


def metrics_table() -> str:
    """Return a row for each metric that the server exports."""
    rows = [[m.name, m.kind, ", ".join(m.labels), cell(m.meaning)] for m in METRICS]
    return table(["metric", "type", "labels", "meaning"], rows)


TABLES = {"configuration.md": settings_table, "metrics.md": metrics_table}


def updated(name: str) -> str:
    """Return the text of a reference page with its table as the code has it now.

    Raises ValueError if the page has no place for a table.
    """
    content = TABLES[name]()
    text, count = PLACE.subn(
        lambda place: f"{place[1]}\n{content}\n{place[2]}",
        (REFERENCE / name).read_text(encoding="utf-8"),
    )
    if count != 1:
        raise ValueError(f"{name} has {count} places for a table; expected 1.")
    return text


def main() -> None:
    """Update both pages."""
    for name in TABLES:
        (REFERENCE / name).write_text(updated(name), encoding="utf-8")


def _default(field: Field[Any]) -> str:
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return "" if field.default == Path() else str(field.default)


def _allowed(field: Field[Any]) -> str:
    about = field.metadata
    if about["among"]:
        return ", ".join(map(code, about["among"]))
    if isinstance(field.default, int | float) and not isinstance(field.default, bool):
        return f"{about['low']} to {about['high']}" if about["high"] else f"{about['low']} or more"
    return ""


if __name__ == "__main__":
    main()
