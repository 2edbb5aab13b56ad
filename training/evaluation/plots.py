"""Plot training curves, calibration, and accuracy against cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from engine.bundle.types import FloatArray

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from engine.routing import tradeoff
from training.evaluation import metrics


def plot_dataset(p: FloatArray, outcomes: FloatArray, costs: FloatArray, stem: Path) -> None:
    """Plot reliability, and accuracy against cost if prices are known; p, outcomes, costs (B, M).

    stem: path without the suffixes -reliability.png and -cost.png.
    """
    _reliability(p, outcomes, stem.with_name(stem.name + "-reliability.png"))
    block = tradeoff.largest_complete_subset(outcomes)
    part = np.ix_(block.rows, block.candidates)
    priced = np.flatnonzero(~np.isnan(costs[part]).any(axis=0))
    if len(priced) > 1:
        kept = (p[part][:, priced], outcomes[part][:, priced], costs[part][:, priced])
        _cost_quality(*kept, stem.with_name(stem.name + "-cost.png"))


def _reliability(p: FloatArray, outcomes: FloatArray, path: Path) -> None:
    mean, seen, share = metrics.reliability(p, outcomes)
    figure, axes = plt.subplots(figsize=(4.2, 4))
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
    axes.scatter(mean, seen, s=12 + 400 * share)
    axes.set(xlabel="predicted probability", ylabel="share that succeeded")
    axes.set_title(f"ECE {metrics.ece(p, outcomes):.3f}")
    _save(figure, path)


def _cost_quality(p: FloatArray, outcomes: FloatArray, costs: FloatArray, path: Path) -> None:
    points = tradeoff.curve(p, outcomes, costs)
    accuracy, cost = tradeoff.single_candidate_baselines(outcomes, costs)
    figure, axes = plt.subplots(figsize=(5.5, 4))
    axes.plot([1e3 * x.cost for x in points], [x.accuracy for x in points], label="routed")
    axes.scatter(1e3 * cost, accuracy, color="black", s=14, label="one candidate always")
    axes.set(xlabel="US dollars per 1,000 requests", ylabel="accuracy", xscale="log")
    axes.legend()
    _save(figure, path)


def plot_gains(folders: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Plot the gain of the highest probability over the best constant of each folder.

    folders: name -> figures of training.evaluation.evaluate.measure.
    """
    known = [name for name, found in folders.items() if not np.isnan(found["gain_over_constant"])]
    gains = [100 * folders[name]["gain_over_constant"] for name in known]
    bounds = np.array([folders[name]["gain_over_constant_ci"] for name in known]) * 100
    figure, axes = plt.subplots(figsize=(6, 0.8 + 0.32 * len(known)))
    at = np.arange(len(known))[::-1]
    reach = np.abs(bounds.T - gains) if known else None
    axes.errorbar(gains, at, xerr=reach, fmt="o", markersize=4, capsize=2)
    axes.axvline(0, color="grey", linewidth=1)
    axes.set_yticks(at, known)
    axes.set(xlabel="points above the best constant, 95 %")
    _save(figure, path)


def plot_memory(folders: Mapping[str, Mapping[str, Mapping[str, Any]]], path: Path) -> None:
    """Plot AUC and APGR against the number of remembered instructions, a line for each folder.

    folders: name -> size -> figures of training.evaluation.memory; sizes in ascending order.
    """
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6))
    for axes, name, label in zip(
        panels, ("pooled_auc", "apgr"), ("pooled AUC", "APGR"), strict=True
    ):
        for folder, sizes in folders.items():
            known = [(int(n), found[name]) for n, found in sizes.items() if name in found]
            known.insert(0, (0, next(iter(sizes.values()))[f"{name}_before"]))
            counts, values = zip(*dict(known).items(), strict=True)
            axes.plot(counts, values, marker="o", markersize=3, label=folder)
        axes.set_xscale("symlog", linthresh=20)
        ticks = sorted({0, *(int(n) for sizes in folders.values() for n in sizes)})
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.set(xlabel="remembered instructions", ylabel=label)
    panels[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def plot_training(metrics_file: Path, path: Path) -> None:
    """Plot the loss of each step with its running mean, and the metrics of the validations."""
    records = [json.loads(x) for x in metrics_file.read_text(encoding="utf-8").splitlines()]
    steps = [r["step"] for r in records]
    bce = np.array([r["bce"] for r in records])
    window = max(1, len(bce) // 40)
    smooth = np.convolve(bce, np.ones(window) / window, mode="valid")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
    left.plot(steps, bce, color="lightgrey", linewidth=0.7)
    left.plot(steps[window - 1 :], smooth)
    left.set(xlabel="step", ylabel="binary cross-entropy")
    watched = [r for r in records if "pooled_auc" in r]
    for name in ("pooled_auc", "per_instruction_auc", "top_candidate_share"):
        right.plot([r["step"] for r in watched], [r[name] for r in watched], label=name)
    right.set(xlabel="step")
    if watched:
        right.legend()
    _save(figure, path)


def plot_lines(
    lines: Mapping[str, Sequence[float]], labels: Sequence[str], ylabel: str, path: Path
) -> None:
    """Plot named lines over the same labelled steps."""
    figure, axes = plt.subplots(figsize=(max(8, 0.12 * len(labels)), 4))
    for name, values in lines.items():
        axes.plot(range(len(values)), values, marker="o", markersize=3, label=name)
    axes.set_xticks(range(len(labels)), labels, rotation=70, fontsize=7)
    axes.set(ylabel=ylabel)
    axes.legend()
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
