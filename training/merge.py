"""Fold a trained adapter into its base weights and write a checkpoint; NumPy only, no torch.

python -m training.merge --pretrained pretrained --out artifacts/checkpoint
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

from engine.contract import bundle
from engine.contract.bundle import Manifest, Representation, hash_files, write_manifest
from engine.contract.errors import BundleError, ModelsatError
from engine.contract.prompt import NO, YES
from engine.version import VERSION
from training.base import CACHE, Base, load_base
from training.pretrained import Pretrained, load_pretrained

PEFT_PREFIX = "base_model.model."
Arrays = dict[str, NDArray[np.float32]]


def fold(arrays: Arrays, lora: Mapping[str, NDArray[np.float32]], scale: float) -> Arrays:
    """W + scale * B A for every adapted matrix (LoRA: Hu et al., 2021); others unchanged.

    lora: peft's names, `base_model.model.{module}.lora_A.weight` (r, in) and `lora_B` (out, r).
    Raises BundleError where the adapter names a matrix that the base does not have.
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


def write_checkpoint(pretrained: Pretrained, zoo: Path, out: Path) -> Manifest:
    """Write `out` whole: files first, manifest last. What was there before is replaced."""
    backbone = load_base(pretrained.backbone, CACHE, pretrained.layers)
    encoder = load_base(pretrained.encoder, CACHE)
    shutil.rmtree(out, ignore_errors=True)
    merged = fold(backbone.arrays, pretrained.lora, pretrained.lora_scale)
    _write_model(out / "backbone", Base(backbone.config, merged, backbone.tokenizer))
    encoder.tokenizer.no_truncation()
    encoder.tokenizer.no_padding()
    _write_model(out / "encoder", encoder)
    _write_connector(pretrained, out)
    shutil.copyfile(zoo, out / "zoo.json")
    files = hash_files(out)
    config = backbone.config
    manifest = Manifest(
        kind="checkpoint",
        layout=pretrained.layout,
        representation=pretrained.representation,
        width=config["hidden_size"],
        encoder_width=encoder.config["hidden_size"],
        depth=pretrained.layers,
        vocab_size=config["vocab_size"],
        yes_id=_token(backbone, YES),
        no_id=_token(backbone, NO),
        norm_eps=config["rms_norm_eps"],
        calibration=pretrained.calibration,
        encoder_id=encoder_id(files, pretrained.representation),
        files=files,
        made_by=bundle.made_by("training.merge", sys.argv[1:], VERSION),
        parity={},
    )
    write_manifest(out, manifest)
    return manifest


def encoder_id(files: Mapping[str, str], representation: Representation) -> str:
    """What an embedding depends on: encoder weights and tokenizer, connector, representation."""
    parts = [files[n] for n in sorted(files) if n.startswith(("encoder/", "connector"))]
    return hashlib.sha256("".join([*parts, representation]).encode()).hexdigest()[:16]


def _write_model(folder: Path, base: Base) -> None:
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(base.config, indent=1) + "\n", encoding="utf-8")
    base.tokenizer.save(str(folder / "tokenizer.json"))
    save_file(base.arrays, folder / "model.safetensors", metadata={"format": "pt"})


def _write_connector(pretrained: Pretrained, out: Path) -> None:
    from safetensors.numpy import save_file

    norms = pretrained.norms
    means = np.array(list(norms.means.values()), dtype=np.float32)
    arrays = {
        "weight": pretrained.connector.weight,
        "bias": pretrained.connector.bias,
        "center": norms.center,
        "task_means": means,
    }
    save_file(arrays, out / "connector.safetensors")
    words = {"tasks": list(norms.means), "default_mean": norms.default_mean}
    (out / "connector.json").write_text(json.dumps(words, indent=1) + "\n", encoding="utf-8")


def _token(base: Base, word: str) -> int:
    ids = base.tokenizer.encode(word, add_special_tokens=False).ids
    if len(ids) != 1:
        raise BundleError(f"{word!r} is {len(ids)} tokens in this backbone's tokenizer, not 1.")
    return int(ids[0])


def main() -> None:
    """Merge --pretrained into a checkpoint at --out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pretrained", type=Path, default=Path("pretrained"))
    parser.add_argument("--zoo", type=Path, default=Path("pretrained/zoo.json"))
    parser.add_argument("--out", type=Path, default=Path("artifacts/checkpoint"))
    arguments = parser.parse_args()
    manifest = write_checkpoint(load_pretrained(arguments.pretrained), arguments.zoo, arguments.out)
    print(f"{arguments.out}: {manifest.depth} layers, layout {manifest.layout}")


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
