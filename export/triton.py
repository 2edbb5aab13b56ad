"""The bundle as a model repository of NVIDIA Triton.

    python -m export.triton --bundle artifacts/bundle --out DIR [--device cpu] [--model-version 1]

modelsat_backbone   tokens, lengths, embeddings -> hidden: the bundle's graph for the device
modelsat_readout    hidden -> probabilities: final norm, 'Yes' against 'No', calibration
modelsat            an ensemble of the two

Shapes and types in each config.pbtxt are read from the ONNX file beside it. A client renders
prompts, encodes candidates and applies policies itself (docs/how-to/triton-and-kserve.md).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
from onnx import TensorProto

from engine.api.errors import BundleError, ModelsatError
from engine.bundle.arrays import load_arrays
from engine.bundle.manifest import Device, Manifest, check_hash, read_manifest
from export.onnx.graph import FLOAT, Graph

BACKBONE, READOUT, ENSEMBLE = "modelsat_backbone", "modelsat_readout", "modelsat"
TYPES = {TensorProto.INT64: "TYPE_INT64", TensorProto.FLOAT: "TYPE_FP32"}


@dataclass(frozen=True)
class Tensor:
    """One input or output of a model. dims: -1 where any size will do."""

    name: str
    type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """What goes into a model and what comes out."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def write_repository(bundle: Path, out: Path, device: Device = "cpu", version: int = 1) -> None:
    """Write `out`; other versions of the models that are there already stay.

    Raises BundleError where the bundle has no ONNX graph for `device`, or where another version is
    there whose tensors or device are others: a model has one config.pbtxt for all its versions.
    """
    manifest = read_manifest(bundle, "bundle")
    graph = manifest.graphs.get(device, "")
    if not graph.endswith(".onnx"):
        raise BundleError(f"{bundle} has no ONNX graph for {device}, only {dict(manifest.graphs)}.")
    check_hash(bundle, manifest, graph)
    kind = "KIND_GPU" if device == "cuda" else "KIND_CPU"
    _check_versions(out, version, onnx_config(BACKBONE, signature(bundle / graph), kind))
    backbone, readout = (_folder(out, name, version) / "model.onnx" for name in (BACKBONE, READOUT))
    shutil.copyfile(bundle / graph, backbone)
    emit_readout(manifest, np.asarray(load_arrays(bundle).readout), readout)
    parts = {name: signature(path) for name, path in ((BACKBONE, backbone), (READOUT, readout))}
    for name, found in parts.items():
        _write(out, name, onnx_config(name, found, kind))
    # Triton wants the folder of a version, and git and object stores keep none that is empty.
    (_folder(out, ENSEMBLE, version) / ".keep").touch()
    _write(out, ENSEMBLE, ensemble_config(parts[BACKBONE], parts[READOUT]))


def _check_versions(out: Path, version: int, config: str) -> None:
    """The backbone's is enough: it has every input, and the readout's width."""
    file = out / BACKBONE / "config.pbtxt"
    others = sorted(p.name for p in file.parent.glob("[0-9]*") if p.name != str(version))
    if others and file.is_file() and file.read_text("utf-8") != config + "\n":
        raise BundleError(
            f"{file} is that of version {', '.join(others)}, whose tensors or device are others;"
            " give --out another folder."
        )


def emit_readout(manifest: Manifest, weight: np.ndarray, path: Path) -> None:
    """hidden (B, R, D) -> probabilities (B, R), what cpp_ext.score computes for one variant."""
    g = Graph(READOUT)
    hidden = g.input("hidden", FLOAT, ["B", "R", manifest.width])
    f32 = np.float32
    mean = g.op("ReduceMean", g.op("Mul", hidden, hidden), axes=[2], keepdims=0)
    norm = g.op("Sqrt", g.op("Add", mean, g.const(manifest.norm_eps, f32)))
    logit = g.op("Div", g.op("MatMul", hidden, g.weight("readout", weight.astype(f32))), norm)
    scaled = g.op("Mul", logit, g.const(manifest.calibration.scale, f32))
    raised = g.op("Add", scaled, g.const(manifest.calibration.offset, f32))
    g.output("probabilities", g.op("Sigmoid", raised), ["B", "R"])
    g.save(path)


def signature(path: Path) -> Signature:
    """Inputs and outputs of an ONNX file."""
    graph = onnx.load(path, load_external_data=False).graph
    return Signature(tuple(map(_tensor, graph.input)), tuple(map(_tensor, graph.output)))


def _tensor(info: onnx.ValueInfoProto) -> Tensor:
    kind = info.type.tensor_type
    dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    return Tensor(info.name, TYPES[kind.elem_type], dims)


def onnx_config(name: str, found: Signature, kind: str) -> str:
    """config.pbtxt of an ONNX model. max_batch_size is 0: the embeddings are shared by a batch, so
    not every input has the batch's axis, which Triton's own batching requires."""
    return "\n".join(
        [
            f'name: "{name}"',
            'platform: "onnxruntime_onnx"',
            "max_batch_size: 0",
            _tensors("input", found.inputs),
            _tensors("output", found.outputs),
            f"instance_group [ {{ kind: {kind} count: 1 }} ]",
        ]
    )


def ensemble_config(backbone: Signature, readout: Signature) -> str:
    """config.pbtxt that feeds the backbone's output to the readout."""
    steps = ", ".join([_step(BACKBONE, backbone), _step(READOUT, readout)])
    return "\n".join(
        [
            f'name: "{ENSEMBLE}"',
            'platform: "ensemble"',
            "max_batch_size: 0",
            _tensors("input", backbone.inputs),
            _tensors("output", readout.outputs),
            f"ensemble_scheduling {{ step [ {steps} ] }}",
        ]
    )


def _tensors(field: str, tensors: Sequence[Tensor]) -> str:
    shown = (f'{{ name: "{t.name}" data_type: {t.type} dims: {list(t.dims)} }}' for t in tensors)
    return f"{field} [\n  " + ",\n  ".join(shown) + "\n]"


def _step(model: str, found: Signature) -> str:
    maps = [("input_map", t.name) for t in found.inputs]
    maps += [("output_map", t.name) for t in found.outputs]
    shown = "\n".join(f'  {field} {{ key: "{name}" value: "{name}" }}' for field, name in maps)
    return f'{{\n  model_name: "{model}"\n  model_version: -1\n{shown}\n}}'


def _folder(out: Path, model: str, version: int) -> Path:
    folder = out / model / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(out: Path, model: str, config: str) -> None:
    (out / model / "config.pbtxt").write_text(config + "\n", encoding="utf-8")


def main() -> None:
    """Parse the command line and write the repository."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/bundle"))
    parser.add_argument("--out", type=Path, required=True)
    devices = [name for name in get_args(Device) if name != "tensorrt"]
    parser.add_argument("--device", choices=devices, default="cpu")
    parser.add_argument("--model-version", type=int, default=1)
    given = parser.parse_args()
    write_repository(given.bundle, given.out, given.device, given.model_version)
    for name in (BACKBONE, READOUT, ENSEMBLE):
        print(given.out / name / "config.pbtxt")


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
