"""Pieces of Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def cell(text: str) -> str:
    """Of a table: one line, its bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """As code in a cell; nothing where there is nothing."""
    return f"`{cell(text)}`" if text else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """rows: cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines) + "\n"
