"""Draw the pictures of docs/explanation/how-it-works.md, from the shipped catalog and measured
results.

python -m tools.docs.pictures
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from pathlib import Path

from engine.api.candidate import Candidate
from engine.registry.catalog import read_catalog

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "docs" / "images"
CATALOG = ROOT / "pretrained" / "zoo.json"
MODEL = ROOT / "pretrained" / "model.json"
INK, FAINT, BLUE, ORANGE, PAPER = "#1f2933", "#c3ccd5", "#2f6fb0", "#d9822b", "#ffffff"
COMPARED = ("gemini-1.5-flash-002", "mathstral-7b-v0.1")


def pictures() -> dict[str, str]:
    """File name -> SVG."""
    return {
        "method.svg": method(),
        "layout.svg": layout(),
        "aptitude.svg": aptitude(),
        "calibration.svg": calibration(),
    }


def svg(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """Return a picture with a background of its own, so that it is readable on dark pages too."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' font-family="system-ui, sans-serif" font-size="14">\n<title>{escape(title)}</title>\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
        f' markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>\n'
    )
    return head + rect(0, 0, width, height, PAPER) + "\n" + "\n".join(parts) + "\n</svg>\n"


def rect(x: float, y: float, width: float, height: float, fill: str, stroke: str = "none") -> str:
    """Return a box whose top left corner is at x, y."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" fill="{fill}"'
        f' stroke="{stroke}"/>'
    )


def text(
    x: float, y: float, words: str, fill: str = INK, anchor: str = "middle", size: int = 14
) -> str:
    """Return a line of text with its baseline at y."""
    look = f'fill="{fill}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text x="{x:g}" y="{y:g}" {look}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, stroke: str = INK, more: str = "") -> str:
    """Return a line. more: further attributes."""
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{stroke}" {more}/>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """Return an arrow."""
    return line(x1, y1, x2, y2, INK, 'stroke-width="1.5" marker-end="url(#tip)"')


def box(x: float, y: float, width: float, lines: tuple[str, ...], colour: str) -> list[str]:
    """Return lines of text in a frame of height 56."""
    first = y + 33 - 9 * (len(lines) - 1)
    parts = [rect(x, y, width, 56, PAPER, colour)]
    return parts + [text(x + width / 2, first + 18 * i, t) for i, t in enumerate(lines)]


def method() -> str:
    """Draw what happens once for a candidate, and what for each request."""
    once = (
        ("a new LLM",),
        ("aptitude test", "50 tasks x 20 questions"),
        ("representation c", "profile and level"),
        ("connector", "e = W c + b"),
        ("one token", "in the table"),
    )
    each = (
        ("instruction x",),
        ("prompt p, then x", "at most 256 tokens"),
        ("backbone, 6 layers", "p and x read once"),
        ("all candidates' tokens", "in the same pass"),
        ("Pr(Yes) for each", "calibrated"),
    )
    parts = [text(20, 30, "once, when a candidate is registered", BLUE, "start")]
    parts += [text(20, 170, "for each request", ORANGE, "start")]
    for row, (y, colour) in zip((once, each), ((44, BLUE), (184, ORANGE)), strict=True):
        for i, lines in enumerate(row):
            parts += box(20 + 196 * i, y, 172, lines, colour)
            if i:
                parts.append(arrow(20 + 196 * i - 24, y + 28, 20 + 196 * i, y + 28))
    parts.append(line(890, 100, 890, 142))
    parts += [line(890, 142, 694, 142), arrow(694, 142, 694, 184)]
    parts += [
        arrow(890, 240, 890, 274),
        text(976, 294, "constraints, costs and policy choose", INK, "end"),
    ]
    return svg(1000, 310, "Model-SAT as modelsat runs it", parts)


def layout() -> str:
    """Draw the attention masks of candidate-first and candidate-last order."""
    parts = [text(190, 30, "candidate first: a sequence for each candidate")]
    for m in range(3):
        parts += _mask(50 + 100 * m, 90, ("e", "x", "x", "x", "p", "p"), 0)
    parts.append(text(190, 300, "20 candidates x 149 tokens = 2,980 positions"))
    parts.append(text(560, 30, "candidates last: one sequence"))
    parts += _mask(460, 70, ("p", "p", "x", "x", "x", "e1", "e2", "e3"), 3)
    parts.append(text(560, 300, "129 positions: 109 tokens and 20 candidates"))
    parts.append(text(370, 330, "a row attends to the filled columns; p's rows are constants", INK))
    return svg(740, 350, "Attention in both orders", parts)


def _mask(x: float, y: float, tokens: tuple[str, ...], candidates: int) -> list[str]:
    """Draw one mask: the last `candidates` tokens attend to the prefix and themselves only."""
    size = 24 if candidates else 13
    prefix = len(tokens) - candidates
    parts = []
    for i, row in enumerate(tokens):
        parts.append(text(x - 5, y + size * i + size * 0.75, row, INK, "end", 12))
        for j in range(len(tokens)):
            sees = j <= i if i < prefix else j < prefix or j == i
            colour = FAINT if not sees else ORANGE if tokens[j][0] == "e" else BLUE
            fill = colour if sees else PAPER
            parts.append(rect(x + size * j, y + size * i, size - 2, size - 2, fill, colour))
    return parts


def aptitude() -> str:
    """Draw the test results of two candidates, with their overall levels."""
    catalog = {c.id: c for c in read_catalog(CATALOG)}
    parts: list[str] = []
    for top, name, colour in zip((40, 230), COMPARED, (BLUE, ORANGE), strict=True):
        parts += _bars(catalog[name], top, colour)
    parts.append(
        text(400, 412, "50 tasks in the catalog's order: mathematics, medicine, sciences, law, ...")
    )
    return svg(800, 425, "Aptitude of two candidates", parts)


def _bars(candidate: Candidate, top: float, colour: str) -> list[str]:
    figures = [result.accuracy for result in candidate.aptitude]
    level = sum(figures) / len(figures)
    base = top + 150
    bars = [rect(50 + 14 * i, base - 130 * f, 10, 130 * f, colour) for i, f in enumerate(figures)]
    height = base - 130 * level
    return [
        text(50, top + 5, f"{candidate.id}: level {level:.2f}", INK, "start"),
        *bars,
        line(46, height, 752, height, INK, 'stroke-dasharray="5 4"'),
        *(text(42, base - 130 * v + 5, f"{v:g}", INK, "end", 12) for v in (0, 0.5, 1)),
    ]


def calibration() -> str:
    """Draw predicted probability against observed frequency on held-out rows of mmlu_pro_cot; areas
    are shares of the pairs."""
    left, bottom, size = 60, 350, 310
    figures = json.loads(MODEL.read_text(encoding="utf-8"))["report"]["datasets"]["mmlu_pro_cot"]
    bins = figures["reliability"]
    at = [(left + size * p, bottom - size * seen, share) for p, seen, share in bins]
    parts = [rect(left, bottom - size, size, size, PAPER, FAINT)]
    parts.append(line(left, bottom, left + size, bottom - size, INK, 'stroke-dasharray="5 4"'))
    parts += [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{40 * share**0.5:.1f}" fill="{BLUE}"'
        ' fill-opacity="0.7"/>'
        for x, y, share in at
    ]
    for v in (0, 0.5, 1):
        parts.append(text(left + size * v, bottom + 18, f"{v:g}", INK, "middle", 12))
        parts.append(text(left - 8, bottom - size * v + 5, f"{v:g}", INK, "end", 12))
    parts.append(text(left + size / 2, bottom + 40, "predicted probability"))
    parts.append(text(left, 28, "share that succeeded", INK, "start"))
    return svg(430, 405, "Calibration of the shipped bundle", parts)


def main() -> None:
    """Write all pictures."""
    TARGET.mkdir(exist_ok=True)
    for name, content in pictures().items():
        (TARGET / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
