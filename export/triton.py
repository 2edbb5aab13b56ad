"""Write a bundle as a model repository for NVIDIA Triton.

    python -m export.triton --bundle artifacts/bundle --out DIR [--device cpu] [--model-version 1]

modelsat_backbone   tokens, lengths, embeddings -> hidden: the bundle's graph for the device
modelsat_readout    hidden -> probabilities: final norm, 'Yes' against 'No', calibration
modelsat            an ensemble of the two

Shapes and types in each config.pbtxt come from the ONNX file next to it. The client renders
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
    """An input or output of a model. dims: -1 for a dynamic axis."""

    name: str
    type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def write_repository(bundle: Path, out: Path, device: Device = "cpu", version: int = 1) -> None:
    """Write the three models to `out`; other versions of them in that folder are kept.

    Raises:
        BundleError: the bundle has no ONNX graph for `device`, or `out` holds another version with
            other tensors or another device; a model has one config.pbtxt for all its versions.
    """
    manifest = read_manifest(bundle, "bundle")
    graph = manifest.graphs.get(device, "")
    if not graph.endswith(".onnx"):
        raise BundleError(
            f"{bundle} has no ONNX graph for {device}; it has {dict(manifest.graphs)}."
        )
    check_hash(bundle, manifest, graph)
    kind = "KIND_GPU" if device == "cuda" else "KIND_CPU"
    _check_versions(out, version, onnx_config(BACKBONE, signature(bundle / graph), kind))
    backbone, readout = (_folder(out, name, version) / "model.onnx" for name in (BACKBONE, READOUT))
    shutil.copyfile(bundle / graph, backbone)
    emit_readout(manifest, np.asarray(load_arrays(bundle).readout), readout)
    parts = {name: signature(path) for name, path in ((BACKBONE, backbone), (READOUT, readout))}
    for name, tensors in parts.items():
        _write(out, name, onnx_config(name, tensors, kind))
    # Triton needs the version's folder, and neither git nor an object store keeps an empty one.
    (_folder(out, ENSEMBLE, version) / ".keep").touch()
    _write(out, ENSEMBLE, ensemble_config(parts[BACKBONE], parts[READOUT]))


def _check_versions(out: Path, version: int, config: str) -> None:
    """Compare the backbone's configuration, which has every input and the readout's width."""
    file = out / BACKBONE / "config.pbtxt"
    others = sorted(p.name for p in file.parent.glob("[0-9]*") if p.name != str(version))
    if others and file.is_file() and file.read_text("utf-8") != config + "\n":
        raise BundleError(
            f"{file} belongs to version {', '.join(others)}, which has other tensors or another"
            " device; choose another folder for --out."
        )


def emit_readout(manifest: Manifest, weight: np.ndarray, path: Path) -> None:
    """Write the graph of cpp_ext.score: hidden (B, M, D) -> probabilities (B, M)."""
    graph = Graph(READOUT)
    hidden = graph.input("hidden", FLOAT, ["B", "M", manifest.width])
    mean = graph.op("ReduceMean", graph.op("Mul", hidden, hidden), axes=[2], keepdims=0)
    norm = graph.op("Sqrt", graph.op("Add", mean, graph.const(manifest.norm_eps, np.float32)))
    logit = graph.op(
        "Div", graph.op("MatMul", hidden, graph.weight("readout", weight.astype(np.float32))), norm
    )
    scaled = graph.op("Mul", logit, graph.const(manifest.calibration.scale, np.float32))
    shifted = graph.op("Add", scaled, graph.const(manifest.calibration.offset, np.float32))
    graph.output("probabilities", graph.op("Sigmoid", shifted), ["B", "M"])
    graph.save(path)


def signature(path: Path) -> Signature:
    """Read the inputs and outputs of an ONNX file."""
    graph = onnx.load(path, load_external_data=False).graph
    return Signature(tuple(map(_tensor, graph.input)), tuple(map(_tensor, graph.output)))


def _tensor(info: onnx.ValueInfoProto) -> Tensor:
    kind = info.type.tensor_type
    dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    return Tensor(info.name, TYPES[kind.elem_type], dims)


def onnx_config(name: str, tensors: Signature, kind: str) -> str:
    """Render config.pbtxt of an ONNX model.

    max_batch_size is 0, because Triton's own batching requires a batch axis on every input, and the
    embeddings, which a batch shares, have none.
    """
    return "\n".join(
        [
            f'name: "{name}"',
            'platform: "onnxruntime_onnx"',
            "max_batch_size: 0",
            _tensors("input", tensors.inputs),
            _tensors("output", tensors.outputs),
            f"instance_group [ {{ kind: {kind} count: 1 }} ]",
        ]
    )


def ensemble_config(backbone: Signature, readout: Signature) -> str:
    """Render config.pbtxt of the ensemble, which feeds the backbone's output to the readout."""
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
    entries = (f'{{ name: "{t.name}" data_type: {t.type} dims: {list(t.dims)} }}' for t in tensors)
    return f"{field} [\n  " + ",\n  ".join(entries) + "\n]"


def _step(model: str, tensors: Signature) -> str:
    maps = [("input_map", t.name) for t in tensors.inputs]
    maps += [("output_map", t.name) for t in tensors.outputs]
    mapping = "\n".join(f'  {field} {{ key: "{name}" value: "{name}" }}' for field, name in maps)
    return f'{{\n  model_name: "{model}"\n  model_version: -1\n{mapping}\n}}'


def _folder(out: Path, model: str, version: int) -> Path:
    folder = out / model / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(out: Path, model: str, config: str) -> None:
    (out / model / "config.pbtxt").write_text(config + "\n", encoding="utf-8")


def main() -> None:
    """Parse the command line and write the repository."""
    parser = argparse.ArgumentParser(
        prog="python -m export.triton", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--bundle", type=Path, default=Path("artifacts/bundle"), help="folder of the bundle"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the model repository")
    devices = [name for name in get_args(Device) if name in ("cpu", "cpu-fp32", "cuda")]
    parser.add_argument(
        "--device", choices=devices, default="cpu", help="device that Triton runs the graph on"
    )
    parser.add_argument(
        "--model-version", type=int, default=1, help="version of the three models to write"
    )
    arguments = parser.parse_args()
    write_repository(arguments.bundle, arguments.out, arguments.device, arguments.model_version)
    for name in (BACKBONE, READOUT, ENSEMBLE):
        print(arguments.out / name / "config.pbtxt")


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
