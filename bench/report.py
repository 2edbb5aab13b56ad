"""Write the results of a benchmark: JSON, a plot, an HTML page, and a table of targets."""

from __future__ import annotations

import base64
import html
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

RESULTS = Path(__file__).parent / "results"
INSTRUCTION_SETS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "bf16"),  # of Arm
)


@dataclass(frozen=True)
class Target:
    """A bound on a measured value.

    bound: "<= 1.1" or ">= 15". value: None if it was not measured, for `reason`.
    """

    name: str
    value: float | None
    bound: str
    reason: str = ""

    @property
    def verdict(self) -> bool | None:
        """True if the value is within the bound, None if it was not measured."""
        if self.value is None:
            return None
        side, limit = self.bound.split()
        return self.value <= float(limit) if side == "<=" else self.value >= float(limit)

    def row(self) -> dict[str, Any]:
        """Return the JSON object of the report."""
        return asdict(self) | {"pass": self.verdict}


def processor() -> dict[str, Any]:
    """Return the processor's name, its cores that this process may use, and the instruction sets
    that forward passes use."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    flags = fields.get("flags", fields.get("Features", "")).split()
    return {
        "processor": fields.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
    }


def busy_seconds() -> tuple[float, float]:
    """Return the CPU seconds of the machine since it started, and those of this process and of its
    children that ended."""
    ticks = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq, *_ = map(int, ticks)
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK"), own


def others_share(before: tuple[float, float], seconds: float) -> float:
    """Return the share of the machine's cores that other processes took in the last `seconds`.

    before: busy_seconds() at their beginning.
    """
    (machine, own), cores = busy_seconds(), os.cpu_count() or 1
    return max(0.0, (machine - before[0]) - (own - before[1])) / (seconds * cores)


def environment(**more: Any) -> dict[str, Any]:
    """Return commit, hardware and versions of this run, with `more`."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit,
        "time": time.strftime("%Y-%m-%d %H:%M"),
        **processor(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": ort.__version__,
        **more,
    }


def markdown(targets: Sequence[Target]) -> str:
    """Return the targets as a Markdown table."""
    lines = ["| target | bound | measured | |", "|---|---|---|---|"]
    words = {True: "met", False: "missed", None: "skipped"}
    for t in targets:
        measured = t.reason if t.value is None else f"{t.value:.3g}"
        lines.append(f"| {t.name} | {t.bound} | {measured} | {words[t.verdict]} |")
    return "\n".join(lines)


def finish(name: str, result: Mapping[str, Any], targets: Sequence[Target]) -> int:
    """Write bench/results/NAME.json, and print the table of targets and one JSON line.

    Returns the exit status: 1 if a target is missed.
    """
    content = {**result, "targets": [t.row() for t in targets]}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(markdown(targets))
    print(json.dumps(content))
    return int(any(t.verdict is False for t in targets))


def write(name: str, result: Mapping[str, Any], targets: Sequence[Target], bars: Any) -> None:
    """Write bench/results/NAME.json, .png and .html. bars: label -> milliseconds."""
    RESULTS.mkdir(exist_ok=True)
    content = {**result, "targets": [t.row() for t in targets]}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    picture = RESULTS / f"{name}.png"
    _plot(bars, picture)
    image = base64.b64encode(picture.read_bytes()).decode()
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(c.strip())}</td>" for c in line.strip("|").split("|"))
        for line in markdown(targets).splitlines()
        if not line.startswith("|---")
    )
    (RESULTS / f"{name}.html").write_text(
        f"<!doctype html><meta charset=utf-8><title>modelsat {name}</title>"
        "<style>body{font:15px sans-serif;margin:2em}td{padding:.2em 1em .2em 0}</style>"
        f"<h1>{name}</h1><img src='data:image/png;base64,{image}'><table>{rows}</table>"
        f"<pre>{html.escape(json.dumps(result, indent=1))}</pre>",
        encoding="utf-8",
    )


def _plot(bars: Mapping[str, float], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.45 * len(bars) + 1.2), layout="constrained")
    drawn = axes.barh(list(bars), list(bars.values()), color="#4464ad")
    axes.bar_label(drawn, [f" {v:.3g} ms" for v in bars.values()])
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="milliseconds, median")
    axes.margins(x=0.2)
    figure.savefig(path, dpi=120)
    plt.close(figure)
