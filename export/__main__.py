"""Write a bundle from a checkpoint; no torch.

python -m export --checkpoint artifacts/checkpoint --out artifacts/bundle
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from engine.contract import bundle, training_set
from engine.contract.arrays import ScoringArrays, save_arrays
from engine.contract.bundle import (
    Manifest,
    finish_folder,
    hash_files,
    read_manifest,
    start_folder,
)
from engine.contract.errors import BundleError, ModelsatError
from engine.registry.onnx_encoder import load_embedder, load_encoder
from engine.registry.zoo import read_zoo
from engine.scoring.onnx_backend import OnnxBackend
from engine.version import VERSION
from export.bert import emit_encoder
from export.llama import LlamaConfig, emit_backbone
from export.parity import backbone_parity
from export.reference import encoder_row
from training.base import Base, load_base
from training.pretrained import load_connector

FORMATS = ("onnx",)
PARITY_LIMIT = 1e-3
PARITY_CANDIDATES = 3  # the reference takes about half a second a pair
PARITY_TASKS = 5


def export(checkpoint: Path, out: Path) -> Manifest:
    """Write `out` whole, manifest last; raises BundleError where parity does not hold."""
    source = read_manifest(checkpoint, "checkpoint")
    unfinished = start_folder(out, "bundle")
    backbone = load_base(str(checkpoint / "backbone"))
    encoder = load_base(str(checkpoint / "encoder"))
    config = LlamaConfig.of(backbone.config)
    arrays = _arrays(checkpoint, backbone, encoder, source)
    steps = {
        "encoder": lambda: emit_encoder(
            encoder.config, encoder.arrays, unfinished / "encoder.onnx"
        ),
        "backbone": lambda: emit_backbone(
            config, backbone.arrays, source.layout, unfinished / "backbone.onnx"
        ),
        "scoring": lambda: save_arrays(unfinished, arrays),
    }
    for name, step in (bar := tqdm(steps.items(), desc="export", unit="file")):
        bar.set_postfix_str(name)
        step()
    for name in ("zoo.json", training_set.FILE):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, unfinished / name)
    backbone.tokenizer.save(str(unfinished / "tokenizer.json"))
    encoder.tokenizer.save(str(unfinished / "encoder-tokenizer.json"))
    manifest = replace(
        source,
        kind="bundle",
        files=hash_files(unfinished),
        made_by=bundle.made_by("export", sys.argv[1:], VERSION),
    )
    parity = {
        "encoder": _encoder_parity(unfinished, encoder),
        "onnx": _backbone_parity(unfinished, manifest, arrays, backbone, config),
    }
    for name, worst in parity.items():
        if not worst <= PARITY_LIMIT:
            raise BundleError(
                f"{name} is {worst:.2g} away from the NumPy reference, the limit is"
                f" {PARITY_LIMIT}; no bundle was written."
            )
    manifest = replace(manifest, parity=parity)
    finish_folder(unfinished, out, manifest)
    return manifest


def _arrays(checkpoint: Path, backbone: Base, encoder: Base, manifest: Manifest) -> ScoringArrays:
    connector, norms = load_connector(checkpoint / "connector.safetensors")
    limit = int(encoder.config["max_position_embeddings"])
    return ScoringArrays(_readout(backbone, manifest), connector, norms, limit)


def _readout(backbone: Base, manifest: Manifest) -> NDArray[np.float32]:
    """(D,): the final norm's gain times the difference of the two head rows."""
    head = backbone.arrays.get("lm_head.weight", backbone.arrays["model.embed_tokens.weight"])
    gain = backbone.arrays["model.norm.weight"]
    return np.asarray(gain * (head[manifest.yes_id] - head[manifest.no_id]), dtype=np.float32)


def _backbone_parity(
    folder: Path, manifest: Manifest, arrays: ScoringArrays, backbone: Base, config: LlamaConfig
) -> float:
    encoder = load_encoder(folder, manifest, arrays)
    some = read_zoo(folder / "zoo.json")[:PARITY_CANDIDATES]
    embeddings = np.concatenate([encoder.encode(candidate)[:1] for candidate in some])
    return backbone_parity(
        OnnxBackend(folder / "backbone.onnx"),
        config,
        backbone.arrays,
        backbone.tokenizer,
        embeddings,
        arrays.readout,
        manifest,
    )


def _encoder_parity(folder: Path, encoder: Base) -> float:
    tasks = [r.task for r in read_zoo(folder / "zoo.json")[0].aptitude[:PARITY_TASKS]]
    embed = load_embedder(folder)
    ids = [np.array(encoder.tokenizer.encode(task).ids) for task in tasks]
    expected = [encoder_row(encoder.config, encoder.arrays, tokens) for tokens in ids]
    return float(np.abs(embed(tasks) - np.stack(expected)).max())


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=Path("artifacts/checkpoint"))
    parser.add_argument("--out", type=Path, default=Path("artifacts/bundle"))
    parser.add_argument("--formats", default="onnx", help=f"comma-separated, of {FORMATS}")
    arguments = parser.parse_args()
    if unknown := set(arguments.formats.split(",")) - set(FORMATS):
        parser.error(f"--formats has {sorted(unknown)}, this version writes {FORMATS}")
    manifest = export(arguments.checkpoint, arguments.out)
    for name in manifest.files:
        print(f"{name:26}{(arguments.out / name).stat().st_size / 1e6:9.1f} MB")
    p, embedding = manifest.parity["onnx"], manifest.parity["encoder"]
    print(f"largest difference from the NumPy reference: {p:.1e} in p, {embedding:.1e} in psi")


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
