"""Resolve the extras of setup.py into exact versions with hashes, one resolution for all of them.

    make lock                        resolve again
    python tools/lock.py --hashes    keep the versions, renew the hashes

dev.txt holds everything but TensorRT; serve, export and train are the parts of it that they need,
so that all environments of one commit agree. trt adds the builder of plans to export;
image and image-gpu are what the containers of deploy/docker serve with; litellm is an environment
of its own. deploy, envoy and openvino are written by hand, and only their hashes are renewed.

Install a lock with --no-deps: it is complete. It makes pip refuse files that are not listed, and
source distributions, whose build runs code. Where a package has nothing else, the lock names it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.utils import parse_wheel_filename
from pip._internal.models.index import PyPI
from tqdm import tqdm

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
TORCH = """\
# make lock wrote this. One version of torch is built for CPUs and for CUDA, with other dependencies
# and hashes. Install it after dev.txt or train.txt, which have the rest of what it needs on a CPU.
"""
INTERPRETERS = re.compile(r"cp3(11|12|13|14)|py3([0-9]|1[0-4])?")
STABLE_ABI = re.compile(r"cp3([2-9]|1[0-4])")
PLATFORMS = re.compile(r"any|(many)?linux.*_(x86_64|aarch64)")
PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s;\\]+)")
Pins = dict[str, str]  # name -> version


def resolve(extras: str, constraint: Path | None) -> Pins:
    """Return the version of everything that `.[extras]` needs, by pip's own resolver."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "-q"]
    with tempfile.TemporaryDirectory() as scratch:
        if constraint:  # constraints cannot have hashes
            plain = Path(scratch) / "constraint.txt"
            pins = read_pins(constraint).items()
            plain.write_text("".join(f"{n}=={v}\n" for n, v in pins), encoding="utf-8")
            command += ["-c", str(plain)]
        report = Path(scratch) / "report.json"
        command += ["--report", str(report), f"{HERE.parent}[{extras}]"]
        subprocess.run(command, check=True)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    resolved = {
        item["metadata"]["name"].lower(): item["metadata"]["version"].partition("+")[0]
        for item in found
    }
    resolved.pop("modelsat")
    return dict(sorted(resolved.items()))


def read_pins(lock: Path) -> Pins:
    """Read the versions of a lock."""
    lines = lock.read_text(encoding="utf-8").splitlines()
    return {match[1]: match[2] for line in lines if (match := PIN.match(line))}


def published_hashes(name: str, version: str) -> tuple[list[str], bool]:
    """Return the sha256 of each wheel of a version for Linux and CPython 3.11 to 3.14.

    Without such a wheel, return that of the source distribution, and True. Asks the public index
    for its list of files (PEP 691).
    """
    accept = {"Accept": "application/vnd.pypi.simple.v1+json"}
    request = urllib.request.Request(f"{PyPI.simple_url}/{name}/", headers=accept)  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
        files = {file["filename"]: file["hashes"]["sha256"] for file in json.load(reply)["files"]}
    if wheels := [files[n] for n in files if n.endswith(".whl") and is_used(n, version)]:
        return sorted(wheels), False
    return [files[n] for n in files if n.endswith(f"-{version}.tar.gz")], True


def is_used(wheel: str, version: str) -> bool:
    """Return True if a wheel is of `version` and for a platform that the locks cover."""
    if wheel.split("-")[1] != version:  # names of other versions need not be valid any more
        return False
    return any(
        PLATFORMS.fullmatch(tag.platform)
        and (
            INTERPRETERS.fullmatch(tag.interpreter)
            or (tag.abi in ("abi3", "none") and STABLE_ABI.fullmatch(tag.interpreter))
        )
        for tag in parse_wheel_filename(wheel)[3]
    )


def write_lock(lock: Path, header: str, pins: Pins) -> None:
    """Write pins with their hashes.

    Raises SystemExit if the index has no file of a version.
    """
    options, lines = [header.rstrip("\n"), "--require-hashes", "--only-binary :all:"], []
    with ThreadPoolExecutor(16) as pool:
        asked = pool.map(published_hashes, pins, pins.values())
        published = list(tqdm(asked, lock.name, len(pins)))
    for (name, version), (hashes, is_source) in zip(pins.items(), published, strict=True):
        if not hashes:
            raise SystemExit(f"The index has no file of {name}=={version}.")
        if is_source:
            options.append(f"--no-binary {name}")
        lines.append(
            " \\\n    ".join([f"{name}=={version}", *(f"--hash=sha256:{h}" for h in hashes)])
        )
    lock.write_text("\n".join([*options, *lines]) + "\n", encoding="utf-8")


def main() -> None:
    """Write every lock; the first constrains the others."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hashes", action="store_true", help="keep versions, renew hashes")
    keep = parser.parse_args().hashes
    everything, torch = HERE / "dev.txt", HERE / "torch.txt"
    for lock in sorted(set(HERE.glob("*.txt")) - {torch}, key=lambda path: path != everything):
        pins = read_pins(lock)
        lines = lock.read_text(encoding="utf-8").splitlines(keepends=True)
        header = "".join(line for line in lines if line.startswith("#"))
        if (extras := LOCKS.get(lock.stem)) and not keep:
            pins = resolve(extras, None if lock.stem in APART else everything)
            header = HEADER.format(extras=extras)
        if version := pins.pop("torch", ""):
            torch.write_text(f"{TORCH}--only-binary :all:\ntorch=={version}\n", encoding="utf-8")
        write_lock(lock, header, pins)


if __name__ == "__main__":
    main()
