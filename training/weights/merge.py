"""Fold a trained adapter into its base weights and write a checkpoint, with NumPy alone.

python -m training.weights.merge --pretrained pretrained --out artifacts/checkpoint
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
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
from engine.bundle.task_places import save_task_places
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


def write_checkpoint(pretrained: Pretrained, catalog: Path, out: Path) -> Manifest:
    """Write the checkpoint `out`, whole or not at all; an earlier one is replaced.

    Raises:
        BundleError: `out` holds anything else.
        InvalidInputError: the catalog of candidates has problems.
    """
    read_catalog(catalog)
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
        save_training_set(unfinished, pretrained.training_set)
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
    arguments = parser.parse_args()
    manifest = write_checkpoint(
        load_pretrained(arguments.pretrained), arguments.catalog, arguments.out
    )
    print(f"{arguments.out}: {manifest.depth} layers")


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
