"""Write a bundle from a checkpoint; no torch.

python -m export --checkpoint DIR --out DIR [--formats onnx,int8,fp16,tensorrt] [--sm 89 120]
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from engine import __version__
from engine.api.errors import BundleError, ModelsatError
from engine.bundle import training_set
from engine.bundle.arrays import ScoringArrays, save_arrays
from engine.bundle.manifest import (
    Manifest,
    finish_folder,
    hash_files,
    made_by,
    read_manifest,
    start_folder,
)
from engine.registry.catalog import read_zoo
from engine.registry.onnx_encoder import load_embedder, load_encoder
from export.formats import FORMATS, write_formats
from export.onnx.bert import emit_encoder
from export.onnx.ops import LlamaConfig
from export.parity import Parity, parity
from export.reference import encoder_row
from export.tensorrt import PLANS, Plan, write_plans
from training.weights.adapter import load_connector
from training.weights.base import Base, load_base

PARITY_LIMIT = 1e-3
PARITY_CANDIDATES = 3
PARITY_TASKS = 5


@dataclass(frozen=True)
class Exported:
    """skipped: format -> why the bundle has no graph of it."""

    manifest: Manifest
    plans: list[Plan]
    skipped: dict[str, str]


def export(checkpoint: Path, out: Path, formats: list[str], capabilities: list[str]) -> Exported:
    """Write `out` whole, manifest last; raises BundleError where parity does not hold."""
    source = read_manifest(checkpoint, "checkpoint")
    unfinished = start_folder(out, "bundle")
    backbone = load_base(str(checkpoint / "backbone"))
    encoder = load_base(str(checkpoint / "encoder"))
    arrays = _arrays(checkpoint, backbone, encoder, source)
    plans: list[Plan] = []
    with tqdm(total=len(formats) + 1, desc="export", unit="graph") as bar:

        def progress(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        progress("encoder")
        _write_rest(checkpoint, unfinished, backbone, encoder, arrays)
        reference = _reference(unfinished, source, arrays, backbone)
        written = write_formats(unfinished, backbone, source.layout, formats, reference, progress)
        if PLANS in formats:
            progress(PLANS)
            try:
                plans = write_plans(unfinished, encoder, source.width, capabilities)
            except BundleError as error:
                written.skipped[PLANS] = str(error)
    if plans:
        written.graphs["tensorrt"] = plans[0].file
    manifest = replace(
        source,
        kind="bundle",
        files=hash_files(unfinished),
        made_by=made_by("export", sys.argv[1:], __version__),
        graphs=written.graphs,
        parity=written.parity | {"encoder": _encoder_parity(unfinished, encoder)},
    )
    _check(manifest)
    finish_folder(unfinished, out, manifest)
    return Exported(manifest, plans, written.skipped)


def _write_rest(
    checkpoint: Path, folder: Path, backbone: Base, encoder: Base, arrays: ScoringArrays
) -> None:
    """Everything but the backbone."""
    emit_encoder(encoder.config, encoder.arrays, folder / "encoder.onnx")
    save_arrays(folder, arrays)
    for name in ("zoo.json", training_set.FILE):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)
    backbone.tokenizer.save(str(folder / "tokenizer.json"))
    encoder.tokenizer.save(str(folder / "encoder-tokenizer.json"))


def _check(manifest: Manifest) -> None:
    for name in ("encoder", FORMATS[0].name):
        worst = manifest.parity[name]
        if not worst <= PARITY_LIMIT:
            raise BundleError(
                f"{name} is {worst:.2g} away from the NumPy reference, the limit is"
                f" {PARITY_LIMIT}; no bundle was written."
            )


def _arrays(checkpoint: Path, backbone: Base, encoder: Base, manifest: Manifest) -> ScoringArrays:
    connector, norms = load_connector(checkpoint / "connector.safetensors")
    limit = int(encoder.config["max_position_embeddings"])
    return ScoringArrays(_readout(backbone, manifest), connector, norms, limit)


def _readout(backbone: Base, manifest: Manifest) -> NDArray[np.float32]:
    """(D,): the final norm's gain times the difference of the two head rows."""
    head = backbone.arrays.get("lm_head.weight", backbone.arrays["model.embed_tokens.weight"])
    gain = backbone.arrays["model.norm.weight"]
    return np.asarray(gain * (head[manifest.yes_id] - head[manifest.no_id]), dtype=np.float32)


def _reference(folder: Path, manifest: Manifest, arrays: ScoringArrays, backbone: Base) -> Parity:
    encoder = load_encoder(folder, manifest, arrays)
    some = read_zoo(folder / "zoo.json")[:PARITY_CANDIDATES]
    embeddings = np.concatenate([encoder.encode(candidate)[:1] for candidate in some])
    config, tokenizer = LlamaConfig.of(backbone.config), backbone.tokenizer
    return parity(config, backbone.arrays, tokenizer, embeddings, arrays.readout, manifest)


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
    names = [*(form.name for form in FORMATS), PLANS]
    parser.add_argument("--sm", nargs="+", default=["89"], help="compute capabilities of the plans")
    parser.add_argument("--formats", default=",".join(names), help="comma-separated")
    arguments = parser.parse_args()
    asked = arguments.formats.split(",")
    if unknown := set(asked) - set(names):
        parser.error(f"--formats has {sorted(unknown)}, this version writes {names}")
    if names[0] not in asked:
        parser.error(f"--formats must have {names[0]}: it is what the others are held to")
    done = export(arguments.checkpoint, arguments.out, asked, arguments.sm)
    for name in done.manifest.files:
        print(f"{name:26}{(arguments.out / name).stat().st_size / 1e6:9.1f} MB")
    for name, worst in done.manifest.parity.items():
        print(f"{name}: at most {worst:.1e} from the NumPy reference")
    for plan in done.plans:
        print(
            f"{plan.file}: {plan.layers} layers, {plan.library}, {plan.seconds:.0f} s; not run here"
        )
        for name, tensor in plan.inputs.items():
            print(f"    {name:12}{tensor['dtype']:20}{tensor['profile']}")
    for name, why in done.skipped.items():
        print(f"{name}: left out, {why}")


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
