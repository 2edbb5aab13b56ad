"""Fold a trained adapter into its base weights and write a checkpoint, with NumPy alone.

python -m training.weights.merge --pretrained pretrained --out artifacts/checkpoint

What compares instructions belongs to the weights that it was computed with. A folder in which it
belongs to others is refused; --leave-out-stale merges it without, so that it can be computed again
(training.instruction_space, training.task_places, training.difficulty.fit).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from engine import __version__
from engine.api.errors import BundleError, ModelsatError
from engine.bundle import manifest
from engine.bundle.manifest import (
    Manifest,
    commit_dir,
    hash_files,
    stage_dir,
)
from engine.bundle.prompt import NO, YES
from engine.bundle.task_places import FILE as TASK_PLACES
from engine.bundle.task_places import save_task_places
from engine.bundle.training_set import FILE as TRAINING_SET
from engine.bundle.training_set import save_training_set
from engine.registry.catalog import read_catalog
from training.weights.adapter import Pretrained, load_pretrained, save_connector
from training.weights.base import CACHE, Base, load_base, single_token

PEFT_PREFIX = "base_model.model."
Arrays = dict[str, NDArray[np.float32]]


def fold(arrays: Arrays, lora: Mapping[str, NDArray[np.float32]], scale: float) -> Arrays:
    """Add scale * B A to every adapted matrix W (LoRA: Hu et al., 2021); others are unchanged.

    Args:
        arrays: base weights by Hugging Face name.
        lora: peft's names `base_model.model.{module}.lora_A.weight` (r, in) and `lora_B` (out, r).
        scale: factor of the product.

    Raises:
        BundleError: the adapter names a matrix that the base does not have.
    """
    merged = dict(arrays)
    for name in tqdm([n for n in lora if ".lora_A." in n], desc="merge", unit="matrix"):
        target = name.removeprefix(PEFT_PREFIX).replace(".lora_A", "")
        low, high = lora[name], lora[name.replace(".lora_A.", ".lora_B.")]
        expected = (high.shape[0], low.shape[1])
        found = merged[target].shape if target in merged else "nothing"
        if found != expected:
            raise BundleError(
                f"the adapter changes {target} of shape {expected}, the base model has {found};"
                " it was trained on another base model or depth."
            )
        merged[target] = merged[target] + np.float32(scale) * (high @ low)
    return merged


def stale_parts(pretrained: Pretrained) -> dict[str, str]:
    """Return which files were computed with other weights: name -> what is wrong."""
    known, places, found = pretrained.training_set, pretrained.places, {}
    space = None if known is None else known.instruction_space
    if known is not None and space is not None and known.weights not in ("", pretrained.id):
        found[TRAINING_SET] = f"its space is of weights {known.weights}, these are {pretrained.id}"
        space = None
    if places is not None and places.space and (space is None or places.space != space.id):
        of = "none here" if space is None else space.id
        found[TASK_PLACES] = f"its places are in space {places.space}, {TRAINING_SET} has {of}"
    return found


def without_stale(pretrained: Pretrained) -> Pretrained:
    """Leave out what was computed with other weights."""
    stale, known = stale_parts(pretrained), pretrained.training_set
    if known is not None and TRAINING_SET in stale:
        known = replace(known, instruction_space=None)
    places = None if TASK_PLACES in stale else pretrained.places
    return replace(pretrained, training_set=known, places=places)


def write_checkpoint(pretrained: Pretrained, catalog: Path, out: Path) -> Manifest:
    """Write the checkpoint `out`, whole or not at all; an earlier one is replaced.

    Raises:
        BundleError: `out` holds anything else, or a part of `pretrained` belongs to other weights.
        InvalidInputError: the catalog of candidates has problems.
    """
    read_catalog(catalog)
    if stale := stale_parts(pretrained):
        problems = "; ".join(f"{name}: {problem}" for name, problem in stale.items())
        raise BundleError(f"{problems}. Compute it again, see --leave-out-stale.")
    unfinished = stage_dir(out, "checkpoint")
    backbone = load_base(pretrained.backbone, CACHE, pretrained.layers)
    encoder = load_base(pretrained.encoder, CACHE)
    merged = fold(backbone.arrays, pretrained.lora, pretrained.lora_scale)
    write_model(unfinished / "backbone", Base(backbone.config, merged, backbone.tokenizer))
    encoder.tokenizer.no_truncation()
    encoder.tokenizer.no_padding()
    write_model(unfinished / "encoder", encoder)
    save_connector(unfinished / "connector.safetensors", pretrained.connector, pretrained.norms)
    shutil.copyfile(catalog, unfinished / "zoo.json")
    if pretrained.training_set is not None:
        save_training_set(unfinished, replace(pretrained.training_set, weights=pretrained.id))
    if pretrained.places is not None:
        save_task_places(unfinished, pretrained.places)
    manifest = _manifest(pretrained, backbone, encoder, hash_files(unfinished))
    commit_dir(unfinished, out, manifest)
    return manifest


def _manifest(
    pretrained: Pretrained, backbone: Base, encoder: Base, files: dict[str, str]
) -> Manifest:
    config = backbone.config
    return Manifest(
        kind="checkpoint",
        layout="candidate_last",
        representation="accuracy_weighted",
        width=config["hidden_size"],
        encoder_width=encoder.config["hidden_size"],
        depth=pretrained.layers,
        vocab_size=config["vocab_size"],
        yes_id=single_token(backbone.tokenizer, YES),
        no_id=single_token(backbone.tokenizer, NO),
        norm_eps=config["rms_norm_eps"],
        calibration=pretrained.calibration,
        encoder_id=encoder_id(files),
        files=files,
        made_by=manifest.provenance("training.weights.merge", sys.argv[1:], __version__),
        parity={},
        graphs={},
    )


def encoder_id(files: Mapping[str, str]) -> str:
    """Hash what a candidate's embedding depends on: encoder, connector and representation."""
    parts = [files[n] for n in sorted(files) if n.startswith(("encoder/", "connector"))]
    return hashlib.sha256("".join([*parts, "accuracy_weighted"]).encode()).hexdigest()[:16]


def write_model(folder: Path, base: Base) -> None:
    """Write config.json, tokenizer.json and model.safetensors in Hugging Face layout."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(base.config, indent=1) + "\n", encoding="utf-8")
    base.tokenizer.save(str(folder / "tokenizer.json"))
    save_file(base.arrays, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Merge --pretrained into a checkpoint at --out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--pretrained", type=Path, default=Path("pretrained"), help="what a training run left"
    )
    parser.add_argument(
        "--catalog", type=Path, default=Path("pretrained/zoo.json"), help="candidates to start with"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("artifacts/checkpoint"), help="folder of the checkpoint"
    )
    text = "merge without what was computed with other weights, instead of refusing it"
    parser.add_argument("--leave-out-stale", action="store_true", help=text)
    arguments = parser.parse_args()
    pretrained = load_pretrained(arguments.pretrained)
    if arguments.leave_out_stale:
        for name, problem in stale_parts(pretrained).items():
            print(f"left out of {name}: {problem}")
        pretrained = without_stale(pretrained)
    manifest = write_checkpoint(pretrained, arguments.catalog, arguments.out)
    print(f"{arguments.out}: {manifest.depth} layers")


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
