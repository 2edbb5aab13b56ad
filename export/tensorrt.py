"""Build TensorRT engine files (plans) from fp16 graphs. tensorrt_rtx needs no GPU for it.

    python -m export.tensorrt GRAPH OUT --cuda-arch 89 --axis tokens=1x32,1x128,32x320 ...

Each engine is built in its own process, because TensorRT's parser ends the process at an operator
that it does not know. That process prints one JSON object, the fields of BuiltEngine. An engine can
be loaded only on a GPU, so nothing is run here.
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

from engine.api.errors import BundleError, ModelsatError
from engine.inference.tensorrt.cuda import find_cuda
from engine.inference.tensorrt.shapes import LENGTH_STEP

PLANS = "tensorrt"
LIBRARIES = ("tensorrt", "tensorrt_rtx")
Dims = tuple[int, ...]
InputProfile = Mapping[str, tuple[Dims, Dims, Dims]]  # input -> smallest, usual, largest shape

# Rows are candidates and the null one; more than 256 are split. The largest shapes decide how much
# memory is allocated at start: .4 GB for the scores of one layer's attention.
BATCH, LENGTH, ROWS = (1, 1, 64), (LENGTH_STEP, 128, 320), (1, 33, 257)


def backbone_profile(width: int) -> InputProfile:
    """Shapes that a backbone engine accepts, tuned for 1 request of 128 tokens, 32 candidates."""
    shapes = zip(BATCH, LENGTH, ROWS, strict=True)
    sizes = [((b, length), (b,), (rows, width)) for b, length, rows in shapes]
    names = ("tokens", "lengths", "embeddings")
    return {name: tuple(s[i] for s in sizes) for i, name in enumerate(names)}  # type: ignore[misc]


@dataclass(frozen=True)
class BuiltEngine:
    """A TensorRT engine file. capability: such as "89". size: in bytes. layers: before fusion.
    inputs: name -> dtype and profile. seconds: build time."""

    file: str
    library: str
    capability: str
    size: int
    layers: int
    inputs: dict[str, Any]
    seconds: float


def library() -> str:
    """Return the name of the installed TensorRT library; raise BundleError if there is none."""
    for name in LIBRARIES:
        if importlib.util.find_spec(name):
            return name
    raise BundleError(
        f"TensorRT is not installed (tried {', '.join(LIBRARIES)}); `pip install '.[trt]'`"
    )


def write_plans(
    folder: Path, width: int, capabilities: list[str]
) -> tuple[list[BuiltEngine], dict[str, str]]:
    """Build an engine of `folder`/backbone.fp16.onnx for each compute capability.

    Returns the engines, and the reason of each capability whose build failed. Raises BundleError if
    the graph or TensorRT is missing.
    """
    library()
    source = folder / "backbone.fp16.onnx"
    if not source.is_file():
        raise BundleError("TensorRT plans are built from the fp16 graph; add fp16 to --formats")
    engines: list[BuiltEngine] = []
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        cache, profile = Path(scratch) / "timings", backbone_profile(width)
        for sm in capabilities:
            out = folder / f"backbone.sm{sm}.plan"
            try:
                engines.append(build_plan(source, out, sm, profile, cache))
            except BundleError as error:
                out.unlink(missing_ok=True)
                failed[sm] = str(error)
    return engines, failed


def present_capability() -> str | None:
    """Return the compute capability of this machine's GPU, such as "90"; None without a GPU."""
    try:
        return find_cuda().capability()
    except ModelsatError:
        return None


def build_plan(
    graph: Path, out: Path, capability: str, profile: InputProfile, cache: Path
) -> BuiltEngine:
    """Build `graph` for one compute capability and write the engine to `out`.

    cache: file of the builder's timing cache, reused between builds if the library has one.
    Raises BundleError with the last line of the builder's log.
    """
    library()
    axes = [f"{name}={','.join('x'.join(map(str, s)) for s in p)}" for name, p in profile.items()]
    command = [
        sys.executable,
        "-m",
        "export.tensorrt",
        str(graph),
        str(out),
        "--cuda-arch",
        capability,
    ]
    command += ["--cache", str(cache), "--axis", *axes]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise BundleError(f"TensorRT could not build {graph.name} for sm{capability}: {reason}")
    return BuiltEngine(**json.loads(done.stdout.splitlines()[-1]))


def _build(graph: Path, out: Path, capability: str, axes: list[str], cache: Path) -> BuiltEngine:
    name, begun = library(), time.monotonic()
    trt = importlib.import_module(name)
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        raise BundleError("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    _aim(config, trt, capability)
    timings = _timings(config, cache)
    profile = builder.create_optimization_profile()
    shapes = {}
    for axis in axes:
        key, _, values = axis.partition("=")
        shapes[key] = [[int(n) for n in v.split("x")] for v in values.split(",")]
        profile.set_shape(key, *shapes[key])
    config.add_optimization_profile(profile)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise BundleError("the builder returned no engine; see its log above")
    out.write_bytes(memoryview(serialized))
    if timings is not None:
        cache.write_bytes(memoryview(timings.serialize()))
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    inputs = {t.name: {"dtype": str(t.dtype), "profile": shapes[t.name]} for t in tensors}
    size, seconds = out.stat().st_size, time.monotonic() - begun
    version = f"{name} {trt.__version__}"
    return BuiltEngine(out.name, version, capability, size, network.num_layers, inputs, seconds)


def _aim(config: Any, trt: Any, capability: str) -> None:
    """Set the compute capability; raise BundleError if this library cannot build for it."""
    if hasattr(config, "set_compute_capability"):
        target = getattr(trt.ComputeCapability, f"SM{capability}", None)
        if target is None:
            known = [n[2:] for n in dir(trt.ComputeCapability) if n.startswith("SM")]
            raise BundleError(
                f"{trt.__name__} {trt.__version__} builds no plans for sm{capability}, only for"
                f" {', '.join(sorted(known, key=int))}; serve with --device cuda on that GPU"
            )
        config.num_compute_capabilities = 1
        config.set_compute_capability(target, 0)
        return
    here = present_capability()
    if here != capability:
        found = f"which has sm{here}" if here else "and there is none"
        raise BundleError(
            f"{trt.__name__} builds only for this machine's GPU, {found};"
            f" sm{capability} was asked for"
        )


def _timings(config: Any, cache: Path) -> Any:
    """Attach the timing cache, or return None for tensorrt_rtx, which times kernels at run time."""
    if not hasattr(config, "create_timing_cache"):
        return None
    timings = config.create_timing_cache(cache.read_bytes() if cache.is_file() else b"")
    config.set_timing_cache(timings, ignore_mismatch=False)
    return timings


def main() -> None:
    """Build one engine and print its description as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m export.tensorrt", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("graph", type=Path, help="ONNX file")
    parser.add_argument("out", type=Path, help="engine file to write")
    parser.add_argument("--cuda-arch", default="89", help="compute capability, such as 89")
    parser.add_argument("--cache", type=Path, required=True, help="file of the timing cache")
    parser.add_argument(
        "--axis",
        nargs="+",
        required=True,
        help="INPUT=MIN,USUAL,MAX shapes, such as tokens=1x32,1x128,32x320",
    )
    args = parser.parse_args()
    print(json.dumps(vars(_build(args.graph, args.out, args.cuda_arch, args.axis, args.cache))))


if __name__ == "__main__":
    try:
        main()
    except BundleError as problem:
        sys.exit(str(problem))
