"""Write the backbone in each format that this machine can build, and map devices to formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from cpp_ext.forward import paths
from engine.api.candidate import MAX_CANDIDATES
from engine.api.errors import BundleError
from engine.bundle.manifest import Device
from engine.bundle.prompt import INQUIRY, MAX_INSTRUCTION_TOKENS, render
from engine.bundle.types import Float32Array, Int64Array
from engine.inference.fused import FusedBackend
from engine.inference.onnx import OnnxBackend
from export.onnx.fp16 import HalfGraph
from export.onnx.graph import Graph
from export.onnx.llama import CachedPrompt, emit_backbone
from export.onnx.ops import Int8, LlamaConfig, OnnxRuntime, Portable
from export.packed import Number, write_packed
from export.parity import HiddenBackend, ParityCheck
from export.reference import keys_values
from export.smoothing import smooth
from training.difficulty.prompts import everyday_prompts, other_prompts
from training.weights.base import Base

# Rows of the rotary tables: the longest prompt (64 is more than the inquiry prompt has) and as many
# candidates as a table may hold. ONNX Runtime rejects a sequence that is longer than the tables.
POSITIONS = MAX_INSTRUCTION_TOKENS + 64 + MAX_CANDIDATES
EVERY_EVERYDAY, EVERY_OTHER = 20, 6  # of the texts on which activations are observed: some 70
PROMPT_POSITIONS = POSITIONS - MAX_CANDIDATES + 1  # in the fused forward pass candidates share one


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
    number: Number | None = None


# fp32 comes first, because a bundle needs it. On an H100, ONNX Runtime's CUDA provider ran it up to
# 1.9 times as fast as the fp16 graph, which has more operators (docs/how-to/gpu.md). The limits of
# int8 find what is wrong; how near it comes depends on the weights (docs/explanation/quality.md).
FORMATS = (
    Format("onnx", "backbone.onnx", ("cpu", "cpu-fp32", "cuda"), OnnxRuntime, 1e-3),
    Format("int8", "backbone.int8.onnx", ("cpu",), Int8, 0.1),
    Format("fp16", "backbone.fp16.onnx", ("cuda-fp16",), Portable, 5e-3, HalfGraph),
    Format("fused", "backbone.int8.fused", ("cpu-fused",), Int8, 0.1, number="int8"),
    Format("fused-bf16", "backbone.bf16.fused", ("cpu-bf16",), Portable, 5e-3, number="bf16"),
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
    sources = _Sources(backbone, parity.embeddings)
    written = WrittenFormats({}, {}, {})
    for output in FORMATS:
        if output.name not in names:
            continue
        progress(output.name)
        path = folder / output.file
        try:
            difference = parity.max_difference(
                _write(output, path, sources.smoothed if output.ops is Int8 else sources.exact)
            )
        except BundleError as error:  # a fused format where it cannot run, and so not be checked
            path.unlink()
            written.skipped[output.name] = str(error)
            continue
        written.parity[output.name] = difference
        if difference <= output.limit or output is FORMATS[0]:
            written.graphs.update(dict.fromkeys(output.devices, output.file))
        else:
            path.unlink()
            written.skipped[output.name] = (
                f"p differs by {difference:.2g} from the reference, limit {output.limit}"
            )
    return written


@dataclass(frozen=True)
class _Source:
    """A backbone, and the keys and values of the inquiry prompt."""

    backbone: Base
    config: LlamaConfig
    cached: CachedPrompt

    @staticmethod
    def of(backbone: Base) -> _Source:
        config = LlamaConfig.of(backbone.config)
        return _Source(backbone, config, cached_prompt(backbone, config))


@dataclass(frozen=True)
class _Sources:
    """The backbone as it is, and as formats of 8 bits are made from it. embeddings: (M, D) of
    candidates."""

    backbone: Base
    embeddings: Float32Array

    @cached_property
    def exact(self) -> _Source:
        return _Source.of(self.backbone)

    @cached_property
    def smoothed(self) -> _Source:
        source, tokenizer = self.exact, self.backbone.tokenizer
        texts = [*everyday_prompts()[::EVERY_EVERYDAY], *other_prompts()[::EVERY_OTHER]]
        prompts = [render(text, tokenizer).tokens for text in texts]
        cached = len(prompt_tokens(self.backbone))
        arrays = smooth(source.config, self.backbone.arrays, prompts, cached, self.embeddings)
        return _Source.of(replace(self.backbone, arrays=arrays))


def _write(output: Format, path: Path, source: _Source) -> HiddenBackend:
    """Write one format and open it. Raises BundleError if it cannot be opened here."""
    backbone, config, cached = source.backbone, source.config, source.cached
    if output.number is None:
        emit_backbone(
            config,
            backbone.arrays,
            path,
            ops=output.ops,
            graph=output.graph,
            cached=cached,
            positions=POSITIONS,
        )
        return OnnxBackend(path)
    write_packed(
        config,
        backbone.arrays,
        path,
        number=output.number,
        prompt=prompt_tokens(backbone),
        cached=cached,
        positions=PROMPT_POSITIONS,
    )
    return FusedBackend(path, allowed=paths())


def prompt_tokens(backbone: Base) -> Int64Array:
    """Tokenize the inquiry prompt: (P,)."""
    return np.array(backbone.tokenizer.encode(INQUIRY, add_special_tokens=False).ids)


def cached_prompt(backbone: Base, config: LlamaConfig) -> CachedPrompt:
    """Compute the keys and values of the inquiry prompt, which become constants of the graph."""
    return keys_values(config, backbone.arrays, prompt_tokens(backbone))
