"""Resolve the extras of setup.py into exact versions, one resolution for all of them.

    make lock

dev.txt holds everything but TensorRT; serve, export and train are the parts of it that they need,
so that all environments of one commit agree. trt adds the builder of plans to export;
image and image-gpu are what the containers of deploy/docker serve with; litellm is an environment
of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1] / "requirements"
LOCKS = {
    "dev": "cpu,build,export,train,aptitude,replay,ray,postgres,otel,docs,dev",
    "train": "cpu,build,export,train",
    "export": "cpu,build,export",
    "serve": "cpu",
    "trt": "cpu,build,export,trt",
    "image": "cpu,postgres,otel",
    "image-gpu": "cuda,postgres,otel",
    "litellm": "litellm",
}
APART = ("dev", "litellm")  # LiteLLM pins versions that dev.txt cannot have
HEADER = "# make lock wrote this from setup.py's extras [{extras}].\n"


def resolve(extras: str, constraint: Path | None) -> list[str]:
    """Return name==version of everything that `.[extras]` needs, by pip's own resolver."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "-q"]
    if constraint:
        command += ["-c", str(constraint)]
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command += ["--report", report.name, f"{HERE.parent}[{extras}]"]
        subprocess.run(command, check=True)
        found = json.loads(Path(report.name).read_text(encoding="utf-8"))
    pins = {
        item["metadata"]["name"].lower(): item["metadata"]["version"].partition("+")[0]
        for item in found["install"]
    }
    pins.pop("modelsat")
    return [f"{name}=={version}" for name, version in sorted(pins.items())]


def main() -> None:
    """Write every lock; the first constrains the others."""
    everything = HERE / "dev.txt"
    for name, extras in LOCKS.items():
        pins = resolve(extras, None if name in APART else everything)
        target = HERE / f"{name}.txt"
        target.write_text(HEADER.format(extras=extras) + "\n".join(pins) + "\n", encoding="utf-8")
        print(f"{target.name}: {len(pins)} packages")


if __name__ == "__main__":
    main()
