"""Export a checkpoint to a bundle that the engine serves. Needs no torch.

python -m export --checkpoint DIR --out DIR [--formats onnx,int8,fp16,tensorrt] [--cuda-arch 89 120]
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from engine import __version__
from engine.api.errors import BundleError, ModelsatError
from engine.bundle import task_places, training_set
from engine.bundle.arrays import ScoringArrays, save_arrays
from engine.bundle.instruction_space import InstructionSpace
from engine.bundle.manifest import (
    Manifest,
    commit_dir,
    hash_files,
    provenance,
    read_manifest,
    stage_dir,
)
from engine.bundle.types import Float32Array
from engine.registry.catalog import read_catalog
from engine.registry.onnx_encoder import load_embedder, load_encoder
from export.formats import FORMATS, write_formats
from export.onnx.bert import emit_encoder
from export.onnx.ops import LlamaConfig
from export.parity import ParityCheck, prepare_parity_check
from export.reference import encoder_row
from export.tensorrt import PLANS, BuiltEngine, present_capability, write_plans
from training.weights.adapter import load_connector
from training.weights.base import Base, load_base

PARITY_LIMIT = 1e-3
DEFAULT_CAPABILITY = "89"  # of the plans, if this machine has no GPU
PARITY_CANDIDATES = 3
PARITY_TASKS = 5


@dataclass(frozen=True)
class ExportResult:
    """The bundle's manifest, its TensorRT engines, and the formats that were left out with the
    reason of each."""

    manifest: Manifest
    engines: list[BuiltEngine]
    skipped: dict[str, str]


def export(
    checkpoint: Path, out: Path, formats: list[str], capabilities: list[str]
) -> ExportResult:
    """Write a bundle to `out`, its manifest last, so that an unfinished bundle is never served.

    Args:
        checkpoint: folder of the merged checkpoint.
        out: folder of the bundle; an earlier bundle there is replaced.
        formats: names of FORMATS, and PLANS for TensorRT engines.
        capabilities: compute capabilities of the TensorRT engines, such as "89".

    Raises:
        BundleError: the checkpoint cannot be exported, or the graph differs from the reference.
    """
    source = read_manifest(checkpoint, "checkpoint")
    unfinished = stage_dir(out, "bundle")
    backbone = load_base(str(checkpoint / "backbone"))
    encoder = load_base(str(checkpoint / "encoder"))
    arrays = _arrays(checkpoint, backbone, encoder, source)
    engines: list[BuiltEngine] = []
    with tqdm(total=len(formats) + 1, desc="export", unit="graph") as bar:

        def progress(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        progress("encoder")
        _write_other_files(checkpoint, unfinished, backbone, encoder, arrays)
        reference = _reference(unfinished, source, arrays, backbone)
        written = write_formats(unfinished, backbone, formats, reference, progress)
        if PLANS in formats:
            progress(PLANS)
            try:
                engines, failed = write_plans(unfinished, source.width, capabilities)
            except BundleError as error:
                written.skipped[PLANS] = str(error)
            else:
                written.skipped.update({f"{PLANS} sm{sm}": why for sm, why in failed.items()})
    if engines:
        written.graphs["tensorrt"] = engines[0].file
    manifest = replace(
        source,
        kind="bundle",
        files=hash_files(unfinished),
        made_by=provenance("export", sys.argv[1:], __version__),
        graphs=written.graphs,
        parity=written.parity | {"encoder": _encoder_parity(unfinished, encoder)},
    )
    _check_parity(manifest)
    commit_dir(unfinished, out, manifest)
    return ExportResult(manifest, engines, written.skipped)


def _write_other_files(
    checkpoint: Path, folder: Path, backbone: Base, encoder: Base, arrays: ScoringArrays
) -> None:
    """Write everything but the backbone."""
    emit_encoder(encoder.config, encoder.arrays, folder / "encoder.onnx")
    save_arrays(folder, arrays)
    for name in ("zoo.json", training_set.FILE):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)
    backbone.tokenizer.save(str(folder / "tokenizer.json"))
    encoder.tokenizer.save(str(folder / "encoder-tokenizer.json"))


def _check_parity(manifest: Manifest) -> None:
    for name in ("encoder", FORMATS[0].name):
        difference = manifest.parity[name]
        if not difference <= PARITY_LIMIT:  # NaN too
            raise BundleError(
                f"{name} differs by {difference:.2g} from the NumPy reference, limit"
                f" {PARITY_LIMIT}; no bundle was written."
            )


def _arrays(checkpoint: Path, backbone: Base, encoder: Base, manifest: Manifest) -> ScoringArrays:
    connector, norms = load_connector(checkpoint / "connector.safetensors")
    limit = int(encoder.config["max_position_embeddings"])
    known = training_set.load_training_set(checkpoint)
    space = None if known is None else known.instruction_space
    if space is None:
        space = InstructionSpace.unknown(manifest.width)
    places = task_places.load_task_places(checkpoint)
    return ScoringArrays(_readout(backbone, manifest), connector, norms, limit, space, places)


def _readout(backbone: Base, manifest: Manifest) -> Float32Array:
    """Fold the final norm's gain into the difference of the two head rows: (D,)."""
    head = backbone.arrays.get("lm_head.weight", backbone.arrays["model.embed_tokens.weight"])
    gain = backbone.arrays["model.norm.weight"]
    return np.asarray(gain * (head[manifest.yes_id] - head[manifest.no_id]), dtype=np.float32)


def _reference(
    folder: Path, manifest: Manifest, arrays: ScoringArrays, backbone: Base
) -> ParityCheck:
    encoder = load_encoder(folder, arrays)
    candidates = read_catalog(folder / "zoo.json")[:PARITY_CANDIDATES]
    embeddings = np.stack([encoder.encode(candidate) for candidate in candidates])
    config, tokenizer = LlamaConfig.of(backbone.config), backbone.tokenizer
    return prepare_parity_check(
        config, backbone.arrays, tokenizer, embeddings, arrays.readout, manifest
    )


def _encoder_parity(folder: Path, encoder: Base) -> float:
    tasks = [r.task for r in read_catalog(folder / "zoo.json")[0].aptitude[:PARITY_TASKS]]
    embed = load_embedder(folder)
    ids = [np.array(encoder.tokenizer.encode(task).ids) for task in tasks]
    expected = [encoder_row(encoder.config, encoder.arrays, tokens) for tokens in ids]
    return float(np.abs(embed(tasks) - np.stack(expected)).max())


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(
        prog="python -m export", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("artifacts/checkpoint"), help="merged checkpoint"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("artifacts/bundle"), help="folder of the bundle"
    )
    names = [*(output.name for output in FORMATS), PLANS]
    parser.add_argument(
        "--cuda-arch",
        nargs="+",
        help="compute capabilities to build TensorRT engines for (89 is Ada, 90 is Hopper;"
        f" default: that of this machine's GPU, or {DEFAULT_CAPABILITY})",
    )
    parser.add_argument(
        "--formats",
        default=",".join(names),
        help="comma-separated formats of the backbone (default: %(default)s)",
    )
    arguments = parser.parse_args()
    formats = arguments.formats.split(",")
    if unknown := set(formats) - set(names):
        parser.error(f"--formats: unknown {sorted(unknown)}, expected some of {names}")
    if names[0] not in formats:
        parser.error(f"--formats must include {names[0]}, which every bundle needs")
    capabilities = arguments.cuda_arch or [present_capability() or DEFAULT_CAPABILITY]
    result = export(arguments.checkpoint, arguments.out, formats, capabilities)
    for name in result.manifest.files:
        print(f"{name:26}{(arguments.out / name).stat().st_size / 1e6:9.1f} MB")
    for name, difference in result.manifest.parity.items():
        print(f"{name}: differs by at most {difference:.1e} from the NumPy reference")
    for engine in result.engines:
        print(
            f"{engine.file}: {engine.layers} layers, {engine.library}, built in"
            f" {engine.seconds:.0f} s; not run here"
        )
        for name, tensor in engine.inputs.items():
            print(f"    {name:12}{tensor['dtype']:20}{tensor['profile']}")
    for name, reason in result.skipped.items():
        print(f"{name}: left out, {reason}")


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
