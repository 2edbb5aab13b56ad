"""Publish checkpoints and bundles to a Hugging Face hub, and fetch them.

    python -m training.weights.hub push artifacts/checkpoint USER/NAME [--private]
    python -m training.weights.hub pull USER/NAME --out artifacts/checkpoint [--revision main]

One commit holds the files that the manifest lists, the manifest and a model card. A download is
checked against its manifest before it replaces --out. HF_TOKEN and HF_ENDPOINT are read.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from engine import __version__
from engine.api.errors import BundleError, ModelsatError
from engine.bundle.manifest import (
    MANIFEST,
    ArtifactKind,
    Manifest,
    check_hash,
    commit_dir,
    read_manifest,
    stage_dir,
)

CARD = "README.md"
DEFAULT_CARD = Path("pretrained") / CARD


def push(folder: Path, repo: str, card: Path = DEFAULT_CARD, *, private: bool = False) -> str:
    """Publish a finished checkpoint or bundle.

    Returns:
        The URL of the commit.

    Raises:
        BundleError: the folder is damaged, the card is missing, or the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    manifest = _verify(folder)
    if not card.is_file():
        raise BundleError(f"the model card {card} does not exist; set --card FILE.")
    sources = {name: folder / name for name in (*manifest.files, MANIFEST)} | {CARD: card}
    operations = [CommitOperationAdd(name, str(path)) for name, path in sources.items()]

    def send() -> str:
        api = HfApi(library_name="modelsat", library_version=__version__)
        api.create_repo(repo, private=private, exist_ok=True)
        message = f"modelsat {manifest.kind}, {manifest.depth} layers"
        return str(api.create_commit(repo, operations, commit_message=message).commit_url)

    return _translate_errors(repo, send)


def pull(repo: str, out: Path, revision: str = "main") -> Manifest:
    """Fetch what `push` published into `out`; an earlier folder of the same kind is replaced.

    Raises:
        BundleError: the repository does not exist, is not of modelsat, or a hash does not match.
    """
    from huggingface_hub import snapshot_download

    fetched = out.with_name(out.name + ".fetched")
    try:
        _translate_errors(
            repo, lambda: snapshot_download(repo, revision=revision, local_dir=fetched)
        )
        manifest = _verify(fetched)
        _install(fetched, out, manifest)
    finally:
        shutil.rmtree(fetched, ignore_errors=True)
    return manifest


def _install(fetched: Path, out: Path, manifest: Manifest) -> None:
    """Move the files that the manifest lists, and the card if there is one, into place."""
    unfinished = stage_dir(out, manifest.kind)
    try:
        for name in {*manifest.files, CARD}:
            if name in manifest.files or (fetched / name).is_file():
                (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
                (fetched / name).replace(unfinished / name)
        commit_dir(unfinished, out, manifest)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _verify(folder: Path) -> Manifest:
    """Read the manifest of a folder and check the hash of every file."""
    try:
        kind: ArtifactKind = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{folder} is not a checkpoint or bundle: it has no readable {MANIFEST}."
        ) from error
    if kind not in get_args(ArtifactKind):
        raise BundleError(
            f"{folder / MANIFEST}: kind is {kind!r}, expected {get_args(ArtifactKind)}."
        )
    manifest = read_manifest(folder, kind)
    for name in manifest.graphs.values():
        check_hash(folder, manifest, name)
    return manifest


def _translate_errors(repo: str, call: Callable[[], str]) -> str:
    try:
        return call()
    except Exception as error:  # the hub client raises many kinds; each means the same here
        raise BundleError(
            f"the hub request for {repo!r} failed ({type(error).__name__}: {error}). Check the id,"
            " the network, HF_ENDPOINT and HF_TOKEN."
        ) from error


def main() -> None:
    """Parse the command line; push or pull."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    up = actions.add_parser("push", help="publish a folder")
    down = actions.add_parser("pull", help="fetch what push published")
    up.add_argument("folder", type=Path, help="folder of a checkpoint or bundle")
    for action in (up, down):
        action.add_argument("repo", metavar="USER/NAME", help="repository on the hub")
    up.add_argument("--card", type=Path, default=DEFAULT_CARD, help="model card (%(default)s)")
    up.add_argument("--private", action="store_true", help="create the repository as private")
    down.add_argument("--out", type=Path, required=True, help="folder to write")
    down.add_argument("--revision", default="main", help="branch, tag or commit (%(default)s)")
    arguments = parser.parse_args()
    if arguments.action == "push":
        print(push(arguments.folder, arguments.repo, arguments.card, private=arguments.private))
    else:
        manifest = pull(arguments.repo, arguments.out, arguments.revision)
        print(f"{arguments.out}: {manifest.kind}, {manifest.depth} layers")


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
