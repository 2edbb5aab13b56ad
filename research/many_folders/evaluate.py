"""Figures of a model on the rows of each folder, cold and with remembered comparisons.

Shapes: N instructions, M candidates, D width. p, y: (N, M); NaN outcomes are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import rankdata

from research.many_folders.data.candidates import represent
from research.many_folders.data.folders import Folder
from research.many_folders.data.scenes import PROSE
from research.many_folders.match import Match, matched
from research.many_folders.memory import adapt
from research.many_folders.model import FusedModel
from research.many_folders.run import EVERYDAY, WITHOUT_OUTCOMES, Start

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
ROWS = 24_000  # sequence rows of a forward pass
LEAST_CELL = 20
TEMPERATURES, FACTORS = (0.05, 0.08, 0.12), (2.0, 4.0, 6.0)
USUAL = (0.08, 4.0)
FITTED, FITTED_PROSE = 700, 4500  # rows of a folder that the regression is fitted on


@dataclass(frozen=True)
class Scored:
    """z: (N, M) log-odds before calibration; plain: without the match. u: (N, D) null rows.
    y: (N, M). benchmark: (N,)."""

    z: Floats
    plain: Floats
    u: Floats
    y: Floats
    benchmark: NDArray[np.int16]
    rows: Ints


@torch.no_grad()
def embeddings_of(folder: Folder, start: Start, counts: bool, candidates: Ints) -> torch.Tensor:
    """(M, C), standardised, of the official test."""
    test = folder.tests[0]
    assert test.figures is not None
    assert test.counts is not None
    at = torch.from_numpy(candidates).to(start.shift.device)
    shown = test.counts[at] if counts else None
    c = represent(test.figures[at], shown, test.means, test.vectors)
    return (c - start.shift) / start.scale


@torch.no_grad()
def score(model: FusedModel, asked: Folder, rows: Ints, c: torch.Tensor, start: Start) -> Scored:
    """Forward passes over `rows` of `asked` with the candidates c (M, C)."""
    scale, offset = start.calibration
    z = np.zeros((len(rows), len(c)), np.float32)
    u = np.zeros((len(rows), model.readout.shape[0]), np.float32)
    order = np.argsort(asked.lengths[0, rows], kind="stable")
    at = 0
    found = []
    while at < len(order):
        longest = int(asked.lengths[0, rows[order[min(at + 63, len(order) - 1)]]])
        size = max(1, min(64, ROWS // (longest + len(c) + 9)))
        part = order[at : at + size]
        tokens, lengths = asked.batch(rows[part], np.zeros(len(part), np.int64), 1 + len(c))
        h = model(tokens, lengths, c)
        found.append((part, scale * model.margins(h[:, 1:]) + offset, h[:, 0]))
        at += size
    for part, logits, null in found:
        z[part], u[part] = logits.float().cpu().numpy(), null.float().cpu().numpy()
    y = np.full(z.shape, np.nan, np.float32)
    return Scored(z, z, u, y, asked.benchmark[rows], rows)


def evaluate_rows(
    model: FusedModel,
    folder: Folder,
    rows: Ints,
    start: Start,
    counts: bool,
    inside: bool = False,
) -> Scored:
    """`rows` with the folder's measured candidates and their outcomes. inside: whether the match is
    a part of the logits."""
    everyone = np.arange(folder.measured)
    c = embeddings_of(folder, start, counts, everyone)
    scored = score(model, folder, rows, c, start)
    truth = folder.scores[: folder.measured].cpu().numpy()[:, rows].T
    z = scored.z
    if inside:
        found = match_of(model.match, folder, scored.u, model.match.temperature.exp().item())
        z = z + model.match.factor.item() * found
    return Scored(z, scored.plain, scored.u, truth, scored.benchmark, rows)


@torch.no_grad()
def match_of(match: Match, folder: Folder, u: Floats, temperature: float) -> Floats:
    """(N, M) match of null rows with the folder's official test."""
    test = folder.tests[0]
    assert test.figures is not None
    null = torch.from_numpy(u).to(test.vectors.device)
    figures = test.figures[: folder.measured]
    found = matched(match.embedding(null), match.whole(test.vectors), figures, temperature)
    return np.asarray(found.float().cpu().numpy())


@torch.no_grad()
def fit_match(
    match: Match, model: FusedModel, folders: Mapping[str, Folder], start: Start, names: list[str]
) -> None:
    """Fit the head of `match` on training rows of `names` and on texts without outcomes."""
    rows, wanted = [], []
    no_candidate = torch.zeros(1, start.shift.shape[0], device=start.shift.device)
    for name in (n for n in (*names, PROSE) if n in folders):
        folder = folders[name]
        count = FITTED_PROSE if name == PROSE else FITTED
        chosen = np.random.default_rng(1).permutation(folder.rows(0))[:count]
        rows.append(torch.from_numpy(score(model, folder, chosen, no_candidate, start).u))
        wanted.append(folder.vectors[torch.from_numpy(chosen).to(folder.vectors.device)])
    device = start.shift.device
    match.fit(
        torch.cat(rows).to(device),
        torch.nn.functional.normalize(torch.cat(wanted), dim=1),
    )


def match_figures(p: Floats, scored: Scored, folder: Folder, match: Match) -> dict[str, Any]:
    """[AUC, log loss, cells] of p and of p with the match, by (temperature, factor)."""
    z, y = logit(p.astype(float).clip(1e-6, 1 - 1e-6)), scored.y
    found = {}
    for t in TEMPERATURES:
        added = match_of(match, folder, scored.u, t)
        for g in FACTORS:
            q = expit(z + g * added)
            parts = pooled_auc(q, y), log_loss(q, y), cells(q, y, scored.benchmark)
            found[f"{t} {g}"] = [round(x, 4) for x in parts]
    return found


def pooled_auc(p: Floats, y: Floats) -> float:
    """As training.evaluation.metrics.pooled_auc."""
    known = ~np.isnan(y)
    good, value = y[known] > 0.5, p[known]
    if good.all() or not good.any():
        return float("nan")
    ranks = rankdata(value)
    n = good.sum()
    return float((ranks[good].sum() - n * (n + 1) / 2) / (n * (len(good) - n)))


def within_auc(p: Floats, y: Floats) -> float:
    """As training.evaluation.metrics.within_auc."""
    total, count = 0.0, 0
    for row, truth in zip(p, y, strict=True):
        good, bad = row[truth > 0.5], row[truth <= 0.5]
        if len(good) and len(bad):
            above = (good[:, None] > bad).mean() + 0.5 * (good[:, None] == bad).mean()
            total, count = total + above, count + 1
    return total / count if count else float("nan")


def log_loss(p: Floats, y: Floats) -> float:
    """Mean over measured pairs."""
    q = p.clip(1e-6, 1 - 1e-6)
    return float(-np.nanmean(y * np.log(q) + (1 - y) * np.log(1 - q)))


def ece(p: Floats, y: Floats) -> float:
    """As training.evaluation.metrics.ece."""
    known = ~np.isnan(y)
    value, truth = p[known], y[known]
    bins = np.minimum((value * 15).astype(int), 14)
    gap = np.bincount(bins, value, 15) - np.bincount(bins, truth, 15)
    return float(np.abs(gap).sum() / len(value))


def cells(p: Floats, y: Floats, benchmark: NDArray[np.int16]) -> float:
    """Mean |mean p - accuracy| over (benchmark, candidate) cells of LEAST_CELL outcomes or more."""
    gaps = []
    for b in np.unique(benchmark):
        at = benchmark == b
        known = ~np.isnan(y[at])
        for m in np.flatnonzero(known.sum(axis=0) >= LEAST_CELL):
            k = known[:, m]
            gaps.append(abs(float(p[at][k, m].mean() - y[at][k, m].mean())))
    return float(np.mean(gaps)) if gaps else float("nan")


def figures(p: Floats, y: Floats, benchmark: NDArray[np.int16], constant: int) -> dict[str, float]:
    """Every cold figure. constant: the candidate that is best on training rows."""
    known = ~np.isnan(y)
    dense = known.mean(axis=0) > 0.85
    whole = known[:, dense].all(axis=1)
    names = np.flatnonzero(dense)
    routed = single = share = float("nan")
    if whole.sum() >= 10 and constant in names:
        chosen = names[p[whole][:, dense].argmax(axis=1)]
        routed = float(y[whole, chosen].mean())
        single = float(y[whole, constant].mean())
        share = float(np.bincount(chosen).max() / len(chosen))
    return {
        "rows": len(p),
        "auc": pooled_auc(p, y),
        "within": within_auc(p, y),
        "log_loss": log_loss(p, y),
        "ece": ece(p, y),
        "cells": cells(p, y, benchmark),
        "routed": routed,
        "constant": single,
        "top_share": share,
    }


def best_on_training(folder: Folder) -> int:
    """The candidate of the best mean outcome on training rows, among those measured on most."""
    scores = folder.scores[: folder.measured].cpu().numpy()[:, folder.rows(0)]
    known = (~np.isnan(scores)).mean(axis=1)
    mean = np.where(known > 0.85 * known.max(), np.nanmean(scores, axis=1), -1)
    return int(mean.argmax())


def with_memory(
    p: Floats, u: Floats, y: Floats, numbers: tuple[int, ...], draws: int
) -> dict[str, Any]:
    """AUC and log loss on the same rows cold and with n remembered comparisons."""
    known = ~np.isnan(y)
    dense = known.mean(axis=0) > 0.85
    whole = known[:, dense].all(axis=1)
    p, u, y = p[whole][:, dense], u[whole], y[whole][:, dense]
    z = logit(p.astype(float).clip(1e-4, 1 - 1e-4))
    found: dict[str, Any] = {}
    for n in numbers:
        if n > 0.6 * len(y):
            continue
        rows = []
        for draw in range(draws):
            order = np.random.default_rng(draw).permutation(len(y))
            memory, test = order[:n], order[n : n + 1500]
            constant = int(y[memory].mean(axis=0).argmax())
            single = float(y[test, constant].mean())
            for q in (p[test], adapt(z, u, y, memory, test)):
                routed = float(y[test, q.argmax(axis=1)].mean()) - single
                rows.append((pooled_auc(q, y[test]), log_loss(q, y[test]), routed))
        a = np.array(rows).reshape(draws, 2, 3).mean(axis=0)
        names = ("auc", "log_loss", "over_constant")
        found[str(n)] = {
            "cold": dict(zip(names, a[0].round(4).tolist(), strict=True)),
            "warm": dict(zip(names, a[1].round(4).tolist(), strict=True)),
        }
    return found


def platt(parts: list[Scored]) -> tuple[float, float]:
    """(scale, offset) on top of z, every folder weighing alike; Newton's method."""
    x, y, w = [], [], []
    for part in parts:
        known = ~np.isnan(part.y)
        x.append(part.z[known].astype(float))
        y.append(part.y[known].astype(float))
        w.append(np.full(known.sum(), 1 / max(1, known.sum())))
    xs, ys, ws = np.concatenate(x), np.concatenate(y), np.concatenate(w)
    a, b = 1.0, 0.0
    for _ in range(20):
        q = expit(a * xs + b)
        g = np.array([(ws * (q - ys) * xs).sum(), (ws * (q - ys)).sum()])
        v = ws * q * (1 - q)
        h = np.array([[(v * xs * xs).sum(), (v * xs).sum()], [(v * xs).sum(), v.sum()]])
        step = np.linalg.solve(h + 1e-9 * np.eye(2), g)
        a, b = a - step[0], b - step[1]
    return float(a), float(b)


def report(
    model: FusedModel,
    folders: Mapping[str, Folder],
    start: Start,
    held_out: tuple[str, ...],
    counts: bool,
    full: bool,
    refit: bool = True,
    inside: bool = False,
    rows_to: Path | None = None,
) -> dict[str, Any]:
    """Figures of each folder: validation rows (and test rows where `full`) of those that training
    holds, fresh rows of those that were left out. refit: whether calibration is fitted again.
    inside: as in evaluate_rows. rows_to: a file for null rows and logits of what was left out."""
    names = [n for n in folders if n not in WITHOUT_OUTCOMES]
    seen = [n for n in names if n not in held_out]
    validation = {
        n: evaluate_rows(model, folders[n], folders[n].rows(1), start, counts, inside) for n in seen
    }
    ridge = Match(model.readout.shape[0]).to(start.shift.device)
    ridge.center = start.center
    fit_match(ridge, model, folders, start, seen)
    a, b = platt(list(validation.values())) if refit else (1.0, 0.0)
    found: dict[str, Any] = {"platt": [a, b], "folders": {}}

    def add(name: str, part: str, scored: Scored, where: NDArray[np.bool_] | None = None) -> None:
        at = np.ones(len(scored.y), bool) if where is None else where
        p = expit(a * scored.z[at] + b)
        constant = best_on_training(folders[name])
        found["folders"].setdefault(name, {})[part] = figures(
            p, scored.y[at], scored.benchmark[at], constant
        )

    def add_match(name: str, scored: Scored) -> None:
        p = expit(a * scored.plain + b)
        found["folders"][name]["match"] = {
            "own": match_figures(p, scored, folders[name], model.match),
            "ridge": match_figures(p, scored, folders[name], ridge),
        }

    for name, scored in validation.items():
        add(name, "validation", scored)
        add_match(name, scored)
    if full:
        for name in seen:
            folder = folders[name]
            scored = evaluate_rows(model, folder, folder.rows(2), start, counts, inside)
            add(name, "test", scored)
            add(name, "clean", scored, folder.clean[scored.rows])
    for name in held_out:
        folder = folders[name]
        rows = np.flatnonzero(folder.fresh)[:2000]
        scored = evaluate_rows(model, folder, rows, start, counts, inside)
        add(name, "held_out", scored)
        add_match(name, scored)
        p = expit(a * scored.z + b)
        numbers: tuple[int, ...] = (50, 200, 1000) if full else (50, 200)
        if len(rows) < 400:
            numbers = (50,)
        kept = found["folders"][name]
        kept["memory"] = with_memory(p, scored.u, scored.y, numbers, 2)
        for head, match in (("own", model.match), ("ridge", ridge)):
            added = USUAL[1] * match_of(match, folder, scored.u, USUAL[0])
            q = expit(a * scored.plain + b + added)
            kept[f"memory_{head}"] = with_memory(q, scored.u, scored.y, numbers[-1:], 2)
        if rows_to:
            arrays = {"z": scored.z, "plain": scored.plain, "u": scored.u}
            small: dict[str, Any] = {k: v.astype(np.float16) for k, v in arrays.items()}
            np.savez(rows_to, rows=rows, platt=np.array([a, b]), **small)
    found["match"] = [model.match.temperature.exp().item(), model.match.factor.item()]
    if EVERYDAY in folders:
        found["everyday"] = everyday(model, folders, start, counts, a, b, inside)
    return found


def everyday(
    model: FusedModel,
    folders: Mapping[str, Folder],
    start: Start,
    counts: bool,
    a: float,
    b: float,
    inside: bool = False,
) -> dict[str, list[float]]:
    """(mean p, least decile) of the five strongest candidates of some folders on everyday test
    prompts."""
    asked = folders[EVERYDAY]
    found = {}
    for name in ("mmlu_pro_cot", "helm_mmlu", "reasoning_gym", "shaberi_gpt-41"):
        level = folders[name].tests[0].figures
        assert level is not None
        mean = np.nanmean(level.cpu().numpy()[: folders[name].measured], axis=1)
        top = np.sort(np.argsort(-mean)[:5])
        c = embeddings_of(folders[name], start, counts, top)
        scored = score(model, asked, asked.rows(2), c, start)
        z = scored.z
        if inside:
            null = torch.from_numpy(scored.u).to(c.device)
            shown = level[torch.from_numpy(top).to(c.device)]
            with torch.no_grad():
                z = z + model.match(null, folders[name].tests[0].vectors, shown).cpu().numpy()
        p = expit(a * z + b)
        found[name] = [round(float(p.mean()), 4), round(float(np.quantile(p, 0.1)), 4)]
    return found
