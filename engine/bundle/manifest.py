"""Manifests of checkpoints and bundles: written last, verified on reading.

A folder without a manifest is unfinished. The manifest holds the SHA-256 of every other file, so
that damage is detected before anything is served.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from engine.api.errors import BundleError
from engine.bundle.prompt import PROMPT_VERSION

SCHEMA = 2
MANIFEST = "manifest.json"
ArtifactKind = Literal["checkpoint", "bundle"]
# Export and engine support no others; research/ trains and measures more, in torch.
LAYOUT, REPRESENTATION = "candidate_last", "accuracy_weighted"
# cpu takes cpu-fused where it runs, and cpu-onnx elsewhere.
Device = Literal[
    "cpu", "cpu-fused", "cpu-bf16", "cpu-onnx", "cpu-fp32", "cuda", "cuda-fp16", "tensorrt"
]


@dataclass(frozen=True)
class Calibration:
    """p = sigmoid(scale * logit + offset), fitted on held-out instructions."""

    scale: float
    offset: float


@dataclass(frozen=True)
class Manifest:
    """Description of a checkpoint or bundle.

    width: D, of the backbone's residual stream. encoder_width: E, of the capability encoder.
    encoder_id: hash of encoder, connector and representation; stores written with another are
    refused. files: relative path -> SHA-256. parity: format -> largest difference in p from the
    reference. graphs: device -> graph file (engine/inference/devices.py); empty in a checkpoint.
    """

    kind: ArtifactKind
    layout: str
    representation: str
    width: int
    encoder_width: int
    depth: int
    vocab_size: int
    yes_id: int
    no_id: int
    norm_eps: float
    calibration: Calibration
    encoder_id: str
    files: Mapping[str, str]
    made_by: Mapping[str, Any]
    parity: Mapping[str, float]
    graphs: Mapping[str, str]
    schema: int = SCHEMA
    prompt_version: str = PROMPT_VERSION


REBUILD_HINT = "rebuild it with `make clean export`"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(folder: Path) -> dict[str, str]:
    """Return relative path -> SHA-256 of every file under `folder` except its manifest, sorted."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): sha256_of(p) for p in paths}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest` into `folder` atomically; call it last."""
    temporary = folder / (MANIFEST + ".tmp")
    content = asdict(manifest)
    content["seal"] = manifest_digest(content)
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / MANIFEST)


def weights_id(manifest: Manifest) -> str:
    """Identify what embeddings and log-odds of instructions depend on: the backbone's weights,
    the prompt and the calibration. The formats of one export share it."""
    graph = manifest.graphs.get("cpu-fp32") or min(manifest.graphs.values(), default="")
    content = {
        "backbone": manifest.files.get(graph, ""),
        "prompt": manifest.prompt_version,
        "calibration": asdict(manifest.calibration),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def manifest_digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of everything in a manifest except `seal`, where it is stored: so changes
    to the manifest itself are detected as well."""
    rest = {name: value for name, value in content.items() if name != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path, kind: ArtifactKind) -> Manifest:
    """Read the manifest of `folder`, and verify schema, prompt version and the hashes of all files
    except graphs, which are large: the code that opens one calls check_hash.

    Raises BundleError in one sentence that names the field, what was found and what was expected.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(
            f"{folder} has no {MANIFEST}: there is no such folder; name another one by --{kind}, or"
            f" make it with `make {kind}` in a clone."
        )
    if not path.is_file():
        raise BundleError(
            f"{folder} has no {MANIFEST}, so it is not a complete {kind}; {REBUILD_HINT}."
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BundleError(f"{path} is not readable JSON ({error}); {REBUILD_HINT}.") from error
    manifest = _parse(raw, path, kind)
    for name in manifest.files:
        if name not in manifest.graphs.values():
            check_hash(folder, manifest, name)
    if unlisted := sorted(set(_names(folder)) - set(manifest.files)):
        raise BundleError(
            f"{folder} holds {', '.join(unlisted[:5])}, which {MANIFEST} does not list, so"
            f" nothing vouches for it; remove it, or {REBUILD_HINT}."
        )
    return manifest


def _names(folder: Path) -> Iterator[str]:
    """Yield the relative path of every file that counts: not the manifest, hidden files, a hub's
    model card, and what a volume has of its own."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        skipped = any(part.startswith(".") or part == "lost+found" for part in name.parts)
        if not (skipped or path.is_dir() or name.as_posix() in (MANIFEST, "README.md")):
            yield name.as_posix()


def _parse(raw: Any, path: Path, kind: ArtifactKind) -> Manifest:
    expected = {"schema": SCHEMA, "kind": kind, "prompt_version": PROMPT_VERSION}
    if not isinstance(raw, dict):
        raise BundleError(f"{path} holds {type(raw).__name__}, expected an object; {REBUILD_HINT}.")
    for name, value in expected.items():
        if raw.get(name) != value:
            raise BundleError(
                f"{path}: {name} is {raw.get(name)!r}, this version expects {value!r};"
                f" {REBUILD_HINT}, or serve it with the version that made it."
            )
    names = {f.name for f in fields(Manifest)} | {"seal"}
    if set(raw) != names:
        raise BundleError(
            f"{path}: fields missing {sorted(names - set(raw))}, unknown"
            f" {sorted(set(raw) - names)}; {REBUILD_HINT}."
        )
    if raw.pop("seal") != manifest_digest(raw):
        raise BundleError(
            f"{path}: seal does not match the content, so the file was changed or damaged;"
            f" {REBUILD_HINT}."
        )
    for name, supported in (("layout", LAYOUT), ("representation", REPRESENTATION)):
        if raw[name] != supported:
            raise BundleError(
                f"{path}: {name} is {raw[name]!r}, but only {supported!r} can be exported and"
                " served; train with the default or use the shipped checkpoint."
            )
    _check_names(raw["files"], raw["graphs"], path)
    return Manifest(**{**raw, "calibration": Calibration(**raw["calibration"])})


def _check_names(files: Iterable[str], graphs: Mapping[str, str], path: Path) -> None:
    """Refuse paths outside of the folder: a manifest may come from an untrusted source."""
    for name in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise BundleError(f"{path}: files has {name!r}, expected a path inside the folder.")
    if unlisted := sorted(set(graphs.values()) - set(files)):
        raise BundleError(f"{path}: graphs has {unlisted}, which are not in files.")


def check_hash(folder: Path, manifest: Manifest, name: str) -> None:
    """Raise BundleError unless the file exists and has the hash that the manifest lists."""
    path, listed = folder / name, manifest.files[name]
    if not path.is_file():
        raise BundleError(f"{path} is missing, but the manifest lists it; {REBUILD_HINT}.")
    if (actual := sha256_of(path)) != listed:
        raise BundleError(
            f"{path}: sha256 is {actual[:12]}..., the manifest says {listed[:12]}..., so the file"
            f" was changed or damaged; {REBUILD_HINT}."
        )


def stage_dir(out: Path, kind: ArtifactKind) -> Path:
    """Create an empty folder to write into, next to `out`; commit_dir moves it to `out`.

    Raises BundleError if `out` holds anything but an earlier folder of this kind.
    """
    if out.is_dir() and any(out.iterdir()):
        try:
            present = json.loads((out / MANIFEST).read_text(encoding="utf-8")).get("kind")
        except (OSError, ValueError, AttributeError):
            present = None
        if present != kind:
            raise BundleError(
                f"{out} is not empty, and does not hold a {kind} that could be replaced; set --out"
                " to a new folder, or empty it first."
            )
    unfinished = out.with_name(out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    return unfinished


def commit_dir(unfinished: Path, out: Path, manifest: Manifest) -> None:
    """Write the manifest, then move the staged folder to `out`, replacing what is there."""
    write_manifest(unfinished, manifest)
    shutil.rmtree(out, ignore_errors=True)
    unfinished.replace(out)


def provenance(command: str, arguments: Iterable[str], version: str) -> dict[str, Any]:
    """Return what made a folder: version, command line, and git commit if it is known."""
    return {
        "version": version,
        "command": command,
        "arguments": list(arguments),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str:
    """Return HEAD of the checkout that this file is in; "" if there is none, or no git."""
    folder = Path(__file__).resolve().parent
    try:
        process = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return process.stdout.strip() if process.returncode == 0 else ""
