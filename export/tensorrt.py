"""TensorRT plans from fp16 graphs; no GPU is needed with tensorrt_rtx.

    python -m export.tensorrt GRAPH OUT --sm 89 --axis tokens=1x32,1x128,32x320 ...

Built in a process of its own, because the parser ends the process at an operator that it does not
know. Prints one JSON object: layers, inputs, library. The plan cannot be loaded, let alone run,
without a GPU: what is checked here is that it was built and what the builder says of it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.api.errors import BundleError
from engine.inference.tensorrt.shapes import LENGTH_STEP
from export.onnx.bert import emit_encoder
from export.onnx.fp16 import HalfGraph
from training.weights.base import Base

PLANS = "tensorrt"
LIBRARIES = ("tensorrt", "tensorrt_rtx")
Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]  # input -> smallest, usual, largest

BATCH, LENGTH, ROWS = (1, 1, 32), (LENGTH_STEP, 128, 320), (1, 32, 1024)


def backbone_profile(width: int) -> Profile:
    """Requests, tokens and candidate rows that a plan serves; usual: one of 128 tokens."""
    shapes = zip(BATCH, LENGTH, ROWS, strict=True)
    sizes = [((b, length), (b,), (rows, width)) for b, length, rows in shapes]
    names = ("tokens", "lengths", "embeddings")
    return {name: tuple(s[i] for s in sizes) for i, name in enumerate(names)}  # type: ignore[misc]


def encoder_profile(limit: int) -> Profile:
    """Texts and tokens; keywords are short."""
    shapes = ((1, 3), (16, 16), (64, limit))
    return {"tokens": shapes, "mask": shapes}


@dataclass(frozen=True)
class Plan:
    """size in bytes; layers before the builder fuses them; seconds of the build."""

    file: str
    library: str
    capability: str
    size: int
    layers: int
    inputs: dict[str, Any]
    seconds: float


def library() -> str:
    """The name of the library that builds; raises BundleError where there is none."""
    for name in LIBRARIES:
        if importlib.util.find_spec(name):
            return name
    raise BundleError(f"none of {', '.join(LIBRARIES)} is installed: `pip install '.[trt]'`")


def write_plans(folder: Path, encoder: Base, width: int, capabilities: list[str]) -> list[Plan]:
    """Plans of backbone and encoder for each capability; the backbone's first. Reads the folder's
    backbone.fp16.onnx."""
    library()
    source = folder / "backbone.fp16.onnx"
    if not source.is_file():
        raise BundleError("plans are made from the fp16 graph, which is not there: add fp16")
    with tempfile.TemporaryDirectory() as scratch:
        half, cache = Path(scratch) / "encoder.onnx", Path(scratch) / "timings"
        emit_encoder(encoder.config, encoder.arrays, half, HalfGraph)
        longest = int(encoder.config["max_position_embeddings"])
        graphs = [("backbone", source, backbone_profile(width))]
        graphs += [("encoder", half, encoder_profile(longest))]
        return [
            build_plan(graph, folder / f"{name}.sm{sm}.plan", sm, profile, cache)
            for name, graph, profile in graphs
            for sm in capabilities
        ]


def build_plan(graph: Path, out: Path, capability: str, profile: Profile, cache: Path) -> Plan:
    """Write `out` from `graph` for a compute capability ("89"); raises BundleError with the
    builder's last words. cache: of timings, kept between builds where the library has one."""
    library()
    axes = [f"{name}={','.join('x'.join(map(str, s)) for s in p)}" for name, p in profile.items()]
    command = [sys.executable, "-m", "export.tensorrt", str(graph), str(out), "--sm", capability]
    command += ["--cache", str(cache), "--axis", *axes]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise BundleError(f"{graph.name} gives no plan for sm{capability}: {words}")
    return Plan(**json.loads(done.stdout.splitlines()[-1]))


def _build(graph: Path, out: Path, capability: str, axes: list[str], cache: Path) -> Plan:
    name, begun = library(), time.monotonic()
    trt = importlib.import_module(name)
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        raise BundleError("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    if hasattr(config, "set_compute_capability"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), 0)
    timings = _timings(config, cache)
    profile = builder.create_optimization_profile()
    shapes = {}
    for axis in axes:
        key, _, values = axis.partition("=")
        shapes[key] = [[int(n) for n in v.split("x")] for v in values.split(",")]
        profile.set_shape(key, *shapes[key])
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BundleError("the builder gave no plan; its log is above")
    out.write_bytes(memoryview(plan))
    if timings is not None:
        cache.write_bytes(memoryview(timings.serialize()))
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    inputs = {t.name: {"dtype": str(t.dtype), "profile": shapes[t.name]} for t in tensors}
    size, seconds = out.stat().st_size, time.monotonic() - begun
    version = f"{name} {trt.__version__}"
    return Plan(out.name, version, capability, size, network.num_layers, inputs, seconds)


def _timings(config: Any, cache: Path) -> Any:
    """The timing cache, None where the library has none (tensorrt_rtx times at run time)."""
    if not hasattr(config, "create_timing_cache"):
        return None
    known = config.create_timing_cache(cache.read_bytes() if cache.is_file() else b"")
    config.set_timing_cache(known, ignore_mismatch=False)
    return known


def main() -> None:
    """Build one plan."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("graph", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sm", default="89")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--axis", nargs="+", required=True)
    args = parser.parse_args()
    print(json.dumps(vars(_build(args.graph, args.out, args.sm, args.axis, args.cache))))


if __name__ == "__main__":
    try:
        main()
    except BundleError as problem:
        sys.exit(str(problem))
