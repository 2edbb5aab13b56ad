"""Compare ways to match an instruction with a task, on folders that the weights never saw.

    python -m research.many_folders.left_out --data DIR

left_out_h100/ holds, for six folders, what weights that were trained on the other nine folders say:
null rows and log-odds. They suffice to measure a memory, a match or a guard without a GPU.

The match by items represents a task by the mean null row of a few of its questions, the match by
keywords by the embedding of its keywords. Both add figures of near tasks, less the candidate's
level, to the log-odds. Settings are those with the least log loss on the other five folders.

Shapes: N instructions, M candidates, T tasks, D width.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from engine.datasets.outcomes import fingerprint, read_outcomes
from research.many_folders.evaluate import log_loss, pooled_auc
from research.many_folders.memory import adapt

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
KEPT = Path(__file__).parent / "left_out_h100"
TEMPERATURES, FACTORS = (0.1, 0.15, 0.25, 0.4), (2.0, 3.0, 4.0, 6.0)
SETTINGS = [(t, g) for t in TEMPERATURES for g in FACTORS]
COMPARISONS = 200


@dataclass(frozen=True)
class LeftOut:
    """null: (N, D) rows before the final norm. plain, matched: (N, M) calibrated log-odds without
    and with the match by keywords that was trained with them. y: (N, M) outcomes, NaN = not
    measured. task: (N,) number of each instruction's task, -1 = none. figures: (M, T) of the
    aptitude test, whose items are not among the instructions."""

    null: Floats
    plain: Floats
    matched: Floats
    y: Floats
    task: Ints
    figures: Floats


def read(data: Path) -> LeftOut:
    """Join the kept rows of a folder with its outcomes."""
    outcomes = read_outcomes(data)
    with np.load(KEPT / f"{data.name}.npz") as file:
        kept = {name: file[name] for name in file.files}
    rows = kept["row"].astype(np.int64)
    found = [fingerprint(outcomes.texts[i]) for i in rows]
    if found != kept["fingerprint"].tolist():
        raise ValueError(f"{data} holds other instructions than {KEPT / data.name}.npz")
    place = {subject: i for i, subject in enumerate(outcomes.test.subjects)}
    return LeftOut(
        kept["null"].astype(np.float32) * kept["null_scale"].astype(np.float32)[:, None],
        kept["plain"].astype(float),
        kept["matched"].astype(float),
        outcomes.scores[:, rows].T.astype(float),
        np.array([place.get(outcomes.subjects[i], -1) for i in rows]),
        outcomes.test.accuracies,
    )


def draw_items(task: Ints, each: int) -> Ints:
    """Row numbers of up to `each` instructions of every task, at most a third of the task's."""
    random = np.random.default_rng(0)
    parts = []
    for number in np.unique(task[task >= 0]):
        own = random.permutation(np.flatnonzero(task == number))
        parts.append(own[: min(each, len(own) // 3)])
    return np.concatenate(parts)


def match_by_items(folder: LeftOut, items: Ints, temperature: float) -> Floats:
    """(N, M) figures of near tasks less the level; a task is the mean null row of its items."""
    centred = folder.null - folder.null[items].mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    tasks = np.unique(folder.task[items])
    centers = np.stack([unit[items[folder.task[items] == t]].mean(axis=0) for t in tasks])
    near = unit @ (centers / np.linalg.norm(centers, axis=1, keepdims=True)).T
    weight = np.exp((near - near.max(axis=1, keepdims=True)) / temperature)
    weight /= weight.sum(axis=1, keepdims=True)
    level = np.nanmean(folder.figures, axis=1, keepdims=True)
    return np.asarray(weight @ np.nan_to_num(folder.figures - level)[:, tasks].T)


def with_comparisons(z: Floats, folder: LeftOut, rows: Ints) -> float:
    """AUC with remembered comparisons, on instructions whose outcomes are all known; two draws."""
    known = ~np.isnan(folder.y[rows])
    dense = known.mean(axis=0) > 0.85
    whole = rows[known[:, dense].all(axis=1)]
    y, own = folder.y[whole][:, dense], z[whole][:, dense]
    count = COMPARISONS if len(y) >= 2 * COMPARISONS else 50
    found = []
    for draw in range(2):
        order = np.random.default_rng(draw).permutation(len(y))
        memory, test = order[:count], order[count:]
        p = adapt(own.clip(-9, 9), folder.null[whole], y, memory, test)
        found.append(pooled_auc(p, y[test]))
    return float(np.mean(found))


def compare(folders: dict[str, LeftOut], each: int) -> list[str]:
    """A table, in Markdown, of every folder and the mean."""
    items = {n: draw_items(f.task, each) for n, f in folders.items()}
    rest = {n: np.setdiff1d(np.arange(len(f.y)), items[n]) for n, f in folders.items()}
    by_items: dict[str, dict[tuple[float, float], Floats]] = {}
    loss: dict[str, dict[tuple[float, float], float]] = {}
    for name, folder in folders.items():
        added = {t: match_by_items(folder, items[name], t) for t in TEMPERATURES}
        by_items[name] = {(t, g): folder.plain + g * added[t] for t, g in SETTINGS}
        at = rest[name]
        loss[name] = {s: log_loss(expit(z[at]), folder.y[at]) for s, z in by_items[name].items()}
    lines, rows = [], []
    for name, folder in folders.items():
        others = [n for n in folders if n != name]
        chosen = min(SETTINGS, key=lambda s: sum(loss[n][s] for n in others))
        at = rest[name]
        row = []
        for z in (folder.plain, folder.matched, by_items[name][chosen]):
            row += [
                pooled_auc(z[at], folder.y[at]),
                log_loss(expit(z[at]), folder.y[at]),
                with_comparisons(z, folder, at),
            ]
        rows.append(row)
        lines.append(_line(name, row))
    lines.append(_line("mean", np.mean(rows, axis=0).tolist()))
    return lines


def _line(name: str, row: list[float]) -> str:
    cells = [f"{a:.3f} > {w:.3f}, {loss:.3f}" for a, loss, w in np.reshape(row, (-1, 3))]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print a table for tests whose tasks have 5 and 20 known questions."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data folders")
    arguments = parser.parse_args()
    folders = {p.stem: read(arguments.data / p.stem) for p in sorted(KEPT.glob("*.npz"))}
    for each in (5, 20):
        print(f"{each} questions a task; AUC cold > with comparisons, log loss cold")
        print("| folder | without a match | by keywords | by items |\n|---|---|---|---|")
        print("\n".join(compare(folders, each)), flush=True)


if __name__ == "__main__":
    main()
