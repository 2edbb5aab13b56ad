"""The manifest that makes a folder a checkpoint or a bundle: written last, checked on reading.

A folder without a manifest is unfinished. The manifest holds the sha256 of every other file, so
that a flipped byte is found before it is served.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from engine.api.errors import BundleError
from engine.bundle.prompt import PROMPT_VERSION

SCHEMA = 2
MANIFEST = "manifest.json"
ArtifactKind = Literal["checkpoint", "bundle"]
# The only ones that export and engine support; research/ trains and measures others, in torch.
LAYOUT, REPRESENTATION = "candidate_last", "accuracy_weighted"
Device = Literal["cpu", "cpu-fp32", "cuda", "tensorrt"]


@dataclass(frozen=True)
class Calibration:
    """p = sigmoid(scale * logit + offset), fitted on held-out rows."""

    scale: float
    offset: float


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint or bundle is.

    width: D, of the backbone's input and residual stream. encoder_width: of psi.
    encoder_id: hash of encoder, connector and representation; tables made by another are refused.
    files: relative path -> sha256. parity: format -> largest difference seen in p.
    graphs: device -> the file that suits it (engine/inference/devices.py); empty in a checkpoint.
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


REBUILD_HINT = "`make clean export` builds it anew"


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read in 1 MB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def hash_files(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file under `folder` but the manifest, sorted."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): sha256_of(p) for p in paths}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest` into `folder`, whole or not at all; call it last."""
    temporary = folder / (MANIFEST + ".tmp")
    content = asdict(manifest)
    content["seal"] = manifest_digest(content)
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / MANIFEST)


def manifest_digest(content: Mapping[str, Any]) -> str:
    """sha256 of everything else in the manifest: a changed figure in it is found like a changed
    file."""
    rest = {name: value for name, value in content.items() if name != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path, kind: ArtifactKind) -> Manifest:
    """The manifest of `folder`, its schema, prompt version and the files' hashes checked; those of
    the graphs are left to who opens one (check_hash).

    Raises BundleError in one sentence that names the field, what was found and what was expected.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(
            f"{folder} holds no {MANIFEST}, so it is no finished {kind}; {REBUILD_HINT}."
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BundleError(f"{path} is not readable JSON ({error}); {REBUILD_HINT}.") from error
    manifest = _parse(raw, path, kind)
    for name in manifest.files:
        if name not in manifest.graphs.values():
            check_hash(folder, manifest, name)
    return manifest


def _parse(raw: Any, path: Path, kind: ArtifactKind) -> Manifest:
    expected = {"schema": SCHEMA, "kind": kind, "prompt_version": PROMPT_VERSION}
    if not isinstance(raw, dict):
        raise BundleError(f"{path} holds {type(raw).__name__}, expected an object; {REBUILD_HINT}.")
    for name, want in expected.items():
        if raw.get(name) != want:
            raise BundleError(
                f"{path}: {name} is {raw.get(name)!r}, this engine expects {want!r}; {REBUILD_HINT}"
                " with this version, or serve it with the version that made it."
            )
    names = {f.name for f in fields(Manifest)} | {"seal"}
    if set(raw) != names:
        raise BundleError(
            f"{path}: fields missing {sorted(names - set(raw))}, unknown"
            f" {sorted(set(raw) - names)}; {REBUILD_HINT}."
        )
    if raw.pop("seal") != manifest_digest(raw):
        raise BundleError(
            f"{path}: its seal does not match its content, so it was changed or damaged;"
            f" {REBUILD_HINT}."
        )
    for name, supported in (("layout", LAYOUT), ("representation", REPRESENTATION)):
        if raw[name] != supported:
            raise BundleError(
                f"{path}: {name} is {raw[name]!r}, and only {supported!r} can be exported and"
                " served; train with the default or use the shipped checkpoint."
            )
    _check_names(raw["files"], raw["graphs"], path)
    return Manifest(**{**raw, "calibration": Calibration(**raw["calibration"])})


def _check_names(files: Iterable[str], graphs: Mapping[str, str], path: Path) -> None:
    """A manifest can come from anyone: none may name a file outside of its folder."""
    for name in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise BundleError(f"{path}: files has {name!r}, expected a path inside of the folder.")
    if unlisted := sorted(set(graphs.values()) - set(files)):
        raise BundleError(f"{path}: graphs names {unlisted}, which files does not list.")


def check_hash(folder: Path, manifest: Manifest, name: str) -> None:
    """Raise BundleError unless the file is there as the manifest has it."""
    path, want = folder / name, manifest.files[name]
    if not path.is_file():
        raise BundleError(f"{path} is missing, though the manifest lists it; {REBUILD_HINT}.")
    if (found := sha256_of(path)) != want:
        raise BundleError(
            f"{path}: sha256 is {found[:12]}..., the manifest says {want[:12]}...: the file was"
            f" changed or damaged; {REBUILD_HINT}."
        )


def stage_dir(out: Path, kind: ArtifactKind) -> Path:
    """An empty folder beside `out` to write into; finish_folder puts it in its place.

    Raises BundleError where `out` holds anything but an earlier folder of this kind.
    """
    if out.is_dir() and any(out.iterdir()):
        try:
            found = json.loads((out / MANIFEST).read_text(encoding="utf-8")).get("kind")
        except (OSError, ValueError, AttributeError):
            found = None
        if found != kind:
            raise BundleError(
                f"{out} is not empty and holds no {kind} that could be replaced; give --out a new"
                " folder, or empty it yourself."
            )
    unfinished = out.with_name(out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    return unfinished


def commit_dir(unfinished: Path, out: Path, manifest: Manifest) -> None:
    """Write the manifest, then put the folder in the place of `out`."""
    write_manifest(unfinished, manifest)
    shutil.rmtree(out, ignore_errors=True)
    unfinished.replace(out)


def made_by(command: str, arguments: Iterable[str], version: str) -> dict[str, Any]:
    """Who made a folder: version, command line, and git commit where one is known."""
    return {
        "version": version,
        "command": command,
        "arguments": list(arguments),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str:
    """HEAD of the checkout this file is in; empty outside of one, or where git is missing."""
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
