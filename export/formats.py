"""Write the backbone in each format that this machine can build, and map devices to formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.api.candidate import MAX_CANDIDATES
from engine.bundle.manifest import Device
from engine.bundle.prompt import INQUIRY, MAX_INSTRUCTION_TOKENS
from engine.inference.onnx import OnnxBackend
from export.onnx.fp16 import HalfGraph
from export.onnx.graph import Graph
from export.onnx.llama import CachedPrompt, emit_backbone
from export.onnx.ops import Int8, LlamaConfig, OnnxRuntime, Portable
from export.parity import ParityCheck
from export.reference import keys_values
from training.weights.base import Base

# Rows of the rotary tables: the longest prompt (64 is more than the inquiry prompt has) and as many
# candidates as a table may hold. ONNX Runtime rejects a sequence that is longer than the tables.
POSITIONS = MAX_INSTRUCTION_TOKENS + 64 + MAX_CANDIDATES


@dataclass(frozen=True)
class Format:
    """A format of the backbone.

    file: its name in the bundle. devices: the --device values that may use it. ops, graph: the
    operator dialect and the graph builder. limit: the largest difference from the reference in p;
    above it the format is left out, and for the first format no bundle is written.
    """

    name: str
    file: str
    devices: tuple[Device, ...]
    ops: type[Portable]
    limit: float
    graph: type[Graph] = Graph


# fp32 comes first, because a bundle needs it. int8 moves a probability by up to .083 on llmrouter9
# with the shipped weights (docs/explanation/quality.md).
FORMATS = (
    Format("onnx", "backbone.onnx", ("cpu", "cpu-fp32", "cuda"), OnnxRuntime, 1e-3),
    Format("int8", "backbone.int8.onnx", ("cpu",), Int8, 0.1),
    Format("fp16", "backbone.fp16.onnx", ("cuda",), Portable, 5e-3, HalfGraph),
)


@dataclass(frozen=True)
class WrittenFormats:
    """graphs: device -> file; later formats replace earlier ones. parity: format -> largest
    difference from the reference in p. skipped: format -> why it was left out."""

    graphs: dict[str, str]
    parity: dict[str, float]
    skipped: dict[str, str]


def write_formats(
    folder: Path,
    backbone: Base,
    names: list[str],
    parity: ParityCheck,
    progress: Callable[[str], None],
) -> WrittenFormats:
    """Write the formats in `names` to `folder` and compare each with the reference.

    progress: called with the name of each format before it is written.
    """
    config = LlamaConfig.of(backbone.config)
    cached = cached_prompt(backbone, config)
    written = WrittenFormats({}, {}, {})
    for output in FORMATS:
        if output.name not in names:
            continue
        progress(output.name)
        path = folder / output.file
        emit_backbone(
            config,
            backbone.arrays,
            path,
            ops=output.ops,
            graph=output.graph,
            cached=cached,
            positions=POSITIONS,
        )
        difference = parity.max_difference(OnnxBackend(path))
        written.parity[output.name] = difference
        if difference <= output.limit or output is FORMATS[0]:
            written.graphs.update(dict.fromkeys(output.devices, output.file))
        else:
            path.unlink()
            written.skipped[output.name] = (
                f"p differs by {difference:.2g} from the reference, limit {output.limit}"
            )
    return written


def cached_prompt(backbone: Base, config: LlamaConfig) -> CachedPrompt:
    """Compute the keys and values of the inquiry prompt, which become constants of the graph."""
    ids = backbone.tokenizer.encode(INQUIRY, add_special_tokens=False).ids
    return keys_values(config, backbone.arrays, np.array(ids))
