"""Checkpoints and bundles to and from a Hugging Face hub.

    python -m training.weights.hub push artifacts/checkpoint USER/NAME [--private]
    python -m training.weights.hub pull USER/NAME --out artifacts/checkpoint [--revision main]

Published is what the manifest lists, the manifest and a model card, in one commit. What is pulled
is checked against its manifest before it takes the place of --out. HF_TOKEN and HF_ENDPOINT are
read.
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
OWN_CARD = Path("pretrained") / CARD


def push(folder: Path, repo: str, card: Path = OWN_CARD, *, private: bool = False) -> str:
    """Publish a finished checkpoint or bundle; returns the commit's address.

    Raises BundleError where the folder is damaged, the card is missing or the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    manifest = _checked(folder)
    if not card.is_file():
        raise BundleError(f"there is no model card {card}; give --card FILE.")
    sources = {name: folder / name for name in (*manifest.files, MANIFEST)} | {CARD: card}
    operations = [CommitOperationAdd(name, str(path)) for name, path in sources.items()]

    def send() -> str:
        api = HfApi(library_name="modelsat", library_version=__version__)
        api.create_repo(repo, private=private, exist_ok=True)
        message = f"modelsat {manifest.kind}, {manifest.depth} layers"
        return str(api.create_commit(repo, operations, commit_message=message).commit_url)

    return _told(repo, send)


def pull(repo: str, out: Path, revision: str = "main") -> Manifest:
    """Fetch what push published into `out`; an earlier folder of the same kind is replaced.

    Raises BundleError where the hub has no such repository, it is none of ours, or a hash is wrong.
    """
    from huggingface_hub import snapshot_download

    fetched = out.with_name(out.name + ".fetched")
    try:
        _told(repo, lambda: snapshot_download(repo, revision=revision, local_dir=fetched))
        manifest = _checked(fetched)
        _put_in_place(fetched, out, manifest)
    finally:
        shutil.rmtree(fetched, ignore_errors=True)
    return manifest


def _put_in_place(fetched: Path, out: Path, manifest: Manifest) -> None:
    """Move what the manifest lists, and the card where there is one."""
    unfinished = stage_dir(out, manifest.kind)
    try:
        for name in {*manifest.files, CARD}:
            if name in manifest.files or (fetched / name).is_file():
                (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
                (fetched / name).replace(unfinished / name)
        commit_dir(unfinished, out, manifest)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _checked(folder: Path) -> Manifest:
    """The manifest of a folder whose every file is as it says."""
    try:
        kind: ArtifactKind = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{folder} is no checkpoint or bundle: no readable {MANIFEST}."
        ) from error
    if kind not in get_args(ArtifactKind):
        raise BundleError(
            f"{folder / MANIFEST}: kind is {kind!r}, expected {get_args(ArtifactKind)}."
        )
    manifest = read_manifest(folder, kind)
    for name in manifest.graphs.values():
        check_hash(folder, manifest, name)
    return manifest


def _told(repo: str, call: Callable[[], str]) -> str:
    try:
        return call()
    except Exception as error:  # the hub client raises many kinds; each means the same here
        raise BundleError(
            f"the hub did not do it for {repo!r} ({type(error).__name__}: {error}). Check the id,"
            " the network, HF_ENDPOINT and HF_TOKEN."
        ) from error


def main() -> None:
    """Parse the command line; push or pull."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    up, down = actions.add_parser("push"), actions.add_parser("pull")
    up.add_argument("folder", type=Path, help="checkpoint or bundle")
    for action in (up, down):
        action.add_argument("repo", metavar="USER/NAME")
    up.add_argument("--card", type=Path, default=OWN_CARD)
    up.add_argument("--private", action="store_true")
    down.add_argument("--out", type=Path, required=True)
    down.add_argument("--revision", default="main")
    given = parser.parse_args()
    if given.action == "push":
        print(push(given.folder, given.repo, given.card, private=given.private))
    else:
        manifest = pull(given.repo, given.out, given.revision)
        print(f"{given.out}: {manifest.kind}, {manifest.depth} layers")


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
