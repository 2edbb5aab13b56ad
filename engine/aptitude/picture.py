"""The figures as an SVG: a bar for each task with its standard error, the training candidates' mean
as a tick."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from engine.aptitude.marking import Marks, TaskFigure
from engine.aptitude.standard import standard_tasks

ROW, TOP, LABEL, BAR, GAP = 18, 74, 215, 230, 60  # pixels
WIDTH = 2 * (LABEL + BAR + GAP)
INK, PALE, BLUE, ORANGE = "#24292f", "#d0d7de", "#4c78a8", "#d9730d"


def picture(name: str, marks: Marks) -> str:
    """An SVG document, in two columns."""
    rows = (len(marks.figures) + 1) // 2
    height = TOP + rows * ROW + 16
    title = f"{name}: {marks.accuracy:.1%} ± {marks.standard_error:.1%}"
    about = (
        f"{len(marks.figures)} tasks, {marks.asked} questions, {marks.unparsed} replies unparsed."
        " Line: standard error; orange: mean of the training candidates."
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
            f' width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12"'
            f' fill="{INK}" role="img" aria-label="{escape(title)}">',
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
            f'<text x="16" y="28" font-size="18" font-weight="bold">{escape(title)}</text>',
            f'<text x="16" y="48">{escape(about)}</text>',
            *_column(marks.figures[:rows], 0, rows),
            *_column(marks.figures[rows:], WIDTH // 2, rows),
            "</svg>\n",
        ]
    )


def _column(figures: Sequence[TaskFigure], left: int, rows: int) -> list[str]:
    zero = left + LABEL
    lines = []
    for tenth in range(0, 11, 5):
        x = zero + BAR * tenth / 10
        lines.append(
            f'<line x1="{x}" x2="{x}" y1="{TOP - 8}" y2="{TOP + rows * ROW}" stroke="{PALE}"/>'
            f'<text x="{x}" y="{TOP - 10}" text-anchor="middle" font-size="10">{tenth * 10}%</text>'
        )
    return lines + [_row(f, zero, TOP + i * ROW) for i, f in enumerate(figures)]


def _row(figure: TaskFigure, zero: int, y: int) -> str:
    def at(share: float) -> float:
        return round(zero + BAR * min(1.0, max(0.0, share)), 1)

    low, high = figure.accuracy - figure.standard_error, figure.accuracy + figure.standard_error
    known = standard_tasks().get(figure.task)
    tick = ""
    if known is not None:
        x = at(known.mean)
        tick = (
            f'<line x1="{x}" x2="{x}" y1="{y + 1}" y2="{y + 15}" stroke="{ORANGE}"'
            ' stroke-width="2"/>'
        )
    label = figure.task.replace("_", " ")
    label = label if len(label) <= 32 else label[:31] + "…"
    return (
        f'<text x="{zero - 8}" y="{y + 12}" text-anchor="end">{escape(label)}</text>'
        f'<rect x="{zero}" y="{y + 3}" width="{round(at(figure.accuracy) - zero, 1)}" height="10"'
        f' fill="{BLUE}"/>'
        f'<line x1="{at(low)}" x2="{at(high)}" y1="{y + 8}" y2="{y + 8}" stroke="{INK}"/>{tick}'
        f'<text x="{zero + BAR + 8}" y="{y + 12}">{figure.accuracy:.0%}</text>'
    )
