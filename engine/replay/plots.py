"""Plot the report of a replay."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.api.errors import InvalidInputError, Violation
from engine.replay.render import Report
from engine.replay.report import policies_in

MAX_CANDIDATES = 10
GREY = "0.55"


def require_matplotlib() -> None:
    """Raise InvalidInputError if matplotlib is not installed, before hours of scoring."""
    try:
        import matplotlib
    except ImportError as error:
        raise InvalidInputError(
            Violation(
                "plots",
                "need matplotlib; pip install '.[replay]', or use --no-plots.",
            )
        ) from error
    matplotlib.use("Agg")


def draw(report: Report, out: Path) -> list[str]:
    """Write the PNGs that the report has data for; returns their file names."""
    pictures = {
        "cost-quality.png": _cost_quality if report["frontier"] else None,
        "selection-share.png": _selection_share,
        "agreement.png": _agreement if report["reliability"] else None,
        "over-time.png": _over_time if report["over_time"] else None,
    }
    kept = {name: plot for name, plot in pictures.items() if plot is not None}
    for name, plot in kept.items():
        figure = plot(report)
        figure.savefig(out / name, dpi=110, metadata={"Software": None})
        _pyplot().close(figure)
    return list(kept)


def _pyplot() -> Any:
    import matplotlib.pyplot as plt

    return plt


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figure, axes = _pyplot().subplots(figsize=(width, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _cost_quality(report: Report) -> Any:
    """Plot policies, the curve of willingness to pay, and each candidate alone."""
    figure, axes = _figure(8, 5)
    frontier = report["frontier"]
    curve = frontier["curve"]
    axes.plot(
        [1e3 * x["cost_usd"] for x in curve],
        [x["quality"] for x in curve],
        color=GREY,
        linewidth=1.2,
        label="every willingness to pay",
    )
    for name, one in frontier["always_one"].items():
        at = (1e3 * one["cost_usd"], one["quality"])
        axes.plot(*at, ".", color=GREY)
        axes.annotate(
            name, at, (3, -3), textcoords="offset points", fontsize=7, color=GREY, va="top"
        )
    for i, (name, quality, cost) in enumerate(policies_in(report)):
        if None in (quality["value"], cost["value"]):
            continue
        axes.errorbar(
            1e3 * cost["value"],
            quality["value"],
            xerr=[[1e3 * (cost["value"] - cost["low"])], [1e3 * (cost["high"] - cost["value"])]],
            yerr=[[quality["value"] - quality["low"]], [quality["high"] - quality["value"]]],
            fmt="X" if name == "logged" else "o",
            color="black" if name == "logged" else f"C{i - 1}",
            markersize=8,
            capsize=2,
            label=name,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(_pyplot().LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.minorticks_off()
    axes.set(
        xlabel="estimated US dollars per 1,000 requests",
        ylabel="estimated quality (mean probability)",
        title=f"{report['requests']:,} past requests; gray names: that candidate always",
    )
    axes.legend(frameon=False, loc="lower right")
    return figure


def _selection_share(report: Report) -> Any:
    """Plot a bar for the log and for each policy, with a color for each candidate."""
    parts = {"logged": report["logged"], **report["policies"]}
    totals: dict[str, float] = {}
    for part in parts.values():
        whole = max(1, sum(part["selection_share"].values()))
        for name, count in part["selection_share"].items():
            totals[name] = totals.get(name, 0.0) + count / whole
    order = sorted(totals, key=lambda n: (-totals[n], n))
    listed, colors = order[:MAX_CANDIDATES], _pyplot().get_cmap("tab10").colors
    figure, axes = _figure(9, 1.6 + 0.5 * len(parts))
    left = [0.0] * len(parts)
    for name, color in [*zip(listed, colors, strict=False), ("others", "0.8")]:
        widths = [_share(part["selection_share"], name, listed) for part in parts.values()]
        if not any(widths):
            continue
        bars = axes.barh(list(parts), widths, left=left, color=color, label=name)
        labels = [f"{w:.0%}" if w >= 0.05 else "" for w in widths]
        axes.bar_label(bars, labels, label_type="center", fontsize=8, color="white")
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes.set_xlabel("share of requests")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _share(counts: Mapping[str, int], name: str, listed: list[str]) -> float:
    total = max(1, sum(counts.values()))
    if name == "others":
        return sum(count for other, count in counts.items() if other not in listed) / total
    return counts.get(name, 0) / total


def _agreement(report: Report) -> Any:
    """Plot outcomes of the logged candidates against their probabilities."""
    figure, axes = _figure(4.8, 4.6)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    bins = report["reliability"]
    most = max(b["observed"]["rows"] for b in bins)
    for b in bins:
        seen = b["observed"]
        errors = [[seen["value"] - seen["low"]], [seen["high"] - seen["value"]]]
        axes.errorbar(b["mean_p"], seen["value"], yerr=errors, color="C0", capsize=2)
        axes.scatter(b["mean_p"], seen["value"], s=15 + 200 * seen["rows"] / most, color="C0")
    axes.set(
        xlabel="probability of the logged candidate",
        ylabel="observed outcome",
        title=f"{report['logged']['brier']['rows']:,} requests with outcome",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    return figure


def _over_time(report: Report) -> Any:
    """Plot cost and quality over the log's time."""
    over = report["over_time"]
    figure, (upper, lower) = _pyplot().subplots(
        2, 1, figsize=(8, 5), sharex=True, layout="constrained"
    )
    when = [datetime.fromtimestamp(t, UTC) for t in over["middle"]]
    for i, series in enumerate(over["series"]):
        color = "black" if series["name"] == "logged" else f"C{i - 1}"
        costs = [None if c is None else 1e3 * c for c in series["cost_usd"]]
        for axes, values in ((upper, costs), (lower, series["quality"])):
            drawn = [float("nan") if v is None else v for v in values]
            axes.plot(when, drawn, ".-", color=color, linewidth=1, label=series["name"])
    upper.set_ylabel("estimated $ / 1,000")
    lower.set_ylabel("estimated quality")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    upper.legend(frameon=False, ncols=4, fontsize=8)
    figure.autofmt_xdate()
    return figure
