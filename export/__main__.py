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

from engine.contract import bundle
from engine.contract.arrays import Connector, ScoringArrays, TaskNorms, save_arrays
from engine.contract.bundle import Manifest, hash_files, read_manifest, write_manifest
from engine.contract.errors import BundleError, ModelsatError
from engine.registry.onnx_encoder import load_encoder
from engine.registry.zoo import read_zoo
from engine.scoring.onnx_backend import OnnxBackend
from engine.version import VERSION
from export.bert import emit_encoder
from export.llama import LlamaConfig, emit_backbone
from export.parity import parity
from training.base import Base, load_base

FORMATS = ("onnx",)
PARITY_LIMIT = 1e-3
PARITY_CANDIDATES = 3  # the reference takes about half a second a pair


def export(checkpoint: Path, out: Path) -> Manifest:
    """Write `out` whole, manifest last; raises BundleError where parity does not hold."""
    source = read_manifest(checkpoint, "checkpoint")
    unfinished = out.with_name(out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    backbone = load_base(str(checkpoint / "backbone"))
    encoder = load_base(str(checkpoint / "encoder"))
    config = LlamaConfig.of(backbone.config)
    arrays = _arrays(checkpoint, backbone, source)
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
    shutil.copyfile(checkpoint / "zoo.json", unfinished / "zoo.json")
    backbone.tokenizer.save(str(unfinished / "tokenizer.json"))
    encoder.tokenizer.save(str(unfinished / "encoder-tokenizer.json"))
    manifest = replace(
        source,
        kind="bundle",
        files=hash_files(unfinished),
        made_by=bundle.made_by("export", sys.argv[1:], VERSION),
    )
    manifest = replace(
        manifest, parity={"onnx": _parity(unfinished, manifest, arrays, backbone, config)}
    )
    write_manifest(unfinished, manifest)
    shutil.rmtree(out, ignore_errors=True)
    unfinished.replace(out)
    return manifest


def _arrays(checkpoint: Path, backbone: Base, manifest: Manifest) -> ScoringArrays:
    import json

    from safetensors.numpy import load_file

    found = load_file(checkpoint / "connector.safetensors")
    words = json.loads((checkpoint / "connector.json").read_text(encoding="utf-8"))
    means = dict(zip(words["tasks"], found["task_means"].tolist(), strict=True))
    return ScoringArrays(
        _readout(backbone, manifest),
        Connector(found["weight"], found["bias"]),
        TaskNorms(found["center"], means, words["default_mean"]),
    )


def _readout(backbone: Base, manifest: Manifest) -> NDArray[np.float32]:
    """(D,): the final norm's gain times the difference of the two head rows."""
    head = backbone.arrays.get("lm_head.weight", backbone.arrays["model.embed_tokens.weight"])
    gain = backbone.arrays["model.norm.weight"]
    return np.asarray(gain * (head[manifest.yes_id] - head[manifest.no_id]), dtype=np.float32)


def _parity(
    folder: Path, manifest: Manifest, arrays: ScoringArrays, backbone: Base, config: LlamaConfig
) -> float:
    encoder = load_encoder(folder, manifest, arrays)
    some = read_zoo(folder / "zoo.json")[:PARITY_CANDIDATES]
    embeddings = np.concatenate([encoder.encode(candidate)[:1] for candidate in some])
    worst = parity(
        OnnxBackend(folder / "backbone.onnx"),
        config,
        backbone.arrays,
        backbone.tokenizer,
        embeddings,
        arrays.readout,
        manifest,
    )
    if not worst <= PARITY_LIMIT:
        raise BundleError(
            f"backbone.onnx is {worst:.2g} away from the reference in p, the limit is"
            f" {PARITY_LIMIT}; no bundle was written."
        )
    return worst


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
    print(f"parity with the NumPy reference: {manifest.parity['onnx']:.1e} in p")


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
