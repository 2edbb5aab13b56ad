"""Draw the pictures of README.md: where modelsat sits, what was measured, and the badges.

    python -m tools.docs.readme_pictures   # docs/images/{where-it-sits,results,badge-*}.svg

Badges are files because the documentation site asks no other host for anything.

Accuracies are those of pretrained/model.json (training.evaluation.publish); times are copied from
the performance page, and tests/docs/test_front_page.py checks that it still says so.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from engine import __version__

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "docs" / "images"

# `modelsat route "If 3x + 7 = 22, what is x?"` with the shipped bundle, four of its 69 candidates.
CANDIDATES = (
    ("gemini-3-pro-high", 0.955),
    ("gpt-4.1", 0.926),
    ("llama-3.1-8b-instruct", 0.834),
    ("mistral-7b-instruct-v0.2", 0.658),
)

MODEL = ROOT / "pretrained" / "model.json"
# Of the folders in MODEL's report, in this order.
DATASETS = {
    "mmlu_pro_cot": "MMLU-\nPro",
    "helm_mmlu": "MMLU",
    "llmrouter9": "14\ntasks",
    "zeroeval": "math,\ncode",
    "reasoning_gym": "puz-\nzles",
    "medagents": "medi-\ncine",
    "kor_bench": "rules",
    "lineage_2025h1": "deduc-\ntion",
    "planbench": "plans",
    "shaberi_gpt-41": "Japan.\nchat",
}

# The performance page, "Step by step", in milliseconds.
STEPS = (
    ("transformers, one sequence\nper candidate, 30 layers", "4452.5"),
    ("6 of 30 layers", "1650.4"),
    ("all candidates in one pass,\nno vocabulary head", "32.8"),
    ("inquiry prompt cached", "29.2"),
    ("fused operators", "28.6"),
    ("int8", "14.9"),
)

BLUE, ORANGE, GREY, INK = "#2f6fb0", "#d9822b", "#8a97a3", "#1f2933"

STYLE = """
.card { fill: #ffffff; stroke: #c3ccd5 } .box { fill: #eef3f8; stroke: #8a97a3 }
.main { fill: #2f6fb0 } .on-main { fill: #ffffff } .bar { fill: #c3d7ea } .best { fill: #d9822b }
text { fill: #1f2933 } .faint { fill: #52606d } .arrow { stroke: #52606d; fill: none }
.tip { fill: #52606d }
@media (prefers-color-scheme: dark) {
  .card { fill: #161b22; stroke: #3d4752 } .box { fill: #212a34; stroke: #6b7885 }
  .bar { fill: #33516e } text { fill: #e6edf3 } .faint { fill: #a3b0bd }
  .arrow { stroke: #a3b0bd } .tip { fill: #a3b0bd }
}
""".strip()


def where_it_sits() -> str:
    """Client -> gateway -> modelsat -> candidates with their probabilities, as SVG."""
    parts = [
        '<rect class="card" x="0.5" y="0.5" width="859" height="259" rx="8"/>',
        _box(20, 60, 130, 64, "Client", "model: auto"),
        _box(250, 60, 170, 64, "Gateway", "Envoy, LiteLLM, your code"),
        _box(250, 176, 170, 64, "modelsat", "predicts, calls no LLM", main=True),
        _arrow(150, 92, 250, 92),
        _arrow(318, 124, 318, 176),
        _arrow(352, 176, 352, 124),
        _label(308, 155, "prompt, policy", "end"),
        _label(362, 155, "choice", "start"),
        _label(545, 34, "candidates, with probability of success", "start"),
    ]
    for row, (name, probability) in enumerate(CANDIDATES):
        top = 48 + 50 * row
        chosen = row == 0
        parts += [
            f'<rect class="box" x="545" y="{top}" width="295" height="38" rx="5"/>',
            f'<rect class="{"best" if chosen else "bar"}" x="546" y="{top + 28}"'
            f' width="{293 * probability:.1f}" height="9" rx="3"/>',
            f'<text x="557" y="{top + 19}">{escape(name)}</text>',
            f'<text x="828" y="{top + 19}" text-anchor="end">{probability:.2f}</text>',
        ]
    parts += [_arrow(420, 82, 545, 67), _label(482, 60, "request", "middle")]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 260" width="860"'
        ' font-family="system-ui, sans-serif" font-size="14">\n'
        "<title>A client asks a gateway for the model auto; the gateway asks modelsat, which gives"
        " every candidate a probability, and sends the request to the best one</title>\n"
        f"<style>\n{STYLE}\n</style>\n"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8"'
        ' markerHeight="8" orient="auto"><path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _box(x: int, y: int, width: int, height: int, title: str, note: str, main: bool = False) -> str:
    middle = x + width // 2
    box, label = ("main", ' class="on-main"') if main else ("box", "")
    return (
        f'<rect class="{box}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>\n'
        f'<text{label} x="{middle}" y="{y + 28}" text-anchor="middle" font-weight="bold"'
        f' font-size="16">{escape(title)}</text>\n'
        f'<text{label} x="{middle}" y="{y + 49}" text-anchor="middle" font-size="12">'
        f"{escape(note)}</text>"
    )


def _arrow(x1: int, y1: int, x2: int, y2: int) -> str:
    return f'<path class="arrow" d="M{x1} {y1}L{x2} {y2}" stroke-width="2" marker-end="url(#tip)"/>'


def _label(x: int, y: int, words: str, anchor: str) -> str:
    place = f'x="{x}" y="{y}" text-anchor="{anchor}" font-size="12.5"'
    return f'<text class="faint" {place}>{words}</text>'


def draw_results(target: Path) -> None:
    """Accuracy of the choice per data set, and the forward pass step by step."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "modelsat", "svg.fonttype": "none", "font.size": 9.5}
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(11, 3.6), layout="constrained", width_ratios=(3, 2)
    )
    report = json.loads(MODEL.read_text(encoding="utf-8"))["report"]["datasets"]
    names = ("random", "oracle", "best_constant", "routed")
    for column, folder in enumerate(DATASETS):
        low, high, constant, routed = (report[folder][f"{name}_accuracy"] for name in names)
        left.plot([column] * 2, [low, high], color="#c3ccd5", linewidth=6, zorder=1)
        left.plot(column - 0.1, constant, "s", color=GREY, markersize=7, zorder=2)
        left.plot(column + 0.1, routed, "o", color=ORANGE, markersize=7, zorder=2)
    left.plot([], [], "o", color=ORANGE, label="modelsat")
    left.plot([], [], "s", color=GREY, label="best constant LLM")
    left.plot([], [], color="#c3ccd5", linewidth=6, label="random to oracle")
    left.set_xticks(range(len(DATASETS)), list(DATASETS.values()))
    left.set_xlim(-0.6, len(DATASETS) - 0.4)
    left.set_title("Accuracy on held-out instructions", loc="left", color=INK)
    left.set_ylim(0, 1)
    left.legend(loc="lower center", fontsize=8.5, ncols=3, frameon=False, columnspacing=1)
    labels = [name for name, _ in STEPS][::-1]
    times = [float(ms) for _, ms in STEPS][::-1]
    right.barh(labels, times, color=[ORANGE, *[BLUE] * (len(STEPS) - 1)])
    right.set_xscale("log")
    right.set_xlim(1, 20_000)
    for row, ms in enumerate(times):
        right.annotate(f"{ms:,.1f} ms", (ms, row), (4, 0), textcoords="offset points", va="center")
    right.set_title("Forward pass, 20 candidates, 2 CPU cores", loc="left", color=INK)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, format="svg", metadata={"Date": None})


def badge(label: str, value: str) -> str:
    """A label and its value in two boxes."""
    left, right = 12 + 6.6 * len(label), 12 + 6.6 * len(value)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right:.0f}" height="20"'
        ' font-family="Verdana, DejaVu Sans, sans-serif" font-size="11">\n'
        f"<title>{escape(label)}: {escape(value)}</title>\n"
        f'<rect width="{left + right:.1f}" height="20" rx="3" fill="#4a5763"/>\n'
        f'<rect x="{left:.1f}" width="{right:.1f}" height="20" rx="3" fill="{BLUE}"/>\n'
        f'<text x="{left / 2:.1f}" y="14" fill="#fff" text-anchor="middle">{escape(label)}</text>\n'
        f'<text x="{left + right / 2:.1f}" y="14" fill="#fff" text-anchor="middle">'
        f"{escape(value)}</text>\n</svg>\n"
    )


def main() -> None:
    """Write all of them."""
    TARGET.mkdir(parents=True, exist_ok=True)
    badges = {"license": "Apache-2.0", "python": "3.11+", "version": __version__}
    for name, value in badges.items():
        (TARGET / f"badge-{name}.svg").write_text(badge(name, value), encoding="utf-8")
    (TARGET / "where-it-sits.svg").write_text(where_it_sits(), encoding="utf-8")
    draw_results(TARGET / "results.svg")


if __name__ == "__main__":
    main()
