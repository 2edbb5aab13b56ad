"""The backbone in each format that this machine can build, and which device each suits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.api.candidate import MAX_CANDIDATES
from engine.bundle.manifest import Device, Layout
from engine.bundle.prompt import INQUIRY, MAX_INSTRUCTION_TOKENS
from engine.inference.onnx import OnnxBackend
from export.onnx.fp16 import HalfGraph
from export.onnx.graph import Graph
from export.onnx.llama import Cached, emit_backbone
from export.onnx.ops import Int8, LlamaConfig, OnnxRuntime, Portable
from export.parity import Parity
from export.reference import keys_values
from training.weights.base import Base

# Rows of the rotation tables, 0.6 MB: the longest prompt, and as many candidates as a table holds
# in the two task orders of the text representation.
POSITIONS = MAX_INSTRUCTION_TOKENS + 64 + 2 * MAX_CANDIDATES


@dataclass(frozen=True)
class Format:
    """file: in the bundle. devices: that it suits. ops, graph: the dialect. limit: of the parity,
    above which it is left out; of the first format, above which there is no bundle."""

    name: str
    file: str
    devices: tuple[Device, ...]
    ops: type[Portable]
    limit: float
    graph: type[Graph] = Graph


# fp32 first: it must hold. int8 on the shipped weights was seen at most .04 off (docs/adr/0007).
FORMATS = (
    Format("onnx", "backbone.onnx", ("cpu", "cpu-fp32", "cuda"), OnnxRuntime, 1e-3),
    Format("int8", "backbone.int8.onnx", ("cpu",), Int8, 0.1),
    Format("fp16", "backbone.fp16.onnx", ("cuda",), Portable, 5e-3, HalfGraph),
)


@dataclass(frozen=True)
class Written:
    """graphs: device -> file, the later formats taking over from earlier ones. parity: format ->
    largest difference in p. skipped: format -> why it is not there."""

    graphs: dict[str, str]
    parity: dict[str, float]
    skipped: dict[str, str]


def write_formats(
    folder: Path,
    backbone: Base,
    layout: Layout,
    names: list[str],
    parity: Parity,
    progress: Callable[[str], None],
) -> Written:
    """Write and check those of FORMATS that `names` lists, in their order."""
    config = LlamaConfig.of(backbone.config)
    cached = cached_prompt(backbone, config) if layout == "candidate_last" else ()
    written = Written({}, {}, {})
    for form in FORMATS:
        if form.name not in names:
            continue
        progress(form.name)
        path = folder / form.file
        emit_backbone(
            config,
            backbone.arrays,
            layout,
            path,
            ops=form.ops,
            graph=form.graph,
            cached=cached,
            positions=POSITIONS,
        )
        found = parity.of(OnnxBackend(path))
        written.parity[form.name] = found
        if found <= form.limit or form is FORMATS[0]:
            written.graphs.update(dict.fromkeys(form.devices, form.file))
        else:
            path.unlink()
            written.skipped[form.name] = f"p is {found:.2g} off, the limit is {form.limit}"
    return written


def cached_prompt(backbone: Base, config: LlamaConfig) -> Cached:
    """Keys and values of the inquiry prompt."""
    ids = backbone.tokenizer.encode(INQUIRY, add_special_tokens=False).ids
    return keys_values(config, backbone.arrays, np.array(ids))
